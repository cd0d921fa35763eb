//! What tests of the real program share: a project in a directory of its own, and runs in it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a run may take: far more than any needs on a loaded machine.
const RUN_MAX: Duration = Duration::from_secs(180);
/// How long after a run's end its pipes may stay open. Nothing that it leaves may hold them.
const PIPE_MAX: Duration = Duration::from_secs(10);
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A project in a directory of its own. What it made is destroyed when it is dropped.
#[derive(Debug)]
pub(crate) struct Project {
    directory: TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Project {
    /// Returns a project with this configuration.
    pub(crate) fn new(config: &str) -> Self {
        let project = Self::empty();
        project.write("main.gobs.hcl", config);
        project
    }

    /// Returns a project without any file.
    pub(crate) fn empty() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("gobs-test-")
            .tempdir()
            .expect("a temporary directory");
        Self {
            directory,
            environment: Vec::new(),
        }
    }

    /// Returns a project with the files of a directory in the repository: an example.
    pub(crate) fn copy_of(directory: &str) -> Self {
        let project = Self::empty();
        let files = std::fs::read_dir(repository().join(directory)).expect("a directory");
        for file in files {
            let file = file.expect("an entry");
            if file.file_type().expect("a type").is_file() {
                std::fs::copy(file.path(), project.path().join(file.file_name())).expect("a copy");
            }
        }
        project
    }

    /// Returns this project, with a variable in the environment of its runs.
    pub(crate) fn with_env(mut self, name: &'static str, value: impl ToString) -> Self {
        self.environment.push((name, value.to_string()));
        self
    }

    /// Returns the project's directory.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes a file of the project.
    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).expect("a file");
    }

    /// Returns the program, ready to run here in a clean environment, without a terminal.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gobs"));
        command
            .args(args)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the program here to its end.
    #[track_caller]
    pub(crate) fn gobs(&self, args: &[&str]) -> Run {
        Run::of(self.command(args))
    }

    /// Starts the program here, to be watched and signalled.
    #[track_caller]
    pub(crate) fn start(&self, args: &[&str]) -> Running {
        Running::of(self.command(args))
    }

    /// Returns the directories of the project's machines that are processes of this host.
    pub(crate) fn machines(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.path().join(".gobs/dummy")) else {
            return Vec::new();
        };
        let directories = entries.map(|entry| entry.expect("an entry").path());
        directories
            .filter(|path| path.join("machine.json").exists())
            .collect()
    }

    /// Returns the directory of the machine of this name.
    #[track_caller]
    pub(crate) fn machine(&self, name: &str) -> PathBuf {
        let found = self.machines().into_iter().find(|directory| {
            let record = std::fs::read(directory.join("record.json")).expect("a record");
            let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
            record["address"] == format!("machine.{name}")
        });
        found.expect("a machine")
    }

    /// Starts a machine's hob alone, as a person would after a reboot.
    pub(crate) fn start_hob(&self, machine: &Path) -> Child {
        let directory = machine.to_string_lossy().into_owned();
        let mut command = self.command(&["hob", "--dir", &directory]);
        let log = File::options()
            .append(true)
            .open(machine.join("logs/hob.log"))
            .expect("a log");
        command.stdout(Stdio::null()).stderr(log);
        command.spawn().expect("the agent starts")
    }

    /// Returns the processes that run for this project's machines, or for the project itself:
    /// those whose command line or environment names its directory.
    pub(crate) fn processes(&self) -> Vec<rustix::process::Pid> {
        let path = self.path().to_string_lossy().into_owned();
        let names_it = |file: PathBuf| {
            let bytes = std::fs::read(file).unwrap_or_default();
            String::from_utf8_lossy(&bytes).contains(&path)
        };
        let processes = std::fs::read_dir("/proc").expect("/proc");
        processes
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let pid = entry.file_name().to_str()?.parse().ok()?;
                let pid = rustix::process::Pid::from_raw(pid)?;
                let ours = names_it(entry.path().join("cmdline"))
                    || names_it(entry.path().join("environ"));
                (ours && pid != rustix::process::getpid()).then_some(pid)
            })
            .collect()
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if self.path().join(".gobs").exists() {
            let mut command = self.command(&["destroy", "--auto-approve"]);
            let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
        // A failed test may leave what a destroy cannot find any more.
        for pid in self.processes() {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// What a run of the program came to.
#[derive(Debug)]
pub(crate) struct Run {
    /// Its exit code; nothing where a signal ended it.
    pub(crate) code: Option<i32>,
    /// What it wrote to stdout.
    pub(crate) stdout: String,
    /// What it wrote to stderr.
    pub(crate) stderr: String,
}

impl Run {
    /// Runs a command whose output is piped to its end.
    #[track_caller]
    pub(crate) fn of(command: Command) -> Self {
        Running::of(command).end()
    }

    /// Asserts that the run ended with this exit code.
    #[track_caller]
    pub(crate) fn code(self, expected: i32) -> Self {
        assert_eq!(
            self.code,
            Some(expected),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// Asserts that the run succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        self.code(0)
    }
}

/// Checks how a run ended, and that it said these texts: as words, since lines break where the
/// terminal's width says.
#[track_caller]
pub(crate) fn check(run: Run, code: i32, expected: &[&str]) {
    let run = run.code(code);
    let said = format!("{} {}", run.stdout, run.stderr);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    for text in expected {
        assert!(said.contains(text), "{text:?} is not in\n{said}");
    }
}

/// A run of the program that has not ended.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    stdout: Pipe,
    stderr: Pipe,
}

impl Running {
    /// Starts a command whose output is piped.
    #[track_caller]
    pub(crate) fn of(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the program starts");
        Self {
            stdout: Pipe::of(child.stdout.take()),
            stderr: Pipe::of(child.stderr.take()),
            child,
        }
    }

    /// Waits until the run has written this to stdout.
    #[track_caller]
    pub(crate) fn wait_for(&self, text: &str) {
        let what = format!("{text:?} on stdout");
        eventually(&what, RUN_MAX, || self.stdout.so_far().contains(text));
    }

    /// Returns whether the run has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_some()
    }

    /// Sends the run a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("it runs");
    }

    /// Waits for the run's end.
    #[track_caller]
    pub(crate) fn end(mut self) -> Run {
        let mut ended = None;
        let deadline = Instant::now() + RUN_MAX;
        while ended.is_none() {
            ended = self.child.try_wait().expect("a child");
            if ended.is_none() && Instant::now() >= deadline {
                let _ = self.child.kill();
                panic!("the run did not end within {RUN_MAX:?}: {self:?}");
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Run {
            code: ended.and_then(|status| status.code()),
            stdout: self.stdout.to_end(),
            stderr: self.stderr.to_end(),
        }
    }
}

/// What a run writes to one stream.
#[derive(Debug)]
struct Pipe {
    text: Arc<Mutex<Vec<u8>>>,
    ended: mpsc::Receiver<()>,
}

impl Pipe {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Self {
        let (send, ended) = mpsc::channel();
        let text = Arc::new(Mutex::new(Vec::new()));
        let filled = text.clone();
        // A stream that the test gave to somebody else has nothing for it.
        let Some(mut pipe) = pipe else {
            let _ = send.send(());
            return Self { text, ended };
        };
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // An error is an end too: what was read before it is worth seeing.
            while let Ok(size @ 1..) = pipe.read(&mut buffer) {
                filled
                    .lock()
                    .expect("a lock")
                    .extend_from_slice(&buffer[..size]);
            }
            let _ = send.send(());
        });
        Self { text, ended }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().expect("a lock")).into_owned()
    }

    #[track_caller]
    fn to_end(&self) -> String {
        let ended = self.ended.recv_timeout(PIPE_MAX);
        ended.expect("nothing holds a pipe of a run that has ended");
        self.so_far()
    }
}

