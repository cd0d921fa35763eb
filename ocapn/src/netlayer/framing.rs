//! Message boundaries on byte streams, and liveness.

use std::io;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::future::{BoxFuture, FutureExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::{GREETING_SIZE_MAX, Incoming, Outgoing};

/// The room that an idle connection keeps for what comes next. Small, since a peer may hold
/// thousands of sessions that are silent most of the time.
const READ_BYTES_MIN: usize = 1 << 7;

/// The room that a busy connection reads into at once: more saves few system calls.
const READ_BYTES_MAX: usize = 1 << 16;

/// How much is gathered into one write. The TLS layer cuts it into records of 16 KiB; progress is
/// judged for each write, so a large message on a slow link is not taken for a dead peer.
const WRITE_BYTES_MAX: usize = 1 << 16;

/// The digits of the largest length that a netstring may announce: anything longer is an attempt
/// to make us count.
const NETSTRING_DIGITS_MAX: usize = 10;

/// How messages are marked off from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// Not at all: Syrup follows on Syrup.
    None,
    /// A big-endian 32-bit length before each message; length 0 is a sign of life.
    Length32,
    /// Decimal digits and a colon before each message.
    Netstring,
}

/// Limits of one framed connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameLimits {
    /// The largest message that is accepted, in bytes.
    pub(super) frame_bytes_max: usize,
    /// How long we may be silent before a sign of life is due; `None` for never.
    pub(super) keepalive: Option<Duration>,
    /// How long the other end may be silent, or take no bytes, before it is taken for dead.
    pub(super) dead_after: Option<Duration>,
}

/// The receiving half: bytes in, messages out.
pub(super) struct FramedIncoming<R> {
    stream: R,
    framing: Framing,
    limits: FrameLimits,
    buffer: BytesMut,
    /// How much room the next read gets; follows how much the last ones found.
    room: usize,
    /// Whether the session stands. Before, no frame is gathered that is larger than a greeting.
    opened: bool,
    /// Whether there was a frame.
    begun: bool,
}

impl<R: AsyncRead + Send + Unpin> FramedIncoming<R> {
    pub(super) fn new(stream: R, framing: Framing, limits: FrameLimits) -> Self {
        Self {
            stream,
            framing,
            limits,
            buffer: BytesMut::new(),
            room: READ_BYTES_MIN,
            opened: false,
            begun: false,
        }
    }

    /// Returns whether the next frame must wait until the session stands.
    fn must_wait(&self) -> io::Result<bool> {
        let header = self.next_header()?;
        let large = header.is_some_and(|(_, length)| length > GREETING_SIZE_MAX);
        Ok(large && self.begun && !self.opened)
    }

    /// Moves whole messages from the buffer to `into`; true if there were any.
    fn take_frames(&mut self, into: &mut Vec<Bytes>) -> io::Result<bool> {
        let before = into.len();
        if self.framing == Framing::None {
            if !self.buffer.is_empty() {
                into.push(self.buffer.split().freeze());
            }
            return Ok(into.len() > before);
        }
        while let Some((header, length)) = self.next_header()? {
            if length > self.limits.frame_bytes_max {
                return Err(invalid("a frame is larger than is accepted"));
            }
            if !self.opened && length > GREETING_SIZE_MAX {
                // What came before it may be the greeting by which the session comes up.
                match self.begun {
                    true => break,
                    false => return Err(invalid("the first frame is larger than is accepted")),
                }
            }
            if self.buffer.len() < header + length {
                break;
            }
            self.buffer.advance(header);
            if length > 0 {
                into.push(self.buffer.split_to(length).freeze());
                self.begun = true;
            }
        }
        Ok(into.len() > before)
    }

    /// Returns the length of the header at the start of the buffer and of the message it
    /// announces, once the header is whole.
    fn next_header(&self) -> io::Result<Option<(usize, usize)>> {
        match self.framing {
            Framing::None => Ok(None),
            Framing::Length32 => Ok(self.buffer.first_chunk().map(|length| {
                (
                    4,
                    usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX),
                )
            })),
            Framing::Netstring => {
                let digits = self
                    .buffer
                    .iter()
                    .take_while(|byte| byte.is_ascii_digit())
                    .count();
                match self.buffer.get(digits) {
                    _ if digits > NETSTRING_DIGITS_MAX => {
                        Err(invalid("a frame length is too long"))
                    }
                    None => Ok(None),
                    Some(b':') if digits > 0 => {
                        let length = self.buffer[..digits]
                            .iter()
                            .fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
                        Ok(Some((
                            digits + 1,
                            usize::try_from(length).unwrap_or(usize::MAX),
                        )))
                    }
                    Some(_) => Err(invalid("a frame does not begin with its length")),
                }
            }
        }
    }

    async fn fill(&mut self) -> io::Result<bool> {
        self.buffer.reserve(self.room);
        let read = self.stream.read_buf(&mut self.buffer);
        let count = match self.limits.dead_after {
            None => read.await?,
            Some(limit) => timeout(limit, read)
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the peer fell silent"))??,
        };
        if count >= self.room {
            self.room = (self.room * 4).min(READ_BYTES_MAX);
        } else if count < self.room / 4 {
            self.room = (self.room / 2).max(READ_BYTES_MIN);
        }
        Ok(count > 0)
    }
}

