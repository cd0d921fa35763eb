//! Databases of a PostgreSQL server on the machine.
//!
//! Each generation of a binding has a role of its own, with its own rights and its own limit of
//! connections; `install.sql` says how. Nobody knows a password of it: the hob logs in with keys
//! that follow from its own. A program's start-up is read here, and another one is sent to the
//! server: so the program lands as its role in its database, whatever it asked for. From then on
//! its bytes pass untouched.

mod admin;
mod front;
mod role;
mod scram;
mod session;
mod wire;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use self::admin::{Admin, AdminError, Place};
use self::role::{Role, access};
use self::session::{LoggedIn, LoginError};
use self::wire::{CancelKey, First, Report, Startup};
use super::{Dialled, Lease, Local, Opening, ServeError, ServiceError};
use crate::grant::Chain;
use crate::protocol::{Generation, Postgres};
use crate::splice::splice;

pub(crate) use self::admin::setup;
pub(crate) use self::front::{SOCKET_NAME, check, decline, entries, front, of_socket};
pub(crate) use self::role::role_name;

/// How long the receiver may take to send its first packet, which it has whole before it asks for
/// the stream.
const FIRST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a server may take to let a role in: it may have to start a process first.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a server may take to close the connection of a cancel request.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long sessions may take to end once they were told to. Below the 5 s that a revocation has.
const SESSIONS_DEADLINE: Duration = Duration::from_secs(3);

/// The pause between two scans for sessions that live on.
const SCAN_PAUSE: Duration = Duration::from_millis(5);

/// How long an idle session of the hob's own is kept for the next role.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Sessions of the hob's own that are kept for one service: grants of a machine come one by one.
const IDLE_SESSIONS_MAX: usize = 2;

/// How long roles go on to come in by TCP before the socket is tried again, which makes the server
/// log a refusal: somebody may have added the line to `pg_hba.conf`.
const TCP_KEPT: Duration = Duration::from_secs(600);

/// How often it is seen to that the server still knows a binding's role, when programs connect: its
/// database may have been dropped and made again, and lets it in all the same.
const KNOWN_PAUSE: Duration = Duration::from_secs(10);

/// How long a program waits for that.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// What the hob knows of the machine's servers. Nothing of it must be kept.
#[derive(Default)]
pub(crate) struct Servers {
    /// Sessions of the hob's own that wait for the next call.
    idle: Arc<Mutex<Idle>>,
    /// How roles got in, and since when they do.
    routes: Mutex<HashMap<Place, (Route, Instant)>>,
    /// What cancels the sessions of each grant.
    sessions: Mutex<HashMap<CancelKey, Generation>>,
    /// Held while a grant's role is mended or taken away, so that it is not made after its end.
    mending: Mutex<HashMap<Generation, Weak<tokio::sync::Mutex<()>>>>,
    /// When it was last seen to that a grant's role is known.
    known: Mutex<HashMap<Generation, Instant>>,
}

/// Sessions that wait, by their service, each since when.
type Idle = HashMap<Postgres, Vec<(Instant, Admin)>>;

/// How the roles of bindings get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// By the server's socket: a third less time for a short query.
    Socket,
    /// By its TCP port: Debian's servers ask for no password on the socket, and take only whom the
    /// machine knows by the role's name. A line in `pg_hba.conf` lets roles of `gobs_binding` in.
    Tcp,
}

/// What is done in a session of the hob's own.
enum Task {
    /// See that it is up.
    Probe,
    /// Make a role: what `gobs.mint` takes.
    Mint([String; 6]),
    /// The same, unless it is as it should be.
    Keep([String; 6]),
    /// Unmake the role of this name.
    Unmint(String),
}

/// A session's entry in [`Servers::sessions`], taken out when dropped.
struct Entry<'a> {
    servers: &'a Servers,
    key: Option<CancelKey>,
}

impl std::fmt::Debug for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Servers")
    }
}

impl Servers {
    /// Logs in as the hob, and sees that what it needs is installed.
    pub(crate) async fn probe(&self, spec: &Postgres) -> Result<(), ServiceError> {
        self.perform(spec, &Task::Probe).await?;
        Ok(())
    }

