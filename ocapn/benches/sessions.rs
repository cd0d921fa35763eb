//! What sessions cost between two processes: `cargo bench -p ocapn --bench sessions`.
//!
//! The program starts itself again as the peer that is called. Words after `--` choose among
//! `trips` and `many` (handshakes, and what the idle sessions hold); a number sets how many those
//! are. Times of a busy machine tell little, so processor time is shown beside them.

#![expect(clippy::disallowed_methods, reason = "times are what it is about")]

use std::collections::VecDeque;
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write, stdin, stdout};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use ocapn::netlayer::tcp_testing::{TcpFraming, TcpTesting};
use ocapn::netlayer::tls_rpk::{TlsRpk, TlsRpkOptions};
use ocapn::{
    Answer, Identity, Netlayer, Object, Passable, Peer, PeerId, Reference, Sturdyref,
    SturdyrefTable, Swissnum, Turn,
};

type Result<T = (), E = Box<dyn Error>> = std::result::Result<T, E>;

/// What makes the program the peer that is called; its transport and how many peers it is follow.
const SERVE: &str = "serve-as";
const TRANSPORTS: [&str; 2] = ["tcp-testing-only", "tls-rpk"];

/// In place of a transport: bytes that a thread sends back, which says how much of one trip is the
/// host's. A processor that has nothing else to do is slow to wake.
const BARE: &str = "no session";

/// About as many bytes as a call of `trips` takes.
const BARE_BYTES: usize = 100;

/// Calls of one measurement, and how many are under way at a time.
const PIPELINED: usize = 300_000;
const WINDOW: usize = 1_000;

/// Measurements of which the best and the median are shown.
const ROUNDS: usize = 5;

/// Calls made one after the other.
const ONE_BY_ONE: usize = 20_000;

/// Sessions that are set up and stand idle, and how many are set up at a time.
const IDLE: usize = 2_000;
const SETUPS: usize = 32;

/// The peers here that share those sessions.
const DIALLERS: usize = 40;

const SWISSNUM: &[u8] = b"echo";

fn main() -> Result {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if let [mode, transport, peers] = arguments.as_slice()
        && mode == SERVE
    {
        return runtime.block_on(serve(transport, peers.parse()?));
    }
    let wanted = |name: &str| {
        let mut names = arguments.iter().filter(|word| !word.starts_with('-'));
        names.clone().next().is_none() || names.any(|word| word == name)
    };
    if wanted("trips") {
        bare_trips()?;
    }
    for transport in TRANSPORTS {
        if wanted("trips") {
            runtime.block_on(trips(transport))?;
        }
    }
    if wanted("many") {
        let count = arguments.iter().find_map(|word| word.parse().ok());
        runtime.block_on(many(count.unwrap_or(IDLE)))?;
    }
    Ok(())
}

/// Answers what it is told.
struct Echo;

impl Object for Echo {
    fn deliver(&self, _: &Turn, args: Vec<Passable>) -> Answer {
        Answer::Now(Ok(args.into_iter().nth(1).unwrap_or(Passable::Undefined)))
    }
}

struct Table(std::sync::OnceLock<Reference>);

