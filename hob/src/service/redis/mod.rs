//! Redis: a user of its own for each grant, and streams that stay with that user.
//!
//! What a grant may do is in the user's ACL, which Redis enforces for pipelines, transactions,
//! scripts and subscriptions alike. The hob logs each stream in before the program's first byte,
//! and [`filter`] keeps it logged in as who it is. Revoking deletes the user, which ends its
//! sessions; switching a user off would not.
//!
//! The hob needs to be taken for the administrator: by a default user without password, as Redis
//! has it from the start, whose socket only the hob and other administrators may open; or by user
//! and password in a file, `admin_file`. Users live in Redis' memory; where that is lost, they are
//! made again when they are needed.

mod admin;
mod filter;
mod rights;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, OwnedMutexGuard};
use zeroize::Zeroizing;

use self::admin::{Answer, Connection};
use self::filter::Filtered;
use self::rights::Server;
use super::{Dialled, Lease, Local, Opening, ServeError, ServiceError};
use crate::protocol::{Attenuate, Generation, Redis};
use crate::splice::splice;

pub(crate) use rights::check_rights;

/// Where Debian's Redis listens when it is told to use a socket.
const SOCKET_DEFAULT: &str = "/run/redis/redis-server.sock";

/// The oldest version whose ACLs can hold a grant: subcommands and channels have rules of their
/// own.
const VERSION_MIN: u64 = 7;

/// Letters of a binding's address in the name of its user; what tells users apart comes after.
const LABEL_SIZE_MAX: usize = 40;

/// Bytes of an answer to `PING` that is of use to people.
const ERROR_BYTES_MAX: usize = 512;

/// Bytes of `admin_file`.
const ADMIN_FILE_BYTES_MAX: u64 = 4 << 10;

/// Rounds of deleting a user until it is not there: one that was just being made is gone after the
/// second.
const DELETIONS_MAX: usize = 5;

/// The grants of Redis servers.
#[derive(Debug, Default)]
pub(super) struct Users {
    /// Held while users are made or deleted, so that none is made again after its end.
    changing: Arc<Mutex<()>>,
}

/// Who a stream speaks as.
struct User {
    name: String,
    password: Zeroizing<String>,
}

impl Users {
    /// Makes one exchange as the administrator.
    pub(super) async fn probe(&self, redis: &Redis) -> Result<(), ServiceError> {
        open(redis).await?.tell(&["PING"]).await.map(drop)
    }

    /// Makes the user of a grant, or makes it what it should be.
    pub(super) async fn mint(&self, redis: &Redis, lease: &Lease) -> Result<(), ServiceError> {
        let _changing = self.changing.lock().await;
        make(redis, &User::of(lease), &lease.rights).await
    }

    /// Deletes the user of a grant, and with it its sessions.
    pub(super) async fn unmint(&self, redis: &Redis, gone: &Lease) -> Result<(), ServiceError> {
        let _changing = self.changing.lock().await;
        let mut connection = open(redis).await?;
        let User { name, .. } = User::of(gone);
        for _ in 0..DELETIONS_MAX {
            if connection.tell(&["ACL", "DELUSER", &name]).await? == Answer::Number(0) {
                // Where users are kept in a file, somebody may have saved this one.
                if let Answer::Error(error) = connection.ask(&["ACL", "SAVE"]).await?
                    && !error.contains("not configured to use an ACL file")
                {
                    return Err(connection.refused(&error));
                }
                return Ok(());
            }
        }
        Err(ServiceError::Away(format!(
            "the user {name} of Redis comes back"
        )))
    }

