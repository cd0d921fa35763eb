//! The importer's end: an unmodified program's first packets, and what its files say.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::session::{self, LoginError};
use super::wire::{self, First, Report, Startup, put};

/// How long a program may take for its first packets: as long as PostgreSQL gives it.
const FIRST_TIMEOUT: Duration = Duration::from_secs(60);

/// The name of a socket in which libpq and its like find a server.
pub(crate) const SOCKET_NAME: &str = ".s.PGSQL.5432";

/// What begins such a name, before its port.
const SOCKET_PREFIX: &str = ".s.PGSQL.";

/// What is taken of a program that was told that it has no connection, and for how long.
const REST_BYTES_MAX: u64 = 64 << 10;
const REST_TIMEOUT: Duration = Duration::from_secs(1);

/// Questions for encryption before the start-up: one for TLS and one for GSSAPI.
const QUESTIONS_MAX: usize = 2;

/// Takes a program's first packets, before any stream is opened for it, and returns what the
/// exporter's hob has to get of them. `None`: the program is served already, or gone.
///
/// Encryption is refused as a server without it does: the connection does not leave the machine.
pub(crate) async fn front<L>(local: &mut L) -> io::Result<Option<Vec<u8>>>
where
    L: AsyncRead + AsyncWrite + Unpin,
{
    let first = timeout(FIRST_TIMEOUT, async {
        for _ in 0..=QUESTIONS_MAX {
            match wire::read_first(local).await {
                Ok(Some(First::Tls | First::Gss)) => {
                    local.write_all(b"N").await?;
                    local.flush().await?;
                }
                Ok(Some(First::Startup(startup))) => return Ok(Some(startup.encode())),
                Ok(Some(First::Cancel(key))) => return Ok(Some(key.encode())),
                Ok(None) => return Ok(None),
                Err(error) => {
                    tell(local, &error.report()).await?;
                    return Ok(None);
                }
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    });
    first
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Tells a program, as a server would, why no stream could be opened for it.
pub(crate) async fn decline<L>(local: &mut L, why: &str) -> io::Result<()>
where
    L: AsyncRead + AsyncWrite + Unpin,
{
    let report = Report::fatal("57P03", format!("the binding has no connection: {why}"));
    tell(local, &report).await
}

/// Tells a program what is wrong, and takes what it still says: a connection that is closed with
/// something unread is reset, and the program might not see what it was told.
async fn tell<L>(local: &mut L, report: &Report) -> io::Result<()>
where
    L: AsyncRead + AsyncWrite + Unpin,
{
    local.write_all(&report.encode()).await?;
    local.shutdown().await?;
    let rest = async {
        let mut limited = local.take(REST_BYTES_MAX);
        tokio::io::copy(&mut limited, &mut tokio::io::sink()).await
    };
    // It may say more, or never end: it was told.
    let _ = timeout(REST_TIMEOUT, rest).await;
    Ok(())
}

/// Begins a session through an open stream, and ends it.
///
/// # Errors
/// What the server, or the exporter's hob in its place, said.
pub(crate) async fn check<S>(stream: &mut S) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let startup = Startup::new(&[("user", "check"), ("application_name", "gobs")]);
    match session::log_in(stream, &startup, None).await {
        Ok(_) => {
            let mut goodbye = Vec::new();
            put(&mut goodbye, b'X', &[]);
            stream.write_all(&goodbye).await?;
            stream.shutdown().await
        }
        Err(LoginError::Io(error)) => Err(error),
        Err(LoginError::Refused(report)) => {
            Err(io::Error::other(format!("PostgreSQL said: {report}")))
        }
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Returns the directory of a socket and its port, where PostgreSQL's clients can be pointed at it.
pub(crate) fn of_socket(path: &Path) -> Option<(String, String)> {
    let port = path.file_name()?.to_str()?.strip_prefix(SOCKET_PREFIX)?;
    Some((path.parent()?.to_str()?.to_owned(), port.to_owned()))
}

/// Returns what the files of a binding say beside its type, by their names. There is no password:
/// none is needed.
pub(crate) fn entries(
    (host, port): (String, String),
    database: &str,
    username: &str,
) -> [(&'static str, String); 5] {
    let uri = format!(
        // As parameters, since not every client takes a path before the database. Without the
        // user, who is another one after each grant: programs need not be started again for that,
        // and land as their role whatever they send.
        "postgresql:///{}?host={}&port={}",
        escape(database),
        escape(&host),
        escape(&port)
    );
    [
        ("host", host),
        ("port", port),
        ("database", database.to_owned()),
        ("username", username.to_owned()),
        ("uri", uri),
    ]
}

/// Returns a text as it stands in a URI; slashes are plain in a parameter.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    const TLS: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
    const GSS: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

    /// Lets a program say this, a byte at a time; returns what it heard and what goes on.
    async fn say(bytes: &[u8]) -> (Vec<u8>, io::Result<Option<Vec<u8>>>) {
        let (mut program, mut local) = duplex(1);
        let said = bytes.to_vec();
        let program = tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(&mut program);
            let mut heard = Vec::new();
            let all = async {
                let written = write.write_all(&said).await;
                write.shutdown().await.unwrap();
                written
            };
            let (_, read) = tokio::join!(all, read.read_to_end(&mut heard));
            read.unwrap();
            heard
        });
        let passed = front(&mut local).await;
        drop(local);
        (program.await.unwrap(), passed)
    }

    #[tokio::test]
    async fn encryption_is_refused_and_the_start_up_passes_whole() {
        let startup = Startup::new(&[("user", "me"), ("database", "db")]).encode();
        let (heard, passed) = say(&[&GSS[..], &TLS, &startup].concat()).await;
        assert_eq!(heard, b"NN");
        assert_eq!(passed.unwrap(), Some(startup));
        let cancel = [&[0, 0, 0, 16, 4, 210, 22, 46][..], &[9; 8]].concat();
        let (heard, passed) = say(&cancel).await;
        assert_eq!((heard, passed.unwrap()), (vec![], Some(cancel)));
    }

    #[tokio::test]
    async fn what_is_no_start_up_opens_no_stream() {
        let (heard, passed) = say(&[&TLS[..], &TLS, &TLS, &TLS].concat()).await;
        assert_eq!(heard, b"NNN");
        assert!(passed.is_err());
        for garbage in [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            [
                &100_000_000_u32.to_be_bytes()[..],
                &[0, 3, 0, 0],
                &[b'x'; 100],
            ]
            .concat(),
            vec![0, 0, 0, 30, 0, 3, 0, 0, b'u'],
        ] {
            let (heard, passed) = say(&garbage).await;
            assert_eq!(passed.unwrap(), None);
            let report = Report::read(&heard[5..]);
            assert_eq!((heard[0], &*report.code), (b'E', "08P01"));
        }
        assert_eq!(say(&[]).await.1.unwrap(), None);
    }

    #[test]
    fn files_say_where_the_database_is() {
        let at = of_socket(Path::new("/run/app 1/.s.PGSQL.5433")).unwrap();
        let uri = "postgresql:///or%26ders?host=/run/app%201&port=5433";
        let expected = [
            ("host", "/run/app 1"),
            ("port", "5433"),
            ("database", "or&ders"),
            ("username", "gobs_db_1"),
            ("uri", uri),
        ];
        let expected = expected.map(|(name, text)| (name, text.to_owned()));
        assert_eq!(entries(at, "or&ders", "gobs_db_1"), expected);
        assert_eq!(of_socket(Path::new("/run/app/socket")), None);
    }
}
