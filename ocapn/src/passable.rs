//! The data model: every value that an OCapN message can carry.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use num_bigint::BigInt;

use crate::captp::promise::{Promise, Reference};
use crate::locator::Sturdyref;

/// A value that can be passed in a message.
///
/// Equality is by structure; references are equal when they are the same object, and floats are
/// equal when their bits are.
#[derive(Clone)]
pub enum Passable {
    /// The absence of a value.
    Undefined,
    /// The null value.
    Null,
    /// A truth value.
    Bool(bool),
    /// An integer of any size.
    Int(Integer),
    /// An IEEE 754 double.
    Float64(f64),
    /// Text.
    String(String),
    /// A name, such as that of a method.
    Symbol(Symbol),
    /// Bytes.
    Bytes(Bytes),
    /// Values in order.
    List(Vec<Self>),
    /// Values by text keys.
    Struct(Struct),
    /// A value with a label.
    Tagged(Box<Tagged>),
    /// An error as a value.
    Error(Box<ErrorValue>),
    /// The durable name of an object.
    Sturdyref(Box<Sturdyref>),
    /// A live object or promise.
    Reference(Reference),
    /// A record this crate does not know, kept as it came.
    Opaque(Opaque),
}

/// A labelled value.
#[derive(Clone, Debug, PartialEq)]
pub struct Tagged {
    /// The label.
    pub tag: Symbol,
    /// The value.
    pub value: Passable,
}

/// An error as a value. What a break carries may be any value; see [`crate::Broken`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorValue {
    /// The text, possibly empty.
    pub message: String,
}

/// A record with a label that has no meaning here.
///
/// Invariant: the label is the first value, so there is one.
#[derive(Clone, PartialEq)]
pub struct Opaque(Vec<Passable>);

impl Opaque {
    /// Returns a record with this label, usually a symbol, and these fields.
    pub fn new(label: impl Into<Passable>, fields: impl IntoIterator<Item = Passable>) -> Self {
        Self(std::iter::once(label.into()).chain(fields).collect())
    }

    /// Returns the record of a label and its fields; `None` without a label.
    pub(crate) fn of(values: Vec<Passable>) -> Option<Self> {
        (!values.is_empty()).then_some(Self(values))
    }

    /// Returns the label.
    pub fn label(&self) -> &Passable {
        &self.0[0]
    }

    /// Returns the fields in order.
    pub fn fields(&self) -> &[Passable] {
        &self.0[1..]
    }

    /// Returns the label and after it the fields.
    pub(crate) fn values(&self) -> &[Passable] {
        &self.0
    }

    /// Returns the label and after it the fields.
    pub(crate) fn into_values(self) -> Vec<Passable> {
        self.0
    }
}

impl fmt::Debug for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opaque")
            .field("label", self.label())
            .field("fields", &self.fields())
            .finish()
    }
}

/// A name: compared by text, cheap to clone.
#[derive(Clone)]
pub struct Symbol(Text);

#[derive(Clone)]
enum Text {
    Known(&'static str),
    Shared(Arc<str>),
}

/// Defines the names that need no allocation: those that nearly every message has.
macro_rules! known_names {
    ($($name:literal)*) => {
        fn known_name(text: &str) -> Option<&'static str> {
            Some(match text {
                $($name => $name,)*
                _ => return None,
            })
        }
    };
}

known_names! {
    "op:deliver" "op:listen" "desc:export" "desc:answer" "desc:import-object"
    "desc:import-promise" "desc:sig-envelope" "fulfill" "break" "fetch" "deposit-gift"
    "withdraw-gift" "void" "null" "desc:tagged" "desc:error"
}

impl Symbol {
    /// Returns the symbol with this text.
    pub fn new(text: &str) -> Self {
        Self(match known_name(text) {
            Some(name) => Text::Known(name),
            None => Text::Shared(text.into()),
        })
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Text::Known(text) => text,
            Text::Shared(text) => text,
        }
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        match &self.0 {
            Text::Known(_) => 0,
            Text::Shared(text) => text.len(),
        }
    }
}

impl PartialEq for Symbol {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Symbol {}

impl Hash for Symbol {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl PartialOrd for Symbol {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Symbol {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl fmt::Debug for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}", self.as_str())
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An integer of any size, without an allocation when it fits 64 bits.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Integer(Size);

/// Invariant: `Big` holds only what `Small` cannot.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Size {
    Small(i64),
    Big(Box<BigInt>),
}

impl Integer {
    /// Returns the value if it fits an `i64`.
    pub fn to_i64(&self) -> Option<i64> {
        match &self.0 {
            Size::Small(n) => Some(*n),
            Size::Big(_) => None,
        }
    }

    /// Returns the value if it fits a `u64`.
    pub fn to_u64(&self) -> Option<u64> {
        match &self.0 {
            Size::Small(n) => u64::try_from(*n).ok(),
            Size::Big(n) => u64::try_from(&**n).ok(),
        }
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        match &self.0 {
            Size::Small(_) => 0,
            Size::Big(n) => size_of::<BigInt>() + n.bits() as usize / 8,
        }
    }

