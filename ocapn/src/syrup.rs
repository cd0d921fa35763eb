//! Syrup, the encoding of OCapN messages: canonical when written, streaming when read.
//!
//! Reading goes in two steps. [`Scanner`] finds where a value ends, whatever pieces its bytes
//! arrive in, and enforces the limits; [`Reader`] then walks the whole value. Neither recurses,
//! and neither allocates more than the input is long.

mod read;
mod scan;
mod value;
mod write;

pub use read::{Reader, Token};
pub use scan::Scanner;
pub use value::{DECODE_DEPTH_MAX, ENCODE_DEPTH_MAX, decode, encode};
pub(crate) use value::{Describe, Orders, Refer, read_value, write_value};
pub use write::Writer;

/// What one value may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the encoding.
    pub size_max: usize,
    /// Containers inside each other.
    pub depth_max: usize,
    /// Values inside, counting containers, keys and labels.
    pub values_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            size_max: 16 << 20,
            depth_max: 64,
            values_max: 1_000_000,
        }
    }
}

/// Digits of one integer: reading decimals costs the square of their number.
pub const INTEGER_DIGITS_MAX: usize = 4_096;

/// How exact the input must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Only the canonical encoding.
    #[default]
    Strict,
    /// What peers really send: unsorted and repeated keys (the last counts), leading zeros,
    /// `0-`, any NaN, 32-bit floats, sets (as lists), and white space between tokens.
    Lenient,
}

/// Why bytes are no Syrup, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} at byte {offset}")]
pub struct SyrupError {
    /// Bytes before the place, from the start of the value.
    pub offset: usize,
    /// What is wrong there.
    pub kind: SyrupErrorKind,
}

/// What can be wrong in Syrup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyrupErrorKind {
    /// The value is not complete.
    #[error("unexpected end")]
    End,
    /// There are bytes after the value.
    #[error("bytes after the value")]
    Trailing,
    /// A byte that starts or ends nothing here.
    #[error("unexpected byte")]
    Byte,
    /// A number with too many digits.
    #[error("number too long")]
    Number,
    /// A longer value than the limit.
    #[error("value too large")]
    Size,
    /// More containers inside each other than the limit.
    #[error("nested too deeply")]
    Depth,
    /// More values than the limit.
    #[error("too many values")]
    Count,
    /// Text that is not UTF-8.
    #[error("text that is not UTF-8")]
    Utf8,
    /// Right, but not the canonical form.
    #[error("not canonical")]
    Canonical,
    /// A value of another kind than is wanted here.
    #[error("a value of another kind")]
    Kind,
}

impl SyrupErrorKind {
    pub(crate) fn at(self, offset: usize) -> SyrupError {
        SyrupError { offset, kind: self }
    }
}
