//! Functions of numbers.

use gobs_model::{Number, Value};

use super::Kinds::{Any, Number as Num, Numbers, String as Str};
use super::{Arguments, Failure, Function, parameter, plain};

pub(super) const FUNCTIONS: &[Function] = &[
    plain("abs", &[parameter("number", Num)], Num, |a| {
        Ok(number(a, 0)?.abs().into())
    }),
    plain("ceil", &[parameter("number", Num)], Num, |a| {
        Ok(number(a, 0)?.ceil().into())
    }),
    plain("floor", &[parameter("number", Num)], Num, |a| {
        Ok(number(a, 0)?.floor().into())
    }),
    plain("max", &[parameter("numbers", Num)], Num, |a| {
        Ok(a.values
            .iter()
            .filter_map(Value::as_number)
            .max()
            .cloned()
            .map_or(Value::NULL, Value::from))
    })
    .rest(parameter("numbers", Num)),
    plain("min", &[parameter("numbers", Num)], Num, |a| {
        Ok(a.values
            .iter()
            .filter_map(Value::as_number)
            .min()
            .cloned()
            .map_or(Value::NULL, Value::from))
    })
    .rest(parameter("numbers", Num)),
    plain("signum", &[parameter("number", Num)], Num, |a| {
        let number = number(a, 0)?;
        let sign = if number.is_negative() {
            -1
        } else {
            i64::from(!number.is_zero())
        };
        Ok(sign.into())
    }),
    plain(
        "pow",
        &[parameter("number", Num), parameter("power", Num)],
        Num,
        pow,
    ),
    plain(
        "log",
        &[parameter("number", Num), parameter("base", Num)],
        Num,
        log,
    ),
    plain(
        "parseint",
        &[parameter("text", Any), parameter("base", Num)],
        Num,
        parseint,
    ),
    plain("sum", &[parameter("numbers", Numbers)], Num, sum),
    plain("tonumber", &[super::nullable("value", Any)], Num, |a| {
        super::encoding::to(a, &gobs_model::Type::Number)
    }),
    plain("range", &[parameter("numbers", Num)], Numbers, range).rest(parameter("numbers", Num)),
    plain("plantimestamp", &[], Str, |a| {
        let inputs = a.inputs.ok_or("the time is not known here")?;
        Ok(super::super::time::rfc3339(inputs.now_s).as_str().into())
    }),
];

fn number<'a>(a: &'a Arguments<'_>, at: usize) -> Result<&'a Number, Failure> {
    a.values
        .get(at)
        .and_then(Value::as_number)
        .ok_or_else(|| Failure::at(at, "a number is required"))
}

/// The largest whole exponent that is multiplied out; beyond it every base but 0 and ±1 is too
/// large or too small for a number anyhow.
const EXPONENT_MAX: i64 = 20_000;

fn pow(a: &Arguments<'_>) -> Result<Value, Failure> {
    let (base, power) = (number(a, 0)?, number(a, 1)?);
    let whole = power.to_i64().filter(|it| it.abs() <= EXPONENT_MAX);
    if let Some(power) = whole {
        // By squaring, with every digit.
        let mut result = Number::from(1_i64);
        let mut factor = base.clone();
        let mut left = power.unsigned_abs();
        let range = |error: gobs_model::NumberError| Failure::from(error.to_string());
        while left > 0 {
            if left & 1 == 1 {
                result = result.mul(&factor).map_err(range)?;
            }
            left >>= 1;
            if left > 0 {
                factor = factor.mul(&factor).map_err(range)?;
            }
        }
        if power < 0 {
            result = Number::from(1_i64).div(&result).map_err(range)?;
        }
        return Ok(result.into());
    }
    float(base.to_f64().powf(power.to_f64()))
}

fn log(a: &Arguments<'_>) -> Result<Value, Failure> {
    let (number, base) = (number(a, 0)?.to_f64(), number(a, 1)?.to_f64());
    float(number.ln() / base.ln())
}

fn float(value: f64) -> Result<Value, Failure> {
    Number::from_f64(value)
        .map(Value::from)
        .ok_or_else(|| "the result is not a number".into())
}

fn parseint(a: &Arguments<'_>) -> Result<Value, Failure> {
    let base = a.integer(1)?;
    if !(2..=62).contains(&base) {
        return Err(Failure::at(1, "the base must be from 2 to 62"));
    }
    let Some(text) = a.values[0].as_str() else {
        return Err(Failure::at(0, "a string is required"));
    };
    let wrong = || Failure::at(0, format!("cannot parse {text:?} as a base {base} integer"));
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() {
        return Err(wrong());
    }
    let radix = Number::from(base);
    let mut result = Number::from(0_i64);
    for char in digits.chars() {
        let digit = match char {
            '0'..='9' => i64::from(char as u32) - i64::from('0' as u32),
            'a'..='z' => i64::from(char as u32) - i64::from('a' as u32) + 10,
            // Up to base 36 case does not matter; beyond it capitals are digits of their own.
            'A'..='Z' if base <= 36 => i64::from(char as u32) - i64::from('A' as u32) + 10,
            'A'..='Z' => i64::from(char as u32) - i64::from('A' as u32) + 36,
            _ => return Err(wrong()),
        };
        if digit >= base {
            return Err(wrong());
        }
        result = result
            .mul(&radix)
            .and_then(|it| it.add(&Number::from(digit)))
            .map_err(|error| Failure::at(0, error.to_string()))?;
    }
    Ok(if text.starts_with('-') {
        result.neg()
    } else {
        result
    }
    .into())
}

fn sum(a: &Arguments<'_>) -> Result<Value, Failure> {
    let mut numbers = a.elements(0).iter();
    let Some(first) = numbers.next().and_then(Value::as_number) else {
        return Err(Failure::at(0, "cannot sum an empty list"));
    };
    let mut result = first.clone();
    for number in numbers {
        let Some(number) = number.as_number() else {
            return Err(Failure::at(0, "a null value cannot be summed"));
        };
        result = result.add(number).map_err(|error| error.to_string())?;
    }
    Ok(result.into())
}

/// As many numbers as Terraform's `range` gives at most.
const RANGE_MAX: usize = 1024;

fn range(a: &Arguments<'_>) -> Result<Value, Failure> {
    let zero = Number::from(0_i64);
    let (start, end, step) = match a.values.len() {
        1 => (zero.clone(), number(a, 0)?.clone(), None),
        2 => (number(a, 0)?.clone(), number(a, 1)?.clone(), None),
        3 => (
            number(a, 0)?.clone(),
            number(a, 1)?.clone(),
            Some(number(a, 2)?.clone()),
        ),
        _ => return Err("it takes one to three numbers: range(start, limit, step)".into()),
    };
    let step = step.unwrap_or_else(|| Number::from(if end < start { -1_i64 } else { 1 }));
    if step.is_zero() {
        return Err("the step must not be zero".into());
    }
    if (step.is_negative() && end > start) || (!step.is_negative() && end < start) {
        return Err("the step leads away from the limit".into());
    }
    let mut result = Vec::new();
    let mut at = start;
    while if step.is_negative() {
        at > end
    } else {
        at < end
    } {
        if result.len() >= RANGE_MAX {
            return Err(format!("more than {RANGE_MAX} values").into());
        }
        result.push(Value::from(at.clone()));
        at = at.add(&step).map_err(|error| error.to_string())?;
    }
    Ok(Value::list(result))
}