    /// Returns the value as a big integer.
    pub fn to_big(&self) -> BigInt {
        match &self.0 {
            Size::Small(n) => BigInt::from(*n),
            Size::Big(n) => (**n).clone(),
        }
    }
}

impl From<BigInt> for Integer {
    fn from(n: BigInt) -> Self {
        match i64::try_from(&n) {
            Ok(small) => Self(Size::Small(small)),
            Err(_) => Self(Size::Big(Box::new(n))),
        }
    }
}

impl From<i64> for Integer {
    fn from(n: i64) -> Self {
        Self(Size::Small(n))
    }
}

impl From<u64> for Integer {
    fn from(n: u64) -> Self {
        match i64::try_from(n) {
            Ok(small) => Self(Size::Small(small)),
            Err(_) => Self(Size::Big(Box::new(BigInt::from(n)))),
        }
    }
}

impl fmt::Display for Integer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Size::Small(n) => n.fmt(f),
            Size::Big(n) => n.fmt(f),
        }
    }
}

impl fmt::Debug for Integer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Values by text keys, in the order of their canonical encoding.
#[derive(Clone, Default, PartialEq)]
pub struct Struct(Vec<(String, Passable)>);

impl Struct {
    /// Returns an empty struct.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the value of `key`.
    pub fn get(&self, key: &str) -> Option<&Passable> {
        let at = self.find(key).ok()?;
        Some(&self.0[at].1)
    }

    /// Sets the value of `key` and returns the one it had.
    pub fn insert(
        &mut self,
        key: impl Into<String>,
        value: impl Into<Passable>,
    ) -> Option<Passable> {
        let (key, value) = (key.into(), value.into());
        match self.find(&key) {
            Ok(at) => Some(std::mem::replace(&mut self.0[at].1, value)),
            Err(at) => {
                self.0.insert(at, (key, value));
                None
            }
        }
    }

    /// Sets the value of `key` and returns the struct, for building in one expression.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<Passable>) -> Self {
        self.insert(key, value);
        self
    }

    /// Removes `key` and returns its value.
    pub fn remove(&mut self, key: &str) -> Option<Passable> {
        let at = self.find(key).ok()?;
        Some(self.0.remove(at).1)
    }

    /// Returns the entries in canonical order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Passable)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find(&self, key: &str) -> Result<usize, usize> {
        self.0
            .binary_search_by(|(have, _)| canonical_key_order(have, key))
    }
}

/// Sorts once, so that many entries in the wrong order do not cost a shift each; the last of
/// equal keys wins.
impl FromIterator<(String, Passable)> for Struct {
    fn from_iter<I: IntoIterator<Item = (String, Passable)>>(entries: I) -> Self {
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.reverse();
        entries.sort_by(|(a, _), (b, _)| canonical_key_order(a, b));
        entries.dedup_by(|(later, _), (first, _)| later == first);
        Self(entries)
    }
}

impl IntoIterator for Struct {
    type Item = (String, Passable);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Debug for Struct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Compares two keys as their encodings compare: the digits of the length come first, so
/// `"b"` is before `"aa"`, and ten letters are before two.
pub(crate) fn canonical_key_order(a: &str, b: &str) -> Ordering {
    if a.len() == b.len() {
        return a.as_bytes().cmp(b.as_bytes());
    }
    let (mut one, mut two) = ([0; 20], [0; 20]);
    decimal(a.len() as u64, &mut one).cmp(decimal(b.len() as u64, &mut two))
}

/// Writes `n` in decimal at the end of `room` and returns the digits.
pub(crate) fn decimal(mut n: u64, room: &mut [u8; 20]) -> &[u8] {
    let mut at = room.len();
    loop {
        at -= 1;
        room[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            return &room[at..];
        }
    }
}

impl Passable {
    /// Returns a symbol.
    pub fn symbol(text: &str) -> Self {
        Self::Symbol(Symbol::new(text))
    }

    /// Returns a byte array.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self::Bytes(bytes.into())
    }

    /// Returns the text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the text of a symbol.
    pub fn as_symbol(&self) -> Option<&str> {
        match self {
            Self::Symbol(symbol) => Some(symbol.as_str()),
            _ => None,
        }
    }

