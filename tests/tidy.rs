//! What a machine can check of the house rules: sizes, words, and what may be used where.

use std::path::{Path, PathBuf};

use crate::support::repository;

/// A file of Rust, by its path in the repository.
struct File {
    path: String,
    text: String,
}

impl File {
    /// Returns the lines that are not comments, with their numbers.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate();
        lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// Returns whether a line of code names a crate: `use name`, `name::`.
    fn names(&self, krate: &str) -> Option<usize> {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        self.code().find_map(|(at, line)| {
            let mut found = line.match_indices(krate);
            found
                .any(|(start, _)| {
                    let before = line[..start].bytes().last().unwrap_or(b' ');
                    let after = &line[start + krate.len()..];
                    let qualifies = after.starts_with("::") && !line[..start].ends_with("::");
                    let imports = line[..start].trim_end().ends_with("use")
                        && after.starts_with([';', ':', ' ']);
                    !is_word(before) && (qualifies || imports)
                })
                .then_some(at + 1)
        })
    }

    fn is_within(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.path.starts_with(place))
    }
}

/// Returns every file of Rust that is ours.
fn files() -> Vec<File> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(directory) = open.pop() {
        let entries = std::fs::read_dir(repository().join(&directory)).expect("a directory");
        for entry in entries {
            let entry = entry.expect("an entry");
            let path = directory.join(entry.file_name());
            let is_hidden = path.file_name().is_some_and(|name| {
                let name = name.to_string_lossy();
                name.starts_with('.') || name == "target"
            });
            if entry.file_type().expect("a type").is_dir() && !is_hidden {
                open.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                found.push(File {
                    text: std::fs::read_to_string(entry.path()).expect("UTF-8"),
                    path: path.to_string_lossy().into_owned(),
                });
            }
        }
    }
    assert!(found.len() > 20, "the walk finds the repository");
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Fails with everything that was found at once.
#[track_caller]
fn check(found: Vec<String>) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn files_stay_readable() {
    let lines_max = 700;
    let mut found = Vec::new();
    for File { path, text } in files() {
        let lines = text.lines().count();
        if lines > lines_max {
            found.push(format!("{path}: {lines} lines"));
        }
    }
    check(found);
}

#[test]
fn lines_fit_a_page() {
    let columns_max = 100;
    let mut found = Vec::new();
    for File { path, text } in files() {
        for (at, line) in text.lines().enumerate() {
            let columns = line.chars().count();
            // A row of a table and a text in quotes cannot be wrapped, or not without harm.
            let is_row = line
                .trim_start()
                .trim_start_matches(['/', '!', ' '])
                .starts_with('|');
            if columns > columns_max && !is_row && !line.contains('"') {
                found.push(format!("{path}:{}: {columns} columns", at + 1));
            }
        }
    }
    check(found);
}

#[test]
fn nothing_is_left_for_later() {
    // In halves, so that this file does not find itself.
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("#[ig", "nore"),
        concat!("#[al", "low("),
        concat!("#![al", "low("),
        concat!("should", "_panic"),
    ];
    let mut found = Vec::new();
    for File { path, text } in files() {
        for (at, line) in text.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| line.contains(**word)) {
                found.push(format!("{path}:{}: {word}", at + 1));
            }
        }
    }
    check(found);
}

#[test]
fn every_test_file_is_listed() {
    let main = std::fs::read_to_string(repository().join("tests/main.rs")).expect("main.rs");
    let listed: Vec<&str> = main
        .lines()
        .filter(|line| line.starts_with("mod "))
        .collect();
    let mut found = Vec::new();
    for file in std::fs::read_dir(repository().join("tests")).expect("tests") {
        let path = file.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy();
        let is_module =
            path.extension().is_some_and(|it| it == "rs") || path.join("mod.rs").exists();
        if is_module && name != "main" && !listed.contains(&&*format!("mod {name};")) {
            found.push(format!("{} is not listed in tests/main.rs", path.display()));
        }
    }
    check(found);
}