impl<R: AsyncRead + Send + Unpin> Incoming for FramedIncoming<R> {
    fn read<'a>(&'a mut self, into: &'a mut Vec<Bytes>) -> BoxFuture<'a, io::Result<bool>> {
        async move {
            loop {
                if self.take_frames(into)? {
                    return Ok(true);
                }
                if self.must_wait()? {
                    // Whoever reads tells that the session stands, and reads anew.
                    return std::future::pending().await;
                }
                if !self.fill().await? {
                    return match self.buffer.is_empty() {
                        true => Ok(false),
                        false => Err(io::ErrorKind::UnexpectedEof.into()),
                    };
                }
            }
        }
        .boxed()
    }

    fn session_up(&mut self) {
        self.opened = true;
    }
}

/// The sending half: messages in, bytes out.
pub(super) struct FramedOutgoing<W> {
    stream: W,
    framing: Framing,
    limits: FrameLimits,
}

impl<W: AsyncWrite + Send + Unpin> FramedOutgoing<W> {
    pub(super) fn new(stream: W, framing: Framing, limits: FrameLimits) -> Self {
        Self {
            stream,
            framing,
            limits,
        }
    }

    fn put_header(&self, batch: &mut BytesMut, length: usize) -> io::Result<()> {
        match self.framing {
            Framing::None => {}
            Framing::Length32 => batch.put_u32(
                u32::try_from(length).map_err(|_| invalid("a message has more than 4 GiB"))?,
            ),
            Framing::Netstring => batch.put_slice(format!("{length}:").as_bytes()),
        }
        Ok(())
    }

