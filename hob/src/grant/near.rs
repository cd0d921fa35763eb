//! Streams of importers on this host, whose programs' own sockets are taken over.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use super::Grants;
use super::live::Membrane;
use super::stream::refuse;
use crate::near::{self, HAND_TIMEOUT, Lent};
use crate::protocol::{NEAR_VERSION, StreamReply, TICKET_SIZE};
use crate::service::{Opening, ServeError};

/// Connections that have not handed over a socket yet; more are closed at once, and their streams
/// go over TLS. Whoever is on the host may connect, so this bounds the files that they can take.
const NEWCOMERS_MAX: usize = 1_024;

/// How many of those one user may have: another one's crowd takes no place of an importer's.
const NEWCOMERS_OF_USER_MAX: usize = 256;

/// How long accepting pauses after a failure such as too many open files, which passes when other
/// connections end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that have not handed over a socket yet, by their user.
#[derive(Default)]
struct Newcomers(Mutex<HashMap<u32, usize>>);

/// The place of one of them, given back when dropped.
struct Seat {
    newcomers: Arc<Newcomers>,
    user: u32,
}

impl Grants {
    /// Takes sockets from the importers on this host, for as long as the hob runs.
    pub(crate) async fn serve_near(self: Arc<Self>) {
        let Some(host) = near::host() else {
            return;
        };
        let (listener, name) = match near::listen() {
            Ok(listening) => listening,
            Err(error) => {
                return tracing::warn!(%error, "streams of this host go over TLS");
            }
        };
        // It is this task's alone.
        let _ = self.near.set((host, name));
        let newcomers = Arc::new(Newcomers::default());
        loop {
            match listener.accept().await {
                Ok((control, _)) => {
                    let Some(seat) = Newcomers::seat(&newcomers, &control) else {
                        continue;
                    };
                    let grants = Arc::clone(&self);
                    tokio::spawn(async move {
                        if let Err(error) = grants.admit_near(control, seat).await {
                            tracing::debug!(%error, "stream ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept sockets of this host");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Takes one connection from its ticket to the end of its stream.
    async fn admit_near(&self, mut control: UnixStream, seat: Seat) -> io::Result<()> {
        let taken = timeout(HAND_TIMEOUT, self.take_near(&mut control)).await??;
        drop(seat);
        let Some((membrane, mut program)) = taken else {
            return Ok(());
        };
        let (mut read, mut write) = control.split();
        let place = match self.enter(&membrane) {
            Ok(place) => place,
            Err(reply) => return refuse(&mut write, reply).await,
        };
        tracing::debug!(binding = %membrane.row.grant.binding, "a program's socket is taken over");
        let opening = Opening::beside(&mut program, &mut write);
        let gone = near::gone(&mut read);
        let carried = self.carry(&membrane, &place, opening, gone).await;
        let carried = match carried {
            Err(ServeError::NotOpened(_)) => refuse(&mut write, StreamReply::Unreachable).await,
            Err(ServeError::Broke(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        // Nothing passes any more before the stream counts as ended.
        drop(program);
        drop(place);
        carried
    }

    /// Takes a socket from whoever presents a ticket; nothing is said to anyone else.
    async fn take_near(
        &self,
        control: &mut UnixStream,
    ) -> io::Result<Option<(Arc<Membrane>, Lent)>> {
        let mut hello = [0; 1 + TICKET_SIZE];
        control.read_exact(&mut hello).await?;
        let redeemed = match hello {
            [NEAR_VERSION, ticket @ ..] => self.redeem_near(&ticket, Instant::now()),
            _ => None,
        };
        let Some((membrane, proof)) = redeemed else {
            return Ok(None);
        };
        control.write_all(&proof).await?;
        Ok(Some((membrane, near::take(control).await?)))
    }
}

impl Newcomers {
    /// Returns a place for a connection, if its user has one left.
    fn seat(newcomers: &Arc<Self>, control: &UnixStream) -> Option<Seat> {
        let user = control.peer_cred().ok()?.uid();
        let mut all = newcomers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.values().sum::<usize>() >= NEWCOMERS_MAX {
            return None;
        }
        let of_user = all.entry(user).or_default();
        if *of_user >= NEWCOMERS_OF_USER_MAX {
            return None;
        }
        *of_user += 1;
        let newcomers = Arc::clone(newcomers);
        Some(Seat { newcomers, user })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut all = (self.newcomers.0.lock()).unwrap_or_else(PoisonError::into_inner);
        if let Some(of_user) = all.get_mut(&self.user) {
            *of_user -= 1;
            if *of_user == 0 {
                all.remove(&self.user);
            }
        }
    }
}
