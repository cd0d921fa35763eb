//! Promise A1 at Linode: killed at any journal write, the next run converges with what there is,
//! and nothing is made twice.

use crate::account::{Account, assert_answers, serve_line};
use crate::support::{Project, Run, free_port};

const APPLY: &[&str] = &["apply", "--auto-approve"];
const DESTROY: &[&str] = &["destroy", "--auto-approve"];

/// Returns two machines and a binding; the last three are of `db`'s size, image and tags.
fn configuration([size, image, tag]: [&str; 3]) -> String {
    let machine = |name: &str, size: &str, image: &str, body: &str| {
        format!(
            "machine \"{name}\" {{
               provider        = linode
               region          = \"eu-central\"
               type            = \"{size}\"
               image           = \"{image}\"
               authorized_keys = [\"ssh-ed25519 AAAA test\"]
               {body}
             }}\n"
        )
    };
    let offers = "service \"orders\" { tcp = \"127.0.0.1:${var.orders_port}\" }";
    format!(
        "variable \"orders_port\" {{ type = number }}
         variable \"app_port\" {{ type = number }}
         {}{}
         binding \"orders\" {{
           from = machine.db.service.orders
           to   = machine.app
           expose {{ tcp = \"127.0.0.1:${{var.app_port}}\" }}
         }}
         output \"orders\" {{ value = binding.orders.address }}",
        machine("db", size, image, offers),
        machine(
            "app",
            "g6-nanode-1",
            "linode/debian13",
            &format!("tags = [\"{tag}\"]")
        ),
    )
}

const BEFORE: [&str; 3] = ["g6-nanode-1", "linode/debian13", "green"];

fn account(seed: u64, service: u16) -> Account {
    let project = Project::new(&configuration(BEFORE))
        .with_env("GOBS_VAR_orders_port", service)
        .with_env("GOBS_VAR_app_port", free_port());
    Account::start(project, seed)
}

/// Runs a command again and again, each time in an account brought to the same place, and dies at
/// one journal write after the other, until it reaches its end alive. Returns how often it died.
fn die_everywhere(prepare: &dyn Fn(&Project), args: &[&str], machines: usize) -> u64 {
    let service = serve_line();
    let mut deaths = 0;
    for when in ["before", "after"] {
        for write in 1.. {
            let account = account(write, service);
            let project = &account.project;
            prepare(project);
            let mut command = project.command(args);
            command.env("GOBS_TEST_CRASH_AT", format!("{when}:{write}"));
            let run = Run::of(command);
            if run.code == Some(0) {
                break;
            }
            let at = format!("{when}:{write}");
            assert_eq!(run.code, None, "not killed at {at}: {run:?}");
            deaths += 1;
            project.gobs(args).ok();
            account.assert_machines(machines, 2, &at);
            if machines > 0 {
                project.gobs(&["plan", "--detailed-exitcode"]).ok();
                project.gobs(&["status"]).ok();
                assert_answers(&project.gobs(&["output", "--raw", "orders"]).ok().stdout);
                project.gobs(DESTROY).ok();
                account.assert_machines(0, 2, &at);
            }
        }
    }
    deaths
}

/// Applies one configuration and declares another.
fn change(after: [&'static str; 3]) -> impl Fn(&Project) {
    move |project| {
        project.gobs(APPLY).ok();
        project.write("main.gobs.hcl", &configuration(after));
    }
}

#[test]
fn a1_a_first_apply_at_linode_that_dies_at_any_journal_write_converges() {
    let deaths = die_everywhere(&|_| {}, APPLY, 2);
    assert!(deaths >= 10, "{deaths}");
}

#[test]
fn a1_a_resize_at_linode_that_dies_at_any_journal_write_converges() {
    let larger = ["g6-standard-1", "linode/debian13", "blue"];
    let deaths = die_everywhere(&change(larger), APPLY, 2);
    assert!(deaths >= 4, "{deaths}");
}

#[test]
fn a1_a_rebuild_at_linode_that_dies_at_any_journal_write_converges() {
    let newer = ["g6-nanode-1", "linode/debian12", "green"];
    let deaths = die_everywhere(&change(newer), APPLY, 2);
    assert!(deaths >= 8, "{deaths}");
}

#[test]
fn a1_a_destroy_at_linode_that_dies_at_any_journal_write_converges() {
    let deaths = die_everywhere(&change(BEFORE), DESTROY, 0);
    assert!(deaths >= 4, "{deaths}");
}
