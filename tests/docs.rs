//! What the documents say is true: commands, files, snippets.

use crate::support::repository;

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

#[test]
fn links_lead_somewhere() {
    for file in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"] {
        for link in read(file).split("](").skip(1) {
            let target = link.split(')').next().unwrap_or_default();
            let is_web = target.starts_with("https://");
            assert!(
                is_web || repository().join(target).exists(),
                "{file}: {target}"
            );
        }
    }
}

#[test]
fn paths_of_the_tables_exist() {
    for file in ["README.md"] {
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

#[test]
fn the_test_command_is_what_ci_runs() {
    let commands = fenced(&read("README.md"), "sh").concat();
    assert!(commands.contains("cargo test --workspace\n"));
    assert!(read(".ci/run").ends_with("\ncargo test --workspace\n"));
}
