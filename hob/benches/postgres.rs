//! What a binding of a PostgreSQL database costs, with pgbench.
//!
//! `cargo bench -p hob --bench postgres`. The server, both hobs and pgbench share the host, so the
//! importer lends its programs' sockets; what hobs of two hosts do is told as `apart`. The server
//! lets roles in on its socket, as `docs/postgres.md` has it, but where it says otherwise. With
//! `chrt -r 5` before the command nothing else keeps the relay waiting, which is better than what
//! an ordinary calm host shows: 75 % of the direct throughput were 57 % there.

#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../tests/agents/postgres/bound.rs"]
mod bound;
#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../tests/agents/postgres/cluster.rs"]
mod cluster;
#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../tests/agents/support.rs"]
mod support;

use std::io::{self, Write};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use hob::protocol::{Attenuate, Generation, Grant};

use bound::Bound;
use cluster::{Cluster, as_superuser, programs};
use support::Host;

/// How long pgbench runs, and with how many clients.
const SECONDS: &str = "5";
const CLIENTS: &str = "10";

/// How often each way is run, in turn.
const ROUNDS: usize = 2;

/// Connections that pgbench opens one after the other.
const OPENINGS: &str = "300";

/// Bindings to one server.
const BINDINGS: u64 = 1_000;

/// How many of them are asked for at one time, as `apply` does.
const PARALLEL: usize = 10;

/// Sessions that are open and silent.
const IDLE_SESSIONS: usize = 1_000;

/// Whether the hobs that are started stay apart, as those of two hosts do.
static APART: AtomicBool = AtomicBool::new(false);

fn apart() -> bool {
    APART.load(Ordering::Relaxed)
}

fn main() -> io::Result<()> {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let raised = rustix::process::Rlimit {
        current: files,
        maximum: files,
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised)?;
    support::LOG.get_or_init(|| "info");
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(run())
}

async fn run() -> io::Result<()> {
    let mut out = io::stdout();
    let cluster = Cluster::start(&["max_connections=1200", "log_statement=none"]);
    cluster.sql("postgres", "create database orders");
    let (socket, port) = cluster.place();
    let direct = |mut pgbench: Command| {
        pgbench
            .arg("-h")
            .arg(&socket)
            .args(["-p", &port.to_string(), "orders"]);
        pgbench
    };
    let superusers = || as_superuser(programs().join("pgbench"));
    let own = || Command::new(programs().join("pgbench"));
    let mut fill = superusers();
    fill.args(["-i", "-q"]);
    report(direct(fill))?;

    let mut last = None;
    for (way, by_socket, is_apart) in [
        ("binding, server as Debian has it", false, false),
        ("binding", true, false),
        ("binding, apart", true, true),
    ] {
        cluster.admit_on_socket(by_socket);
        APART.store(is_apart, Ordering::Relaxed);
        let bound = Bound::offer_of(cluster.service("orders"), "orders").await;
        bound.bind(1, Attenuate::default()).await;
        let through = |mut pgbench: Command| {
            pgbench.arg("-h").arg(&bound.directory).arg("orders");
            pgbench
        };
        let place: [(_, &dyn Fn(Command) -> Command); 2] = [("direct", &direct), (way, &through)];
        let client = |name| {
            if name == "direct" {
                superusers()
            } else {
                own()
            }
        };
        for (name, place) in place.iter().cycle().take(2 * ROUNDS) {
            let mut pgbench = client(*name);
            pgbench.args(["-n", "-S", "-c", CLIENTS, "-j", "2", "-T", SECONDS, "-l"]);
            let log = tempfile::tempdir()?;
            std::fs::set_permissions(
                log.path(),
                std::os::unix::fs::PermissionsExt::from_mode(0o777),
            )?;
            pgbench.current_dir(log.path());
            let said = report(place(pgbench))?;
            let (tps, median) = (figure(&said, "tps = "), median(log.path())?);
            writeln!(
                out,
                "select-only, {CLIENTS} clients, {name}: {tps:.0} tps, median {median:?}"
            )?;
        }
        for (name, place) in place {
            let mut pgbench = client(name);
            pgbench.args(["-n", "-S", "-C", "-c", "1", "-t", OPENINGS]);
            let took = figure(&report(place(pgbench))?, "average connection time = ");
            writeln!(out, "opening a connection, {name}: {took} ms")?;
        }

        let mut sessions = Vec::new();
        for _ in 0..IDLE_SESSIONS {
            sessions.push(bound.connect().await.map_err(io::Error::other)?);
        }
        for (name, host) in [("exporter", &bound.pair.db), ("importer", &bound.pair.app)] {
            let kib = resident(host)?;
            writeln!(
                out,
                "{way}: {name} with {IDLE_SESSIONS} idle sessions: {kib} KiB resident"
            )?;
        }
        last = Some(bound);
    }
    let bound = last.ok_or(io::ErrorKind::NotFound)?;

    let begun = Instant::now();
    let granted = stream::iter(1..=BINDINGS).map(|number| {
        let asked = Grant {
            binding: format!("binding.app[{number}]"),
            ..bound.asked(1, Attenuate::default())
        };
        let exporter = bound.pair.exporter.clone();
        async move { exporter.grant(&asked).await.map(drop) }
    });
    let granted = granted.buffer_unordered(PARALLEL).try_collect::<()>().await;
    granted.map_err(|error| io::Error::other(error.to_string()))?;
    writeln!(out, "{BINDINGS} bindings granted: {:?}", begun.elapsed())?;
    let begun = Instant::now();
    let revoked = stream::iter(1..=BINDINGS).map(|number| {
        let binding = format!("binding.app[{number}]");
        let exporter = bound.pair.exporter.clone();
        async move {
            let generation = Generation {
                binding,
                generation: 1,
            };
            exporter.revoke(&generation).await
        }
    });
    let revoked = revoked.buffer_unordered(PARALLEL).try_collect::<()>().await;
    revoked.map_err(|error| io::Error::other(error.to_string()))?;
    writeln!(out, "{BINDINGS} bindings revoked: {:?}", begun.elapsed())
}

/// Runs a command; returns what it says.
fn report(mut command: Command) -> io::Result<String> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns the number after these words.
fn figure(said: &str, words: &str) -> f64 {
    let rest = said.split(words).nth(1).unwrap_or_default();
    let number = rest.split_whitespace().next().unwrap_or_default();
    number.parse().unwrap_or(f64::NAN)
}

/// Returns the median of the latencies that pgbench has logged, in microseconds each.
fn median(directory: &std::path::Path) -> io::Result<Duration> {
    let mut all = Vec::new();
    for file in std::fs::read_dir(directory)? {
        let text = std::fs::read_to_string(file?.path())?;
        let latency = |line: &str| line.split(' ').nth(2)?.parse::<u64>().ok();
        all.extend(text.lines().filter_map(latency));
    }
    all.sort_unstable();
    Ok(Duration::from_micros(
        all.get(all.len() / 2).copied().unwrap_or_default(),
    ))
}

/// Returns how much memory a hob has, in KiB.
fn resident(host: &Host) -> io::Result<u64> {
    let status = format!("/proc/{}/status", host.pid().as_raw_nonzero());
    let status = std::fs::read_to_string(status)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| io::Error::other("no VmRSS"))
}
