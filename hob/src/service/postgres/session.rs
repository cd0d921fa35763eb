//! A session with a server: the login, and calls of the hob's own functions.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::scram::{Keys, MECHANISM, Mismatch};
use super::wire::{CancelKey, Inbox, Message, Report, Startup, put};

/// Messages of a login: an authentication, some thirty parameters, notices of what was preloaded.
const LOGIN_MESSAGES_MAX: usize = 256;

/// Rows that a call may answer.
const ROWS_MAX: usize = 100_000;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoginError {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Refused(Box<Report>),
    #[error("the server asks for {0}, and this hob logs in by peer or scram-sha-256 only")]
    Method(&'static str),
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Refused(Box<Report>),
}

/// A session that is up.
pub(crate) struct LoggedIn {
    /// What the server said since it was content, to be passed on to a client.
    pub(crate) said: Vec<u8>,
    /// What cancels the session's statements.
    pub(crate) key: Option<CancelKey>,
    /// What the server calls its version.
    pub(crate) version: String,
}

/// Logs in, with these keys where the server asks for them.
pub(crate) async fn log_in<S>(
    server: &mut S,
    startup: &Startup,
    keys: Option<&Keys>,
) -> Result<LoggedIn, LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    server.write_all(&startup.encode()).await?;
    let mut inbox = Inbox::default();
    let mut up = LoggedIn {
        said: Vec::new(),
        key: None,
        version: String::new(),
    };
    for _ in 0..LOGIN_MESSAGES_MAX {
        let message = inbox.next(server).await?;
        match (message.tag, message.body.as_slice()) {
            (b'E', body) => return Err(LoginError::Refused(Box::new(Report::read(body)))),
            (b'R', [0, 0, 0, 0]) => message.put(&mut up.said),
            (b'R', [0, 0, 0, 10, mechanisms @ ..]) => {
                authenticate(server, &mut inbox, mechanisms, keys).await?;
            }
            (b'R', [0, 0, 0, kind, ..]) => return Err(LoginError::Method(method(*kind))),
            (b'K', body) => {
                up.key = Some(CancelKey::from_backend(body));
                message.put(&mut up.said);
            }
            (b'S', body) => {
                if let Some(version) = body.strip_prefix(b"server_version\0") {
                    let version = version.strip_suffix(b"\0").unwrap_or(version);
                    up.version = String::from_utf8_lossy(version).into_owned();
                }
                message.put(&mut up.said);
            }
            (b'Z', _) => {
                message.put(&mut up.said);
                up.said.extend_from_slice(inbox.rest());
                return Ok(up);
            }
            (b'N' | b'v', _) => message.put(&mut up.said),
            _ => break,
        }
    }
    Err(io::Error::other("the server does not speak PostgreSQL's protocol").into())
}

async fn authenticate<S>(
    server: &mut S,
    inbox: &mut Inbox,
    mechanisms: &[u8],
    keys: Option<&Keys>,
) -> Result<(), LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let keys = keys.ok_or(LoginError::Method("a password"))?;
    let mut offered = mechanisms.split(|byte| *byte == 0);
    if !offered.any(|name| name == MECHANISM.as_bytes()) {
        return Err(LoginError::Method("another SASL mechanism"));
    }
    let no_randomness = |_| io::Error::other("the machine has no randomness");
    let (exchange, first) = keys.begin().map_err(no_randomness)?;
    let mut packet = Vec::new();
    let size = (first.len() as u32).to_be_bytes();
    let parts = [MECHANISM.as_bytes(), &[0], &size, first.as_bytes()];
    put(&mut packet, b'p', &parts);
    server.write_all(&packet).await?;

    let challenge = sasl(inbox.next(server).await?, 11)?;
    let (finishing, last) = exchange.answer(&challenge)?;
    packet.clear();
    put(&mut packet, b'p', &[last.as_bytes()]);
    server.write_all(&packet).await?;
    let outcome = sasl(inbox.next(server).await?, 12)?;
    Ok(finishing.finish(&outcome)?)
}

/// Returns what the SASL message of this number holds.
fn sasl(message: Message, number: u8) -> Result<Vec<u8>, LoginError> {
    match (message.tag, message.body.as_slice()) {
        (b'R', [0, 0, 0, kind, data @ ..]) if *kind == number => Ok(data.to_vec()),
        (b'E', body) => Err(LoginError::Refused(Box::new(Report::read(body)))),
        _ => Err(Mismatch.into()),
    }
}

fn method(kind: u8) -> &'static str {
    match kind {
        3 => "a password in clear text",
        5 => "an md5 password",
        7..=9 => "GSSAPI or SSPI",
        _ => "an unknown method",
    }
}

/// Runs one statement with these parameters, all as text; returns the first column of its rows.
///
/// The parameters travel apart from the statement: nothing in them can become SQL.
pub(crate) async fn call<S>(
    server: &mut S,
    statement: &str,
    parameters: &[&str],
) -> Result<Vec<Option<String>>, CallError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut packet = Vec::new();
    put(&mut packet, b'P', &[&[0], statement.as_bytes(), &[0; 3]]);
    let mut bind = vec![0; 4];
    bind.extend_from_slice(&(parameters.len() as u16).to_be_bytes());
    for parameter in parameters {
        bind.extend_from_slice(&(parameter.len() as u32).to_be_bytes());
        bind.extend_from_slice(parameter.as_bytes());
    }
    put(&mut packet, b'B', &[&bind, &[0; 2]]);
    put(&mut packet, b'E', &[&[0; 5]]);
    put(&mut packet, b'S', &[]);
    server.write_all(&packet).await?;
    answer(server).await
}

/// Runs a text of several statements, in one transaction of its own.
pub(crate) async fn run<S>(server: &mut S, statements: &str) -> Result<(), CallError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut packet = Vec::new();
    put(&mut packet, b'Q', &[statements.as_bytes(), &[0]]);
    server.write_all(&packet).await?;
    answer(server).await.map(drop)
}

async fn answer<S>(server: &mut S) -> Result<Vec<Option<String>>, CallError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut inbox = Inbox::default();
    let mut rows = Vec::new();
    let mut failed = None;
    loop {
        let message = inbox.next(server).await?;
        match (message.tag, message.body.as_slice()) {
            (b'Z', _) => break,
            (b'E', body) => {
                let report = Report::read(body);
                // After this one nothing more comes, not even the end.
                if report.code.starts_with("57P") {
                    return Err(CallError::Refused(Box::new(report)));
                }
                failed.get_or_insert(report);
            }
            (b'D', [_, _, rest @ ..]) if rows.len() < ROWS_MAX => rows.push(column(rest)),
            _ => {}
        }
    }
    match failed {
        Some(report) => Err(CallError::Refused(Box::new(report))),
        None => Ok(rows),
    }
}

/// Returns the first column of a row.
fn column(row: &[u8]) -> Option<String> {
    let (size, rest) = row.split_first_chunk()?;
    let value = rest.get(..usize::try_from(i32::from_be_bytes(*size)).ok()?)?;
    Some(String::from_utf8_lossy(value).into_owned())
}
