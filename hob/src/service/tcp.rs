//! Services that listen on a TCP port.

use std::io;

use tokio::net::TcpStream;

/// Connects to `host:port`.
pub(super) async fn dial(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    super::tune(&stream)?;
    Ok(stream)
}
