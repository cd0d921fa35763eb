//! The document that a machine starts with.

use data_encoding::BASE64;
use ocapn::Sturdyref;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Malformed, sturdyref_text};

/// What a machine is given to find its boss with: one JSON text, readable by anyone on the
/// machine until the hob has erased its copy, and worthless after the claim.
#[derive(Clone, Serialize, Deserialize)]
pub struct UserData {
    /// The version of this document.
    #[serde(rename = "gobs")]
    pub format: u32,
    /// The one-time sturdyref of the machine's presence, as a URI.
    #[serde(with = "sturdyref_text")]
    pub sturdyref: Sturdyref,
    /// Where the hob listens, such as `127.0.0.1:0`; port 0 is chosen once, then kept.
    pub listen: String,
    /// The addresses (`host:port`, or `host` for the port listened on) that others dial. Empty:
    /// the one listened on.
    #[serde(default)]
    pub advertise: Vec<String>,
}

/// The version of [`UserData`].
pub const USER_DATA_FORMAT: u32 = 1;

/// The header under which the document stands, in base64 on one line, in user data that is a MIME
/// message with parts for others.
pub const USER_DATA_HEADER: &str = "X-Gobs-Hob";

impl UserData {
    /// Returns the document as text; it holds a secret.
    pub fn encode(&self) -> Zeroizing<String> {
        // Strings and numbers only: this cannot fail.
        Zeroizing::new(serde_json::to_string(self).unwrap_or_default())
    }

    /// Returns the document as a line of a MIME message's head; it holds a secret.
    pub fn to_header(&self) -> Zeroizing<String> {
        let value = Zeroizing::new(BASE64.encode(self.encode().as_bytes()));
        Zeroizing::new(format!("{USER_DATA_HEADER}: {}", *value))
    }

    /// Returns the text that must be erased from copies of a MIME message; nothing where the text
    /// is none.
    pub fn sealed_in(text: &str) -> Option<&str> {
        let head = text.lines().take_while(|line| !line.trim_end().is_empty());
        let mut values = head.filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(USER_DATA_HEADER)
                .then(|| value.trim())
        });
        values.next().filter(|value| !value.is_empty())
    }

    /// Reads the document, by itself or from the head of a MIME message. The error tells no part
    /// of the text.
    pub fn decode(text: &str) -> Result<Self, Malformed> {
        let Some(value) = Self::sealed_in(text) else {
            return Self::decode_document(text);
        };
        let document = BASE64.decode(value.as_bytes()).ok();
        let document = document.and_then(|bytes| String::from_utf8(bytes).ok());
        match document.map(Zeroizing::new) {
            Some(document) => Self::decode_document(&document),
            None => Err(Malformed {
                what: "user data",
                why: format!("its header {USER_DATA_HEADER} cannot be read"),
            }),
        }
    }

    fn decode_document(text: &str) -> Result<Self, Malformed> {
        let malformed = |why: String| Malformed {
            what: "user data",
            why,
        };
        #[derive(Deserialize)]
        struct Format {
            gobs: u32,
        }
        let place = |error: &serde_json::Error| {
            format!(
                "line {} column {} cannot be read",
                error.line(),
                error.column()
            )
        };
        let Format { gobs } = serde_json::from_str(text).map_err(|e| malformed(place(&e)))?;
        if gobs != USER_DATA_FORMAT {
            let why = format!("format {gobs} is not the one of this hob ({USER_DATA_FORMAT})");
            return Err(malformed(why));
        }
        serde_json::from_str(text).map_err(|e| malformed(place(&e)))
    }
}

/// Reads `host:port`, `[v6]:port`, or a host alone, which gets the default port.
pub fn host_and_port(text: &str, default: u16) -> (String, u16) {
    let bare = |host: &str| host.trim_matches(['[', ']']).to_owned();
    if text.parse::<std::net::IpAddr>().is_ok() {
        return (text.to_owned(), default);
    }
    match text
        .rsplit_once(':')
        .map(|(host, port)| (host, port.parse()))
    {
        Some((host, Ok(port))) => (bare(host), port),
        _ => (bare(text), default),
    }
}

impl std::fmt::Debug for UserData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UserData({}, listen {})", self.sturdyref, self.listen)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::named;
    use super::*;

    #[test]
    fn user_data_is_read_back_and_errors_tell_nothing_of_it() {
        let data = UserData {
            format: USER_DATA_FORMAT,
            sturdyref: named(b"secret"),
            listen: "127.0.0.1:0".into(),
            advertise: vec!["db.example:7463".into()],
        };
        let back = UserData::decode(&data.encode()).unwrap();
        assert_eq!(back.sturdyref, data.sturdyref);
        assert_eq!(
            (back.listen, back.advertise),
            (data.listen.clone(), data.advertise.clone())
        );
        assert!(!format!("{data:?}").contains("c2VjcmV0"));

        let header = data.to_header();
        let message = format!(
            "Content-Type: multipart/mixed; boundary=\"b\"\r\n{}\r\n\r\n--b",
            *header
        );
        let back = UserData::decode(&message).unwrap();
        assert_eq!(back.sturdyref, data.sturdyref);
        let secret = UserData::sealed_in(&message).unwrap();
        assert!(header.ends_with(secret));
        let cut = message.replace(secret, &secret[1..]);
        let error = UserData::decode(&cut).unwrap_err().to_string();
        assert!(!error.contains(&secret[1..9]), "{error}");
        let in_the_body = format!("Content-Type: text/plain\n\n{}", *header);
        assert_eq!(UserData::sealed_in(&in_the_body), None);

        let newer = data.encode().replace("\"gobs\":1", "\"gobs\":2");
        assert!(
            UserData::decode(&newer)
                .unwrap_err()
                .why
                .contains("format 2")
        );
        let broken = data.encode().replace("127.0.0.1:0\"", "127.0.0.1:0");
        assert!(
            !UserData::decode(&broken)
                .unwrap_err()
                .to_string()
                .contains("c2VjcmV0")
        );
    }
}
