//! What a stranger may send before its session stands.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::HANDSHAKE_BYTES_MAX;
use crate::captp::session::GREETING_SIZE_MAX;

/// The payload of all frames before the session stands: the challenge, or its answer, and the
/// greeting.
const PAYLOAD_BYTES_MAX: u64 = (HANDSHAKE_BYTES_MAX + GREETING_SIZE_MAX) as u64;

/// The longest header of a frame: two bytes, a length of eight, a mask of four (RFC 6455,
/// section 5.2).
const HEADER_BYTES_MAX: usize = 14;

/// What those know of a stream who read and write its messages.
#[derive(Default)]
pub(super) struct Passage {
    /// Whether large frames may come in.
    opened: AtomicBool,
    /// Bytes that the other end, or the system on its way, has taken.
    written: AtomicU64,
}

impl Passage {
    /// Lets large frames come in.
    pub(super) fn open(&self) {
        self.opened.store(true, Ordering::Release);
    }

    /// Returns how many bytes went out.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

/// A byte stream that lets no large frame through before it is opened.
///
/// The layer above makes room for a whole frame as soon as it sees its header, and its own limit
/// cannot change while a connection lasts. So the header is held back here.
pub(super) struct Gate<S> {
    stream: S,
    passage: Arc<Passage>,
    place: Place,
    /// What the frames so far announced, and how many had a payload.
    payload: u64,
    frames: u32,
    /// What came with the end of a header that may not pass yet.
    held: BytesMut,
}

/// Where in the stream of bytes we are.
enum Place {
    /// In the upgrade from HTTP: its last four bytes.
    Upgrade([u8; 4]),
    /// In the header of a frame, of which so many bytes are there.
    Header([u8; HEADER_BYTES_MAX], usize),
    /// In the payload of a frame: what is missing of it.
    Payload(u64),
}

const HEADER: Place = Place::Header([0; HEADER_BYTES_MAX], 0);

impl<S> Gate<S> {
    /// Returns `stream`, closed for large frames until the passage is opened.
    pub(super) fn new(stream: S, passage: Arc<Passage>) -> Self {
        Self {
            stream,
            passage,
            place: Place::Upgrade([0; 4]),
            payload: 0,
            frames: 0,
            held: BytesMut::new(),
        }
    }

    /// Returns how many of these bytes may pass.
    fn admit(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            match &mut self.place {
                Place::Upgrade(last) => {
                    *last = [last[1], last[2], last[3], bytes[at]];
                    if last == b"\r\n\r\n" {
                        self.place = HEADER;
                    }
                    at += 1;
                }
                Place::Header(header, have) => {
                    header[*have] = bytes[at];
                    *have += 1;
                    if let Some(length) = payload_length(&header[..*have]) {
                        let payload = self.payload.saturating_add(length);
                        if payload > PAYLOAD_BYTES_MAX {
                            return at;
                        }
                        self.payload = payload;
                        self.place = match length {
                            0 => HEADER,
                            _ => {
                                self.frames += 1;
                                Place::Payload(length)
                            }
                        };
                    }
                    at += 1;
                }
                Place::Payload(left) => {
                    let some = (bytes.len() - at).min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= some as u64;
                    at += some;
                    if *left == 0 {
                        self.place = HEADER;
                    }
                }
            }
        }
        at
    }

    /// What is read while the gate is closed for what comes next. After a challenge and a
    /// greeting the session may still come up, and then reading goes on.
    fn closed(&self) -> Poll<io::Result<()>> {
        if self.frames < 2 {
            let text = "a frame before the session is larger than is accepted";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        Poll::Pending
    }
}

/// Returns how long the payload is that a header announces, once the header is whole.
fn payload_length(header: &[u8]) -> Option<u64> {
    let second = *header.get(1)?;
    let (length, extra) = match second & 0x7f {
        126 => (
            u64::from(u16::from_be_bytes(*header.get(2..)?.first_chunk()?)),
            2,
        ),
        127 => (u64::from_be_bytes(*header.get(2..)?.first_chunk()?), 8),
        length => (u64::from(length), 0),
    };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    (header.len() == 2 + extra + mask).then_some(length)
}

impl<S: AsyncRead + Unpin> AsyncRead for Gate<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        let opened = gate.passage.opened.load(Ordering::Acquire);
        if !gate.held.is_empty() {
            if !opened {
                return gate.closed();
            }
            let some = gate.held.len().min(into.remaining());
            into.put_slice(&gate.held.split_to(some));
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut gate.stream).poll_read(cx, into))?;
        if opened {
            return Poll::Ready(Ok(()));
        }
        let came = &into.filled()[before..];
        let passing = gate.admit(came);
        if passing < came.len() {
            gate.held.extend_from_slice(&came[passing..]);
            into.set_filled(before + passing);
            if passing == 0 {
                return gate.closed();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gate<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        let written = ready!(Pin::new(&mut gate.stream).poll_write(cx, bytes))?;
        gate.passage
            .written
            .fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    /// Sends `bytes` through a gate in pieces, and returns what passes before it is opened and
    /// after.
    async fn through(bytes: &[u8], piece: usize) -> (Vec<u8>, io::Result<Vec<u8>>) {
        let passage = Arc::new(Passage::default());
        let mut gate = Gate::new(bytes, Arc::clone(&passage));
        let mut passed = Vec::new();
        let mut room = vec![0; piece];
        loop {
            let read = gate.read(&mut room);
            match futures_util::FutureExt::now_or_never(read) {
                Some(Ok(0)) => return (passed, Ok(Vec::new())),
                Some(Ok(count)) => passed.extend_from_slice(&room[..count]),
                Some(Err(error)) => return (passed, Err(error)),
                None => break,
            }
        }
        passage.open();
        let mut rest = Vec::new();
        gate.read_to_end(&mut rest).await.unwrap();
        (passed, Ok(rest))
    }

    #[tokio::test]
    async fn large_frames_wait_for_the_session() {
        let small = [
            &b"GET / HTTP/1.1\r\n\r\n\x82\x85abcd12345\x82\x00"[..],
            b"\x8a\x05pongs",
        ];
        let small = small.concat();
        let large = [&b"\x82\x7f\0\0\0\0\0\x10\0\0"[..], &[7; 40_000]].concat();
        let middling = [&b"\x82\x7e\x30\0"[..], &[8; 0x3000]].concat();
        for piece in [1, 2, 7, 64, 4_096, 100_000] {
            let (passed, rest) = through(&[&small[..], &large].concat(), piece).await;
            let rest = rest.unwrap();
            // All of the header but its last byte tells nothing yet.
            assert_eq!(passed, [&small[..], &large[..9]].concat(), "{piece}");
            assert_eq!(rest, large[9..], "{piece}");
            // Many small frames are a large one.
            let twice = [&small[..], &middling, &middling].concat();
            let (passed, _) = through(&twice, piece).await;
            assert_eq!(passed.len(), small.len() + middling.len() + 3, "{piece}");
            for start in [&b"\r\n\r\n"[..], b"\r\n\r\n\x82\x01a\x89\x00"] {
                let (_, error) = through(&[start, &large].concat(), piece).await;
                assert_eq!(error.unwrap_err().kind(), io::ErrorKind::InvalidData);
            }
        }
    }
}
