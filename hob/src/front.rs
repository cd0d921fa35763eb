//! How a program's connection begins at the importer, for kinds whose protocol begins there.
//!
//! A program is unmodified and not trusted: what it says first is read strictly, and bounded in
//! size and time, before a stream to the other machine is opened for it.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::service::{http, postgres, redis};

/// What is taken of a program that was told that it has no connection, and for how long.
const REST_BYTES_MAX: u64 = 64 << 10;
const REST_TIMEOUT: Duration = Duration::from_secs(1);

/// Returns whether programs reach services of this kind by connections: the others are asked by
/// the hob alone.
pub(crate) fn has_streams(kind: &str) -> bool {
    !matches!(kind, "secret" | "sturdyref")
}

/// Speaks to a program before its stream is opened. Returns what the stream begins with, or
/// nothing where the program needs no stream any more.
pub(crate) async fn greet<L>(kind: &str, local: &mut L) -> io::Result<Option<Vec<u8>>>
where
    L: AsyncRead + AsyncWrite + Unpin + Send,
{
    match kind {
        "postgres" => postgres::front(local).await,
        _ => Ok(Some(Vec::new())),
    }
}

/// Tells a program, in its own protocol, why there is no stream for it. Returns whether it was
/// told; otherwise its connection is cut.
pub(crate) async fn decline<L>(kind: &str, local: &mut L, why: &str) -> io::Result<bool>
where
    L: AsyncRead + AsyncWrite + Unpin + Send,
{
    tracing::trace!(kind, why, "declined");
    let answer = match kind {
        "postgres" => return postgres::decline(local, why).await.map(|()| true),
        "redis" => redis::decline(why),
        "http" => http::decline(why),
        _ => return Ok(false),
    };
    local.write_all(answer.as_bytes()).await?;
    local.shutdown().await?;
    // Many ask before they listen, and a connection that is closed by then fails them before they
    // have seen what they were told.
    let mut rest = local.take(REST_BYTES_MAX);
    let _ = timeout(
        REST_TIMEOUT,
        tokio::io::copy(&mut rest, &mut tokio::io::sink()),
    )
    .await;
    Ok(true)
}

/// Makes one exchange of the protocol through a stream that is open, and ends it: the service
/// answers through the binding.
pub(crate) async fn check<S>(kind: &str, stream: &mut S) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    tracing::trace!(kind, "check");
    match kind {
        "postgres" => return postgres::check(stream).await,
        "redis" => redis::check(stream).await?,
        "http" => http::check(stream, "localhost").await?,
        _ => {}
    }
    stream.shutdown().await
}
