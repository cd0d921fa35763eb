//! Finds the borders of top-level blocks and arguments in a text that does not parse, so that one
//! mistake hides no other.

use std::ops::Range;

/// A piece of a file that can be parsed alone.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) range: Range<usize>,
    /// What the scanner itself saw to be wrong.
    pub(super) fault: Option<Fault>,
}

/// Something that is opened and not closed, or closed and not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) kind: FaultKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FaultKind {
    /// This bracket has no partner.
    Unclosed(u8),
    /// This bracket closes nothing.
    Unopened(u8),
    /// A quote without its end on the line.
    String,
    Comment,
    Heredoc,
}

/// The words that start a top-level block: at the first column, one of them ends whatever was
/// left open above.
const KEYWORDS: [&str; 13] = [
    "gobs", "variable", "locals", "provider", "machine", "binding", "output", "module", "moved",
    "removed", "import", "check", "data",
];

#[derive(Clone, Copy)]
enum Open {
    Bracket(u8, usize),
    Quote(usize),
    /// `${` or `%{` within a quote.
    Template(usize),
}

struct Scanner<'t> {
    text: &'t [u8],
    at: usize,
    open: Vec<Open>,
    start: usize,
    fault: Option<Fault>,
    pieces: Vec<Piece>,
}

/// Returns the pieces of a text; together they are the whole text.
pub(super) fn pieces(text: &str) -> Vec<Piece> {
    let mut scanner = Scanner {
        text: text.as_bytes(),
        at: 0,
        open: Vec::new(),
        start: 0,
        fault: None,
        pieces: Vec::new(),
    };
    while scanner.at < scanner.text.len() {
        match scanner.open.last() {
            Some(Open::Quote(start)) => {
                let start = *start;
                scanner.quoted(start);
            }
            _ => scanner.code(),
        }
    }
    scanner.unclosed();
    scanner.end_piece();
    scanner.pieces
}

