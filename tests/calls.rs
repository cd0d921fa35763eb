//! How a machine's first call home goes in a whole run: made by the boss, never made, or made from
//! elsewhere.

use std::net::TcpListener;
use std::process::Command;

use crate::account::{Account, serve_line};
use crate::support::{Project, Run, free_port};

#[test]
fn a_machine_that_cannot_call_is_called() {
    let (db, app, port) = (free_port(), free_port(), serve_line());
    let project = Project::new(&format!(
        r#"
machine "db" {{
  provider = dummy
  hob {{
    dial   = "boss"
    listen = "127.0.0.1:{db}"
  }}
  service "x" {{ tcp = "127.0.0.1:{port}" }}
}}
machine "app" {{
  provider = dummy
  hob {{
    dial   = "boss"
    listen = "127.0.0.1:{app}"
  }}
}}
"#
    ));
    let done = project.gobs(&["apply", "--auto-approve"]).ok().stdout;
    assert!(done.contains("Resources: 2 added"), "{done}");
    let status = project.gobs(&["status"]).ok().stdout;
    assert_eq!(status.matches("connected").count(), 2, "{status}");
    let again = project.gobs(&["plan"]).ok().stdout;
    assert!(again.contains("No changes."), "{again}");
}

#[test]
fn b6_a_machine_that_never_calls_is_said_and_begins_anew() {
    let port = free_port();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mute = listener.local_addr().expect("an address");
    // Its hob is called where somebody else listens, who says nothing.
    let project = Project::new(&format!(
        r#"
machine "a" {{
  provider = dummy
  hob {{
    dial      = "boss"
    listen    = "127.0.0.1:{port}"
    advertise = ["{mute}"]
    deadline  = "3s"
  }}
}}
"#
    ));
    let failed = project.gobs(&["apply", "--auto-approve"]);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    let said = "the hob on machine.a did not call home in time";
    assert!(failed.stderr.contains(said), "{failed:?}");
    let status = project.gobs(&["status"]);
    assert_eq!(status.code, Some(3), "{status:?}");
    assert!(status.stdout.contains("unclaimed"), "{status:?}");
    let status = project.gobs(&["status", "--json"]).stdout;
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(status["unclaimed"], serde_json::json!(["machine.a"]));

    let plan = project.gobs(&["plan"]).ok().stdout;
    assert!(plan.contains("because its hob never called home"), "{plan}");
    let config = std::fs::read_to_string(project.path().join("main.gobs.hcl")).expect("a file");
    // It is called where it is now, and there is time enough.
    let config = config.replace(&mute.to_string(), &format!("127.0.0.1:{port}"));
    project.write("main.gobs.hcl", &config.replace("3s", "5m"));
    let done = project.gobs(&["apply", "--auto-approve"]).ok().stdout;
    assert!(done.contains("1 changed"), "{done}");
    assert!(project.gobs(&["status"]).ok().stdout.contains("connected"));
}

const FROM_ELSEWHERE: &str = r#"
machine "a" {
  provider        = linode
  region          = "eu-central"
  type            = "g6-nanode-1"
  image           = "linode/debian13"
  authorized_keys = ["ssh-ed25519 AAAA test"]
  HOB
}
"#;

#[test]
fn b9_a_claim_from_elsewhere_is_told_of() {
    // Instances of the double are processes of this host, and have other addresses than it.
    let config = FROM_ELSEWHERE.replace("HOB", "");
    let account = Account::start(Project::new(&config), 7);
    let done = account
        .project
        .gobs(&["apply", "--auto-approve"])
        .ok()
        .stdout;
    let said = "called from 127.0.0.1, which is none of its addresses";
    assert!(done.contains(said), "{done}");
    account.project.gobs(&["destroy", "--auto-approve"]).ok();
}

#[test]
fn b9_a_claim_from_elsewhere_is_refused_where_that_is_required() {
    let hob = "hob {\n    require_address = true\n    deadline = \"20s\"\n  }";
    let config = FROM_ELSEWHERE.replace("HOB", hob);
    let account = Account::start(Project::new(&config), 8);
    let failed = account.project.gobs(&["apply", "--auto-approve"]);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    let said = "a call from 127.0.0.1 was refused, which is none of its addresses";
    assert!(failed.stderr.contains(said), "{failed:?}");
    account.project.gobs(&["destroy", "--auto-approve"]).ok();
}

#[test]
fn more_machines_call_than_a_shell_allows_files() {
    let project = Project::new("machine \"one\" {\n  count = 30\n  provider = dummy\n}");
    let ours = project.command(&[]);
    // Enough for the program itself, and not for a session of each machine.
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -S -n 48; exec \"$0\" \"$@\""])
        .arg(ours.get_program())
        .args(["apply", "--auto-approve"])
        .current_dir(project.path())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    Run::of(command).ok();
}
