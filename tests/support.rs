//! What tests of the real program share: a project in a directory of its own, and runs in it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
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
}

impl Project {
    /// Returns a project without any file.
    pub(crate) fn empty() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("gobs-test-")
            .tempdir()
            .expect("a temporary directory");
        Self { directory }
    }

    /// Returns the project's directory.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
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
    pub(crate) fn of(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the program starts");
        let stdout = read(child.stdout.take());
        let stderr = read(child.stderr.take());
        let code = wait(&mut child);
        let text = |pipe: mpsc::Receiver<Vec<u8>>| {
            let bytes = pipe.recv_timeout(PIPE_MAX);
            let bytes = bytes.expect("nothing holds a pipe of a run that has ended");
            String::from_utf8(bytes).expect("output is UTF-8")
        };
        Self {
            code,
            stdout: text(stdout),
            stderr: text(stderr),
        }
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

/// Returns the repository's directory.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
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

fn read(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    let mut pipe = pipe.expect("a pipe");
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is worth seeing.
        let _ = pipe.read_to_end(&mut bytes);
        let _ = send.send(bytes);
    });
    receive
}

#[track_caller]
fn wait(child: &mut Child) -> Option<i32> {
    let deadline = Instant::now() + RUN_MAX;
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status.code();
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            panic!("the run did not end within {RUN_MAX:?}");
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
