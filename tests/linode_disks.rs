//! The size of a machine's swap disk, through whole runs.

use std::time::Duration;

use gobs_linode_double::{Fault, Kind};
use serde_json::Value;

use crate::account::{Account, MACHINE};
use crate::support::{Project, Run, eventually};

const APPLY: &[&str] = &["apply", "--auto-approve"];
const NOTHING: &str = "No changes. Your infrastructure matches the configuration.";

/// How long a job of the double may take on a loaded host: it is a minute of its clock.
const CHANGE_WITHIN: Duration = Duration::from_secs(60);

/// How many MB a machine of this type has.
const ALL_MB: u64 = 25_600;

fn with(swap: u32, more: &str) -> String {
    MACHINE.replace("  hob", &format!("  swap_size = {swap}\n  {more}\n  hob"))
}

/// Returns what a run says, in words.
#[track_caller]
fn said(run: Run, code: i32) -> String {
    let run = run.code(code);
    let all = format!("{} {}", run.stdout, run.stderr);
    all.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the sizes of the machine's disks: of the one with the system, and of the one to swap to.
fn disks(account: &Account) -> Vec<u64> {
    let id = &account.double.instances()[0]["id"];
    let path = format!("/linode/instances/{id}/disks");
    let all = account.double.ask("GET", &path, &Value::Null);
    let all = all.expect("listed")["data"].as_array().cloned();
    let sizes = all.expect("a list").into_iter();
    sizes.map(|it| it["size"].as_u64().unwrap_or(0)).collect()
}

/// Asserts that the machine runs with so much to swap to, and that nothing is left to be done.
#[track_caller]
fn assert_settled(account: &Account, swap: u64) {
    assert_eq!(disks(account), [ALL_MB - swap, swap]);
    let instance = || account.double.instances().remove(0);
    eventually("it runs", CHANGE_WITHIN, || {
        instance()["status"] == "running"
    });
    let instance = instance();
    assert!(!instance["tags"].to_string().contains("gobs-off"));
    let plan = said(account.project.gobs(&["plan"]), 0);
    assert!(plan.contains(NOTHING), "{plan}");
}

#[test]
fn the_swap_disk_changes_with_the_machine_off_and_its_data_kept() {
    let account = Account::start(Project::new(&with(512, "")), 41);
    let (project, double) = (&account.project, &account.double);
    project.gobs(APPLY).ok();
    assert_settled(&account, 512);
    let id = double.instances()[0]["id"].clone();
    let resize = "/linode/instances/*/disks/*/resize";
    for (at, swap) in [1_024, 256].into_iter().enumerate() {
        project.write("main.gobs.hcl", &with(swap, ""));
        let plan = said(project.gobs(&["plan"]), 0);
        let cost = "will be updated (downtime: it is shut down and started)";
        assert!(plan.contains(cost), "{plan}");
        // An answer that is lost is no second resize.
        double.fault(Fault::once("POST", resize, Kind::ResetAfter));
        project.gobs(APPLY).ok();
        assert_settled(&account, swap.into());
        assert_eq!(double.events("disk_resize"), 2 * (at + 1));
    }
    assert_eq!(double.instances()[0]["id"], id);

    // A rebuild writes the disks anew, and has it so before the machine starts.
    let debian = with(256, "").replace("debian13", "debian12");
    let boots = double.events("linode_boot");
    project.write("main.gobs.hcl", &debian);
    project.gobs(APPLY).ok();
    assert_settled(&account, 256);
    assert_eq!(double.events("linode_boot"), boots + 1);
}

#[test]
fn a_swap_disk_that_cannot_be_is_refused_and_the_machine_goes_on() {
    let account = Account::start(Project::new(&with(512, "")), 42);
    let project = &account.project;
    project.gobs(APPLY).ok();
    for (swap, expected) in [
        (25_000, "25000 MB to swap to leave no room for the system."),
        (
            0,
            "its swap disk can change its size, and is not taken away.",
        ),
    ] {
        project.write("main.gobs.hcl", &with(swap, ""));
        let plan = said(project.gobs(&["plan"]), 1);
        assert!(plan.contains("Impossible machine"), "{plan}");
        assert!(plan.contains(expected), "{plan}");
    }
    // What the files on a disk take, Linode knows alone.
    project.write("main.gobs.hcl", &with(24_000, ""));
    let apply = said(project.gobs(APPLY), 1);
    let expected = "the disk with the system is to have 1600 MB, which must be more than the files \
                    on it take: remove some, or set a smaller swap_size";
    assert!(apply.contains(expected), "{apply}");
    project.write("main.gobs.hcl", &with(512, ""));
    assert_settled(&account, 512);
}

#[test]
fn a_run_that_dies_between_the_two_disks_is_gone_on_with() {
    for (seed, swap) in [(43, 1_024), (44, 256)] {
        let account = Account::start(Project::new(&with(512, "")), seed);
        let (project, double) = (&account.project, &account.double);
        project.gobs(APPLY).ok();
        project.write("main.gobs.hcl", &with(swap, ""));
        // The second resize never gets an answer that the run lives to see.
        let resize = "/linode/instances/*/disks/*/resize";
        double.fault(
            Fault::once("POST", resize, Kind::Busy)
                .after(1)
                .times(1_000),
        );
        let mut run = project.command(APPLY).spawn().expect("gobs starts");
        let first = if swap > 512 { 0 } else { 1 };
        let size = if first == 0 { ALL_MB - 1_024 } else { 256 };
        eventually("one disk has changed", CHANGE_WITHIN, || {
            disks(&account)[first] == size
        });
        run.kill().expect("killed");
        run.wait().expect("ended");
        double.clear_faults();
        assert_ne!(double.instances()[0]["status"], "running");
        project.gobs(APPLY).ok();
        assert_settled(&account, swap.into());
        assert_eq!(double.events("disk_resize"), 2, "nothing is done twice");
    }
}
