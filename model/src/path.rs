//! Paths: where inside a value.

use std::fmt;

/// One step into a value.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub enum Segment {
    /// An attribute of an object or a key of a map.
    Attribute(String),
    /// An element of a list or tuple, or of a set in its canonical order.
    Index(usize),
}

/// Where inside a value; the empty path is the value itself.
#[derive(
    Clone,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Path(pub Vec<Segment>);

impl Path {
    /// Returns the path of a top-level attribute.
    pub fn attribute(name: &str) -> Self {
        Self(vec![Segment::Attribute(name.into())])
    }

    /// Returns this path followed by an attribute.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        let mut path = self.clone();
        path.0.push(Segment::Attribute(name.into()));
        path
    }

    /// Returns this path followed by an index.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        let mut path = self.clone();
        path.0.push(Segment::Index(index));
        path
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Attribute(name) if crate::Name::new(name).is_ok() => {
                    write!(f, "{}{name}", if at == 0 { "" } else { "." })?;
                }
                Segment::Attribute(name) => write!(f, "[{name:?}]")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}
