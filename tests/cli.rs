//! The command line as a shell sees it: help, exit codes, flags, colour, streams.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::{Project, Run, Running, check_golden, eventually, repository, terminal};

/// Every command that `gobs help` lists.
fn commands(help: &str) -> Vec<String> {
    let list = help.split("Commands:\n").nth(1).unwrap_or_default();
    list.lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn all_help_is_one_golden_file() {
    let project = Project::empty();
    let mut all = String::new();
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let mut args: Vec<&str> = path.iter().map(String::as_str).collect();
        args.push("--help");
        // The agent has its own help, in its own crate.
        if args == ["hob", "--help"] {
            continue;
        }
        let run = project.gobs(&args).ok();
        all += &format!("$ gobs {}\n{}\n", args.join(" "), run.stdout);
        let below = commands(&run.stdout).into_iter().rev();
        todo.extend(below.map(|name| [path.as_slice(), &[name]].concat()));
    }
    check_golden("tests/cli/help.txt", &all);
}

#[test]
fn wrong_usage_exits_64_and_says_why_on_stderr() {
    let project = Project::empty();
    for args in [
        &["unheard-of"] as &[&str],
        &[],
        &["version", "--unheard-of"],
        &["version", "-jsno"],
        &["--color=pink", "version"],
    ] {
        let run = project.gobs(args).code(64);
        assert_eq!(run.stdout, "", "{args:?}");
        assert!(run.stderr.contains("Usage:") || run.stderr.contains("error:"));
    }
    let mut command = project.command(&["version"]);
    command.env("GOBS_CLI_ARGS", "'open");
    let run = Run::of(command).code(64);
    assert!(run.stderr.contains("GOBS_CLI_ARGS is not a list of words"));
}

#[test]
fn version_is_said_in_words_and_in_json() {
    let project = Project::empty();
    let text = project.gobs(&["version"]).ok().stdout;
    assert!(text.starts_with(concat!("gobs ", env!("CARGO_PKG_VERSION"), "\n")));
    assert_eq!(
        project.gobs(&["-version"]).ok().stdout,
        project.gobs(&["-V"]).ok().stdout
    );
    let json = project.gobs(&["version", "-json"]).ok().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["gobs_version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_directory_that_is_not_there_is_an_error() {
    let project = Project::empty();
    for flag in ["-C", "-chdir", "--chdir"] {
        let run = project.gobs(&[flag, "nowhere", "version"]).code(1);
        assert!(
            run.stderr
                .contains("nowhere cannot be entered: No such file")
        );
    }
}

#[test]
fn colour_is_where_it_is_asked_for() {
    let project = Project::empty();
    let coloured = |args: &[&str], env: &[(&str, &str)]| {
        let mut command = project.command(args);
        command.envs(env.iter().copied());
        Run::of(command).code(1).stderr.contains('\u{1b}')
    };
    let fails = ["-C", "nowhere", "version"];
    let with = |flag: &'static str| [&[flag], fails.as_slice()].concat();
    assert!(!coloured(&fails, &[]), "a pipe has none");
    assert!(coloured(&fails, &[("CLICOLOR_FORCE", "1")]));
    assert!(coloured(&with("--color=always"), &[]));
    assert!(!coloured(&with("--no-color"), &[("CLICOLOR_FORCE", "1")]));
    assert!(!coloured(&with("-no-color"), &[("CLICOLOR_FORCE", "1")]));
    assert!(!coloured(
        &with("--color=never"),
        &[("CLICOLOR_FORCE", "1")]
    ));
    assert!(!coloured(&fails, &[("NO_COLOR", "1")]));
}

#[test]
fn a_reader_that_leaves_is_no_error_and_a_full_disk_is() {
    let project = Project::empty();
    let mut command = project.command(&["version"]);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    command.stdout(writer).stderr(Stdio::null());
    assert_eq!(command.status().expect("it runs").code(), Some(0));

    let full = std::fs::File::create("/dev/full").expect("/dev/full");
    let mut command = project.command(&["version"]);
    command.stdout(full);
    let output = command.output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("No space left on device"));
}