    async fn write_some(&mut self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(WRITE_BYTES_MAX) {
            let write = self.stream.write_all(part);
            match self.limits.dead_after {
                None => write.await?,
                Some(limit) => timeout(limit, write).await.map_err(|_| {
                    io::Error::new(io::ErrorKind::TimedOut, "the peer takes no bytes")
                })??,
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        match self.limits.dead_after {
            None => self.stream.flush().await,
            Some(limit) => timeout(limit, self.stream.flush())
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the peer takes no bytes"))?,
        }
    }
}

impl<W: AsyncWrite + Send + Unpin> Outgoing for FramedOutgoing<W> {
    fn write<'a>(&'a mut self, messages: &'a mut Vec<Bytes>) -> BoxFuture<'a, io::Result<()>> {
        async move {
            if messages.is_empty() {
                if self.framing == Framing::Length32 {
                    self.write_some(&[0; 4]).await?;
                }
                return self.flush().await;
            }
            // A header is 11 bytes at most.
            let size: usize = messages.iter().map(|message| message.len() + 11).sum();
            let mut batch = BytesMut::with_capacity(size.min(2 * WRITE_BYTES_MAX));
            for message in messages.drain(..) {
                self.put_header(&mut batch, message.len())?;
                if message.len() < WRITE_BYTES_MAX {
                    batch.put_slice(&message);
                } else {
                    self.write_some(&batch.split()).await?;
                    self.write_some(&message).await?;
                }
                if batch.len() >= WRITE_BYTES_MAX {
                    self.write_some(&batch.split()).await?;
                }
            }
            self.write_some(&batch).await?;
            self.flush().await
        }
        .boxed()
    }

    fn keepalive(&self) -> Option<Duration> {
        self.limits.keepalive
    }

    fn close(&mut self) -> BoxFuture<'_, io::Result<()>> {
        self.stream.shutdown().boxed()
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FrameLimits = FrameLimits {
        frame_bytes_max: 100_000,
        keepalive: None,
        dead_after: None,
    };

    /// Sends `messages` through a pipe that holds few bytes at a time, and returns what arrives.
    async fn through(framing: Framing, messages: &[Bytes]) -> Vec<Bytes> {
        let (near, far) = tokio::io::duplex(7);
        let mut to_send = messages.to_vec();
        let send = async move {
            let mut outgoing = FramedOutgoing::new(near, framing, LIMITS);
            outgoing.write(&mut Vec::new()).await.unwrap();
            outgoing.write(&mut to_send).await.unwrap();
            assert!(to_send.is_empty());
            outgoing.close().await.unwrap();
        };
        let receive = async move {
            let mut incoming = FramedIncoming::new(far, framing, LIMITS);
            incoming.session_up();
            let mut received = Vec::new();
            while incoming.read(&mut received).await.unwrap() {}
            received
        };
        tokio::join!(send, receive).1
    }

    async fn reject(framing: Framing, bytes: &[u8]) -> io::ErrorKind {
        let mut incoming = FramedIncoming::new(bytes, framing, LIMITS);
        incoming.session_up();
        let mut received = Vec::new();
        loop {
            match incoming.read(&mut received).await {
                Ok(true) => {}
                Ok(false) => panic!("accepted {bytes:?}"),
                Err(error) => return error.kind(),
            }
        }
    }

    #[tokio::test]
    async fn messages_arrive_whole_and_in_order() {
        let messages: Vec<Bytes> = [1, 3, 90_000, 2, 0x1_0000]
            .into_iter()
            .enumerate()
            .map(|(n, length)| Bytes::from(vec![n as u8; length]))
            .collect();
        assert_eq!(through(Framing::Length32, &messages).await, messages);
        assert_eq!(through(Framing::Netstring, &messages).await, messages);
        assert_eq!(
            through(Framing::None, &messages).await.concat(),
            messages.concat()
        );
    }

    #[tokio::test]
    async fn wrong_frames_are_errors() {
        use io::ErrorKind::{InvalidData, UnexpectedEof};
        assert_eq!(
            reject(Framing::Length32, b"\xff\xff\xff\xffabc").await,
            InvalidData
        );
        assert_eq!(
            reject(Framing::Length32, b"\0\0\0\x04abc").await,
            UnexpectedEof
        );
        assert_eq!(reject(Framing::Length32, b"\0\0").await, UnexpectedEof);
        assert_eq!(reject(Framing::Netstring, b":").await, InvalidData);
        assert_eq!(reject(Framing::Netstring, b"12x").await, InvalidData);
        assert_eq!(reject(Framing::Netstring, b"100001:").await, InvalidData);
        assert_eq!(
            reject(Framing::Netstring, b"99999999999").await,
            InvalidData
        );
        assert_eq!(reject(Framing::Netstring, b"5:abc").await, UnexpectedEof);
    }

    #[tokio::test]
    async fn before_the_session_stands_no_large_frame_is_gathered() {
        for (framing, large) in [
            (Framing::Length32, &b"\0\0\x80\0"[..]),
            (Framing::Netstring, b"32768:"),
        ] {
            let (mut near, far) = tokio::io::duplex(1 << 20);
            let mut outgoing = FramedOutgoing::new(&mut near, framing, LIMITS);
            let hello = Bytes::from_static(b"hello");
            outgoing.write(&mut vec![hello.clone()]).await.unwrap();
            near.write_all(large).await.unwrap();
            near.write_all(&[7; 0x8000]).await.unwrap();
            let mut incoming = FramedIncoming::new(far, framing, LIMITS);
            let mut received = Vec::new();
            assert!(incoming.read(&mut received).await.unwrap());
            assert_eq!(received, [hello]);
            for _ in 0..100 {
                assert!(incoming.read(&mut received).now_or_never().is_none());
            }
            assert!(
                incoming.buffer.len() < 2 * READ_BYTES_MIN,
                "the rest stays outside"
            );
            incoming.session_up();
            assert!(incoming.read(&mut received).await.unwrap());
            assert_eq!(received[1].len(), 0x8000);

            let mut incoming = FramedIncoming::new(large, framing, LIMITS);
            let error = incoming.read(&mut received).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_taken_for_dead() {
        let limits = FrameLimits {
            dead_after: Some(Duration::from_secs(45)),
            ..LIMITS
        };
        let (_near, far) = tokio::io::duplex(7);
        let mut incoming = FramedIncoming::new(far, Framing::Length32, limits);
        let error = incoming.read(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let (near, _far) = tokio::io::duplex(7);
        let mut outgoing = FramedOutgoing::new(near, Framing::Length32, limits);
        let error = outgoing
            .write(&mut vec![Bytes::from_static(&[1; 100])])
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
