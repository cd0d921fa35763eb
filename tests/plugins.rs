//! Providers that are no part of gobs: found, allowed, run, tested. The plugin is the one of
//! docs/plugins.md, as a reader would copy it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::support::{Project, Run, repository};

/// The longest that the plugin in the documents may be.
const PYTHON_LINES_MAX: usize = 60;

/// Where runs find programs, beside a directory of plugins.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Returns the fenced blocks of a language in the document.
fn document(language: &str) -> Vec<String> {
    let text = fs::read_to_string(repository().join("docs/plugins.md")).expect("the document");
    let blocks = text.split("```").skip(1).step_by(2);
    let blocks = blocks.filter_map(|it| it.strip_prefix(language)?.strip_prefix('\n'));
    blocks.map(str::to_owned).collect()
}

/// Returns whether there is Python; says plainly what is not tested where there is none.
fn has_python() -> bool {
    // The plugin's own PATH; a minimal Python has no json.
    let mut python = Command::new("python3");
    python.args(["-c", "import json"]).env("PATH", PATH);
    let found = python.output().is_ok_and(|it| it.status.success());
    if !found {
        // Past the test's own capture, which shows what is printed only of what fails.
        let said = "NOT RUN: the Python plugin of docs/plugins.md, since there is no python3\n";
        let _ = std::io::stderr().write_all(said.as_bytes());
    }
    found
}

