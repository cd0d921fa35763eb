//! Writing tokens in the canonical form.

use bytes::BytesMut;

use crate::passable::{Integer, decimal};

/// Writes tokens. Keys must be given in canonical order; [`crate::Struct`] keeps them so.
#[derive(Debug, Default)]
pub struct Writer {
    out: BytesMut,
}

impl Writer {
    /// Returns an empty writer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the number of bytes written and not taken.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Returns whether nothing was written that is not taken.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Takes what was written.
    pub fn take(&mut self) -> BytesMut {
        self.out.split()
    }

    /// Forgets what was written after the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.out.truncate(len);
    }

    /// Writes an encoding as it is.
    pub fn raw(&mut self, encoding: &[u8]) -> &mut Self {
        self.out.extend_from_slice(encoding);
        self
    }

    /// Writes a truth value.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.raw(if value { b"t" } else { b"f" })
    }

    /// Writes an integer from 0.
    pub fn unsigned(&mut self, n: u64) -> &mut Self {
        let mut room = [0; 20];
        self.raw(decimal(n, &mut room)).raw(b"+")
    }

    /// Writes an integer.
    pub fn int(&mut self, n: &Integer) -> &mut Self {
        match n.to_i64() {
            Some(n) => {
                let mut room = [0; 20];
                let sign: &[u8] = if n < 0 { b"-" } else { b"+" };
                self.raw(decimal(n.unsigned_abs(), &mut room)).raw(sign)
            }
            None => {
                let text = n.to_string();
                match text.strip_prefix('-') {
                    Some(digits) => self.raw(digits.as_bytes()).raw(b"-"),
                    None => self.raw(text.as_bytes()).raw(b"+"),
                }
            }
        }
    }

    /// Writes a double; every NaN as the canonical one.
    pub fn float(&mut self, value: f64) -> &mut Self {
        let value = if value.is_nan() { f64::NAN } else { value };
        self.raw(b"D").raw(&value.to_be_bytes())
    }

    /// Writes a string.
    pub fn string(&mut self, text: &str) -> &mut Self {
        self.atom(b'"', text.as_bytes())
    }

    /// Writes a symbol.
    pub fn symbol(&mut self, text: &str) -> &mut Self {
        self.atom(b'\'', text.as_bytes())
    }

    /// Writes a byte array.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.atom(b':', bytes)
    }

    fn atom(&mut self, mark: u8, body: &[u8]) -> &mut Self {
        let mut room = [0; 20];
        let digits = decimal(body.len() as u64, &mut room);
        self.out.reserve(digits.len() + 1 + body.len());
        self.raw(digits).raw(&[mark]).raw(body)
    }

    /// Starts a list.
    pub fn list(&mut self) -> &mut Self {
        self.raw(b"[")
    }

    /// Ends a list.
    pub fn end_list(&mut self) -> &mut Self {
        self.raw(b"]")
    }

    /// Starts a dictionary.
    pub fn dict(&mut self) -> &mut Self {
        self.raw(b"{")
    }

    /// Ends a dictionary.
    pub fn end_dict(&mut self) -> &mut Self {
        self.raw(b"}")
    }

    /// Starts a record with a symbol as its label.
    pub fn record(&mut self, label: &str) -> &mut Self {
        self.raw(b"<").symbol(label)
    }

    /// Ends a record.
    pub fn end_record(&mut self) -> &mut Self {
        self.raw(b">")
    }
}
