//! Existing services of the machine, used as their clients use them, and narrowed to what a grant
//! allows.
//!
//! [`Services`] is where the kinds come together: each operation is one `match` over the kind, and
//! a kind's own work is in its module. All of it runs at the exporter, since the receiver of a
//! grant is not trusted.

pub(crate) mod http;
mod local;
mod object;
pub(crate) mod postgres;
pub(crate) mod redis;
mod secret;
mod tcp;
mod unix;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use ocapn::{Broken, Passable, Peer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::protocol::{Attenuate, Generation, ServiceKind, ServiceSpec, StreamReply, code, method};
use crate::splice::splice;

pub(crate) use local::{Dialled, Local, cut, tune};

/// How long a service may take to accept: it is on this machine or one hop behind it.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one exchange of a service's protocol may take when it is asked whether it answers; its
/// caller asks again.
const PROBE_TIMEOUT: Duration = Duration::from_secs(25);

/// The services of the machine, with what their kinds keep in memory.
#[derive(Debug, Default)]
pub(crate) struct Services {
    postgres: Arc<postgres::Servers>,
    redis: redis::Users,
    secrets: Arc<secret::Secrets>,
    objects: Arc<object::Objects>,
}

/// A grant as the kinds see it.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    /// The service.
    pub(crate) spec: ServiceSpec,
    /// Which grant it is. Names of roles and users are made from it.
    pub(crate) generation: Generation,
    /// The limits that hold: its own, within those of the grants that it was made from.
    pub(crate) rights: Attenuate,
    /// The same each time for this generation of this binding.
    pub(crate) secret: GrantSecret,
    /// Whether the stream came in over the limit of connections, for what is no connection: see
    /// [`ServiceKind::streams_spare`].
    pub(crate) crowded: bool,
}

/// What a kind makes the password of a role or user from. It never leaves the exporter, and no
/// file has it: it is derived from the machine's key.
#[derive(Clone)]
pub(crate) struct GrantSecret(pub(crate) Zeroizing<[u8; 32]>);

impl std::fmt::Debug for GrantSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GrantSecret(…)")
    }
}

/// Why a service does not do what a grant needs. The text is for people: what was tried, what the
/// service said, what to do.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ServiceError {
    /// It does not answer, is full, or is slow: worth another try.
    #[error("{0}")]
    Away(String),
    /// It was not reached at all, so that nothing was made there.
    #[error("{0}")]
    Absent(String),
    /// It answers, and something must be set right first.
    #[error("{0}")]
    Refused(String),
}

impl From<ServiceError> for Broken {
    fn from(error: ServiceError) -> Self {
        let code = match &error {
            ServiceError::Away(_) | ServiceError::Absent(_) => code::UNREACHABLE,
            ServiceError::Refused(_) => code::SERVICE,
        };
        Self::new(code, error.to_string())
    }
}

/// How carrying a stream failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The service did not take it; nothing was said on it.
    #[error(transparent)]
    NotOpened(#[from] ServiceError),
    /// It broke.
    #[error(transparent)]
    Broke(#[from] io::Error),
}

/// A stream whose importer waits to hear whether the service takes it.
pub(crate) struct Opening<'a, S> {
    stream: &'a mut S,
    /// Where the importer hears of it, if that is another connection.
    control: Option<&'a mut (dyn AsyncWrite + Unpin + Send)>,
}

impl<'a, S: AsyncWrite + Unpin> Opening<'a, S> {
    /// Wraps a stream on which the importer hears of it.
    pub(crate) fn on(stream: &'a mut S) -> Self {
        let control = None;
        Self { stream, control }
    }

    /// Wraps a program's own socket.
    pub(crate) fn beside(
        stream: &'a mut S,
        control: &'a mut (dyn AsyncWrite + Unpin + Send),
    ) -> Self {
        let control = Some(control);
        Self { stream, control }
    }

    /// Says that the service took it: every byte from here on is the stream's own.
    pub(crate) async fn open(self) -> io::Result<&'a mut S> {
        let reply = [StreamReply::Open.to_byte()];
        match self.control {
            Some(control) => control.write_all(&reply).await?,
            None => {
                self.stream.write_all(&reply).await?;
                self.stream.flush().await?;
            }
        }
        Ok(self.stream)
    }
}

/// What programs may know of the service behind their binding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The database that they land in.
    pub(crate) database: Option<String>,
    /// Whom the server takes them for.
    pub(crate) username: Option<String>,
}

impl Services {
    /// Says what reaches objects elsewhere.
    pub(crate) fn reach_by(&self, peer: &Peer) {
        self.objects.reach_by(peer);
    }

    /// Checks that this hob serves such services.
    pub(crate) fn check(&self, spec: &ServiceSpec) -> Result<(), ServiceError> {
        match &spec.kind {
            ServiceKind::Sturdyref(uri) => self.objects.check(uri),
            _ => Ok(()),
        }
    }

