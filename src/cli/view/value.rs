//! Values, and the difference of two values, as HCL with a symbol before each line that changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anstyle::Style;
use gobs_model::{Kind, Name, Value};
use similar::{ChangeTag, TextDiff};

use super::text::{DIM, GREEN, RED, YELLOW, printable_line, styled};

/// What stands for a value that only apply will know.
pub(super) const UNKNOWN: &str = "(known after apply)";
/// What stands for a value that is never shown.
pub(super) const SENSITIVE: &str = "(sensitive value)";
/// How many unchanged lines are shown around a changed line of a text.
const CONTEXT_LINES: usize = 3;
/// How many lines are shown of a text that ends: enough to know it by.
const REMOVED_LINES_MAX: usize = 3;

/// What happens to a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// `+`
    Add,
    /// `-`
    Remove,
    /// `~`
    Change,
    /// Nothing.
    Keep,
}

impl Mark {
    /// Returns the symbol in its colour.
    pub(super) fn symbol(self) -> String {
        let (style, symbol) = match self {
            Self::Add => (GREEN, "+"),
            Self::Remove => (RED, "-"),
            Self::Change => (YELLOW, "~"),
            Self::Keep => (Style::new(), " "),
        };
        styled(style, symbol)
    }
}

/// One attribute of a block, before and after.
pub(super) struct Field<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// Its value until now, if it had one.
    pub(super) before: Option<&'a Value>,
    /// Its value from now on, if it has one.
    pub(super) after: Option<&'a Value>,
    /// What is said behind it: `# forces replacement`.
    pub(super) note: Option<String>,
}

/// How the names of fields are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// As attributes: in quotes only what is no name.
    Attributes,
    /// As the keys of a map: all in quotes.
    Keys,
    /// As paths: none in quotes.
    Paths,
}

/// How the fields of a block are shown.
#[derive(Clone, Copy)]
pub(super) struct Layout<'a> {
    /// How far the block itself is indented; its fields are indented by four more.
    pub(super) indent: usize,
    /// The names of fields that are shown although nothing changes.
    pub(super) always: &'a [&'a str],
    /// How the names are written.
    pub(super) names: Names,
    /// Whether a value that ends reads `"x" -> null`.
    pub(super) arrow_null: bool,
    /// What the fields are called where they are counted.
    pub(super) noun: &'a str,
}

/// Returns a value as HCL, for outputs: `indent` is that of its first line.
pub(super) fn literal(value: &Value, indent: usize) -> String {
    whole(value, Mark::Keep, indent, false)
}

/// Returns the fields of two objects: all names of either.
pub(super) fn fields<'a>(
    before: Option<&'a BTreeMap<Arc<str>, Value>>,
    after: Option<&'a BTreeMap<Arc<str>, Value>>,
) -> Vec<Field<'a>> {
    let names: BTreeSet<&Arc<str>> = [before, after]
        .into_iter()
        .flatten()
        .flat_map(BTreeMap::keys)
        .collect();
    let get = |entries: Option<&'a BTreeMap<Arc<str>, Value>>, name: &str| {
        entries.and_then(|entries| entries.get(name))
    };
    names
        .into_iter()
        .map(|name| Field {
            name,
            before: get(before, name),
            after: get(after, name),
            note: None,
        })
        .collect()
}