/// On a disk of its own, so that it is the real filesystem which is full, at every step.
#[test]
fn a_first_apply_on_a_full_disk_says_so_and_the_next_goes_on() {
    const OWN_MOUNTS: &[&str] = &["--user", "--map-root-user", "--mount"];
    const SCRIPT: &str = r#"
        set -e
        mount -t tmpfs -o size=$2k none disk
        cp main.gobs.hcl disk
        "$1" -C disk apply --auto-approve && echo "applied at once" || true
        mount -o remount,size=16m disk
        "$1" -C disk apply --auto-approve
        exec "$1" -C disk destroy --auto-approve
    "#;
    let mount = "mkdir disk && mount -t tmpfs none disk";
    let project = Project::empty();
    let may = Command::new("unshare")
        .args(OWN_MOUNTS)
        .args(["sh", "-c", mount])
        .current_dir(project.path())
        .output();
    if !may.is_ok_and(|it| it.status.success()) {
        return; // This host gives nobody a disk of his own.
    }
    project.write(
        "main.gobs.hcl",
        "provider \"dummy\" { simulated = true }\nmachine \"one\" { provider = dummy }",
    );
    let mut full = 0;
    for size in (20..=400).step_by(20) {
        let outside = project.command(&[]);
        let mut command = Command::new("unshare");
        command
            .args(OWN_MOUNTS)
            .args(["sh", "-c", SCRIPT, "sh"])
            .arg(outside.get_program())
            .arg(size.to_string())
            .current_dir(project.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let run = Run::of(command).ok();
        if !run.stdout.contains("applied at once") {
            full += 1;
            let says = ["disk is full", "No space left on device"];
            assert!(
                says.iter().any(|it| run.stderr.contains(it)),
                "{size} KiB: {}",
                run.stderr
            );
        }
    }
    assert!(full > 0, "no disk was small enough");
}

#[test]
fn the_log_goes_where_it_is_told() {
    let project = Project::empty();
    let mut command = project.command(&["version"]);
    command.env("GOBS_LOG", "no=such=level");
    let run = Run::of(command).code(1);
    assert!(run.stderr.contains("Bad log filter"), "{}", run.stderr);

    let mut command = project.command(&["version"]);
    command
        .env("GOBS_LOG", "debug")
        .env("GOBS_LOG_PATH", "nowhere/log");
    let run = Run::of(command).code(1);
    assert!(run.stderr.contains("Log file cannot be opened"));

    let mut command = project.command(&["version"]);
    command.env("GOBS_LOG", "trace").env("GOBS_LOG_PATH", "log");
    let run = Run::of(command).ok();
    assert_eq!(run.stderr, "");
    let log = std::fs::read_to_string(project.path().join("log")).expect("a log");
    assert!(log.contains("version"), "{log}");
}

#[test]
fn init_starts_a_project_and_overwrites_nothing() {
    for (example, files) in [("first", 1), ("app-and-db", 3)] {
        let project = Project::empty();
        let run = project.gobs(&["init", "--example", example]).ok();
        assert_eq!(run.stdout.matches("Wrote ").count(), files);
        assert!(run.stdout.contains("Next: gobs plan"));
        let read = |name| std::fs::read_to_string(project.path().join(name)).expect(name);
        let original = format!("examples/{example}/main.gobs.hcl");
        let original = std::fs::read_to_string(repository().join(original)).expect("an example");
        assert_eq!(read("main.gobs.hcl"), original);
        assert_eq!(read(".gitignore"), ".gobs/\n");

        let again = project.gobs(&["init", "--example", "app-and-db"]).ok();
        assert!(again.stdout.contains("nothing of it was changed"));
        assert_eq!(read("main.gobs.hcl"), original);
        assert_eq!(read(".gitignore"), ".gobs/\n");
    }

    let project = Project::empty();
    std::fs::write(project.path().join("orders.pl"), "mine").expect("a file");
    std::fs::write(project.path().join(".gitignore"), "target").expect("a file");
    let run = project.gobs(&["init", "--example=app-and-db"]).code(1);
    assert!(
        run.stderr.contains("orders.pl cannot be written"),
        "{}",
        run.stderr
    );
    assert!(!project.path().join("main.gobs.hcl").exists());

    let mut command = project.command(&["init"]);
    command.env("GOBS_IN_AUTOMATION", "1");
    let run = Run::of(command).ok();
    assert!(!run.stdout.contains("Next:"));
    let ignored = std::fs::read_to_string(project.path().join(".gitignore")).expect("a file");
    assert_eq!(ignored, "target\n.gobs/\n");

    let run = project.gobs(&["init", "--example", "secnd"]).code(64);
    assert!(run.stderr.contains("first, app-and-db"), "{}", run.stderr);
}

#[test]
fn the_agent_has_its_own_arguments() {
    let project = Project::empty();
    let run = project.gobs(&["hob", "--help"]).ok();
    assert!(
        run.stdout.starts_with("The agent of a machine"),
        "{}",
        run.stdout
    );
    let run = project.gobs(&["hob", "--dir", "nowhere", "list"]).code(1);
    assert!(run.stderr.contains("nowhere"), "{}", run.stderr);
    project.gobs(&["hob", "unheard-of"]).code(64);
    // After a command too, but not where it is for somebody else.
    for args in [
        &["list", "--help"][..],
        &["run", "-h"],
        &["offer", "--help"],
    ] {
        let run = project.gobs(&[&["hob"], args].concat()).ok();
        assert!(run.stdout.contains("Usage: hob"), "{}", run.stdout);
    }
    let run = project.gobs(&["hob", "--dir", "nowhere", "run", "ls", "--help"]);
    assert!(run.code(1).stderr.contains("nowhere"));
}

/// Machines and a binding that are rows only: everything but the agents, at once.
const ROWS: &str = r#"
variable "size" {
  type    = string
  default = "small"
}

variable "password" {
  type      = string
  default   = "hunter2"
  sensitive = true
}

provider "dummy" { simulated = true }

machine "db" {
  provider = dummy
  size     = var.size
  password = var.password
  service "orders" { tcp = "127.0.0.1:5432" }
}

machine "app" { provider = dummy }

binding "db" {
  from = machine.db.service.orders
  to   = machine.app
}

output "size" { value = machine.db.size }
output "list" { value = [1, 2] }
output "secret" {
  value     = var.password
  sensitive = true
}
"#;

fn last_line(text: &str) -> &str {
    text.lines().next_back().unwrap_or_default()
}

#[test]
fn without_a_terminal_apply_asks_nobody_and_does_nothing() {
    let project = Project::new(ROWS);
    for args in [
        &["apply"] as &[&str],
        &["apply", "-input=false"],
        &["destroy", "--input=false"],
    ] {
        // With nothing to destroy, nobody need be asked.
        if args[0] == "destroy" {
            project.gobs(args).ok();
            continue;
        }
        let run = project.gobs(args).code(1);
        assert!(run.stdout.contains("Plan: 2 to add"), "{}", run.stdout);
        assert!(
            run.stderr
                .contains("Nobody can be asked to approve the plan")
        );
        assert!(run.stderr.contains("--auto-approve"));
    }
    assert_eq!(project.gobs(&["state", "list"]).ok().stdout, "");

    let mut command = project.command(&["apply"]);
    command.env("GOBS_INPUT", "0");
    let run = Run::of(command).code(1);
    assert!(
        run.stderr.contains("input is switched off"),
        "{}",
        run.stderr
    );
}

#[test]
fn the_prompt_takes_yes_and_nothing_else() {
    let project = Project::new(ROWS);
    let answer = |args: &[&str], answer: &str| {
        let (mut person, program) = terminal();
        let mut command = project.command(args);
        let again = program.try_clone().expect("a terminal");
        command.stdin(program).stderr(again);
        let run = Running::of(command);
        run.wait_for("Plan: ");
        // What is typed before the question waits in the terminal.
        person.write_all(answer.as_bytes()).expect("a terminal");
        let run = run.end();
        let mut said = vec![0; 4096];
        let size = person.read(&mut said).expect("a terminal");
        said.truncate(size);
        (
            run,
            String::from_utf8(said).expect("UTF-8").replace('\r', ""),
        )
    };
    for no in ["no\n", "\n", "y\n", "Yes\n", "yes please\n"] {
        let (run, said) = answer(&["apply"], no);
        run.code(1);
        assert!(
            said.contains("Do you want to perform these actions?"),
            "{said}"
        );
        assert!(
            said.contains("Only 'yes' will be accepted to approve."),
            "{said}"
        );
        assert!(said.contains("Enter a value:"), "{said}");
        assert!(said.ends_with("Apply cancelled.\n"), "{no:?}: {said}");
    }
    assert_eq!(project.gobs(&["state", "list"]).ok().stdout, "");
    let (run, _) = answer(&["apply"], "yes\n");
    assert!(run.ok().stdout.contains("Apply complete!"));

    let (run, said) = answer(&["destroy"], "no\n");
    run.code(1);
    assert!(said.contains("There is no undo. Only 'yes' will be accepted to confirm."));
    assert!(said.ends_with("Destroy cancelled.\n"), "{said}");
    let (run, _) = answer(&["destroy"], "yes\n");
    assert!(run.ok().stdout.contains("Destroy complete!"));
}

#[test]
fn plan_apply_and_destroy_end_with_their_lines_and_codes() {
    let project = Project::new(ROWS);
    let plan = project.gobs(&["plan", "-detailed-exitcode"]).code(2);
    let lines: Vec<&str> = plan.stdout.lines().rev().take(2).collect();
    assert_eq!(
        lines,
        [
            "Bindings: 1 to grant.",
            "Plan: 2 to add, 0 to change, 0 to destroy."
        ]
    );
    assert_eq!(plan.stderr, "");
    assert!(
        !project.path().join(".gobs/state.db").exists(),
        "a plan writes no state"
    );

    let apply = project.gobs(&["apply", "-auto-approve"]).ok();
    let complete = "Apply complete! Resources: 2 added, 0 changed, 0 destroyed. Bindings: 1 \
                    granted.\n\nOutputs:\n\nlist = [\n    1,\n    2,\n]\nsecret = \
                    <sensitive>\nsize = \"small\"\n";
    assert!(apply.stdout.ends_with(complete), "{}", apply.stdout);

    let nothing = "No changes. Your infrastructure matches the configuration.\n";
    let plan = project.gobs(&["plan", "-detailed-exitcode"]).code(0);
    assert_eq!(plan.stdout, nothing);
    let again = project.gobs(&["apply"]).ok();
    assert!(
        again.stdout.starts_with(nothing),
        "nobody is asked: {}",
        again.stdout
    );

    let larger = project
        .gobs(&["apply", "-auto-approve", "-var", "size=large"])
        .ok();
    assert!(
        larger.stdout.contains(" = \"small\" -> \"large\"\n"),
        "{}",
        larger.stdout
    );
    assert!(
        larger
            .stdout
            .contains("Resources: 0 added, 1 changed, 0 destroyed.\n")
    );

    let destroy = project.gobs(&["destroy", "-auto-approve"]).ok();
    let complete = "Destroy complete! Resources: 2 destroyed. Bindings: 1 revoked.";
    assert_eq!(last_line(&destroy.stdout), complete);
    assert_eq!(project.gobs(&["state", "list"]).ok().stdout, "");
    for run in [plan, apply, again, larger, destroy] {
        assert!(
            !(run.stdout + &run.stderr).contains("hunter2"),
            "a secret is printed nowhere"
        );
    }
}

#[test]
fn a_plan_file_is_applied_exactly_or_refused() {
    let project = Project::new(ROWS);
    let run = project.gobs(&["plan", "-out=saved", "-var=size=tiny"]).ok();
    assert!(
        run.stdout.contains("gobs apply \"saved\""),
        "{}",
        run.stdout
    );
    let saved = std::fs::read(project.path().join("saved")).expect("a plan file");
    assert!(!String::from_utf8_lossy(&saved).contains("hunter2"));
    let shown = project.gobs(&["show", "saved"]).ok().stdout;
    assert!(run.stdout.starts_with(&shown), "{shown}");

    let run = project.gobs(&["apply", "-destroy", "saved"]).code(1);
    assert!(
        run.stderr
            .contains("--destroy was decided when the plan was made")
    );
    // What stands in the directory now does not count.
    project.write("main.gobs.hcl", "machine \"other\" { provider = dummy }\n");
    let run = project.gobs(&["apply", "saved"]).ok();
    assert!(run.stdout.contains("Resources: 2 added"), "{}", run.stdout);
    assert_eq!(
        project.gobs(&["output", "-raw", "size"]).ok().stdout,
        "tiny"
    );

    let run = project.gobs(&["apply", "saved"]).code(1);
    assert!(run.stderr.contains("Plan file refused"), "{}", run.stderr);
    project.write("not-a-plan", "{}");
    let run = project.gobs(&["apply", "not-a-plan"]).code(1);
    assert!(run.stderr.contains("Plan file refused"), "{}", run.stderr);
    let run = project.gobs(&["apply", "nowhere"]).code(1);
    assert!(
        run.stderr.contains("nowhere: No such file"),
        "{}",
        run.stderr
    );
    project.write("main.gobs.hcl", ROWS);
}

#[test]
fn outputs_have_three_forms() {
    let project = Project::new(ROWS);
    let run = project.gobs(&["output"]).ok();
    assert!(run.stderr.contains("Warning: No outputs"), "{}", run.stderr);
    project.gobs(&["apply", "-auto-approve"]).ok();
    let output = |args: &[&str]| project.gobs(&[&["output"], args].concat()).ok().stdout;
    assert_eq!(
        output(&[]),
        "list = [\n    1,\n    2,\n]\nsecret = <sensitive>\nsize = \"small\"\n"
    );
    assert_eq!(output(&["size"]), "\"small\"\n");
    assert_eq!(output(&["-raw", "size"]), "small");
    assert_eq!(output(&["-json", "list"]), "[1,2]\n");
    assert_eq!(output(&["secret"]), "<sensitive>\n");
    assert_eq!(
        output(&["-raw", "secret"]),
        "hunter2",
        "it was asked for by name"
    );
    let json: serde_json::Value = serde_json::from_str(&output(&["-json"])).expect("JSON");
    assert_eq!(json["size"]["value"], "small");
    assert_eq!(json["secret"]["sensitive"], true);
    assert_eq!(json["secret"]["value"], serde_json::Value::Null);

    let run = project.gobs(&["output", "sise"]).code(1);
    assert!(
        run.stderr.contains("There are: list, secret, size."),
        "{}",
        run.stderr
    );
    let run = project.gobs(&["output", "-raw", "list"]).code(1);
    assert!(run.stderr.contains("Use --json."), "{}", run.stderr);
    project.gobs(&["output", "-raw"]).code(64);
}

#[test]
fn the_state_is_listed_shown_and_asked() {
    let project = Project::new(ROWS);
    assert_eq!(project.gobs(&["show"]).ok().stdout, "Nothing exists yet.\n");
    assert_eq!(
        project.gobs(&["status"]).ok().stdout,
        "Nothing exists yet.\n"
    );
    project.gobs(&["apply", "-auto-approve"]).ok();
    let list = |args: &[&str]| {
        project
            .gobs(&[&["state", "list"], args].concat())
            .ok()
            .stdout
    };
    assert_eq!(
        list(&[]),
        "machine.app\nmachine.db\nmachine.db.service.orders\nbinding.db\n"
    );
    assert_eq!(
        list(&["machine.db"]),
        "machine.db\nmachine.db.service.orders\n"
    );
    assert_eq!(list(&["machine.d"]), "");
    let show = project.gobs(&["show"]).ok().stdout;
    assert!(show.contains("# machine.db:\nmachine \"db\" {\n"), "{show}");
    assert!(show.contains(" = (sensitive value)\n"), "{show}");
    assert!(show.contains(" = machine.db.service.orders\n"), "{show}");
    let status = project.gobs(&["status"]).ok().stdout;
    assert!(status.contains("machine.db   a row only"), "{status}");
    let json = project.gobs(&["status", "--json"]).ok().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["needs_person"], false);
}

