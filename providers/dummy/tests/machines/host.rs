//! A host for machines: directories of its own, and an agent that is a plain shell script.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gobs_model::{Address, Change, Known, Name, Value};
use gobs_provider::{CreateRequest, Observed, Provider, Token, UpdateRequest, UserData};
use gobs_provider_dummy::{Dummy, DummyHost};

/// How long something that must happen may take on a busy host.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked for.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Counts its starts, copies its description when told to read it again, and runs a program in a
/// session of its own; where its description says so, also one with a cleaned environment, in the
/// agent's session or in its own.
pub(crate) const AGENT: &str = r#"
dir=$2
echo started >> "$dir/logs/starts"
mkdir -p "$dir/hob" && echo one > "$dir/hob/key"
trap 'exit 0' TERM
trap 'cp "$dir/machine.json" "$dir/reloaded"' HUP
setsid sleep 300 &
if grep -q clean-session "$dir/machine.json"; then env -i setsid sleep 300 & fi
if grep -q clean-here "$dir/machine.json"; then env -i sleep 300 & fi
while :; do sleep 300 & wait $!; done
"#;

pub(crate) struct Host {
    home: tempfile::TempDir,
    pub(crate) root: PathBuf,
    pub(crate) runtime_root: PathBuf,
}

impl Host {
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        Self {
            root: home.path().join("dummy"),
            runtime_root: home.path().join("run"),
            home,
        }
    }

    pub(crate) fn host(&self) -> DummyHost {
        host(&self.root, &self.runtime_root)
    }

    pub(crate) fn dummy(&self) -> Dummy {
        Dummy::new(self.host())
    }

    pub(crate) fn dir(&self, token: &Token) -> PathBuf {
        self.root.join(&token.0)
    }

    /// Returns how often the agent of a machine was started.
    pub(crate) fn starts(&self, token: &Token) -> usize {
        let text = fs::read_to_string(self.dir(token).join("logs/starts"));
        text.map_or(0, |text| text.lines().count())
    }

    /// Waits until the agent has started that often and its program runs.
    pub(crate) fn wait_started(&self, token: &Token, starts: usize) {
        wait_for("the agent and its program", || {
            self.starts(token) == starts && self.working_in(token).len() >= 3
        });
    }

    /// Returns the processes whose working directory is the machine's.
    pub(crate) fn working_in(&self, token: &Token) -> BTreeSet<u32> {
        let dir = self.dir(token);
        processes()
            .filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|it| it == dir))
            .collect()
    }

    /// Returns what is left of any machine: files, and processes that worked in them.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let home = self.home.path();
        let files = fs::read_dir(home).expect("the home");
        let files = files.map(|it| it.expect("an entry").path().display().to_string());
        let root = self.root.display().to_string();
        let processes = processes().filter_map(|pid| {
            let cwd = fs::read_link(format!("/proc/{pid}/cwd"))
                .ok()?
                .display()
                .to_string();
            cwd.starts_with(&root)
                .then(|| format!("process {pid} in {cwd}"))
        });
        files.chain(processes).collect()
    }
}

impl Drop for Host {
    /// A test that failed leaves no process behind either.
    fn drop(&mut self) {
        let dummy = self.dummy();
        let clean = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build();
            runtime.expect("a runtime").block_on(async {
                for (_, machine) in dummy.list().await.unwrap_or_default() {
                    let _ = dummy.delete(&machine, Arc::new(drop)).await;
                }
            });
        });
        let _ = clean.join();
    }
}

pub(crate) fn host(root: &Path, runtime_root: &Path) -> DummyHost {
    DummyHost {
        root: root.into(),
        agent: ["/bin/sh", "-c", AGENT, "agent"].map(Into::into).into(),
        runtime_root: runtime_root.into(),
    }
}

pub(crate) fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

pub(crate) fn token() -> Token {
    Token::random().expect("randomness")
}

pub(crate) fn address() -> Address {
    Address::machine(Name::new("db").expect("a name"), None)
}

/// Returns the attributes of a machine, complete by the schema.
pub(crate) fn wanted<const N: usize>(set: [(&str, Value); N]) -> Known {
    let names = ["size", "image", "zone", "password", "run", "fault"];
    let all = names.map(|name| {
        let given = set.iter().find(|(given, _)| *given == name);
        (name, given.map_or(Value::NULL, |(_, value)| value.clone()))
    });
    Known::try_from(Value::object(all)).expect("nothing unknown")
}

pub(crate) fn create<const N: usize>(token: &Token, set: [(&str, Value); N]) -> CreateRequest {
    CreateRequest {
        token: token.clone(),
        address: address(),
        wanted: wanted(set),
        user_data: Some(UserData("first secret".into())),
        before: None,
    }
}

pub(crate) fn update<const N: usize>(
    before: &Observed,
    change: Change,
    set: [(&str, Value); N],
) -> UpdateRequest {
    UpdateRequest {
        token: token(),
        address: address(),
        before: before.clone(),
        was_wanted: wanted([]),
        wanted: wanted(set),
        change,
        user_data: (change == Change::Rebuild).then(|| UserData("second secret".into())),
    }
}

/// Returns an observed attribute's text.
pub(crate) fn text<'a>(machine: &'a Observed, name: &str) -> &'a str {
    machine
        .attributes
        .get(name)
        .and_then(Value::as_str)
        .unwrap_or("")
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").expect("/proc");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}
