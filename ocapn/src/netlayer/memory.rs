//! `memory`: peers of one process, for tests and simulations.
//!
//! A [`MemoryNetwork`] delays what is sent by times drawn from a seed (order within a connection is
//! kept, order between connections is not), and cuts peers off from each other on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::{Connection, DialError, Incoming, Netlayer, Outgoing};
use crate::locator::PeerLocator;

/// The transport's name in locators.
pub const TRANSPORT: &str = "memory";

/// Messages on their way in one direction of a connection; the sender waits beyond it, as it would
/// on a full socket.
const IN_FLIGHT_MAX: usize = 1 << 12;

/// Connections that wait to be accepted; the dialler waits beyond it.
const BACKLOG_MAX: usize = 64;

/// What connects the peers of one process. Cheap to clone.
#[derive(Clone)]
pub struct MemoryNetwork {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    random: SplitMix,
    delay: Range<Duration>,
    listeners: BTreeMap<String, mpsc::Sender<Connection>>,
    /// The pairs that cannot reach each other, lesser designator first.
    severed: BTreeSet<(String, String)>,
    /// What ends the live connections of a pair.
    links: Vec<(String, String, watch::Sender<bool>)>,
}

impl MemoryNetwork {
    /// Returns a network whose every message takes a time out of `delay`, drawn from `seed`.
    pub fn new(seed: u64, delay: Range<Duration>) -> Self {
        let shared = Shared {
            random: SplitMix(seed),
            delay,
            listeners: BTreeMap::new(),
            severed: BTreeSet::new(),
            links: Vec::new(),
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
        }
    }

    /// Returns the netlayer of a peer of this name, which must not be in use.
    pub fn netlayer(&self, designator: impl Into<String>) -> Memory {
        let designator = designator.into();
        let (sender, accepted) = mpsc::channel(BACKLOG_MAX);
        self.lock().listeners.insert(designator.clone(), sender);
        Memory {
            network: self.clone(),
            designator,
            accepted: AsyncMutex::new(accepted),
            closed: watch::Sender::new(false),
        }
    }

    /// Ends all connections between two peers; new ones can be made at once.
    pub fn cut(&self, one: &str, other: &str) {
        let pair = pair(one, other);
        self.lock().links.retain(|(a, b, ended)| {
            let of_pair = (a, b) == (&pair.0, &pair.1);
            if of_pair {
                ended.send_replace(true);
            }
            !of_pair
        });
    }

    /// Ends all connections between two peers, and lets none be made until they are joined again.
    pub fn sever(&self, one: &str, other: &str) {
        self.lock().severed.insert(pair(one, other));
        self.cut(one, other);
    }

    /// Lets two peers connect again.
    pub fn join(&self, one: &str, other: &str) {
        self.lock().severed.remove(&pair(one, other));
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw_delay(&self) -> Duration {
        let mut shared = self.lock();
        let Range { start, end } = shared.delay;
        let width = end
            .saturating_sub(start)
            .as_nanos()
            .min(u128::from(u64::MAX)) as u64;
        match width {
            0 => start,
            width => start + Duration::from_nanos(shared.random.next() % width),
        }
    }

    /// Makes both ends of a connection, and returns them with the way to the listener.
    fn link(
        &self,
        from: &str,
        to: &str,
    ) -> Option<(Connection, Connection, mpsc::Sender<Connection>)> {
        let (ended, _) = watch::channel(false);
        let (there, from_here) = self.channel(&ended);
        let (back, from_there) = self.channel(&ended);
        let mut shared = self.lock();
        let pair = pair(from, to);
        let listener = shared
            .listeners
            .get(to)
            .filter(|_| !shared.severed.contains(&pair))?
            .clone();
        shared
            .links
            .retain(|(_, _, ended)| ended.receiver_count() > 0);
        shared.links.push((pair.0, pair.1, ended));
        let connection =
            |proven: &str, outgoing: MemoryOutgoing, incoming: MemoryIncoming| Connection {
                proven: Some(proven.to_owned()),
                address: None,
                incoming: Box::new(incoming),
                outgoing: Box::new(outgoing),
            };
        Some((
            connection(to, there, from_there),
            connection(from, back, from_here),
            listener,
        ))
    }

    fn channel(&self, ended: &watch::Sender<bool>) -> (MemoryOutgoing, MemoryIncoming) {
        let (sender, receiver) = mpsc::channel(IN_FLIGHT_MAX);
        let outgoing = MemoryOutgoing {
            network: self.clone(),
            sender: Some(sender),
            last_arrival: Instant::now(),
            ended: ended.subscribe(),
        };
        (
            outgoing,
            MemoryIncoming {
                receiver,
                next: None,
                ended: ended.subscribe(),
            },
        )
    }
}

/// The netlayer of one peer in a [`MemoryNetwork`].
pub struct Memory {
    network: MemoryNetwork,
    designator: String,
    accepted: AsyncMutex<mpsc::Receiver<Connection>>,
    closed: watch::Sender<bool>,
}

impl Netlayer for Memory {
    fn transport(&self) -> &str {
        TRANSPORT
    }