#[test]
fn each_crate_has_its_home() {
    // The crate's name in code, and the places that may use it.
    let homes: [(&str, &[&str]); 11] = [
        ("hcl", &["src/lang/"]),
        ("petgraph", &["src/plan/graph.rs"]),
        ("rusqlite", &["state/"]),
        ("flate2", &["src/boot/"]),
        ("clap", &["src/cli/"]),
        ("anstream", &["src/cli/"]),
        ("anstyle", &["src/cli/"]),
        ("shlex", &["src/cli/"]),
        (
            "nix",
            &["hob/src/owner.rs", "hob/src/service/postgres/admin.rs"],
        ),
        ("similar", &["src/cli/view/", "tests/", "state/tests/"]),
        ("unicode_width", &["src/cli/view/"]),
    ];
    let mut found = Vec::new();
    for file in files() {
        for (krate, places) in homes {
            if let Some(line) = file.names(krate).filter(|_| !file.is_within(places)) {
                found.push(format!(
                    "{}:{line}: {krate} belongs to {places:?}",
                    file.path
                ));
            }
        }
    }
    check(found);
}

#[test]
fn what_is_pure_stays_pure() {
    let pure = ["model/src/", "src/lang/", "src/plan/"];
    let without_io = ["model/src/", "src/lang/", "src/plan/", "ocapn/src/captp/"];
    let effects = [
        "std::fs",
        "std::net",
        "std::process",
        "std::env",
        "Instant::now",
        "SystemTime",
    ];
    let mut found = Vec::new();
    for file in files() {
        if file.is_within(&without_io)
            && let Some(line) = file.names("tokio")
        {
            found.push(format!("{}:{line}: tokio", file.path));
        }
        if !file.is_within(&pure) {
            continue;
        }
        if let Some(line) = file.names("gobs_provider") {
            found.push(format!("{}:{line}: a provider", file.path));
        }
        for (at, line) in file.code() {
            if let Some(effect) = effects.iter().find(|effect| line.contains(**effect)) {
                found.push(format!("{}:{}: {effect}", file.path, at + 1));
            }
        }
    }
    check(found);
}

#[test]
fn only_the_command_line_prints() {
    let printing = [
        concat!("print", "ln!("),
        concat!("print", "!("),
        concat!("dbg", "!("),
        concat!("io::std", "out"),
        concat!("io::std", "err"),
    ];
    // The agent and the double are programs of their own; benchmarks and examples print what they
    // find.
    let may = [
        "src/cli/",
        "hob/src/",
        "providers/linode/double/src/main.rs",
        "tests/",
        "benches/",
        "examples/",
    ];
    let mut found = Vec::new();
    for file in files() {
        let of_a_member = |place: &&str| file.path.contains(&format!("/{place}"));
        if file.is_within(&may) || ["tests/", "benches/", "examples/"].iter().any(of_a_member) {
            continue;
        }
        for (at, line) in file.code() {
            if let Some(word) = printing.iter().find(|word| line.contains(**word)) {
                found.push(format!("{}:{}: {word}", file.path, at + 1));
            }
        }
    }
    check(found);
}

#[test]
fn crates_know_only_what_is_below_them() {
    let knows: [(&str, &[&str]); 4] = [
        ("model", &[]),
        ("ocapn", &[]),
        ("hob", &["ocapn"]),
        ("providers/contract", &["gobs-model"]),
    ];
    let ours = [
        "gobs-model",
        "gobs-provider",
        "gobs-provider-dummy",
        "gobs-provider-linode",
        "gobs-state",
        "hob",
        "ocapn",
    ];
    let mut found = Vec::new();
    for (member, below) in knows {
        let manifest = Path::new(member).join("Cargo.toml");
        let text = std::fs::read_to_string(repository().join(&manifest)).expect("a manifest");
        let dependencies = text.split("[dependencies]").nth(1).unwrap_or_default();
        let dependencies = dependencies.split("\n[").next().unwrap_or_default();
        for line in dependencies.lines() {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if ours.contains(&name) && !below.contains(&name) {
                found.push(format!("{}: {name}", manifest.display()));
            }
        }
    }
    check(found);
}
