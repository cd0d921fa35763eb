//! Text for a terminal: the styles, and what makes foreign text harmless.

use std::borrow::Cow;
use std::fmt::{Display, Write};

use anstyle::{AnsiColor, Style};

/// What is added, and success.
pub(in crate::cli) const GREEN: Style = AnsiColor::Green.on_default();
/// What is removed, and errors.
pub(in crate::cli) const RED: Style = AnsiColor::Red.on_default();
/// What is changed, and warnings.
pub(in crate::cli) const YELLOW: Style = AnsiColor::Yellow.on_default();
/// What is worth a note.
pub(in crate::cli) const CYAN: Style = AnsiColor::Cyan.on_default();
/// What matters less.
pub(in crate::cli) const DIM: Style = AnsiColor::BrightBlack.on_default();
/// What matters most.
pub(in crate::cli) const BOLD: Style = Style::new().bold();

/// Returns the text in a style.
pub(in crate::cli) fn styled(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// Returns the text with everything made visible that could steer a terminal or deceive a
/// reader: control characters, escape sequences, bidirectional overrides. Line ends stay.
pub(in crate::cli) fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hostile) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for char in text.chars() {
        match char {
            '\t' => shown.push_str(TAB),
            // The control pictures: ␀ for NUL, ␛ for ESC, …
            '\0'..='\u{1f}' if char != '\n' => {
                shown.extend(char::from_u32(0x2400 + u32::from(char)));
            }
            '\u{7f}' => shown.push('␡'),
            _ if is_hostile(char) => {
                // Writing to a string cannot fail.
                let _ = write!(shown, "\\u{{{:x}}}", u32::from(char));
            }
            _ => shown.push(char),
        }
    }
    Cow::Owned(shown)
}

/// Returns the text as [`printable`] does, in one line.
pub(in crate::cli) fn printable_line(text: &str) -> Cow<'_, str> {
    match printable(text) {
        shown if shown.contains('\n') => Cow::Owned(shown.replace('\n', "␊")),
        shown => shown,
    }
}

/// Returns each line of the text with this before it; empty lines stay empty.
pub(in crate::cli) fn indented(text: &str, indent: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for line in text.split_inclusive('\n') {
        if line != "\n" {
            out.push_str(indent);
        }
        out.push_str(line);
    }
    out
}

/// What a tab is shown as, so that columns can be counted.
const TAB: &str = "    ";

fn is_hostile(char: char) -> bool {
    char != '\n'
        && (char.is_control()
            || matches!(
                char,
                '\u{200b}'..='\u{200f}'
                    | '\u{2028}'..='\u{202e}'
                    | '\u{2060}'..='\u{2069}'
                    | '\u{feff}'
                    | '\u{e0000}'..='\u{e007f}'
            ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_steer_a_terminal_is_shown_instead() {
        assert_eq!(
            printable("a\u{1b}[31mb\r\n\0\u{7f}\u{9b}\u{202e}ü\t."),
            "a␛[31mb␍\n␀␡\\u{9b}\\u{202e}ü    ."
        );
        assert_eq!(printable_line("a\nb"), "a␊b");
        assert!(matches!(printable("plain ✓"), Cow::Borrowed(_)));
    }
}
