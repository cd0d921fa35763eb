//! The metadata service of a cloud, asked by the hob itself.
//!
//! It speaks as Linode's does: a token by `PUT /v1/token`, then `GET /v1/user-data` with it, which
//! answers what the machine was created with, in base64. cloud-init asks once and then counts the
//! boot as done; the hob asks until it has an answer.

use std::io;
use std::time::Duration;

use data_encoding::BASE64;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use crate::agent::jitter;

/// Pauses between tries grow between these; each is cut by full jitter. A network that comes up
/// late is a matter of seconds, a service that is away one of minutes.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How long one request may take: a service on the same host answers in milliseconds, and a
/// black hole must not be waited for.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest answer: 64 KiB in base64, and its head.
const ANSWER_BYTES_MAX: u64 = 128 << 10;

/// How long a token is asked for: one request.
const TOKEN_LIFE_S: u32 = 60;

/// Why a metadata service gave no user data.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("{0:?} is not an address of the form http://host[:port]")]
    Address(String),
    #[error("cannot talk to it: {0}")]
    Io(#[from] io::Error),
    #[error("no answer in {} s", REQUEST_TIMEOUT.as_secs())]
    TimedOut,
    #[error("it answered {request} with status {status}")]
    Status { request: &'static str, status: u16 },
    #[error("its answer is no HTTP")]
    Malformed,
    #[error("it has no user data for this machine")]
    Empty,
}

/// Returns the user data that one of these services has, asking them in turn for as long as it
/// takes.
pub(crate) async fn user_data(services: &[String]) -> Zeroizing<String> {
    let mut pause = PAUSE_MIN;
    let mut told = Vec::new();
    loop {
        for service in services {
            match ask(service).await {
                Ok(text) => return text,
                Err(error) => {
                    // Once for each cause is enough: it may go on for hours.
                    let line = format!("{service}: {error}");
                    if told.contains(&line) {
                        tracing::debug!(service, %error, "no user data");
                    } else {
                        tracing::info!(service, %error, "no user data yet; trying on");
                        told.push(line);
                    }
                }
            }
        }
        sleep(jitter(pause)).await;
        pause = PAUSE_MAX.min(pause * 2);
    }
}

async fn ask(service: &str) -> Result<Zeroizing<String>, AskError> {
    let life = format!("Metadata-Token-Expiry-Seconds: {TOKEN_LIFE_S}");
    let token = request(service, "PUT", "/token", &life).await?;
    let header = Zeroizing::new(format!("Metadata-Token: {}", token.trim()));
    if token.is_empty() || token.trim().contains(char::is_control) {
        return Err(AskError::Malformed);
    }
    let body = request(service, "GET", "/user-data", &header).await?;
    let text = plain(&body).unwrap_or(body);
    match text.trim().is_empty() {
        true => Err(AskError::Empty),
        false => Ok(text),
    }
}

/// Returns what stands in base64; nothing where it is no such text.
fn plain(body: &str) -> Option<Zeroizing<String>> {
    let letters = body.bytes().filter(|byte| !byte.is_ascii_whitespace());
    let letters: Zeroizing<Vec<u8>> = Zeroizing::new(letters.collect());
    let bytes = BASE64.decode(&letters).ok()?;
    String::from_utf8(bytes).ok().map(Zeroizing::new)
}

async fn request(
    service: &str,
    method: &'static str,
    path: &'static str,
    header: &str,
) -> Result<Zeroizing<String>, AskError> {
    timeout(REQUEST_TIMEOUT, exchange(service, method, path, header))
        .await
        .map_err(|_| AskError::TimedOut)?
}

async fn exchange(
    service: &str,
    method: &'static str,
    path: &'static str,
    header: &str,
) -> Result<Zeroizing<String>, AskError> {
    let (host, base) = authority(service).ok_or_else(|| AskError::Address(service.into()))?;
    let to = if host.ends_with(']') || !host.contains(':') {
        format!("{host}:80")
    } else {
        host.to_owned()
    };
    let mut stream = TcpStream::connect(&to).await?;
    let head = Zeroizing::new(format!(
        "{method} {base}/v1{path} HTTP/1.1\r\nHost: {host}\r\nAccept: text/plain\r\n\
         Content-Length: 0\r\nConnection: close\r\n{header}\r\n\r\n"
    ));
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Zeroizing::new(Vec::new());
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut answer)
        .await?;
    let (status, body) = read_answer(&answer).ok_or(AskError::Malformed)?;
    match status {
        200 => Ok(body),
        404 if path == "/user-data" => Err(AskError::Empty),
        _ => Err(AskError::Status {
            request: method,
            status,
        }),
    }
}

