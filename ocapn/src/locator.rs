//! Names of peers and of their objects, as URIs; `syrup` gives them their binary form.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use zeroize::Zeroizing;

/// Where a peer is: its transport, its name there, and hints on how to reach it.
///
/// Two locators name the same peer when transport and designator agree, whatever the hints; see
/// [`PeerLocator::same_peer`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerLocator {
    /// The netlayer's name, such as `tls-rpk`.
    pub transport: String,
    /// The peer's name on that netlayer; for `tls-rpk` its public key in base32.
    pub designator: String,
    /// What the netlayer needs to dial; never part of the peer's identity.
    pub hints: BTreeMap<String, String>,
}

/// Who is at the other end of a session, as far as the netlayer knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerId {
    /// The netlayer's name.
    pub transport: String,
    /// The peer's name on that netlayer.
    pub designator: String,
    /// Whether the netlayer proved the designator. What is bound to a key must never match a
    /// session where this is false.
    pub authenticated: bool,
    /// The network address the connection came from or went to. For reports, never for decisions
    /// about rights.
    pub address: Option<SocketAddr>,
}

impl PeerId {
    /// Returns whether this is the peer of that transport and designator.
    pub fn is(&self, transport: &str, designator: &str) -> bool {
        self.transport == transport && self.designator == designator
    }
}

/// Why a text is no locator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocatorError {
    /// The scheme is another one.
    #[error("a locator starts with ocapn://")]
    Scheme,
    /// No `designator.transport`.
    #[error("the part after ocapn:// must be DESIGNATOR.TRANSPORT")]
    Authority,
    /// A path that is not that of a sturdyref.
    #[error("the path of a sturdyref is /s/SWISSNUM, that of a peer is empty")]
    Path,
    /// The swissnum is not unpadded base64url.
    #[error("the swissnum is not base64url without padding")]
    Swissnum,
    /// A hint without `=`, or a bad percent escape.
    #[error("the hints are not NAME=VALUE&NAME=VALUE with percent escapes")]
    Hints,
}

impl PeerLocator {
    /// Returns a locator without hints.
    pub fn new(transport: impl Into<String>, designator: impl Into<String>) -> Self {
        let (transport, designator) = (transport.into(), designator.into());
        Self {
            transport,
            designator,
            hints: BTreeMap::new(),
        }
    }

    /// Returns whether both name the same peer; hints do not count.
    pub fn same_peer(&self, other: &Self) -> bool {
        self.transport == other.transport && self.designator == other.designator
    }

    /// Returns the locator with one more hint.
    #[must_use]
    pub fn with_hint(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.hints.insert(name.into(), value.into());
        self
    }

    /// Returns the locator with these addresses as `host`, `port`, `host2`, `port2`, … in place
    /// of those it had.
    #[must_use]
    pub fn with_addresses(
        mut self,
        addresses: impl IntoIterator<Item = (impl Into<String>, u16)>,
    ) -> Self {
        self.hints.retain(|name, _| address_number(name).is_none());
        for (n, (host, port)) in addresses.into_iter().enumerate() {
            let suffix = if n == 0 {
                String::new()
            } else {
                (n + 1).to_string()
            };
            self.hints.insert(format!("host{suffix}"), host.into());
            self.hints.insert(format!("port{suffix}"), port.to_string());
        }
        self
    }

    /// Returns the addresses of the hints `host`, `port`, `host2`, `port2`, … in that order; a
    /// pair that is not complete or whose port is no number is left out.
    pub fn addresses(&self) -> Vec<(String, u16)> {
        let mut found: Vec<(u32, String, u16)> = self
            .hints
            .iter()
            .filter(|(name, _)| name.starts_with("host"))
            .filter_map(|(name, host)| {
                let port = self.hints.get(&name.replacen("host", "port", 1))?;
                Some((address_number(name)?, host.clone(), port.parse().ok()?))
            })
            .collect();
        found.sort();
        found
            .into_iter()
            .map(|(_, host, port)| (host, port))
            .collect()
    }

