//! What a binding costs: latency, throughput, opening, and the memory of a hob (promise S8).
//!
//! `cargo bench -p hob`. Both hobs, both programs and this one share the host, and then all is
//! measured again between hobs that stay apart as those of two hosts do.

#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../tests/agents/support.rs"]
mod support;

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hob::protocol::Expose;
use ocapn::{Identity, TlsRpk, TlsRpkOptions};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use support::{Host, Pair, connect, echo, generation, ping};

/// Round trips whose median is told.
const ROUND_TRIPS: usize = 20_000;

/// Connections opened one after the other.
const OPENINGS: usize = 500;

/// Bytes sent one way.
const BYTES: usize = 1 << 30;

/// Streams that are open and silent.
const IDLE_STREAMS: usize = 1_000;

/// Bytes written at once.
const CHUNK: usize = 1 << 20;

/// Whether the hobs that are started stay apart, as those of two hosts do.
static APART: AtomicBool = AtomicBool::new(false);

fn apart() -> bool {
    APART.load(Ordering::Relaxed)
}

fn main() -> std::io::Result<()> {
    // Both ends of each idle stream are this process's.
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
        .block_on(async {
            let mut out = std::io::stdout();
            for (how, is_apart) in [("on one host", false), ("apart", true)] {
                APART.store(is_apart, Ordering::Relaxed);
                writeln!(out, "hobs {how}:")?;
                measure(&mut out).await?;
            }
            Ok(())
        })
}

async fn measure(out: &mut impl Write) -> io::Result<()> {
    let echo = echo().await;
    let pair = Pair::start(&echo).await;
    writeln!(out, "idle hob: {} KiB resident", resident(&pair.db))?;
    let tcp = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .to_string();
    let unix = Expose::unix(pair.app.runtime.join("bench"));
    let held = pair.bind(1, &[unix, Expose::tcp(tcp.clone())]).await;
    assert!(pair.importer.check(&generation(1)).await.answers);

    let direct = round_trip(&echo).await;
    writeln!(out, "round trip, direct: {direct:?}")?;
    for address in [&held.address, &tcp] {
        let bound = round_trip(address).await;
        let kind = address.split_once("unix:").map_or("tcp", |_| "unix");
        let added = bound.saturating_sub(direct);
        writeln!(
            out,
            "round trip, binding over {kind}: {bound:?}, adds {added:?}"
        )?;
    }
    let begun = Instant::now();
    for _ in 0..OPENINGS {
        ping(&mut connect(&held.address).await).await?;
    }
    let each = begun.elapsed() / OPENINGS as u32;
    writeln!(out, "opening and one round trip: {each:?}")?;

    let mut streams = Vec::new();
    for _ in 0..IDLE_STREAMS {
        let mut stream = connect(&held.address).await;
        ping(&mut stream).await?;
        streams.push(stream);
    }
    for (name, host) in [("exporter", &pair.db), ("importer", &pair.app)] {
        let kib = resident(host);
        writeln!(
            out,
            "{name} with {IDLE_STREAMS} idle streams: {kib} KiB resident"
        )?;
    }
    drop(streams);

    let begun = Instant::now();
    let storm = (0..IDLE_STREAMS).map(|_| {
        let address = held.address.clone();
        tokio::spawn(async move { ping(&mut connect(&address).await).await })
    });
    for one in storm.collect::<Vec<_>>() {
        one.await??;
    }
    let all = begun.elapsed();
    writeln!(
        out,
        "{IDLE_STREAMS} connections at once, each answered: {all:?}"
    )?;

    let sink = sink().await;
    let pair = Pair::start(&sink).await;
    let held = pair.bind(1, &[]).await;
    let bare = {
        let (near, far) = bare_stream().await?;
        tokio::spawn(drain(far));
        throughput(near).await?
    };
    writeln!(out, "throughput, bare TLS stream: {bare:.0} MiB/s")?;
    let bound = throughput(connect(&held.address).await).await?;
    let share = 100.0 * bound / bare;
    writeln!(
        out,
        "throughput, binding: {bound:.0} MiB/s, {share:.0} % of it"
    )?;
    Ok(())
}

/// Returns the resident memory of a machine's hob, in KiB.
fn resident(host: &Host) -> u64 {
    let pid = host.pid().as_raw_nonzero();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or_default()
}

async fn round_trip(address: &str) -> Duration {
    let mut stream = connect(address).await;
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let begun = Instant::now();
        ping(&mut stream).await.expect("the echo answers");
        times.push(begun.elapsed());
    }
    times.sort();
    times[ROUND_TRIPS / 2]
}

/// Returns MiB/s until the other end has read all and said so.
async fn throughput(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<f64> {
    let chunk = vec![7; CHUNK];
    let begun = Instant::now();
    for _ in 0..BYTES / CHUNK {
        stream.write_all(&chunk).await?;
    }
    stream.shutdown().await?;
    stream.read_u8().await?;
    Ok((BYTES >> 20) as f64 / begun.elapsed().as_secs_f64())
}

/// Reads to the end, then says so with one byte.
async fn drain(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    while stream.read(&mut buffer).await? > 0 {}
    stream.write_all(&[1]).await?;
    stream.shutdown().await
}

/// A service that drains each connection. Returns its address.
async fn sink() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("a port").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(drain(stream));
        }
    });
    address
}

/// Returns both ends of a stream without hobs.
async fn bare_stream() -> io::Result<(impl AsyncRead + AsyncWrite, impl AsyncRead + AsyncWrite)> {
    let (sender, mut incoming) = mpsc::channel(1);
    let options = TlsRpkOptions {
        stream_protocol: Some((b"bare".to_vec(), sender)),
        ..TlsRpkOptions::default()
    };
    let listen = "127.0.0.1:0".parse().expect("an address");
    let far = TlsRpk::bind(Identity::generate()?, listen, options).await?;
    let near = TlsRpk::dial_only(Identity::generate()?, TlsRpkOptions::default())?;
    let locator = ocapn::Netlayer::locator(&far);
    let dialled = near.stream_dialer().dial(&locator, b"bare").await;
    let near = dialled.map_err(std::io::Error::other)?;
    let far = incoming
        .recv()
        .await
        .ok_or(std::io::ErrorKind::BrokenPipe)?;
    near.get_ref().0.set_nodelay(true)?;
    Ok((near, far.stream))
}
