//! A binding's sockets, as unmodified programs see them.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ocapn::Broken;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::grant::Chain;
use crate::layout::SOCKET_PATH_SIZE_MAX;
use crate::owner::{Owner, OwnerError};
use crate::protocol::{Place, code};
use crate::service::{Local, tune};
use crate::units::UnitError;

/// How long accepting pauses after a failure such as too many open files, which passes when other
/// connections end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The permissions of directories that are missing above a socket: as of those in `/run`.
const PARENT_MODE: u32 = 0o755;

/// Why a binding cannot be exposed as it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExposeError {
    #[error("the socket path {} has {} bytes, and {SOCKET_PATH_SIZE_MAX} are possible",
        .0.display(), .0.as_os_str().len())]
    PathTooLong(PathBuf),
    #[error("the socket path {} does not begin with /", .0.display())]
    Relative(PathBuf),
    #[error("{} is in the way: it is no socket", .0.display())]
    NoSocket(PathBuf),
    #[error("{} is in use by another program", .0.display())]
    SocketInUse(PathBuf),
    #[error("{0} is in use by another program")]
    PortInUse(String),
    #[error("cannot listen on {address}")]
    Listen { address: String, source: io::Error },
    #[error("cannot be exposed as asked")]
    Owner(#[from] OwnerError),
    #[error(transparent)]
    Unit(#[from] UnitError),
    #[error("the machine could not write its state")]
    Unwritten,
    #[error("the variable {variable} is to hold {file:?}, and the binding has only {known}")]
    NoFile {
        variable: String,
        file: String,
        known: String,
    },
}

impl From<ExposeError> for Broken {
    fn from(error: ExposeError) -> Self {
        // The boss is told all of it: where to listen was its own wish.
        Self::new(code::EXPOSE, Chain(&error).to_string())
    }
}

/// A socket that programs connect to. It is closed, and its path removed, when dropped.
#[derive(Debug)]
pub(crate) struct Socket {
    /// What was asked for.
    pub(crate) asked: Place,
    /// What is listened on: as asked, with the port that was chosen.
    pub(crate) bound: Place,
    owner: watch::Sender<Owner>,
    task: JoinHandle<()>,
    /// Of the path's inode, so that no other's socket is removed.
    inode: Option<u64>,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Socket {
    /// Listens as `bound` says, and gives each connection to `take`.
    pub(crate) async fn open(
        asked: Place,
        bound: &Place,
        owner: Owner,
        take: impl Fn(Local) + Send + Sync + 'static,
    ) -> Result<Self, ExposeError> {
        let (listener, bound) = match bound {
            Place::Unix(path) => (
                Listener::Unix(listen_unix(path, &owner).await?),
                bound.clone(),
            ),
            Place::Tcp(address) => {
                let (listener, address) = listen_tcp(address).await?;
                (Listener::Tcp(listener), Place::Tcp(address))
            }
        };
        let inode = inode(&bound);
        let owner = watch::Sender::new(owner);
        let current = owner.subscribe();
        let task = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok(connection) => {
                        let owner = *current.borrow();
                        if admitted(&connection, owner).await {
                            take(connection);
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept connections");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
        Ok(Self {
            asked,
            bound,
            owner,
            task,
            inode,
        })
    }

    /// Gives the socket to another owner; its connections stay.
    pub(crate) fn give(&self, owner: Owner) -> Result<(), ExposeError> {
        if *self.owner.borrow() == owner {
            return Ok(());
        }
        if let Place::Unix(path) = &self.bound {
            owner
                .take_socket(path, self.inode)
                .map_err(listen_failed(path))?;
        }
        self.owner.send_replace(owner);
        Ok(())
    }

    /// Returns whether a process may know of the socket; of a TCP port any may.
    pub(crate) fn shows(&self, uid: u32) -> bool {
        matches!(self.bound, Place::Tcp(_)) || self.owner.borrow().shows(uid)
    }

    /// Returns whether programs still find the socket: somebody else may remove its path.
    pub(crate) fn is_there(&self) -> bool {
        inode(&self.bound) == self.inode
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.task.abort();
        if let Place::Unix(path) = &self.bound
            && self.inode.is_some()
            && self.is_there()
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove a socket");
        }
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<Local> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                tune(&stream)?;
                Ok(Local::Tcp(stream))
            }
            Self::Unix(listener) => Ok(Local::Unix(listener.accept().await?.0)),
        }
    }
}

/// Returns whether the program at the other end may use the socket. Over TCP every one may.
async fn admitted(connection: &Local, owner: Owner) -> bool {
    let Local::Unix(stream) = connection else {
        return true;
    };
    let Ok(peer) = stream.peer_cred() else {
        return false;
    };
    let admitted = owner.admits(peer).await;
    if !admitted {
        tracing::warn!(uid = peer.uid(), "a program of another user was refused");
    }
    admitted
}

/// Returns the inode of a unix socket's path.
fn inode(place: &Place) -> Option<u64> {
    match place {
        Place::Unix(path) => fs::symlink_metadata(path).ok().map(|meta| meta.ino()),
        Place::Tcp(_) => None,
    }
}

/// Returns a listener, and the address with the port that was chosen.
async fn listen_tcp(address: &str) -> Result<(TcpListener, String), ExposeError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => ExposeError::PortInUse(address.to_owned()),
            _ => ExposeError::Listen {
                address: address.to_owned(),
                source,
            },
        })?;
    let bound = match (address.rsplit_once(':'), listener.local_addr()) {
        (Some((host, "0")), Ok(chosen)) => format!("{host}:{}", chosen.port()),
        _ => address.to_owned(),
    };
    Ok((listener, bound))
}

