//! Which requests a grant lets through.
//!
//! A path can be written in many ways, and servers differ in which they take for the same. Where
//! paths are limited, one that could be read in two ways is refused, and the server gets the path
//! as it was compared.

use hyper::Method;

use crate::protocol::Attenuate;

/// Methods or paths in one list: every request is compared with them.
const LISTED_MAX: usize = 256;

/// Bytes of a method or a path in a list.
const LISTED_BYTES_MAX: usize = 1 << 10;

/// What requests may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    methods: Option<Vec<Method>>,
    paths: Option<Vec<Pattern>>,
}

/// A path, in which a segment `*` stands for any one, and a `*` at the end for all that follows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern(String);

/// Why a request is not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// The method is not one of the grant's.
    #[error("the method is not allowed through this binding")]
    Method,
    /// The path is not one of the grant's.
    #[error("the path is not allowed through this binding")]
    Path,
    /// The path can be read in more than one way.
    #[error("the path is not in its plain form, which this binding asks for")]
    Unclear,
}

impl Rules {
    /// Returns what a grant with these rights lets through.
    ///
    /// # Errors
    /// What cannot be a rule, for people.
    pub(super) fn new(rights: &Attenuate) -> Result<Self, String> {
        let methods = rights.methods.as_ref();
        let paths = rights.paths.as_ref();
        Ok(Self {
            methods: methods
                .map(|all| listed("methods", all, method))
                .transpose()?,
            paths: paths
                .map(|all| listed("paths", all, Pattern::parse))
                .transpose()?,
        })
    }

    /// Returns whether methods are limited.
    pub(super) fn limits_methods(&self) -> bool {
        self.methods.is_some()
    }

    /// Returns whether paths are limited.
    pub(super) fn limits_paths(&self) -> bool {
        self.paths.is_some()
    }

    /// Returns the path to ask the server for.
    pub(super) fn admit(&self, method: &Method, path: &str) -> Result<String, Refusal> {
        let never = matches!(*method, Method::CONNECT | Method::TRACE);
        let allowed = self.methods.as_ref();
        if never || allowed.is_some_and(|allowed| !allowed.contains(method)) {
            return Err(Refusal::Method);
        }
        let Some(patterns) = &self.paths else {
            return Ok(path.to_owned());
        };
        let plain = plain(path).ok_or(Refusal::Unclear)?;
        if patterns.iter().any(|pattern| pattern.matches(&plain)) {
            Ok(plain)
        } else {
            Err(Refusal::Path)
        }
    }
}

/// Checks rights.
///
/// # Errors
/// What is wrong with them, for people.
pub(crate) fn check_rights(rights: &Attenuate) -> Result<(), String> {
    Rules::new(rights).map(drop)
}

fn listed<T>(
    what: &str,
    listed: &[String],
    parse: impl Fn(&str) -> Result<T, &'static str>,
) -> Result<Vec<T>, String> {
    if listed.len() > LISTED_MAX {
        return Err(format!("{what} has more than {LISTED_MAX} entries"));
    }
    let parse = |text: &String| {
        let short = text.len() <= LISTED_BYTES_MAX;
        let parsed = if short {
            parse(text)
        } else {
            Err("it is too long")
        };
        parsed.map_err(|why| format!("{what} cannot have {text:?}: {why}"))
    };
    listed.iter().map(parse).collect()
}

fn method(text: &str) -> Result<Method, &'static str> {
    let method = Method::from_bytes(text.as_bytes()).map_err(|_| "that is no method")?;
    if text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err("methods are written in capitals");
    }
    match method {
        Method::CONNECT | Method::TRACE => Err("no binding lets it through"),
        method => Ok(method),
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, &'static str> {
        if !text.starts_with('/') {
            return Err("a path begins with /");
        }
        let inner = text.strip_suffix('*').unwrap_or(text);
        let stars = |segment: &str| segment.contains('*') && segment != "*";
        if inner.split('/').any(stars) || inner.ends_with('*') {
            return Err("* stands for one whole segment, or at the end for all that follows");
        }
        // Any letter will do in its place.
        let sample = text.replace('*', "x");
        if plain(&sample).is_none_or(|plain| plain != sample) {
            return Err(
                "it is not in its plain form: no query, no //, no . or .. segments, and no \
                        %-escapes of letters, digits, -, ., _ or ~",
            );
        }
        Ok(Self(text.to_owned()))
    }

    fn matches(&self, path: &str) -> bool {
        let (mut pattern, mut path) = (self.0.as_str(), path);
        loop {
            let Some((before, after)) = pattern.split_once('*') else {
                return path == pattern;
            };
            let Some(rest) = path.strip_prefix(before) else {
                return false;
            };
            if after.is_empty() {
                return true;
            }
            let end = rest.find('/').unwrap_or(rest.len());
            if end == 0 {
                return false;
            }
            (pattern, path) = (after, &rest[end..]);
        }
    }
}

