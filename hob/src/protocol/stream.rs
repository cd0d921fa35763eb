//! Byte streams: how one is asked for, and the two ways on which its bytes are carried.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use ocapn::{Passable, Struct};

use super::Malformed;

/// The ALPN name of connections that carry one stream of a binding.
///
/// The dialler is the importer, the listener the exporter, both with proven keys. The dialler
/// sends [`BYTES_VERSION`] and the ticket; the listener answers one byte ([`StreamReply`]); after
/// [`StreamReply::Open`] everything both ways belongs to the stream. The dialler may send what the
/// stream begins with beside the ticket; it is lost if the answer is another. The end of one
/// direction is TLS's close-notify; a connection that ends without one was cut.
pub const BYTES_ALPN: &[u8] = b"gobs-bytes/1";

/// The first byte of a byte connection.
pub const BYTES_VERSION: u8 = 1;

/// Bytes of a ticket.
pub const TICKET_SIZE: usize = 32;

/// How long a ticket may be presented: longer than a dial takes, short enough to be worthless to
/// a later reader of memory.
pub const TICKET_LIFETIME: Duration = Duration::from_secs(30);

/// Bytes that a stream begins with and that travel beside its ticket: PostgreSQL's start-ups fit,
/// and with the ticket they fit in one record of TLS.
pub const EARLY_BYTES_MAX: usize = 12 << 10;

/// The first byte of a connection to [`Near::name`].
///
/// Where both hobs are on one host, the program's own socket goes to the exporter, which carries
/// its bytes alone. The importer connects and sends this byte and the ticket; the listener answers
/// with [`Near::proof`]; the importer then sends one byte with the socket (`SCM_RIGHTS`), the
/// length of what the stream begins with (two bytes, the higher first) and that; the listener
/// answers one byte ([`StreamReply`]). Before [`StreamReply::Open`] it reads nothing from the
/// program. The connection says no more and lasts as long as the stream: the end of either ends
/// the other.
pub const NEAR_VERSION: u8 = 1;

/// Bytes of [`Near::host`].
pub const HOST_SIZE: usize = 32;

/// Bytes of [`Near::name`].
pub const NEAR_NAME_SIZE: usize = 16;

/// Bytes of [`Near::proof`].
pub const PROOF_SIZE: usize = 32;

/// The answer to `open`. Both secrets in it are good for one stream.
#[derive(Clone, PartialEq, Eq)]
pub struct Opened {
    /// To be presented within [`TICKET_LIFETIME`].
    pub ticket: [u8; TICKET_SIZE],
    /// Where it may be presented by a hob on the same host, if the exporter takes sockets.
    pub near: Option<Near>,
}

/// Where a hob takes programs' sockets from hobs on its host.
#[derive(Clone, PartialEq, Eq)]
pub struct Near {
    /// Tells hosts and their network namespaces apart. Where the importer's is another, the name
    /// is nobody's there, or a stranger's.
    pub host: [u8; HOST_SIZE],
    /// The listener's abstract name: `gobs-` and these in hexadecimal.
    pub name: [u8; NEAR_NAME_SIZE],
    /// What the listener shows before it is given anything: everyone on the host can see its
    /// name, and take that once it is dead.
    pub proof: [u8; PROOF_SIZE],
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opened(…)")
    }
}

impl Opened {
    /// Returns the message.
    pub fn to_passable(&self) -> Passable {
        let bytes = |bytes: &[u8]| Passable::bytes(Bytes::copy_from_slice(bytes));
        let mut opened = Struct::new().with("ticket", bytes(&self.ticket));
        if let Some(Near { host, name, proof }) = &self.near {
            let near = Struct::new()
                .with("host", bytes(host))
                .with("name", bytes(name))
                .with("proof", bytes(proof));
            opened = opened.with("near", Passable::Struct(near));
        }
        Passable::Struct(opened)
    }

    /// Reads the message.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_passable(message: &Passable) -> Result<Self, Malformed> {
        fn bytes<const SIZE: usize>(of: &Passable, key: &str) -> Option<[u8; SIZE]> {
            let Passable::Struct(of) = of else {
                return None;
            };
            of.get(key)?.as_bytes()?.as_ref().try_into().ok()
        }
        let read = || {
            let Passable::Struct(all) = message else {
                return None;
            };
            let near = |near| {
                Some(Near {
                    host: bytes(near, "host")?,
                    name: bytes(near, "name")?,
                    proof: bytes(near, "proof")?,
                })
            };
            Some(Self {
                ticket: bytes(message, "ticket")?,
                // Another kind of offer is a later version's, and can be done without.
                near: all.get("near").and_then(near),
            })
        };
        read().ok_or_else(|| Malformed {
            what: "open's answer",
            why: "it is no ticket".into(),
        })
    }
}

/// What the exporter says to a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamReply {
    /// The service took the connection.
    Open,
    /// Unknown, used, expired or foreign ticket, or a revoked grant: one answer for all.
    Refused,
    /// As many streams as `connections_max` are open.
    Busy,
    /// The service did not take the connection.
    Unreachable,
}

impl StreamReply {
    /// Returns the byte on the wire.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Open => 0,
            Self::Refused => 1,
            Self::Busy => 2,
            Self::Unreachable => 3,
        }
    }

    /// Reads the byte on the wire.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Open, Self::Refused, Self::Busy, Self::Unreachable]
            .into_iter()
            .find(|reply| reply.to_byte() == byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_replies_are_read_back() {
        for byte in 0..=u8::MAX {
            let reply = StreamReply::from_byte(byte);
            assert_eq!(reply.map(StreamReply::to_byte), (byte < 4).then_some(byte));
        }
    }

    #[test]
    fn answers_to_open_are_read_back() {
        let near = Near {
            host: [1; HOST_SIZE],
            name: [2; NEAR_NAME_SIZE],
            proof: [3; PROOF_SIZE],
        };
        let ticket = [4; TICKET_SIZE];
        let apart = Opened { ticket, near: None };
        for opened in [
            &apart,
            &Opened {
                near: Some(near),
                ..apart.clone()
            },
        ] {
            let back = Opened::from_passable(&opened.to_passable());
            assert!(back.is_ok_and(|back| back == *opened));
        }
        let short = Struct::new().with("ticket", Passable::bytes(Bytes::from_static(b"short")));
        for wrong in [
            Passable::Struct(short),
            Passable::Struct(Struct::new()),
            Passable::bytes(Bytes::copy_from_slice(&ticket)),
        ] {
            assert!(Opened::from_passable(&wrong).is_err());
        }
        // A later version's offer is none.
        let other = Struct::new().with("ticket", Passable::bytes(Bytes::copy_from_slice(&ticket)));
        let other = Passable::Struct(other.with("near", "elsewhere"));
        assert!(Opened::from_passable(&other).is_ok_and(|back| back == apart));
    }
}
