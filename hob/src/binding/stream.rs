//! One connection of a program, and the stream that is opened for it.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ocapn::{Broken, DialError, EnlivenError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{Bindings, CONNECT_DEADLINE, Link};
use crate::front;
use crate::grant::Chain;
use crate::near::{self, HandError};
use crate::protocol::{
    BYTES_ALPN, BYTES_VERSION, EARLY_BYTES_MAX, Malformed, Opened, StreamReply, method,
};
use crate::service::{self, Local};
use crate::splice::splice;

/// Pauses between tries to reach an exporter: it may be restarting, and on the same host.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// How long a program may take to be told why there is no stream for it.
const DECLINE_TIMEOUT: Duration = Duration::from_secs(2);

/// Streams of one binding that are open or wait to be; more are closed at once.
const STREAMS_MAX: usize = 16_384;

/// Why no stream was opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("the other machine cannot be reached")]
    Enliven(#[source] EnlivenError),
    #[error("the other machine cannot be reached")]
    Dial(#[source] DialError),
    #[error("the connection to the other machine failed")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Near(HandError),
    #[error("the grant gave no ticket")]
    Ticket(#[source] Broken),
    #[error("the grant's answer cannot be read")]
    Malformed(#[from] Malformed),
    #[error("the other machine refused the stream: the grant is revoked")]
    Refused,
    #[error("as many connections as the grant allows are open")]
    Busy,
    #[error("the service on the other machine does not answer")]
    Service,
    #[error("no answer in {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// What a stream between hobs is.
type Stream = tokio_rustls::TlsStream<tokio::net::TcpStream>;

/// How a stream that is open is carried.
enum Way {
    /// By both hobs.
    Apart(Box<Stream>),
    /// By the exporter, which has the program's socket and keeps this connection as long.
    Near(UnixStream),
}

/// The program's socket while the exporter carries its bytes. The stream ends for both when this
/// is dropped.
struct Lending(std::os::unix::net::UnixStream);

impl Drop for Lending {
    fn drop(&mut self) {
        near::end(&self.0);
    }
}

impl Bindings {
    /// Carries one connection of a program to its end.
    pub(super) async fn carry(&self, link: &Link, local: Local) {
        if *link.streams.borrow() >= STREAMS_MAX {
            return local.cut();
        }
        link.streams.send_modify(|streams| *streams += 1);
        if let Err(error) = self.join(link, local).await {
            let binding = &link.generation.binding;
            tracing::debug!(%binding, error = %Chain(&error), "connection ended");
        }
        link.streams.send_modify(|streams| *streams -= 1);
    }

    async fn join(&self, link: &Link, mut local: Local) -> Result<(), OpenError> {
        let mut closed = link.closed.subscribe();
        let begun = unless(&mut closed, self.begin(link, &mut local)).await;
        let joined = match begun {
            Ok(None) => return Ok(()),
            Err(error) => Err(error),
            Ok(Some(Way::Apart(mut stream))) => {
                let splicing = async { Ok(splice(&mut local, &mut *stream).await?) };
                let joined = unless(&mut closed, splicing).await;
                if joined.is_err() {
                    service::cut(stream.get_ref().0);
                }
                joined
            }
            Ok(Some(Way::Near(mut control))) => {
                // Here it must not be told of any more, or each byte would wake both hobs.
                let Local::Unix(local) = local else {
                    return Ok(());
                };
                let _lending = Lending(local.into_std()?);
                return unless(&mut closed, async {
                    near::gone(&mut control).await;
                    Ok(())
                })
                .await;
            }
        };
        if joined.is_err() {
            local.cut();
        }
        joined
    }

    /// Speaks to a program and opens a stream for it, or tells it why there is none.
    async fn begin(&self, link: &Link, local: &mut Local) -> Result<Option<Way>, OpenError> {
        let Some(first) = front::greet(&link.kind, local).await? else {
            return Ok(None);
        };
        let program = match local {
            Local::Unix(program) => Some(&*program),
            Local::Tcp(_) => None,
        };
        let opened = timeout(CONNECT_DEADLINE, self.open(link, &first, program)).await;
        match opened.unwrap_or(Err(OpenError::TimedOut(CONNECT_DEADLINE))) {
            Ok(way) => Ok(Some(way)),
            Err(error) => {
                let why = Chain(&error).to_string();
                let told = front::decline(&link.kind, local, &why);
                match timeout(DECLINE_TIMEOUT, told).await {
                    Ok(Ok(true)) => Ok(None),
                    _ => Err(error),
                }
            }
        }
    }

    /// Opens a stream that the hob itself speaks on.
    pub(super) async fn open_apart(&self, link: &Link) -> Result<Box<Stream>, OpenError> {
        match self.open(link, &[], None).await? {
            Way::Apart(stream) => Ok(stream),
            // Without a program there is nothing to lend.
            Way::Near(_) => Err(OpenError::Refused),
        }
    }

    /// Opens one stream to the service, and tries again for as long as the exporter is away. The
    /// stream begins with these bytes, in each try: they must have no effect that lasts.
    async fn open(
        &self,
        link: &Link,
        early: &[u8],
        mut program: Option<&UnixStream>,
    ) -> Result<Way, OpenError> {
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            match self.open_once(link, early, program).await {
                // Its bytes are all still there: nothing is read of a socket before the service
                // has taken the stream.
                Err(OpenError::Near(error)) => {
                    tracing::debug!(error = %Chain(&error), "a socket was not lent");
                    program = None;
                    continue;
                }
                Err(error) if error.may_pass() => {
                    let binding = &link.generation.binding;
                    tracing::debug!(%binding, error = %Chain(&error), "no stream yet");
                }
                opened => return opened,
            }
            sleep(pause).await;
            pause = RETRY_PAUSE_MAX.min(pause * 2);
        }
    }

    async fn open_once(
        &self,
        link: &Link,
        early: &[u8],
        program: Option<&UnixStream>,
    ) -> Result<Way, OpenError> {
        let grant = self.live(link).await?;
        // Never closed.
        let opening = link.openings.acquire().await;
        let asked = link.ask(grant.call(method::OPEN, []), &grant);
        let dial = || self.dialer.dial(&link.sturdyref.peer, BYTES_ALPN);
        let (opened, dialled) = if program.is_some() && link.is_near.load(Ordering::Relaxed) {
            (asked.await, None)
        } else {
            // At the same time, since the connection will commonly be needed.
            let (opened, dialled) = tokio::join!(asked, dial());
            (opened, Some(dialled))
        };
        let opened = Opened::from_passable(&opened.map_err(OpenError::Ticket)?)?;
        let near = opened.near.filter(|near| self.host == Some(near.host));
        link.is_near.store(near.is_some(), Ordering::Relaxed);
        if let (Some(near), Some(program)) = (near, program) {
            match near::lend(&near, &opened.ticket, early, program).await {
                Ok(mut control) => {
                    drop(opening);
                    let reply = control.read_u8().await;
                    heard(reply.map_err(|error| OpenError::Near(error.into()))?)?;
                    return Ok(Way::Near(control));
                }
                Err(HandError::Unreached(error)) => {
                    tracing::debug!(%error, "the hob on this host cannot be connected to");
                }
                Err(error) => return Err(OpenError::Near(error)),
            }
        }
        let dialled = match dialled {
            Some(dialled) => dialled,
            None => dial().await,
        };
        let mut stream = dialled.map_err(OpenError::Dial)?;
        drop(opening);
        service::tune(stream.get_ref().0)?;
        // What goes with the ticket saves a round trip.
        let (early, late) = match early.len() <= EARLY_BYTES_MAX {
            true => (early, &[][..]),
            false => (&[][..], early),
        };
        // At once: the exporter that takes the ticket has all of it then, and one that refuses it
        // closes a connection on which nothing waits to be read.
        let hello = [&[BYTES_VERSION][..], &opened.ticket, early].concat();
        stream.write_all(&hello).await?;
        stream.flush().await?;
        heard(stream.read_u8().await?)?;
        stream.write_all(late).await?;
        Ok(Way::Apart(Box::new(stream)))
    }
}

/// Returns whether a stream is open, by what the exporter says.
fn heard(reply: u8) -> Result<(), OpenError> {
    match StreamReply::from_byte(reply) {
        Some(StreamReply::Open) => Ok(()),
        Some(StreamReply::Busy) => Err(OpenError::Busy),
        Some(StreamReply::Unreachable) => Err(OpenError::Service),
        Some(StreamReply::Refused) | None => Err(OpenError::Refused),
    }
}

/// Does something until the binding is closed.
async fn unless<T>(
    closed: &mut watch::Receiver<bool>,
    done: impl Future<Output = Result<T, OpenError>>,
) -> Result<T, OpenError> {
    tokio::select! {
        biased;
        _ = closed.wait_for(|closed| *closed) => Err(OpenError::Refused),
        done = done => done,
    }
}

impl OpenError {
    /// Returns whether it may be otherwise in a moment: the exporter is away.
    fn may_pass(&self) -> bool {
        match self {
            Self::Enliven(EnlivenError::Refused(broken)) | Self::Ticket(broken) => {
                broken.is_severed()
            }
            Self::Enliven(EnlivenError::Connect(_))
            | Self::Dial(_)
            | Self::Io(_)
            | Self::Near(_) => true,
            Self::Enliven(_)
            | Self::Malformed(_)
            | Self::Refused
            | Self::Busy
            | Self::Service
            | Self::TimedOut(_) => false,
        }
    }
}
