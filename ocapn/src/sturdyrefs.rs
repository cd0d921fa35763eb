//! A ready-made table of sturdyrefs, in memory.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use sha2::{Digest, Sha256};

use crate::captp::promise::Reference;
use crate::locator::{PeerId, PeerLocator, Sturdyref, Swissnum};
use crate::peer::SturdyrefTable;

/// Random bytes of a swissnum: nobody guesses 256 bits.
const SWISSNUM_BYTES: usize = 32;

/// Objects by random swissnums, each perhaps for one peer only, until they are revoked.
///
/// The table keeps what it exports alive. It holds hashes, so that neither a look at it nor the
/// time of a search tells a swissnum. It is lost with the process: whoever needs names that last
/// longer keeps a table of their own ([`SturdyrefTable`]).
///
/// ```
/// # use std::{sync::Arc, time::Duration};
/// # use ocapn::netlayer::memory::MemoryNetwork;
/// # use ocapn::{Methods, Peer, Sturdyrefs, Turn};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let network = MemoryNetwork::new(1, Duration::ZERO..Duration::ZERO);
/// let table = Arc::new(Sturdyrefs::new());
/// let alice = Peer::builder()
///     .netlayer(network.netlayer("alice"))
///     .sturdyrefs(table.clone())
///     .spawn();
/// let greeter = Methods::new()
///     .on("greet", |_: &Turn, (name,): (String,)| Ok(format!("Hello, {name}!")));
/// let sturdyref = table.export(&alice.locator(), &alice.export(greeter))?;
///
/// let bob = Peer::builder().netlayer(network.netlayer("bob")).spawn();
/// let greeter = bob.enliven(&sturdyref).await?;
/// assert_eq!(greeter.ask::<String>("greet", ("Bob",)).await?, "Hello, Bob!");
///
/// table.revoke(&sturdyref.swissnum);
/// assert!(bob.enliven(&sturdyref).await.is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
pub struct Sturdyrefs(Mutex<HashMap<Hash, Entry>>);

/// The hash of a swissnum.
type Hash = [u8; 32];

struct Entry {
    object: Reference,
    /// The designator of the only peer that may fetch the object.
    bound_to: Option<String>,
}

impl Sturdyrefs {
    /// Returns an empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Exports an object of the peer at `location` under a new swissnum, for whoever knows it.
    ///
    /// # Errors
    /// When the operating system has no randomness.
    pub fn export(&self, location: &PeerLocator, object: &Reference) -> io::Result<Sturdyref> {
        self.export_to(location, object, None)
    }

    /// Exports an object of the peer at `location` under a new swissnum that works for the peer
    /// with this designator alone, on a netlayer that proves it.
    ///
    /// # Errors
    /// When the operating system has no randomness.
    pub fn export_bound(
        &self,
        location: &PeerLocator,
        object: &Reference,
        designator: impl Into<String>,
    ) -> io::Result<Sturdyref> {
        self.export_to(location, object, Some(designator.into()))
    }

    /// Exports an object under a swissnum that is given, in place of what it named before.
    pub fn register(&self, swissnum: &Swissnum, object: &Reference) {
        let entry = Entry {
            object: object.clone(),
            bound_to: None,
        };
        let old = self.entries().insert(hash(swissnum.reveal()), entry);
        drop(old);
    }

    /// Makes a swissnum name nothing; false if it did not. References that were fetched stay
    /// live: what must end with them is exported behind a [`crate::Caretaker`].
    pub fn revoke(&self, swissnum: &Swissnum) -> bool {
        let old = self.entries().remove(&hash(swissnum.reveal()));
        old.is_some()
    }

    /// Returns how many swissnums name something.
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// Returns whether no swissnum names anything.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn export_to(
        &self,
        location: &PeerLocator,
        object: &Reference,
        bound_to: Option<String>,
    ) -> io::Result<Sturdyref> {
        let mut swissnum = vec![0; SWISSNUM_BYTES];
        getrandom::fill(&mut swissnum).map_err(io::Error::other)?;
        let swissnum = Swissnum::new(swissnum);
        let entry = Entry {
            object: object.clone(),
            bound_to,
        };
        self.entries().insert(hash(swissnum.reveal()), entry);
        Ok(Sturdyref {
            peer: location.clone(),
            swissnum,
        })
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Hash, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SturdyrefTable for Sturdyrefs {
    fn fetch(&self, swissnum: Bytes, from: &PeerId) -> BoxFuture<'static, Option<Reference>> {
        let entries = self.entries();
        let entry = entries.get(&hash(&swissnum));
        let allowed = entry.filter(|entry| match &entry.bound_to {
            Some(designator) => from.authenticated && from.designator == *designator,
            None => true,
        });
        std::future::ready(allowed.map(|entry| entry.object.clone())).boxed()
    }
}

fn hash(swissnum: &[u8]) -> Hash {
    Sha256::digest(swissnum).into()
}
