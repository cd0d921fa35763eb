//! The nouns that every gobs crate shares: addresses, values, paths, schemas and diagnostics.
//!
//! Nothing here does I/O, and nothing here knows a provider, a database or a protocol.

mod address;
mod diagnostic;
mod json;
mod number;
mod path;
mod schema;
mod shared;
mod types;
mod value;

pub use address::{Address, Instance, Key, Name, ParseAddressError};
pub use diagnostic::{Diagnostic, Place, Position, Severity, SourceSpan};
pub use json::DecodeError;
pub use number::{Number, NumberError};
pub use path::{Path, Segment};
pub use schema::{
    ADMITS, Attribute, Block, Change, Hosts, Needs, NestedBlock, Nesting, Network, ProviderSchema,
    Role, UserDataForm,
};
pub use types::{ObjectField, Type};
pub use value::{Kind, Known, UnknownAt, Value};
