//! Services that listen on a TCP port.

use std::io;

use tokio::net::TcpStream;

use super::local::{Local, tune};

/// Connects to `host:port`.
pub(super) async fn dial(address: &str) -> io::Result<Local> {
    let stream = TcpStream::connect(address).await?;
    tune(&stream)?;
    Ok(Local::Tcp(stream))
}
