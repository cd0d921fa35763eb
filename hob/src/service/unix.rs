//! Services that listen on a unix socket.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::sleep;

use super::Local;

/// Pause between tries while as many connections wait as the service lets wait: the kernel says so
/// at once, where for TCP it waits.
const QUEUE_PAUSE: Duration = Duration::from_millis(5);

/// Connects to the socket at `path`.
pub(super) async fn dial(path: &Path) -> io::Result<Local> {
    connect(path).await.map(Local::Unix)
}

/// Connects to the socket at `path`; the caller bounds the wait.
pub(super) async fn connect(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(QUEUE_PAUSE).await,
            connected => return connected,
        }
    }
}
