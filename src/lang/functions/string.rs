//! Functions of texts.

use gobs_model::{Kind, Value};
use regex::{Regex, RegexBuilder};
use unicode_segmentation::UnicodeSegmentation;

use super::Kinds::{Any, Bool, Number, String as Str, Strings};
use super::{Arguments, Failure, Function, parameter, plain};

pub(super) const FUNCTIONS: &[Function] = &[
    plain("chomp", &[parameter("text", Str)], Str, |a| {
        text(a.text(0).trim_end_matches(['\n', '\r']))
    }),
    plain(
        "endswith",
        &[parameter("text", Str), parameter("suffix", Str)],
        Bool,
        |a| Ok(a.text(0).ends_with(a.text(1)).into()),
    ),
    plain(
        "startswith",
        &[parameter("text", Str), parameter("prefix", Str)],
        Bool,
        |a| Ok(a.text(0).starts_with(a.text(1)).into()),
    ),
    plain(
        "strcontains",
        &[parameter("text", Str), parameter("part", Str)],
        Bool,
        |a| Ok(a.text(0).contains(a.text(1)).into()),
    ),
    plain(
        "indent",
        &[parameter("spaces", Number), parameter("text", Str)],
        Str,
        indent,
    ),
    plain(
        "join",
        &[parameter("separator", Str), parameter("lists", Strings)],
        Str,
        join,
    )
    .rest(parameter("lists", Strings)),
    plain("lower", &[parameter("text", Str)], Str, |a| {
        text(&a.text(0).to_lowercase())
    }),
    plain("upper", &[parameter("text", Str)], Str, |a| {
        text(&a.text(0).to_uppercase())
    }),
    plain("title", &[parameter("text", Str)], Str, title),
    plain(
        "regex",
        &[parameter("pattern", Str), parameter("text", Str)],
        Any,
        |a| {
            let pattern = pattern(a.text(0))?;
            pattern
                .captures(a.text(1))
                .map(|found| captured(&pattern, &found))
                .ok_or_else(|| "the pattern did not match any part of the text".into())
        },
    ),
    plain(
        "regexall",
        &[parameter("pattern", Str), parameter("text", Str)],
        Any,
        |a| {
            let pattern = pattern(a.text(0))?;
            let found = pattern.captures_iter(a.text(1));
            Ok(Value::list(
                found.map(|it| captured(&pattern, &it)).collect::<Vec<_>>(),
            ))
        },
    ),
    plain(
        "replace",
        &[
            parameter("text", Str),
            parameter("part", Str),
            parameter("replacement", Str),
        ],
        Str,
        replace,
    ),
    plain(
        "split",
        &[parameter("separator", Str), parameter("text", Str)],
        Strings,
        split,
    ),
    plain("strrev", &[parameter("text", Str)], Str, |a| {
        text(&a.text(0).graphemes(true).rev().collect::<String>())
    }),
    plain(
        "substr",
        &[
            parameter("text", Str),
            parameter("offset", Number),
            parameter("length", Number),
        ],
        Str,
        substr,
    ),
    plain(
        "trim",
        &[parameter("text", Str), parameter("characters", Str)],
        Str,
        |a| {
            let set = a.text(1);
            text(a.text(0).trim_matches(|char| set.contains(char)))
        },
    ),
    plain(
        "trimprefix",
        &[parameter("text", Str), parameter("prefix", Str)],
        Str,
        |a| text(a.text(0).strip_prefix(a.text(1)).unwrap_or(a.text(0))),
    ),
    plain(
        "trimsuffix",
        &[parameter("text", Str), parameter("suffix", Str)],
        Str,
        |a| text(a.text(0).strip_suffix(a.text(1)).unwrap_or(a.text(0))),
    ),
    plain("trimspace", &[parameter("text", Str)], Str, |a| {
        text(a.text(0).trim())
    }),
];

/// What is made of NFC texts need not be NFC.
fn text(text: &str) -> Result<Value, Failure> {
    Ok(Kind::String(crate::lang::lower::nfc(text)).into())
}

/// Refuses a result that is too long before it takes the memory.
fn fits(bytes: usize) -> Result<(), Failure> {
    if bytes > crate::lang::eval::STRING_BYTES_MAX {
        return Err("the result would have more than 16 MiB".into());
    }
    Ok(())
}

/// The widest indent: more is a mistake, and every line of a text gets it.
const INDENT_MAX: i64 = 1_000;

