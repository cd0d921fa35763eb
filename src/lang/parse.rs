//! From texts to syntax trees, with every syntax error that can be found.

use gobs_model::Diagnostic;
use hcl::edit::parser;

use super::lower::Lower;
use super::scan::{self, Fault, FaultKind};
use super::source::{Sources, Span, narrow};
use super::syntax::{Body, Expr};

/// The largest text that is parsed: spans are kept in 32 bits, and no person writes more.
const SOURCE_BYTES_MAX: usize = 64 << 20;

/// Returns the body of a whole text.
pub(super) fn body(sources: &Sources, source: u32, errors: &mut Vec<Diagnostic>) -> Body {
    let Some(text) = sources.whole(source) else {
        return Body::default();
    };
    let at = |start: usize, end: usize| Span {
        source,
        start: narrow(start),
        end: narrow(end),
    };
    if text.len() > SOURCE_BYTES_MAX {
        let detail = "A configuration file may have at most 64 MiB.";
        errors.push(sources.error(at(0, 0), "File too large", detail));
        return Body::default();
    }
    let whole = match parser::parse_body(text) {
        Ok(body) => return Lower::new(sources, source, 0, errors).body(&body),
        Err(error) => error,
    };
    let before = errors.len();
    let mut result = Body::default();
    for piece in scan::pieces(text) {
        let base = piece.range.start;
        match parser::parse_body(&text[piece.range.clone()]) {
            Ok(body) => {
                let mut body = Lower::new(sources, source, narrow(base), errors).body(&body);
                result.attributes.append(&mut body.attributes);
                result.blocks.append(&mut body.blocks);
            }
            Err(error) => {
                errors.push(syntax_error(sources, source, base, &error, piece.fault));
            }
        }
    }
    if errors.len() == before {
        // Each piece is right, but not all together: an argument is defined twice.
        errors.push(syntax_error(sources, source, 0, &whole, None));
    }
    result
}

/// Returns the expression that a whole text is.
pub(super) fn expression(
    sources: &Sources,
    source: u32,
    errors: &mut Vec<Diagnostic>,
) -> Option<Expr> {
    let text = sources.whole(source)?;
    // Space around is not part of the expression, and the parser takes none.
    let start = text.len() - text.trim_start().len();
    match parser::parse_expr(text.trim()) {
        Ok(expr) => Some(Lower::new(sources, source, narrow(start), errors).expr(&expr)),
        Err(error) => {
            errors.push(syntax_error(sources, source, start, &error, None));
            None
        }
    }
}

/// Returns the template that a whole text is.
#[cfg(test)]
pub(super) fn template(
    sources: &Sources,
    source: u32,
    errors: &mut Vec<Diagnostic>,
) -> Option<Expr> {
    match parser::parse_template(sources.whole(source)?) {
        Ok(template) => Some(Lower::new(sources, source, 0, errors).bare_template(&template)),
        Err(error) => {
            errors.push(syntax_error(sources, source, 0, &error, None));
            None
        }
    }
}

fn syntax_error(
    sources: &Sources,
    source: u32,
    base: usize,
    error: &parser::Error,
    fault: Option<Fault>,
) -> Diagnostic {
    let text = sources.whole(source).unwrap_or_default();
    let location = error.location();
    let mut at = (base + location.offset()).min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    // The parser moves the end of the text back by one byte, and tells so by the column alone.
    let line = text[base..at].rfind('\n').map_or(base, |it| base + it + 1);
    if location.column() > text[line..at].chars().count() + 1 {
        at += text[at..].chars().next().map_or(0, char::len_utf8);
    }
    let message = |start: usize, summary: &str, detail: String| {
        let width = text[start..].chars().next().map_or(0, char::len_utf8);
        let width = if text[start..].starts_with('\n') {
            0
        } else {
            width
        };
        let span = Span {
            source,
            start: narrow(start),
            end: narrow(start + width),
        };
        sources.error(span, summary, detail)
    };
    if let Some(Fault { at: opened, kind }) = fault {
        // The parser stumbles where it notices; the person wants to know where it began.
        let name = |byte| char::from(byte);
        return match kind {
            FaultKind::Unclosed(byte) => message(
                opened,
                "Unclosed bracket",
                format!("This \"{}\" has no partner that closes it.", name(byte)),
            ),
            FaultKind::Unopened(byte) => message(
                opened,
                "Unexpected bracket",
                format!("This \"{}\" closes nothing.", name(byte)),
            ),
            FaultKind::String => message(
                opened,
                "Unclosed string",
                "A string in quotes must end on the line where it starts.".into(),
            )
            .hint("For text of several lines, use a heredoc: <<EOT."),
            FaultKind::Comment => message(
                opened,
                "Unclosed comment",
                "This comment has no \"*/\" that ends it.".into(),
            ),
            FaultKind::Heredoc => message(
                opened,
                "Unclosed heredoc",
                "No line ends this text: its delimiter must stand alone on a line.".into(),
            ),
        };
    }
    let rest = &text[at..];
    let before = text[..at].trim_end_matches([' ', '\t']);
    let found = match rest.chars().next() {
        None => "the end of the file".into(),
        Some('\n' | '\r') => "the end of the line".into(),
        Some(char) => format!("{:?}", char.to_string()),
    };
    let said = error.message();
    if said.contains("redefined attribute") {
        let detail = "An argument may be set only once in its block.";
        return message(at, "Duplicate argument", detail.into());
    }
    if said.contains("nesting depth") || said.contains("chained binary operators") {
        let detail = format!("This is nested too deeply: {said}.");
        return message(at, "Expression too deep", detail);
    }
    let error = message(
        at,
        "Invalid syntax",
        format!("Found {found}, {}.", readable(said)),
    );
    match rest.chars().next() {
        Some('\'') => error.hint("Use double quotes (\") around strings."),
        Some('`') => error.hint("Use double quotes (\") around strings, or a heredoc: <<EOT."),
        Some(',') => error.hint("Arguments end with a new line, not with a comma."),
        Some(':') => error.hint("Arguments are set with an equals sign (=)."),
        Some(';') => error.hint("Arguments end with a new line, not with a semicolon."),
        _ if before.ends_with('}') => error.hint("A block ends with a new line after its \"}\"."),
        _ => error,
    }
}

/// The parser's words, as a clause that goes on with "Found x".
fn readable(message: &str) -> String {
    if message.starts_with("invalid expression") {
        return "where a value is needed".into();
    }
    if message.starts_with("invalid structure") || message.starts_with("invalid attribute") {
        return "where an argument (name = value) or a block (name { … }) is needed".into();
    }
    if message.contains("newline") {
        return "where the line should end".into();
    }
    if message.starts_with("invalid block body") {
        return "in a block on one line, which can hold one argument only".into();
    }
    match message.split_once("; ") {
        Some((what, expected)) => format!("but {expected} ({what})"),
        None if message == "unexpected token" => "which cannot stand here".into(),
        None => format!("but {message}"),
    }
}