#[test]
fn mistakes_come_all_at_once_on_stderr() {
    let project = Project::new(
        "machine \"a\" {\n  provider = dummy\n  siez = 1\n}\n\noutput \"b\" {\n  value = \
         machine.nowhere.id\n}\n",
    );
    for command in ["validate", "plan", "apply"] {
        let run = project.gobs(&[command]).code(1);
        assert_eq!(run.stdout, "", "{command}");
        assert_eq!(run.stderr.matches("Error: ").count(), 2, "{}", run.stderr);
        let place = "  on main.gobs.hcl line 3:\n   3:   siez = 1\n        ^^^^\n";
        assert!(run.stderr.contains(place), "{}", run.stderr);
    }
    let run = Project::empty().gobs(&["plan"]).code(1);
    assert!(run.stderr.contains("gobs init"), "{}", run.stderr);
}

#[test]
fn variables_come_from_everywhere_and_later_ones_win() {
    let project = Project::new(
        r#"
variable "v" {}
provider "dummy" { simulated = true }
output "v" { value = var.v }
"#,
    );
    let valid = project.gobs(&["validate"]).ok();
    assert_eq!(valid.stdout, "Success! The configuration is valid.\n");
    let missing = project.gobs(&["plan"]).code(1);
    assert!(missing.stderr.contains("\"v\""), "{}", missing.stderr);

    let check = |args: &[&str], expected: &str| {
        let mut command = project.command(&[&["apply", "-auto-approve"], args].concat());
        command.env("GOBS_VAR_v", "environment");
        Run::of(command).ok();
        let value = project.gobs(&["output", "-raw", "v"]).ok().stdout;
        assert_eq!(value, expected, "{args:?}");
    };
    check(&[], "environment");
    project.write("gobs.gobsvars", "v = \"gobs.gobsvars\"\n");
    check(&[], "gobs.gobsvars");
    project.write("b.auto.gobsvars", "v = \"b.auto\"\n");
    project.write("a.auto.gobsvars", "v = \"a.auto\"\n");
    check(&[], "b.auto");
    project.write("given", "v = \"given\"\n");
    check(&["-var-file=given"], "given");
    check(&["-var", "v=typed", "-var-file=given"], "typed");
    check(&["-var", "v=typed", "-var", "v=last"], "last");
    let run = project.gobs(&["plan", "-var", "novalue"]).code(64);
    assert!(run.stderr.contains("NAME=VALUE"), "{}", run.stderr);
}

