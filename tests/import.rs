//! `import` blocks: a machine that exists already is planned for, taken over, and then like any.

use serde_json::{Value, json};

use crate::account::Account;
use crate::support::{Project, Run};

const NOTHING: &str = "No changes. Your infrastructure matches the configuration.";

/// Returns a machine as somebody made it by hand, of this size and with this in its block.
fn machine(size: &str, more: &str) -> String {
    format!(
        "machine \"one\" {{
  provider        = linode
  region          = \"eu-central\"
  type            = \"{size}\"
  image           = \"linode/debian13\"
  authorized_keys = [\"ssh-ed25519 AAAA test\"]
  {more}
  hob {{ enabled = false }}
}}
"
    )
}

fn import(to: &str, id: &str) -> String {
    format!("import {{\n  to = {to}\n  id = \"{id}\"\n}}\n")
}

/// Makes a machine as somebody would by hand; returns its identifier.
fn by_hand(account: &Account, label: &str, tags: &[&str]) -> String {
    let body = json!({"region": "eu-central", "type": "g6-standard-1", "label": label,
        "image": "linode/debian13", "authorized_keys": ["ssh-ed25519 AAAA test"], "tags": tags});
    let made = account.double.ask("POST", "/linode/instances", &body);
    let id = made.expect("made")["id"].to_string();
    account.double.advance(std::time::Duration::from_secs(600));
    id
}

