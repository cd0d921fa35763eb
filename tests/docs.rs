//! What the documents say is true: commands, files, snippets.

use std::process::{Command, Stdio};

use crate::support::{Project, Run, free_port, repository};

fn read(file: &str) -> String {
    std::fs::read_to_string(repository().join(file)).expect(file)
}

/// Returns the contents of the fenced blocks of a language.
fn fenced(text: &str, language: &str) -> Vec<String> {
    text.split("```")
        .skip(1)
        .step_by(2)
        .filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n'))
        .map(str::to_owned)
        .collect()
}

/// Returns what people read, by its path.
fn documents() -> Vec<String> {
    let mut files = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"]
        .map(str::to_owned)
        .to_vec();
    let pages = std::fs::read_dir(repository().join("docs")).expect("docs");
    let pages = pages.map(|it| {
        it.expect("an entry")
            .file_name()
            .into_string()
            .expect("UTF-8")
    });
    files.extend(
        pages
            .filter(|it| it.ends_with(".md"))
            .map(|it| format!("docs/{it}")),
    );
    assert!(files.len() > 9, "{files:?}");
    files
}

#[test]
fn links_lead_somewhere() {
    for file in &documents() {
        let path = repository().join(file);
        let beside = path.parent().expect("a directory");
        let text: String = read(file).split("```").step_by(2).collect();
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap_or_default();
            let is_web = target.starts_with("https://");
            assert!(is_web || beside.join(target).exists(), "{file}: {target}");
        }
    }
}

#[test]
fn paths_of_the_tables_exist() {
    for file in ["README.md", "ARCHITECTURE.md"] {
        for row in read(file).lines().filter(|line| line.starts_with("| `")) {
            let path = row
                .trim_start_matches("| `")
                .split('`')
                .next()
                .expect("a path");
            assert!(repository().join(path).exists(), "{file}: {path}");
        }
    }
}

/// How README runs the tests.
const TESTS: &str = ".ci/test";

#[test]
fn the_test_command_is_what_ci_runs() {
    assert!(read("docs/webapp.md").contains(&format!("\n{WEBAPP}\n")));
    let commands = fenced(&read("README.md"), "sh").concat();
    assert!(commands.contains(&format!("{TESTS}\n")));
    assert!(read(".ci/run").contains(&format!("\n{TESTS}\n")));
    assert!(read(TESTS).contains("\ncargo test --workspace"));
}

/// What the snippets of a page leave out, for each in its order.
const AROUND: [(&str, &[&str]); 5] = [
    ("README.md", &[""]),
    ("docs/postgres.md", &[""]),
    (
        "docs/services.md",
        &[
            "",
            "variable \"chat\" { sensitive = true }\nmachine \"app\" { provider = dummy }\n",
        ],
    ),
    (
        "docs/webapp.md",
        &[
            "variable \"apps\" { type = map(object({ access = string })) }\n\
           machine \"db\" {\n provider = dummy\n service \"notes\" {\n postgres { database = \
           \"notes\" }\n }\n}\nmachine \"app\" {\n for_each = var.apps\n provider = dummy\n}\n",
        ],
    ),
    (
        "docs/linode.md",
        &[
            "machine \"web\" {\n",
            "machine \"web\" {\n for_each = toset([\"a\", \"b\"])\n",
        ],
    ),
];

#[test]
fn snippets_are_valid() {
    for (file, around) in AROUND {
        let snippets = fenced(&read(file), "hcl");
        assert_eq!(snippets.len(), around.len(), "{file}");
        for (snippet, around) in snippets.iter().zip(around) {
            let mut text = format!("{around}{snippet}");
            if file == "docs/linode.md" {
                let page = fenced(&read("docs/linode-double.md"), "hcl").concat();
                let body = page.split_once('\n').expect("lines").1;
                text = format!("{around}{body}\n{snippet}");
            }
            let project = Project::new(&text);
            let said = project.gobs(&["validate"]).ok().stdout;
            assert!(said.contains("valid"), "{file}: {said}");
        }
    }
}

