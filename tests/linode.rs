//! `gobs apply` of `examples/linode` against the double of Linode's API: what boots there is a
//! real hob, which its user data installs from the boss, and which gets its own through the
//! metadata protocol.

use gobs_linode_double::{Fault, Kind};

use crate::account::{Account, assert_answers, serve_line};
use crate::support::{Project, free_port};

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
