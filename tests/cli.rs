//! The command line as a shell sees it: help, exit codes, flags, colour, streams.

use std::process::Stdio;

use crate::support::{Project, Run, check_golden, repository};

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
}