    /// Makes the grant's role, and sees that it gets in.
    pub(crate) async fn mint(&self, spec: &Postgres, lease: &Lease) -> Result<(), ServiceError> {
        self.make(spec, lease, Task::Mint).await
    }

    async fn make(
        &self,
        spec: &Postgres,
        lease: &Lease,
        task: fn([String; 6]) -> Task,
    ) -> Result<(), ServiceError> {
        let role = Role::of(lease);
        let access = access(lease)?;
        let schemas = lease.rights.schemas.as_deref().unwrap_or_default();
        let schemas = serde_json::to_string(schemas).unwrap_or_default();
        let connections = lease.rights.connections_max.map_or(-1, i64::from);
        let Generation {
            binding,
            generation,
        } = &lease.generation;
        let note = format!("{binding} generation {generation}");
        let parameters = [
            role.name.clone(),
            role.keys.verifier(),
            connections.to_string(),
            access.into(),
            schemas,
            note,
        ];
        self.perform(spec, &task(parameters)).await?;
        lock(&self.known).insert(lease.generation.clone(), Instant::now());
        let place = Place::of(spec);
        if !lock(&self.routes).contains_key(&place) {
            let startup = role.startup(spec, wire::VERSION, Vec::new());
            let in_time = timeout(LOGIN_TIMEOUT, self.log_in(&place, &startup, &role));
            match in_time.await {
                // As many sessions as it may have: it got as far as that.
                Ok(Err(LoginError::Refused(report))) if report.code == "53300" => {}
                Ok(logged_in) => drop(logged_in.map_err(|error| no_route(&place, error))?),
                Err(_) => return Err(ServiceError::Away(format!("{spec:?} is slow"))),
            }
        }
        Ok(())
    }

    /// Ends what the role of a generation has, and the role. Its streams are cut already.
    pub(crate) async fn unmint(&self, spec: &Postgres, gone: &Lease) -> Result<(), ServiceError> {
        let role = role_name(&gone.generation, &gone.secret);
        let mending = self.mending(&gone.generation);
        let _mending = mending.lock_owned().await;
        lock(&self.known).remove(&gone.generation);
        Ok(self.perform(spec, &Task::Unmint(role)).await?)
    }

