//! Numbers: decimals of enough digits that HCL's 512-bit arithmetic shows no difference.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use bigdecimal::num_bigint::BigInt;
use bigdecimal::{BigDecimal, FromPrimitive, Signed, ToPrimitive, Zero};

/// A decimal number of at most [`Number::DIGITS_MAX`] significant digits.
#[derive(Clone)]
pub struct Number(Repr);

/// Integers stay small: a project of 10,000 machines holds many of them.
#[derive(Clone)]
enum Repr {
    Small(i64),
    Big(Box<BigDecimal>),
}

/// Why there is no such number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NumberError {
    /// The text is not a decimal number.
    #[error("not a decimal number")]
    Syntax,
    /// The number's exponent is beyond [`Number::EXPONENT_MAX`].
    #[error(
        "a number may have at most {} digits before or after its point",
        Number::EXPONENT_MAX
    )]
    Range,
    /// The divisor is zero.
    #[error("division by zero")]
    DivisionByZero,
}

impl Number {
    /// 512 bits are 154.1 decimal digits; one more so that rounding agrees.
    pub const DIGITS_MAX: u64 = 155;
    /// Bounds what a short text such as `1e999999999` may cost when it is printed in full.
    pub const EXPONENT_MAX: i64 = 5_000;

    /// Returns the number for a float, or nothing for NaN and infinities.
    pub fn from_f64(value: f64) -> Option<Self> {
        // The shortest decimal that reads back as this float is what a person wrote.
        if value.is_finite() {
            format!("{value:e}").parse().ok()
        } else {
            None
        }
    }

    /// Returns the number if it is an integer that fits.
    pub fn to_i64(&self) -> Option<i64> {
        match &self.0 {
            Repr::Small(value) => Some(*value),
            Repr::Big(value) if value.is_integer() => value.to_i64(),
            Repr::Big(_) => None,
        }
    }

    /// Returns the nearest float.
    pub fn to_f64(&self) -> f64 {
        match &self.0 {
            #[expect(
                clippy::cast_precision_loss,
                reason = "the nearest float is what is asked"
            )]
            Repr::Small(value) => *value as f64,
            Repr::Big(value) => value.to_f64().unwrap_or(f64::INFINITY),
        }
    }

    /// Returns whether the number has no fraction.
    pub fn is_integer(&self) -> bool {
        match &self.0 {
            Repr::Small(_) => true,
            Repr::Big(value) => value.is_integer(),
        }
    }

    /// Returns the sum.
    ///
    /// # Errors
    /// [`NumberError::Range`] for a result that is too large; the other operations likewise.
    pub fn add(&self, other: &Self) -> Result<Self, NumberError> {
        match (&self.0, &other.0) {
            (Repr::Small(a), Repr::Small(b)) if a.checked_add(*b).is_some() => Ok((a + b).into()),
            _ => Self::bounded(self.big() + other.big()),
        }
    }

    /// Returns the difference.
    ///
    /// # Errors
    /// See [`Number::add`].
    pub fn sub(&self, other: &Self) -> Result<Self, NumberError> {
        self.add(&other.neg())
    }

    /// Returns the product.
    ///
    /// # Errors
    /// See [`Number::add`].
    pub fn mul(&self, other: &Self) -> Result<Self, NumberError> {
        match (&self.0, &other.0) {
            (Repr::Small(a), Repr::Small(b)) if a.checked_mul(*b).is_some() => Ok((a * b).into()),
            _ => Self::bounded(self.big() * other.big()),
        }
    }

    /// Returns the quotient.
    ///
    /// # Errors
    /// [`NumberError::DivisionByZero`], and see [`Number::add`].
    pub fn div(&self, other: &Self) -> Result<Self, NumberError> {
        if other.is_zero() {
            return Err(NumberError::DivisionByZero);
        }
        Self::bounded(self.big() / other.big())
    }

    /// Returns the remainder with the sign of the dividend, as HCL's `%` does.
    ///
    /// # Errors
    /// [`NumberError::DivisionByZero`], and see [`Number::add`].
    pub fn rem(&self, other: &Self) -> Result<Self, NumberError> {
        if other.is_zero() {
            return Err(NumberError::DivisionByZero);
        }
        Self::bounded(self.big() % other.big())
    }

    /// Returns the number with its sign changed.
    #[must_use]
    pub fn neg(&self) -> Self {
        match &self.0 {
            Repr::Small(value) if *value != i64::MIN => Self(Repr::Small(-value)),
            _ => Self(Repr::Big(Box::new(-self.big()))).small(),
        }
    }

    /// Returns the largest integer that is not above.
    #[must_use]
    pub fn floor(&self) -> Self {
        self.round_to_integer(bigdecimal::RoundingMode::Floor)
    }

    /// Returns the smallest integer that is not below.
    #[must_use]
    pub fn ceil(&self) -> Self {
        self.round_to_integer(bigdecimal::RoundingMode::Ceiling)
    }

    /// Returns the absolute value.
    #[must_use]
    pub fn abs(&self) -> Self {
        if self.is_negative() {
            self.neg()
        } else {
            self.clone()
        }
    }

    /// Returns whether this is zero.
    pub fn is_zero(&self) -> bool {
        match &self.0 {
            Repr::Small(value) => *value == 0,
            Repr::Big(value) => value.is_zero(),
        }
    }

    /// Returns whether this is below zero.
    pub fn is_negative(&self) -> bool {
        match &self.0 {
            Repr::Small(value) => *value < 0,
            Repr::Big(value) => value.is_negative(),
        }
    }

    fn round_to_integer(&self, mode: bigdecimal::RoundingMode) -> Self {
        match &self.0 {
            Repr::Small(_) => self.clone(),
            Repr::Big(value) => Self(Repr::Big(Box::new(value.with_scale_round(0, mode)))).small(),
        }
    }

    fn big(&self) -> BigDecimal {
        match &self.0 {
            Repr::Small(value) => BigDecimal::from(*value),
            Repr::Big(value) => (**value).clone(),
        }
    }

    fn bounded(value: BigDecimal) -> Result<Self, NumberError> {
        let value = if value.digits() > Self::DIGITS_MAX {
            value.with_prec(Self::DIGITS_MAX)
        } else {
            value
        };
        let value = value.normalized();
        if value.fractional_digit_count().abs() > Self::EXPONENT_MAX {
            return Err(NumberError::Range);
        }
        Ok(Self(Repr::Big(Box::new(value))).small())
    }

    /// Every integer that fits has one form, so that equality and hashing need no arithmetic.
    fn small(self) -> Self {
        match self.to_i64() {
            Some(value) => Self(Repr::Small(value)),
            None => self,
        }
    }
}

