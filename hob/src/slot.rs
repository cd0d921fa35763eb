//! One name on the machine: its sockets, its files, and the grant behind them, once there is one.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{Semaphore, watch};

use crate::binding::{Link, lock};
use crate::expose::{DEFAULT_SOCKET, ExposeError, Socket};
use crate::files::{self, Entries};
use crate::owner::Owner;
use crate::programs::ROOT_VARIABLE;
use crate::protocol::{Expose, Held, Place};
use crate::service::Local;
use crate::store::BindingRow;

/// Connections of one name that wait for its grant; more are closed at once. A program that
/// starts before its binding opens a pool of them.
const WAITING_MAX: usize = 1_024;

/// One name.
pub(crate) struct Slot {
    name: String,
    /// What the files are in.
    pub(crate) directory: PathBuf,
    /// The file of the environment.
    environment: PathBuf,
    shown: Mutex<Shown>,
    pub(crate) sockets: Mutex<Vec<Socket>>,
    link: watch::Sender<Option<Arc<Link>>>,
    /// Generations before, whose streams may still drain.
    pub(crate) former: Mutex<Vec<Weak<Link>>>,
    /// Whether it was said that the sockets could not be made.
    pub(crate) is_failing: AtomicBool,
    /// Places of connections that wait for the grant.
    pub(crate) waiting: Arc<Semaphore>,
}

/// What programs are told of a name.
#[derive(Clone, Default)]
struct Shown {
    exposes: Vec<Expose>,
    variables: BTreeMap<String, String>,
}

/// One listener that is asked for.
struct Listening {
    place: Place,
    owner: Owner,
}