    /// Carries one stream.
    pub(crate) async fn serve<S>(
        self: &Arc<Self>,
        spec: &Postgres,
        lease: &Lease,
        opening: Opening<'_, S>,
    ) -> Result<(), ServeError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        // What goes wrong is said as the server would: the program understands that.
        let stream = opening.open().await?;
        let first = timeout(FIRST_TIMEOUT, wire::read_first(stream)).await;
        let first = first.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        let asked = match first {
            Ok(None) => return Ok(()),
            Ok(Some(First::Startup(startup))) => startup,
            Ok(Some(First::Cancel(key))) => {
                self.cancel(spec, lease, &key).await?;
                return Ok(());
            }
            Ok(Some(First::Tls | First::Gss)) => {
                let report = Report::fatal("08P01", "the receiver's hob answers that itself");
                return Ok(refuse(stream, &report).await?);
            }
            Err(error) => return Ok(refuse(stream, &error.report()).await?),
        };
        if lease.crowded {
            let text = "as many connections as the binding allows are open";
            return Ok(refuse(stream, &Report::fatal("53300", text)).await?);
        }
        let role = Role::of(lease);
        let startup = match asked.narrowed() {
            Ok(parameters) => role.startup(spec, asked.version, parameters),
            Err(report) => return Ok(refuse(stream, &report).await?),
        };
        let logged_in = timeout(LOGIN_TIMEOUT, self.enter(spec, lease, &role, &startup)).await;
        let logged_in = logged_in.unwrap_or_else(|_| {
            Err(Report::fatal(
                "57P03",
                format!(
                    "the database server did not answer in {} s",
                    LOGIN_TIMEOUT.as_secs()
                ),
            ))
        });
        let (mut server, up) = match logged_in {
            Ok(logged_in) => logged_in,
            Err(report) => return Ok(refuse(stream, &report).await?),
        };
        let _entry = self.register(&lease.generation, up.key);
        stream.write_all(&up.said).await?;
        stream.flush().await?;
        splice(stream, &mut *server).await?;
        server.end();
        Ok(())
    }

    /// Logs a program in as its role, which is mended if somebody has spoiled it.
    async fn enter(
        self: &Arc<Self>,
        spec: &Postgres,
        lease: &Lease,
        role: &Role,
        startup: &Startup,
    ) -> Result<(Dialled, LoggedIn), Report> {
        let place = Place::of(spec);
        let (logged_in, ()) = tokio::join!(
            self.log_in(&place, startup, role),
            self.see_known(spec, lease)
        );
        let error = match logged_in {
            Ok(logged_in) => return Ok(logged_in),
            Err(error) => error,
        };
        let spoiled = match &error {
            LoginError::Refused(report) if report.code == "3D000" => {
                // When its database is there again, that knows nothing of it.
                lock(&self.known).remove(&lease.generation);
                false
            }
            // A role can change its own password.
            LoginError::Refused(report) => report.code == "28P01" || report.code == "28000",
            LoginError::Mismatch(_) => true,
            LoginError::Io(_) | LoginError::Method(_) => false,
        };
        let error = if spoiled && self.mend(spec, lease, Task::Mint).await {
            match self.log_in(&place, startup, role).await {
                Ok(logged_in) => return Ok(logged_in),
                Err(error) => error,
            }
        } else {
            error
        };
        let binding = &lease.generation.binding;
        tracing::warn!(%binding, error = %Chain(&error), "the server let the role not in");
        Err(match error {
            LoginError::Refused(report) => *report,
            LoginError::Io(_) => Report::fatal("57P03", "the database server does not answer"),
            LoginError::Method(_) | LoginError::Mismatch(_) => Report::fatal(
                "28000",
                "the database server does not take the binding's role",
            ),
        })
    }

    /// Sees to it now and then that the server knows the role. Where that cannot be seen, what the
    /// role may do is what the program hears of it.
    async fn see_known(self: &Arc<Self>, spec: &Postgres, lease: &Lease) {
        let is_due = {
            let mut known = lock(&self.known);
            let seen = known.get(&lease.generation);
            let is_due = seen.is_none_or(|seen| seen.elapsed() >= KNOWN_PAUSE);
            if is_due {
                known.insert(lease.generation.clone(), Instant::now());
            }
            is_due
        };
        if is_due {
            let _ = timeout(KNOWN_TIMEOUT, self.mend(spec, lease, Task::Keep)).await;
        }
    }

    /// Makes a role again that somebody has spoiled. Whoever revokes waits for all streams to be
    /// cut, and then for this to be done: so it goes on when the stream is cut.
    async fn mend(
        self: &Arc<Self>,
        spec: &Postgres,
        lease: &Lease,
        task: fn([String; 6]) -> Task,
    ) -> bool {
        let mending = self.mending(&lease.generation).lock_owned().await;
        let (servers, spec, lease) = (Arc::clone(self), spec.clone(), lease.clone());
        let making = async move {
            let _mending = mending;
            servers.make(&spec, &lease, task).await.is_ok()
        };
        tokio::spawn(making).await.unwrap_or(false)
    }

    /// Returns what is held while the role of a grant is mended or taken away.
    fn mending(&self, generation: &Generation) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = lock(&self.mending);
        if let Some(held) = all.get(generation).and_then(Weak::upgrade) {
            return held;
        }
        all.retain(|_, held| held.strong_count() > 0);
        let held = Arc::default();
        all.insert(generation.clone(), Arc::downgrade(&held));
        held
    }

    /// Logs a role in by whichever way the server takes.
    async fn log_in(
        &self,
        place: &Place,
        startup: &Startup,
        role: &Role,
    ) -> Result<(Dialled, LoggedIn), LoginError> {
        let known = lock(&self.routes).get(place).copied();
        let routes = match known {
            Some((Route::Tcp, since)) if since.elapsed() < TCP_KEPT => [Route::Tcp, Route::Socket],
            _ => [Route::Socket, Route::Tcp],
        };
        let mut refused = None;
        for route in routes {
            let mut server = match dial(place, route).await {
                Ok(server) => server,
                // That the other way is closed says less than why this one was refused.
                Err(error) => return Err(refused.unwrap_or_else(|| error.into())),
            };
            match session::log_in(&mut *server, startup, Some(&role.keys)).await {
                Ok(up) => {
                    if known.is_none_or(|(before, _)| before != route) || route != routes[0] {
                        lock(&self.routes).insert(place.clone(), (route, Instant::now()));
                    }
                    return Ok((server, up));
                }
                // By this way the role does not come in at all.
                Err(error @ LoginError::Method(_)) => refused = Some(error),
                Err(LoginError::Refused(report)) if report.code == "28000" => {
                    refused = Some(LoginError::Refused(report));
                }
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or_else(|| io::Error::from(io::ErrorKind::NotConnected).into()))
    }

    /// Passes a cancel request on, if it is for a session of this very grant.
    async fn cancel(&self, spec: &Postgres, lease: &Lease, key: &CancelKey) -> io::Result<()> {
        if lock(&self.sessions).get(key) != Some(&lease.generation) {
            // A server says nothing either.
            return Ok(());
        }
        let place = Place::of(spec);
        let ask = async {
            let mut server = dial(&place, Route::Socket).await?;
            server.write_all(&key.encode()).await?;
            // It closes when it has passed the signal on: the client waits for that.
            server.read_to_end(&mut Vec::new()).await?;
            server.end();
            Ok(())
        };
        timeout(CANCEL_TIMEOUT, ask)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    fn register(&self, generation: &Generation, key: Option<CancelKey>) -> Entry<'_> {
        if let Some(key) = &key {
            lock(&self.sessions).insert(key.clone(), generation.clone());
        }
        Entry { servers: self, key }
    }

    /// Does something in a session of the hob's own: one that is kept, or a new one.
    async fn perform(&self, spec: &Postgres, task: &Task) -> Result<(), AdminError> {
        let kept = {
            let mut idle = lock(&self.idle);
            forget_old(&mut idle);
            idle.get_mut(spec).and_then(Vec::pop)
        };
        let is_first = kept.is_none();
        if let Some((_, mut admin)) = kept {
            match task.perform(&mut admin, spec).await {
                // It may be dead: the server was restarted.
                Err(error) if !error.is_harmless() => {}
                outcome => {
                    self.keep(spec, admin);
                    return outcome;
                }
            }
        }
        let place = Place::of(spec);
        let opened = match (
            place
                .open(spec, matches!(task, Task::Probe | Task::Mint(_)))
                .await,
            task,
        ) {
            (Err(AdminError::NoDatabase { .. }), Task::Unmint(role)) => {
                return place.unmake_alone(spec, role).await;
            }
            (opened, _) => opened,
        };
        let mut admin = opened.map_err(|error| match error {
            // Nothing was made by what went before either.
            AdminError::Down { socket, source } if is_first => {
                AdminError::Absent { socket, source }
            }
            error => error,
        })?;
        let outcome = task.perform(&mut admin, spec).await;
        if outcome.as_ref().err().is_none_or(AdminError::is_harmless) {
            self.keep(spec, admin);
        }
        outcome
    }

    fn keep(&self, spec: &Postgres, admin: Admin) {
        let mut idle = lock(&self.idle);
        let all = idle.entry(spec.clone()).or_default();
        if all.len() < IDLE_SESSIONS_MAX {
            all.push((Instant::now(), admin));
        }
        // One that nobody takes must not hold the database for good: it may be meant to go.
        let idle = Arc::downgrade(&self.idle);
        tokio::spawn(async move {
            sleep(IDLE_MAX).await;
            if let Some(idle) = idle.upgrade() {
                forget_old(&mut lock(&idle));
            }
        });
    }
}

