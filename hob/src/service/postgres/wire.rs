//! The few messages of PostgreSQL's protocol, version 3, that a hob reads and writes itself.
//!
//! Everything after a session's start-up passes untouched; what is here is the start-up of both
//! ends, cancel requests, errors, and the calls of the hob's own functions.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// The largest first packet that is read: PostgreSQL's own limit.
pub(crate) const STARTUP_BYTES_MAX: usize = 10_000;

/// The largest message of a server that is read before a session is up: a parameter's status, an
/// error, a row of the hob's own functions.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Bytes of a cancel request's key: 4 until version 3.0 of the protocol, up to 256 since 3.2.
const CANCEL_KEY_BYTES_MAX: usize = 256;

/// The codes that stand where a start-up has its version.
const CANCEL: u32 = (1234 << 16) | 5678;
const TLS: u32 = (1234 << 16) | 5679;
const GSS: u32 = (1234 << 16) | 5680;

/// The major version that is spoken.
const VERSION_MAJOR: u32 = 3;

/// Version 3.0.
pub(crate) const VERSION: u32 = VERSION_MAJOR << 16;

/// What a client says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// It asks for TLS.
    Tls,
    /// It asks for GSSAPI encryption.
    Gss,
    /// It asks that another session's statement be cancelled.
    Cancel(CancelKey),
    /// It begins a session.
    Startup(Startup),
}

/// What names a session to be cancelled: the process's number, and a secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CancelKey(Vec<u8>);

/// Names and values of a start-up, in the client's order.
pub(crate) type Parameters = Vec<(Vec<u8>, Vec<u8>)>;

/// The beginning of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Startup {
    /// The version, of which the major part is 3.
    pub(crate) version: u32,
    /// What the client says of itself.
    pub(crate) parameters: Parameters,
}

/// Why a first packet is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FirstError {
    #[error("the connection ended in the middle of its first packet")]
    Io(#[from] io::Error),
    #[error("a first packet of {0} bytes is not allowed")]
    Size(u32),
    #[error("version {}.{} of the protocol is not spoken", .0 >> 16, .0 & 0xffff)]
    Version(u32),
    #[error("the start-up packet cannot be read")]
    Malformed,
}

impl FirstError {
    /// Returns what a server says of it.
    pub(crate) fn report(&self) -> Report {
        let code = match self {
            Self::Version(_) => "0A000",
            _ => "08P01",
        };
        Report::fatal(code, self.to_string())
    }
}

/// Reads a client's first packet, and not a byte more. `None`: it ended without one.
pub(crate) async fn read_first<R>(from: &mut R) -> Result<Option<First>, FirstError>
where
    R: AsyncRead + Unpin,
{
    let mut head = [0; 8];
    // Nothing at all is no failure: whoever looks whether a port is open does so.
    if from.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut head[1..]).await?;
    let [a, b, c, d, version @ ..] = head;
    let (size, version) = (
        u32::from_be_bytes([a, b, c, d]),
        u32::from_be_bytes(version),
    );
    // Before a byte of it is waited for: the size of garbage may be anything.
    let rest = (size as usize)
        .checked_sub(head.len())
        .filter(|_| size as usize <= STARTUP_BYTES_MAX);
    let rest = rest.ok_or(FirstError::Size(size))?;
    match version {
        TLS | GSS if rest != 0 => return Err(FirstError::Malformed),
        TLS => return Ok(Some(First::Tls)),
        GSS => return Ok(Some(First::Gss)),
        CANCEL if !(8..=4 + CANCEL_KEY_BYTES_MAX).contains(&rest) => {
            return Err(FirstError::Malformed);
        }
        CANCEL => {}
        _ if version >> 16 != VERSION_MAJOR => return Err(FirstError::Version(version)),
        _ => {}
    }
    let mut body = vec![0; rest];
    from.read_exact(&mut body).await?;
    if version == CANCEL {
        return Ok(Some(First::Cancel(CancelKey(body))));
    }
    let parameters = parse_parameters(&body).ok_or(FirstError::Malformed)?;
    Ok(Some(First::Startup(Startup {
        version,
        parameters,
    })))
}

