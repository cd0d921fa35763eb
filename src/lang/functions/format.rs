//! `format` and `formatlist`: Go's verbs, as Terraform has them.

use std::fmt::Write as _;

use gobs_model::{Kind, Number, Type, Value};
use unicode_segmentation::UnicodeSegmentation;

use super::Kinds::{Any, String as Str, Strings};
use super::{Arguments, Failure, Function, nullable, parameter, passing, plain};
use crate::lang::convert::{convert, friendly};
use crate::lang::lower::nfc;

pub(super) const FUNCTIONS: &[Function] = &[
    plain("format", &[parameter("format", Str)], Str, |a| {
        format(a.text(0), &a.values[1..]).map(|text| Kind::String(nfc(&text)).into())
    })
    .rest(nullable("arguments", Any)),
    passing(
        "formatlist",
        &[parameter("format", Str)],
        Strings,
        formatlist,
    )
    .rest(nullable("arguments", Any)),
];

fn formatlist(a: &Arguments<'_>) -> Result<Value, Failure> {
    let arguments = &a.values[1..];
    let mut length = None;
    for (at, value) in arguments.iter().enumerate() {
        if let Some(elements) = value.as_elements() {
            match length {
                Some(other) if other != elements.len() => {
                    let message = format!("it has {} elements, not {other}", elements.len());
                    return Err(Failure::at(at + 1, message));
                }
                _ => length = Some(elements.len()),
            }
        }
    }
    let mut result = Vec::new();
    for row in 0..length.unwrap_or(1) {
        let values: Vec<Value> = arguments
            .iter()
            .map(|value| value.as_elements().map_or(value, |it| &it[row]).clone())
            .collect();
        let sensitive = values.iter().any(Value::contains_sensitive);
        result.push(if values.iter().any(Value::contains_unknown) {
            Value::unknown(Type::String).sensitive_if(sensitive)
        } else {
            let text = format(a.text(0), &values)?;
            Value::from(Kind::String(nfc(&text))).sensitive_if(sensitive)
        });
    }
    Ok(Value::list(result))
}

/// The widest field and the most digits: more would be a mistake.
const WIDTH_MAX: usize = 1_024;

#[derive(Default)]
struct Verb {
    plus: bool,
    minus: bool,
    space: bool,
    zero: bool,
    sharp: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

fn format(pattern: &str, arguments: &[Value]) -> Result<String, Failure> {
    let mut out = String::new();
    let mut rest = pattern;
    let mut next = 0;
    let mut used = 0;
    let mut explicit = false;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let start = &rest[at..];
        let mut chars = start[1..].char_indices().peekable();
        let mut verb = Verb::default();
        let mut letter = None;
        while let Some((_, char)) = chars.next() {
            match char {
                '+' => verb.plus = true,
                '-' => verb.minus = true,
                ' ' => verb.space = true,
                '#' => verb.sharp = true,
                '0' if verb.width.is_none() && verb.precision.is_none() => verb.zero = true,
                '0'..='9' => {
                    let digit = char as usize - '0' as usize;
                    let number = match &mut verb.precision {
                        Some(precision) => precision,
                        None => verb.width.get_or_insert(0),
                    };
                    *number = (*number * 10 + digit).min(WIDTH_MAX);
                }
                '.' => verb.precision = Some(0),
                '[' => {
                    let mut number = 0_usize;
                    for (_, digit) in chars.by_ref() {
                        match digit.to_digit(10) {
                            Some(digit) => number = (number * 10 + digit as usize).min(WIDTH_MAX),
                            None if digit == ']' => break,
                            None => return Err(wrong_verb(start)),
                        }
                    }
                    next = number.checked_sub(1).ok_or_else(|| wrong_verb(start))?;
                    explicit = true;
                }
                char => {
                    letter = Some(char);
                    break;
                }
            }
        }
        rest = chars.peek().map_or("", |(at, _)| &start[1 + at..]);
        let letter = letter.ok_or_else(|| wrong_verb(start))?;
        if letter == '%' {
            out.push('%');
            continue;
        }
        let argument = arguments.get(next).ok_or_else(|| {
            Failure::at(
                0,
                format!(
                    "not enough arguments for \"%{letter}\": there are {}",
                    arguments.len()
                ),
            )
        })?;
        next += 1;
        used = used.max(next);
        let text = one(&verb, letter, argument).map_err(|why| Failure::at(next, why))?;
        pad(&verb, &text, &mut out);
    }
    out.push_str(rest);
    if used < arguments.len() && !explicit {
        let message = format!("too many arguments; the format uses only {used}");
        return Err(Failure::at(used + 1, message));
    }
    Ok(out)
}

fn wrong_verb(text: &str) -> Failure {
    let shown: String = text.chars().take(10).collect();
    Failure::at(0, format!("unsupported format sequence at {shown:?}"))
}

