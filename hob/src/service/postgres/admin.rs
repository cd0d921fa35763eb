//! The hob's own sessions with a server, in which it makes and unmakes roles.
//!
//! It comes as the server's superuser where the machine lets it, by the peer's user: then it
//! installs what `install.sql` has, and goes on as `gobs_hob`. Else somebody has run that once
//! (`hob setup postgres` prints it), and it comes as a member of `gobs_hob`.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::User;
use rustix::process::{Uid, geteuid};
use rustix::thread::set_thread_res_uid;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};

use super::session::{self, CallError, LoggedIn, LoginError};
use super::wire::{Report, Startup};
use crate::protocol::Postgres;

/// What a superuser runs once in a database; see the file.
pub(super) const INSTALL: &str = include_str!("install.sql");

/// The version of it that this hob needs: `gobs.version()`. A later one has all of an earlier, and
/// whoever has an earlier one gets this: so the number rises whenever the file changes.
const INSTALL_VERSION: u32 = 5;

/// The oldest major version of PostgreSQL that still gets mended.
const SERVER_VERSION_MIN: u32 = 14;

/// Where servers listen on Debian, and the port in the socket's name.
const SOCKET_DIR: &str = "/run/postgresql";
const PORT: u16 = 5432;

/// Who the server's superuser is, for a hob that may be anybody.
const SUPERUSER: &str = "postgres";

/// A database that every server has, to make others from.
const MAINTENANCE: &str = "postgres";

/// How long a server that starts, or is full, is tried again.
const LOGIN_DEADLINE: Duration = Duration::from_secs(5);

/// How long one call may take: it waits for other sessions' locks, and a revocation for it.
const CALL_DEADLINE: Duration = Duration::from_secs(4);

/// The pause between two tries of a server that is not ready.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What every session of ours begins with. The lock's wait is below [`CALL_DEADLINE`], so that the
/// server says whose lock it was.
const SETTINGS: &str = "set lock_timeout = '3s'; set statement_timeout = '4s'";

/// What a start-up of ours says. An owner of the database may have set these for everyone who comes
/// to it: with a `search_path` of theirs, their functions would run as the superuser.
const OWN_SETTINGS: [(&str, &str); 6] = [
    ("application_name", "gobs"),
    ("client_encoding", "UTF8"),
    ("search_path", "pg_catalog, pg_temp"),
    ("role", "none"),
    ("default_transaction_read_only", "off"),
    ("standard_conforming_strings", "on"),
];

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// The socket that it listens on.
    pub(super) socket: PathBuf,
    /// The port in the socket's name: the server's TCP port, too.
    pub(super) port: u16,
}

/// Who the hob is to a server.
struct Identity {
    /// The role.
    user: String,
    /// The user of the machine whom the server sees, where that is not the hob's own.
    as_user: Option<u32>,
}

/// A session in which roles are made.
pub(super) struct Admin {
    stream: UnixStream,
    socket: PathBuf,
    database: String,
    /// Whether it came as the superuser, and may go to other databases.
    is_superuser: bool,
}

/// Why the server did not do what the hob asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    #[error("PostgreSQL does not answer at {}", socket.display())]
    Down { socket: PathBuf, source: io::Error },
    #[error("PostgreSQL does not answer at {}", socket.display())]
    Absent { socket: PathBuf, source: io::Error },
    #[error("PostgreSQL at {} refuses the user {user}", socket.display())]
    Login {
        socket: PathBuf,
        user: String,
        source: LoginError,
    },
    #[error(
        "the server at {} is PostgreSQL {found}; gobs needs {SERVER_VERSION_MIN} or later",
        socket.display()
    )]
    Version { socket: PathBuf, found: String },
    #[error(
        "PostgreSQL at {} has no database \"{database}\"; `create = true` makes it, and so does \
         `createdb {database}`",
        socket.display()
    )]
    NoDatabase { socket: PathBuf, database: String },
    #[error(
        "the user {user} is no superuser of PostgreSQL, and gobs is not installed in the database \
         \"{database}\", or an earlier version of it; run once as a superuser of it: hob setup postgres {user} | sudo -u \
         postgres psql -d {database}"
    )]
    NotInstalled { user: String, database: String },
    #[error("PostgreSQL refused in the database \"{database}\": {report}")]
    Refused {
        database: String,
        report: Box<Report>,
    },
    #[error("PostgreSQL at {} did not answer in {} s", socket.display(), after.as_secs())]
    Slow { socket: PathBuf, after: Duration },
    #[error(
        "the role {role} has something in other databases too: {elsewhere}; run in each of them as \
         a superuser: REASSIGN OWNED BY {role} TO {SUPERUSER}; DROP OWNED BY {role}"
    )]
    Elsewhere { role: String, elsewhere: String },
    #[error(
        "sessions of the role {role} did not end in {} s; PostgreSQL ends them at their next wait",
        after.as_secs()
    )]
    Sessions { role: String, after: Duration },
    #[error(
        "a binding's role logs in neither at {} nor at 127.0.0.1:{port}; pg_hba.conf must let it \
         in with scram-sha-256, as the line `host all all 127.0.0.1/32 scram-sha-256` does",
        socket.display()
    )]
    NoRoute {
        socket: PathBuf,
        port: u16,
        source: LoginError,
    },
}

