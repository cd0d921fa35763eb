//! `gobs apply` of `examples/linode` against the double of Linode's API: what boots there is a
//! real hob, which its user data installs from the boss, and which gets its own through the
//! metadata protocol.

use gobs_linode_double::{Fault, Kind};

use crate::account::{Account, assert_answers, serve_line};
use crate::support::{Project, Run, free_port};

#[test]
fn the_example_lives_and_ends_at_linode() {
    let project = Project::copy_of("examples/linode")
        .with_env("GOBS_VAR_ssh_key", "ssh-ed25519 AAAA test")
        .with_env("GOBS_VAR_orders_port", serve_line())
        .with_env("GOBS_VAR_app_port", free_port());
    let account = Account::bare(project, 42);
    let (project, double) = (&account.project, &account.double);
    // The answer to the first create is lost: it must be adopted, not doubled.
    double.fault(Fault::once("POST", "/linode/instances", Kind::ResetAfter));

    let done = project.gobs(&["apply", "--auto-approve"]).ok().stdout;
    let summary =
        "Apply complete! Resources: 2 added, 0 changed, 0 destroyed. Bindings: 1 granted.";
    assert!(done.contains(summary), "{done}");
    account.assert_machines(2, 2, "after apply");
    let disks = project.path().join("linodes");
    let disks = std::fs::read_dir(disks).expect("disks");
    let disks: Vec<_> = disks.map(|it| it.expect("a disk").path()).collect();
    let own: Vec<_> = disks
        .iter()
        .map(|it| std::fs::read_to_string(it.join("own")).expect("a file"))
        .collect();
    assert!(own.iter().any(|it| it.contains("postgresql")), "{own:?}");
    // The claim is made, and no copy of what it was made with is left.
    for disk in disks {
        let directory = disk.join("root/var/lib/gobs");
        assert!(directory.join("hob/state.json").exists());
        assert!(!directory.join("user-data").exists());
    }
    assert_answers(&project.gobs(&["output", "--raw", "orders"]).ok().stdout);

    let again = project.gobs(&["plan"]).ok().stdout;
    let nothing = "No changes. Your infrastructure matches the configuration.";
    assert!(again.contains(nothing), "{again}");

    project.gobs(&["destroy", "--auto-approve"]).ok();
    account.assert_machines(0, 2, "after destroy");
}

/// A machine at Linode without a hob, with more lines.
fn machine(name: &str, lines: &str) -> String {
    format!(
        "machine \"{name}\" {{
  provider = linode
  type     = \"g6-nanode-1\"
  {lines}
}}\n"
    )
}

/// Returns what a run said, in one line.
fn said(run: &Run) -> String {
    let said = format!("{} {}", run.stdout, run.stderr);
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn what_linode_would_refuse_is_said_before_anything_is_asked() {
    let image = "region = \"eu-central\"\n  image  = \"linode/debian13\"";
    let text = [
        machine("locked", &format!("{image}\n  authorized_keys = []")),
        machine("blank", "region = \"eu-central\""),
        machine(
            "empty",
            "region = \"eu-central\"\n  hob { enabled = false }",
        ),
        machine("open", &format!("{image}\n  authorized_users = [\"me\"]")),
    ];
    let project = Project::new(&text.concat());
    for command in ["validate", "plan"] {
        let said = said(&project.gobs(&[command]).code(1));
        for expected in [
            "main.gobs.hcl line 5:",
            "machine.locked has \"image\", and so \"authorized_keys\" or \"authorized_users\" or \
             \"root_pass\" must be set.",
            "Linode writes no disk that nobody could log in to.",
            "main.gobs.hcl line 8:",
            "machine.blank has \"hob\", and so \"image\" must be set.",
        ] {
            assert!(said.contains(expected), "{command}: {expected:?}: {said}");
        }
        for fine in ["machine.empty has", "machine.open has"] {
            assert!(!said.contains(fine), "{command}: {said}");
        }
    }
}

#[test]
fn another_region_is_a_migration_with_its_downtime_and_other_addresses() {
    let of = |region: &str| {
        let lines = format!("region = \"{region}\"\n  hob {{ enabled = false }}");
        machine("web", &lines) + "output \"address\" { value = machine.web.address }\n"
    };
    let account = Account::start(Project::new(&of("eu-central")), 5);
    let (project, double) = (&account.project, &account.double);
    project.gobs(&["apply", "--auto-approve"]).ok();
    let address = project.gobs(&["output", "--raw", "address"]).ok().stdout;

    project.write("main.gobs.hcl", &of("us-ord"));
    let plan = said(&project.gobs(&["plan", "--out", "p"]).ok());
    for plan in [plan, said(&project.gobs(&["show", "p"]).ok())] {
        for expected in [
            "machine.web will be migrated (downtime: minutes to hours, while its disk is copied; \
             its addresses change)",
            "region = \"eu-central\" -> \"us-ord\" # forces a migration",
            "-> (known after apply)",
            "0 to add, 1 to change, 0 to destroy",
        ] {
            assert!(plan.contains(expected), "{expected:?}: {plan}");
        }
        assert!(!plan.contains("resize"), "{plan}");
    }
    project.gobs(&["apply", "p"]).ok();
    assert_eq!(double.events("linode_migrate_datacenter"), 1);
    let moved = project.gobs(&["output", "--raw", "address"]).ok().stdout;
    assert_ne!(moved, address);
    project.gobs(&["plan", "--detailed-exitcode"]).code(0);
    project.gobs(&["destroy", "--auto-approve"]).ok();
    account.assert_machines(0, 1, "after destroy");
}