/// Takes the place of a socket whose listener is dead, of nothing else.
async fn listen_unix(path: &Path, owner: &Owner) -> Result<UnixListener, ExposeError> {
    if path.as_os_str().as_bytes().len() > SOCKET_PATH_SIZE_MAX {
        return Err(ExposeError::PathTooLong(path.to_owned()));
    }
    if !path.is_absolute() {
        return Err(ExposeError::Relative(path.to_owned()));
    }
    let failed = listen_failed(path);
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(ExposeError::NoSocket(path.to_owned()));
        }
        Ok(_) if is_dead(path).await => fs::remove_file(path).map_err(&failed)?,
        Ok(_) => return Err(ExposeError::SocketInUse(path.to_owned())),
        // What is below `/run` is gone after a reboot.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_parent(path).map_err(&failed)?;
        }
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(&failed)?;
    if let Err(error) = owner.take_socket(path, None) {
        // Nobody was let in meanwhile: nothing is accepted yet.
        let _ = fs::remove_file(path);
        return Err(failed(error));
    }
    Ok(listener)
}

/// Returns whether nobody listens at a socket any more. One that is too busy to answer, or of
/// another type, is in use.
async fn is_dead(path: &Path) -> bool {
    let connected = tokio::net::UnixStream::connect(path).await;
    connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Removes a socket whose listener is dead, and nothing else.
pub(crate) async fn remove_dead(path: &Path) -> io::Result<()> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket());
    match is_socket && is_dead(path).await {
        true => fs::remove_file(path),
        false => Ok(()),
    }
}

fn make_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => fs::DirBuilder::new()
            .recursive(true)
            .mode(PARENT_MODE)
            .create(parent),
        None => Ok(()),
    }
}

fn listen_failed(path: &Path) -> impl Fn(io::Error) -> ExposeError {
    let address = path.display().to_string();
    move |source| ExposeError::Listen {
        address: address.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::protocol::Expose;

    fn own() -> Owner {
        Owner::of(&Expose::default()).unwrap()
    }

    #[tokio::test]
    async fn sockets_replace_dead_ones_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let open = async |path: &Path| {
            let asked = Place::Unix(path.to_owned());
            Socket::open(asked.clone(), &asked, own(), |_| ())
                .await
                .map_err(|error| error.to_string())
        };
        let path = dir.path().join("s");
        // A listener that died leaves its path.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = open(&path).await.unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let text = path.display();
        assert_eq!(
            open(&path).await.unwrap_err(),
            format!("{text} is in use by another program")
        );
        drop(socket);
        assert!(!path.exists());
        fs::write(&path, "").unwrap();
        let error = open(&path).await.unwrap_err();
        assert_eq!(error, format!("{text} is in the way: it is no socket"));
        let error = open(Path::new("run/s")).await.unwrap_err();
        assert_eq!(error, "the socket path run/s does not begin with /");
        let long = dir.path().join("x".repeat(SOCKET_PATH_SIZE_MAX));
        assert!(
            open(&long)
                .await
                .unwrap_err()
                .contains("bytes, and 107 are possible")
        );
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap().to_string();
        let asked = Place::Tcp(address.clone());
        let error = Socket::open(asked.clone(), &asked, own(), |_| ())
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("{address} is in use by another program")
        );
        let asked = Place::Tcp("127.0.0.1:0".into());
        let socket = Socket::open(asked.clone(), &asked, own(), |_| ())
            .await
            .unwrap();
        assert_ne!(socket.bound, socket.asked, "the chosen port is told");
    }
}