fn indent(a: &Arguments<'_>) -> Result<Value, Failure> {
    let spaces = a.integer(0)?;
    if !(0..=INDENT_MAX).contains(&spaces) {
        return Err(Failure::at(0, format!("it must be from 0 to {INDENT_MAX}")));
    }
    let lines = a.text(1).matches('\n').count();
    fits(lines.saturating_mul(usize::try_from(spaces).unwrap_or(0)))?;
    let pad: String = std::iter::repeat_n(' ', usize::try_from(spaces).unwrap_or(0)).collect();
    text(&a.text(1).replace('\n', &format!("\n{pad}")))
}

fn join(a: &Arguments<'_>) -> Result<Value, Failure> {
    let mut parts = Vec::new();
    for (at, list) in a.values.iter().enumerate().skip(1) {
        for (index, element) in list.as_elements().unwrap_or_default().iter().enumerate() {
            let wrong = || Failure::at(at, format!("element {index} is null; cannot join it"));
            parts.push(element.as_str().ok_or_else(wrong)?);
        }
    }
    let separators = parts.len().saturating_mul(a.text(0).len());
    fits(
        parts
            .iter()
            .fold(separators, |sum, it| sum.saturating_add(it.len())),
    )?;
    text(&parts.join(a.text(0)))
}

fn title(a: &Arguments<'_>) -> Result<Value, Failure> {
    let mut result = String::new();
    let mut inside = false;
    for char in a.text(0).chars() {
        if inside {
            result.push(char);
        } else {
            result.extend(char.to_uppercase());
        }
        // As Go's strings.Title: a letter, digit, underscore or apostrophe goes on with a word.
        inside = char.is_alphanumeric() || char == '_' || char == '\'';
    }
    text(&result)
}

/// The largest compiled pattern, so that `a{1000}{1000}` costs nothing.
const PATTERN_BYTES_MAX: usize = 1 << 20;

fn pattern(pattern: &str) -> Result<Regex, Failure> {
    RegexBuilder::new(pattern)
        .size_limit(PATTERN_BYTES_MAX)
        .build()
        .map_err(|error| {
            // The library draws the pattern over several lines; the last line is the reason.
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default();
            Failure::at(0, reason.trim_start_matches("error: ").to_owned())
        })
}

/// A match: text, or the texts of its groups, by name where they have names.
fn captured(pattern: &Regex, found: &regex::Captures<'_>) -> Value {
    let group = |it: Option<regex::Match<'_>>| it.map_or(Value::NULL, |it| it.as_str().into());
    if pattern.captures_len() == 1 {
        return group(found.get(0));
    }
    let names: Vec<&str> = pattern.capture_names().flatten().collect();
    if names.is_empty() {
        Value::tuple(found.iter().skip(1).map(group).collect::<Vec<_>>())
    } else {
        Value::object(
            names
                .into_iter()
                .map(|name| (name, group(found.name(name)))),
        )
    }
}

fn replace(a: &Arguments<'_>) -> Result<Value, Failure> {
    let (whole, part, replacement) = (a.text(0), a.text(1), a.text(2));
    if part.len() > 1 && part.starts_with('/') && part.ends_with('/') {
        let pattern = pattern(&part[1..part.len() - 1]).map_err(|it| Failure::at(1, it.message))?;
        fits(
            pattern
                .find_iter(whole)
                .count()
                .saturating_mul(replacement.len()),
        )?;
        return text(&pattern.replace_all(whole, replacement));
    }
    fits(
        whole
            .matches(part)
            .count()
            .saturating_mul(replacement.len()),
    )?;
    text(&whole.replace(part, replacement))
}

fn split(a: &Arguments<'_>) -> Result<Value, Failure> {
    let (separator, whole) = (a.text(0), a.text(1));
    let parts: Vec<Value> = if separator.is_empty() {
        whole
            .chars()
            .map(|it| it.to_string().as_str().into())
            .collect()
    } else {
        whole.split(separator).map(Value::from).collect()
    };
    Ok(Value::list(parts))
}

fn substr(a: &Arguments<'_>) -> Result<Value, Failure> {
    let (offset, length) = (a.integer(1)?, a.integer(2)?);
    let clusters: Vec<&str> = a.text(0).graphemes(true).collect();
    let count = i64::try_from(clusters.len()).unwrap_or(i64::MAX);
    let start = if offset < 0 {
        (count + offset).max(0)
    } else {
        offset.min(count)
    };
    let end = if length < 0 {
        count
    } else {
        start.saturating_add(length).min(count)
    };
    let range = usize::try_from(start).unwrap_or(0)..usize::try_from(end).unwrap_or(0);
    text(&clusters[range].concat())
}