/// Returns the lines of a block's fields; those that stay as they are are counted.
pub(super) fn block(fields: &[Field<'_>], layout: Layout<'_>) -> String {
    let mut shown = Vec::new();
    let mut hidden = 0;
    for field in fields {
        match field.mark() {
            None => {}
            Some(Mark::Keep) if !layout.always.contains(&field.name) => hidden += 1,
            Some(mark) => shown.push((field, mark, layout.name(field.name))),
        }
    }
    let width = shown.iter().map(|(_, _, name)| name.chars().count());
    let width = width.max().unwrap_or(0);
    let indent = layout.indent + 4;
    let mut out = String::new();
    for (field, mark, name) in shown {
        let value = field.value(mark, indent, layout.arrow_null);
        let value = match &field.note {
            Some(note) => noted(&value, &styled(RED, format_args!("# {note}"))),
            None => value,
        };
        out += &line(mark, indent, &format!("{name:width$} = {value}"));
    }
    if hidden > 0 {
        out += &hidden_line(hidden, layout.noun, indent);
    }
    out
}

/// Returns `# (3 unchanged attributes hidden)`, indented.
pub(super) fn hidden_line(hidden: usize, noun: &str, indent: usize) -> String {
    let hidden = counted(hidden, &format!("unchanged {noun}"));
    let text = styled(DIM, format_args!("# ({hidden} hidden)"));
    format!("{:indent$}{text}\n", "")
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Returns a line with its symbol; `indent` is the column of the text behind the symbol.
pub(super) fn line(mark: Mark, indent: usize, text: &str) -> String {
    let before = indent.saturating_sub(2);
    format!("{:before$}{} {text}\n", "", mark.symbol())
}

impl Field<'_> {
    /// Returns what happens to the field; nothing where there is and was no value.
    fn mark(&self) -> Option<Mark> {
        let present = |value: Option<&Value>| value.is_some_and(|value| !value.is_null());
        match (present(self.before), present(self.after)) {
            (false, false) => None,
            (false, true) => Some(Mark::Add),
            (true, false) => Some(Mark::Remove),
            (true, true) => match (self.before, self.after) {
                (Some(before), Some(after)) if before.same(after) => Some(Mark::Keep),
                _ => Some(Mark::Change),
            },
        }
    }

    fn value(&self, mark: Mark, indent: usize, arrow_null: bool) -> String {
        match (mark, self.before, self.after) {
            (Mark::Change, Some(before), Some(after)) => change(before, after, indent),
            (Mark::Remove, Some(before), _) => whole(before, mark, indent, arrow_null),
            (_, _, Some(after)) => whole(after, mark, indent, false),
            _ => String::new(),
        }
    }
}

impl Layout<'_> {
    /// Returns a field's name as it is written.
    pub(super) fn name(&self, name: &str) -> String {
        match self.names {
            Names::Attributes if Name::new(name).is_ok() => name.to_owned(),
            Names::Attributes | Names::Keys => quoted(name),
            Names::Paths => printable_line(name).into_owned(),
        }
    }

    /// Returns the layout of an object within a block.
    fn nested(indent: usize, names: Names) -> Self {
        Layout {
            indent,
            always: &[],
            names,
            arrow_null: false,
            noun: match names {
                Names::Keys => "element",
                Names::Attributes | Names::Paths => "attribute",
            },
        }
    }
}

/// Returns a value of which everything is new, or ends, or stays.
fn whole(value: &Value, mark: Mark, indent: usize, arrow_null: bool) -> String {
    let arrow = if arrow_null { " -> null" } else { "" };
    if let Some(text) = scalar(value) {
        return text + arrow;
    }
    let close = format!("{:indent$}", "");
    match &value.kind {
        Kind::String(text) => {
            let shown = match mark {
                Mark::Remove => REMOVED_LINES_MAX,
                _ => usize::MAX,
            };
            let mut lines = String::new();
            for text in text.lines().take(shown) {
                let line = format!("{close}    {}", printable_line(text));
                lines += line.trim_end();
                lines.push('\n');
            }
            let more = text.lines().count().saturating_sub(shown);
            if more > 0 {
                let text = styled(DIM, format_args!("# ({})", counted(more, "more line")));
                lines += &format!("{close}    {text}\n");
            }
            format!("<<-EOT\n{lines}{close}EOT{arrow}")
        }
        Kind::Map(entries) | Kind::Object(entries) => {
            let names = names_of(&value.kind);
            let layout = Layout::nested(indent, names);
            let mut lines = String::new();
            let width = entries.keys().map(|name| layout.name(name).chars().count());
            let width = width.max().unwrap_or(0);
            for (name, value) in entries
                .iter()
                .filter(|(_, value)| names == Names::Keys || !value.is_null())
            {
                let value = whole(value, mark, indent + 4, false);
                let name = layout.name(name);
                lines += &line(mark, indent + 4, &format!("{name:width$} = {value}"));
            }
            format!("{{\n{lines}{close}}}{arrow}")
        }
        _ => {
            let lines: String = value
                .children()
                .map(|element| {
                    let element = whole(element, mark, indent + 4, false);
                    line(mark, indent + 4, &format!("{element},"))
                })
                .collect();
            format!("[\n{lines}{close}]{arrow}")
        }
    }
}

fn names_of(kind: &Kind) -> Names {
    match kind {
        Kind::Map(_) => Names::Keys,
        _ => Names::Attributes,
    }
}