impl Slot {
    /// Returns a name that nothing is behind yet.
    pub(crate) fn new(name: &str, bindings: &Path, environment: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            directory: bindings.join(name),
            environment,
            shown: Mutex::default(),
            sockets: Mutex::default(),
            link: watch::Sender::new(None),
            former: Mutex::default(),
            is_failing: AtomicBool::new(false),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
        })
    }

    /// Returns the grant behind the name.
    pub(crate) fn link(&self) -> Option<Arc<Link>> {
        self.link.borrow().clone()
    }

    /// Waits until there is a grant behind the name.
    pub(crate) async fn granted(&self) -> Option<Arc<Link>> {
        let mut link = self.link.subscribe();
        let found = link.wait_for(Option::is_some).await;
        found.ok()?.clone()
    }

    /// Puts a grant behind the name; one that is there already is only made live again.
    pub(crate) fn replace(&self, link: Arc<Link>) {
        let current = self.link();
        if let Some(current) = &current
            && current.is_same(&link)
        {
            return current.take_live(&link);
        }
        self.link.send_replace(Some(link));
        let mut all = lock(&self.former);
        all.retain(|former| former.strong_count() > 0);
        all.extend(current.as_ref().map(Arc::downgrade));
    }

    /// Returns where the name is listened for.
    pub(crate) fn bound(&self) -> Vec<Place> {
        let sockets = lock(&self.sockets);
        sockets.iter().map(|socket| socket.bound.clone()).collect()
    }

    /// Returns what the boss is told.
    pub(crate) fn held(&self) -> Held {
        let first = self.bound().into_iter().next();
        Held {
            address: first.map(|place| place.to_string()).unwrap_or_default(),
            directory: self.directory.display().to_string(),
        }
    }

    /// Returns what the name adds to the environment of programs.
    pub(crate) fn variables(&self) -> BTreeMap<String, String> {
        lock(&self.shown).variables.clone()
    }

    /// Returns the units that get the name's environment.
    pub(crate) fn units(&self) -> Vec<String> {
        let shown = lock(&self.shown);
        let units = shown.exposes.iter();
        units.filter_map(|expose| expose.unit.clone()).collect()
    }

    /// Returns what is in the file of the environment.
    pub(crate) fn environment_text(&self) -> String {
        self.text_of(&lock(&self.shown))
    }

    fn text_of(&self, shown: &Shown) -> String {
        let mut variables = shown.variables.clone();
        if let Some(root) = self.directory.parent() {
            variables.insert(ROOT_VARIABLE.into(), root.display().to_string());
        }
        files::environment_file(&variables)
    }

    /// Returns whether programs of this user may know of the name.
    pub(crate) fn shows(&self, uid: u32) -> bool {
        lock(&self.sockets).iter().any(|socket| socket.shows(uid))
    }

    /// Returns whether every socket that is asked for is listened on and found.
    pub(crate) fn is_whole(&self, exposes: &[Expose]) -> bool {
        let sockets = lock(&self.sockets);
        let is_there = |place: Place| {
            let mut of_it = sockets.iter().filter(|socket| socket.asked == place);
            of_it.any(Socket::is_there)
        };
        self.places(exposes).all(is_there)
    }

    /// Returns the places that are asked for.
    pub(crate) fn places<'a>(&'a self, exposes: &'a [Expose]) -> impl Iterator<Item = Place> + 'a {
        let default = (exposes.is_empty()).then(|| self.place(&Expose::default()));
        let asked = exposes.iter().map(|expose| self.place(expose));
        asked.chain(default)
    }

    fn place(&self, expose: &Expose) -> Place {
        let default = || Place::Unix(self.directory.join(DEFAULT_SOCKET));
        expose.place.clone().unwrap_or_else(default)
    }

    /// Makes the sockets that are asked for out of those in `kept` and new ones, which give their
    /// connections to `take`. A port that was chosen once, as `bound` says, is kept.
    ///
    /// Returns those that are ready, and the first error.
    pub(crate) async fn open_sockets<T: Fn(Local) + Send + Sync + 'static>(
        &self,
        exposes: &[Expose],
        bound: &[Place],
        kept: &mut Vec<Socket>,
        take: impl Fn() -> T,
    ) -> (Vec<Socket>, Option<ExposeError>) {
        let asked = match self.listenings(exposes) {
            Ok(asked) => asked,
            Err(error) => return (Vec::new(), Some(error)),
        };
        let (mut sockets, mut failed) = (Vec::new(), None);
        for (n, Listening { place, owner }) in asked.iter().enumerate() {
            let same = |socket: &Socket| socket.asked == *place && socket.is_there();
            if let Some(at) = kept.iter().position(same) {
                sockets.push((kept.swap_remove(at), *owner));
                continue;
            }
            let bound = bound.get(n).unwrap_or(place);
            let opened = async {
                if matches!(place, Place::Unix(path) if path.starts_with(&self.directory)) {
                    let shared = asked.iter().any(|it| it.owner.is_declared);
                    files::make_dir(&self.directory, shared).map_err(|source| {
                        ExposeError::Listen {
                            address: self.directory.display().to_string(),
                            source,
                        }
                    })?;
                }
                Socket::open(place.clone(), bound, *owner, take()).await
            };
            match opened.await {
                Ok(socket) => sockets.push((socket, *owner)),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        // Last, since it changes what programs are using.
        for (socket, owner) in sockets.iter().filter(|_| failed.is_none()) {
            if let Err(error) = socket.give(*owner) {
                failed = Some(error);
                break;
            }
        }
        let sockets = sockets.into_iter().map(|(socket, _)| socket);
        (sockets.collect(), failed)
    }

    fn listenings(&self, exposes: &[Expose]) -> Result<Vec<Listening>, ExposeError> {
        let default = [Expose::default()];
        let exposes = match exposes {
            [] => &default,
            exposes => exposes,
        };
        let mut listenings: Vec<Listening> = Vec::new();
        for expose in exposes {
            let (place, owner) = (self.place(expose), Owner::of(expose)?);
            // One socket may be told to several units.
            if listenings.iter().all(|it| it.place != place) {
                listenings.push(Listening { place, owner });
            }
        }
        Ok(listenings)
    }

    /// Returns where a row is listened for: a port that is taken for the moment too, since it is
    /// tried again.
    pub(crate) fn bound_of(&self, row: &BindingRow) -> Vec<Place> {
        let sockets = lock(&self.sockets);
        let places = self.places(&row.registration.expose).enumerate();
        let bound = places.map(|(n, place)| {
            let socket = sockets.iter().find(|socket| socket.asked == place);
            let bound = socket
                .map(|socket| &socket.bound)
                .or_else(|| row.bound.get(n));
            bound.cloned().unwrap_or(place)
        });
        bound.collect()
    }

    /// Checks the environment of a row, as far as it is known before its sockets are there.
    ///
    /// # Errors
    /// When a variable is to hold what the binding does not have.
    pub(crate) fn check(&self, row: &BindingRow) -> Result<(), ExposeError> {
        let places = self.places(&row.registration.expose).collect();
        self.shown_of(row, places).map(drop)
    }

    fn shown_of(&self, row: &BindingRow, places: Vec<Place>) -> Result<Shown, ExposeError> {
        let exposes = match row.registration.expose.as_slice() {
            [] => vec![Expose::default()],
            exposes => exposes.to_vec(),
        };
        let all: Vec<(Expose, Place, Entries)> = exposes
            .iter()
            .zip(places)
            .map(|(expose, place)| {
                let entries = files::entries(&row.service, &place, &self.directory);
                (expose.clone(), place, entries)
            })
            .collect();
        let variables = files::variables(&self.name, &all)?;
        Ok(Shown { exposes, variables })
    }

    /// Writes what programs are told, once the sockets are there.
    pub(crate) async fn write_files(&self, row: &BindingRow) -> io::Result<()> {
        let shown = self
            .shown_of(row, self.bound_of(row))
            .map_err(io::Error::other)?;
        *lock(&self.shown) = shown.clone();
        let Some(first) = self.bound_of(row).into_iter().next() else {
            return Ok(());
        };
        let owner = shown.exposes.first().map(Owner::of).transpose();
        let owner = owner.map_err(io::Error::other)?;
        let entries = files::entries(&row.service, &first, &self.directory);
        let kind = row.service.kind.clone();
        let (directory, environment) = (self.directory.clone(), self.environment.clone());
        let text = self.text_of(&shown);
        let write = move || {
            if let Some(owner) = owner {
                files::write_files(&directory, &entries, &owner)?;
                files::link_socket(&kind, &first, &directory)?;
            }
            if let Some(dir) = environment.parent() {
                files::make_dir(dir, false)?;
            }
            files::write_file(&environment, &text).map(drop)
        };
        let written = tokio::task::spawn_blocking(write).await;
        written.unwrap_or_else(|gone| Err(io::Error::other(gone)))
    }

    /// Removes what programs are told.
    pub(crate) async fn remove_files(&self) -> io::Result<()> {
        *lock(&self.shown) = Shown::default();
        let (directory, environment) = (self.directory.clone(), self.environment.clone());
        let remove = move || {
            files::remove_if_there(std::fs::remove_file(environment))?;
            files::remove_files(&directory)
        };
        let removed = tokio::task::spawn_blocking(remove).await;
        removed.unwrap_or_else(|gone| Err(io::Error::other(gone)))
    }
}