    /// Makes one real exchange of the service's protocol.
    pub(crate) async fn probe(&self, spec: &ServiceSpec) -> Result<(), ServiceError> {
        let exchange = async {
            match &spec.kind {
                ServiceKind::Tcp(_) | ServiceKind::Unix(_) => {
                    dial(&spec.kind).await.map(Dialled::end)
                }
                ServiceKind::Postgres(postgres) => self.postgres.probe(postgres).await,
                ServiceKind::Redis(redis) => self.redis.probe(redis).await,
                ServiceKind::Http(http) => http::probe(http).await,
                ServiceKind::Secret(secret) => self.secrets.probe(secret).await,
                ServiceKind::Sturdyref(uri) => self.objects.probe(uri).await,
            }
        };
        timeout(PROBE_TIMEOUT, exchange).await.unwrap_or_else(|_| {
            let seconds = PROBE_TIMEOUT.as_secs();
            let text = format!("{} gave no answer in {seconds} s", spec.kind);
            Err(ServiceError::Away(text))
        })
    }

    /// Makes what the grant needs at the server: a role, a user. Called for kinds that
    /// [`ServiceKind::mints`], after the grant is on disk, again when it is asked for again, and
    /// never beside an [`Services::unmint`] of the same binding.
    ///
    /// It bounds its own waits, and is not dropped on the way: what was sent may still be done.
    pub(crate) async fn mint(&self, lease: &Lease) -> Result<(), ServiceError> {
        match &lease.spec.kind {
            ServiceKind::Postgres(postgres) => self.postgres.mint(postgres, lease).await,
            ServiceKind::Redis(redis) => self.redis.mint(redis, lease).await,
            _ => Ok(()),
        }
    }

    /// Takes away what [`Services::mint`] made, or has begun to make: nothing is left when this
    /// returns, and it is a success if nothing was there. The lease is as it was made, without its
    /// rights. Called after every stream of the grant is cut, and again until it succeeds.
    ///
    /// It bounds its own waits, and is not dropped on the way.
    pub(crate) async fn unmint(&self, gone: &Lease) -> Result<(), ServiceError> {
        match &gone.spec.kind {
            ServiceKind::Redis(redis) => self.redis.unmint(redis, gone).await,
            ServiceKind::Postgres(postgres) => self.postgres.unmint(postgres, gone).await,
            _ => Ok(()),
        }
    }

    /// Carries one stream from its first byte to its end, held to the rights of the grant. Dropped
    /// when the grant is revoked: what it holds must then be cut, not closed ([`Dialled`]).
    pub(crate) async fn serve<S>(
        &self,
        lease: &Lease,
        opening: Opening<'_, S>,
    ) -> Result<(), ServeError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        match &lease.spec.kind {
            ServiceKind::Tcp(_) | ServiceKind::Unix(_) => {
                let mut service = dial(&lease.spec.kind).await?;
                let stream = opening.open().await?;
                splice(stream, &mut *service).await?;
                service.end();
                Ok(())
            }
            ServiceKind::Postgres(postgres) => self.postgres.serve(postgres, lease, opening).await,
            ServiceKind::Redis(redis) => self.redis.serve(redis, lease, opening).await,
            ServiceKind::Http(http) => http::serve(http, lease, opening).await,
            ServiceKind::Secret(_) | ServiceKind::Sturdyref(_) => {
                let text = format!("a {} has no streams", lease.spec.kind.name());
                Err(ServiceError::Refused(text).into())
            }
        }
    }

    /// Answers a call of the grant's object, of a method that not every grant has; `None` where
    /// the kind has no such method. The answer is dropped at revocation, and what outlives it ends
    /// with [`Services::end`].
    pub(crate) fn call(
        &self,
        lease: &Lease,
        method: &str,
        args: Vec<Passable>,
    ) -> Option<BoxFuture<'static, Result<Passable, Broken>>> {
        match (&lease.spec.kind, method) {
            (ServiceKind::Secret(secret), method::FETCH) => Some(self.secrets.fetch(secret, &args)),
            (ServiceKind::Sturdyref(uri), method::CAPABILITY) => {
                Some(self.objects.lend(uri, lease))
            }
            _ => None,
        }
    }

    /// Ends what answers of a grant's object have given out. Called once every stream and call of
    /// the grant is cut: nothing of it works when this returns.
    pub(crate) async fn end(&self, ended: &Generation) -> Result<(), ServiceError> {
        self.objects.end(ended).await
    }

    /// Returns what programs may know of the service: nothing secret.
    pub(crate) fn facts(&self, lease: &Lease) -> Facts {
        match &lease.spec.kind {
            ServiceKind::Postgres(postgres) => Facts {
                database: Some(postgres.database.clone()),
                username: Some(postgres::role_name(&lease.generation, &lease.secret)),
            },
            _ => Facts::default(),
        }
    }
}

/// Reads a file on the machine, up to `bytes_max` bytes. Waits for the disk.
fn read_file(path: &Path, bytes_max: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::other(format!(
            "it is longer than {bytes_max} bytes"
        )));
    }
    Ok(bytes)
}

/// Connects to a service that is reached by a connection.
async fn dial(kind: &ServiceKind) -> Result<Dialled, ServiceError> {
    let connect = async {
        match kind {
            ServiceKind::Tcp(address) => tcp::dial(address).await,
            ServiceKind::Unix(path) => unix::dial(path).await,
            ServiceKind::Http(http) => tcp::dial(&http.address).await,
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    };
    let dialled = timeout(DIAL_TIMEOUT, connect)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    dialled
        .map(Dialled::new)
        .map_err(|error| ServiceError::Away(format!("connecting to {kind} failed: {error}")))
}