/// Returns the repository's directory.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the process of the hob that runs a machine, or ran it last.
pub(crate) fn hob_pid(machine: &Path) -> Option<rustix::process::Pid> {
    let lock = std::fs::read_to_string(machine.join("hob/lock")).ok()?;
    let pid = lock.split_whitespace().next()?.parse().ok()?;
    rustix::process::Pid::from_raw(pid)
}

/// Returns whether a process is dead. Where nobody reaps it, as in a container without an init, it
/// keeps its number.
pub(crate) fn is_dead(pid: rustix::process::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |it| it.contains(") Z "))
}

/// Returns a port that nobody listens on now: a port that is written down somewhere may be taken
/// by whoever tries an example at the same time.
pub(crate) fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU32, Ordering};
    // Below the ports of outgoing connections, one of which would take it at any moment, and
    // below those that hobs choose.
    const PORTS: std::ops::Range<u32> = 10_000..20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in PORTS {
        let number = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id() * 97;
        let port = u16::try_from(PORTS.start + number % PORTS.len() as u32).expect("a port");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("every port is taken");
}

/// Returns both ends of a terminal: the person's, and the program's.
pub(crate) fn terminal() -> (File, File) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&person).expect("a terminal");
    unlockpt(&person).expect("a terminal");
    let name = ptsname(&person, Vec::new()).expect("a name");
    let name = name.into_string().expect("a path");
    let program = File::options()
        .read(true)
        .write(true)
        .open(name)
        .expect("a terminal");
    (person.into(), program)
}

/// Waits until the condition holds, and fails where it does not in time.
#[track_caller]
pub(crate) fn eventually(what: &str, within: Duration, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Compares with a file of the repository, whole; where they differ, what came is kept for a look.
#[track_caller]
pub(crate) fn check_golden(file: &str, actual: &str) {
    let expected = std::fs::read_to_string(repository().join(file)).unwrap_or_default();
    if expected == actual {
        return;
    }
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(file.replace('/', "-"));
    std::fs::write(&kept, actual).expect("a file");
    let diff = similar::TextDiff::from_lines(expected.as_str(), actual);
    let diff = diff.unified_diff().to_string();
    panic!(
        "{file} differs; if it should: cp {} {file}\n{diff}",
        kept.display()
    );
}
