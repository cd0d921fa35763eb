//! Types of values, as the language writes them.

use std::collections::BTreeMap;
use std::fmt;

/// A type constraint, and the type of a value that is not known yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Type {
    /// Any type at all; of an unknown value: its type is not known either.
    Any,
    /// Text in NFC.
    String,
    /// A decimal number.
    Number,
    /// `true` or `false`.
    Bool,
    /// An ordered collection of one element type.
    List(Box<Self>),
    /// An unordered collection without duplicates.
    Set(Box<Self>),
    /// Text keys to values of one type.
    Map(Box<Self>),
    /// Named attributes, each with its own type.
    Object(BTreeMap<String, ObjectField>),
    /// A fixed sequence, each element with its own type.
    Tuple(Vec<Self>),
    /// A reference to a machine.
    Machine,
    /// A reference to a service.
    Service,
    /// A reference to a binding.
    Binding,
}

/// One attribute of an object type.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct ObjectField {
    /// The attribute's type.
    pub ty: Type,
    /// Whether `optional(…)` was written around it.
    pub optional: bool,
    /// The default of `optional(type, default)`, in the value encoding of this crate.
    pub default: Option<crate::Value>,
}

impl Type {
    /// Returns a list type.
    pub fn list(of: Self) -> Self {
        Self::List(Box::new(of))
    }

    /// Returns a set type.
    pub fn set(of: Self) -> Self {
        Self::Set(Box::new(of))
    }

    /// Returns a map type.
    pub fn map(of: Self) -> Self {
        Self::Map(Box::new(of))
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::String => f.write_str("string"),
            Self::Number => f.write_str("number"),
            Self::Bool => f.write_str("bool"),
            Self::Machine => f.write_str("machine"),
            Self::Service => f.write_str("service"),
            Self::Binding => f.write_str("binding"),
            Self::List(of) => write!(f, "list({of})"),
            Self::Set(of) => write!(f, "set({of})"),
            Self::Map(of) => write!(f, "map({of})"),
            Self::Object(fields) => {
                f.write_str("object({")?;
                for (at, (name, field)) in fields.iter().enumerate() {
                    let comma = if at == 0 { "" } else { ", " };
                    if field.optional {
                        write!(f, "{comma}{name} = optional({})", field.ty)?;
                    } else {
                        write!(f, "{comma}{name} = {}", field.ty)?;
                    }
                }
                f.write_str("})")
            }
            Self::Tuple(types) => {
                f.write_str("tuple([")?;
                for (at, ty) in types.iter().enumerate() {
                    write!(f, "{}{ty}", if at == 0 { "" } else { ", " })?;
                }
                f.write_str("])")
            }
        }
    }
}
