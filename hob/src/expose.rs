//! A binding as unmodified programs see it: a local socket, and files that say where it is.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ocapn::Broken;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;

use crate::grant::Chain;
use crate::layout::SOCKET_PATH_SIZE_MAX;
use crate::protocol::{Expose, code};
use crate::service::{Local, tune};

/// How long accepting pauses after a failure such as too many open files, which passes when other
/// connections end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The name of the socket in a binding's directory.
pub(crate) const DEFAULT_SOCKET: &str = "socket";

/// The link in a binding's directory that is swapped when its files change.
const DATA: &str = "..data";

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
}

impl From<ExposeError> for Broken {
    fn from(error: ExposeError) -> Self {
        // The boss is told all of it: where to listen was its own wish.
        Self::new(code::EXPOSE, Chain(&error).to_string())
    }
}

/// Returns how a program is told to reach an exposed binding.
pub(crate) fn address(expose: &Expose) -> String {
    match expose {
        Expose::Unix(path) => format!("unix:{}", path.display()),
        Expose::Tcp(address) => address.clone(),
    }
}

/// A socket that programs connect to. It is closed, and its path removed, when dropped.
#[derive(Debug)]
pub(crate) struct Socket {
    /// What was asked for.
    pub(crate) asked: Expose,
    /// What is listened on: as asked, with the port that was chosen.
    pub(crate) bound: Expose,
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
        asked: Expose,
        bound: &Expose,
        take: impl Fn(Local) + Send + Sync + 'static,
    ) -> Result<Self, ExposeError> {
        let (listener, bound) = match bound {
            Expose::Unix(path) => (Listener::Unix(listen_unix(path).await?), bound.clone()),
            Expose::Tcp(address) => {
                let (listener, address) = listen_tcp(address).await?;
                (Listener::Tcp(listener), Expose::Tcp(address))
            }
        };
        let inode = match &bound {
            Expose::Unix(path) => fs::symlink_metadata(path).ok().map(|meta| meta.ino()),
            Expose::Tcp(_) => None,
        };
        let task = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok(connection) => take(connection),
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
            task,
            inode,
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.task.abort();
        if let Expose::Unix(path) = &self.bound
            && fs::symlink_metadata(path).is_ok_and(|meta| Some(meta.ino()) == self.inode)
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
async fn listen_unix(path: &Path) -> Result<UnixListener, ExposeError> {
    if path.as_os_str().as_bytes().len() > SOCKET_PATH_SIZE_MAX {
        return Err(ExposeError::PathTooLong(path.to_owned()));
    }
    if !path.is_absolute() {
        return Err(ExposeError::Relative(path.to_owned()));
    }
    let failed = |source| ExposeError::Listen {
        address: path.display().to_string(),
        source,
    };
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(ExposeError::NoSocket(path.to_owned()));
        }
        Ok(_) => match tokio::net::UnixStream::connect(path).await {
            Ok(_) => return Err(ExposeError::SocketInUse(path.to_owned())),
            Err(_) => fs::remove_file(path).map_err(failed)?,
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Returns the files of a binding's directory, after servicebinding.io.
pub(crate) fn files(r#type: Option<&str>, bound: &Expose) -> BTreeMap<&'static str, String> {
    let mut files = BTreeMap::from([("provider", "gobs".to_owned())]);
    let kind = match bound {
        Expose::Unix(path) => {
            files.insert("path", path.display().to_string());
            files.insert("uri", address(bound));
            "unix"
        }
        Expose::Tcp(address) => {
            if let Some((host, port)) = host_and_port(address) {
                files.insert("host", host);
                files.insert("port", port);
            }
            files.insert("uri", format!("tcp://{address}"));
            "tcp"
        }
    };
    files.insert("type", r#type.unwrap_or(kind).to_owned());
    files
}

/// Returns the parts of `host:port`; an IPv6 address loses its brackets.
pub(crate) fn host_and_port(address: &str) -> Option<(String, String)> {
    if let Ok(address) = address.parse::<SocketAddr>() {
        return Some((address.ip().to_string(), address.port().to_string()));
    }
    address
        .rsplit_once(':')
        .map(|(host, port)| (host.to_owned(), port.to_owned()))
}

/// Makes a binding's directory, for its socket.
pub(crate) fn make_dir(dir: &Path) -> Result<(), ExposeError> {
    let failed = |source| ExposeError::Listen {
        address: dir.display().to_string(),
        source,
    };
    private_dir(dir).map_err(failed)
}

fn private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

/// Makes a directory's files these, all at once: a reader sees the old ones or the new ones.
///
/// The files stand in a directory of their own, to which one link leads; that is swapped.
pub(crate) fn write_files(dir: &Path, files: &BTreeMap<&'static str, String>) -> io::Result<()> {
    private_dir(dir)?;
    let data = dir.join(DATA);
    let old = fs::read_link(&data).ok();
    if old.is_some() && is_as(&data, files) {
        return Ok(());
    }
    let number: u64 = old
        .as_deref()
        .and_then(|old| old.to_str()?.strip_prefix("..")?.parse().ok())
        .unwrap_or_default();
    let name = format!("..{}", number.wrapping_add(1));
    let new = dir.join(&name);
    // Left by a hob that was killed before it swapped.
    remove_if_there(fs::remove_dir_all(&new))?;
    private_dir(&new)?;
    for (file, text) in files {
        fs::write(new.join(file), text)?;
    }
    let beside = dir.join("..data.new");
    remove_if_there(fs::remove_file(&beside))?;
    symlink(&name, &beside)?;
    fs::rename(&beside, &data)?;
    for file in files.keys() {
        match symlink(Path::new(DATA).join(file), dir.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let dangling = entry.file_type()?.is_symlink() && !entry.path().exists();
        if dangling {
            fs::remove_file(entry.path())?;
        }
    }
    if let Some(old) = old {
        remove_if_there(fs::remove_dir_all(dir.join(old)))?;
    }
    Ok(())
}

/// Removes a binding's directory; one that is gone already is a success.
pub(crate) fn remove_files(dir: &Path) -> io::Result<()> {
    remove_if_there(fs::remove_dir_all(dir))
}

fn is_as(data: &Path, files: &BTreeMap<&'static str, String>) -> bool {
    let count = fs::read_dir(data).map_or(0, Iterator::count);
    count == files.len()
        && files
            .iter()
            .all(|(file, text)| fs::read_to_string(data.join(file)).is_ok_and(|have| have == *text))
}

fn remove_if_there(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_swapped_whole_and_stale_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("db");
        let tcp = files(Some("postgresql"), &Expose::Tcp("[::1]:5432".into()));
        write_files(&dir, &tcp).unwrap();
        let read = |file: &str| fs::read_to_string(dir.join(file)).ok();
        assert_eq!(read("type").as_deref(), Some("postgresql"));
        assert_eq!(read("host").as_deref(), Some("::1"));
        assert_eq!(read("port").as_deref(), Some("5432"));
        assert_eq!(read("uri").as_deref(), Some("tcp://[::1]:5432"));
        let before = fs::read_link(dir.join(DATA)).unwrap();
        write_files(&dir, &tcp).unwrap();
        assert_eq!(
            fs::read_link(dir.join(DATA)).unwrap(),
            before,
            "unchanged files stay"
        );

        write_files(&dir, &files(None, &Expose::Unix("/run/x".into()))).unwrap();
        assert_eq!(read("type").as_deref(), Some("unix"));
        assert_eq!(read("path").as_deref(), Some("/run/x"));
        let mut left: Vec<_> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["..2", "..data", "path", "provider", "type", "uri"]);
        remove_files(&dir).unwrap();
        remove_files(&dir).unwrap();
        assert!(!dir.exists());
    }

    #[tokio::test]
    async fn sockets_replace_dead_ones_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let open = async |path: &Path| {
            let asked = Expose::Unix(path.to_owned());
            Socket::open(asked.clone(), &asked, |_| ())
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
        let asked = Expose::Tcp(address.clone());
        let error = Socket::open(asked.clone(), &asked, |_| ())
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("{address} is in use by another program")
        );
        let asked = Expose::Tcp("127.0.0.1:0".into());
        let socket = Socket::open(asked.clone(), &asked, |_| ()).await.unwrap();
        assert_ne!(socket.bound, socket.asked, "the chosen port is told");
    }
}