/// Returns a value that becomes another.
fn change(before: &Value, after: &Value, indent: usize) -> String {
    let close = format!("{:indent$}", "");
    if before.sensitive || after.sensitive {
        return SENSITIVE.into();
    }
    match (&before.kind, &after.kind) {
        (Kind::String(a), Kind::String(b)) if a.contains('\n') || b.contains('\n') => {
            format!("<<-EOT\n{}{close}EOT", text_change(a, b, indent + 4))
        }
        (Kind::Map(a), Kind::Map(b)) | (Kind::Object(a), Kind::Object(b)) => {
            let layout = Layout::nested(indent, names_of(&after.kind));
            let lines = block(&fields(Some(a), Some(b)), layout);
            format!("{{\n{lines}{close}}}")
        }
        (Kind::List(a), Kind::List(b))
        | (Kind::Set(a), Kind::Set(b))
        | (Kind::Tuple(a), Kind::Tuple(b)) => {
            format!("[\n{}{close}]", elements_change(a, b, indent + 4))
        }
        _ => {
            let before = whole(before, Mark::Remove, indent, false);
            let after = whole(after, Mark::Add, indent, false);
            format!("{before} -> {after}")
        }
    }
}

/// Returns the lines of a text that change, and a few around them.
fn text_change(before: &str, after: &str, indent: usize) -> String {
    let diff = TextDiff::from_lines(before, after);
    let mut out = String::new();
    let mut next = 0;
    for group in diff.grouped_ops(CONTEXT_LINES) {
        let Some(first) = group.first() else { continue };
        let skipped = first.old_range().start - next;
        if skipped > 0 {
            out += &hidden_line(skipped, "line", indent);
        }
        for op in &group {
            for change in diff.iter_changes(op) {
                let mark = match change.tag() {
                    ChangeTag::Delete => Mark::Remove,
                    ChangeTag::Insert => Mark::Add,
                    ChangeTag::Equal => Mark::Keep,
                };
                let text = change.value().trim_end_matches(['\n', '\r']);
                out += &line(mark, indent, &printable_line(text));
            }
            next = op.old_range().end;
        }
    }
    let rest = before.lines().count().saturating_sub(next);
    if rest > 0 {
        out += &hidden_line(rest, "line", indent);
    }
    out
}

/// Returns the elements that come and go; those that stay are counted.
fn elements_change(before: &[Value], after: &[Value], indent: usize) -> String {
    let shown = |elements: &[Value]| -> Vec<String> {
        let whole = |it| whole(it, Mark::Keep, indent, false);
        elements.iter().map(whole).collect()
    };
    let (old, new) = (shown(before), shown(after));
    let (old, new): (Vec<&str>, Vec<&str>) = (
        old.iter().map(String::as_str).collect(),
        new.iter().map(String::as_str).collect(),
    );
    let diff = TextDiff::from_slices(&old, &new);
    let mut out = String::new();
    let mut hidden = 0;
    for change in diff.iter_all_changes() {
        let (mark, element) = match (change.tag(), change.old_index(), change.new_index()) {
            (ChangeTag::Delete, Some(at), _) => (Mark::Remove, before.get(at)),
            (ChangeTag::Insert, _, Some(at)) => (Mark::Add, after.get(at)),
            _ => {
                hidden += 1;
                continue;
            }
        };
        if let Some(element) = element {
            let element = whole(element, mark, indent, false);
            out += &line(mark, indent, &format!("{element},"));
        }
    }
    if hidden > 0 {
        out += &hidden_line(hidden, "element", indent);
    }
    out
}

/// Returns a value that stands in one line, whatever its context.
fn scalar(value: &Value) -> Option<String> {
    if value.sensitive {
        return Some(SENSITIVE.into());
    }
    Some(match &value.kind {
        Kind::Unknown(_) => UNKNOWN.into(),
        Kind::Null => "null".into(),
        Kind::Bool(value) => value.to_string(),
        Kind::Number(value) => value.to_string(),
        Kind::String(text) if !text.contains('\n') => quoted(text),
        Kind::List(it) | Kind::Set(it) | Kind::Tuple(it) if it.is_empty() => "[]".into(),
        Kind::Map(it) | Kind::Object(it) if it.is_empty() => "{}".into(),
        Kind::Ref(address) => printable_line(&address.to_string()).into_owned(),
        _ => return None,
    })
}

/// Returns a text in quotes, as HCL reads it back where it has nothing hostile in it.
fn quoted(text: &str) -> String {
    let escaped = text
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
        .replace('\r', "\\r")
        .replace('\t', "\\t")
        .replace("${", "$${")
        .replace("%{", "%%{");
    format!("\"{}\"", printable_line(&escaped))
}

/// Returns the text with a note at the end of its first line.
fn noted(text: &str, note: &str) -> String {
    match text.split_once('\n') {
        Some((first, rest)) => format!("{first} {note}\n{rest}"),
        None => format!("{text} {note}"),
    }
}

#[cfg(test)]
mod tests {
    use gobs_model::Type;

    use super::*;