    /// Carries one stream.
    pub(super) async fn serve<S>(
        &self,
        redis: &Redis,
        lease: &Lease,
        opening: Opening<'_, S>,
    ) -> Result<(), ServeError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let user = User::of(lease);
        let stream = match log_in(redis, &user).await? {
            Some(stream) => stream,
            None => self.log_in_anew(redis, user, &lease.rights).await?,
        };
        let mut service = Dialled::new(Local::Unix(stream));
        let mut stream = Filtered::new(opening.open().await?);
        splice(&mut stream, &mut *service).await?;
        service.end();
        Ok(())
    }

    /// Makes the user again, which Redis has lost, and logs in.
    async fn log_in_anew(
        &self,
        redis: &Redis,
        user: User,
        rights: &Attenuate,
    ) -> Result<UnixStream, ServiceError> {
        // Whoever revokes waits for all streams to be cut, and then for this to be done: so it
        // goes on when the stream is cut.
        let changing = Arc::clone(&self.changing).lock_owned().await;
        let (redis, rights) = (redis.clone(), rights.clone());
        let making = async move {
            let _changing: OwnedMutexGuard<()> = changing;
            if let Some(stream) = log_in(&redis, &user).await? {
                return Ok(stream);
            }
            make(&redis, &user, &rights).await?;
            let stream = log_in(&redis, &user).await?;
            stream.ok_or_else(|| {
                ServiceError::Away(format!("the user {} of Redis does not stay", user.name))
            })
        };
        match tokio::spawn(making).await {
            Ok(made) => made,
            Err(_) => Err(ServiceError::Away("the hob is ending".into())),
        }
    }
}

impl User {
    /// Returns the user of a grant. People can read the name; no other grant, of this hob or of
    /// another at the same server, has the same.
    fn of(lease: &Lease) -> Self {
        let Generation {
            binding,
            generation,
        } = &lease.generation;
        let label = binding.strip_prefix("binding.").unwrap_or(binding);
        let plain = |it: char| if it.is_ascii_alphanumeric() { it } else { '-' };
        let label: String = label.chars().map(plain).take(LABEL_SIZE_MAX).collect();
        let mut digest = Sha256::new();
        digest.update(b"redis user");
        digest.update(lease.secret.0.as_slice());
        let digest = HEXLOWER.encode(&digest.finalize()[..8]);
        Self {
            name: format!("gobs-{label}-{generation}-{digest}"),
            password: Zeroizing::new(HEXLOWER.encode(lease.secret.0.as_slice())),
        }
    }
}

/// Makes one exchange as a program would.
pub(crate) async fn check<S>(stream: &mut S) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(b"*1\r\n$4\r\nPING\r\n").await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    let mut bytes = [0; 64];
    while !answer.ends_with(b"\r\n") && answer.len() < ERROR_BYTES_MAX {
        match stream.read(&mut bytes).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => answer.extend_from_slice(&bytes[..read]),
        }
    }
    if answer == b"+PONG\r\n" {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&answer).trim().to_owned();
    Err(io::Error::other(format!(
        "Redis answers PING with {said:?}"
    )))
}

/// Returns what a program is told where there is no stream for it.
pub(crate) fn decline(why: &str) -> String {
    format!("-ERR gobs: {}\r\n", why.replace(['\r', '\n'], " "))
}

/// Returns the socket of a server.
pub(super) fn socket(redis: &Redis) -> PathBuf {
    let socket = redis.socket.as_deref();
    socket.unwrap_or(Path::new(SOCKET_DEFAULT)).to_owned()
}

/// Connects as the administrator.
async fn open(redis: &Redis) -> Result<Connection, ServiceError> {
    let mut connection = Connection::open(&socket(redis)).await?;
    if let Some(path) = &redis.admin_file {
        let login = read_login(path).await.map_err(|error| {
            let path = path.display();
            ServiceError::Refused(format!("the admin_file {path} cannot be used: {error}"))
        })?;
        let words: Vec<&str> = ["AUTH"]
            .into_iter()
            .chain(login.split_whitespace())
            .collect();
        connection.tell(&words).await?;
    }
    Ok(connection)
}

