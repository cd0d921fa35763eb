//! Values: what an expression yields, and what a provider or a row holds.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::{Address, Number, Path, Type};

/// What an expression yields: a kind, and whether it must not be shown.
///
/// Equality compares marks too; [`Value::same`] compares contents alone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Value {
    /// The content.
    pub kind: Kind,
    /// Whether this value, and so everything in it, is never to be printed or stored in clear.
    pub sensitive: bool,
}

/// The content of a value. Collections are shared, so that cloning is cheap.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Known after apply; the type is what is known about it now.
    Unknown(Type),
    /// Absent.
    Null,
    /// A boolean.
    Bool(bool),
    /// A number.
    Number(Number),
    /// Text in NFC.
    String(Arc<str>),
    /// Elements of one type, in order.
    List(Arc<Vec<Value>>),
    /// Elements of one type, sorted by [`Value::set_order`] and without duplicates.
    Set(Arc<Vec<Value>>),
    /// Elements of any types, in order.
    Tuple(Arc<Vec<Value>>),
    /// Text keys to values of one type.
    Map(Arc<BTreeMap<Arc<str>, Value>>),
    /// Named attributes.
    Object(Arc<BTreeMap<Arc<str>, Value>>),
    /// A machine, service or binding: it keeps its identity even while all its attributes are
    /// unknown.
    Ref(Arc<Address>),
}

/// A value with nothing unknown in it, at any depth.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Known(Value);

/// Where a value that should be known is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the value{}{} is not known yet", if .0.0.is_empty() { "" } else { " at " }, .0)]
pub struct UnknownAt(pub Path);

impl Value {
    /// The absent value.
    pub const NULL: Self = Self {
        kind: Kind::Null,
        sensitive: false,
    };

    /// Returns a value that becomes known at apply.
    pub fn unknown(ty: Type) -> Self {
        Kind::Unknown(ty).into()
    }

    /// Returns a list.
    pub fn list(elements: impl IntoIterator<Item = Self>) -> Self {
        Kind::List(Arc::new(elements.into_iter().collect())).into()
    }

    /// Returns a tuple.
    pub fn tuple(elements: impl IntoIterator<Item = Self>) -> Self {
        Kind::Tuple(Arc::new(elements.into_iter().collect())).into()
    }

    /// Returns a set: sorted and without duplicates.
    pub fn set(elements: impl IntoIterator<Item = Self>) -> Self {
        let mut elements: Vec<Self> = elements.into_iter().collect();
        elements.sort_by(Self::set_order);
        elements.dedup_by(|a, b| a.same(b));
        Kind::Set(Arc::new(elements)).into()
    }

    /// Returns a map.
    pub fn map<K: Into<Arc<str>>>(entries: impl IntoIterator<Item = (K, Self)>) -> Self {
        Kind::Map(Arc::new(
            entries.into_iter().map(|(k, v)| (k.into(), v)).collect(),
        ))
        .into()
    }

    /// Returns an object.
    pub fn object<K: Into<Arc<str>>>(entries: impl IntoIterator<Item = (K, Self)>) -> Self {
        Kind::Object(Arc::new(
            entries.into_iter().map(|(k, v)| (k.into(), v)).collect(),
        ))
        .into()
    }

    /// Returns this value, marked so that it is never printed or stored in clear.
    #[must_use]
    pub fn sensitive(mut self) -> Self {
        self.sensitive = true;
        self
    }

    /// Returns this value, marked where `sensitive` says so; a mark is never taken away.
    #[must_use]
    pub fn sensitive_if(mut self, sensitive: bool) -> Self {
        self.sensitive |= sensitive;
        self
    }

    /// Returns whether this is `null`.
    pub fn is_null(&self) -> bool {
        matches!(self.kind, Kind::Null)
    }

    /// Returns whether this value itself (not something in it) is unknown.
    pub fn is_unknown(&self) -> bool {
        matches!(self.kind, Kind::Unknown(_))
    }