    fn check(before: &Value, after: &Value, expected: &str) {
        let layout = Layout {
            indent: 0,
            always: &["id"],
            names: Names::Attributes,
            arrow_null: true,
            noun: "attribute",
        };
        let fields = fields(before.as_entries(), after.as_entries());
        let text = block(&fields, layout);
        assert_eq!(anstream::adapter::strip_str(&text).to_string(), expected);
    }

    fn object<const N: usize>(entries: [(&str, Value); N]) -> Value {
        Value::object(entries)
    }

    #[test]
    fn scalars() {
        check(
            &object([
                ("id", "i-1".into()),
                ("gone", true.into()),
                ("size", "small".into()),
                ("kept", 1.into()),
                ("null", Value::NULL),
                ("ip", "10.0.0.1".into()),
            ]),
            &object([
                ("id", "i-1".into()),
                ("new", "a\"b\\${x}\u{1b}".into()),
                ("size", "large".into()),
                ("kept", 1.into()),
                ("null", Value::NULL),
                ("ip", Value::unknown(Type::String)),
            ]),
            r#"  - gone = true -> null
    id   = "i-1"
  ~ ip   = "10.0.0.1" -> (known after apply)
  + new  = "a\"b\\$${x}␛"
  ~ size = "small" -> "large"
    # (1 unchanged attribute hidden)
"#,
        );
    }

    #[test]
    fn what_is_sensitive_is_never_shown() {
        let secret = |text: &str| Value::from(text).sensitive();
        check(
            &object([
                ("a", secret("hunter1")),
                ("b", "clear".into()),
                ("c", secret("hunter3")),
                ("l", Value::list([secret("hunter4"), "x".into()])),
            ]),
            &object([
                ("a", secret("hunter2")),
                ("b", secret("clear")),
                ("d", object([("e", secret("hunter5"))])),
                ("l", Value::list([secret("hunter4"), "y".into()])),
            ]),
            r#"  ~ a = (sensitive value)
  - c = (sensitive value) -> null
  + d = {
      + e = (sensitive value)
    }
  ~ l = [
      - "x",
      + "y",
        # (1 unchanged element hidden)
    ]
    # (1 unchanged attribute hidden)
"#,
        );
    }

    #[test]
    fn collections() {
        check(
            &object([
                ("list", Value::list([1.into(), 2.into(), 3.into()])),
                (
                    "map",
                    Value::map([("a b", 1.into()), ("c", Value::from(2))]),
                ),
                ("none", Value::list([])),
            ]),
            &object([
                ("list", Value::list([1.into(), 3.into(), 4.into()])),
                (
                    "map",
                    Value::map([("a b", 5.into()), ("c", Value::from(2))]),
                ),
                ("none", Value::NULL),
                ("set", Value::set(["y".into(), Value::list(["x".into()])])),
            ]),
            r#"  ~ list = [
      - 2,
      + 4,
        # (2 unchanged elements hidden)
    ]
  ~ map  = {
      ~ "a b" = 1 -> 5
        # (1 unchanged element hidden)
    }
  - none = [] -> null
  + set  = [
      + "y",
      + [
          + "x",
        ],
    ]
"#,
        );
    }

    #[test]
    fn long_texts_are_compared_line_by_line() {
        let text = |changed: &str| {
            let line = |at| {
                if at == 6 {
                    changed.into()
                } else {
                    format!("line {at}")
                }
            };
            let lines: Vec<String> = (1..=12).map(line).collect();
            Value::from(lines.join("\n"))
        };
        check(
            &object([("t", text("old")), ("v", "1\n2\n3\n4\n5".into())]),
            &object([("t", text("new")), ("u", "a\n\nb\n".into())]),
            "  ~ t = <<-EOT
        # (2 unchanged lines hidden)
        line 3
        line 4
        line 5
      - old
      + new
        line 7
        line 8
        line 9
        # (3 unchanged lines hidden)
    EOT
  + u = <<-EOT
        a

        b
    EOT
  - v = <<-EOT
        1
        2
        3
        # (2 more lines)
    EOT -> null
",
        );
    }

    #[test]
    fn a_note_stands_behind_the_first_line() {
        let (before, after) = (Value::list([1.into()]), Value::list([2.into()]));
        let field = Field {
            name: "x",
            before: Some(&before),
            after: Some(&after),
            note: Some("forces replacement".into()),
        };
        let text = block(&[field], Layout::nested(0, Names::Attributes));
        assert_eq!(
            anstream::adapter::strip_str(&text).to_string(),
            "  ~ x = [ # forces replacement\n      - 1,\n      + 2,\n    ]\n"
        );
    }
}
