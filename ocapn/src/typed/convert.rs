//! Conversions between Rust types and passable values.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use num_bigint::BigInt;

use crate::captp::broken::Broken;
use crate::captp::promise::{Promise, Reference};
use crate::locator::Sturdyref;
use crate::passable::{Integer, Passable, Struct, Symbol, Tagged};

/// A value is not of the type that was wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongType {
    /// Where in the value or the arguments, from the outside in; empty for the whole.
    path: Vec<String>,
    wanted: &'static str,
    found: &'static str,
}

impl WrongType {
    /// Returns the error for a value that is something else than was wanted. Only the kind of the
    /// value is kept: the value itself may be secret.
    pub fn new(wanted: &'static str, found: &Passable) -> Self {
        Self {
            path: Vec::new(),
            wanted,
            found: found.kind(),
        }
    }

    /// Returns the error as seen from one step further outside.
    #[must_use]
    pub fn within(mut self, step: impl Into<String>) -> Self {
        self.path.insert(0, step.into());
        self
    }
}

impl fmt::Display for WrongType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path.join(", "))?;
        }
        write!(f, "wanted {}, found {}", self.wanted, self.found)
    }
}

impl std::error::Error for WrongType {}

impl From<WrongType> for Broken {
    fn from(wrong: WrongType) -> Self {
        Self::new("wrong-type", wrong.to_string())
    }
}

/// A type that can be passed in messages.
pub trait IntoPassable {
    /// Returns the value as it is passed.
    fn into_passable(self) -> Passable;
}

/// A type that can be read from what was passed.
pub trait FromPassable: Sized {
    /// Reads the value.
    ///
    /// # Errors
    /// When it is of another type or out of range.
    fn from_passable(value: Passable) -> Result<Self, WrongType>;
}

/// The arguments of a call: a tuple of up to eight passable types, or a list of values.
pub trait IntoArgs {
    /// Returns the arguments in order.
    fn into_args(self) -> Vec<Passable>;
}

/// What a method takes: a tuple of up to eight types, or the list of values itself.
///
/// Too few arguments are an error unless the missing ones are optional; too many are one always,
/// since what a caller says must not be ignored.
pub trait FromArgs: Sized {
    /// Reads the arguments.
    ///
    /// # Errors
    /// When their number or a type is wrong.
    fn from_args(args: Vec<Passable>) -> Result<Self, WrongType>;
}

impl IntoPassable for Passable {
    fn into_passable(self) -> Passable {
        self
    }
}

impl FromPassable for Passable {
    fn from_passable(value: Passable) -> Result<Self, WrongType> {
        Ok(value)
    }
}

/// Implements the way out for what has a `From` already.
macro_rules! out {
    ($($from:ty),*) => {$(
        impl IntoPassable for $from {
            fn into_passable(self) -> Passable {
                Passable::from(self)
            }
        }
    )*};
}

out!(
    bool, i32, u16, u32, i64, u64, BigInt, Integer, f64, &str, String, Symbol, Bytes, Struct,
    Reference, &Reference, Promise, Sturdyref
);

impl IntoPassable for usize {
    fn into_passable(self) -> Passable {
        Passable::from(self as u64)
    }
}

impl IntoPassable for () {
    fn into_passable(self) -> Passable {
        Passable::Undefined
    }
}

impl IntoPassable for Tagged {
    fn into_passable(self) -> Passable {
        Passable::Tagged(Box::new(self))
    }
}

/// Nothing is passed as null.
impl<T: IntoPassable> IntoPassable for Option<T> {
    fn into_passable(self) -> Passable {
        self.map_or(Passable::Null, IntoPassable::into_passable)
    }
}

impl<T: IntoPassable> IntoPassable for Vec<T> {
    fn into_passable(self) -> Passable {
        Passable::List(self.into_iter().map(IntoPassable::into_passable).collect())
    }
}

impl<T: IntoPassable> IntoPassable for BTreeMap<String, T> {
    fn into_passable(self) -> Passable {
        let entries = self.into_iter();
        Passable::Struct(
            entries
                .map(|(key, value)| (key, value.into_passable()))
                .collect(),
        )
    }
}

/// Implements the way in for one variant.
macro_rules! of_variant {
    ($($to:ty, $wanted:literal, $pattern:pat => $value:expr;)*) => {$(
        impl FromPassable for $to {
            fn from_passable(value: Passable) -> Result<Self, WrongType> {
                match value {
                    $pattern => Ok($value),
                    other => Err(WrongType::new($wanted, &other)),
                }
            }
        }
    )*};
}

of_variant! {
    bool, "boolean", Passable::Bool(b) => b;
    f64, "float", Passable::Float64(x) => x;
    String, "string", Passable::String(text) => text;
    Symbol, "symbol", Passable::Symbol(symbol) => symbol;
    Bytes, "bytes", Passable::Bytes(bytes) => bytes;
    Struct, "struct", Passable::Struct(entries) => entries;
    Tagged, "tagged value", Passable::Tagged(tagged) => *tagged;
    Integer, "integer", Passable::Int(n) => n;
    BigInt, "integer", Passable::Int(n) => n.to_big();
    Reference, "reference", Passable::Reference(reference) => reference;
    Promise, "reference", Passable::Reference(reference) => reference.resolution();
    Sturdyref, "sturdyref", Passable::Sturdyref(sturdyref) => *sturdyref;
    (), "nothing", Passable::Undefined | Passable::Null => ();
}

