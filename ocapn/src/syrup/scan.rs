//! Finding the end of a value in bytes that arrive in pieces.

use super::{INTEGER_DIGITS_MAX, Limits, Mode, SyrupError, SyrupErrorKind as Kind};

/// Finds where a value ends, and refuses one beyond the limits as early as that is known.
///
/// The caller keeps the bytes; the scanner remembers how far it has looked.
#[derive(Debug)]
pub struct Scanner {
    limits: Limits,
    mode: Mode,
    offset: usize,
    values: usize,
    open: Nest,
    /// Set inside a number: where it started.
    number: Option<Number>,
}

#[derive(Clone, Copy, Debug)]
struct Number {
    start: usize,
    value: usize,
}

/// The open containers, by what closes them. Two bits each, so that the usual ones need no
/// allocation.
#[derive(Debug, Default)]
struct Nest {
    depth: usize,
    /// The innermost ones, the last in the lowest bits.
    inner: u128,
    /// Those around them, 64 in each.
    outer: Vec<u128>,
}

/// What closes a container, by its number in a [`Nest`].
const CLOSERS: [u8; 4] = *b"]}>$";

impl Nest {
    fn push(&mut self, closer: u8) {
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.outer.push(self.inner);
        }
        self.inner = self.inner << 2 | u128::from(closer);
        self.depth += 1;
    }

    fn last(&self) -> Option<u8> {
        (self.depth > 0).then(|| CLOSERS[(self.inner & 3) as usize])
    }

    fn pop(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        self.inner >>= 2;
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.inner = self.outer.pop().unwrap_or_default();
        }
    }
}

impl Scanner {
    /// Returns a scanner at the start of a value.
    pub fn new(limits: Limits, mode: Mode) -> Self {
        Self {
            limits,
            mode,
            offset: 0,
            values: 0,
            open: Nest::default(),
            number: None,
        }
    }

    /// Looks at `bytes`, which start with the value and hold all that was given before, and
    /// returns its length once the end is there. Then the scanner is at the start of the next.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Option<usize>, SyrupError> {
        loop {
            if self.offset > self.limits.size_max {
                return Err(Kind::Size.at(self.limits.size_max));
            }
            let Some(&byte) = bytes.get(self.offset) else {
                return Ok(None);
            };
            let at = self.offset;
            if let Some(number) = self.number {
                match byte {
                    b'0'..=b'9' => {
                        if at - number.start >= INTEGER_DIGITS_MAX {
                            return Err(Kind::Number.at(number.start));
                        }
                        let digit = usize::from(byte - b'0');
                        let value = number.value.saturating_mul(10).saturating_add(digit);
                        self.number = Some(Number { value, ..number });
                        self.offset += 1;
                        continue;
                    }
                    b'+' | b'-' => self.offset += 1,
                    b'"' | b'\'' | b':' => {
                        if number.value > self.limits.size_max {
                            return Err(Kind::Size.at(number.start));
                        }
                        let end = (at + 1).saturating_add(number.value);
                        if end > self.limits.size_max {
                            return Err(Kind::Size.at(self.limits.size_max));
                        }
                        if end > bytes.len() {
                            return Ok(None);
                        }
                        self.offset = end;
                    }
                    _ => return Err(Kind::Byte.at(at)),
                }
                self.number = None;
            } else {
                match byte {
                    b'0'..=b'9' => {
                        self.count(at)?;
                        self.number = Some(Number {
                            start: at,
                            value: 0,
                        });
                        continue;
                    }
                    b't' | b'f' => {
                        self.count(at)?;
                        self.offset += 1;
                    }
                    b'D' | b'F' => {
                        let end = at + if byte == b'D' { 9 } else { 5 };
                        if byte == b'F' && self.mode == Mode::Strict {
                            return Err(Kind::Canonical.at(at));
                        }
                        if end > self.limits.size_max {
                            return Err(Kind::Size.at(self.limits.size_max));
                        }
                        if end > bytes.len() {
                            return Ok(None);
                        }
                        self.count(at)?;
                        self.offset = end;
                    }
                    b'[' | b'{' | b'<' | b'#' => {
                        if byte == b'#' && self.mode == Mode::Strict {
                            return Err(Kind::Canonical.at(at));
                        }
                        self.count(at)?;
                        if self.open.depth >= self.limits.depth_max {
                            return Err(Kind::Depth.at(at));
                        }
                        self.open.push(match byte {
                            b'[' => 0,
                            b'{' => 1,
                            b'<' => 2,
                            _ => 3,
                        });
                        self.offset += 1;
                        continue;
                    }
                    b' ' | b'\t' | b'\r' | b'\n' if self.mode == Mode::Lenient => {
                        self.offset += 1;
                        continue;
                    }
                    _ if self.open.last() == Some(byte) => {
                        self.open.pop();
                        self.offset += 1;
                    }
                    _ => return Err(Kind::Byte.at(at)),
                }
            }
            if self.open.depth == 0 {
                let length = self.offset;
                (self.offset, self.values) = (0, 0);
                if length > self.limits.size_max {
                    return Err(Kind::Size.at(self.limits.size_max));
                }
                return Ok(Some(length));
            }
        }
    }

    fn count(&mut self, at: usize) -> Result<(), SyrupError> {
        self.values += 1;
        if self.values > self.limits.values_max {
            return Err(Kind::Count.at(at));
        }
        Ok(())
    }
}