/// Every command that is named in a line of text is one, and has the options that are named.
#[test]
fn commands_that_are_named_are_there() {
    let help = read("tests/cli/help.txt");
    let hob = Project::empty().gobs(&["hob", "--help"]).ok().stdout;
    let mut found = 0;
    for file in documents() {
        let prose: String = read(&file).split("```").step_by(2).collect();
        for code in prose.split('`').skip(1).step_by(2) {
            let words: Vec<&str> = code.split_whitespace().collect();
            let help = match words[..] {
                ["gobs", "help", ..] | ["hob", "{", ..] => continue,
                ["gobs", "hob", ..] => hob.clone(),
                ["gobs", name, ..] => {
                    let title = format!("$ gobs {name} ");
                    let of_it = help.split_inclusive("\n\n$ ").filter(|it| {
                        it.starts_with(&title) || it.starts_with(&title["$ ".len()..])
                    });
                    of_it.collect::<String>()
                }
                ["hob", name, ..] => match hob.contains(&format!("] {name}"))
                    || hob.contains(&format!("hob {name}"))
                    || name.starts_with("--")
                {
                    true => hob.clone(),
                    false => String::new(),
                },
                _ => continue,
            };
            assert!(!help.is_empty(), "{file}: {code}");
            for option in words.iter().filter(|it| it.starts_with("--")) {
                assert!(help.contains(option), "{file}: {code}: {option}");
            }
            found += 1;
        }
    }
    assert!(found > 30, "{found} commands");
}

/// How README runs the program.
const GOBS: &str = "cargo run --release -- ";

/// How README sets the web application up, which `webapp.rs` does with the program under test.
const WEBAPP: &str = ".ci/setup && cargo run --release -- -C examples/webapp apply --auto-approve";

/// Does what README says, in its order, with the program that is under test.
#[test]
fn the_commands_of_readme_work_as_it_says() {
    // The ports are others than the example's own: somebody may just be trying that.
    let project = Project::copy_of("examples/app-and-db")
        .with_env("GOBS_VAR_orders_port", free_port())
        .with_env("GOBS_VAR_app_port", free_port());
    let mut done = Vec::new();
    for line in fenced(&read("README.md"), "sh").concat().lines() {
        let Some(args) = line.strip_prefix(GOBS) else {
            assert!([TESTS, WEBAPP].contains(&line), "{line}");
            continue;
        };
        let args = args
            .strip_prefix("-C examples/app-and-db ")
            .expect("the example");
        let args: Vec<&str> = args.split(' ').collect();
        let run = project.gobs(&args).ok();
        if args[0] == "apply" {
            check_app_and_db(&project, &run);
        }
        done.push(args[0].to_owned());
    }
    assert_eq!(done, ["apply", "status", "destroy"]);
    assert!(project.processes().is_empty(), "nothing is left running");
}

fn check_app_and_db(project: &Project, apply: &Run) {
    let complete = "\nApply complete! Resources: 2 added, 0 changed, 0 destroyed. Bindings: 1 \
                    granted.\n\nOutputs:\n\ntry = \"curl -s http://127.0.0.1:";
    assert!(apply.stdout.contains(complete), "{}", apply.stdout);

    // The line that a reader copies.
    let line = project.gobs(&["output", "-raw", "try"]).ok().stdout;
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &line])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let answer = Run::of(shell).ok().stdout;
    assert!(
        answer.starts_with("order 1: three lemons\norder 2: a ladder\n"),
        "{answer}"
    );
    assert!(
        answer.contains("served by the orders program on machine db"),
        "{answer}"
    );

    let again = project.gobs(&["apply", "--auto-approve"]).ok().stdout;
    let nothing = "No changes. Your infrastructure matches the configuration.\n";
    assert!(again.starts_with(nothing), "{again}");
    let status = project.gobs(&["status"]).ok().stdout;
    assert_eq!(status.matches(" connected ").count(), 2, "{status}");
    assert!(status.contains("binding.db  live"), "{status}");
}