impl AdminError {
    /// Returns whether a session that had this may be used again.
    pub(super) fn is_harmless(&self) -> bool {
        matches!(self, Self::Refused { report, .. } if !report.code.starts_with("57P"))
    }
}

impl Identity {
    fn of(given: Option<String>) -> Self {
        let own = geteuid();
        let name = || Some(User::from_uid(own.as_raw().into()).ok()??.name);
        let user = match given {
            Some(user) => user,
            None if own.is_root() => SUPERUSER.into(),
            None => name().unwrap_or_else(|| SUPERUSER.into()),
        };
        // Root may come as anybody, and the server believes the kernel.
        let found = User::from_name(&user).ok().flatten();
        let as_user = found.map(|found| found.uid.as_raw());
        let as_user = as_user.filter(|id| own.is_root() && *id != 0);
        Self { user, as_user }
    }
}

impl Place {
    /// Returns where a service's server is.
    pub(super) fn of(spec: &Postgres) -> Self {
        let given = spec.socket.clone().unwrap_or_else(|| SOCKET_DIR.into());
        let socket_port = |path: &Path| {
            let name = path.file_name()?.to_str()?;
            name.strip_prefix(".s.PGSQL.")?.parse().ok()
        };
        let (socket, port) = match socket_port(&given) {
            Some(port) => (given, port),
            None => (given.join(format!(".s.PGSQL.{PORT}")), PORT),
        };
        Self { socket, port }
    }

    /// Connects to the socket; the server is told by the kernel who does.
    pub(super) async fn dial(&self, as_user: Option<u32>) -> io::Result<UnixStream> {
        let Some(id) = as_user else {
            return UnixStream::connect(&self.socket).await;
        };
        let socket = self.socket.clone();
        let connect = move || {
            let id = Uid::from_raw(id);
            // For this thread alone, which ends with the connection made.
            set_thread_res_uid(id, id, id)?;
            let stream = StdUnixStream::connect(socket)?;
            stream.set_nonblocking(true)?;
            Ok::<_, io::Error>(stream)
        };
        let (sender, receiver) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("postgres-dial".into())
            .spawn(move || sender.send(connect()))?;
        let connected = receiver.await;
        UnixStream::from_std(connected.unwrap_or_else(|gone| Err(io::Error::other(gone)))?)
    }

