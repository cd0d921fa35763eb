//! Hobs of one host, the importer's of which lends its programs' sockets; and strangers there.

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use hob::protocol::{
    Attenuate, EARLY_BYTES_MAX, Expose, Granted, NEAR_VERSION, Near, Opened, PROOF_SIZE,
    StreamReply, method,
};
use ocapn::Reference;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::postgres::cluster::free_port;
use crate::support::{
    Host, PATIENCE, Pair, connect, echo, ends, eventually, exchange, generation, grant, mirror,
    pattern, ping, stranger,
};

/// Connections of a crowd of strangers: more than one user may have waiting.
const CROWD: usize = 300;

/// What an exporter's log says of each socket that it has taken over.
const TAKEN_OVER: &str = "a program's socket is taken over";

/// Returns how many sockets an exporter has taken over.
fn taken_over(exporter: &Host) -> usize {
    exporter.log().matches(TAKEN_OVER).count()
}

/// Waits until both ends count this many streams.
async fn count(pair: &Pair, streams: u64) {
    eventually("the streams are counted", async || {
        pair.exporter.status().await.grants[0].streams == streams
            && pair.importer.status().await.bindings[0].streams == streams
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_of_programs_are_lent_and_those_of_tcp_are_not() {
    let (orders, _) = mirror().await;
    let pair = Pair::start(&orders).await;
    let port = format!("127.0.0.1:{}", free_port());
    let unix = Expose::unix(pair.app.runtime.join("own.sock"));
    let held = pair.bind(1, &[unix, Expose::tcp(port.clone())]).await;
    let sent = pattern(3 << 20, 1);
    for lent in 1..=3 {
        exchange(connect(&held.address).await, &sent).await;
        assert_eq!(taken_over(&pair.db), lent);
    }
    exchange(connect(&port).await, &sent).await;
    assert_eq!(taken_over(&pair.db), 3);
    count(&pair, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_counted_and_limited() {
    let orders = echo().await;
    let pair = Pair::start(&orders).await;
    let attenuate = Attenuate {
        connections_max: Some(2),
        ..Attenuate::default()
    };
    let held = pair.bind_narrowed(1, &[], attenuate).await;
    let mut open = Vec::new();
    for streams in 1..=2 {
        let mut stream = connect(&held.address).await;
        ping(&mut *stream).await.unwrap();
        open.push(stream);
        count(&pair, streams).await;
    }
    assert!(ends(&mut *connect(&held.address).await).await);
    assert_eq!(taken_over(&pair.db), 2);
    drop(open);
    count(&pair, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_either_hob_ends_the_stream() {
    let orders = echo().await;
    let mut pair = Pair::start(&orders).await;
    let held = pair.bind(1, &[]).await;
    let open = async || {
        let mut stream = connect(&held.address).await;
        ping(&mut *stream).await.unwrap();
        stream
    };
    let mut stream = open().await;
    assert_eq!(taken_over(&pair.db), 1);
    pair.db.kill();
    assert!(timeout(PATIENCE, ends(&mut *stream)).await.unwrap());
    // One that waits for the exporter to come back has its socket lent then.
    let mut waiting = connect(&held.address).await;
    pair.db.start_again();
    ping(&mut *waiting).await.unwrap();
    assert_eq!(taken_over(&pair.db), 2);

    pair.app.kill();
    assert!(timeout(PATIENCE, ends(&mut *waiting)).await.unwrap());
    pair.exporter = pair.boss.client("machine.db").await;
    eventually("the exporter has let it go", async || {
        pair.exporter.status().await.grants[0].streams == 0
    })
    .await;
    pair.app.start_again();
    let path = held.address.strip_prefix("unix:").unwrap();
    eventually("listening again", async || {
        std::os::unix::net::UnixStream::connect(path).is_ok()
    })
    .await;
    open().await;
    assert!(taken_over(&pair.db) > 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn either_hob_ends_a_stream_while_the_other_one_hangs() {
    let orders = echo().await;
    let pair = Pair::start(&orders).await;
    let held = pair.bind(1, &[]).await;
    let mut stream = connect(&held.address).await;
    ping(&mut *stream).await.unwrap();
    pair.app.signal(Signal::STOP);
    // The bytes do not pass through it.
    ping(&mut *stream).await.unwrap();
    pair.exporter.revoke(&generation(1)).await.unwrap();
    assert!(timeout(PATIENCE, ends(&mut *stream)).await.unwrap());
    pair.app.signal(Signal::CONT);

    pair.bind(2, &[]).await;
    let mut stream = connect(&held.address).await;
    ping(&mut *stream).await.unwrap();
    assert_eq!(taken_over(&pair.db), 2);
    pair.db.signal(Signal::STOP);
    timeout(PATIENCE, pair.importer.unregister(&generation(2)))
        .await
        .unwrap();
    assert!(timeout(PATIENCE, ends(&mut *stream)).await.unwrap());
    pair.db.signal(Signal::CONT);
    eventually("the exporter has let it go", async || {
        pair.exporter.status().await.grants[0].streams == 0
    })
    .await;
}

/// A grant of the test's own, and how its streams are asked for.
struct Own {
    live: Reference,
}

impl Own {
    async fn of(granted: &Granted, receiver: &ocapn::Peer) -> Self {
        let live = receiver.enliven(&granted.sturdyref).await.unwrap();
        Self { live }
    }

    async fn open(&self) -> (Opened, Near) {
        let opened = self.live.call(method::OPEN, []).await.unwrap();
        let opened = Opened::from_passable(&opened).unwrap();
        let near = opened.near.clone().expect("it is on this host");
        (opened, near)
    }

    /// Goes as far as the proof.
    async fn proven(&self) -> UnixStream {
        let (opened, near) = self.open().await;
        let mut control = reach(&near).await;
        let hello = [&[NEAR_VERSION][..], &opened.ticket].concat();
        control.write_all(&hello).await.unwrap();
        let mut proof = [0; PROOF_SIZE];
        control.read_exact(&mut proof).await.unwrap();
        assert_eq!(proof, near.proof);
        control
    }
}

async fn reach(near: &Near) -> UnixStream {
    let name = data_encoding::HEXLOWER.encode(&near.name);
    let path = std::ffi::OsString::from_vec(format!("\0gobs-{name}").into_bytes());
    UnixStream::connect(PathBuf::from(path)).await.unwrap()
}

/// Sends bytes with files.
fn send(control: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(files)));
    }
    let sent = sendmsg(
        control,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    );
    assert_eq!(sent.unwrap(), bytes.len());
}

/// Returns what is said before the end.
async fn answer(control: &mut UnixStream) -> Vec<u8> {
    let mut said = Vec::new();
    // A connection that is closed while something of ours is unread ends with an error.
    let _ = timeout(PATIENCE, control.read_to_end(&mut said))
        .await
        .expect("an end");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_on_the_host_get_nothing_and_disturb_nobody() {
    let orders = echo().await;
    let pair = Pair::start(&orders).await;
    let held = pair.bind(1, &[]).await;
    let mut before = connect(&held.address).await;
    ping(&mut *before).await.unwrap();
    let (receiver, _dialer, designator) = stranger();
    let other = hob::protocol::Grant {
        binding: "binding.other".into(),
        ..grant(1, &designator)
    };
    let granted = pair.exporter.grant(&other).await.unwrap();
    let own = Own::of(&granted, &receiver).await;
    let (opened, near) = own.open().await;

    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"contents").unwrap();
    let files = [file.as_fd(); 8];
    let ticket = [&[NEAR_VERSION][..], &opened.ticket].concat();
    let other_version = [&[NEAR_VERSION + 1][..], &opened.ticket].concat();
    let guess = [&[NEAR_VERSION][..], &[7; 32]].concat();
    for said in [&guess, &other_version, &vec![b'x'; 100_000]] {
        let mut control = reach(&near).await;
        send(&control, &said[..1], &files);
        // It may be closed by then.
        let _ = control.write_all(&said[1..]).await;
        assert_eq!(answer(&mut control).await, b"");
    }

    // A crowd that says nothing, or half of it, takes its own places.
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        let control = reach(&near).await;
        // Of those that are too many it is closed already.
        let _ = control.try_write(&ticket[..ticket.len() / 2]);
        crowd.push(control);
    }
    let mut meanwhile = connect(&held.address).await;
    ping(&mut *meanwhile).await.unwrap();
    ping(&mut *before).await.unwrap();
    for control in &mut crowd {
        assert_eq!(answer(control).await, b"");
    }
    let taken = taken_over(&pair.db);
    let mut after = connect(&held.address).await;
    ping(&mut *after).await.unwrap();
    assert_eq!(taken_over(&pair.db), taken + 1, "places are free again");

    // The ticket is good still, and for one time.
    let mut control = reach(&near).await;
    control.write_all(&ticket).await.unwrap();
    let mut proof = [0; PROOF_SIZE];
    control.read_exact(&mut proof).await.unwrap();
    assert_eq!(proof, near.proof);
    let mut again = reach(&near).await;
    again.write_all(&ticket).await.unwrap();
    assert_eq!(answer(&mut again).await, b"", "a replay");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_lends_something_else_gets_no_stream() {
    let orders = echo().await;
    let pair = Pair::start(&orders).await;
    let (receiver, dialer, designator) = stranger();
    let granted = pair.exporter.grant(&grant(1, &designator)).await.unwrap();
    let own = Own::of(&granted, &receiver).await;
    let streams = async || pair.exporter.status().await.grants[0].streams;

    let (program, lent) = std::os::unix::net::UnixStream::pair().unwrap();
    let file = tempfile::tempfile().unwrap();
    let datagrams = std::os::unix::net::UnixDatagram::unbound().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let listening =
        std::os::unix::net::UnixListener::bind(directory.path().join("listening")).unwrap();
    let tcp = std::net::TcpStream::connect(&orders).unwrap();
    let too_much = u16::try_from(EARLY_BYTES_MAX + 1).unwrap().to_be_bytes();
    let too_much = [1, too_much[0], too_much[1]];
    let cases: [(&str, &[u8], &[BorrowedFd<'_>]); 8] = [
        ("no socket", &[1, 0, 0], &[]),
        ("two sockets", &[1, 0, 0], &[lent.as_fd(), lent.as_fd()]),
        ("another byte", &[2, 0, 0], &[lent.as_fd()]),
        ("too much to begin with", &too_much, &[lent.as_fd()]),
        ("a file", &[1, 0, 0], &[file.as_fd()]),
        ("datagrams", &[1, 0, 0], &[datagrams.as_fd()]),
        ("a listener", &[1, 0, 0], &[listening.as_fd()]),
        ("tcp", &[1, 0, 0], &[tcp.as_fd()]),
    ];
    for (what, said, files) in cases {
        let mut control = own.proven().await;
        send(&control, said, files);
        assert_eq!(answer(&mut control).await, b"", "{what}");
        assert_eq!(streams().await, 0, "{what}");
    }
    // One that stops on the way is not waited for, and has no stream.
    let mut silent = own.proven().await;
    let mut half = own.proven().await;
    send(&half, &[1, 0], &[lent.as_fd()]);
    assert_eq!(answer(&mut silent).await, b"");
    assert_eq!(answer(&mut half).await, b"");

    // What it begins with comes first, and its own silence is no end.
    let mut control = own.proven().await;
    send(&control, &[1, 0, 2, b'a', b'b'], &[lent.as_fd()]);
    drop(lent);
    let reply = StreamReply::from_byte(control.read_u8().await.unwrap());
    assert_eq!(reply, Some(StreamReply::Open));
    program.set_nonblocking(true).unwrap();
    let mut program = UnixStream::from_std(program).unwrap();
    program.write_all(b"c").await.unwrap();
    let mut back = [0; 3];
    program.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"abc");
    assert_eq!(streams().await, 1);
    // Whatever it says later is its end.
    control.write_all(b"?").await.unwrap();
    assert!(timeout(PATIENCE, ends(&mut program)).await.unwrap());
    assert_eq!(answer(&mut control).await, b"");
    eventually("it is let go", async || streams().await == 0).await;

    // A ticket that was presented here is used up for TLS, too.
    let (opened, near) = own.open().await;
    let mut control = reach(&near).await;
    let ticket = [&[NEAR_VERSION][..], &opened.ticket].concat();
    control.write_all(&ticket).await.unwrap();
    control.read_exact(&mut [0; PROOF_SIZE]).await.unwrap();
    let alpn = hob::protocol::BYTES_ALPN;
    let mut stream = dialer.dial(&granted.sturdyref.peer, alpn).await.unwrap();
    let hello = [&[hob::protocol::BYTES_VERSION][..], &opened.ticket].concat();
    stream.write_all(&hello).await.unwrap();
    stream.flush().await.unwrap();
    let reply = StreamReply::from_byte(stream.read_u8().await.unwrap());
    assert_eq!(reply, Some(StreamReply::Refused));
}