/// Returns the host with its port, and the path before `/v1`.
fn authority(service: &str) -> Option<(&str, &str)> {
    let rest = service.strip_prefix("http://")?.trim_end_matches('/');
    let rest = rest.strip_suffix("/v1").unwrap_or(rest);
    let (host, base) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let plain = |text: &str| !text.contains(|it: char| it.is_whitespace() || it.is_control());
    (!host.is_empty() && plain(rest)).then_some((host, base))
}

/// Returns the status and the whole body of an answer.
fn read_answer(answer: &[u8]) -> Option<(u16, Zeroizing<String>)> {
    let end = answer.windows(4).position(|it| it == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let rest = &answer[end + 4..];
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    words.next()?.strip_prefix("HTTP/1.")?;
    let status = words.next()?.parse().ok()?;
    let header = |name: &str| {
        lines.clone().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    let body = if header("transfer-encoding").is_some_and(|it| it.eq_ignore_ascii_case("chunked")) {
        Zeroizing::new(dechunked(rest)?)
    } else {
        let length = match header("content-length") {
            Some(text) => text.parse().ok()?,
            None => rest.len(),
        };
        // A connection that was cut has less than it has announced.
        Zeroizing::new(rest.get(..length)?.to_vec())
    };
    let body = std::str::from_utf8(&body).ok()?.to_owned();
    Some((status, Zeroizing::new(body)))
}

fn dechunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|it| it == b"\r\n")?;
        let line = std::str::from_utf8(&rest[..end]).ok()?;
        let size = line.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let check = |text: &str, expected: Option<(&str, &str)>| {
            assert_eq!(authority(text), expected, "{text}");
        };
        check("http://169.254.169.254", Some(("169.254.169.254", "")));
        check(
            "http://[fd00:a9fe:a9fe::1]/v1/",
            Some(("[fd00:a9fe:a9fe::1]", "")),
        );
        check("http://127.0.0.1:8081/a/v1", Some(("127.0.0.1:8081", "/a")));
        check("https://h", None);
        check("http://", None);
        check("http://h\r\nX: y", None);
    }

    #[test]
    fn answers_are_read_whole_or_not_at_all() {
        let check = |answer: &str, expected: Option<(u16, &str)>| {
            let read = read_answer(answer.as_bytes());
            let read = read.as_ref().map(|(status, body)| (*status, body.as_str()));
            assert_eq!(read, expected, "{answer:?}");
        };
        check("HTTP/1.1 200 OK\r\n\r\nall", Some((200, "all")));
        check(
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nall",
            Some((200, "al")),
        );
        check("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nall", None);
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        check(
            &format!("{chunked}2\r\nab\r\n1;x=y\r\nc\r\n0\r\n\r\n"),
            Some((200, "abc")),
        );
        check(&format!("{chunked}2\r\nab\r\n1\r\nc"), None);
        check(&format!("{chunked}ffffffffffffffff\r\nab"), None);
        check("HTTP/1.1 404 Not Found\r\n\r\n", Some((404, "")));
        check("SSH-2.0-x\r\n\r\n", None);
        check("", None);
    }

    #[test]
    fn base64_is_read_and_other_text_stays() {
        assert_eq!(plain("aGkg\neW91\n").unwrap().as_str(), "hi you");
        assert!(plain("MIME-Version: 1.0").is_none());
    }
}
