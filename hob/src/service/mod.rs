//! Existing services of the machine, reached as their clients reach them.

mod tcp;
mod unix;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::protocol::ServiceKind;

/// How long a service may take to accept: it is on this machine or one hop behind it.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may be silent before the kernel asks whether the other end is there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// A connection to a service, or from a program.
#[derive(Debug)]
pub(crate) enum Local {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Connects to a service.
pub(crate) async fn dial(kind: &ServiceKind) -> io::Result<Local> {
    let connect = async {
        match kind {
            ServiceKind::Tcp(address) => tcp::dial(address).await.map(Local::Tcp),
            ServiceKind::Unix(path) => unix::dial(path).await.map(Local::Unix),
        }
    };
    timeout(DIAL_TIMEOUT, connect)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
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
