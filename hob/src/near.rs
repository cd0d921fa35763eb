//! Streams between hobs of one host: the program's own socket goes to the exporter.
//!
//! Two hobs that pass bytes on cost a short exchange as much as a database takes to answer it. So
//! the importer lends the socket that it has accepted, once its ticket is taken, and the exporter
//! alone carries the bytes: it is the one that holds them to the grant's rights. The connection
//! over which the socket came lasts as long as the stream, and the end of either hob is the end of
//! the stream.
//!
//! Both have the socket, so neither may rely on how the other has set it: whatever is read or
//! written here says itself that it does not wait. Sockets of TCP are not lent: closing one can be
//! made to wait, and cutting one so that its other end notices takes its last holder.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketType, recv, recvmsg, send, sendmsg, shutdown,
    sockopt,
};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::protocol::{
    EARLY_BYTES_MAX, HOST_SIZE, NEAR_NAME_SIZE, NEAR_VERSION, Near, PROOF_SIZE, TICKET_SIZE,
};

/// How long either side may take until the socket is handed over: both are on this host, and the
/// stream can still go the other way.
pub(crate) const HAND_TIMEOUT: Duration = Duration::from_secs(5);

/// The variable that keeps a hob from taking and lending sockets, where it is `yes`.
const APART_VARIABLE: &str = "GOBS_APART";

/// What comes with the socket.
const LENT: u8 = 1;

/// Why no socket was handed over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandError {
    /// Nobody was told anything: the ticket is still good.
    #[error("the hob on this host cannot be connected to")]
    Unreached(#[source] io::Error),
    /// The ticket may be used up.
    #[error("the hob on this host took no socket")]
    Broke(#[from] io::Error),
}

/// Returns what is the same for exactly those processes that find each other's abstract names:
/// one kernel and one network namespace. `None` where this hob is to stay apart.
pub(crate) fn host() -> Option<[u8; HOST_SIZE]> {
    if std::env::var(APART_VARIABLE).is_ok_and(|value| value == "yes") {
        return None;
    }
    let read = || {
        let boot = fs::read("/proc/sys/kernel/random/boot_id")?;
        let network = fs::metadata("/proc/self/ns/net")?;
        let mut digest = Sha256::new();
        digest.update(b"gobs host");
        digest.update(boot);
        digest.update(network.dev().to_be_bytes());
        digest.update(network.ino().to_be_bytes());
        io::Result::Ok(digest.finalize().into())
    };
    read()
        .inspect_err(|error| tracing::info!(%error, "streams of this host go over TLS"))
        .ok()
}

/// Listens at a name that nobody can guess.
pub(crate) fn listen() -> io::Result<(UnixListener, [u8; NEAR_NAME_SIZE])> {
    let mut name = [0; NEAR_NAME_SIZE];
    getrandom::fill(&mut name).map_err(|_| io::Error::other("the machine has no randomness"))?;
    Ok((UnixListener::bind(path(&name))?, name))
}

/// Returns the path of an abstract name: what begins with a zero byte is none of a file.
fn path(name: &[u8; NEAR_NAME_SIZE]) -> PathBuf {
    let name = format!("\0gobs-{}", data_encoding::HEXLOWER.encode(name));
    std::ffi::OsString::from_vec(name.into_bytes()).into()
}

/// Lends a program's socket to the hob that made this offer. Returns the connection on which that
/// says whether the service takes the stream, which begins with these bytes.
pub(crate) async fn lend(
    near: &Near,
    ticket: &[u8; TICKET_SIZE],
    early: &[u8],
    program: &UnixStream,
) -> Result<UnixStream, HandError> {
    let size = u16::try_from(early.len()).ok();
    let size = size.filter(|size| usize::from(*size) <= EARLY_BYTES_MAX);
    let size = size.ok_or_else(|| HandError::Unreached(io::ErrorKind::InvalidInput.into()))?;
    let connected = UnixStream::connect(path(&near.name)).await;
    let mut control = connected.map_err(HandError::Unreached)?;
    let handed = timeout(HAND_TIMEOUT, async {
        control
            .write_all(&[&[NEAR_VERSION][..], ticket].concat())
            .await?;
        let mut proof = [0; PROOF_SIZE];
        control.read_exact(&mut proof).await?;
        // A stranger's guess is worth nothing: the proof is random, and of this one stream.
        if proof != near.proof {
            return Err(io::Error::other("a stranger has taken the name"));
        }
        control
            .async_io(Interest::WRITABLE, || send_socket(&control, program))
            .await?;
        control
            .write_all(&[&size.to_be_bytes()[..], early].concat())
            .await
    });
    let handed = handed.await;
    handed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    Ok(control)
}

/// Takes a program's socket from an importer that was shown the proof.
pub(crate) async fn take(control: &mut UnixStream) -> io::Result<Lent> {
    let socket = control
        .async_io(Interest::READABLE, || receive_socket(&*control))
        .await?;
    let mut size = [0; 2];
    control.read_exact(&mut size).await?;
    let size = usize::from(u16::from_be_bytes(size));
    if size > EARLY_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut early = vec![0; size];
    control.read_exact(&mut early).await?;
    Lent::new(socket, early)
}

/// Waits for the end of the connection on which a socket was handed over. Nothing is said there.
pub(crate) async fn gone(control: &mut (impl AsyncRead + Unpin)) {
    let _ = control.read(&mut [0; 1]).await;
}

fn send_socket(control: &UnixStream, program: &UnixStream) -> io::Result<()> {
    let sockets = [program.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&sockets)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(control, &[IoSlice::new(&[LENT])], &mut ancillary, flags)?;
    Ok(())
}

/// Receives one byte and the one socket that comes with it; whatever else comes is closed.
fn receive_socket(control: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut bytes = [IoSliceMut::new(&mut byte)];
    let received = recvmsg(control, &mut bytes, &mut ancillary, flags)?;
    let mut sockets = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            sockets.extend(files);
        }
    }
    match (received.bytes, byte, sockets.pop()) {
        (1, [LENT], Some(socket)) if sockets.is_empty() => Ok(socket),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// A program's socket that an importer has lent. Once anything was read or written, it ends for
/// both when dropped; until then it is still the importer's, which tells the program why.
#[derive(Debug)]
pub(crate) struct Lent {
    socket: UnixStream,
    /// What the stream begins with, and how much of it is read.
    early: Vec<u8>,
    read: usize,
    is_used: bool,
}

impl Lent {
    /// Takes what may be anything that a process can have open.
    fn new(socket: OwnedFd, early: Vec<u8>) -> io::Result<Self> {
        let is_stream = sockopt::socket_domain(&socket)? == AddressFamily::UNIX
            && sockopt::socket_type(&socket)? == SocketType::STREAM
            && !sockopt::socket_acceptconn(&socket)?;
        if !is_stream {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: UnixStream::from_std(socket)?,
            early,
            read: 0,
            is_used: false,
        })
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.is_used {
            end(&self.socket);
        }
    }
}