impl From<i64> for Number {
    fn from(value: i64) -> Self {
        Self(Repr::Small(value))
    }
}

impl From<u64> for Number {
    fn from(value: u64) -> Self {
        i64::try_from(value).map_or_else(
            |_| {
                Self(Repr::Big(Box::new(
                    BigDecimal::from_u64(value).unwrap_or_default(),
                )))
            },
            Self::from,
        )
    }
}

impl From<usize> for Number {
    fn from(value: usize) -> Self {
        Self::from(value as u64)
    }
}

impl FromStr for Number {
    type Err = NumberError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(value) = text.parse::<i64>() {
            return if text.starts_with('+') {
                Err(NumberError::Syntax)
            } else {
                Ok(value.into())
            };
        }
        let (mantissa, exponent) = match text.find(['e', 'E']) {
            Some(at) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        };
        let digits = mantissa.strip_prefix('-').unwrap_or(mantissa);
        let plain = digits.starts_with(|c: char| c.is_ascii_digit())
            && digits.ends_with(|c: char| c.is_ascii_digit())
            && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.')
            && digits.bytes().filter(|b| *b == b'.').count() <= 1;
        if !plain {
            return Err(NumberError::Syntax);
        }
        // The exponent is bounded before the number exists: it is what makes a short text costly.
        if let Some(exponent) = exponent {
            let digits = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(NumberError::Syntax);
            }
            if exponent
                .parse::<i64>()
                .is_ok_and(|value| value.abs() <= Self::EXPONENT_MAX)
            {
                return Self::bounded(text.parse().map_err(|_| NumberError::Syntax)?);
            }
            return Err(NumberError::Range);
        }
        Self::bounded(text.parse().map_err(|_| NumberError::Syntax)?)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Small(value) => write!(f, "{value}"),
            Repr::Big(value) => f.write_str(&value.normalized().to_plain_string()),
        }
    }
}

impl fmt::Debug for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Number {}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        match (&self.0, &other.0) {
            (Repr::Small(a), Repr::Small(b)) => a.cmp(b),
            _ => self.big().cmp(&other.big()),
        }
    }
}

impl Hash for Number {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match &self.0 {
            Repr::Small(value) => value.hash(state),
            Repr::Big(value) => {
                let (digits, scale): (BigInt, i64) = value.normalized().into_bigint_and_exponent();
                (digits, scale).hash(state);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(text: &str) -> Number {
        text.parse().expect("a number")
    }

    #[test]
    fn decimals_stay_decimal() {
        assert_eq!(
            n("0.1").add(&n("0.2")).expect("in range").to_string(),
            "0.3"
        );
        assert_eq!(n("1e3"), n("1000"));
        assert_eq!(n("-7").rem(&n("3")).expect("in range").to_string(), "-1");
        assert_eq!(
            n("9223372036854775807").add(&n("1")).expect("big"),
            n("9223372036854775808")
        );
        assert_eq!(n("1").div(&n("0")), Err(NumberError::DivisionByZero));
        assert_eq!(n("2.5").floor().to_i64(), Some(2));
        assert_eq!(n("-2.5").ceil().to_i64(), Some(-2));
    }

    #[test]
    fn a_short_text_costs_little() {
        assert_eq!("1e999999999999".parse::<Number>(), Err(NumberError::Range));
        assert_eq!("1e-999999999".parse::<Number>(), Err(NumberError::Range));
        for text in [
            "", "-", ".5", "5.", "1.2.3", "1e", "e5", "0x10", "+1", "NaN", "1_000",
        ] {
            assert_eq!(text.parse::<Number>(), Err(NumberError::Syntax), "{text}");
        }
    }
}