fn pad(verb: &Verb, text: &str, out: &mut String) {
    let width = verb.width.unwrap_or(0);
    let missing = width.saturating_sub(text.graphemes(true).count());
    if verb.minus {
        out.push_str(text);
        out.extend(std::iter::repeat_n(' ', missing));
    } else if verb.zero {
        let sign = usize::from(text.starts_with(['-', '+']));
        out.push_str(&text[..sign]);
        out.extend(std::iter::repeat_n('0', missing));
        out.push_str(&text[sign..]);
    } else {
        out.extend(std::iter::repeat_n(' ', missing));
        out.push_str(text);
    }
}

fn one(verb: &Verb, letter: char, value: &Value) -> Result<String, String> {
    if value.is_null() && letter != 'v' {
        return Err("a null value cannot be formatted".into());
    }
    let as_type = |ty: Type| convert(value, &ty).map_err(|error| error.message);
    let number = || -> Result<Number, String> {
        let value = as_type(Type::Number)?;
        value
            .as_number()
            .cloned()
            .ok_or_else(|| "a number is required".into())
    };
    Ok(match letter {
        'v' if verb.sharp => json(value)?,
        'v' => match &value.kind {
            Kind::Null => "null".into(),
            Kind::String(text) => cut(verb, text),
            Kind::Number(number) => signed(verb, number, number.to_string()),
            Kind::Bool(it) => it.to_string(),
            _ => json(value)?,
        },
        's' => cut(verb, as_type(Type::String)?.as_str().unwrap_or_default()),
        'q' => json(&as_type(Type::String)?)?,
        't' => as_type(Type::Bool)?
            .as_bool()
            .unwrap_or_default()
            .to_string(),
        'd' => {
            let number = number()?;
            // As Terraform: digits behind the point are cut off.
            let whole = if number.is_negative() {
                number.ceil()
            } else {
                number.floor()
            };
            signed(verb, &whole, whole.to_string())
        }
        'b' | 'o' | 'x' | 'X' => {
            if let ('x' | 'X', Kind::String(text)) = (letter, &value.kind) {
                let upper = letter == 'X';
                return Ok(text.bytes().fold(String::new(), |mut out, byte| {
                    let _ = if upper {
                        write!(out, "{byte:02X}")
                    } else {
                        write!(out, "{byte:02x}")
                    };
                    out
                }));
            }
            let number = number()?;
            let whole = number.to_i64().ok_or("a whole number is required")?;
            let sign = if whole < 0 { "-" } else { "" };
            let size = whole.unsigned_abs();
            let digits = match letter {
                'b' => format!("{size:b}"),
                'o' => format!("{size:o}"),
                'x' => format!("{size:x}"),
                _ => format!("{size:X}"),
            };
            signed(verb, &number, format!("{sign}{digits}"))
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let number = number()?;
            let text = float(letter, verb.precision, number.to_f64());
            signed(verb, &number, text)
        }
        other => return Err(format!("unsupported format verb {other:?}")),
    })
}

fn signed(verb: &Verb, number: &Number, text: String) -> String {
    if number.is_negative() {
        text
    } else if verb.plus {
        format!("+{text}")
    } else if verb.space {
        format!(" {text}")
    } else {
        text
    }
}

fn cut(verb: &Verb, text: &str) -> String {
    match verb.precision {
        Some(most) => text.graphemes(true).take(most).collect(),
        None => text.into(),
    }
}

fn json(value: &Value) -> Result<String, String> {
    if let Kind::Ref(address) = &value.kind {
        let ty = friendly(&value.type_of());
        return Err(format!("{address} is a {ty}, which cannot become text"));
    }
    super::encoding::json_text(value)
}

fn float(letter: char, precision: Option<usize>, value: f64) -> String {
    let exponent = |text: String, letter: char| {
        // Go writes at least two digits of exponent, with its sign.
        let (mantissa, power) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = match power.strip_prefix('-') {
            Some(digits) => ('-', digits),
            None => ('+', power),
        };
        format!("{mantissa}{letter}{sign}{digits:0>2}")
    };
    match letter {
        'f' | 'F' => format!("{value:.*}", precision.unwrap_or(6)),
        'e' | 'E' => exponent(format!("{value:.*e}", precision.unwrap_or(6)), letter),
        _ => {
            let upper = if letter == 'G' { 'E' } else { 'e' };
            let power = format!("{value:e}");
            let power: i32 = power
                .split_once('e')
                .and_then(|(_, it)| it.parse().ok())
                .unwrap_or(0);
            let digits = precision.map(|it| it.max(1));
            let limit = digits.map_or(21, |it| i32::try_from(it).unwrap_or(21));
            if power < -4 || power >= limit {
                let text = match digits {
                    Some(digits) => format!("{value:.*e}", digits - 1),
                    None => format!("{value:e}"),
                };
                return exponent(text, upper);
            }
            match digits {
                Some(digits) => {
                    let places = i32::try_from(digits).unwrap_or(0) - 1 - power;
                    let text = format!("{value:.*}", usize::try_from(places).unwrap_or(0));
                    if text.contains('.') {
                        text.trim_end_matches('0').trim_end_matches('.').into()
                    } else {
                        text
                    }
                }
                None => format!("{value}"),
            }
        }
    }
}