    fn write_uri(&self, swissnum: Option<&str>, f: &mut impl fmt::Write) -> fmt::Result {
        write!(f, "ocapn://{}.{}", self.designator, self.transport)?;
        if let Some(swissnum) = swissnum {
            write!(f, "/s/{swissnum}")?;
        }
        for (n, (name, value)) in self.hints.iter().enumerate() {
            f.write_char(if n == 0 { '?' } else { '&' })?;
            escape(name, f)?;
            f.write_char('=')?;
            escape(value, f)?;
        }
        Ok(())
    }
}

/// Returns 1 for `host` and `port`, n for `hostN` and `portN` with N from 2.
fn address_number(hint: &str) -> Option<u32> {
    let suffix = hint
        .strip_prefix("host")
        .or_else(|| hint.strip_prefix("port"))?;
    if suffix.is_empty() {
        return Some(1);
    }
    suffix
        .parse()
        .ok()
        .filter(|n| *n >= 2 && !suffix.starts_with(['0', '+']))
}

impl fmt::Display for PeerLocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_uri(None, f)
    }
}

impl FromStr for PeerLocator {
    type Err = LocatorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (peer, path) = parse(text)?;
        if path.is_empty() {
            Ok(peer)
        } else {
            Err(LocatorError::Path)
        }
    }
}

/// The secret number that names an object at its peer. Its text appears nowhere by accident.
#[derive(Clone)]
pub struct Swissnum(Zeroizing<Vec<u8>>);

impl Swissnum {
    /// Returns the swissnum with these bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// Returns the secret bytes.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

/// Compares without a shortcut at the first difference, so that time tells nothing.
impl PartialEq for Swissnum {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self
                .0
                .iter()
                .zip(other.0.iter())
                .fold(0, |acc, (a, b)| acc | (a ^ b))
                == 0
    }
}

impl Eq for Swissnum {}

impl fmt::Debug for Swissnum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Swissnum(…)")
    }
}

/// The durable name of an object: whoever has it may fetch the object. `Display` hides the
/// secret; [`Sturdyref::to_uri`] is the one door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sturdyref {
    /// The peer that has the object.
    pub peer: PeerLocator,
    /// The object's secret number there.
    pub swissnum: Swissnum,
}

impl Sturdyref {
    pub(crate) fn heap_bytes(&self) -> usize {
        let PeerLocator {
            transport,
            designator,
            hints,
        } = &self.peer;
        let hint =
            |(name, value): (&String, &String)| 2 * size_of::<String>() + name.len() + value.len();
        let hints: usize = hints.iter().map(hint).sum();
        let texts = transport.len() + designator.len() + self.swissnum.reveal().len();
        size_of::<Self>() + texts + hints
    }

    /// Returns the URI with the secret in it.
    pub fn to_uri(&self) -> Zeroizing<String> {
        let mut uri = Zeroizing::new(String::new());
        let secret = Zeroizing::new(BASE64URL_NOPAD.encode(self.swissnum.reveal()));
        // Writing to a String cannot fail.
        let _ = self.peer.write_uri(Some(&secret), &mut *uri);
        uri
    }
}

impl fmt::Display for Sturdyref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.peer.write_uri(Some("…"), f)
    }
}

impl FromStr for Sturdyref {
    type Err = LocatorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (peer, path) = parse(text)?;
        let secret = path.strip_prefix("/s/").ok_or(LocatorError::Path)?;
        let bytes = BASE64URL_NOPAD
            .decode(secret.as_bytes())
            .map_err(|_| LocatorError::Swissnum)?;
        Ok(Self {
            peer,
            swissnum: Swissnum::new(bytes),
        })
    }
}