/// Reads user and password, or a password alone.
async fn read_login(path: &Path) -> Result<Zeroizing<String>, String> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        super::read_file(&path, ADMIN_FILE_BYTES_MAX).map_err(|error| error.to_string())
    });
    let text = read.await.map_err(|error| error.to_string())??;
    let text = std::str::from_utf8(&text).map_err(|_| "it is not UTF-8")?;
    match text.split_whitespace().count() {
        1 | 2 => Ok(Zeroizing::new(text.to_owned())),
        _ => Err("it has a user and a password, or a password alone".into()),
    }
}

/// Connects as a grant's user; `None` if Redis does not know it, or by another password.
async fn log_in(redis: &Redis, user: &User) -> Result<Option<UnixStream>, ServiceError> {
    let mut connection = Connection::open(&socket(redis)).await?;
    match connection
        .ask(&["AUTH", &user.name, &user.password])
        .await?
    {
        Answer::Status(status) if status == "OK" => Ok(Some(connection.into_stream())),
        Answer::Error(error) if error.starts_with("WRONGPASS") => Ok(None),
        Answer::Error(error) => Err(connection.refused(&error)),
        _ => Err(connection.refused("its answer to AUTH is none")),
    }
}

async fn make(redis: &Redis, user: &User, rights: &Attenuate) -> Result<(), ServiceError> {
    let mut connection = open(redis).await?;
    check_version(&mut connection).await?;
    let mut server = Server::default();
    if rights.keys.is_some() {
        server.modules = module_commands(&mut connection).await?;
    }
    if rights.commands.is_some() {
        for category in ["admin", "dangerous"] {
            let all = connection.tell(&["ACL", "CAT", category]).await?;
            server.dangerous.extend(names(all));
        }
    }
    let rules = rights::rules(rights, &server).map_err(ServiceError::Refused)?;
    // Redis keeps the digest, so that is all it is told; the password is random and long.
    let digest = HEXLOWER.encode(&Sha256::digest(user.password.as_bytes()));
    let words = ["ACL", "SETUSER", &user.name, "reset", "on"].map(str::to_owned);
    let words: Vec<_> = words
        .into_iter()
        .chain([format!("#{digest}")])
        .chain(rules)
        .collect();
    connection.tell(&words).await.map(drop)
}

async fn check_version(connection: &mut Connection) -> Result<(), ServiceError> {
    let Answer::Text(Some(text)) = connection.tell(&["INFO", "server"]).await? else {
        return Err(connection.refused("its answer to INFO is none"));
    };
    let text = String::from_utf8_lossy(&text);
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("redis_version:"));
    let version = version.unwrap_or("?").trim();
    let major = version
        .split('.')
        .next()
        .and_then(|major| major.parse::<u64>().ok());
    if major.is_some_and(|major| major >= VERSION_MIN) {
        return Ok(());
    }
    Err(ServiceError::Refused(format!(
        "this is Redis {version}; bindings need {VERSION_MIN}.0 or newer, whose users can be \
         narrowed"
    )))
}

/// Returns the commands that modules have added.
async fn module_commands(connection: &mut Connection) -> Result<Vec<String>, ServiceError> {
    let Answer::List(modules) = connection.tell(&["MODULE", "LIST"]).await? else {
        return Err(connection.refused("its answer to MODULE LIST is none"));
    };
    let mut commands = Vec::new();
    for module in modules {
        // Pairs of names and values.
        let Answer::List(fields) = module else {
            continue;
        };
        let [_, Answer::Text(Some(name)), ..] = fields.as_slice() else {
            continue;
        };
        let words: [&[u8]; 5] = [b"COMMAND", b"LIST", b"FILTERBY", b"MODULE", name];
        commands.extend(names(connection.tell(&words).await?));
    }
    Ok(commands)
}

/// Returns the names in a list.
fn names(answer: Answer) -> Vec<String> {
    let Answer::List(all) = answer else {
        return Vec::new();
    };
    let name = |name| match name {
        Answer::Text(Some(name)) => String::from_utf8(name).ok(),
        Answer::Status(name) => Some(name),
        _ => None,
    };
    all.into_iter().filter_map(name).collect()
}

#[cfg(test)]
mod tests;