    fn locator(&self) -> PeerLocator {
        PeerLocator::new(TRANSPORT, self.designator.as_str())
    }

    fn dial<'a>(&'a self, to: &'a PeerLocator) -> BoxFuture<'a, Result<Connection, DialError>> {
        async move {
            if to.transport != TRANSPORT {
                return Err(DialError::Transport(to.transport.clone()));
            }
            let unreachable = || DialError::Unreachable {
                address: to.designator.clone(),
                source: io::ErrorKind::ConnectionRefused.into(),
            };
            let (near, far, listener) = self
                .network
                .link(&self.designator, &to.designator)
                .ok_or_else(unreachable)?;
            listener.send(far).await.map_err(|_| unreachable())?;
            Ok(near)
        }
        .boxed()
    }

    fn accept(&self) -> BoxFuture<'_, Option<Connection>> {
        async move {
            let mut closed = self.closed.subscribe();
            tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => None,
                connection = async { self.accepted.lock().await.recv().await } => connection,
            }
        }
        .boxed()
    }

    fn close(&self) {
        self.network.lock().listeners.remove(&self.designator);
        self.closed.send_replace(true);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.close();
    }
}

struct MemoryOutgoing {
    network: MemoryNetwork,
    sender: Option<mpsc::Sender<(Instant, Bytes)>>,
    last_arrival: Instant,
    ended: watch::Receiver<bool>,
}

impl Outgoing for MemoryOutgoing {
    fn write<'a>(&'a mut self, messages: &'a mut Vec<Bytes>) -> BoxFuture<'a, io::Result<()>> {
        async move {
            for message in messages.drain(..) {
                let arrival = Instant::now() + self.network.draw_delay();
                self.last_arrival = self.last_arrival.max(arrival);
                let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
                let sender = self.sender.as_ref().ok_or_else(broken)?;
                tokio::select! {
                    biased;
                    _ = self.ended.wait_for(|ended| *ended) => return Err(broken()),
                    sent = sender.send((self.last_arrival, message)) => sent.map_err(|_| broken())?,
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn close(&mut self) -> BoxFuture<'_, io::Result<()>> {
        self.sender = None;
        async { Ok(()) }.boxed()
    }
}

struct MemoryIncoming {
    receiver: mpsc::Receiver<(Instant, Bytes)>,
    /// A message that has been taken from the channel and waits for its time.
    next: Option<(Instant, Bytes)>,
    ended: watch::Receiver<bool>,
}

impl Incoming for MemoryIncoming {
    fn read<'a>(&'a mut self, into: &'a mut Vec<Bytes>) -> BoxFuture<'a, io::Result<bool>> {
        async move {
            let next = &mut self.next;
            let receiver = &mut self.receiver;
            tokio::select! {
                biased;
                _ = self.ended.wait_for(|ended| *ended) => {
                    Err(io::ErrorKind::ConnectionReset.into())
                }
                more = async {
                    if next.is_none() {
                        *next = receiver.recv().await;
                    }
                    match next {
                        Some((arrival, _)) => sleep_until(*arrival).await,
                        None => return false,
                    }
                    true
                } => {
                    into.extend(self.next.take().map(|(_, message)| message));
                    Ok(more)
                }
            }
        }
        .boxed()
    }
}

fn pair(one: &str, other: &str) -> (String, String) {
    (one.min(other).to_owned(), one.max(other).to_owned())
}

/// Sebastiano Vigna's SplitMix64: a few good bits for delays, the same for the same seed.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
