//! Promise A3 through the whole program: whatever becomes of an answer, no step is reported failed
//! that succeeded, nothing is made twice, and nothing is left behind.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use gobs_linode_double::{Fault, Kind};

use crate::account::Account;
use crate::support::Project;

/// How many lives are lived at once: they mostly wait.
const LIVES_AT_ONCE: usize = 4;

fn configuration(size: &str, image: &str, label: &str) -> String {
    let machine = |name: &str, body: &str| {
        format!(
            "machine \"{name}\" {{
               provider        = linode
               region          = \"eu-central\"
               authorized_keys = [\"ssh-ed25519 AAAA test\"]
               {body}
             }}\n"
        )
    };
    let changed = format!("type = \"{size}\"\nimage = \"{image}\"\nlabel = \"{label}\"");
    let steady = "type = \"g6-nanode-1\"\nimage = \"linode/debian13\"";
    machine("one", &changed) + &machine("two", steady)
}

fn faults() -> Vec<Fault> {
    let html = |status| Kind::Before { status, html: true };
    let json = |status| Kind::Before {
        status,
        html: false,
    };
    let limited = Kind::TooManyRequests {
        retry_after_s: Some(7),
        as_date: false,
    };
    let kinds = [
        Kind::ResetBefore,
        Kind::ResetAfter,
        Kind::After { status: 504 },
        Kind::Truncate,
        Kind::SlowBody { virtual_s: 100 },
        Kind::Down { virtual_s: 20 },
        html(502),
        json(500),
        limited,
    ];
    let requests = [
        ("POST", "/linode/instances"),
        ("GET", "/linode/instances/*"),
        ("PUT", "/linode/instances/*"),
        ("POST", "/linode/instances/*/resize"),
        ("POST", "/linode/instances/*/rebuild"),
        ("GET", "/account/events"),
        ("DELETE", "/linode/instances/*"),
    ];
    let mut faults: Vec<Fault> = requests
        .iter()
        .flat_map(|(method, path)| {
            let kinds = kinds.iter().cloned();
            kinds.map(move |kind| Fault::once(method, path, kind))
        })
        .collect();
    let all = "/linode/instances";
    // Longer than an answer is waited for.
    faults.push(Fault::once("POST", all, Kind::Hang { virtual_s: 2_500 }));
    faults.push(Fault::once("POST", all, Kind::JobSlow { virtual_s: 600 }));
    faults.push(Fault::once("POST", all, Kind::BootDies { virtual_s: 5 }));
    faults
}

/// Lives the whole life of two machines with a fault; returns what was wrong.
fn live(fault: Fault, seed: u64) -> Result<(), String> {
    let project = Project::new(&configuration("g6-nanode-1", "linode/debian13", "first"));
    let account = Account::start(project, seed);
    account.double.fault(fault);
    let apply = |what: &str, summary: &str| {
        let run = account.project.gobs(&["apply", "--auto-approve"]);
        match run.code == Some(0) && run.stdout.contains(summary) {
            true => Ok(()),
            false => Err(format!("{what}: {run:?}")),
        }
    };
    apply("create", "Resources: 2 added, 0 changed, 0 destroyed.")?;
    let changes = [
        ("resize", "g6-standard-1", "linode/debian13", "first"),
        (
            "rebuild and label",
            "g6-standard-1",
            "linode/debian12",
            "second",
        ),
    ];
    for (what, size, image, label) in changes {
        let configuration = configuration(size, image, label);
        account.project.write("main.gobs.hcl", &configuration);
        apply(what, "Resources: 0 added, 1 changed, 0 destroyed.")?;
    }
    let plan = account.project.gobs(&["plan", "--detailed-exitcode"]);
    if plan.code != Some(0) {
        return Err(format!("plan: {plan:?}"));
    }
    let destroy = account.project.gobs(&["destroy", "--auto-approve"]);
    let summary = "Destroy complete! Resources: 2 destroyed.";
    if destroy.code != Some(0) || !destroy.stdout.contains(summary) {
        return Err(format!("destroy: {destroy:?}"));
    }
    let double = &account.double;
    let done = (
        double.instances().len(),
        double.stats().created,
        double.events("linode_rebuild"),
        double.events("linode_resize"),
        double.unused_faults(),
    );
    match done {
        (0, 2, 1, 1, 0) => Ok(()),
        _ => Err(format!(
            "left, made, rebuilt, resized, faults not met: {done:?}"
        )),
    }
}

#[test]
fn a3_no_fault_makes_an_apply_at_linode_fail_or_repeat() {
    let (faults, next) = (faults(), AtomicUsize::new(0));
    let broken = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..LIVES_AT_ONCE {
            scope.spawn(|| {
                while let Some(fault) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(why) = live(fault.clone(), 7) {
                        let mut broken = broken.lock().expect("a lock");
                        broken.push(format!("{fault:?}: {why}"));
                    }
                }
            });
        }
    });
    let broken = broken.into_inner().expect("a lock");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn a_token_that_ends_and_an_account_that_is_full_are_said_and_made_good() {
    let project = Project::new(&configuration("g6-nanode-1", "linode/debian13", "first"));
    let account = Account::start(project, 7);
    let (project, double) = (&account.project, &account.double);
    let apply = |code: i32, says: &str| {
        let run = project.gobs(&["apply", "--auto-approve"]).code(code);
        let said = format!("{}{}", run.stdout, run.stderr).replace("\n", " ");
        let said: Vec<&str> = said.split_whitespace().collect();
        assert!(said.join(" ").contains(says), "{run:?}");
    };
    double.fault(Fault::once("POST", "/linode/instances", Kind::TokenEnds));
    apply(1, "Linode says: Invalid Token");
    account.assert_machines(0, 0, "without a token");
    double.set_token("double", Some("*"));
    double.set_instances_max(Some(1));
    apply(
        1,
        "Linode says: Account Limit reached. Please open a support ticket",
    );
    account.assert_machines(1, 1, "in an account that is full");
    double.set_instances_max(None);
    apply(0, "Resources: 1 added, 0 changed, 0 destroyed.");
    account.assert_machines(2, 2, "in the end");
}
