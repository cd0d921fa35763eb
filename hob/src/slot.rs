//! One name on the machine: its sockets, its files, and the grant behind them, once there is one.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{Semaphore, watch};

use crate::binding::{Link, deliver, lock};
use crate::expose::{ExposeError, Socket};
use crate::files::{self, Entries};
use crate::front;
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
    /// What the grant behind the name took the place of: it comes back if that is given up alone.
    /// After a restart of the hob it does not.
    pub(crate) before: Mutex<Option<BindingRow>>,
    /// Whether it was said that the sockets could not be made.
    pub(crate) is_failing: AtomicBool,
    /// Whether programs connect: not to a kind without streams, which is known with the grant.
    has_sockets: AtomicBool,
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
            before: Mutex::default(),
            is_failing: AtomicBool::new(false),
            has_sockets: AtomicBool::new(true),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
        })
    }

    /// Returns the grant behind the name.
    pub(crate) fn link(&self) -> Option<Arc<Link>> {
        self.link.borrow().clone()
    }

    /// Says what kind of service the name is for.
    pub(crate) fn set_kind(&self, kind: &str) {
        self.has_sockets
            .store(front::has_streams(kind), Ordering::Relaxed);
    }

    fn has_sockets(&self) -> bool {
        self.has_sockets.load(Ordering::Relaxed)
    }

    /// Waits until there is a grant behind the name.
    pub(crate) async fn granted(&self) -> Option<Arc<Link>> {
        let mut link = self.link.subscribe();
        let found = link.wait_for(Option::is_some).await;
        found.ok()?.clone()
    }

    /// Puts a grant behind the name; one that is there already is only made live again, so that
    /// its streams go on. A secret has none, and is delivered anew.
    pub(crate) fn replace(&self, link: Arc<Link>) {
        let current = self.link();
        if let Some(current) = &current
            && current.is_same(&link)
            && current.kind != deliver::KIND
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
        let without = || match self.link() {
            Some(link) if link.kind == deliver::KIND => {
                format!("file:{}", self.directory.join(deliver::FILE).display())
            }
            Some(_) if !self.has_sockets() => format!("hob:{}", self.name),
            _ => String::new(),
        };
        Held {
            address: first.map_or_else(without, |place| place.to_string()),
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
        if !self.has_sockets() {
            let shown = lock(&self.shown).exposes.clone();
            let mut owners = shown.iter().map(Owner::of);
            return owners.any(|owner| owner.is_ok_and(|owner| owner.shows(uid)));
        }
        lock(&self.sockets).iter().any(|socket| socket.shows(uid))
    }

    /// Returns whether every socket that is asked for is listened on and found.
    pub(crate) fn is_whole(&self, exposes: &[Expose]) -> bool {
        let sockets = lock(&self.sockets);
        let is_there = |place: Place| {
            let mut of_it = sockets.iter().filter(|socket| socket.asked == place);
            of_it.any(Socket::is_there)
        };
        let has_files = || self.directory.join("type").exists();
        self.places(exposes).all(is_there) && (self.has_sockets() || has_files())
    }

    /// Returns the places that are asked for.
    pub(crate) fn places<'a>(&'a self, exposes: &'a [Expose]) -> impl Iterator<Item = Place> + 'a {
        let has_sockets = self.has_sockets();
        let is_default = has_sockets && exposes.is_empty();
        let default = is_default.then(|| self.place(&Expose::default()));
        let asked = exposes.iter().filter(move |_| has_sockets);
        asked.map(|expose| self.place(expose)).chain(default)
    }

    fn place(&self, expose: &Expose) -> Place {
        let default = || Place::Unix(files::default_socket(&self.directory));
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
                if let Place::Unix(path) = place {
                    let shared = asked.iter().any(|it| it.owner.is_declared);
                    self.make_dirs(path, shared)?;
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

    /// Makes the directories of a socket, if they are the binding's own.
    fn make_dirs(&self, socket: &Path, is_shared: bool) -> Result<(), ExposeError> {
        let own = socket.ancestors().skip(1);
        let mut own: Vec<_> = own
            .take_while(|it| it.starts_with(&self.directory))
            .collect();
        own.reverse();
        own.into_iter().try_for_each(|dir| {
            files::make_dir(dir, is_shared).map_err(|source| ExposeError::Listen {
                address: dir.display().to_string(),
                source,
            })
        })
    }

    fn listenings(&self, exposes: &[Expose]) -> Result<Vec<Listening>, ExposeError> {
        let default = [Expose::default()];
        let exposes = match exposes {
            _ if !self.has_sockets() => return Ok(Vec::new()),
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
        let mut variables = files::variables(&self.name, &all)?;
        if !self.has_sockets() {
            let entries = files::told(&row.service, &self.directory);
            if let Some(path) = entries.get("path") {
                variables.insert(format!("{}_FILE", files::prefix(&self.name)), path.clone());
            }
            for expose in &exposes {
                files::add_asked(expose, &entries, &mut variables)?;
            }
        }
        Ok(Shown { exposes, variables })
    }

    /// Returns whose the files of a row are.
    pub(crate) fn owner_of(&self, row: &BindingRow) -> Result<Owner, ExposeError> {
        let first = row.registration.expose.first();
        Ok(Owner::of(first.unwrap_or(&Expose::default()))?)
    }

    /// Writes what programs are told, once the sockets are there.
    pub(crate) async fn write_files(&self, row: &BindingRow) -> io::Result<()> {
        let shown = self
            .shown_of(row, self.bound_of(row))
            .map_err(io::Error::other)?;
        *lock(&self.shown) = shown.clone();
        let first = self.bound_of(row).into_iter().next();
        let entries = match &first {
            Some(first) => files::entries(&row.service, first, &self.directory),
            None if self.has_sockets() => return Ok(()),
            None => files::told(&row.service, &self.directory),
        };
        let owner = shown.exposes.first().map(Owner::of).transpose();
        let owner = owner.map_err(io::Error::other)?;
        let kind = row.service.kind.clone();
        let (directory, environment) = (self.directory.clone(), self.environment.clone());
        let text = self.text_of(&shown);
        let write = move || {
            if let Some(owner) = owner {
                files::write_files(&directory, &entries, &owner)?;
                if let Some(first) = &first {
                    files::link_socket(&kind, first, &directory, &owner)?;
                }
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
