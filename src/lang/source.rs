//! Source texts, and places in them.

use std::borrow::Cow;
use std::sync::Arc;

use gobs_model::{Diagnostic, Position, SourceSpan};
use unicode_segmentation::UnicodeSegmentation;

use super::object::SCHEME;

/// The most lines of a source that a diagnostic quotes.
const SNIPPET_LINES_MAX: usize = 5;
/// The longest line that is quoted whole: a minified line must not fill the terminal.
const SNIPPET_BYTES_MAX: usize = 2_000;

/// One file of the configuration, or another text with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file's name as the user would type it.
    pub name: Arc<str>,
    /// Its whole text.
    pub text: Arc<str>,
}

impl Source {
    /// Returns a source.
    pub fn new(name: impl Into<Arc<str>>, text: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
        }
    }
}

/// A piece of a source: cheap to keep with every expression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Span {
    /// Which of [`Sources`].
    pub(crate) source: u32,
    /// The first byte.
    pub(crate) start: u32,
    /// The byte after the last.
    pub(crate) end: u32,
}

impl Span {
    /// Returns the span from the start of this one to the end of the other.
    pub(crate) fn to(self, other: Self) -> Self {
        Self {
            end: other.end.max(self.start),
            ..self
        }
    }
}

/// All texts of a configuration, by number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources(Arc<[Text]>);

#[derive(Debug)]
struct Text {
    source: Source,
    /// The byte at which each line starts.
    lines: Vec<u32>,
}

impl Sources {
    /// Returns the texts, numbered as they come.
    pub(crate) fn new(sources: &[Source]) -> Self {
        let text = |source: &Source| {
            let starts = source.text.bytes().enumerate();
            let starts = starts.filter(|(_, byte)| *byte == b'\n');
            Text {
                source: source.clone(),
                lines: std::iter::once(0)
                    .chain(starts.map(|(at, _)| narrow(at + 1)))
                    .collect(),
            }
        };
        Self(sources.iter().map(text).collect())
    }

    /// Returns a text's words at a span; empty where the span is in no text.
    pub(crate) fn text(&self, span: Span) -> &str {
        self.0
            .get(span.source as usize)
            .and_then(|text| text.source.text.get(span.start as usize..span.end as usize))
            .unwrap_or_default()
    }

    /// Returns the whole of a text.
    pub(crate) fn whole(&self, source: u32) -> Option<&str> {
        self.0.get(source as usize).map(|text| &*text.source.text)
    }

    /// Returns the place of a span with lines, columns and the text around it.
    pub(crate) fn place(&self, span: Span) -> SourceSpan {
        let Some(text) = self.0.get(span.source as usize) else {
            return SourceSpan {
                file: "".into(),
                start: Position::default(),
                end: Position::default(),
                snippet: "".into(),
            };
        };
        let (start, end) = (text.position(span.start), text.position(span.end));
        // A span that ends with its line end belongs to that line.
        let last = if end.column == 1 && end.line > start.line {
            end.line - 1
        } else {
            end.line
        };
        let last = last.min(start.line + SNIPPET_LINES_MAX - 1);
        let from = text.lines.get(start.line - 1).copied().unwrap_or(0) as usize;
        let until = text
            .lines
            .get(last)
            .map_or(text.source.text.len(), |at| *at as usize);
        let snippet = text.source.text.get(from..until).unwrap_or_default();
        let snippet = snippet.trim_end_matches(['\n', '\r']);
        let cut = (0..=SNIPPET_BYTES_MAX.min(snippet.len()))
            .rev()
            .find(|at| snippet.is_char_boundary(*at))
            .unwrap_or(0);
        SourceSpan {
            file: text.source.name.clone(),
            start,
            end,
            snippet: masked(&snippet[..cut]).into(),
        }
    }

    /// Returns an error at a span.
    pub(crate) fn error(&self, span: Span, summary: &str, detail: impl Into<String>) -> Diagnostic {
        Diagnostic::error(summary, detail).at(self.place(span))
    }
}

impl Text {
    fn position(&self, byte: u32) -> Position {
        let text = &self.source.text;
        let mut at = (byte as usize).min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        let line = self
            .lines
            .partition_point(|start| *start as usize <= at)
            .max(1);
        let start = self.lines[line - 1] as usize;
        // Columns beyond a very long prefix are not worth counting clusters for.
        let column = if at - start > SNIPPET_BYTES_MAX * 100 {
            at - start + 1
        } else {
            text[start..at].graphemes(true).count() + 1
        };
        Position {
            byte: at,
            line,
            column,
        }
    }
}

/// Returns a text without the secret parts of the sturdyrefs in it, in as many columns.
fn masked(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(SCHEME) {
        let peer = &rest[at + SCHEME.len()..];
        let is_end = |it: char| !it.is_ascii_graphic() || matches!(it, '"' | '?' | '$');
        let end = peer.find(is_end).unwrap_or(peer.len());
        let shown = peer[..end].find('/').map_or(end, |slash| slash + 1);
        let secret = "*".repeat(end - shown);
        let (head, tail) = rest.split_at(at + SCHEME.len() + end);
        out += &head[..head.len() - secret.len()];
        out += &secret;
        rest = tail;
    }
    match out.is_empty() {
        true => text.into(),
        false => (out + rest).into(),
    }
}

/// Returns an offset as spans keep it; texts beyond 4 GiB are refused before they are parsed.
pub(crate) fn narrow(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_what_people_see() {
        let sources = Sources::new(&[Source::new("a", "x = 1\ne\u{301}\u{1f1f3}\u{1f1f1} = 2\n")]);
        let text = "x = 1\ne\u{301}\u{1f1f3}\u{1f1f1} = 2\n";
        let start = text.find('2').expect("there");
        let place = sources.place(Span {
            source: 0,
            start: narrow(start),
            end: narrow(start + 1),
        });
        assert_eq!((place.start.line, place.start.column), (2, 6));
        assert_eq!(&*place.snippet, "e\u{301}\u{1f1f3}\u{1f1f1} = 2");
    }

    #[test]
    fn the_secret_of_a_sturdyref_is_not_shown() {
        let check = |text: &str, expected: &str| assert_eq!(masked(text), expected);
        check(
            "from = \"ocapn://abc.tls-rpk/s/c2VjcmV0?host=h\" # \u{1f1f3}",
            "from = \"ocapn://abc.tls-rpk/**********?host=h\" # \u{1f1f3}",
        );
        check(
            "[\"ocapn://a/s/b\", \"ocapn://c/s/d\"]",
            "[\"ocapn://a/***\", \"ocapn://c/***\"]",
        );
        check("ocapn://", "ocapn://");
        check("ocapn://x/\u{e9}", "ocapn://x/\u{e9}");
        check("x = 1", "x = 1");
    }

    #[test]
    fn no_span_panics() {
        let sources = Sources::new(&[Source::new("a", "\u{1f1f3}\n\n")]);
        for start in 0..20 {
            for end in 0..20 {
                let span = Span {
                    source: start / 9,
                    start,
                    end,
                };
                let _ = (sources.place(span), sources.text(span));
            }
        }
    }
}
