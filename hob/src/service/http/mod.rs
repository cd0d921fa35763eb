//! HTTP servers: a reverse proxy that lets through what a grant allows, and adds the key.
//!
//! Both sides are spoken by a whole implementation of HTTP, and nothing is passed on as it was
//! written: what one side takes for one request is one request for the other. Bodies are streamed
//! both ways. The program may speak HTTP/1.1 or HTTP/2 without TLS; the server is spoken to by
//! HTTP/1.1, except for gRPC, which is HTTP/2 on both sides.

mod headers;
mod rules;
mod tasks;
mod upstream;

use std::convert::Infallible;
use std::error::Error as _;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, copy, duplex};

use self::headers::KeyFile;
use self::rules::{Refusal, Rules};
use self::tasks::Tasks;
use self::upstream::{Failure, Upstream};
use super::{Lease, Opening, ServeError, ServiceError, dial};
use crate::protocol::{Http, ServiceKind};
use crate::splice::splice;

pub(crate) use rules::check_rights;

/// Bytes of the head of a request or an answer: what servers usually take at most.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Bytes between a stream and the proxy, each way.
const STREAM_BYTES: usize = 64 << 10;

/// How long the head of a request may take, and a connection between two requests: longer than
/// programs keep connections that they do not use.
const HEAD_TIMEOUT: Duration = Duration::from_secs(300);

/// How long the server may take to begin its answer; some hold requests for minutes on purpose.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(300);

/// Requests of one connection of HTTP/2 at one time; each may need a connection to the server.
const REQUESTS_MAX: u32 = 64;

/// How often a silent connection of HTTP/2 is asked whether anybody is there.
const PING_INTERVAL: Duration = Duration::from_secs(60);

type Body = Either<Incoming, Full<Bytes>>;

/// Makes one exchange: any answer of HTTP will do. Without its key no request would get one.
pub(super) async fn probe(http: &Http) -> Result<(), ServiceError> {
    let address = &http.address;
    let key = KeyFile::new(http.header_file.clone());
    let unread = |why| ServiceError::Away(format!("the key for http://{address}: {why}"));
    key.read().await.map_err(unread)?;
    let mut service = dial(&ServiceKind::Http(http.clone())).await?;
    let failed = |error: io::Error| ServiceError::Away(format!("http://{address}: {error}"));
    check(&mut *service, address).await.map_err(failed)?;
    service.end();
    Ok(())
}

/// Asks for the head of `/`, and reads the beginning of the answer.
pub(crate) async fn check<S>(stream: &mut S, host: &str) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let head = format!("HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await?;
    // A server of HTTP/2 only begins with a frame of its settings, which is short.
    let settings = answer[..2] == [0, 0] && answer[3..] == [4, 0];
    if answer == *b"HTTP/" || settings {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "its answer is no HTTP",
        ))
    }
}

/// Returns what a program is told where there is no stream for it.
pub(crate) fn decline(why: &str) -> String {
    let text = format!("gobs: {why}\n");
    let size = text.len();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {size}\r\nConnection: close\r\n\r\n{text}"
    )
}

/// Carries one stream.
pub(super) async fn serve<S>(
    http: &Http,
    lease: &Lease,
    opening: Opening<'_, S>,
) -> Result<(), ServeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let refused = |why: String| ServiceError::Refused(why);
    let rules = Rules::new(&lease.rights).map_err(refused)?;
    let host = http.address.strip_suffix(":80").unwrap_or(&http.address);
    let host = HeaderValue::from_str(host).map_err(|error| refused(error.to_string()))?;
    let tasks = Tasks::default();
    let upstream = Upstream::connect(&lease.spec.kind, tasks.clone()).await?;
    let proxy = Arc::new(Proxy {
        upstream,
        rules,
        host,
        key: KeyFile::new(http.header_file.clone()),
        upgrade: Mutex::default(),
    });
    let stream = opening.open().await?;
    let (near, far) = duplex(STREAM_BYTES);
    let (mut read, mut write) = tokio::io::split(stream);
    let (mut near_read, mut near_write) = tokio::io::split(near);
    let inbound = async {
        // What comes after the last request is nobody's.
        let _ = copy(&mut read, &mut near_write).await;
        let _ = near_write.shutdown().await;
        std::future::pending::<()>().await;
    };
    let outbound = async {
        copy(&mut near_read, &mut write).await?;
        write.shutdown().await
    };
    let proxied = async { tokio::try_join!(proxy.serve(far, &tasks), outbound) };
    let done = tokio::select! {
        done = proxied => done,
        () = inbound => Ok(((), ())),
        () = tasks.work() => Ok(((), ())),
    };
    done.map(drop).map_err(ServeError::Broke)
}

/// What one stream's requests go through.
struct Proxy {
    upstream: Upstream,
    rules: Rules,
    /// What the server is called.
    host: HeaderValue,
    key: KeyFile,
    /// The two ends of a connection that has changed its protocol.
    upgrade: Mutex<Option<(OnUpgrade, OnUpgrade)>>,
}

/// What a program is told instead of the server's answer.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the request is not one that can be passed on")]
    Unfit,
    #[error("the key of this binding cannot be read on the service's machine")]
    Key,
    #[error("the service does not answer")]
    Failed(#[source] Failure),
    #[error("the service has changed its protocol unasked")]
    Upgrade,
}