    /// Returns an integer that fits 64 bits.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(n) => n.to_i64(),
            _ => None,
        }
    }

    /// Returns a truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// Returns a double.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Float64(x) => Some(*x),
            _ => None,
        }
    }

    /// Returns the bytes of a byte array.
    pub fn as_bytes(&self) -> Option<&Bytes> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Returns the values of a list.
    pub fn as_list(&self) -> Option<&[Self]> {
        match self {
            Self::List(values) => Some(values),
            _ => None,
        }
    }

    /// Returns a struct.
    pub fn as_struct(&self) -> Option<&Struct> {
        match self {
            Self::Struct(entries) => Some(entries),
            _ => None,
        }
    }

    /// Returns a live reference.
    pub fn as_reference(&self) -> Option<&Reference> {
        match self {
            Self::Reference(reference) => Some(reference),
            _ => None,
        }
    }

    /// Returns a sturdyref.
    pub fn as_sturdyref(&self) -> Option<&Sturdyref> {
        match self {
            Self::Sturdyref(sturdyref) => Some(sturdyref),
            _ => None,
        }
    }

    /// Returns what kind of value this is, in a word for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Undefined => "undefined",
            Self::Null => "null",
            Self::Bool(_) => "boolean",
            Self::Int(_) => "integer",
            Self::Float64(_) => "float",
            Self::String(_) => "string",
            Self::Symbol(_) => "symbol",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Struct(_) => "struct",
            Self::Tagged(_) => "tagged value",
            Self::Error(_) => "error",
            Self::Sturdyref(_) => "sturdyref",
            Self::Reference(_) => "reference",
            Self::Opaque(_) => "unknown record",
        }
    }
}

impl PartialEq for Passable {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Undefined, Self::Undefined) | (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Int(a), Self::Int(b)) => a == b,
            (Self::Float64(a), Self::Float64(b)) => a.to_bits() == b.to_bits(),
            (Self::String(a), Self::String(b)) => a == b,
            (Self::Symbol(a), Self::Symbol(b)) => a == b,
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::List(a), Self::List(b)) => a == b,
            (Self::Struct(a), Self::Struct(b)) => a == b,
            (Self::Tagged(a), Self::Tagged(b)) => a == b,
            (Self::Error(a), Self::Error(b)) => a == b,
            (Self::Sturdyref(a), Self::Sturdyref(b)) => a == b,
            (Self::Reference(a), Self::Reference(b)) => a == b,
            (Self::Opaque(a), Self::Opaque(b)) => a == b,
            _ => false,
        }
    }
}

impl fmt::Debug for Passable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undefined => f.write_str("undefined"),
            Self::Null => f.write_str("null"),
            Self::Bool(b) => b.fmt(f),
            Self::Int(n) => n.fmt(f),
            Self::Float64(x) => x.fmt(f),
            Self::String(text) => text.fmt(f),
            Self::Symbol(symbol) => symbol.fmt(f),
            Self::Bytes(bytes) => bytes.fmt(f),
            Self::List(values) => values.fmt(f),
            Self::Struct(entries) => entries.fmt(f),
            Self::Tagged(tagged) => tagged.fmt(f),
            Self::Error(error) => error.fmt(f),
            Self::Sturdyref(sturdyref) => sturdyref.fmt(f),
            Self::Reference(reference) => reference.fmt(f),
            Self::Opaque(opaque) => opaque.fmt(f),
        }
    }
}

/// Implements `From` for the variants that a Rust type maps to.
macro_rules! from {
    ($($from:ty => |$value:ident| $to:expr;)*) => {$(
        impl From<$from> for Passable {
            fn from($value: $from) -> Self {
                $to
            }
        }
    )*};
}

from! {
    bool => |b| Self::Bool(b);
    i32 => |n| Self::Int(i64::from(n).into());
    u16 => |n| Self::Int(i64::from(n).into());
    u32 => |n| Self::Int(i64::from(n).into());
    i64 => |n| Self::Int(n.into());
    u64 => |n| Self::Int(n.into());
    BigInt => |n| Self::Int(n.into());
    Integer => |n| Self::Int(n);
    f64 => |x| Self::Float64(x);
    &str => |text| Self::String(text.to_owned());
    String => |text| Self::String(text);
    Symbol => |symbol| Self::Symbol(symbol);
    Bytes => |bytes| Self::Bytes(bytes);
    Vec<Self> => |values| Self::List(values);
    Struct => |entries| Self::Struct(entries);
    Reference => |reference| Self::Reference(reference);
    &Reference => |reference| Self::Reference(reference.clone());
    Promise => |promise| Self::Reference(promise.into());
    Sturdyref => |sturdyref| Self::Sturdyref(Box::new(sturdyref));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn struct_keys_sort_as_their_encodings() {
        let long = "k".repeat(10);
        let entries: Struct = ["aa", "b", &long, "a", "b"]
            .iter()
            .enumerate()
            .map(|(n, key)| ((*key).to_owned(), Passable::from(n as u64)))
            .collect();
        let keys: Vec<_> = entries.iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["a", "b", &long, "aa"]);
        assert_eq!(
            entries.get("b"),
            Some(&Passable::from(4)),
            "the last of equal keys wins"
        );
        let mut inserted = Struct::new();
        for (key, value) in entries.clone().into_iter().rev() {
            inserted.insert(key, value);
        }
        assert_eq!(inserted, entries);
    }

    #[test]
    fn integers_are_equal_whatever_they_came_from() {
        assert_eq!(Integer::from(BigInt::from(7)), Integer::from(7_i64));
        assert_eq!(
            Integer::from(u64::MAX),
            Integer::from(BigInt::from(u64::MAX))
        );
        assert_eq!(Integer::from(u64::MAX).to_u64(), Some(u64::MAX));
        assert_eq!(Integer::from(-1_i64).to_u64(), None);
    }
}
