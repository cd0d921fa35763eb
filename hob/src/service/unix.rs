//! Services that listen on a unix socket.

use std::io;
use std::path::Path;

use tokio::net::UnixStream;

use super::local::Local;

/// Connects to the socket at `path`.
pub(super) async fn dial(path: &Path) -> io::Result<Local> {
    UnixStream::connect(path).await.map(Local::Unix)
}