impl Task {
    async fn perform(&self, admin: &mut Admin, spec: &Postgres) -> Result<(), AdminError> {
        match self {
            Self::Probe => admin.call("select gobs.version()", &[]).await.map(drop),
            Self::Mint(parameters) => {
                let statement = "select gobs.mint($1, $2, $3::integer, $4, $5::json, $6)";
                let parameters = parameters.each_ref().map(String::as_str);
                admin.call(statement, &parameters).await.map(drop)
            }
            Self::Keep(parameters) => {
                let statement = "select gobs.mint($1, $2, $3::integer, $4, $5::json, $6)
                                 where not gobs.knows($1)";
                let parameters = parameters.each_ref().map(String::as_str);
                admin.call(statement, &parameters).await.map(drop)
            }
            Self::Unmint(role) => unmint(admin, spec, role).await,
        }
    }
}

async fn unmint(admin: &mut Admin, spec: &Postgres, role: &str) -> Result<(), AdminError> {
    let closed = admin.call("select gobs.close($1)", &[role]).await?;
    let Some(id) = closed.into_iter().next().flatten() else {
        return Ok(());
    };
    end_sessions(admin, role, &id).await?;
    let mut left = unmake(admin, role).await?;
    if admin.is_superuser() {
        for database in &left {
            Place::of(spec).clear(spec, database, role).await?;
        }
        if !left.is_empty() {
            left = unmake(admin, role).await?;
        }
    }
    if !left.is_empty() {
        return Err(AdminError::Elsewhere {
            role: role.to_owned(),
            elsewhere: left.join(", "),
        });
    }
    // One that set another role before may have come through the first scans.
    end_sessions(admin, role, &id).await?;
    admin.call("select gobs.forget($1::oid)", &[&id]).await?;
    Ok(())
}