/// Ends a program's connection, whoever else has its socket: what was written still arrives, and
/// nothing follows.
pub(crate) fn end(socket: impl AsFd) {
    // One that has ended already is not connected.
    let _ = shutdown(socket, Shutdown::Both);
}

impl AsyncRead for Lent {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let lent = self.get_mut();
        lent.is_used = true;
        if lent.read < lent.early.len() {
            let waiting = &lent.early[lent.read..];
            let taken = waiting.len().min(buf.remaining());
            buf.put_slice(&waiting[..taken]);
            lent.read += taken;
            if lent.read == lent.early.len() {
                (lent.early, lent.read) = (Vec::new(), 0);
            }
            return Poll::Ready(Ok(()));
        }
        let room = buf.initialize_unfilled();
        let size = room.len();
        loop {
            ready!(lent.socket.poll_read_ready(cx))?;
            let mut read = None;
            let tried = lent.socket.try_io(Interest::READABLE, || {
                let (count, _) = recv(&lent.socket, &mut *room, RecvFlags::DONTWAIT)?;
                read = Some(count);
                match 0 < count && count < size {
                    // All that was there is read: what comes next is told of anew.
                    true => Err(io::ErrorKind::WouldBlock.into()),
                    false => Ok(()),
                }
            });
            match (read, tried) {
                (Some(count), _) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                (None, Err(error)) if !may_pass(&error) => return Poll::Ready(Err(error)),
                (None, _) => {}
            }
        }
    }
}

