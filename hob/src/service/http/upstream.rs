//! Connections to the server behind one stream.

use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::rt::Executor;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::tasks::Tasks;
use super::{HEAD_BYTES_MAX, RESPONSE_TIMEOUT};
use crate::protocol::ServiceKind;
use crate::service::{Dialled, Local, ServiceError, dial};

/// Connections that wait for the next request of a stream; a program asks one at a time by
/// HTTP/1.1, and several by HTTP/2.
const IDLE_MAX: usize = 8;

/// How often a server of HTTP/2 is asked whether it is there.
const PING_INTERVAL: Duration = Duration::from_secs(60);

/// The server, as one stream reaches it.
pub(super) struct Upstream {
    kind: ServiceKind,
    tasks: Tasks,
    idle: Mutex<Vec<http1::SendRequest<Incoming>>>,
    /// For those who speak HTTP/2 on both sides.
    shared: tokio::sync::Mutex<Option<http2::SendRequest<Incoming>>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The server cannot be reached.
    #[error(transparent)]
    Away(#[from] ServiceError),
    /// It broke off, or says what is no HTTP.
    #[error("the exchange with the service failed")]
    Broke(#[from] hyper::Error),
    /// It took too long.
    #[error("no answer in {} s", RESPONSE_TIMEOUT.as_secs())]
    TimedOut,
}

impl Upstream {
    /// Connects to the server.
    pub(super) async fn connect(kind: &ServiceKind, tasks: Tasks) -> Result<Self, ServiceError> {
        let first = dial(kind).await?;
        let upstream = Self {
            kind: kind.clone(),
            tasks,
            idle: Mutex::default(),
            shared: tokio::sync::Mutex::default(),
        };
        // Nothing is said before the first request, so nothing fails.
        if let Ok(sender) = upstream.begin(first).await {
            upstream.idle().push(sender);
        }
        Ok(upstream)
    }

    /// Sends a request by HTTP/1.1, and waits for the head of its answer.
    pub(super) async fn ask(
        &self,
        mut request: Request<Incoming>,
    ) -> Result<Response<Incoming>, Failure> {
        loop {
            let waiting = self.take_idle();
            let reused = waiting.is_some();
            let mut sender = match waiting {
                Some(sender) => sender,
                None => self.begin(dial(&self.kind).await?).await?,
            };
            if !reused {
                sender.ready().await?;
            }
            let answered = timeout(RESPONSE_TIMEOUT, sender.try_send_request(request));
            match answered.await.map_err(|_| Failure::TimedOut)? {
                Ok(response) => {
                    let mut idle = self.idle();
                    if idle.len() < IDLE_MAX {
                        idle.push(sender);
                    }
                    return Ok(response);
                }
                Err(mut failed) => match failed.take_message() {
                    // It had been closed before a byte was sent.
                    Some(unsent) if reused => request = unsent,
                    _ => return Err(failed.into_error().into()),
                },
            }
        }
    }

    /// Sends a request by HTTP/2, as gRPC needs it.
    pub(super) async fn ask_http2(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Incoming>, Failure> {
        let mut sender = {
            let mut shared = self.shared.lock().await;
            match shared.as_ref().filter(|sender| !sender.is_closed()) {
                Some(sender) => sender.clone(),
                None => shared.insert(self.begin_http2().await?).clone(),
            }
        };
        let answered = timeout(RESPONSE_TIMEOUT, sender.send_request(request));
        Ok(answered.await.map_err(|_| Failure::TimedOut)??)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<http1::SendRequest<Incoming>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_idle(&self) -> Option<http1::SendRequest<Incoming>> {
        let mut idle = self.idle();
        idle.retain(|sender| !sender.is_closed());
        let ready = idle.iter().position(http1::SendRequest::is_ready);
        ready.map(|at| idle.swap_remove(at))
    }

    async fn begin(&self, service: Dialled) -> hyper::Result<http1::SendRequest<Incoming>> {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(HEAD_BYTES_MAX);
        let (sender, connection) = builder
            .handshake(TokioIo::new(Ending::new(service)))
            .await?;
        self.tasks.execute(connection.with_upgrades());
        Ok(sender)
    }

    async fn begin_http2(&self) -> Result<http2::SendRequest<Incoming>, Failure> {
        let service = dial(&self.kind).await?;
        let mut builder = http2::Builder::new(self.tasks.clone());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .max_header_list_size(HEAD_BYTES_MAX as u32);
        let (sender, connection) = builder
            .handshake(TokioIo::new(Ending::new(service)))
            .await?;
        self.tasks.execute(connection);
        Ok(sender)
    }
}

/// A connection that has come to its end when it is shut down, and is cut when it is dropped
/// before.
struct Ending {
    /// Taken when this is dropped.
    service: Option<Dialled>,
    shut: bool,
}

impl Ending {
    fn new(service: Dialled) -> Self {
        Self {
            service: Some(service),
            shut: false,
        }
    }

    fn service<R>(
        self: Pin<&mut Self>,
        act: impl FnOnce(Pin<&mut Local>) -> Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        match &mut self.get_mut().service {
            Some(service) => act(Pin::new(&mut **service)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(service) = self.service.take()
            && self.shut
        {
            service.end();
        }
    }
}

impl AsyncRead for Ending {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.service(|service| service.poll_read(cx, buf))
    }
}

impl AsyncWrite for Ending {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.service(|service| service.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.service(|service| service.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut = true;
        self.service(|service| service.poll_shutdown(cx))
    }
}
