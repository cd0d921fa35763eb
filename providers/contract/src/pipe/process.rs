//! The plugin's process: its lines, its last words, its end.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::wire::LINE_BYTES_MAX;

/// How many requests may wait for a plugin to read them: more than any parallelism allows.
const QUEUE_MAX: usize = 1_024;

/// How long a process may take to end by itself once its input or output has ended: the time of
/// an interpreter's shutdown.
const END_WAIT: Duration = Duration::from_secs(1);

/// How often its end is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The longest line of stderr that is logged whole.
const STDERR_BYTES_MAX: u64 = 8 << 10;

/// How many lines of stderr are logged: enough for every trace of a long run, and a disk that
/// is not filled.
const STDERR_LINES_MAX: usize = 10_000;

/// How much of its last line of stderr is repeated in an error.
const LAST_WORDS_CHARS_MAX: usize = 300;

/// Why a line was not queued.
pub(super) enum NotSent {
    /// The plugin reads too slowly.
    Full,
    /// It has been told that no more comes.
    Closed,
}

/// What reads the lines of a plugin.
pub(super) trait Listener: Send + Sync + 'static {
    /// Takes a line without its end.
    ///
    /// # Errors
    /// Says what is wrong with it; the plugin is ended for it.
    fn line(&self, line: &[u8]) -> Result<(), String>;

    /// Is told once that no more lines come, and why.
    fn ended(&self, why: &str);
}

/// A running plugin. It ends with this value, by itself or killed.
pub(super) struct Process {
    child: Mutex<Child>,
    lines: Mutex<Option<SyncSender<String>>>,
    last_words: Mutex<String>,
    /// Disconnected at the end of stderr.
    stderr: Mutex<Receiver<()>>,
}

impl Process {
    /// Starts a plugin. It is in a process group of its own, so that a Ctrl-C for gobs does not
    /// end it in the midst of what gobs lets finish.
    pub(super) fn start(name: &str, mut command: Command) -> std::io::Result<Arc<Self>> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn()?;
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
        let (sender, receiver) = sync_channel(QUEUE_MAX);
        let (open, stderr_open) = sync_channel(1);
        let process = Arc::new(Self {
            child: Mutex::new(child),
            lines: Mutex::new(Some(sender)),
            last_words: Mutex::default(),
            stderr: Mutex::new(stderr_open),
        });
        if let Some(stdin) = stdin {
            thread::spawn(move || write_lines(stdin, &receiver));
        }
        if let Some(stderr) = stderr {
            let (process, name) = (process.clone(), name.to_owned());
            thread::spawn(move || {
                process.log(stderr, &name);
                drop(open);
            });
        }
        Ok(process)
    }

    /// Reads the plugin's lines until it ends, on a thread.
    pub(super) fn listen(self: &Arc<Self>, listener: Arc<dyn Listener>) {
        let stdout = lock(&self.child).stdout.take();
        let process = self.clone();
        thread::spawn(move || {
            let why = match stdout {
                Some(stdout) => read_lines(stdout, &*listener),
                None => Ended::Output,
            };
            let why = match why {
                Ended::Output => process.how_it_ended(),
                Ended::Wrong(why) => {
                    process.kill();
                    why
                }
            };
            listener.ended(&why);
        });
    }

    /// Queues a line.
    pub(super) fn send(&self, line: String) -> Result<(), NotSent> {
        let lines = lock(&self.lines);
        let Some(lines) = &*lines else {
            return Err(NotSent::Closed);
        };
        lines.try_send(line).map_err(|error| match error {
            TrySendError::Full(_) => NotSent::Full,
            TrySendError::Disconnected(_) => NotSent::Closed,
        })
    }

    /// Returns the last line of stderr, shortened, of a plugin that has ended.
    pub(super) fn last_words(&self) -> String {
        // What it said last may not be read yet.
        let _ = lock(&self.stderr).recv_timeout(END_WAIT);
        lock(&self.last_words).clone()
    }

    /// Ends the process: asks by the end of its input, then kills it and its group.
    pub(super) fn end(&self) {
        lock(&self.lines).take();
        if self.wait().is_none() {
            self.kill();
        }
    }

    fn kill(&self) {
        let mut child = lock(&self.child);
        // Not yet waited for, so the number is still its own.
        if let Ok(None) = child.try_wait()
            && let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
        {
            // It fails only for what has ended in this moment.
            let _ = kill_process_group(pid, Signal::KILL);
            let _ = child.wait();
        }
    }

    fn wait(&self) -> Option<std::process::ExitStatus> {
        let deadline = Instant::now() + END_WAIT;
        loop {
            if let Ok(Some(status)) = lock(&self.child).try_wait() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    fn how_it_ended(&self) -> String {
        match self.wait() {
            Some(status) => format!("it ended ({status})"),
            None => {
                self.kill();
                "it closed its output".into()
            }
        }
    }

    fn log(&self, stderr: ChildStderr, name: &str) {
        let mut stderr = BufReader::new(stderr);
        let mut line = Vec::new();
        for count in 1.. {
            line.clear();
            let read = stderr
                .by_ref()
                .take(STDERR_BYTES_MAX)
                .read_until(b'\n', &mut line);
            if !matches!(read, Ok(1..)) {
                return;
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end();
            if count <= STDERR_LINES_MAX {
                tracing::info!(provider = name, "{text}");
            } else if count == STDERR_LINES_MAX + 1 {
                tracing::warn!(provider = name, "no more of its stderr is logged");
            }
            if !text.is_empty() {
                *lock(&self.last_words) = text.chars().take(LAST_WORDS_CHARS_MAX).collect();
            }
        }
    }
}

fn write_lines(mut stdin: ChildStdin, lines: &Receiver<String>) {
    for mut line in lines {
        line.push('\n');
        // Who does not read any more ends, or is found by a deadline.
        if stdin.write_all(line.as_bytes()).is_err() {
            return;
        }
    }
}

enum Ended {
    Output,
    Wrong(String),
}

fn read_lines(stdout: ChildStdout, listener: &dyn Listener) -> Ended {
    let mut stdout = BufReader::new(stdout);
    let mut line = Vec::new();
    loop {
        line.clear();
        line.shrink_to(LINE_BYTES_MAX / 256);
        let mut limited = stdout.by_ref().take(LINE_BYTES_MAX as u64);
        match limited.read_until(b'\n', &mut line) {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Ended::Output,
        }
        if line.pop_if(|last| *last == b'\n').is_none() {
            return match line.len() < LINE_BYTES_MAX {
                true => Ended::Output,
                false => Ended::Wrong(format!(
                    "it sent a line of more than {} MiB",
                    LINE_BYTES_MAX >> 20
                )),
            };
        }
        if let Err(why) = listener.line(&line) {
            return Ended::Wrong(why);
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
