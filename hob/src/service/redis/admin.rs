//! The hob's own words with Redis: one command at a time, answers bounded in size and time.

use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::filter::write_command;
use crate::service::ServiceError;
use crate::service::unix::connect;

/// How long connecting and one exchange may take: the server is on this machine, and a revocation
/// that takes longer is reported as pending.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(4);

/// Bytes of one answer: the names of a large module's commands.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Lists inside each other in an answer.
const DEPTH_MAX: usize = 4;

/// A connection to Redis.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    /// For people: which server.
    name: String,
}

/// What Redis answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// A word, such as `OK`.
    Status(String),
    /// An error: a word in capitals, and what it means.
    Error(String),
    Number(i64),
    /// Bytes, or nothing.
    Text(Option<Vec<u8>>),
    List(Vec<Self>),
}

impl Connection {
    /// Connects to the server that listens at `socket`.
    pub(super) async fn open(socket: &Path) -> Result<Self, ServiceError> {
        let name = format!("Redis at {}", socket.display());
        match within(connect(socket)).await {
            Ok(stream) => Ok(Self { stream, name }),
            Err(error) => Err(ServiceError::Absent(format!(
                "connecting to {name} failed: {error} (its configuration names the socket: \
                 `unixsocket {}`)",
                socket.display()
            ))),
        }
    }

    /// Sends a command and returns its answer, which may be an error.
    pub(super) async fn ask(&mut self, words: &[impl AsRef<[u8]>]) -> Result<Answer, ServiceError> {
        let asked = within(self.exchange(words)).await;
        asked.map_err(|error| ServiceError::Away(format!("{} does not answer: {error}", self.name)))
    }

    /// Sends a command whose answer is no error.
    pub(super) async fn tell(
        &mut self,
        words: &[impl AsRef<[u8]>],
    ) -> Result<Answer, ServiceError> {
        let answer = self.ask(words).await?;
        match answer {
            Answer::Error(error) => Err(self.refused(&error)),
            answer => Ok(answer),
        }
    }

    /// Returns what an error of Redis means for a grant.
    pub(super) fn refused(&self, error: &str) -> ServiceError {
        let name = &self.name;
        match error.split(' ').next() {
            Some("NOAUTH" | "WRONGPASS" | "NOPERM") => ServiceError::Refused(format!(
                "{name} does not take the hob for its administrator ({error}): name a file with \
                 user and password in `admin_file`, or let the default user log in without one"
            )),
            // It is full, starting, or writing.
            Some("LOADING" | "BUSY" | "MISCONF" | "MASTERDOWN") => {
                ServiceError::Away(format!("{name} is not ready: {error}"))
            }
            _ if error.contains("max number of clients") => {
                ServiceError::Away(format!("{name} is full: {error}"))
            }
            _ => ServiceError::Refused(format!("{name} refused: {error}")),
        }
    }

    /// Returns the connection, whose answers are all read.
    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }

    async fn exchange(&mut self, words: &[impl AsRef<[u8]>]) -> io::Result<Answer> {
        // A password may be in it.
        let mut asked = Zeroizing::new(Vec::new());
        write_command(&mut asked, words);
        // One that is full says so, and closes before it reads.
        let written = self.stream.write_all(&asked).await;
        let mut answer = Vec::new();
        loop {
            let mut bytes = [0; 1024];
            let read = self.stream.read(&mut bytes).await?;
            if read == 0 {
                written?;
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            answer.extend_from_slice(&bytes[..read]);
            let mut rest = answer.as_slice();
            match parse(&mut rest, 0)? {
                Some(parsed) if rest.is_empty() => return Ok(parsed),
                Some(_) => return Err(malformed("it said more than it was asked")),
                None if answer.len() > ANSWER_BYTES_MAX => {
                    return Err(malformed("its answer is too long"));
                }
                None => {}
            }
        }
    }
}

async fn within<T>(doing: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(EXCHANGE_TIMEOUT, doing).await.unwrap_or_else(|_| {
        let seconds = EXCHANGE_TIMEOUT.as_secs();
        let text = format!("no answer in {seconds} s");
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    })
}

/// Takes one answer from the front; `None` if it has not ended yet.
fn parse(rest: &mut &[u8], depth: usize) -> io::Result<Option<Answer>> {
    let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else {
        return Ok(None);
    };
    let line = &rest[..end];
    let after = &rest[end + 2..];
    let Some((mark, text)) = line.split_first() else {
        return Err(malformed("its answer is no answer of Redis"));
    };
    let words = || String::from_utf8_lossy(text).into_owned();
    let number = || {
        let text = std::str::from_utf8(text).ok();
        let number = text.and_then(|text| text.parse::<i64>().ok());
        number.ok_or_else(|| malformed("its answer is no answer of Redis"))
    };
    let size = || {
        let size = number()?;
        if size > ANSWER_BYTES_MAX as i64 {
            return Err(malformed("its answer is too long"));
        }
        // Less than none is nothing.
        Ok(usize::try_from(size).ok())
    };
    *rest = after;
    Ok(Some(match mark {
        b'+' => Answer::Status(words()),
        b'-' => Answer::Error(words()),
        b':' => Answer::Number(number()?),
        b'$' => match size()? {
            None => Answer::Text(None),
            Some(size) if after.len() < size + 2 => return Ok(None),
            Some(size) => {
                *rest = &after[size + 2..];
                Answer::Text(Some(after[..size].to_vec()))
            }
        },
        b'*' if depth < DEPTH_MAX => {
            let mut list = Vec::new();
            for _ in 0..size()?.unwrap_or_default() {
                match parse(rest, depth + 1)? {
                    Some(answer) => list.push(answer),
                    None => return Ok(None),
                }
            }
            Answer::List(list)
        }
        _ => return Err(malformed("its answer is no answer of Redis")),
    }))
}

fn malformed(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn answers_are_read_whole_or_not_at_all() {
        let whole = b"*4\r\n+OK\r\n:-7\r\n$3\r\na\r\n\r\n*2\r\n$-1\r\n-ERR no\r\n";
        let text = |text: &[u8]| Answer::Text(Some(text.to_vec()));
        let inner = Answer::List(vec![Answer::Text(None), Answer::Error("ERR no".into())]);
        let expected = [
            Answer::Status("OK".into()),
            Answer::Number(-7),
            text(b"a\r\n"),
            inner,
        ];
        let mut rest = whole.as_slice();
        assert_eq!(
            parse(&mut rest, 0).unwrap(),
            Some(Answer::List(expected.into()))
        );
        assert!(rest.is_empty());
        for end in 0..whole.len() {
            assert_eq!(parse(&mut &whole[..end], 0).unwrap(), None, "{end}");
        }
        for wrong in [
            "\r\n",
            "?\r\n",
            ":x\r\n",
            "$9999999999\r\n",
            "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n",
        ] {
            assert!(parse(&mut wrong.as_bytes(), 0).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_does_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&mut bytes.as_slice(), 0);
        }
    }
}