#[test]
fn the_first_example_works() {
    let project = Project::copy_of("examples/first");
    let apply = project.gobs(&["apply", "--auto-approve"]).ok();
    assert!(
        apply
            .stdout
            .contains("\nApply complete! Resources: 1 added, 0 changed, 0 destroyed.\n")
    );
    let directory = project.gobs(&["output", "-raw", "directory"]).ok().stdout;
    assert!(std::path::Path::new(&directory).is_dir(), "{directory}");
    let destroy = project.gobs(&["destroy", "--auto-approve"]).ok();
    assert!(
        destroy
            .stdout
            .ends_with("Destroy complete! Resources: 1 destroyed.\n")
    );
    assert!(!std::path::Path::new(&directory).exists(), "{directory}");
    assert!(project.processes().is_empty(), "nothing is left running");
}

#[test]
fn every_example_has_a_test() {
    let tested = ["app-and-db", "first", "linode", "webapp"];
    let examples = std::fs::read_dir(repository().join("examples")).expect("examples");
    let mut names: Vec<_> = examples
        .map(|it| it.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, tested);
}

/// Does what the page on the double says, with one in this process.
#[test]
fn the_page_on_the_double_is_true() {
    let page = read("docs/linode-double.md");
    let kinds = page.lines().filter_map(|line| {
        let kind = line.strip_prefix("| `{\"fault\"")?.split('`').next()?;
        Some(format!("{{\"fault\"{kind}"))
    });
    let mut faults = 0;
    for kind in kinds {
        let parsed = serde_json::from_str::<gobs_linode_double::Kind>(&kind);
        assert!(parsed.is_ok(), "{kind}: {parsed:?}");
        faults += 1;
    }
    assert_eq!(faults, 23);

    // Its machine, with the hob that its other paragraph puts inside.
    let [machine] = &fenced(&page, "hcl")[..] else {
        panic!("there is one machine");
    };
    let machine = machine.replace("  hob { enabled = false }\n", "");
    let texts = fenced(&page, "text");
    let guest = texts
        .iter()
        .find_map(|it| it.trim().strip_prefix("--guest '"));
    let guest = guest.expect("a guest").trim_end_matches('\'');
    let gobs = env!("CARGO_BIN_EXE_gobs");
    let project = Project::new(&machine);
    let options = gobs_linode_double::Options {
        seed: Some(7),
        guest: Some(gobs_linode_double::Guest {
            command: guest.replace("exec hob", &format!("exec {gobs} hob")),
            directory: project.path().join("linodes"),
        }),
        ..gobs_linode_double::Options::default()
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let double = runtime.block_on(async { gobs_linode_double::Double::start(options) });
    let double = double.expect("listens");

    // Only the last of its commands needs a machine that is to be made.
    let [apply, lost] = &fenced(&page, "sh")[..] else {
        panic!("there are two scripts");
    };
    for (script, text) in [
        (apply, machine.clone()),
        (lost, machine.replace("\"web\"", "\"x\"")),
    ] {
        project.write("main.gobs.hcl", &text);
        let mut shell = Command::new("sh");
        let script = script.replace("gobs apply", &format!("{gobs} apply"));
        let exports = apply.lines().next().expect("a line");
        shell.args(["-euc", &format!("{exports}\n{script}")]);
        shell
            .env("url", double.url())
            .env("admin", double.admin_url());
        shell.current_dir(project.path()).stdin(Stdio::null());
        shell.stdout(Stdio::piped()).stderr(Stdio::piped());
        let done = Run::of(shell).ok().stdout;
        assert!(
            done.contains("Apply complete! Resources: 1 added"),
            "{done}"
        );
    }
    let stats = double.stats();
    assert_eq!((stats.created, double.unused_faults()), (2, 0));
    let project = project
        .with_env("LINODE_URL", double.url())
        .with_env("LINODE_TOKEN", "double")
        .with_env("GOBS_LINODE_CLOCK_SCALE", 1_000);
    let status = project.gobs(&["status"]).ok().stdout;
    assert_eq!(status.matches(" connected ").count(), 1, "{status}");
    project.gobs(&["destroy", "--auto-approve"]).ok();
    assert_eq!(double.instances().len(), 0);
}