fn program(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
    fs::write(path, text).expect("a file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("its mode");
}

/// Returns a project, and a directory outside of it that is on its `PATH`, with the plugin.
fn on_path(config: &str) -> (Project, TempDir) {
    let bin = tempfile::tempdir().expect("a directory");
    program(
        &bin.path().join("gobs-provider-paper"),
        &document("python").concat(),
    );
    let path = format!("{}:{PATH}", bin.path().display());
    (Project::new(config).with_env("PATH", path), bin)
}

fn check(run: Run, code: i32, expected: &[&str]) {
    let run = run.code(code);
    let said = format!("{}{}", run.stdout, run.stderr);
    for text in expected {
        assert!(said.contains(text), "{text:?} is not in\n{said}");
    }
}

#[test]
fn the_plugin_of_the_document_fits_a_page() {
    let [python] = &document("python")[..] else {
        panic!("there is one plugin in Python");
    };
    assert!(python.lines().count() <= PYTHON_LINES_MAX);
}

#[test]
fn the_python_plugin_makes_changes_and_takes_away() {
    if !has_python() {
        return;
    }
    let config = document("hcl").swap_remove(0);
    let (project, _bin) = on_path(&config);
    project.gobs(&["validate"]).ok();
    project.gobs(&["apply", "--auto-approve"]).ok();
    let path = project.gobs(&["output", "-raw", "path"]).ok().stdout;
    let written = fs::read_to_string(project.path().join(&path)).expect("the paper");
    assert!(written.contains("Dear reader"), "{written}");
    let again = project.gobs(&["plan", "--detailed-exitcode"]);
    check(again, 0, &["No changes."]);

    project.write("main.gobs.hcl", &config.replace("Dear reader", "Farewell"));
    let apply = project.gobs(&["apply", "--auto-approve"]);
    check(apply, 0, &["0 added, 1 changed, 0 destroyed"]);
    let written = fs::read_to_string(project.path().join(&path)).expect("the paper");
    assert!(written.contains("Farewell"), "{written}");

    // The rows alone say which provider they are of.
    project.write("main.gobs.hcl", "");
    let apply = project.gobs(&["apply", "--auto-approve"]);
    check(apply, 1, &["Provider refused its settings"]);
    project.write("main.gobs.hcl", &config);
    project.gobs(&["destroy", "--auto-approve"]).ok();
    assert!(!project.path().join(&path).exists());
    assert!(project.processes().is_empty(), "nothing is left running");
}

#[test]
fn the_python_plugin_keeps_the_contract() {
    if !has_python() {
        return;
    }
    let (project, _bin) = on_path("");
    project.write("paper.hcl", &document("hcl").swap_remove(1));
    let run = project.gobs(&["providers", "test", "paper", "paper.hcl"]);
    check(run, 0, &["paper keeps the contract: 17 checks."]);
    let left: Vec<_> = fs::read_dir(project.path().join("papers"))
        .expect("papers")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_a_plugin_objects_to_is_an_error_of_the_plan() {
    if !has_python() {
        return;
    }
    let config = document("hcl").swap_remove(0);
    let (project, bin) = on_path(&config);
    let hello = "\"schema\": SCHEMA}";
    let objects = "\"schema\": SCHEMA, \"methods\": {\"objections\": True}},
    \"objections\": lambda it: {\"objections\": [{\"attribute\": \"note\", \"message\":
        plain(it[\"proposal\"][\"wanted\"])[\"note\"] + \" is impolite\", \"hint\": \"be kind\"}]
        if \"fool\" in plain(it[\"proposal\"][\"wanted\"])[\"note\"] else []}";
    let plugin = document("python").concat();
    assert!(plugin.contains(hello));
    let plugin = plugin.replace(hello, objects);
    program(&bin.path().join("gobs-provider-paper"), &plugin);
    project.write("main.gobs.hcl", &config.replace("Dear reader", "You fool"));
    let said = [
        "Impossible machine",
        "machine.letter cannot be so: You fool is impolite.",
        "Be kind",
        "main.gobs.hcl line 5",
    ];
    check(project.gobs(&["plan"]), 1, &said);
    check(project.gobs(&["apply", "--auto-approve"]), 1, &said);
    project.write("main.gobs.hcl", &config);
    project.gobs(&["apply", "--auto-approve"]).ok();
    project.gobs(&["destroy", "--auto-approve"]).ok();
}

/// The end of `write` in the plugin, and the same with a death after the effect, once, when told.
const WRITTEN: &str = "    os.replace(path(id) + \".part\", path(id))\n";
const DIES: &str = "    if os.path.exists(\"die\"):\n        os.remove(\"die\"); os._exit(9)\n";

#[test]
fn a_plugin_that_dies_after_the_effect_leaves_a_doubt_that_the_next_run_settles() {
    if !has_python() {
        return;
    }
    let config = document("hcl").swap_remove(0);
    let (project, bin) = on_path(&config);
    let mortal = document("python").concat();
    assert!(mortal.contains(WRITTEN));
    let mortal = mortal.replace(WRITTEN, &format!("{WRITTEN}{DIES}"));
    program(&bin.path().join("gobs-provider-paper"), &mortal);
    let papers = || {
        fs::read_dir(project.path().join("papers"))
            .expect("papers")
            .count()
    };

    project.write("die", "");
    let apply = project.gobs(&["apply", "--auto-approve"]);
    let expected = ["Creation in doubt", "it ended (exit status: 9)"];
    check(apply, 1, &expected);
    assert_eq!(papers(), 1);
    let apply = project.gobs(&["apply", "--auto-approve"]);
    check(apply, 0, &["Recovered: machine.letter"]);
    assert_eq!(papers(), 1);
    project.gobs(&["plan", "--detailed-exitcode"]).ok();

    // A change: the repeat finds no plugin, and that is no failure of the change.
    let config = config.replace("Dear reader", "Farewell");
    project.write("main.gobs.hcl", &config);
    project.write("die", "");
    let apply = project.gobs(&["apply", "--auto-approve"]);
    let expected = ["Nobody knows whether it was done", "an answer was lost"];
    check(apply, 1, &expected);
    project.gobs(&["apply", "--auto-approve"]).ok();
    project.gobs(&["plan", "--detailed-exitcode"]).ok();
    assert_eq!(papers(), 1);
    project.gobs(&["destroy", "--auto-approve"]).ok();
    assert_eq!(papers(), 0);
}

#[test]
fn a_plugin_that_breaks_the_contract_is_told_what() {
    if !has_python() {
        return;
    }
    let (project, bin) = on_path("");
    let forgetful = document("python").concat().replace(
        r#""find": lambda it: seen(it["token"])"#,
        r#""find": lambda it: {"machine": None}"#,
    );
    program(&bin.path().join("gobs-provider-paper"), &forgetful);
    project.write("paper.hcl", &document("hcl").swap_remove(1));
    let run = project.gobs(&["providers", "test", "paper", "paper.hcl"]);
    let expected = [
        "broken  a machine is found by its token",
        "ok      a machine that was created can be read",
        "paper breaks the contract: ",
    ];
    check(run, 1, &expected);
}

#[test]
fn the_dummy_keeps_the_contract_from_the_command_line() {
    let project = Project::empty();
    let test = r#"
        provider "dummy" { simulated = true }
        machine "wanted" { provider = dummy }
        machine "bigger" {
          provider = dummy
          size     = "big"
        }
        machine "refused" {
          provider = dummy
          fault    = "create:fail"
        }
    "#;
    project.write("test.hcl", test);
    let run = project.gobs(&["providers", "test", "dummy", "test.hcl"]);
    check(run, 0, &["dummy keeps the contract: 17 checks."]);
    let run = project.gobs(&["providers", "test", "paper", "test.hcl"]);
    check(
        run,
        1,
        &["machine.bigger is not of the provider \"paper\"."],
    );
    let elsewhere = test.replace("size     = \"big\"", "zone = \"other\"");
    project.write("test.hcl", &elsewhere);
    let run = project.gobs(&["providers", "test", "dummy", "test.hcl"]);
    check(
        run,
        1,
        &["To become machine.bigger, a machine would be replaced."],
    );
    project.write("test.hcl", "machine \"other\" { provider = dummy }");
    let run = project.gobs(&["providers", "test", "dummy", "test.hcl"]);
    check(run, 1, &["test.hcl declares no machine \"wanted\"."]);
}

/// A plugin that says that it ran, and then nothing that is of use.
const WITNESS: &str = "#!/bin/sh\ntouch ran\nexit 7\n";
const ODD: &str = "machine \"a\" { provider = odd }\n";

/// Checks that nothing runs what the tree names, unless it is allowed; it then fails by itself.
fn check_tree(project: &Project) {
    let ran = project.path().join("ran");
    for args in [
        &["plan"][..],
        &["validate"],
        &["apply", "--auto-approve"],
        &["destroy", "--auto-approve"],
    ] {
        let expected = [
            "Command of the project not allowed",
            "--allow-tree-commands",
        ];
        check(project.gobs(args), 1, &expected);
        assert!(!ran.exists(), "{args:?} ran it");
    }
    for args in [
        &["providers"][..],
        &["show"],
        &["status"],
        &["state", "list"],
    ] {
        project.gobs(args);
        assert!(!ran.exists(), "{args:?} ran it");
    }
    let expected = ["Plugin of no use", "it ended (exit status: 7)"];
    check(
        project.gobs(&["plan", "--allow-tree-commands"]),
        1,
        &expected,
    );
    assert!(ran.exists(), "it was allowed");
    fs::remove_file(&ran).expect("the witness");
    let mut command = project.command(&["plan"]);
    command.env("GOBS_ALLOW_TREE_COMMANDS", "1");
    check(Run::of(command), 1, &expected);
    assert!(ran.exists(), "it was allowed");
}

#[test]
fn x6_a_command_of_the_tree_runs_only_where_that_is_allowed() {
    let config = format!("provider \"odd\" {{ command = [\"./tool\", \"--now\"] }}\n{ODD}");
    let project = Project::new(&config);
    program(&project.path().join("tool"), WITNESS);
    check_tree(&project);
    // An interpreter on PATH runs what the tree says just as well.
    let config = config.replace("\"./tool\", \"--now\"", "\"sh\", \"./tool\"");
    let project = Project::new(&config);
    program(&project.path().join("tool"), WITNESS);
    check_tree(&project);
}

#[test]
fn x6_a_plan_file_runs_no_command_of_the_tree_unless_that_is_allowed() {
    if !has_python() {
        return;
    }
    let config = document("hcl").swap_remove(0);
    let block = "{ directory = \"papers\" }";
    assert!(config.contains(block), "{config}");
    let named = "{\n  directory = \"papers\"\n  command = [\"./paper\"]\n}";
    let project = Project::new(&config.replace(block, named));
    let python = document("python").concat();
    let spied = format!(
        "#!/bin/sh\ntouch ran\nexec python3 -c '{}'\n",
        python.replace('\'', "'\\''")
    );
    program(&project.path().join("paper"), &spied);
    let ran = project.path().join("ran");
    project
        .gobs(&["plan", "--allow-tree-commands", "--out", "p"])
        .ok();
    fs::remove_file(&ran).expect("it ran, where it was allowed");
    let expected = [
        "Command of the project not allowed",
        "--allow-tree-commands",
    ];
    check(project.gobs(&["apply", "p"]), 1, &expected);
    check(project.gobs(&["show", "p"]), 1, &expected);
    assert!(!ran.exists(), "a plan file ran it");
    project.gobs(&["apply", "--allow-tree-commands", "p"]).ok();
    project
        .gobs(&["destroy", "--auto-approve", "--allow-tree-commands"])
        .ok();
}

#[test]
fn x6_a_plugin_in_the_tree_runs_only_where_that_is_allowed() {
    let project = Project::new(ODD);
    program(
        &project.path().join(".gobs/plugins/gobs-provider-odd"),
        WITNESS,
    );
    check_tree(&project);
}

#[test]
fn x6_a_path_that_leads_into_the_tree_makes_no_difference() {
    let project = Project::new(ODD);
    let bin = project.path().join("bin");
    program(&bin.join("gobs-provider-odd"), WITNESS);
    let path = format!("{}:/usr/bin:/bin", bin.display());
    check_tree(&project.with_env("PATH", path));
    // A relative entry is not even looked at.
    let project = Project::new(ODD).with_env("PATH", "bin:.:/usr/bin:/bin");
    program(&project.path().join("bin/gobs-provider-odd"), WITNESS);
    program(&project.path().join("gobs-provider-odd"), WITNESS);
    let run = project.gobs(&["plan", "--allow-tree-commands"]);
    check(run, 1, &["There is no provider named \"odd\"."]);
    assert!(!project.path().join("ran").exists());
}

#[test]
fn a_plugin_gets_the_part_of_the_environment_that_is_for_it() {
    let bin = tempfile::tempdir().expect("a directory");
    let spy = "#!/bin/sh\nenv > environment\nexit 7\n";
    program(&bin.path().join("gobs-provider-odd"), spy);
    let path = format!("{}:/usr/bin:/bin", bin.path().display());
    let start = |config: &str| {
        Project::new(config)
            .with_env("PATH", &path)
            .with_env("GOBS_KEY", "very secret")
            .with_env("GOBS_VAR_password", "hunter2")
            .with_env("LINODE_TOKEN", "not yours")
            .with_env("OTHER_TOKEN", "shared")
            .with_env("ODD_TOKEN", "its own")
    };
    let seen = |project: &Project| {
        let seen = fs::read_to_string(project.path().join("environment")).expect("what it saw");
        for secret in ["GOBS_KEY", "hunter2", "not yours"] {
            assert!(!seen.contains(secret), "{seen}");
        }
        assert!(seen.contains("ODD_TOKEN=its own"), "{seen}");
        seen
    };
    let project = start(ODD);
    check(project.gobs(&["validate"]), 1, &["Plugin of no use"]);
    assert!(!seen(&project).contains("OTHER_TOKEN"));
    // What the tree asks for needs leave, as a command of the tree does.
    let named =
        format!("provider \"odd\" {{ environment = [\"OTHER_TOKEN\", \"GOBS_KEY\"] }}\n{ODD}");
    let project = start(&named);
    let expected = [
        "Variable of the environment not allowed",
        "begins with ODD_",
    ];
    check(project.gobs(&["validate"]), 1, &expected);
    assert!(!project.path().join("environment").exists(), "it ran");
    let allowed = project.gobs(&["validate", "--allow-tree-commands"]);
    check(allowed, 1, &["Plugin of no use"]);
    assert!(seen(&project).contains("OTHER_TOKEN=shared"));
}

#[test]
fn a_schema_that_takes_words_of_the_language_is_refused() {
    if !has_python() {
        return;
    }
    let config = document("hcl").swap_remove(0);
    for (ours, theirs, word) in [
        (
            "\"note\": {**TEXT",
            "\"count\": TEXT, \"note\": {**TEXT",
            "count",
        ),
        (
            "\"attributes\": {\"directory\"",
            "\"attributes\": {\"alias\": TEXT, \"directory\"",
            "alias",
        ),
    ] {
        let (project, bin) = on_path(&config);
        let python = document("python").concat();
        assert!(python.contains(ours), "{ours} is not in the document");
        let python = python.replace(ours, theirs);
        program(&bin.path().join("gobs-provider-paper"), &python);
        let said = format!("its schema has \"{word}\"");
        check(project.gobs(&["validate"]), 1, &["Plugin of no use", &said]);
    }
}

#[test]
fn providers_are_listed_without_being_run() {
    let config = format!("provider \"odd\" {{ command = [\"./tool\", \"--now\"] }}\n{ODD}");
    let bin = tempfile::tempdir().expect("a directory");
    program(&bin.path().join("gobs-provider-even"), WITNESS);
    let path = format!("{}:/usr/bin:/bin", bin.path().display());
    let project = Project::new(&config).with_env("PATH", &path);
    let list = project.gobs(&["providers"]).ok().stdout;
    let directory = project.path().canonicalize().expect("the project");
    let expected = format!(
        "dummy   built in\n\
         linode  built in\n\
         even    {}/gobs-provider-even\n\
         odd     {}/./tool --now (not allowed without --allow-tree-commands)\n",
        bin.path().display(),
        directory.display()
    );
    assert_eq!(list, expected);
    assert!(!project.path().join("ran").exists());
    // Where there is no project, there are providers still.
    let list = Project::empty()
        .with_env("PATH", &path)
        .gobs(&["providers"]);
    assert!(
        list.ok()
            .stdout
            .starts_with("dummy   built in\nlinode  built in\neven    ")
    );
}

#[test]
fn wrong_commands_are_said_where_they_stand() {
    for (block, expected) in [
        ("provider \"odd\" { command = [] }", "Invalid command"),
        (
            "provider \"odd\" { command = [var.x] }",
            "References not allowed",
        ),
        (
            "provider \"odd\" { environment = [\"a=b\"] }",
            "Invalid environment",
        ),
        (
            "provider \"dummy\" { command = [\"./tool\"] }",
            "Command of a built-in provider",
        ),
        (
            "provider \"odd\" { command = [\"a\"] }\n\
             provider \"odd\" {\n  alias = \"b\"\n  command = [\"b\"]\n}",
            "Two commands for one provider",
        ),
    ] {
        let project = Project::new(&format!("{block}\n"));
        let run = project.gobs(&["validate", "--allow-tree-commands"]);
        check(run, 1, &[expected]);
    }
}
