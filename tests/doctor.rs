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

/// A machine with all that can belong to it.
const WHOLE: &str = r#"
  firewall {}
  dns {
    domain = "example.net"
    name   = "one"
  }
  volume "data" { size = 20 }
  hob { enabled = false }
"#;

#[test]
fn a8_doctor_finds_what_belongs_to_machines_both_ways() {
    let whole = MACHINE.replace("  hob { enabled = false }\n", WHOLE);
    let account = Account::start(Project::new(&whole), 7);
    let (project, double) = (&account.project, &account.double);
    let ask = |method: &str, path: &str, body: serde_json::Value| {
        double.ask(method, path, &body).expect("done")
    };
    let id = |path: &str| ask("GET", path, json!(null))["data"][0]["id"].to_string();
    ask("POST", "/domains", json!({"domain": "example.net"}));
    project.gobs(&["apply", "--auto-approve"]).ok();
    check(project.gobs(&["doctor"]), 0, &["ok linode has 1 machines"]);

    // Forgotten, all but the machine's address is told by its marks.
    let (wall, volume) = (id("/networking/firewalls"), id("/volumes"));
    project.gobs(&["state", "rm", "machine.one"]).ok();
    let strays = [
        &format!("PROBLEM linode: {wall} (gobs-one-"),
        &*format!("note linode: {volume} (gobs-one-data-"),
        "carries this project's mark, and no row has it",
    ];
    check(project.gobs(&["doctor"]), 3, &strays);
    let machine = double.instances()[0]["id"].to_string();
    project.gobs(&["import", "machine.one", &machine]).ok();
    project.gobs(&["apply", "--auto-approve"]).ok();
    check(project.gobs(&["doctor"]), 0, &["ok linode has 1 machines"]);
    let stats = double.stats();
    let made = [
        stats.firewalls_created,
        stats.volumes_created,
        stats.records_created,
    ];
    assert_eq!(made, [1, 1, 1], "what was there is what it has");

    let records = format!("/domains/{}/records", id("/domains"));
    ask("DELETE", &format!("{records}/{}", id(&records)), json!({}));
    ask(
        "DELETE",
        &format!("/networking/firewalls/{wall}"),
        json!({}),
    );
    let gone = [
        "PROBLEM linode: the firewall of machine.one",
        "PROBLEM linode: the record \"one\" in \"example.net\" of machine.one",
    ];
    check(project.gobs(&["doctor"]), 3, &gone);
    project.gobs(&["apply", "--auto-approve"]).ok();
    check(project.gobs(&["doctor"]), 0, &["ok linode has 1 machines"]);
}

#[test]
fn what_no_volume_can_do_is_refused_by_the_plan_at_its_place() {
    let with = |region: &str, size: u32, delete: bool, generation: &str| {
        let volume = format!(
            "  volume \"data\" {{\n    size   = {size}\n    delete = {delete}\n  }}\n  \
             interface_generation = \"{generation}\"\n  hob {{ enabled = false }}\n"
        );
        MACHINE
            .replace("  hob { enabled = false }\n", &volume)
            .replace("eu-central", region)
    };
    let account = Account::start(Project::new(&with("eu-central", 20, true, "linode")), 7);
    let (project, double) = (&account.project, &account.double);
    let volumes = || {
        let found = double.ask("GET", "/volumes", &json!(null)).expect("listed");
        found["data"].as_array().expect("a list").clone()
    };
    project.gobs(&["apply", "--auto-approve"]).ok();
    let id = volumes()[0]["id"].clone();
    for (region, size, says) in [
        (
            "eu-central",
            10,
            "volume data has 20 GB, and volumes never shrink.",
        ),
        (
            "us-ord",
            20,
            "volume data is in eu-central, and volumes do not move",
        ),
    ] {
        project.write("main.gobs.hcl", &with(region, size, true, "linode"));
        for command in [&["plan"][..], &["apply", "--auto-approve"]] {
            let at = ["Impossible machine", says, "main.gobs.hcl line 9"];
            check(project.gobs(command), 1, &at);
        }
    }
    // What is declared now says what becomes of the data, in the same plan.
    project.write(
        "main.gobs.hcl",
        &with("eu-central", 20, false, "legacy_config"),
    );
    check(
        project.gobs(&["plan"]),
        0,
        &["is kept, for the new machine"],
    );
    project.gobs(&["apply", "--auto-approve"]).ok();
    assert_eq!((volumes().len(), &volumes()[0]["id"]), (1, &id));
    // It goes on with the newer interfaces, which it cannot go back from.
    project.write("main.gobs.hcl", &with("eu-central", 20, false, "linode"));
    let cost = "will be updated (downtime: it is shut down and started)";
    check(project.gobs(&["plan"]), 0, &[cost]);
    project.gobs(&["apply", "--auto-approve"]).ok();
    project.write(
        "main.gobs.hcl",
        &with("eu-central", 20, true, "legacy_config"),
    );
    check(project.gobs(&["plan"]), 0, &["data will be lost"]);
    project.gobs(&["apply", "--auto-approve"]).ok();
    assert_eq!(volumes().len(), 1);
    assert_ne!(volumes()[0]["id"], id);
    // One that is gone is not replaced by an empty one unasked.
    project.write(
        "main.gobs.hcl",
        &with("eu-central", 20, false, "legacy_config"),
    );
    project.gobs(&["apply", "--auto-approve"]).ok();
    let path = format!("/volumes/{}", volumes()[0]["id"]);
    double.ask("DELETE", &path, &json!({})).expect("deleted");
    let gone = [
        "Impossible machine",
        "is gone, with its data",
        "take the block out",
    ];
    check(project.gobs(&["plan"]), 1, &gone);
    project.write(
        "main.gobs.hcl",
        &MACHINE.replace("  hob", "  interface_generation = \"legacy_config\"\n  hob"),
    );
    project.gobs(&["apply", "--auto-approve"]).ok();
    project.write(
        "main.gobs.hcl",
        &with("eu-central", 20, false, "legacy_config"),
    );
    project.gobs(&["apply", "--auto-approve"]).ok();
    assert_eq!(volumes().len(), 1);
    project.gobs(&["destroy", "--auto-approve"]).ok();
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