/// Implements the way in for integers of limited size.
macro_rules! of_integer {
    ($($to:ty, $wanted:literal, $wide:ident;)*) => {$(
        impl FromPassable for $to {
            fn from_passable(value: Passable) -> Result<Self, WrongType> {
                let wide = match &value {
                    Passable::Int(n) => n.$wide(),
                    _ => None,
                };
                wide.and_then(|n| n.try_into().ok())
                    .ok_or_else(|| WrongType::new($wanted, &value))
            }
        }
    )*};
}

of_integer! {
    i32, "integer of 32 bits", to_i64;
    i64, "integer of 64 bits", to_i64;
    u16, "integer from 0 of 16 bits", to_u64;
    u32, "integer from 0 of 32 bits", to_u64;
    u64, "integer from 0 of 64 bits", to_u64;
    usize, "integer from 0 of 64 bits", to_u64;
}

/// Null and undefined are nothing.
impl<T: FromPassable> FromPassable for Option<T> {
    fn from_passable(value: Passable) -> Result<Self, WrongType> {
        match value {
            Passable::Null | Passable::Undefined => Ok(None),
            value => T::from_passable(value).map(Some),
        }
    }
}

impl<T: FromPassable> FromPassable for Vec<T> {
    fn from_passable(value: Passable) -> Result<Self, WrongType> {
        let values = list(value)?.into_iter().enumerate();
        values.map(|(n, value)| item(n, value)).collect()
    }
}

impl<T: FromPassable> FromPassable for BTreeMap<String, T> {
    fn from_passable(value: Passable) -> Result<Self, WrongType> {
        let entries = Struct::from_passable(value)?.into_iter();
        entries
            .map(|(key, value)| match T::from_passable(value) {
                Ok(value) => Ok((key, value)),
                Err(wrong) => Err(wrong.within(format!("field {key:?}"))),
            })
            .collect()
    }
}

fn list(value: Passable) -> Result<Vec<Passable>, WrongType> {
    match value {
        Passable::List(values) => Ok(values),
        other => Err(WrongType::new("list", &other)),
    }
}

fn item<T: FromPassable>(n: usize, value: Passable) -> Result<T, WrongType> {
    T::from_passable(value).map_err(|wrong| wrong.within(format!("item {}", n + 1)))
}

impl IntoArgs for Vec<Passable> {
    fn into_args(self) -> Vec<Passable> {
        self
    }
}

impl<const N: usize> IntoArgs for [Passable; N] {
    fn into_args(self) -> Vec<Passable> {
        self.into()
    }
}

impl FromArgs for Vec<Passable> {
    fn from_args(args: Vec<Passable>) -> Result<Self, WrongType> {
        Ok(args)
    }
}

impl IntoArgs for () {
    fn into_args(self) -> Vec<Passable> {
        Vec::new()
    }
}

impl FromArgs for () {
    fn from_args(args: Vec<Passable>) -> Result<Self, WrongType> {
        no_more(args.into_iter(), "no arguments")
    }
}

fn no_more(
    mut rest: impl Iterator<Item = Passable>,
    wanted: &'static str,
) -> Result<(), WrongType> {
    match rest.next() {
        None => Ok(()),
        Some(extra) => Err(WrongType::new(wanted, &extra)),
    }
}

/// Implements lists of known length for tuples, and argument lists.
macro_rules! of_tuple {
    ($($length:literal: $($part:ident)*;)*) => {$(
        impl<$($part: IntoPassable),*> IntoArgs for ($($part,)*) {
            fn into_args(self) -> Vec<Passable> {
                #[expect(non_snake_case, reason = "the values are named for their types")]
                let ($($part,)*) = self;
                vec![$($part.into_passable()),*]
            }
        }

        impl<$($part: FromPassable),*> FromArgs for ($($part,)*) {
            fn from_args(args: Vec<Passable>) -> Result<Self, WrongType> {
                let mut args = args.into_iter();
                let mut number = 0;
                let read = ($({
                    number += 1;
                    let arg = args.next().unwrap_or(Passable::Undefined);
                    $part::from_passable(arg)
                        .map_err(|wrong| wrong.within(format!("argument {number}")))?
                },)*);
                no_more(args, concat!("at most ", $length, " arguments"))?;
                Ok(read)
            }
        }

        impl<$($part: IntoPassable),*> IntoPassable for ($($part,)*) {
            fn into_passable(self) -> Passable {
                Passable::List(self.into_args())
            }
        }

        impl<$($part: FromPassable),*> FromPassable for ($($part,)*) {
            fn from_passable(value: Passable) -> Result<Self, WrongType> {
                let values = list(value)?;
                if values.len() != $length {
                    let found = Passable::List(values);
                    return Err(WrongType::new(concat!("list of ", $length), &found));
                }
                let mut values = values.into_iter().enumerate();
                Ok(($({
                    let (n, value) = values.next().unwrap_or((0, Passable::Undefined));
                    item::<$part>(n, value)?
                },)*))
            }
        }
    )*};
}

of_tuple! {
    1: A;
    2: A B;
    3: A B C;
    4: A B C D;
    5: A B C D E;
    6: A B C D E F;
    7: A B C D E F G;
    8: A B C D E F G H;
}
