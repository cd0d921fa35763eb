//! Real processes: a lock that dies with its holder, and rows that outlive it.
//!
//! Each test starts its own binary again for the one test, with a role in the environment; the
//! parent and the child then run different halves of the same function.

use std::io::{BufRead, BufReader, Lines, Read, Write, stdin, stdout};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use gobs_model::Value;
use gobs_state::LockError;

use crate::*;

const DIRECTORY: &str = "GOBS_STATE_TEST_DIRECTORY";
const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// Returns the directory that the child half works in; nothing in the parent.
#[expect(
    clippy::disallowed_methods,
    reason = "a test binary takes no arguments but the harness's own"
)]
pub(crate) fn child_directory() -> Option<PathBuf> {
    std::env::var_os(DIRECTORY).map(PathBuf::from)
}

/// Returns the command that runs the child half of a test.
pub(crate) fn child_of(program: &Path, test: &str, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

pub(crate) fn shared_key() -> DataKey {
    DataKey::from_text(KEY).expect("a key")
}

/// A child that says on its output how far it is; killed when dropped.
struct Worker {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    fn start(test: &str, directory: &Path) -> Self {
        let program = std::env::current_exe().expect("this binary");
        let mut child = child_of(&program, test, directory)
            .spawn()
            .expect("started");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, lines }
    }

    /// Returns the rest of the next line with this mark; the test harness writes others.
    fn next(&mut self, mark: &str) -> String {
        loop {
            let line = self.lines.next().expect("the child goes on").expect("text");
            if let Some((_, rest)) = line.split_once(mark) {
                return rest.trim().to_owned();
            }
        }
    }

    /// Kills the child, and returns the further marked lines that it had written.
    fn kill(mut self, mark: &str) -> Vec<String> {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited for");
        let lines = self.lines.by_ref().map_while(Result::ok);
        lines
            .filter_map(|line| Some(line.split_once(mark)?.1.trim().to_owned()))
            .collect()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Already gone where the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a7_a_second_writer_is_told_who_the_first_is_and_a_killed_one_leaves_no_lock() {
    if let Some(directory) = child_directory() {
        let _lock = Lock::acquire(&directory.join("lock"), "apply", at(0)).expect("free");
        writeln!(stdout(), "@locked").expect("written");
        let _ = stdin().read(&mut [0]);
        return;
    }
    let project = Project::new();
    let lock = project.path("lock");
    let test =
        "processes::a7_a_second_writer_is_told_who_the_first_is_and_a_killed_one_leaves_no_lock";
    let mut holder = Worker::start(test, project.directory.path());
    holder.next("@locked");
    let error = Lock::acquire(&lock, "destroy", at(9)).expect_err("refused");
    let text = error.to_string();
    let LockError::Held {
        holder: Some(named),
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(named.pid, holder.child.id());
    assert!(!named.host.is_empty());
    assert_eq!(named.command, "apply");
    let expected = format!(
        "is locked by process {} on host {} (apply), since 2027-01-15 08:00:00 UTC: \
         wait for it to end, or end it",
        named.pid, named.host
    );
    assert!(text.ends_with(&expected), "{text}");

    holder.kill("@");
    let lock = Lock::acquire(&lock, "destroy", at(9)).expect("no stale lock");
    let path = lock.path().to_owned();
    drop(lock);
    assert_eq!(
        std::fs::read(path).expect("there"),
        b"",
        "the name goes with the lock"
    );
}

#[test]
fn a7_a_lock_that_a_killed_writers_child_still_has_is_waited_for() {
    if let Some(directory) = child_directory() {
        let lock = Lock::acquire(&directory.join("lock"), "apply", at(0)).expect("free");
        let holder = std::fs::read(lock.path()).expect("the holder's name");
        drop(lock);
        let file = std::fs::File::options()
            .append(true)
            .open(directory.join("lock"));
        let mut file = file.expect("there");
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).expect("free");
        file.write_all(&holder).expect("written");
        // As a child is between its start and that of its own program.
        let mut child = Command::new("cat").stdout(file).spawn().expect("started");
        writeln!(stdout(), "@locked").expect("written");
        let _ = child.wait();
        return;
    }
    let project = Project::new();
    let path = project.path("lock");
    let test = "processes::a7_a_lock_that_a_killed_writers_child_still_has_is_waited_for";
    let mut holder = Worker::start(test, project.directory.path());
    holder.next("@locked");
    let keeps = holder.child.stdin.take();
    holder.kill("@");
    let lock = std::thread::scope(|scope| {
        let next = scope.spawn(|| Lock::acquire(&path, "destroy", at(9)));
        while !next.is_finished() && !has_open(&path) {
            std::thread::yield_now();
        }
        drop(keeps);
        next.join().expect("no panic")
    });
    drop(lock.expect("it ended with the child"));
}

/// Returns whether this process has a file open.
fn has_open(path: &Path) -> bool {
    let open = std::fs::read_dir("/proc/self/fd").expect("this process");
    let mut files = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    files.any(|file| file == path)
}

#[test]
fn a6_what_was_acknowledged_outlives_a_killed_writer() {
    if let Some(directory) = child_directory() {
        let lock = Lock::acquire(&directory.join("lock"), "apply", at(0)).expect("free");
        let mut store =
            Store::open(&directory.join("state.db"), &shared_key(), lock).expect("a state file");
        let _ = store.begin_run("apply", at(0)).expect("a run");
        for number in 0.. {
            let name = format!("machine.m[{number}]");
            let started = start(&mut store, intent(&name));
            writeln!(stdout(), "@begun {name}").expect("written");
            let finished = done(started, vec![put(machine_row(&name, Value::from(number)))]);
            let _ = store.commit(vec![finished], Vec::new()).expect("committed");
            writeln!(stdout(), "@ended {name}").expect("written");
        }
    }
    let test = "processes::a6_what_was_acknowledged_outlives_a_killed_writer";
    for lines in [1, 2, 3, 10, 41] {
        let project = Project {
            key: shared_key(),
            ..Project::new()
        };
        let mut writer = Worker::start(test, project.directory.path());
        let mut said: Vec<_> = (0..lines).map(|_| writer.next("@")).collect();
        said.extend(writer.kill("@"));
        // The reader comes first: it must cope with the WAL that the writer left.
        let reader = project.reader();
        let snapshot = reader.snapshot().expect("readable");
        let doubts = reader.in_doubt().expect("readable");
        let is_row = |name: &str| snapshot.rows.contains_key(&address(name));
        let in_doubt = |name: &str| {
            doubts
                .iter()
                .any(|doubt| doubt.started.intent().address == address(name))
        };
        for line in &said {
            match line.split_once(' ').expect("a word and a name") {
                ("ended", name) => assert!(is_row(name) && !in_doubt(name), "{name}"),
                (_, name) => assert!(is_row(name) != in_doubt(name), "{name}"),
            }
        }
        let begun = said.iter().filter(|line| line.starts_with("begun")).count();
        let kept = snapshot.rows.len() + doubts.len();
        assert!(
            (begun..=begun + 1).contains(&kept),
            "{begun} begun, {kept} kept"
        );
        assert_eq!(
            project.store().check().expect("readable"),
            Vec::<String>::new()
        );
        assert_eq!(project.store().snapshot().expect("readable"), snapshot);
    }
}
