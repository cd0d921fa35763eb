//! Diagnostics as people read them: what, where with the line underlined, why, what to do.

use gobs_model::{Diagnostic, Place, Severity, SourceSpan};
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

use super::text::{BOLD, DIM, RED, YELLOW, indented, printable, printable_line, styled};

/// Returns one diagnostic, ending in an empty line.
///
/// ```text
/// Error: Unsupported argument
///
///   on main.gobs.hcl line 3:
///    3:   siez = "small"
///         ^^^^
///
/// An argument named "siez" is not expected here.
///
/// Did you mean "size"?
/// ```
pub fn diagnostic(diagnostic: &Diagnostic) -> String {
    let (style, word) = match diagnostic.severity {
        Severity::Error => (RED.bold(), "Error"),
        Severity::Warning => (YELLOW.bold(), "Warning"),
    };
    let mut out = styled(style, format_args!("{word}: "));
    out += &styled(BOLD, printable_line(&diagnostic.summary));
    out += "\n\n";
    match &diagnostic.place {
        Some(Place::Source(span)) => out += &source(span, style, &diagnostic.values),
        Some(Place::Object { address, path }) => {
            let path = path.to_string();
            let within = if path.is_empty() { "" } else { ", " };
            let address = address.to_string();
            out += &format!(
                "  with {}{within}{}\n",
                printable_line(&address),
                printable_line(&path)
            );
            out += &values("   ", &diagnostic.values);
            out.push('\n');
        }
        None => {}
    }
    for paragraph in [Some(&diagnostic.detail), diagnostic.hint.as_ref()] {
        let text = paragraph.map_or("", |text| text.trim_end());
        if !text.is_empty() {
            out += &printable(text);
            out += "\n\n";
        }
    }
    out
}

/// Returns the diagnostics, errors last, where the eye ends up.
pub fn diagnostics(all: &[Diagnostic]) -> String {
    let warnings = all.iter().filter(|it| !it.is_error());
    let errors = all.iter().filter(|it| it.is_error());
    warnings.chain(errors).map(diagnostic).collect()
}

fn source(span: &SourceSpan, style: anstyle::Style, seen: &[(String, String)]) -> String {
    let mut out = format!(
        "  on {} line {}:\n",
        printable_line(&span.file),
        span.start.line
    );
    if !span.snippet.is_empty() {
        let lines = span.snippet.lines().count();
        let gutter = (span.start.line + lines).to_string().len().max(4);
        for (at, line) in span.snippet.lines().enumerate() {
            let number = span.start.line + at;
            out += &styled(DIM, format_args!("{number:>gutter$}: "));
            let (line, marked) = window(&printable_line(line), underline(span, at, lines, line));
            out += &line;
            out.push('\n');
            if let Some((skip, width)) = marked {
                let skip = gutter + 2 + skip;
                out += &format!("{:skip$}{}\n", "", styled(style, "^".repeat(width)));
            }
        }
        out += &values(&" ".repeat(gutter), seen);
    }
    out.push('\n');
    out
}

/// The most columns of a line that are shown: beyond them nobody finds the mark.
const LINE_COLUMNS_MAX: usize = 160;

/// How much of a long line is shown before what is marked in it.
const LEAD_COLUMNS: usize = 40;

/// Cuts a line that is too long to what is around its mark; returns it with the mark's place.
fn window(line: &str, mark: Option<(usize, usize)>) -> (String, Option<(usize, usize)>) {
    if line.width() <= LINE_COLUMNS_MAX {
        return (line.to_owned(), mark);
    }
    let from = mark.map_or(0, |(skip, _)| skip.saturating_sub(LEAD_COLUMNS));
    let (mut column, mut shown, mut rest) = (0, String::new(), false);
    for grapheme in line.graphemes(true) {
        let inside = column >= from && column < from + LINE_COLUMNS_MAX;
        if inside {
            shown += grapheme;
        }
        rest |= column >= from + LINE_COLUMNS_MAX;
        column += grapheme.width();
    }
    let before = if from > 0 { "…" } else { "" };
    let after = if rest { "…" } else { "" };
    let mark = mark.map(|(skip, width)| {
        let skip = skip - from;
        (skip + before.width(), width.min(LINE_COLUMNS_MAX - skip))
    });
    (format!("{before}{shown}{after}"), mark)
}

/// Returns which columns of the snippet's line number `at` are wrong: how many to skip, and how
/// many to mark. The columns are those of the terminal: wide characters count twice.
fn underline(span: &SourceSpan, at: usize, lines: usize, line: &str) -> Option<(usize, usize)> {
    let width = |text: &str| printable_line(text).width();
    let byte_of = |column: usize| {
        line.grapheme_indices(true)
            .nth(column.saturating_sub(1))
            .map_or(line.len(), |(byte, _)| byte)
    };
    let indent = line.len() - line.trim_start().len();
    let start = if at == 0 {
        byte_of(span.start.column)
    } else {
        indent
    };
    let is_last = span.start.line + at >= span.end.line;
    let end = if is_last {
        byte_of(span.end.column)
    } else {
        line.trim_end().len()
    };
    if end <= start {
        // An empty span is a place between two characters: what is missing is missing there. Of
        // a longer span, a line without anything in it has nothing to mark.
        return (lines == 1 || is_last && at == 0).then(|| (width(&line[..start]), 1));
    }
    Some((width(&line[..start]), width(&line[start..end]).max(1)))
}