impl Proxy {
    /// Speaks HTTP with the program.
    async fn serve(self: &Arc<Self>, stream: DuplexStream, tasks: &Tasks) -> io::Result<()> {
        let mut builder = auto::Builder::new(tasks.clone());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .max_concurrent_streams(REQUESTS_MAX)
            .max_header_list_size(HEAD_BYTES_MAX as u32);
        let service = service_fn(|request| {
            let proxy = Arc::clone(self);
            async move { Ok::<_, Infallible>(proxy.answer(request).await) }
        });
        let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        match served.await {
            // It was told, and that has to arrive.
            Err(error) if is_parse(&*error) => return Ok(()),
            served => served.map_err(io::Error::other)?,
        }
        let upgrade = self
            .upgrade
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((program, service)) = upgrade {
            let (program, service) =
                tokio::try_join!(program, service).map_err(io::Error::other)?;
            splice(&mut TokioIo::new(program), &mut TokioIo::new(service)).await?;
        }
        Ok(())
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let version = request.version();
        match self.pass(request).await {
            Ok(response) => response.map(Either::Left),
            Err(problem) => {
                if let Some(cause) = problem.source() {
                    let cause = crate::grant::Chain(cause);
                    tracing::warn!(service = ?self.host, %cause, "{problem}");
                }
                problem.response(version)
            }
        }
    }

    /// Passes a request on; returns the answer.
    async fn pass(&self, request: Request<Incoming>) -> Result<Response<Incoming>, Problem> {
        let (mut parts, body) = request.into_parts();
        let path = self.rules.admit(&parts.method, parts.uri.path())?;
        let path = match parts.uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        let path = PathAndQuery::try_from(path).map_err(|_| Problem::Unfit)?;
        let key = self.key.read().await.map_err(|error| {
            tracing::warn!(service = ?self.host, error, "no key");
            Problem::Key
        })?;
        let websocket = parts.version == Version::HTTP_11 && asks_for_websocket(&parts.headers);
        let grpc = parts.version == Version::HTTP_2 && is_grpc(&parts.headers);
        headers::prepare(&mut parts.headers, &self.host, &self.rules, &key);
        let mut program = None;
        if websocket {
            program = parts.extensions.remove::<OnUpgrade>();
            let headers = &mut parts.headers;
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
        let mut passed = Request::new(body);
        *passed.method_mut() = parts.method;
        *passed.headers_mut() = parts.headers;
        let answered = if grpc {
            let host = passed
                .headers_mut()
                .remove(header::HOST)
                .unwrap_or(self.host.clone());
            let uri = Uri::builder().scheme("http").authority(host.as_bytes());
            *passed.uri_mut() = uri
                .path_and_query(path)
                .build()
                .map_err(|_| Problem::Unfit)?;
            *passed.version_mut() = Version::HTTP_2;
            self.upstream.ask_http2(passed).await
        } else {
            *passed.uri_mut() = path.into();
            self.upstream.ask(passed).await
        };
        let mut response = answered.map_err(Problem::Failed)?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let program = program.ok_or(Problem::Upgrade)?;
            let service = hyper::upgrade::on(&mut response);
            let mut upgrade = self.upgrade.lock().unwrap_or_else(PoisonError::into_inner);
            *upgrade = Some((program, service));
        } else {
            headers::strip(response.headers_mut());
        }
        // Another way to the server is not the binding's to give.
        response.headers_mut().remove(header::ALT_SVC);
        *response.version_mut() = Version::default();
        Ok(response)
    }
}

impl Problem {
    fn response(&self, version: Version) -> Response<Body> {
        let status = match self {
            Self::Refused(Refusal::Method) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Refused(Refusal::Path) => StatusCode::FORBIDDEN,
            Self::Refused(Refusal::Unclear) | Self::Unfit => StatusCode::BAD_REQUEST,
            Self::Failed(Failure::TimedOut) => StatusCode::GATEWAY_TIMEOUT,
            Self::Key | Self::Failed(_) | Self::Upgrade => StatusCode::BAD_GATEWAY,
        };
        let text = format!("gobs: {self}\n");
        let mut response = Response::new(Either::Right(Full::new(text.into())));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, plain);
        // A body that nobody has read may still be coming.
        if version < Version::HTTP_2 {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Returns whether what the program said was no HTTP.
fn is_parse(error: &(dyn std::error::Error + 'static)) -> bool {
    let error = error.downcast_ref::<hyper::Error>();
    error.is_some_and(hyper::Error::is_parse)
}

fn asks_for_websocket(headers: &HeaderMap) -> bool {
    let has = |name, word: &str| {
        let values = headers.get_all(name).iter();
        let words = values.flat_map(|value| value.to_str().unwrap_or_default().split(','));
        words.map(str::trim).any(|it| it.eq_ignore_ascii_case(word))
    };
    // Another protocol could carry requests that nobody compares with the rules.
    has(header::CONNECTION, "upgrade")
        && headers.get_all(header::UPGRADE).iter().count() == 1
        && headers[header::UPGRADE]
            .as_bytes()
            .eq_ignore_ascii_case(b"websocket")
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}