/// Returns what a run says, in words.
#[track_caller]
fn said(run: Run, code: i32) -> String {
    let run = run.code(code);
    let all = format!("{} {}", run.stdout, run.stderr);
    all.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn check(run: Run, code: i32, expected: &[&str]) {
    let said = said(run, code);
    for text in expected {
        assert!(said.contains(text), "{text:?} is not in\n{said}");
    }
}

fn tags(account: &Account) -> String {
    account.double.instances()[0]["tags"].to_string()
}

#[test]
fn a_machine_is_planned_for_and_then_taken_over() {
    let account = Account::unwitnessed(Project::empty(), 51);
    let project = &account.project;
    let id = by_hand(&account, "by-hand", &["blue"]);
    let text = machine("g6-standard-1", "") + &import("machine.one", &id);
    project.write("main.gobs.hcl", &text);
    let imported = format!("(imported from \"{id}\")");
    let plan = [
        "= import, and leave as it is",
        "# machine.one will be imported",
        &imported,
        "Plan: 1 to import, 0 to add, 0 to change, 0 to destroy.",
    ];
    check(project.gobs(&["plan", "--detailed-exitcode"]), 2, &plan);
    assert!(!tags(&account).contains("gobs:"), "a plan changes nothing");
    let done = [
        "machine.one: Import complete",
        "Apply complete! Resources: 1 imported, 0 added, 0 changed, 0 destroyed.",
    ];
    check(project.gobs(&["apply", "--auto-approve"]), 0, &done);
    assert!(tags(&account).contains("gobs:") && tags(&account).contains("blue"));
    check(project.gobs(&["plan"]), 0, &[NOTHING]);
    // The block may go, or stay.
    project.write("main.gobs.hcl", &machine("g6-standard-1", ""));
    check(project.gobs(&["plan"]), 0, &[NOTHING]);
    project.gobs(&["destroy", "--auto-approve"]).ok();
    assert_eq!(account.double.instances(), Vec::<Value>::new());
}

#[test]
fn what_differs_is_changed_once_it_is_taken_over_from_a_plan_file_too() {
    let account = Account::unwitnessed(Project::empty(), 52);
    let project = &account.project;
    let id = by_hand(&account, "by-hand", &[]);
    let block = "import {\n  to = machine.one\n  id = local.id\n}\n";
    let local = format!("locals {{\n  id = \"{id}\"\n}}\n");
    let text = machine("g6-nanode-1", "tags = [\"green\"]") + &local + block;
    project.write("main.gobs.hcl", &text);
    let imported = format!("(imported from \"{id}\")");
    let plan = [
        "machine.one will be resized (downtime: minutes; the disk is kept)",
        &imported,
        "\"g6-standard-1\" -> \"g6-nanode-1\"",
        "Plan: 1 to import, 0 to add, 1 to change, 0 to destroy.",
    ];
    check(project.gobs(&["plan", "--out", "p"]), 0, &plan);
    let done = ["Resources: 1 imported, 0 added, 1 changed, 0 destroyed."];
    check(project.gobs(&["apply", "p"]), 0, &done);
    assert_eq!(account.double.instances()[0]["type"], "g6-nanode-1");
    assert!(tags(&account).contains("green") && tags(&account).contains("gobs:"));
    check(project.gobs(&["plan"]), 0, &[NOTHING]);
    assert_eq!(account.double.stats().created, 1);
}

#[test]
fn what_cannot_be_imported_is_an_error_with_its_place() {
    let account = Account::unwitnessed(Project::empty(), 53);
    let project = &account.project;
    let id = by_hand(&account, "by-hand", &[]);
    let foreign = by_hand(&account, "foreign", &["gobs:aaaaaaaaaaaaaaaaaaaaaaaaaa"]);
    let errors = |text: &str, expected: &[&str]| {
        project.write("main.gobs.hcl", text);
        check(project.gobs(&["plan"]), 1, expected);
    };
    let plain = machine("g6-standard-1", "");
    let with = |id: &str| plain.clone() + &import("machine.one", id);
    let no_such = [
        "No such machine",
        "main.gobs.hcl line 12",
        "linode has no machine 7.",
    ];
    errors(&with("7"), &no_such);
    errors(
        &with("x"),
        &["Import failed", "\"x\" is not the id of a Linode"],
    );
    let theirs = [
        "Machine of another project",
        "main.gobs.hcl line 12",
        "belongs to another project of gobs",
        "Take that mark off it first.",
    ];
    errors(&with(&foreign), &theirs);
    errors(
        &import("machine.two", &id),
        &["No such machine", "main.gobs.hcl line 2"],
    );
    let hobbed = with(&id).replace("hob { enabled = false }", "");
    let no_hob = [
        "Machine without a hob",
        "main.gobs.hcl line 11",
        "hob { enabled = false }",
    ];
    errors(&hobbed, &no_hob);
    let upgrade = format!("/linode/instances/{id}/upgrade-interfaces");
    let body = json!({"dry_run": false});
    account.double.ask("POST", &upgrade, &body).expect("done");
    let older = "interface_generation = \"legacy_config\"";
    let anew = machine("g6-standard-1", older);
    let replaced = [
        "Import would be replaced",
        "main.gobs.hcl line 11",
        "interface_generation",
    ];
    errors(&(anew + &import("machine.one", &id)), &replaced);
    let later = plain.clone() + "import {\n  to = machine.one\n  id = machine.two.id\n}\n";
    let second = plain.replace("\"one\"", "\"two\"");
    errors(
        &(later + &second),
        &["Invalid import id", "main.gobs.hcl line 12"],
    );
    let secret =
        plain.clone() + &format!("import {{\n to = machine.one\n id = sensitive(\"{id}\")\n}}");
    errors(&secret, &["Invalid import id", "cannot be sensitive"]);
    // Taken over once, it is nobody else's.
    project.write("main.gobs.hcl", &with(&id));
    project.gobs(&["apply", "--auto-approve"]).ok();
    let twice = with(&id) + &second + &import("machine.two", &id);
    errors(
        &twice,
        &["Machine known already", "is machine.one already."],
    );
    let other = [
        "Machine known already",
        "The state has a machine.one already.",
    ];
    errors(&with(&foreign), &other);
}

#[test]
fn a1_an_import_that_dies_at_any_journal_write_converges() {
    let mut deaths = 0;
    for when in ["before", "after"] {
        for write in 1.. {
            let account = Account::unwitnessed(Project::empty(), write);
            let project = &account.project;
            let id = by_hand(&account, "by-hand", &["blue"]);
            let text = machine("g6-nanode-1", "") + &import("machine.one", &id);
            project.write("main.gobs.hcl", &text);
            let args = ["apply", "--auto-approve"];
            let mut command = project.command(&args);
            let at = format!("{when}:{write}");
            command.env("GOBS_TEST_CRASH_AT", &at);
            let run = Run::of(command);
            if run.code == Some(0) {
                break;
            }
            assert_eq!(run.code, None, "not killed at {at}: {run:?}");
            deaths += 1;
            project.gobs(&args).ok();
            check(project.gobs(&["plan"]), 0, &[NOTHING]);
            let instances = account.double.instances();
            assert_eq!(
                (instances.len(), account.double.stats().created),
                (1, 1),
                "{at}"
            );
            assert_eq!(instances[0]["type"], "g6-nanode-1", "{at}");
            let marks = tags(&account).matches("gobs:").count();
            assert_eq!(marks, 1, "{at}: {}", tags(&account));
        }
    }
    assert!(deaths >= 4, "{deaths}");
}

#[test]
fn one_block_imports_several_machines() {
    let account = Account::unwitnessed(Project::empty(), 55);
    let project = &account.project;
    let ids = ["first", "second"].map(|label| by_hand(&account, label, &[]));
    let block = |more: &str| {
        let machine = machine("g6-standard-1", "for_each = toset([\"a\", \"b\"])");
        let [a, b] = &ids;
        format!(
            "{machine}import {{
               for_each = {{ a = \"{a}\", b = \"{b}\"{more} }}
               to       = machine.one[each.key]
               id       = each.value
             }}\n"
        )
    };
    let more = block(", c = \"1\"");
    project.write("main.gobs.hcl", &more);
    check(project.gobs(&["plan"]), 1, &["machine.one[\"c\"]"]);
    let again = block("") + &import("machine.one[\"a\"]", &ids[0]);
    project.write("main.gobs.hcl", &again);
    check(
        project.gobs(&["plan"]),
        1,
        &["Duplicate import", "machine.one[\"a\"]"],
    );
    project.write("main.gobs.hcl", &block(""));
    let plan = ["Plan: 2 to import, 0 to add, 0 to change, 0 to destroy."];
    check(project.gobs(&["plan"]), 0, &plan);
    project.gobs(&["apply", "--auto-approve"]).ok();
    check(project.gobs(&["plan"]), 0, &[NOTHING]);
    let listed = project.gobs(&["state", "list"]).ok().stdout;
    assert_eq!(listed.matches("machine.one[").count(), 2, "{listed}");
    project.gobs(&["destroy", "--auto-approve"]).ok();
    assert_eq!(account.double.instances().len(), 0);
}

#[test]
fn a_machine_that_was_forgotten_and_imported_goes_with_all_that_belongs_to_it() {
    let account = Account::start(Project::empty(), 56);
    let (project, double) = (&account.project, &account.double);
    let domain = double.ask("POST", "/domains", &json!({"domain": "example.net"}));
    let records = format!("/domains/{}/records", domain.expect("made")["id"]);
    let text = machine(
        "g6-standard-1",
        "firewall {}
         dns {
           domain = \"example.net\"
           name   = \"one\"
         }
         volume \"kept\" { size = 10 }
         volume \"temp\" {
           size   = 10
           delete = true
         }",
    );
    project.write("main.gobs.hcl", &text);
    project.gobs(&["apply", "--auto-approve"]).ok();
    let id = double.instances()[0]["id"].to_string();
    let retaken = || {
        project.gobs(&["state", "rm", "machine.one"]).ok();
        project.gobs(&["import", "machine.one", &id]).ok();
    };
    // The next apply finds what there is, and makes nothing twice.
    retaken();
    project.gobs(&["apply", "--auto-approve"]).ok();
    check(project.gobs(&["plan"]), 0, &[NOTHING]);
    let stats = double.stats();
    let made = (
        stats.firewalls_created,
        stats.volumes_created,
        stats.records_created,
    );
    assert_eq!(made, (1, 2, 1));
    // And so does a destroy before any apply.
    retaken();
    project.gobs(&["destroy", "--auto-approve"]).ok();
    let left = |path: &str| {
        let all = double.ask("GET", path, &Value::Null).expect("listed");
        all["data"].as_array().expect("a list").clone()
    };
    assert_eq!(left("/networking/firewalls").len(), 0);
    assert_eq!(left(&records).len(), 0);
    let volumes = left("/volumes");
    assert_eq!(volumes.len(), 1);
    assert_eq!(
        volumes[0]["label"].as_str().map(|it| it.contains("kept")),
        Some(true)
    );
    account.assert_machines(0, 1, "after destroy");
}
