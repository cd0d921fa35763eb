//! What netlayers that listen on a TCP port have in common.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::sleep;

use super::quota::{Place, Quota};
use super::{ACCEPT_PAUSE, Connection};

/// Connections that have ended their handshake and wait to be taken up. Beyond it their
/// handshakes hold on to their places under the quota, so that the quota bounds them too.
const ACCEPTED_MAX: usize = 64;

/// The connections that others open, until listening is over.
pub(super) struct Listening {
    accepted: Mutex<mpsc::Receiver<Connection>>,
    closed: watch::Sender<bool>,
}

impl Listening {
    /// Returns the connections, and where they are put.
    pub(super) fn new() -> (mpsc::Sender<Connection>, Self) {
        let (sender, accepted) = mpsc::channel(ACCEPTED_MAX);
        let listening = Self {
            accepted: Mutex::new(accepted),
            closed: watch::Sender::new(false),
        };
        (sender, listening)
    }

    /// Returns those of a peer that only dials: none.
    pub(super) fn none() -> Self {
        Self::new().1
    }

    /// Takes connections in the background, each with a place under the quota, and has `admit`
    /// take them through their handshakes.
    pub(super) fn start<F>(
        &self,
        listener: TcpListener,
        quota: Quota,
        admit: impl Fn(TcpStream, SocketAddr, Place) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let quota = Arc::new(quota);
        let mut closed = self.closed.subscribe();
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    biased;
                    _ = closed.wait_for(|closed| *closed) => break,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((tcp, address)) => match quota.take_fair(Some(address.ip())) {
                        Some(place) => {
                            tokio::spawn(admit(tcp, address, place));
                        }
                        None => {
                            tracing::debug!(%address, "connection refused: too many handshakes");
                        }
                    },
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept connections");
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
            // In this order: the end of the watching says that the port is free.
            drop(listener);
            drop(closed);
        });
    }

    /// Waits for the next connection; `None` once closed.
    pub(super) async fn next(&self) -> Option<Connection> {
        let mut closed = self.closed.subscribe();
        let next = async {
            match self.accepted.lock().await.recv().await {
                Some(connection) => connection,
                // The listener is gone, or was never there: only closing ends the wait.
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => None,
            connection = next => Some(connection),
        }
    }

    pub(super) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Waits, once closed, until the port is free.
    pub(super) async fn freed(&self) {
        // Whoever listens watches for the end for as long as it holds the port.
        self.closed.closed().await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.close();
    }
}