    async fn log_in(
        &self,
        database: &str,
        identity: &Identity,
    ) -> Result<(UnixStream, LoggedIn), AdminError> {
        let down = |source| AdminError::Down {
            socket: self.socket.clone(),
            source,
        };
        let deadline = Instant::now() + LOGIN_DEADLINE;
        loop {
            let own = [("user", &*identity.user), ("database", database)];
            let startup = Startup::new(&[&own[..], &OWN_SETTINGS].concat());
            let attempt = async {
                let mut stream = self.dial(identity.as_user).await.map_err(LoginError::Io)?;
                let up = session::log_in(&mut stream, &startup, None).await?;
                Ok::<_, LoginError>((stream, up))
            };
            let attempt = timeout_at(deadline, attempt).await;
            let error = match attempt {
                Ok(Ok(up)) => return Ok(up),
                Ok(Err(error)) => error,
                Err(_) => return Err(self.slow(LOGIN_DEADLINE)),
            };
            let may_pass = match &error {
                LoginError::Refused(report) => is_passing(report),
                LoginError::Io(_) | LoginError::Method(_) | LoginError::Mismatch(_) => false,
            };
            if !may_pass || Instant::now() + RETRY_PAUSE >= deadline {
                return Err(match error {
                    LoginError::Io(source) => down(source),
                    LoginError::Refused(report) if report.code == "3D000" => {
                        AdminError::NoDatabase {
                            socket: self.socket.clone(),
                            database: database.into(),
                        }
                    }
                    source => AdminError::Login {
                        socket: self.socket.clone(),
                        user: identity.user.clone(),
                        source,
                    },
                });
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    fn slow(&self, after: Duration) -> AdminError {
        AdminError::Slow {
            socket: self.socket.clone(),
            after,
        }
    }

    async fn enter(&self, database: &str, identity: &Identity) -> Result<Admin, AdminError> {
        let (stream, up) = self.log_in(database, identity).await?;
        let major = up.version.split(|c: char| !c.is_ascii_digit()).next();
        let major = major.and_then(|major| major.parse::<u32>().ok());
        if major.is_none_or(|major| major < SERVER_VERSION_MIN) {
            return Err(AdminError::Version {
                socket: self.socket.clone(),
                found: up.version,
            });
        }
        Ok(Admin {
            stream,
            socket: self.socket.clone(),
            database: database.into(),
            is_superuser: false,
        })
    }

    async fn identity(&self, spec: &Postgres) -> Result<Identity, AdminError> {
        let given = spec.admin_user.clone();
        // Whose a name is may be asked of a database on a network.
        let identity = tokio::task::spawn_blocking(move || Identity::of(given)).await;
        identity.map_err(|gone| AdminError::Down {
            socket: self.socket.clone(),
            source: io::Error::other(gone),
        })
    }

    /// Takes from a role what it has in another database than the service's: that goes to the
    /// database's owner.
    pub(super) async fn clear(
        &self,
        spec: &Postgres,
        database: &str,
        role: &str,
    ) -> Result<(), AdminError> {
        let identity = self.identity(spec).await?;
        let mut admin = self.enter(database, &identity).await?;
        admin.run(SETTINGS).await?;
        let owner = "select quote_ident(pg_get_userbyid(datdba)) from pg_database
                     where datname = current_database()";
        let owner = admin.call(owner, &[]).await?.into_iter().next().flatten();
        let owner = owner.unwrap_or_else(|| SUPERUSER.into());
        let role = role.replace('"', "\"\"");
        let statements =
            format!("reassign owned by \"{role}\" to {owner}; drop owned by \"{role}\"");
        admin.run(&statements).await
    }

    /// Takes a role away whose database is gone, with the ledger in it.
    pub(super) async fn unmake_alone(&self, spec: &Postgres, role: &str) -> Result<(), AdminError> {
        let identity = self.identity(spec).await?;
        let mut admin = self.enter(MAINTENANCE, &identity).await?;
        admin.run(SETTINGS).await?;
        let known = "select 1 from pg_roles
                     where rolname = $1 and shobj_description(oid, 'pg_authid') like $2";
        let ours = "Kept by gobs: %";
        if admin.call(known, &[role, ours]).await?.is_empty() {
            return Ok(());
        }
        let role = role.replace('"', "\"\"");
        // Its sessions were in the database that is gone.
        admin.run(&format!("alter role \"{role}\" nologin")).await?;
        admin.run(&format!("drop role \"{role}\"")).await?;
        // The last one takes the database's groups along.
        let groups = "select quote_ident(rolname) from pg_roles,
                        lateral (select shobj_description(oid, 'pg_authid')) c(comment)
                      where comment ~ '^Kept by gobs: (read|write|owner), database '
                        and starts_with(split_part(comment, ', database ', 2) || ', ', $1 || ', ')
                        and not exists (select from pg_auth_members where roleid = oid)";
        let groups = admin.call(groups, &[&spec.database]).await?;
        for group in groups.into_iter().flatten() {
            match admin.run(&format!("drop role if exists {group}")).await {
                // It has something in a database that is there.
                Err(AdminError::Refused { report, .. }) if report.code == "2BP01" => {}
                dropped => dropped?,
            }
        }
        Ok(())
    }

    /// Begins a session in the service's database, where everything is installed.
    pub(super) async fn open(
        &self,
        spec: &Postgres,
        may_create: bool,
    ) -> Result<Admin, AdminError> {
        let identity = self.identity(spec).await?;
        let mut made = false;
        let mut admin = match self.enter(&spec.database, &identity).await {
            Err(AdminError::NoDatabase { .. }) if spec.create && may_create => {
                let mut admin = self.enter(MAINTENANCE, &identity).await?;
                let name = spec.database.replace('"', "\"\"");
                match admin.run(&format!("create database \"{name}\"")).await {
                    // Another made it meanwhile, whose it is.
                    Err(AdminError::Refused { report, .. }) if report.code == "42P04" => {}
                    other => {
                        other?;
                        made = true;
                    }
                }
                self.enter(&spec.database, &identity).await?
            }
            other => other?,
        };
        admin.run(SETTINGS).await?;
        let superuser = admin.call("select current_setting('is_superuser')", &[]);
        let superuser = superuser.await? == [Some("on".to_owned())];
        let installed = match admin.call("select gobs.version()", &[]).await {
            Ok(rows) => rows.first().cloned().flatten(),
            // No schema, no function, no right to use it.
            Err(AdminError::Refused { report, .. })
                if ["3F000", "42883", "42501"].contains(&&*report.code) =>
            {
                None
            }
            Err(error) => return Err(error),
        };
        let installed = installed.and_then(|version| version.parse().ok());
        if installed.unwrap_or(0) < INSTALL_VERSION {
            if !superuser {
                return Err(AdminError::NotInstalled {
                    user: identity.user,
                    database: spec.database.clone(),
                });
            }
            admin.run(INSTALL).await?;
        }
        if made {
            admin.call("select gobs.own_database()", &[]).await?;
        }
        if superuser {
            admin.run("set role gobs_hob").await?;
            admin.is_superuser = true;
        }
        Ok(admin)
    }
}

impl Admin {
    /// Returns whether the hob may go to other databases of the server, too.
    pub(super) fn is_superuser(&self) -> bool {
        self.is_superuser
    }

    /// Calls one of our functions; returns the first column of what it answers.
    pub(super) async fn call(
        &mut self,
        statement: &str,
        parameters: &[&str],
    ) -> Result<Vec<Option<String>>, AdminError> {
        let called = session::call(&mut self.stream, statement, parameters);
        let called = tokio::time::timeout(CALL_DEADLINE, called).await;
        self.outcome(called)
    }

    async fn run(&mut self, statements: &str) -> Result<(), AdminError> {
        let run = session::run(&mut self.stream, statements);
        let run = tokio::time::timeout(CALL_DEADLINE, run).await;
        self.outcome(run)
    }

    fn outcome<T>(
        &self,
        outcome: Result<Result<T, CallError>, tokio::time::error::Elapsed>,
    ) -> Result<T, AdminError> {
        let socket = self.socket.clone();
        match outcome {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(CallError::Io(source))) => Err(AdminError::Down { socket, source }),
            Ok(Err(CallError::Refused(report))) => Err(AdminError::Refused {
                database: self.database.clone(),
                report,
            }),
            Err(_) => Err(AdminError::Slow {
                socket,
                after: CALL_DEADLINE,
            }),
        }
    }
}

/// Returns what a superuser runs in a database, for a hob that is this user there.
pub(crate) fn setup(user: &str) -> String {
    let (name, text) = (user.replace('"', "\"\""), user.replace('\'', "''"));
    format!(
        "{INSTALL}
do $do$
begin
  if not exists (select from pg_roles where rolname = '{text}') then
    create role \"{name}\" login;
  end if;
end
$do$;
grant gobs_hob to \"{name}\";
"
    )
}

/// Returns whether a server that refused a login may take it in a moment: it starts, or is full.
fn is_passing(report: &Report) -> bool {
    report.code == "57P03" || report.code == "53300"
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use sha2::{Digest, Sha256};

    use super::*;

    /// Databases have what an earlier hob installed until the number says that it is another one.
    #[test]
    fn what_is_installed_has_another_version_when_it_is_another() {
        let version = format!("as 'select {INSTALL_VERSION}'");
        assert!(
            INSTALL.contains(&version),
            "gobs.version() is no {INSTALL_VERSION}"
        );
        let digest = HEXLOWER.encode(&Sha256::digest(INSTALL)[..16]);
        // Of version 5. Where it differs, raise the version in both files, and then change this.
        assert_eq!(digest, "76af12ee8303283d71699803a5dcf4e8");
    }
}
