//! Byte connections: from the ticket that they present to the end of the stream.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ocapn::IncomingStream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout};

use super::Grants;
use super::live::{Membrane, Place};
use crate::protocol::{BYTES_VERSION, StreamReply, TICKET_SIZE};
use crate::service::{self, Opening, ServeError, ServiceError};

/// Connections that have not yet presented a ticket. More wait in the netlayer, under its quota.
const UNTICKETED_MAX: usize = 256;

/// How long a connection may take to present its ticket.
const TICKET_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a refusal may take to be taken: its reader may be hostile.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

impl Grants {
    /// Serves the byte connections that arrive, for as long as they are sent.
    pub(crate) async fn serve(self: Arc<Self>, mut incoming: mpsc::Receiver<IncomingStream>) {
        let unticketed = Arc::new(Semaphore::new(UNTICKETED_MAX));
        // The semaphore is never closed.
        while let Ok(permit) = Arc::clone(&unticketed).acquire_owned().await
            && let Some(stream) = incoming.recv().await
        {
            let grants = Arc::clone(&self);
            tokio::spawn(async move {
                if let Err(error) = grants.admit(stream, permit).await {
                    tracing::debug!(%error, "stream ended");
                }
            });
        }
    }

    /// Takes one connection from its ticket to its end.
    async fn admit(
        &self,
        incoming: IncomingStream,
        permit: OwnedSemaphorePermit,
    ) -> io::Result<()> {
        let IncomingStream { peer, mut stream } = incoming;
        service::tune(stream.get_ref().0)?;
        let mut hello = [0; 1 + TICKET_SIZE];
        timeout(TICKET_TIMEOUT, stream.read_exact(&mut hello)).await??;
        drop(permit);
        let redeemed = match hello {
            [BYTES_VERSION, ticket @ ..] => self.redeem(&ticket, &peer, Instant::now()),
            _ => None,
        };
        let entered = match &redeemed {
            Some(membrane) => self.enter(membrane).map(|place| (place, membrane)),
            None => Err(StreamReply::Refused),
        };
        let (place, membrane) = match entered {
            Ok(entered) => entered,
            Err(reply) => return refuse(&mut stream, reply).await,
        };
        let opening = Opening::on(&mut stream);
        let carried = self.carry(membrane, &place, opening, pending()).await;
        let carried = match carried {
            Err(ServeError::NotOpened(_)) => refuse(&mut stream, StreamReply::Unreachable).await,
            Err(ServeError::Broke(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        if carried.is_err() {
            service::cut(stream.get_ref().0);
        }
        // Both ends are closed before the stream counts as ended.
        drop(stream);
        drop(place);
        carried
    }

    /// Carries a stream that has a place, until it ends, its grant is revoked, or its importer is
    /// gone.
    pub(super) async fn carry<S>(
        &self,
        membrane: &Membrane,
        place: &Place<'_>,
        opening: Opening<'_, S>,
        gone: impl Future<Output = ()>,
    ) -> Result<(), ServeError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let mut revoked = membrane.revoked.subscribe();
        let aborted = |why| Err(io::Error::new(io::ErrorKind::ConnectionAborted, why).into());
        let serve = async {
            let mut lease = self
                .lease(membrane)
                .map_err(|broken| ServiceError::Refused(broken.to_string()))?;
            lease.crowded = place.crowded;
            self.services.serve(&lease, opening).await
        };
        let carried = tokio::select! {
            biased;
            _ = revoked.wait_for(|revoked| *revoked) => aborted("revoked"),
            () = gone => aborted("the importer is gone"),
            served = serve => served,
        };
        if let Err(ServeError::NotOpened(error)) = &carried {
            let grant = &membrane.row.grant;
            let (binding, service) = (&grant.binding, &grant.service);
            tracing::warn!(%binding, %service, %error, "service does not answer");
        }
        carried
    }
}

pub(super) async fn refuse<S: AsyncWrite + Unpin>(
    stream: &mut S,
    reply: StreamReply,
) -> io::Result<()> {
    let refusal = async {
        stream.write_all(&[reply.to_byte()]).await?;
        stream.shutdown().await
    };
    timeout(REFUSAL_TIMEOUT, refusal).await?
}