impl SturdyrefTable for Table {
    fn fetch(&self, swissnum: Bytes, _: &PeerId) -> BoxFuture<'static, Option<Reference>> {
        let found = self.0.get().filter(|_| swissnum == SWISSNUM).cloned();
        async move { found }.boxed()
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

async fn spawn(transport: &str, listen: bool, table: Arc<Table>) -> Result<Peer> {
    let identity = Identity::generate()?;
    let options = TlsRpkOptions::default();
    Ok(match (transport, listen) {
        ("tls-rpk", true) => peer(TlsRpk::bind(identity, loopback(), options).await?, table),
        ("tls-rpk", false) => peer(TlsRpk::dial_only(identity, options)?, table),
        _ => {
            let name = identity.designator();
            peer(
                TcpTesting::bind(name, loopback(), TcpFraming::Unframed).await?,
                table,
            )
        }
    })
}

fn peer(netlayer: impl Netlayer, table: Arc<Table>) -> Peer {
    Peer::builder().netlayer(netlayer).sturdyrefs(table).spawn()
}

/// Sends back what comes until the connection ends.
fn serve_bare() -> Result {
    let listener = TcpListener::bind(loopback())?;
    writeln!(stdout(), "{}", listener.local_addr()?)?;
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut bytes = [0; BARE_BYTES];
    while stream.read_exact(&mut bytes).is_ok() {
        stream.write_all(&bytes)?;
    }
    Ok(())
}

fn bare_trips() -> Result {
    let mut child = Command::new(std::env::current_exe()?)
        .args([SERVE, BARE, "1"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut address = String::new();
    BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut address)?;
    let mut stream = TcpStream::connect(address.trim())?;
    stream.set_nodelay(true)?;
    let mut bytes = [0; BARE_BYTES];
    let mut times = Vec::with_capacity(ONE_BY_ONE);
    for _ in 0..ONE_BY_ONE {
        let start = Instant::now();
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
        times.push(start.elapsed());
    }
    drop(stream);
    child.wait()?;
    report_times(BARE, times)
}

/// Runs the peers that are called until nobody wants them any more.
async fn serve(transport: &str, count: usize) -> Result {
    if transport == BARE {
        return serve_bare();
    }
    let mut peers = Vec::new();
    for _ in 0..count {
        let table = Arc::new(Table(std::sync::OnceLock::new()));
        let peer = spawn(transport, true, Arc::clone(&table)).await?;
        table.0.get_or_init(|| peer.export(Echo));
        writeln!(stdout(), "{}", peer.locator())?;
        peers.push(peer);
    }
    let asked = tokio::task::spawn_blocking(|| -> std::io::Result<()> {
        let mut line = String::new();
        while stdin().lock().read_line(&mut line)? > 0 {
            let Usage { memory, processor } = usage()?;
            writeln!(stdout(), "{memory} {}", processor.as_micros())?;
        }
        Ok(())
    });
    asked.await??;
    Ok(())
}

/// What a process has used.
#[derive(Clone, Copy)]
struct Usage {
    /// Bytes that stand in memory.
    memory: u64,
    processor: Duration,
}

fn usage() -> std::io::Result<Usage> {
    let mut text = String::new();
    std::fs::File::open("/proc/self/stat")?.read_to_string(&mut text)?;
    let fields: Vec<u64> = text
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    let field = |n: usize| fields.get(n - 3).copied().unwrap_or(0);
    Ok(Usage {
        // Fields 14, 15 and 24 of proc(5): ticks of 10 ms, and pages of 4 KiB.
        processor: Duration::from_millis((field(14) + field(15)) * 10),
        memory: field(24) * 4096,
    })
}

/// The other process.
struct Other {
    child: Child,
    ask: Option<ChildStdin>,
    told: BufReader<ChildStdout>,
    /// Where its objects are.
    sturdyrefs: Vec<Sturdyref>,
}

impl Other {
    fn start(transport: &str, peers: usize) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([SERVE, transport, &peers.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut told = BufReader::new(child.stdout.take().ok_or("no output")?);
        let mut sturdyrefs = Vec::new();
        for _ in 0..peers {
            let mut line = String::new();
            told.read_line(&mut line)?;
            sturdyrefs.push(Sturdyref {
                peer: line.trim().parse()?,
                swissnum: Swissnum::new(SWISSNUM),
            });
        }
        Ok(Self {
            ask: child.stdin.take(),
            child,
            told,
            sturdyrefs,
        })
    }

    fn usage(&mut self) -> Result<Usage> {
        writeln!(self.ask.as_mut().ok_or("no input")?)?;
        let mut line = String::new();
        self.told.read_line(&mut line)?;
        let (memory, processor) = line.trim().split_once(' ').ok_or("no usage")?;
        Ok(Usage {
            memory: memory.parse()?,
            processor: Duration::from_micros(processor.parse()?),
        })
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.ask.take());
        // It ends with its input.
        let _ = self.child.wait();
    }
}

fn call(echo: &Reference, n: usize) -> ocapn::Promise {
    echo.call("ping", [Passable::from(n as u64)])
}

async fn trips(transport: &str) -> Result {
    let mut other = Other::start(transport, 1)?;
    let table = Arc::new(Table(std::sync::OnceLock::new()));
    let peer = spawn(transport, false, table).await?;
    let echo = peer.enliven(&other.sturdyrefs[0]).await?;

    let mut rates = Vec::new();
    let (ours, theirs) = (usage()?, other.usage()?);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut under_way = VecDeque::with_capacity(WINDOW);
        for n in 0..PIPELINED {
            if under_way.len() == WINDOW
                && let Some(first) = under_way.pop_front()
            {
                first.await?;
            }
            under_way.push_back(call(&echo, n));
        }
        for rest in under_way {
            rest.await?;
        }
        rates.push(PIPELINED as f64 / start.elapsed().as_secs_f64());
    }
    let per_trip = |from: Usage, to: Usage| {
        (to.processor - from.processor).as_secs_f64() * 1e6 / (ROUNDS * PIPELINED) as f64
    };
    let (cost, cost_there) = (per_trip(ours, usage()?), per_trip(theirs, other.usage()?));
    rates.sort_by(f64::total_cmp);
    report(transport, "pipelined, median", rates[ROUNDS / 2], "/s")?;
    report(transport, "pipelined, best", rates[ROUNDS - 1], "/s")?;
    report(transport, "processor, caller", cost, "us")?;
    report(transport, "processor, callee", cost_there, "us")?;

    let mut times = Vec::with_capacity(ONE_BY_ONE);
    for n in 0..ONE_BY_ONE {
        let start = Instant::now();
        call(&echo, n).await?;
        times.push(start.elapsed());
    }
    peer.close().await;
    report_times(transport, times)
}

fn report_times(transport: &str, mut times: Vec<Duration>) -> Result {
    times.sort();
    let at = |share: usize| times[times.len() * share / 100].as_nanos() as f64 / 1e3;
    report(transport, "one by one, median", at(50), "us")?;
    report(transport, "one by one, 10 %", at(10), "us")?;
    report(transport, "one by one, 99 %", at(99), "us")
}

/// Sets up many sessions of `tls-rpk`, between some peers here and many there.
async fn many(count: usize) -> Result {
    let transport = TRANSPORTS[1];
    let mut other = Other::start(transport, count.div_ceil(DIALLERS))?;
    let mut diallers = Vec::new();
    for _ in 0..DIALLERS {
        let table = Arc::new(Table(std::sync::OnceLock::new()));
        diallers.push(spawn(transport, false, table).await?);
    }
    let (ours, theirs) = (usage()?, other.usage()?);
    let start = Instant::now();
    let mut setups = tokio::task::JoinSet::new();
    let pairs = other
        .sturdyrefs
        .iter()
        .flat_map(|to| diallers.iter().map(move |from| (from, to)));
    for (from, to) in pairs.take(count) {
        if setups.len() == SETUPS
            && let Some(done) = setups.join_next().await
        {
            done??;
        }
        let (from, to) = (from.clone(), to.peer.clone());
        setups.spawn(async move { from.connect(&to).await.map(|_| ()) });
    }
    while let Some(done) = setups.join_next().await {
        done??;
    }
    let took = start.elapsed();
    let (ours_up, theirs_up) = (usage()?, other.usage()?);
    let per_core =
        |from: Usage, to: Usage| count as f64 / (to.processor - from.processor).as_secs_f64();
    report(
        transport,
        "handshakes",
        count as f64 / took.as_secs_f64(),
        "/s",
    )?;
    let (dialler, listener) = (per_core(ours, ours_up), per_core(theirs, theirs_up));
    report(transport, "handshakes, dialler", dialler, "/s of processor")?;
    report(
        transport,
        "handshakes, listener",
        listener,
        "/s of processor",
    )?;
    let both = 1.0 / (1.0 / dialler + 1.0 / listener);
    report(transport, "handshakes, both", both, "/s of processor")?;

    // What was needed for the handshakes only is given back in the seconds after.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let (ours_idle, theirs_idle) = (usage()?, other.usage()?);
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let ends = [(ours, ours_idle), (theirs, theirs_idle)];
    for (end, (before, after)) in ["diallers", "listener"].into_iter().zip(ends) {
        let figure = mebibytes(after.memory - before.memory);
        report(
            transport,
            &format!("{count} idle, {end}"),
            figure,
            "MiB more",
        )?;
    }
    let all = mebibytes(ours_idle.memory + theirs_idle.memory);
    report(transport, "both processes", all, "MiB in all")?;
    Ok(())
}

fn report(transport: &str, what: &str, figure: f64, unit: &str) -> Result {
    Ok(writeln!(
        stdout(),
        "{transport:<18} {what:<22} {figure:>12.1} {unit}"
    )?)
}
