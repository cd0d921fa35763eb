//! Rust types at both ends of a call.
//!
//! Arguments and results convert by [`IntoPassable`] and [`FromPassable`], argument lists are
//! tuples, and a [`TypedPromise`] is a future of the converted result that still pipelines.
//! Objects are made of functions by [`Methods`], or of traits by [`crate::interface!`].
//!
//! ```
//! # use ocapn::{Methods, PeerLocator, Turn, Vat, VatOptions};
//! # let vat = Vat::new(VatOptions {
//! #     location: PeerLocator::new("none", "here"), limits: Default::default(),
//! # });
//! let adder = vat.export(
//!     Methods::new().on("add", |_: &Turn, (a, b): (i64, i64)| Ok(a + b)),
//! );
//! let sum = adder.ask::<i64>("add", (20, 22));
//! # vat.run();
//! assert_eq!(sum.now(), Some(Ok(42)));
//! ```

mod convert;
mod interface;
mod methods;
mod promise;

pub use convert::{FromArgs, FromPassable, IntoArgs, IntoPassable, WrongType};
#[doc(hidden)]
pub use interface::__private;
pub use methods::{AnswerOf, Methods, Reply};
pub use promise::TypedPromise;