fn values(indent: &str, seen: &[(String, String)]) -> String {
    if seen.is_empty() {
        return String::new();
    }
    let mut out = format!("{indent}├────────────────\n");
    for (reference, statement) in seen {
        let line = format!(
            "│ {} {}\n",
            printable_line(reference),
            printable_line(statement)
        );
        out += &indented(&line, indent);
    }
    styled(DIM, out)
}

#[cfg(test)]
mod tests {
    use gobs_model::{Path, Position};

    use super::*;

    #[test]
    fn a_long_line_is_cut_around_its_mark() {
        let line = format!("{}wrong{}", "a".repeat(1_000), "b".repeat(1_000));
        let (shown, mark) = window(&line, Some((1_000, 5)));
        assert_eq!(
            shown,
            format!("…{}wrong{}…", "a".repeat(40), "b".repeat(115))
        );
        assert_eq!(mark, Some((41, 5)));
        let (shown, mark) = window(&line, Some((0, 2_005)));
        assert_eq!(shown, format!("{}…", "a".repeat(160)));
        assert_eq!(mark, Some((0, 160)));
        assert_eq!(
            window("short", Some((1, 2))),
            ("short".into(), Some((1, 2)))
        );
    }

    fn check(it: &Diagnostic, expected: &str) {
        assert_eq!(
            anstream::adapter::strip_str(&diagnostic(it)).to_string(),
            expected
        );
    }

    /// Returns the span of `what` in the first lines of `text` that hold it.
    fn span(text: &str, what: &str) -> SourceSpan {
        let position = |byte: usize| {
            let before = &text[..byte];
            let line_start = before.rfind('\n').map_or(0, |at| at + 1);
            Position {
                byte,
                line: before.matches('\n').count() + 1,
                column: text[line_start..byte].graphemes(true).count() + 1,
            }
        };
        let byte = text.find(what).expect("the text holds it");
        let (start, end) = (position(byte), position(byte + what.len()));
        let snippet = text
            .lines()
            .skip(start.line - 1)
            .take(end.line - start.line + 1)
            .collect::<Vec<_>>()
            .join("\n");
        SourceSpan {
            file: "main.gobs.hcl".into(),
            start,
            end,
            snippet: snippet.into(),
        }
    }

    #[test]
    fn a_word_is_underlined() {
        check(
            &Diagnostic::error(
                "Unsupported argument",
                "An argument named \"siez\" is not expected here.",
            )
            .at(span("machine \"a\" {\n  siez = 1\n}\n", "siez"))
            .hint("Did you mean \"size\"?"),
            r#"Error: Unsupported argument

  on main.gobs.hcl line 2:
   2:   siez = 1
        ^^^^

An argument named "siez" is not expected here.

Did you mean "size"?

"#,
        );
    }

    #[test]
    fn values_stand_under_the_line() {
        let mut it = Diagnostic::warning("Odd value", "It is odd.")
            .at(span("\n\n  a = \"日本\" + var.size", "var.size"));
        it.values.push(("var.size".into(), "is \"huge\"".into()));
        check(
            &it,
            r#"Warning: Odd value

  on main.gobs.hcl line 3:
   3:   a = "日本" + var.size
                     ^^^^^^^^
    ├────────────────
    │ var.size is "huge"

It is odd.

"#,
        );
    }

    #[test]
    fn a_span_of_lines_is_marked_line_by_line() {
        check(
            &Diagnostic::error("Unclosed block", "The block has no end.")
                .at(span("a {\n  b = [\n\t1,\n\n  ]\n}", "[\n\t1,\n\n  ]")),
            "Error: Unclosed block

  on main.gobs.hcl line 2:
   2:   b = [
            ^
   3:     1,
          ^^
   4: 
   5:   ]
        ^

The block has no end.

",
        );
    }

    #[test]
    fn what_is_missing_is_marked_where_it_is_missing() {
        let mut at_end = span("a = ", "a = ");
        at_end.start = at_end.end;
        check(
            &Diagnostic::error("Missing expression", "").at(at_end),
            "Error: Missing expression\n\n  on main.gobs.hcl line 1:\n   1: a = \n          ^\n\n",
        );
    }

    #[test]
    fn an_object_is_named_where_no_text_says_it() {
        let address = "machine.web[\"a\"]".parse().expect("an address");
        check(
            &Diagnostic::error("Create failed", "No quota.")
                .about(address, Path::attribute("size")),
            "Error: Create failed\n\n  with machine.web[\"a\"], size\n\nNo quota.\n\n",
        );
    }

    #[test]
    fn hostile_text_stays_text() {
        let mut hostile = span("x = \"\u{1b}[2J\"", "\"\u{1b}[2J\"");
        hostile.file = "\u{1b}]0;owned\u{7}.gobs.hcl".into();
        check(
            &Diagnostic::error("Bad\u{1b}[2J", "It said \u{1b}[31mred\u{202e}.").at(hostile),
            "Error: Bad␛[2J\n\n  on ␛]0;owned␇.gobs.hcl line 1:\n   1: x = \"␛[2J\"\n          \
             ^^^^^^\n\nIt said ␛[31mred\\u{202e}.\n\n",
        );
    }

    #[test]
    fn a_span_outside_its_snippet_does_no_harm() {
        let mut wrong = span("a = 1", "1");
        wrong.start.column = 99;
        wrong.end.column = 3;
        wrong.end.line = 7;
        assert!(diagnostic(&Diagnostic::error("E", "d").at(wrong)).contains("a = 1"));
    }
}
