//! Times whole runs of the real program; prints figures, asserts none.
//!
//! `cargo bench --bench run` (all), or with a name: `cargo bench --bench run -- scale`.
//!
//! | name | what is timed |
//! |---|---|
//! | `scale` | 10,000 simulated machines and 20,000 bindings: create, plan without changes, destroy |
//! | `hobs` | 100 real hobs, enrolled and bound in one apply, and destroyed |
//! | `agent` | one idle hob: its memory |

#![expect(clippy::print_stdout, reason = "figures are what a benchmark is for")]

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|it| !it.starts_with('-'))
        .collect();
    let chosen = |name: &str| wanted.is_empty() || wanted.iter().any(|it| it == name);
    if chosen("scale") {
        scale();
    }
    if chosen("hobs") {
        hobs();
    }
    if chosen("agent") {
        agent();
    }
}

fn scale() {
    let project = Project::new(
        "provider \"dummy\" { simulated = true }
         machine \"db\" {
           provider = dummy
           count    = 5000
           service \"sql\" { tcp = \"127.0.0.1:5432\" }
         }
         machine \"app\" {
           provider = dummy
           count    = 5000
         }
         binding \"db\" {
           count = 20000
           from  = machine.db[count.index % 5000].service.sql
           to    = machine.app[count.index % 5000]
           as    = \"db${floor(count.index / 5000)}\"
         }",
    );
    project.time(
        "scale: create-apply of 10,000 machines, 20,000 bindings",
        APPLY,
    );
    for _ in 0..5 {
        project.time(
            "scale: plan without changes",
            &["plan", "--detailed-exitcode"],
        );
    }
    project.time("scale: destroy", DESTROY);
    let project = Project::new(
        "provider \"dummy\" { simulated = true }
         machine \"one\" {
           provider = dummy
           count    = 10000
         }",
    );
    project.time("scale: create-apply of 10,000 machines alone", APPLY);
    project.time("scale: destroy of them", DESTROY);
}

fn hobs() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let project = Project::new(&format!(
        "machine \"db\" {{
           provider = dummy
           service \"any\" {{ tcp = \"127.0.0.1:{port}\" }}
         }}
         machine \"app\" {{
           provider = dummy
           count    = 99
         }}
         binding \"any\" {{
           count = 99
           from  = machine.db.service.any
           to    = machine.app[count.index]
         }}"
    ));
    project.time("hobs: 100 enrolled, 99 bound", APPLY);
    project.time(
        "hobs: plan without changes",
        &["plan", "--detailed-exitcode"],
    );
    project.time("hobs: destroy", DESTROY);
    drop(listener);
}

fn agent() {
    let project = Project::new("machine \"one\" { provider = dummy }");
    project.time("agent: one hob enrolled", APPLY);
    for machine in std::fs::read_dir(project.0.join(".gobs/dummy")).expect("machines") {
        let lock = machine.expect("an entry").path().join("hob/lock");
        let Ok(lock) = std::fs::read_to_string(lock) else {
            continue;
        };
        let pid = lock
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        for line in status
            .lines()
            .filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"))
        {
            println!("agent: idle {line}");
        }
    }
    project.time("agent: destroy", DESTROY);
}

const APPLY: &[&str] = &["apply", "--auto-approve"];
const DESTROY: &[&str] = &["destroy", "--auto-approve"];

/// A project in a directory of its own.
struct Project(PathBuf);

impl Project {
    fn new(configuration: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("gobs-bench-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).expect("a directory");
        std::fs::write(directory.join("main.gobs.hcl"), configuration).expect("a file");
        Self(directory)
    }

    /// Runs the program and prints how long it took, and its largest memory.
    fn time(&self, what: &str, args: &[&str]) {
        let begin = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_gobs"))
            .args(args)
            .current_dir(&self.0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the program starts");
        let mut peak_kib = 0;
        let status = loop {
            peak_kib = peak(child.id()).unwrap_or(0).max(peak_kib);
            if let Some(status) = child.try_wait().expect("a child") {
                break status;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let took = begin.elapsed();
        let end = match (status.code(), status.signal()) {
            (Some(0), _) => String::new(),
            (code, signal) => format!("   FAILED: code {code:?}, signal {signal:?}"),
        };
        println!(
            "{what}: {:.3} s, {} MiB at most{end}",
            took.as_secs_f64(),
            peak_kib / 1024
        );
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Returns the largest resident memory that a process has had, in KiB.
fn peak(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"));
    let status = status.ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