/// Takes a role away; returns the other databases where it has something, in which case it stays.
async fn unmake(admin: &mut Admin, role: &str) -> Result<Vec<String>, AdminError> {
    let left = admin.call("select gobs.unmake($1)", &[role]).await?;
    let left = left.into_iter().next().flatten().unwrap_or_default();
    Ok(serde_json::from_str(&left).unwrap_or_default())
}

/// Tells the sessions of a role to end, until there are none, twice.
async fn end_sessions(admin: &mut Admin, role: &str, id: &str) -> Result<(), AdminError> {
    let deadline = Instant::now() + SESSIONS_DEADLINE;
    let mut clean = 0;
    while clean < 2 {
        let found = admin.call("select gobs.cut($1::oid)", &[id]).await?;
        clean = match found.first() {
            Some(Some(none)) if none == "0" => clean + 1,
            _ => 0,
        };
        if Instant::now() >= deadline {
            return Err(AdminError::Sessions {
                role: role.to_owned(),
                after: SESSIONS_DEADLINE,
            });
        }
        if clean < 2 {
            sleep(SCAN_PAUSE).await;
        }
    }
    Ok(())
}

fn forget_old(idle: &mut Idle) {
    idle.retain(|_, all| {
        all.retain(|(since, _)| since.elapsed() < IDLE_MAX);
        !all.is_empty()
    });
}

async fn dial(place: &Place, route: Route) -> io::Result<Dialled> {
    let local = match route {
        Route::Socket => Local::Unix(place.dial(None).await?),
        Route::Tcp => {
            let stream = TcpStream::connect(("127.0.0.1", place.port)).await?;
            super::tune(&stream)?;
            Local::Tcp(stream)
        }
    };
    Ok(Dialled::new(local))
}

async fn refuse<S: AsyncWrite + Unpin>(stream: &mut S, report: &Report) -> io::Result<()> {
    stream.write_all(&report.encode()).await?;
    stream.shutdown().await
}

fn no_route(place: &Place, error: LoginError) -> AdminError {
    let socket = place.socket.clone();
    match error {
        LoginError::Io(source) => AdminError::Down { socket, source },
        error => AdminError::NoRoute {
            socket,
            port: place.port,
            source: error,
        },
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            lock(&self.servers.sessions).remove(key);
        }
    }
}

impl From<AdminError> for ServiceError {
    fn from(error: AdminError) -> Self {
        let text = Chain(&error).to_string();
        match error {
            AdminError::Absent { .. } => Self::Absent(text),
            AdminError::Down { .. } | AdminError::Slow { .. } | AdminError::Sessions { .. } => {
                Self::Away(text)
            }
            AdminError::Login {
                source: LoginError::Refused(report),
                ..
            }
            | AdminError::Refused { report, .. }
                // Starting, ending, full; or others' locks.
                if ["57", "53", "55", "40"].iter().any(|it| report.code.starts_with(it)) =>
            {
                Self::Away(text)
            }
            _ => Self::Refused(text),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