#[test]
fn ctrl_c_once_finishes_what_runs_and_says_what_remains() {
    let project = Project::new(
        r#"
machine "a" {
  provider = dummy
  fault    = "create:slow=2s"
  hob { enabled = false }
}

machine "b" {
  provider   = dummy
  depends_on = [machine.a]
  hob { enabled = false }
}
"#,
    );
    let apply = project.start(&["apply", "-auto-approve"]);
    apply.wait_for("machine.a: Creating...\n");
    apply.signal(Signal::INT);
    let run = apply.end().code(1);
    let stopping = "Stopping: nothing more is started, 1 step still runs. Ctrl-C again leaves at \
                    once.\nmachine.a: Creation complete after ";
    assert!(run.stdout.contains(stopping), "{}", run.stdout);
    let end = "Apply was interrupted. Resources: 1 added, 0 changed, 0 destroyed.\n1 step was not \
               started:\n  - machine.b\n";
    assert!(run.stdout.ends_with(end), "{}", run.stdout);
    let run = project.gobs(&["apply", "-auto-approve"]).ok();
    assert!(
        run.stdout
            .ends_with("Resources: 1 added, 0 changed, 0 destroyed.\n")
    );
}

#[test]
fn ctrl_c_twice_leaves_at_once_and_the_next_run_settles_it() {
    let machine = |fault: &str| {
        format!(
            "machine \"a\" {{\n  provider = dummy\n  {fault}\n  hob {{ enabled = false }}\n}}\n"
        )
    };
    let project = Project::new(&machine("fault = \"create:hang-after\""));
    let apply = project.start(&["apply", "-auto-approve"]);
    apply.wait_for("machine.a: Creating...\n");
    let made = project.path().join(".gobs/dummy");
    let has_made = || {
        made.read_dir()
            .is_ok_and(|mut entries| entries.next().is_some())
    };
    eventually("a machine is made", Duration::from_secs(30), has_made);
    apply.signal(Signal::INT);
    apply.wait_for("Stopping: ");
    apply.signal(Signal::INT);
    let run = apply.end().code(1);
    assert!(run.stderr.contains("Left at once."), "{}", run.stderr);

    project.write("main.gobs.hcl", &machine(""));
    let run = project.gobs(&["apply", "-auto-approve"]).ok();
    assert!(
        run.stdout.contains("Recovered: machine.a, left by run 1, "),
        "{}",
        run.stdout
    );
    assert_eq!(
        project.gobs(&["plan", "-detailed-exitcode"]).code(0).stderr,
        ""
    );
    assert_eq!(project.gobs(&["state", "list"]).ok().stdout, "machine.a\n");
    assert_eq!(
        made.read_dir().expect("a directory").count(),
        1,
        "one machine, not two"
    );
}
