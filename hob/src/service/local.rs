//! Connections on the machine: to its services, and from its programs.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// How long a connection may be silent before the kernel asks whether the other end is there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// A connection to a service, or from a program.
#[derive(Debug)]
pub(crate) enum Local {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Makes a TCP connection fit to carry a stream: no waiting for more bytes, and a silent death of
/// the other end is noticed.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    Ok(())
}

/// Ends a TCP connection so that the other end takes it for cut, not for done, and nothing that
/// waits in the kernel is sent any more. To be dropped afterwards.
pub(crate) fn cut(stream: impl AsFd) {
    // A socket that is gone already is cut enough.
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

impl Local {
    /// Ends the connection as [`cut`] does; a unix socket has no such end and is just closed.
    pub(crate) fn cut(&self) {
        if let Self::Tcp(stream) = self {
            cut(stream);
        }
    }
}

/// A connection to a service that is cut when it is dropped before its end, so that the service
/// does not take what it has got for all there was.
#[derive(Debug)]
pub(crate) struct Dialled {
    local: Local,
    ended: bool,
}

impl Dialled {
    /// Guards a connection.
    pub(crate) fn new(local: Local) -> Self {
        Self {
            local,
            ended: false,
        }
    }

    /// Closes the connection as one that has come to its end.
    pub(crate) fn end(mut self) {
        self.ended = true;
    }
}

impl Deref for Dialled {
    type Target = Local;

    fn deref(&self) -> &Local {
        &self.local
    }
}

impl DerefMut for Dialled {
    fn deref_mut(&mut self) -> &mut Local {
        &mut self.local
    }
}

impl Drop for Dialled {
    fn drop(&mut self) {
        if !self.ended {
            self.local.cut();
        }
    }
}

impl AsFd for Local {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl AsyncRead for Local {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Local {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