fn parse_parameters(mut body: &[u8]) -> Option<Parameters> {
    let mut parameters = Vec::new();
    loop {
        let name = take_text(&mut body)?;
        if name.is_empty() {
            return body.is_empty().then_some(parameters);
        }
        parameters.push((name.to_vec(), take_text(&mut body)?.to_vec()));
    }
}

/// Takes a text that ends with a zero.
fn take_text<'a>(body: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = body.iter().position(|byte| *byte == 0)?;
    let text = &body[..end];
    *body = &body[end + 1..];
    Some(text)
}

impl CancelKey {
    /// Returns the key of a `BackendKeyData` message.
    pub(crate) fn from_backend(body: &[u8]) -> Self {
        Self(body.to_vec())
    }

    /// Returns the whole packet that asks for the cancellation.
    pub(crate) fn encode(&self) -> Vec<u8> {
        first_packet(CANCEL, &self.0)
    }
}

impl Startup {
    /// Returns a start-up of version 3.0.
    pub(crate) fn new(parameters: &[(&str, &str)]) -> Self {
        let bytes = |text: &str| text.as_bytes().to_vec();
        let parameters = parameters
            .iter()
            .map(|(name, value)| (bytes(name), bytes(value)));
        Self {
            version: VERSION,
            parameters: parameters.collect(),
        }
    }

    /// Returns the whole packet. No name is empty and no text holds a zero: it was read so.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for text in self
            .parameters
            .iter()
            .flat_map(|(name, value)| [name, value])
        {
            body.extend_from_slice(text);
            body.push(0);
        }
        body.push(0);
        first_packet(self.version, &body)
    }
}

fn first_packet(version: u32, body: &[u8]) -> Vec<u8> {
    let mut packet = ((8 + body.len()) as u32).to_be_bytes().to_vec();
    packet.extend_from_slice(&version.to_be_bytes());
    packet.extend_from_slice(body);
    packet
}

/// A message with its letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// Its letter.
    pub(crate) tag: u8,
    /// What follows the letter and the size.
    pub(crate) body: Vec<u8>,
}

/// Reads messages from a server, and keeps what came after the last one.
#[derive(Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    start: usize,
}