impl Scanner<'_> {
    fn starts(&self, prefix: &str) -> bool {
        self.text[self.at..].starts_with(prefix.as_bytes())
    }

    fn fault(&mut self, at: usize, kind: FaultKind) {
        self.fault.get_or_insert(Fault { at, kind });
    }

    fn quoted(&mut self, start: usize) {
        match self.text[self.at] {
            b'\\' => self.at += 1,
            b'"' => drop(self.open.pop()),
            b'\n' => {
                self.fault(start, FaultKind::String);
                // Whatever the string was part of on this line ends with the line.
                while let Some(Open::Quote(_) | Open::Template(_)) = self.open.last() {
                    self.open.pop();
                }
                return self.line_end();
            }
            b'$' | b'%' if self.starts("$${") || self.starts("%%{") => self.at += 2,
            b'$' | b'%' if self.text.get(self.at + 1) == Some(&b'{') => {
                self.open.push(Open::Template(self.at));
                self.at += 1;
            }
            _ => {}
        }
        self.at += 1;
    }

    fn code(&mut self) {
        let byte = self.text[self.at];
        match byte {
            b'#' => return self.skip_line(),
            b'/' if self.starts("//") => return self.skip_line(),
            b'/' if self.starts("/*") => return self.skip_comment(),
            b'"' => self.open.push(Open::Quote(self.at)),
            b'<' if self.starts("<<") && self.heredoc() => return,
            b'{' | b'[' | b'(' => self.open.push(Open::Bracket(byte, self.at)),
            b'}' | b']' | b')' => self.close(byte),
            b'\n' => return self.line_end(),
            _ => {}
        }
        self.at += 1;
    }

    fn close(&mut self, byte: u8) {
        let opener = match byte {
            b'}' => b'{',
            b']' => b'[',
            _ => b'(',
        };
        match self.open.last() {
            Some(Open::Bracket(open, _)) if *open == opener => drop(self.open.pop()),
            Some(Open::Template(_)) if byte == b'}' => drop(self.open.pop()),
            // A brace closes its block even where a smaller bracket in it was left open.
            Some(Open::Bracket(open, at)) => {
                let (open, at) = (*open, *at);
                let partner = self
                    .open
                    .iter()
                    .rposition(|it| matches!(it, Open::Bracket(open, _) if *open == opener));
                match partner {
                    Some(partner) => {
                        self.fault(at, FaultKind::Unclosed(open));
                        self.open.truncate(partner);
                    }
                    None => self.fault(self.at, FaultKind::Unopened(byte)),
                }
            }
            _ => self.fault(self.at, FaultKind::Unopened(byte)),
        }
    }

    fn line_end(&mut self) {
        self.at += 1;
        if self.open.is_empty() {
            self.end_piece();
        } else if self.at_keyword() {
            self.unclosed();
            self.open.clear();
            self.end_piece();
        }
    }

    fn at_keyword(&self) -> bool {
        KEYWORDS.iter().any(|word| {
            self.starts(word)
                && matches!(
                    self.text.get(self.at + word.len()),
                    Some(b' ' | b'{' | b'"')
                )
        })
    }

    fn unclosed(&mut self) {
        match self.open.last() {
            Some(Open::Bracket(open, at)) => self.fault(*at, FaultKind::Unclosed(*open)),
            Some(Open::Template(at)) => self.fault(*at + 1, FaultKind::Unclosed(b'{')),
            Some(Open::Quote(at)) => self.fault(*at, FaultKind::String),
            None => {}
        }
    }

    fn end_piece(&mut self) {
        let at = self.at.min(self.text.len());
        if at > self.start {
            self.pieces.push(Piece {
                range: self.start..at,
                fault: self.fault.take(),
            });
            self.start = at;
        }
    }

    fn skip_line(&mut self) {
        while self.at < self.text.len() && self.text[self.at] != b'\n' {
            self.at += 1;
        }
    }

    fn skip_comment(&mut self) {
        let start = self.at;
        self.at += 2;
        while self.at < self.text.len() && !self.starts("*/") {
            self.at += 1;
        }
        if self.at >= self.text.len() {
            self.fault(start, FaultKind::Comment);
        }
        self.at += 2;
    }

    /// Skips a heredoc, if there is one here, up to the end of its last line.
    fn heredoc(&mut self) -> bool {
        let start = self.at;
        let mut at = self.at + 2;
        if self.text.get(at) == Some(&b'-') {
            at += 1;
        }
        let word = at;
        while self
            .text
            .get(at)
            .is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        {
            at += 1;
        }
        let word = word..at;
        if self.text.get(at) == Some(&b'\r') {
            at += 1;
        }
        if word.is_empty() || self.text.get(at) != Some(&b'\n') {
            return false;
        }
        loop {
            let line = at + 1;
            if line >= self.text.len() {
                self.at = self.text.len();
                self.fault(start, FaultKind::Heredoc);
                return true;
            }
            let rest = &self.text[line..];
            let length = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
            let content = rest[..length].trim_ascii_start();
            let delimiter = &self.text[word.clone()];
            if content.starts_with(delimiter) {
                let after = content.get(delimiter.len());
                if !after.is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')) {
                    let indent = length - content.len();
                    self.at = line + indent + delimiter.len();
                    return true;
                }
            }
            at = line + length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(text: &str) -> Vec<(&str, Option<Fault>)> {
        pieces(text)
            .into_iter()
            .map(|piece| (&text[piece.range], piece.fault))
            .collect()
    }

    #[test]
    fn borders_are_not_in_strings_comments_or_heredocs() {
        let text = "a = \"{ ${\"}\"} \" # {\nb = <<-E\n  {\n  E\n/* { */ c {\n}\n";
        let found: Vec<_> = texts(text).into_iter().map(|(text, _)| text).collect();
        assert_eq!(
            found,
            [
                "a = \"{ ${\"}\"} \" # {\n",
                "b = <<-E\n  {\n  E\n",
                "/* { */ c {\n}\n"
            ]
        );
    }

    #[test]
    fn a_keyword_at_the_first_column_ends_what_was_left_open() {
        let text = "machine \"a\" {\n  x = [1\nmachine \"b\" {\n}\n";
        let found = texts(text);
        assert_eq!(found[1].0, "machine \"b\" {\n}\n");
        assert_eq!(
            found[0].1,
            Some(Fault {
                at: 20,
                kind: FaultKind::Unclosed(b'[')
            })
        );
    }

    proptest! {
        #[test]
        fn the_pieces_are_the_text(text in "[a-z{}\"\\[\\]()$%<#/*\\n \\\\é-]{0,80}") {
            let joined: String = pieces(&text).iter().map(|it| &text[it.range.clone()]).collect();
            prop_assert_eq!(joined, text);
        }
    }
}