    /// Returns the text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match &self.kind {
            Kind::String(text) => Some(text),
            _ => None,
        }
    }

    /// Returns a boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match self.kind {
            Kind::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// Returns a number.
    pub fn as_number(&self) -> Option<&Number> {
        match &self.kind {
            Kind::Number(value) => Some(value),
            _ => None,
        }
    }

    /// Returns an integer that fits.
    pub fn as_i64(&self) -> Option<i64> {
        self.as_number().and_then(Number::to_i64)
    }

    /// Returns the elements of a list, set or tuple.
    pub fn as_elements(&self) -> Option<&[Self]> {
        match &self.kind {
            Kind::List(elements) | Kind::Set(elements) | Kind::Tuple(elements) => Some(elements),
            _ => None,
        }
    }

    /// Returns the entries of a map or object.
    pub fn as_entries(&self) -> Option<&BTreeMap<Arc<str>, Self>> {
        match &self.kind {
            Kind::Map(entries) | Kind::Object(entries) => Some(entries),
            _ => None,
        }
    }

    /// Returns the address that a reference names.
    pub fn as_ref_address(&self) -> Option<&Address> {
        match &self.kind {
            Kind::Ref(address) => Some(address),
            _ => None,
        }
    }

    /// Returns an entry of a map or object.
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.as_entries().and_then(|entries| entries.get(key))
    }

    /// Returns whether the contents are equal, whatever the marks.
    pub fn same(&self, other: &Self) -> bool {
        match (&self.kind, &other.kind) {
            (Kind::List(a), Kind::List(b))
            | (Kind::Set(a), Kind::Set(b))
            | (Kind::Tuple(a), Kind::Tuple(b)) => {
                Arc::ptr_eq(a, b)
                    || a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.same(b))
            }
            (Kind::Map(a), Kind::Map(b)) | (Kind::Object(a), Kind::Object(b)) => {
                Arc::ptr_eq(a, b)
                    || a.len() == b.len()
                        && a.iter()
                            .zip(b.iter())
                            .all(|((j, a), (k, b))| j == k && a.same(b))
            }
            (a, b) => a == b,
        }
    }

    /// Returns whether something in this value, or the value itself, is sensitive.
    pub fn contains_sensitive(&self) -> bool {
        self.sensitive || self.children().any(Self::contains_sensitive)
    }

    /// Returns whether something in this value, or the value itself, is unknown.
    pub fn contains_unknown(&self) -> bool {
        self.is_unknown() || self.children().any(Self::contains_unknown)
    }

    /// Returns the path of the first unknown, depth first.
    pub fn first_unknown(&self) -> Option<Path> {
        self.find_unknown(&Path::default())
    }

    /// Returns the values directly in this one.
    pub fn children(&self) -> Box<dyn Iterator<Item = &Self> + '_> {
        match &self.kind {
            Kind::List(elements) | Kind::Set(elements) | Kind::Tuple(elements) => {
                Box::new(elements.iter())
            }
            Kind::Map(entries) | Kind::Object(entries) => Box::new(entries.values()),
            _ => Box::new(std::iter::empty()),
        }
    }

    /// Returns the type, as far as the value tells it: an empty list is a list of anything.
    pub fn type_of(&self) -> Type {
        let one_of = |mut types: Box<dyn Iterator<Item = Type>>| {
            let first = types.next().unwrap_or(Type::Any);
            if types.all(|ty| ty == first) {
                first
            } else {
                Type::Any
            }
        };
        match &self.kind {
            Kind::Unknown(ty) => ty.clone(),
            Kind::Null => Type::Any,
            Kind::Bool(_) => Type::Bool,
            Kind::Number(_) => Type::Number,
            Kind::String(_) => Type::String,
            Kind::List(elements) => {
                Type::list(one_of(Box::new(elements.iter().map(Self::type_of))))
            }
            Kind::Set(elements) => Type::set(one_of(Box::new(elements.iter().map(Self::type_of)))),
            Kind::Tuple(elements) => Type::Tuple(elements.iter().map(Self::type_of).collect()),
            Kind::Map(entries) => Type::map(one_of(Box::new(entries.values().map(Self::type_of)))),
            Kind::Object(entries) => Type::Object(
                entries
                    .iter()
                    .map(|(name, value)| {
                        let ty = value.type_of();
                        (
                            name.to_string(),
                            crate::ObjectField {
                                ty,
                                optional: false,
                                default: None,
                            },
                        )
                    })
                    .collect(),
            ),
            Kind::Ref(address) => match **address {
                Address::Machine(_) => Type::Machine,
                Address::Service { .. } => Type::Service,
                Address::Binding(_) => Type::Binding,
                Address::Output(_) => Type::Any,
            },
        }
    }

    /// Orders the elements of a set: by kind, then by content; numbers and texts as people do.
    pub fn set_order(&self, other: &Self) -> std::cmp::Ordering {
        use std::cmp::Ordering;
        fn rank(kind: &Kind) -> u8 {
            match kind {
                Kind::Null => 0,
                Kind::Bool(_) => 1,
                Kind::Number(_) => 2,
                Kind::String(_) => 3,
                Kind::List(_) | Kind::Set(_) | Kind::Tuple(_) => 4,
                Kind::Map(_) | Kind::Object(_) => 5,
                Kind::Ref(_) => 6,
                Kind::Unknown(_) => 7,
            }
        }
        match (&self.kind, &other.kind) {
            (Kind::Bool(a), Kind::Bool(b)) => a.cmp(b),
            (Kind::Number(a), Kind::Number(b)) => a.cmp(b),
            (Kind::String(a), Kind::String(b)) => a.cmp(b),
            (Kind::Ref(a), Kind::Ref(b)) => a.cmp(b),
            (Kind::Unknown(a), Kind::Unknown(b)) => a.to_string().cmp(&b.to_string()),
            (a, b) if rank(a) != rank(b) => rank(a).cmp(&rank(b)),
            _ => match (self.as_elements(), other.as_elements()) {
                (Some(a), Some(b)) => a
                    .iter()
                    .zip(b)
                    .map(|(a, b)| a.set_order(b))
                    .find(|order| order.is_ne())
                    .unwrap_or_else(|| a.len().cmp(&b.len())),
                _ => match (self.as_entries(), other.as_entries()) {
                    (Some(a), Some(b)) => a
                        .iter()
                        .zip(b)
                        .map(|((j, a), (k, b))| j.cmp(k).then_with(|| a.set_order(b)))
                        .find(|order| order.is_ne())
                        .unwrap_or_else(|| a.len().cmp(&b.len())),
                    _ => Ordering::Equal,
                },
            },
        }
    }

    fn find_unknown(&self, at: &Path) -> Option<Path> {
        if self.is_unknown() {
            return Some(at.clone());
        }
        if let Some(elements) = self.as_elements() {
            return elements
                .iter()
                .enumerate()
                .find_map(|(index, element)| element.find_unknown(&at.index(index)));
        }
        self.as_entries()?
            .iter()
            .find_map(|(name, value)| value.find_unknown(&at.join(name)))
    }
}