impl Inbox {
    /// Reads the next message.
    pub(crate) async fn next<R>(&mut self, from: &mut R) -> io::Result<Message>
    where
        R: AsyncRead + Unpin,
    {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            self.bytes.drain(..self.start);
            self.start = 0;
            self.bytes.reserve(4 << 10);
            if from.read_buf(&mut self.bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Returns what was read after the last message.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn take(&mut self) -> io::Result<Option<Message>> {
        let Some(&[tag, a, b, c, d]) = self.rest().first_chunk() else {
            return Ok(None);
        };
        let size = u32::from_be_bytes([a, b, c, d]) as usize;
        if !(4..=MESSAGE_BYTES_MAX).contains(&size) {
            return Err(io::Error::other("a message of the server has no size"));
        }
        let Some(body) = self.rest().get(5..1 + size) else {
            return Ok(None);
        };
        let body = body.to_vec();
        self.start += 1 + size;
        Ok(Some(Message { tag, body }))
    }
}

impl Message {
    /// Adds the whole message to what will be sent.
    pub(crate) fn put(&self, packet: &mut Vec<u8>) {
        put(packet, self.tag, &[&self.body]);
    }
}

/// Adds a message of these parts to what will be sent.
pub(crate) fn put(packet: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) {
    let size: usize = parts.iter().map(|part| part.len()).sum();
    packet.push(tag);
    packet.extend_from_slice(&((4 + size) as u32).to_be_bytes());
    for part in parts {
        packet.extend_from_slice(part);
    }
}

/// What a server says when something fails: an `ErrorResponse`, in the parts that people read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// The SQLSTATE.
    pub(crate) code: String,
    /// What is wrong.
    pub(crate) message: String,
    /// More of it.
    pub(crate) detail: Option<String>,
    /// What to do.
    pub(crate) hint: Option<String>,
}

impl Report {
    /// Returns one that ends a session.
    pub(crate) fn fatal(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    /// Reads the body of an `ErrorResponse`; what is missing stays empty.
    pub(crate) fn read(mut body: &[u8]) -> Self {
        let mut report = Self::fatal("", "");
        while let [field, rest @ ..] = body {
            body = rest;
            let Some(text) = take_text(&mut body).filter(|_| *field != 0) else {
                break;
            };
            let text = String::from_utf8_lossy(text).into_owned();
            match field {
                b'C' => report.code = text,
                b'M' => report.message = text,
                b'D' => report.detail = Some(text),
                b'H' => report.hint = Some(text),
                _ => {}
            }
        }
        report
    }

    /// Returns the whole message, as a client shows it.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let mut field = |tag: u8, text: &str| {
            body.push(tag);
            body.extend(text.bytes().filter(|byte| *byte != 0));
            body.push(0);
        };
        field(b'S', "FATAL");
        field(b'V', "FATAL");
        field(b'C', &self.code);
        field(b'M', &self.message);
        for (tag, text) in [(b'D', &self.detail), (b'H', &self.hint)] {
            if let Some(text) = text {
                field(tag, text);
            }
        }
        body.push(0);
        let mut packet = Vec::new();
        put(&mut packet, b'E', &[&body]);
        packet
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        for more in [&self.detail, &self.hint].into_iter().flatten() {
            write!(f, "; {more}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Option<First>, FirstError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(read_first(&mut &bytes[..]))
    }

    #[test]
    fn first_packets_are_told_apart() {
        let startup = Startup::new(&[("user", "me"), ("options", "")]);
        assert_eq!(
            read(&startup.encode()).unwrap(),
            Some(First::Startup(startup))
        );
        let key = CancelKey(vec![7; 8]);
        assert_eq!(read(&key.encode()).unwrap(), Some(First::Cancel(key)));
        assert_eq!(read(&first_packet(TLS, &[])).unwrap(), Some(First::Tls));
        assert_eq!(read(&first_packet(GSS, &[])).unwrap(), Some(First::Gss));
        assert_eq!(read(&[]).unwrap(), None);
    }

    #[test]
    fn a_first_packet_that_is_none_is_refused_before_it_is_waited_for() {
        let huge = [&100_000_000_u32.to_be_bytes()[..], &VERSION.to_be_bytes()].concat();
        let cases: [(&[u8], &str); 7] = [
            (&huge, "a first packet of 100000000 bytes is not allowed"),
            (b"GET / HTTP/1.1\r\n", "a first packet of 1195725856 bytes"),
            (&[0, 0, 0, 7, 0, 3, 0, 0], "a first packet of 7 bytes"),
            (
                &first_packet(2 << 16, &[0]),
                "version 2.0 of the protocol is not spoken",
            ),
            (&first_packet(VERSION, b"user\0me\0"), "cannot be read"),
            (&first_packet(CANCEL, &[1; 4]), "cannot be read"),
            (&[0, 0, 0, 9, 0, 3], "in the middle of its first packet"),
        ];
        for (bytes, expected) in cases {
            let error = read(bytes).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let report = Report {
            hint: Some("wait".into()),
            ..Report::fatal("57P03", "the service does not answer")
        };
        let packet = report.encode();
        assert_eq!(Report::read(&packet[5..]), report);
        assert_eq!(report.to_string(), "the service does not answer; wait");
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = read(&bytes);
            let with_size = [&(8 + bytes.len() as u32).to_be_bytes()[..], &VERSION.to_be_bytes(),
                &bytes].concat();
            if let Ok(Some(First::Startup(startup))) = read(&with_size) {
                prop_assert_eq!(startup.encode(), with_size);
            }
            let _ = Report::read(&bytes);
            let mut inbox = Inbox { bytes, start: 0 };
            while let Ok(Some(_)) = inbox.take() {}
        }
    }
}
