//! `examples/webapp`: an unmodified application, with PostgreSQL and Redis as Debian has them.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{Project, Run, eventually, free_port};

/// How long what was killed may take to be gone.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Asks the application on a machine; `note` is left there, if there is one.
fn ask(port: u16, note: Option<&str>) -> String {
    let mut curl = Command::new("curl");
    // The program on the machine may be starting.
    curl.args([
        "-s",
        "--retry",
        "30",
        "--retry-connrefused",
        "--retry-delay",
        "1",
    ]);
    if let Some(note) = note {
        curl.args(["-d", note]);
    }
    curl.arg(format!("http://127.0.0.1:{port}/"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Run::of(curl).ok().stdout
}

#[test]
fn the_web_application_reaches_its_database_and_nobody_has_a_password() {
    let directory = tempfile::Builder::new()
        .prefix("gobs-web-")
        .tempdir()
        .expect("a directory");
    // PostgreSQL's own user must get through.
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), mode).expect("a mode");
    let (blue, green) = (free_port(), free_port());
    let apps = format!(
        r#"{{ blue = {{ port = {blue}, access = "owner" }}, green = {{ port = {green}, access = "read" }} }}"#
    );
    let project = Project::copy_of("examples/webapp")
        .with_env("GOBS_VAR_directory", directory.path().display())
        .with_env("GOBS_VAR_postgres_port", free_port())
        .with_env("GOBS_VAR_apps", apps);
    let apply = project.gobs(&["apply", "--auto-approve"]).ok().stdout;
    let complete =
        "Apply complete! Resources: 4 added, 0 changed, 0 destroyed. Bindings: 4 granted.";
    assert!(apply.contains(complete), "{apply}");

    assert_eq!(ask(green, None), "visit 1 of green\n");
    assert_eq!(ask(blue, Some("buy lemons")), "noted\n");
    assert_eq!(
        ask(blue, None),
        "note 1 by blue: buy lemons\nvisit 1 of blue\n"
    );
    assert_eq!(
        ask(green, None),
        "note 1 by blue: buy lemons\nvisit 2 of green\n"
    );
    let refused = ask(green, Some("not mine to write"));
    assert!(refused.contains("permission denied"), "{refused}");

    // What the program was given is all that it needed.
    let given = project.processes().into_iter().find_map(|pid| {
        let path = format!("/proc/{}/environ", pid.as_raw_nonzero());
        let text = String::from_utf8(std::fs::read(path).ok()?).ok()?;
        let urls = text.split('\0').filter(|it| it.contains("_URL="));
        let urls: Vec<_> = urls.map(str::to_owned).collect();
        (!urls.is_empty()).then_some(urls)
    });
    let given = given.expect("a program").join(" ");
    assert!(
        given.contains("DATABASE_URL=postgresql:///notes?host=/"),
        "{given}"
    );
    assert!(given.contains("REDIS_URL=unix:///"), "{given}");
    assert!(!given.contains('@'), "a name or a password: {given}");

    let again = project.gobs(&["apply", "--auto-approve"]).ok().stdout;
    let nothing = "No changes. Your infrastructure matches the configuration.\n";
    assert!(again.starts_with(nothing), "{again}");
    project.gobs(&["destroy", "--auto-approve"]).ok();
    eventually("nothing is left running", WAIT_MAX, || {
        project.processes().is_empty()
    });
}
