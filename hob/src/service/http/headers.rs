//! Headers on their way through: those of one connection stay there, and the key is added.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::HeaderMap;
use hyper::header::{self, HeaderName, HeaderValue};

use super::rules::Rules;
use crate::service::read_file;

/// Bytes of a header file: a token or two.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Headers of one connection.
const OF_THE_CONNECTION: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Headers by which some servers are told another path than the request's.
const OTHER_PATH: [&str; 7] = [
    "x-original-url",
    "x-original-uri",
    "x-rewrite-url",
    "x-override-url",
    "x-forwarded-uri",
    "x-forwarded-path",
    "x-forwarded-prefix",
];

/// Headers by which some servers are told another method than the request's.
const OTHER_METHOD: [&str; 3] = [
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
];

/// Removes what belongs to one connection, and what a `Connection` header says does.
pub(super) fn strip(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in listed {
        headers.remove(name);
    }
    for name in OF_THE_CONNECTION {
        headers.remove(name);
    }
}

/// Makes a request's headers fit for the server: `host` is its name, unless the key has another.
pub(super) fn prepare(headers: &mut HeaderMap, host: &HeaderValue, rules: &Rules, key: &Key) {
    let trailers = headers.get_all(header::TE).iter().any(|value| {
        let words = value.to_str().unwrap_or_default().split(',');
        words
            .map(str::trim)
            .any(|word| word.eq_ignore_ascii_case("trailers"))
    });
    // What has no known length is framed anew.
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    strip(headers);
    // The answer to it is ours: the body is asked for when the server is there.
    headers.remove(header::EXPECT);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    let mut removed: Vec<&str> = Vec::new();
    if rules.limits_paths() {
        removed.extend(OTHER_PATH);
    }
    if rules.limits_methods() {
        removed.extend(OTHER_METHOD);
    }
    removed.extend(key.0.iter().map(|(name, _)| name.as_str()));
    // Some servers take `_` for `-`.
    let same = |name: &HeaderName| {
        let name = name.as_str();
        let same = |other: &&str| {
            let both = name.bytes().zip(other.bytes());
            let dash = |byte: u8| if byte == b'_' { b'-' } else { byte };
            name.len() == other.len() && both.into_iter().all(|(a, b)| dash(a) == dash(b))
        };
        removed.iter().any(same)
    };
    let names: Vec<HeaderName> = headers.keys().filter(|name| same(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
    headers.insert(header::HOST, host.clone());
    for (name, value) in key.0.iter() {
        if *name == header::HOST {
            headers.insert(name, value.clone());
        } else {
            headers.append(name, value.clone());
        }
    }
}

/// The headers that authorise requests. Their values are marked as not to be shown.
#[derive(Clone, Debug, Default)]
pub(super) struct Key(Arc<Vec<(HeaderName, HeaderValue)>>);

/// The file that the key is in. It is read again when it has changed.
#[derive(Debug, Default)]
pub(super) struct KeyFile {
    path: Option<PathBuf>,
    last: Mutex<Option<(Stamp, Key)>>,
}

/// What changes with a file: device, number, size, and the times of its contents and of its own.
type Stamp = [i64; 7];

impl KeyFile {
    /// Returns the key in this file, or none at all.
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            last: Mutex::default(),
        }
    }

    /// Returns the key as it is now.
    pub(super) async fn read(&self) -> Result<Key, String> {
        let Some(path) = self.path.clone() else {
            return Ok(Key::default());
        };
        let at = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
        let metadata = tokio::fs::metadata(&path).await.map_err(at)?;
        let stamp = [
            metadata.dev().cast_signed(),
            metadata.ino().cast_signed(),
            metadata.size().cast_signed(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        ];
        let last = self
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some((known, key)) = last
            && known == stamp
        {
            return Ok(key);
        }
        let file = path.clone();
        let read = tokio::task::spawn_blocking(move || read_file(&file, FILE_BYTES_MAX)).await;
        let text = read
            .unwrap_or_else(|gone| Err(std::io::Error::other(gone)))
            .map_err(at)?;
        let key = parse(&text).map_err(|why| format!("{}: {why}", path.display()))?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some((stamp, key.clone()));
        Ok(key)
    }
}

/// Reads lines of `name: value`. What is wrong is said without showing it.
fn parse(text: &[u8]) -> Result<Key, String> {
    let mut key = Vec::new();
    for (at, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let wrong = |why: &str| format!("line {} {why}", at + 1);
        let colon = line.iter().position(|byte| *byte == b':');
        let colon = colon.ok_or_else(|| wrong("is not `name: value`"))?;
        let name = HeaderName::from_bytes(&line[..colon])
            .map_err(|_| wrong("has no header's name before its colon"))?;
        let of_the_connection = OF_THE_CONNECTION.contains(&name.as_str());
        if of_the_connection || name == header::CONTENT_LENGTH {
            return Err(wrong("has a header that belongs to one connection"));
        }
        let mut value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii())
            .map_err(|_| wrong("has a value that no header can have"))?;
        value.set_sensitive(true);
        key.push((name, value));
    }
    if key.is_empty() {
        return Err("it has no line `name: value`".into());
    }
    Ok(Key(Arc::new(key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Attenuate;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn what_belongs_to_the_connection_stays_there_and_the_key_is_ours() {
        let mut sent = headers(&[
            ("connection", "close, X-Hop, authorization"),
            ("x-hop", "1"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("host", "elsewhere"),
            ("authorization", "mine"),
            ("x_api-key", "mine"),
            ("x-api-key", "mine"),
            ("x-original-url", "/admin"),
            ("x_rewrite_url", "/admin"),
            ("x-http-method-override", "DELETE"),
            ("expect", "100-continue"),
            ("accept", "*/*"),
        ]);
        let rights = Attenuate {
            methods: Some(vec!["GET".into()]),
            paths: Some(vec!["/*".into()]),
            ..Attenuate::default()
        };
        let rules = Rules::new(&rights).unwrap();
        let key = parse(b"\nX-API-Key: k1\r\nAuthorization: Bearer t\n").unwrap();
        prepare(&mut sent, &HeaderValue::from_static("h:1"), &rules, &key);
        let expected = [
            ("te", "trailers"),
            ("accept", "*/*"),
            ("host", "h:1"),
            ("x-api-key", "k1"),
            ("authorization", "Bearer t"),
        ];
        assert_eq!(sent, headers(&expected));
        assert!(!format!("{sent:?}").contains("Bearer"), "{sent:?}");
    }

    #[test]
    fn files_that_are_no_headers_are_told_without_their_text() {
        for (text, why) in [
            ("", "it has no line `name: value`"),
            ("sesame", "line 1 is not `name: value`"),
            (
                "\nopen sesame: x",
                "line 2 has no header's name before its colon",
            ),
            ("a: \u{1}", "line 1 has a value that no header can have"),
            (
                "Transfer-Encoding: x",
                "line 1 has a header that belongs to one connection",
            ),
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap_err(), why);
        }
    }
}