/// Returns whether to try again, at once or when the socket is ready.
fn may_pass(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, WouldBlock};
    matches!(error.kind(), Interrupted | WouldBlock)
}

impl AsyncWrite for Lent {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let lent = self.get_mut();
        lent.is_used = true;
        let socket = &lent.socket;
        loop {
            ready!(socket.poll_write_ready(cx))?;
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let sent = || Ok(send(socket, bytes, flags)?);
            match socket.try_io(Interest::WRITABLE, sent) {
                Err(error) if may_pass(&error) => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The program may have closed its end already.
        match shutdown(&self.socket, Shutdown::Write) {
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;
    use rustix::io::{FdFlags, fcntl_getfd};

    use super::*;
    use crate::splice::splice;

    fn offer(name: [u8; NEAR_NAME_SIZE]) -> Near {
        Near {
            host: [1; HOST_SIZE],
            name,
            proof: [2; PROOF_SIZE],
        }
    }

    #[tokio::test]
    async fn nothing_is_lent_without_the_proof() {
        let (program, _app) = UnixStream::pair().unwrap();
        let (listener, name) = listen().unwrap();
        let near = offer(name);
        let ticket = [3; TICKET_SIZE];
        for shown in [vec![7; PROOF_SIZE], vec![2; PROOF_SIZE - 1]] {
            let strange = async {
                let (mut control, _) = listener.accept().await.unwrap();
                control.read_exact(&mut [0; 1 + TICKET_SIZE]).await.unwrap();
                control.write_all(&shown).await.unwrap();
                control.shutdown().await.unwrap();
                let mut rest = Vec::new();
                let ended = timeout(HAND_TIMEOUT, control.read_to_end(&mut rest)).await;
                assert!(ended.is_ok() && rest.is_empty(), "{rest:?}");
            };
            let (lent, ()) = tokio::join!(lend(&near, &ticket, b"early", &program), strange);
            assert!(matches!(lent, Err(HandError::Broke(_))));
        }
        drop(listener);
        let lent = lend(&near, &ticket, b"", &program).await;
        assert!(matches!(lent, Err(HandError::Unreached(_))));
    }

    #[tokio::test]
    async fn a_lent_socket_does_not_wait_and_ends_for_both() {
        let (app, program) = std::os::unix::net::UnixStream::pair().unwrap();
        let kept = program.try_clone().unwrap();
        let mut lent = Lent::new(program.into(), b"early".to_vec()).unwrap();
        let mut read = [0; 5];
        lent.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"early");

        // Its lender lets it wait, and takes what the exporter was told of.
        kept.set_nonblocking(false).unwrap();
        let mut app = UnixStream::from_std({
            app.set_nonblocking(true).unwrap();
            app
        })
        .unwrap();
        app.write_all(b"x").await.unwrap();
        lent.socket.readable().await.unwrap();
        recv(&kept, &mut [0; 1], RecvFlags::DONTWAIT).unwrap();
        assert!(lent.read_u8().now_or_never().is_none());
        let large = vec![7; 4 << 20];
        assert!(lent.write_all(&large).now_or_never().is_none());

        drop(lent);
        let mut rest = Vec::new();
        let ended = timeout(HAND_TIMEOUT, app.read_to_end(&mut rest)).await;
        ended.expect("it ends for both").unwrap();
        assert!(rest.len() < large.len() && rest.iter().all(|byte| *byte == 7));
        assert!(app.write_all(b"y").await.is_err());
        drop(kept);
    }

    #[tokio::test]
    async fn what_was_never_used_is_the_lenders_still() {
        let (mut app, program) = UnixStream::pair().unwrap();
        let kept = program.into_std().unwrap();
        let lent = Lent::new(kept.try_clone().unwrap().into(), Vec::new()).unwrap();
        drop(lent);
        let mut program = UnixStream::from_std(kept).unwrap();
        program.write_all(b"why").await.unwrap();
        drop(program);
        let mut told = String::new();
        app.read_to_string(&mut told).await.unwrap();
        assert_eq!(told, "why");
    }

    /// Hands a socket over in these pieces; returns what the exporter reads of the stream.
    async fn handed(said: &[u8], sockets: usize, pieces: &[usize]) -> Option<Vec<u8>> {
        let (mut control, mut importer) = UnixStream::pair().unwrap();
        let (app, program) = UnixStream::pair().unwrap();
        drop(app);
        let said = said.to_vec();
        let pieces = pieces.to_vec();
        let send = async move {
            let sockets = vec![program.as_fd(); sockets];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !sockets.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(&sockets));
            }
            let Some((first, mut rest)) = said.split_first() else {
                return;
            };
            let first = [IoSlice::new(std::slice::from_ref(first))];
            sendmsg(&importer, &first, &mut ancillary, SendFlags::DONTWAIT).unwrap();
            for piece in pieces.iter().chain([&usize::MAX]) {
                let (piece, later) = rest.split_at((*piece).min(rest.len()));
                // It may have been refused by then.
                let _ = importer.write_all(piece).await;
                tokio::task::yield_now().await;
                rest = later;
            }
        };
        let (taken, ()) = tokio::join!(
            async {
                let taken = take(&mut control).await;
                drop(control);
                taken
            },
            send
        );
        let mut lent = taken.ok()?;
        // No program that the hob starts gets it.
        let flags = fcntl_getfd(&lent.socket).unwrap();
        assert!(flags.contains(FdFlags::CLOEXEC));
        let mut stream = Vec::new();
        lent.read_to_end(&mut stream).await.unwrap();
        Some(stream)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn a_socket_is_taken_exactly_where_one_is_handed_over(
            tag in prop_oneof![4 => Just(LENT), 1 => any::<u8>()],
            sockets in prop_oneof![4 => Just(1_usize), 1 => 0..4_usize],
            size in prop_oneof![0..40_u16, 12_270..12_300_u16, any::<u16>()],
            lacks in prop_oneof![3 => Just(0_usize), 1 => 1..5_usize],
            pieces in prop::collection::vec(1..9_000_usize, 0..6),
        ) {
            let early: Vec<u8> = (0..size).map(|n| n as u8).collect();
            let mut said = [&[tag][..], &size.to_be_bytes(), &early].concat();
            said.truncate(said.len().saturating_sub(lacks));
            let whole = tag == LENT
                && sockets == 1
                && usize::from(size) <= EARLY_BYTES_MAX
                && lacks == 0;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let stream = runtime.unwrap().block_on(handed(&said, sockets, &pieces));
            prop_assert_eq!(stream, whole.then_some(early));
        }

        #[test]
        fn bytes_pass_whole_and_in_order(
            early in prop::collection::vec(any::<u8>(), 0..300),
            there in prop::collection::vec(1..70_000_usize, 0..8),
            back in prop::collection::vec(1..70_000_usize, 0..8),
        ) {
            let bytes = |of: &[usize], salt: usize| -> Vec<u8> {
                let count = of.iter().sum();
                (0..count).map(|n: usize| (n.wrapping_mul(2_654_435_761) >> 9) as u8 ^ salt as u8)
                    .collect()
            };
            let (sent, answered) = (bytes(&there, 1), bytes(&back, 2));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let (got, heard) = runtime.unwrap().block_on(async {
                let (app, program) = UnixStream::pair().unwrap();
                let (mut near, service) = UnixStream::pair().unwrap();
                let program = program.into_std().unwrap();
                let mut lent = Lent::new(program.into(), early.clone()).unwrap();
                let speak = async |stream: UnixStream, bytes: &[u8], pieces: &[usize]| {
                    let (mut read, mut write) = stream.into_split();
                    let write = async {
                        let mut rest = bytes;
                        for piece in pieces {
                            let (piece, later) = rest.split_at(*piece);
                            write.write_all(piece).await.unwrap();
                            rest = later;
                        }
                        write.shutdown().await.unwrap();
                    };
                    let mut all = Vec::new();
                    let read = async { read.read_to_end(&mut all).await.unwrap() };
                    tokio::join!(write, read);
                    all
                };
                let (heard, got, joined) = tokio::join!(
                    speak(app, &sent, &there),
                    speak(service, &answered, &back),
                    splice(&mut lent, &mut near),
                );
                joined.unwrap();
                (got, heard)
            });
            prop_assert!(got == [early, sent].concat(), "there");
            prop_assert!(heard == answered, "back");
        }
    }
}