/// Returns a path as all servers read it: with the escapes of plain letters undone, the others in
/// capitals. `None` if some may read another path in it: dot segments in any guise, empty
/// segments, escaped or foreign separators, escapes of escapes, parameters of segments, bytes
/// that are no UTF-8.
fn plain(path: &str) -> Option<String> {
    let mut plain = String::new();
    // As somebody who undoes all escapes reads it.
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        match first {
            b'%' => {
                let [high, low, more @ ..] = rest else {
                    return None;
                };
                rest = more;
                let digit = |digit: u8| char::from(digit).to_digit(16);
                let byte = (digit(*high)? * 16 + digit(*low)?) as u8;
                match byte {
                    b'/' | b'\\' | b'%' | b';' | b'?' | b'#' | 0..0x20 | 0x7f => return None,
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                        plain.push(char::from(byte));
                    }
                    _ => plain.push_str(&format!("%{byte:02X}")),
                }
                bytes.push(byte);
            }
            b'\\' | b';' | b'?' | b'#' => return None,
            0x21..=0x7e => {
                plain.push(char::from(*first));
                bytes.push(*first);
            }
            _ => return None,
        }
    }
    let text = String::from_utf8(bytes).ok()?;
    let inner = text.strip_prefix('/')?;
    let segments: Vec<_> = inner.split('/').collect();
    let last = segments.len() - 1;
    for (at, segment) in segments.iter().enumerate() {
        let dots = segment.contains('.') && segment.trim_matches(['.', ' ']).is_empty();
        if dots || (segment.is_empty() && at != last) {
            return None;
        }
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(methods: &[&str], paths: &[&str]) -> Result<Rules, String> {
        let list = |all: &[&str]| {
            let all: Vec<_> = all.iter().map(|it| (*it).to_owned()).collect();
            (!all.is_empty()).then_some(all)
        };
        Rules::new(&Attenuate {
            methods: list(methods),
            paths: list(paths),
            ..Attenuate::default()
        })
    }

    fn check(rules: &Rules, path: &str, expected: Result<&str, Refusal>) {
        let admitted = rules.admit(&Method::GET, path);
        assert_eq!(
            admitted.as_deref(),
            expected.as_ref().map(|it| *it),
            "{path}"
        );
    }

    #[test]
    fn paths_match_whole_or_by_their_beginning() {
        let rules = rules(&[], &["/status", "/api/*", "/users/*/orders", "/v*"]).unwrap();
        for path in [
            "/status",
            "/api/",
            "/api/a/b.c",
            "/users/7/orders",
            "/v2/x",
            "/api/a%20b",
        ] {
            check(&rules, path, Ok(path));
        }
        check(
            &rules,
            "/%61pi/%7euser/%e2%82%ac",
            Ok("/api/~user/%E2%82%AC"),
        );
        for path in [
            "/",
            "/status/",
            "/Status",
            "/api",
            "/API/x",
            "/apix",
            "/users//orders",
            "/users/7/8/orders",
            "/users/7/orders/",
            "/users/7/order",
        ] {
            let refused = rules.admit(&Method::GET, path).unwrap_err();
            assert_ne!(refused, Refusal::Method, "{path}");
        }
    }

    #[test]
    fn what_could_be_another_path_is_refused() {
        let rules = rules(&[], &["/api/*"]).unwrap();
        for path in [
            "/api/../admin",
            "/api/./x",
            "/api/%2e%2e/admin",
            "/api/.%2E/admin",
            "/api/%2e/x",
            "/api/..",
            "/api/x/..",
            "/api/..;/admin",
            "/api/..;a=b/admin",
            "/api/;/x",
            "/api/x;y",
            "/api//x",
            "//api/x",
            "/api/%2fx",
            "/api/..%2fadmin",
            "/api/%2F",
            "/api/%5c..%5cadmin",
            "/api/..\\admin",
            "/api/%252e%252e/admin",
            "/api/%25",
            "/api/%c0%ae%c0%ae/admin",
            "/api/%c0%af",
            "/api/%00",
            "/api/%0d%0a",
            "/api/%",
            "/api/%2",
            "/api/%zz",
            "/api/...",
            "/api/..%20/x",
            "/api/%ff",
            "/api/#x",
            "/api/?x",
            "api/x",
            "",
            "*",
            "/api/%3b",
            "/api/%3f",
            "/api/%e0%80%af",
            "/api/x\u{e9}",
            "/api/ x",
            "/api/%7f",
        ] {
            check(&rules, path, Err(Refusal::Unclear));
        }
    }

    #[test]
    fn methods_are_compared_as_they_are() {
        let rules = rules(&["GET", "PURGE"], &[]).unwrap();
        for (method, admitted) in [
            ("GET", true),
            ("PURGE", true),
            ("get", false),
            ("HEAD", false),
            ("GETS", false),
            ("TRACE", false),
            ("CONNECT", false),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(
                rules.admit(&method, "/%2e%2e//x").is_ok(),
                admitted,
                "{method}"
            );
        }
        let all = Rules::default();
        assert_eq!(all.admit(&Method::TRACE, "/"), Err(Refusal::Method));
        assert_eq!(all.admit(&Method::OPTIONS, "*").as_deref(), Ok("*"));
    }

    #[test]
    fn lists_that_are_no_rules_are_refused() {
        for (method, why) in [
            ("get", "methods are written in capitals"),
            ("G T", "that is no method"),
            ("TRACE", "no binding lets it through"),
        ] {
            let wrong = rules(&[method], &[]).unwrap_err();
            assert_eq!(wrong, format!("methods cannot have {method:?}: {why}"));
        }
        for path in [
            "api", "*", "/a*b", "/a*/b", "/a/../b", "/%61", "/a?b", "//", "/a b", "/**",
        ] {
            assert!(rules(&[], &[path]).is_err(), "{path}");
        }
    }

    proptest! {
        /// However a path is written: what is let through stays below what was allowed, for a
        /// server that undoes escapes once or twice, resolves dots, joins slashes, knows the other
        /// slash, and cuts parameters.
        #[test]
        fn no_way_of_writing_leads_out(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "/", "//", ".", "..", "%2e", "%2E", "%2f", "%5c", "\\", ";", "%3b", "a", "admin", "api",
                    "%61", "%25", "%252e", "%252f", "%c0%ae", "%00", " ", "%20", "?", "#", "2e", "2f", "5c",
                ]),
                0..12,
            ),
        ) {
            let rules = rules(&[], &["/api/*"]).unwrap();
            let path = format!("/api/{}", parts.concat());
            if let Ok(asked) = rules.admit(&Method::GET, &path) {
                for times in 0..3 {
                    let mut read = asked.clone().into_bytes();
                    for _ in 0..times {
                        read = unescape(&read);
                    }
                    prop_assert!(resolve(&read).starts_with(&["api".to_owned()]), "{path}");
                }
            }
        }
    }

    fn rights() -> impl Strategy<Value = Attenuate> {
        let paths = [
            "/", "/*", "/a", "/a*", "/a/*", "/a/b", "/*/b", "/a/*/b", "/*/*", "/ab*", "/b",
        ];
        let some = |all: &[&'static str]| {
            let all: Vec<_> = all.iter().map(|it| (*it).to_owned()).collect();
            prop::option::of(prop::collection::vec(prop::sample::select(all), 0..4))
        };
        (some(&["GET", "HEAD", "PUT"]), some(&paths)).prop_map(|(methods, paths)| Attenuate {
            methods,
            paths,
            ..Attenuate::default()
        })
    }

    proptest! {
        /// S7: what a grant lets through, those that it was made from let through as well.
        #[test]
        fn s7_a_childs_requests_are_its_parents(
            chain in prop::collection::vec(rights(), 2..6),
            segments in prop::collection::vec(prop::sample::select(vec!["a", "ab", "b", ""]), 1..4),
        ) {
            let path = format!("/{}", segments.join("/"));
            let (first, rest) = chain.split_first().unwrap();
            let mut parent = first.clone();
            for own in rest {
                let Ok(child) = parent.narrowed(own) else { continue };
                let [its, parents] = [&child, &parent].map(|it| Rules::new(it).unwrap());
                for method in [Method::GET, Method::HEAD, Method::PUT, Method::POST] {
                    let admitted = its.admit(&method, &path).is_ok();
                    prop_assert!(
                        !admitted || parents.admit(&method, &path).is_ok(),
                        "{method} {path}: {child:?} of {parent:?}"
                    );
                }
                parent = child;
            }
        }
    }

    fn unescape(path: &[u8]) -> Vec<u8> {
        let mut read = Vec::new();
        let mut at = 0;
        while at < path.len() {
            let hex = path
                .get(at + 1..at + 3)
                .and_then(|hex| std::str::from_utf8(hex).ok());
            match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) if path[at] == b'%' => {
                    read.push(byte);
                    at += 3;
                }
                _ => {
                    read.push(path[at]);
                    at += 1;
                }
            }
        }
        read
    }

    fn resolve(path: &[u8]) -> Vec<String> {
        let text = String::from_utf8_lossy(path).replace('\\', "/");
        let mut resolved: Vec<String> = Vec::new();
        for segment in text.split('/') {
            match segment
                .split(';')
                .next()
                .unwrap_or_default()
                .trim_matches(' ')
            {
                "" | "." => {}
                ".." => {
                    resolved.pop();
                }
                name => resolved.push(name.to_owned()),
            }
        }
        resolved
    }
}