impl Known {
    /// Returns the value.
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// Returns the value.
    pub fn into_value(self) -> Value {
        self.0
    }

    /// Returns an entry of a map or object.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// Returns the object without attributes.
    pub fn empty() -> Self {
        Self(Value::object::<Arc<str>>([]))
    }
}

impl TryFrom<Value> for Known {
    type Error = UnknownAt;

    fn try_from(value: Value) -> Result<Self, Self::Error> {
        value
            .first_unknown()
            .map_or_else(|| Ok(Self(value)), |path| Err(UnknownAt(path)))
    }
}

impl From<Kind> for Value {
    fn from(kind: Kind) -> Self {
        Self {
            kind,
            sensitive: false,
        }
    }
}

macro_rules! value_from {
    ($($from:ty => |$it:ident| $kind:expr),* $(,)?) => {$(
        impl From<$from> for Value {
            fn from($it: $from) -> Self {
                $kind.into()
            }
        }
    )*};
}
value_from! {
    bool => |it| Kind::Bool(it),
    i64 => |it| Kind::Number(it.into()),
    Number => |it| Kind::Number(it),
    &str => |it| Kind::String(it.into()),
    String => |it| Kind::String(it.into()),
    Arc<str> => |it| Kind::String(it),
    Address => |it| Kind::Ref(Arc::new(it)),
}

/// Shows the shape for logs and tests; what is sensitive is masked here too.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.sensitive {
            return f.write_str("(sensitive value)");
        }
        match &self.kind {
            Kind::Unknown(ty) => write!(f, "(unknown {ty})"),
            Kind::Null => f.write_str("null"),
            Kind::Bool(value) => write!(f, "{value}"),
            Kind::Number(value) => write!(f, "{value}"),
            Kind::String(value) => write!(f, "{value:?}"),
            Kind::List(elements) | Kind::Tuple(elements) => {
                f.debug_list().entries(&**elements).finish()
            }
            Kind::Set(elements) => f.debug_set().entries(&**elements).finish(),
            Kind::Map(entries) | Kind::Object(entries) => {
                f.debug_map().entries(entries.iter()).finish()
            }
            Kind::Ref(address) => write!(f, "{address}"),
        }
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_the_first_unknown() {
        let value = Value::object([
            ("a", Value::list([1.into(), Value::unknown(Type::String)])),
            ("b", Value::unknown(Type::Any)),
        ]);
        let error = Known::try_from(value).expect_err("two unknowns");
        assert_eq!(error.to_string(), "the value at a[1] is not known yet");
    }

    #[test]
    fn a_set_has_one_order_and_no_duplicates() {
        let set = Value::set(["b".into(), "a".into(), Value::from("b").sensitive()]);
        assert!(set.same(&Value::set(["a".into(), "b".into()])));
    }

    #[test]
    fn a_value_is_small() {
        // A map's smallest node has room for eleven; a project of 10,000 machines has 100,000 maps.
        assert!(size_of::<Value>() <= 40, "{} bytes", size_of::<Value>());
    }

    #[test]
    fn debug_masks_what_is_sensitive() {
        let value = Value::object([("password", Value::from("hunter2").sensitive())]);
        assert_eq!(format!("{value:?}"), r#"{"password": (sensitive value)}"#);
    }
}
