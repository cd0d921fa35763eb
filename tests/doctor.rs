//! `gobs doctor`, `gobs import` and `gobs state rm`: what is there, and whose it is.

use serde_json::json;

use crate::account::{Account, MACHINE};
use crate::support::{Project, check};

#[test]
fn a_project_without_a_state_is_well() {
    let project = Project::new("machine \"one\" { provider = dummy }");
    check(project.gobs(&["doctor"]), 0, &["There is no state yet."]);
}

#[test]
fn a8_doctor_finds_strays_both_ways_and_says_how_to_mend_them() {
    let account = Account::start(Project::new(MACHINE), 7);
    let (project, double) = (&account.project, &account.double);
    project.gobs(&["apply", "--auto-approve"]).ok();
    let well = [
        "ok The state is sound",
        "ok linode has 1 machines of the state.",
    ];
    check(project.gobs(&["doctor"]), 0, &well);

    // Forgotten, it is a stray of ours; an import takes it back, and nothing has changed.
    let id = double.instances()[0]["id"].to_string();
    let forgotten = ["machine.one is forgotten"];
    check(project.gobs(&["state", "rm", "machine.one"]), 0, &forgotten);
    let stray = [
        &format!("PROBLEM linode {id} (gobs-one-"),
        "carries this project's mark",
        "`gobs import` it",
    ];
    check(project.gobs(&["doctor"]), 3, &stray);
    check(
        project.gobs(&["import", "machine.one", &id]),
        0,
        &["is machine.one now"],
    );
    check(project.gobs(&["doctor"]), 0, &well);
    check(
        project.gobs(&["plan", "--detailed-exitcode"]),
        0,
        &["No changes."],
    );
    account.assert_machines(1, 1, "after forgetting and importing");

    // Its mark taken off, and then the machine itself.
    let number = id.parse().expect("a number");
    double
        .meddle(number, Some(&json!({"tags": []})))
        .expect("changed");
    check(
        project.gobs(&["doctor"]),
        3,
        &["machine.one", "has lost its mark"],
    );
    double.meddle(number, None).expect("deleted");
    double.advance(std::time::Duration::from_secs(60));
    let gone = ["machine.one is gone", "`gobs apply` makes it again"];
    check(project.gobs(&["doctor"]), 3, &gone);
    project.gobs(&["apply", "--auto-approve"]).ok();
    let json = project.gobs(&["doctor", "--json"]).ok().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (&json["needs_person"], &json["format_version"]),
        (&json!(false), &json!("1.0"))
    );

    double.set_token("double", None);
    let denied = ["The provider linode cannot be asked", "Invalid Token"];
    check(project.gobs(&["doctor"]), 3, &denied);
    double.set_token("double", Some("*"));
}

/// Makes a machine as somebody would by hand; returns its identifier.
fn by_hand(account: &Account, tags: &[&str]) -> String {
    let body = json!({"region": "eu-central", "type": "g6-standard-1", "label": "by-hand",
        "image": "linode/debian13", "authorized_keys": ["ssh-ed25519 AAAA test"], "tags": tags});
    let address = account.double.url();
    let made = std::process::Command::new("curl")
        .args([
            "-sSf",
            "-H",
            "Authorization: Bearer double",
            "-H",
            "Content-Type: application/json",
        ])
        .args([
            "-d",
            &body.to_string(),
            &format!("{address}/linode/instances"),
        ])
        .output()
        .expect("curl");
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).expect("JSON");
    made["id"].to_string()
}

#[test]
fn a_machine_made_by_hand_is_imported_marked_and_then_changed_like_any() {
    // Nothing is journalled before what nobody asked gobs for.
    let account = Account::unwitnessed(Project::new(MACHINE), 7);
    let (project, double) = (&account.project, &account.double);
    let id = by_hand(&account, &["blue"]);
    check(
        project.gobs(&["import", "machine.one", "7"]),
        1,
        &["linode has no machine 7"],
    );
    check(
        project.gobs(&["import", "machine.two", &id]),
        1,
        &["machine"],
    );
    check(
        project.gobs(&["import", "machine.one", &id]),
        0,
        &["is machine.one now"],
    );
    let known = ["is machine.one already"];
    check(project.gobs(&["import", "machine.one", &id]), 1, &known);
    let tags = double.instances()[0]["tags"].to_string();
    assert!(tags.contains("blue") && tags.contains("gobs:"), "{tags}");
    check(
        project.gobs(&["doctor"]),
        0,
        &["linode has 1 machines of the state."],
    );

    // It is larger than declared, and that is all: the tags were not declared at all.
    let plan = project.gobs(&["plan", "--detailed-exitcode"]);
    let resize = [
        "\"g6-standard-1\" -> \"g6-nanode-1\"",
        "0 to add, 1 to change, 0 to destroy",
    ];
    check(plan, 2, &resize);
    project.gobs(&["apply", "--auto-approve"]).ok();
    check(
        project.gobs(&["plan", "--detailed-exitcode"]),
        0,
        &["No changes."],
    );
    // With a hob, its disk is written anew, and the plan says so.
    project.write(
        "main.gobs.hcl",
        &MACHINE.replace("  hob { enabled = false }\n", ""),
    );
    let rebuilt = [
        "machine.one will be rebuilt",
        "the data on its disk will be lost",
    ];
    check(project.gobs(&["plan", "--detailed-exitcode"]), 2, &rebuilt);
    project.gobs(&["destroy", "--auto-approve"]).ok();
    assert!(double.instances().is_empty());
}

#[test]
fn an_import_takes_no_machine_that_it_must_not() {
    let with_hob = MACHINE.replace("  hob { enabled = false }\n", "");
    let account = Account::unwitnessed(Project::new(&with_hob), 7);
    let project = &account.project;
    let id = by_hand(&account, &["gobs:abcdefghijklmnopqrstuvwxyz"]);
    let hob = ["Machine without a hob", "hob { enabled = false }"];
    check(project.gobs(&["import", "machine.one", &id]), 1, &hob);
    project.write("main.gobs.hcl", MACHINE);
    let foreign = ["belongs to another project of gobs"];
    check(project.gobs(&["import", "machine.one", &id]), 1, &foreign);
    let others = ["note linode has 1 machines of other projects of gobs."];
    check(project.gobs(&["doctor"]), 0, &others);
    check(
        project.gobs(&["state", "rm", "machine.one"]),
        1,
        &["The state has no machine.one"],
    );
}

#[test]
fn a_machine_that_is_bound_is_not_forgotten() {
    let config = "provider \"dummy\" { simulated = true }
         machine \"db\" {
           provider = dummy
           service \"orders\" { tcp = \"127.0.0.1:1\" }
         }
         machine \"app\" { provider = dummy }
         binding \"db\" {
           from = machine.db.service.orders
           to   = machine.app
         }\n";
    let project = Project::new(config);
    project.gobs(&["apply", "--auto-approve"]).ok();
    for machine in ["machine.db", "machine.app"] {
        let used = ["Machine is in use", "binding.db leads from"];
        check(project.gobs(&["state", "rm", machine]), 1, &used);
    }
    let unbound = config.split("binding \"db\"").next().expect("the machines");
    project.write("main.gobs.hcl", unbound);
    project.gobs(&["apply", "--auto-approve"]).ok();
    project.gobs(&["state", "rm", "machine.db"]).ok();
    let left = project.gobs(&["state", "list"]).ok().stdout;
    assert_eq!(left, "machine.app\n");
}
