//! HTTP on loopback: one listener for the API, one for the admin, one for each instance.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request as HttpRequest, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Sleep;

use crate::control::Request;
use crate::reply::{Fate, Refusal, Reply};

/// The largest request: far beyond user data and a stack script's answers.
const BODY_BYTES_MAX: usize = 1 << 20;

/// In how many pieces a slow body arrives.
const PIECES: usize = 16;

/// What a listener answers with.
pub(crate) type Handler = Arc<dyn Fn(Asked) -> Reply + Send + Sync>;

/// A request with its headers.
pub(crate) struct Asked {
    pub(crate) request: Request,
    headers: hyper::HeaderMap,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// A listener, until it is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    task: AbortHandle,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens on a port of this host; 0 chooses one. Needs a tokio runtime.
pub(crate) fn listen(port: u16, handler: Handler) -> io::Result<Listener> {
    let socket = std::net::TcpListener::bind(("127.0.0.1", port))?;
    socket.set_nonblocking(true)?;
    let socket = TcpListener::from_std(socket)?;
    let address = socket.local_addr()?;
    let accept = async move {
        // They end with the listener, as those of a host that goes down do.
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            match socket.accept().await {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, Arc::clone(&handler)));
                }
                Err(error) => tracing::warn!(%error, "a connection was not accepted"),
            }
        }
    };
    let task = tokio::spawn(accept).abort_handle();
    Ok(Listener { address, task })
}

/// Why a connection ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("reset on purpose")]
struct Reset;

async fn serve(stream: TcpStream, handler: Handler) {
    let service = service_fn(move |request| {
        let handler = Arc::clone(&handler);
        // Pinned, so that the connection can be asked for its stream back.
        Box::pin(async move {
            let reply = read(request)
                .await
                .map_or_else(Reply::from, |asked| handler(asked));
            if !reply.wait.is_zero() {
                tokio::time::sleep(reply.wait).await;
            }
            respond(reply)
        })
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let ended = poll_fn(|context| connection.poll_without_shutdown(context)).await;
    if ended.is_err() {
        // Closing with nothing left to linger for is a reset, where a plain drop is an end.
        let stream = connection.into_parts().io.into_inner();
        if let Err(error) = stream.set_zero_linger() {
            tracing::debug!(%error, "the connection ends instead of being reset");
        }
    }
}

async fn read(request: HttpRequest<Incoming>) -> Result<Asked, Refusal> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let body = body
        .map_err(|_| Refusal::of(413, None, "Request too large"))?
        .to_bytes();
    let body = match body.is_empty() {
        true => Value::Null,
        false => {
            serde_json::from_slice(&body).map_err(|_| Refusal::of(400, None, "JSON parse error"))?
        }
    };
    let text = |name: &str| head.headers.get(name)?.to_str().ok().map(str::to_owned);
    let token = text("authorization");
    let token = token.and_then(|it| it.strip_prefix("Bearer ").map(str::to_owned));
    let request = Request {
        method: head.method.to_string(),
        path: head.uri.path().into(),
        query: head.uri.query().unwrap_or_default().into(),
        token,
        filter: text("x-filter"),
        body,
    };
    Ok(Asked {
        request,
        headers: head.headers,
    })
}

fn respond(reply: Reply) -> Result<Response<Trickle>, Reset> {
    if reply.fate == Fate::Reset {
        return Err(Reset);
    }
    let mut body = reply.body;
    if reply.fate == Fate::Truncated {
        let half = (0..=body.len() / 2)
            .rev()
            .find(|at| body.is_char_boundary(*at));
        body.truncate(half.unwrap_or(0));
    }
    let mut response = Response::builder().status(reply.status);
    response = response.header("Content-Type", reply.content_type);
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    response
        .body(Trickle::new(body, reply.trickle))
        .map_err(|_| Reset)
}

/// A body that arrives in pieces, with a pause before each; whole where it need not wait.
struct Trickle {
    pieces: VecDeque<Bytes>,
    pause: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Trickle {
    fn new(body: String, takes: Duration) -> Self {
        let count = if takes.is_zero() { 1 } else { PIECES };
        let mut rest = Bytes::from(body);
        let size = rest.len().div_ceil(count).max(1);
        let mut pieces = VecDeque::new();
        while !rest.is_empty() {
            pieces.push_back(rest.split_to(size.min(rest.len())));
        }
        Self {
            pieces,
            pause: takes / PIECES as u32,
            sleep: None,
        }
    }
}

impl Body for Trickle {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if !this.pause.is_zero() && !this.pieces.is_empty() {
            let sleep = this
                .sleep
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(this.pause)));
            if sleep.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            this.sleep = None;
        }
        Poll::Ready(this.pieces.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.pieces.iter().map(|it| it.len() as u64).sum())
    }
}
