//! Walking over the tokens of one whole value.

use bytes::Bytes;
use num_bigint::BigInt;

use super::{INTEGER_DIGITS_MAX, Mode, SyrupError, SyrupErrorKind as Kind};
use crate::passable::Integer;

/// A piece of a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Token<'a> {
    /// `t` or `f`.
    Bool(bool),
    /// An integer.
    Int(Integer),
    /// A double.
    Float(f64),
    /// A string.
    String(&'a str),
    /// A symbol.
    Symbol(&'a str),
    /// A byte array, without a copy.
    Bytes(Bytes),
    /// `[`, or in the lenient mode `#`.
    List,
    /// `{`.
    Dict,
    /// `<`.
    Record,
    /// `]`, `}`, `>`, or `$`.
    End,
}

/// Digits of a number that fits an `i64` whatever they are.
const SHORT_DIGITS_MAX: usize = 18;

/// Reads tokens from one whole value.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a Bytes,
    /// The same, to be looked at without a detour.
    slice: &'a [u8],
    offset: usize,
    mode: Mode,
}

impl<'a> Reader<'a> {
    /// Returns a reader at the start of `bytes`.
    pub fn new(bytes: &'a Bytes, mode: Mode) -> Self {
        Self {
            bytes,
            slice: bytes,
            offset: 0,
            mode,
        }
    }

    /// Returns how many bytes were read.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Returns how long the whole is of which this reads.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the byte that was read last.
    pub(crate) fn last_byte(&self) -> Option<u8> {
        self.slice.get(self.offset.checked_sub(1)?).copied()
    }

    /// Goes back to a place that was read before.
    pub(crate) fn rewind(&mut self, offset: usize) {
        self.offset = offset;
    }

    /// Returns how exact the input must be.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns an error at the place reached.
    pub fn error(&self, kind: Kind) -> SyrupError {
        kind.at(self.offset)
    }

    /// Returns the byte that the next token starts with.
    pub fn peek(&mut self) -> Result<u8, SyrupError> {
        loop {
            match self.slice.get(self.offset) {
                None => return Err(self.error(Kind::End)),
                Some(b' ' | b'\t' | b'\r' | b'\n') if self.mode == Mode::Lenient => {
                    self.offset += 1;
                }
                Some(byte) => return Ok(*byte),
            }
        }
    }

    /// Reads the next token. Whether the ends match their starts is the scanner's to see.
    pub fn token(&mut self) -> Result<Token<'a>, SyrupError> {
        let start = self.offset;
        let byte = self.peek()?;
        if byte.is_ascii_digit() {
            return self.number();
        }
        self.offset += 1;
        Ok(match byte {
            b't' => Token::Bool(true),
            b'f' => Token::Bool(false),
            b'[' => Token::List,
            b'{' => Token::Dict,
            b'<' => Token::Record,
            b'#' if self.mode == Mode::Lenient => Token::List,
            b'$' if self.mode == Mode::Lenient => Token::End,
            b']' | b'}' | b'>' => Token::End,
            b'D' => {
                let float = f64::from_be_bytes(self.array()?);
                if !float.is_nan() {
                    Token::Float(float)
                } else if self.mode == Mode::Strict && float.to_bits() != f64::NAN.to_bits() {
                    return Err(Kind::Canonical.at(start));
                } else {
                    Token::Float(f64::NAN)
                }
            }
            b'F' if self.mode == Mode::Lenient => {
                let float = f64::from(f32::from_be_bytes(self.array()?));
                Token::Float(if float.is_nan() { f64::NAN } else { float })
            }
            _ => return Err(Kind::Byte.at(start)),
        })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SyrupError> {
        let rest = self.slice.get(self.offset..).unwrap_or_default();
        let array = rest.first_chunk().ok_or_else(|| self.error(Kind::End))?;
        self.offset += N;
        Ok(*array)
    }