/// Returns the peer and the path of a locator of either kind.
fn parse(text: &str) -> Result<(PeerLocator, &str), LocatorError> {
    let rest = text.strip_prefix("ocapn://").ok_or(LocatorError::Scheme)?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    // A transport has no dot, a designator may.
    let (designator, transport) = authority.rsplit_once('.').ok_or(LocatorError::Authority)?;
    if designator.is_empty() || transport.is_empty() {
        return Err(LocatorError::Authority);
    }
    let mut peer = PeerLocator::new(transport, designator);
    for hint in query.split('&').filter(|hint| !hint.is_empty()) {
        let (name, value) = hint.split_once('=').ok_or(LocatorError::Hints)?;
        peer.hints.insert(unescape(name)?, unescape(value)?);
    }
    Ok((peer, path))
}

fn escape(text: &str, f: &mut impl fmt::Write) -> fmt::Result {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'/' => {
                f.write_char(char::from(byte))?;
            }
            _ => write!(f, "%{byte:02X}")?,
        }
    }
    Ok(())
}

fn unescape(text: &str) -> Result<String, LocatorError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(LocatorError::Hints);
        };
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes).map_err(|_| LocatorError::Hints)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_round_trip() {
        for text in [
            "ocapn://abc.onion",
            "ocapn://a.b.c.tcp-testing-only?host=127.0.0.1&port=22045",
            "ocapn://abc.websocket?url=wss://example.org/a%3Fb%3D1%26c",
            "ocapn://abc.tls-rpk?host=%5B::1%5D&host2=x&port=1&port2=2",
        ] {
            let peer: PeerLocator = text.parse().unwrap();
            assert_eq!(peer.to_string(), text);
        }
        let text = "ocapn://abc.tls-rpk/s/-_8A?host=h&port=1";
        let sturdyref: Sturdyref = text.parse().unwrap();
        assert_eq!(sturdyref.to_uri().as_str(), text);
        assert_eq!(sturdyref.swissnum.reveal(), [0xfb, 0xff, 0x00]);
        assert_eq!(
            sturdyref.to_string(),
            "ocapn://abc.tls-rpk/s/…?host=h&port=1"
        );
        assert!(!format!("{sturdyref:?}").contains("-_8A"));
    }

    #[test]
    fn texts_that_are_no_locators_are_refused() {
        for (text, error) in [
            ("http://a.b", LocatorError::Scheme),
            ("ocapn://ab", LocatorError::Authority),
            ("ocapn://.tcp", LocatorError::Authority),
            ("ocapn://a.", LocatorError::Authority),
            ("ocapn://a.b/x", LocatorError::Path),
            ("ocapn://a.b?x", LocatorError::Hints),
            ("ocapn://a.b?x=%g0", LocatorError::Hints),
            ("ocapn://a.b?x=%f", LocatorError::Hints),
            ("ocapn://a.b?x=%ff", LocatorError::Hints),
        ] {
            assert_eq!(text.parse::<PeerLocator>(), Err(error), "{text}");
        }
        assert_eq!(
            "ocapn://a.b/s/=".parse::<Sturdyref>(),
            Err(LocatorError::Swissnum)
        );
        assert_eq!("ocapn://a.b".parse::<Sturdyref>(), Err(LocatorError::Path));
    }

    #[test]
    fn addresses_keep_their_order() {
        let addresses = vec![
            ("a".to_owned(), 1),
            ("b".to_owned(), 2),
            ("c".to_owned(), 3),
        ];
        let peer = PeerLocator::new("tls-rpk", "x")
            .with_hint("host9", "old")
            .with_hint("k", "v");
        let peer = peer.with_addresses(addresses.clone());
        assert_eq!(peer.addresses(), addresses);
        assert_eq!(peer.hints["k"], "v");
        assert!(!peer.hints.contains_key("host9"));
        let broken = PeerLocator::new("t", "x")
            .with_hint("host", "h")
            .with_hint("port", "http");
        assert_eq!(broken.addresses(), []);
    }
}