    /// Reads a short number that is canonical, and returns it with the byte after it; `None`,
    /// with nothing read, for any other.
    fn short_number(&mut self) -> Option<(u64, u8)> {
        let rest = self.slice.get(self.offset..)?;
        let mut value = 0_u64;
        for (at, byte) in rest.iter().take(SHORT_DIGITS_MAX + 1).enumerate() {
            if byte.is_ascii_digit() {
                value = value * 10 + u64::from(byte - b'0');
                continue;
            }
            if at == 0 || (at > 1 && rest[0] == b'0') {
                return None;
            }
            self.offset += at + 1;
            return Some((value, *byte));
        }
        None
    }

    /// Reads a text of this length; `None`, with nothing read, where there is none.
    fn body(&mut self, length: u64) -> Option<&'a str> {
        let rest = self.slice.get(self.offset..)?;
        let text = std::str::from_utf8(rest.get(..usize::try_from(length).ok()?)?).ok()?;
        self.offset += text.len();
        Some(text)
    }

    /// Reads a text after this mark; `None`, with nothing read, for anything that is not usual.
    fn short_text(&mut self, mark: u8) -> Option<&'a str> {
        let start = self.offset;
        let text = match self.short_number() {
            Some((length, end)) if end == mark => self.body(length),
            _ => None,
        };
        if text.is_none() {
            self.offset = start;
        }
        text
    }

    fn number(&mut self) -> Result<Token<'a>, SyrupError> {
        let start = self.offset;
        match self.short_number() {
            Some((value, b'+')) => {
                return Ok(Token::Int(i64::try_from(value).unwrap_or_default().into()));
            }
            Some((length, mark @ (b'"' | b'\''))) => {
                if let Some(text) = self.body(length) {
                    return Ok(match mark {
                        b'"' => Token::String(text),
                        _ => Token::Symbol(text),
                    });
                }
            }
            _ => {}
        }
        self.offset = start;
        let mut value = 0_u64;
        let mut fits = true;
        let (digits, end) = loop {
            let Some(&byte) = self.slice.get(self.offset) else {
                return Err(self.error(Kind::End));
            };
            if !byte.is_ascii_digit() {
                break (&self.slice[start..self.offset], byte);
            }
            if self.offset - start >= INTEGER_DIGITS_MAX {
                return Err(Kind::Number.at(start));
            }
            let next = value
                .checked_mul(10)
                .and_then(|n| n.checked_add(u64::from(byte - b'0')));
            fits &= next.is_some();
            value = next.unwrap_or(0);
            self.offset += 1;
        };
        if self.mode == Mode::Strict && digits.len() > 1 && digits[0] == b'0' {
            return Err(Kind::Canonical.at(start));
        }
        if matches!(end, b'+' | b'-') {
            self.offset += 1;
            if end == b'-' && fits && value == 0 && self.mode == Mode::Strict {
                return Err(Kind::Canonical.at(start));
            }
            return Ok(Token::Int(match (fits, i64::try_from(value), end) {
                (true, Ok(n), b'+') => n.into(),
                (true, Ok(n), _) => (-n).into(),
                (true, Err(_), b'+') => value.into(),
                _ => {
                    let big =
                        BigInt::parse_bytes(digits, 10).ok_or_else(|| Kind::Number.at(start))?;
                    Integer::from(if end == b'+' { big } else { -big })
                }
            }));
        }
        let length = usize::try_from(value).ok().filter(|_| fits);
        let from = self.offset + 1;
        let body = length.and_then(|length| from.checked_add(length));
        let Some(to) = body.filter(|to| *to <= self.bytes.len()) else {
            return Err(Kind::End.at(start));
        };
        let text = || std::str::from_utf8(&self.slice[from..to]).map_err(|_| Kind::Utf8.at(start));
        let token = match end {
            b'"' => Token::String(text()?),
            b'\'' => Token::Symbol(text()?),
            b':' => Token::Bytes(self.bytes.slice(from..to)),
            _ => return Err(self.error(Kind::Byte)),
        };
        self.offset = to;
        Ok(token)
    }

    /// Passes over one value and returns its bytes as they are.
    pub fn raw(&mut self) -> Result<Bytes, SyrupError> {
        self.peek()?;
        let start = self.offset;
        let mut depth = 0_usize;
        loop {
            match self.token()? {
                Token::List | Token::Dict | Token::Record => depth += 1,
                Token::End => {
                    depth = depth.checked_sub(1).ok_or_else(|| Kind::Byte.at(start))?;
                }
                _ => {}
            }
            if depth == 0 {
                return Ok(self.bytes.slice(start..self.offset));
            }
        }
    }

    /// Reads the end of a container.
    pub fn end(&mut self) -> Result<(), SyrupError> {
        self.want(|token| matches!(token, Token::End).then_some(()))
    }

    /// Returns whether the end of a container is next; then reads it.
    pub fn at_end(&mut self) -> Result<bool, SyrupError> {
        let end = matches!(self.peek()?, b']' | b'}' | b'>' | b'$');
        if end {
            self.end()?;
        }
        Ok(end)
    }

    /// Reads the start of a list.
    pub fn list(&mut self) -> Result<(), SyrupError> {
        self.want(|token| matches!(token, Token::List).then_some(()))
    }

    /// Reads the start of a record and its label, which must be a symbol.
    pub fn record(&mut self) -> Result<&'a str, SyrupError> {
        self.want(|token| matches!(token, Token::Record).then_some(()))?;
        self.symbol()
    }

    /// Reads the start of a record with this label.
    pub fn record_of(&mut self, label: &str) -> Result<(), SyrupError> {
        let start = self.offset;
        if self.record()? == label {
            Ok(())
        } else {
            Err(Kind::Kind.at(start))
        }
    }

    /// Reads a symbol.
    pub fn symbol(&mut self) -> Result<&'a str, SyrupError> {
        if let Some(text) = self.short_text(b'\'') {
            return Ok(text);
        }
        self.want(|token| match token {
            Token::Symbol(text) => Some(text),
            _ => None,
        })
    }

    /// Reads a string.
    pub fn string(&mut self) -> Result<&'a str, SyrupError> {
        if let Some(text) = self.short_text(b'"') {
            return Ok(text);
        }
        self.want(|token| match token {
            Token::String(text) => Some(text),
            _ => None,
        })
    }

    /// Reads a byte array.
    pub fn bytes(&mut self) -> Result<Bytes, SyrupError> {
        self.want(|token| match token {
            Token::Bytes(bytes) => Some(bytes),
            _ => None,
        })
    }

    /// Reads an integer from 0 that fits 64 bits.
    pub fn unsigned(&mut self) -> Result<u64, SyrupError> {
        let start = self.offset;
        if let Some((value, b'+')) = self.short_number() {
            return Ok(value);
        }
        self.offset = start;
        self.want(|token| match token {
            Token::Int(n) => n.to_u64(),
            _ => None,
        })
    }

    /// Reads `f`, or nothing if something else is next.
    pub fn is_false(&mut self) -> Result<bool, SyrupError> {
        let is_false = self.peek()? == b'f';
        if is_false {
            self.offset += 1;
        }
        Ok(is_false)
    }

    /// Returns whether a string is next.
    pub(crate) fn is_string_next(&mut self) -> bool {
        let at = self.offset;
        let is_string = self.string().is_ok();
        self.offset = at;
        is_string
    }

    fn want<T>(&mut self, accept: impl FnOnce(Token<'a>) -> Option<T>) -> Result<T, SyrupError> {
        let start = self.offset;
        match self.token() {
            Ok(token) => accept(token).ok_or_else(|| Kind::Kind.at(start)),
            Err(error) => Err(error),
        }
    }
}
