//! Objects made of traits.

use super::FromArgs;
use super::methods::{method_of, no_method};
use crate::captp::broken::Broken;
use crate::passable::{Passable, Symbol};

/// Declares what an object can be asked: a trait for who has the object, and a typed reference
/// for who calls it.
///
/// Each method has its name on the wire, arguments that are `IntoPassable` and `FromPassable`,
/// and a result that is both, too. `object` names the wrapper that makes an object of the
/// trait, `reference` the typed reference: it is a `Reference` inside, passes in messages, and
/// its methods return [`TypedPromise`](crate::TypedPromise)s.
///
/// ```
/// use ocapn::{Reference, Reply, Turn};
///
/// ocapn::interface! {
///     /// Makes cars.
///     pub trait Factory, object FactoryObject, reference FactoryRef {
///         /// Returns a car of this colour.
///         "make-car" => fn make_car(color: String) -> CarRef;
///     }
/// }
/// ocapn::interface! {
///     /// A car.
///     pub trait Car, object CarObject, reference CarRef {
///         /// Returns the noise it makes.
///         "drive" => fn drive() -> String;
///     }
/// }
///
/// struct Works;
/// impl Factory for Works {
///     fn make_car(&self, turn: &Turn, color: String) -> Reply<CarRef> {
///         Reply::value(CarRef(turn.vat().export(CarObject(Painted(color)))))
///     }
/// }
/// struct Painted(String);
/// impl Car for Painted {
///     fn drive(&self, _: &Turn) -> Reply<String> {
///         Reply::value(format!("Vroom! I am a {} car!", self.0))
///     }
/// }
///
/// # use ocapn::{PeerLocator, Vat, VatOptions};
/// # let vat = Vat::new(VatOptions {
/// #     location: PeerLocator::new("none", "here"), limits: Default::default(),
/// # });
/// let factory = FactoryRef(vat.export(FactoryObject(Works)));
/// // The second call does not wait for the first.
/// let noise = factory.make_car("red".into()).pipelined().drive();
/// # vat.run();
/// assert_eq!(noise.now(), Some(Ok("Vroom! I am a red car!".into())));
/// ```
#[macro_export]
macro_rules! interface {
    (
        $(#[$about:meta])*
        $vis:vis trait $name:ident, object $object:ident, reference $reference:ident {
            $(
                $(#[$doc:meta])*
                $symbol:literal => fn $method:ident(
                    $($arg:ident: $type:ty),* $(,)?
                ) -> $result:ty;
            )*
        }
    ) => {
        $(#[$about])*
        $vis trait $name: Send + Sync + 'static {
            $(
                $(#[$doc])*
                fn $method(&self, turn: &$crate::Turn $(, $arg: $type)*) -> $crate::Reply<$result>;
            )*
        }

        #[doc = concat!("Makes an object of what implements [`", stringify!($name), "`].")]
        $vis struct $object<T>(
            /// What answers.
            pub T,
        );

        impl<T: $name> $crate::Object for $object<T> {
            fn deliver(
                &self,
                turn: &$crate::Turn,
                args: ::std::vec::Vec<$crate::Passable>,
            ) -> $crate::Answer {
                let (method, args) = match $crate::__private::method_of(args) {
                    Ok(call) => call,
                    Err(broken) => return $crate::Answer::Now(Err(broken)),
                };
                match method.as_str() {
                    $(
                        $symbol => match $crate::__private::args::<($($type,)*)>(args) {
                            Ok(($($arg,)*)) => self.0.$method(turn $(, $arg)*).into(),
                            Err(broken) => $crate::Answer::Now(Err(broken)),
                        },
                    )*
                    _ => $crate::Answer::Now(Err($crate::__private::no_method())),
                }
            }

            fn label(&self) -> &str {
                stringify!($name)
            }
        }

        #[doc = concat!("A reference to a [`", stringify!($name), "`].")]
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        $vis struct $reference(
            /// The reference without the type.
            pub $crate::Reference,
        );

        impl $reference {
            $(
                $(#[$doc])*
                $vis fn $method(&self $(, $arg: $type)*) -> $crate::TypedPromise<$result> {
                    self.0.ask($symbol, ($($arg,)*))
                }
            )*
        }

        impl From<$crate::Reference> for $reference {
            fn from(reference: $crate::Reference) -> Self {
                Self(reference)
            }
        }

        impl $crate::IntoPassable for $reference {
            fn into_passable(self) -> $crate::Passable {
                self.0.into()
            }
        }

        impl $crate::FromPassable for $reference {
            fn from_passable(
                value: $crate::Passable,
            ) -> ::std::result::Result<Self, $crate::WrongType> {
                $crate::Reference::from_passable(value).map(Self)
            }
        }
    };
}

/// What the code that [`interface!`](crate::interface) makes is built on. Nobody else's business.
#[doc(hidden)]
pub mod __private {
    use super::{Broken, FromArgs, Passable, Symbol};

    /// Returns the name of the method that is called, and the arguments after it.
    ///
    /// # Errors
    /// When no method is named.
    pub fn method_of(args: Vec<Passable>) -> Result<(Symbol, Vec<Passable>), Broken> {
        super::method_of(args)
    }

    /// Reads arguments.
    ///
    /// # Errors
    /// When their number or a type is wrong.
    pub fn args<A: FromArgs>(args: Vec<Passable>) -> Result<A, Broken> {
        Ok(A::from_args(args)?)
    }

    /// Returns the break for a call of a method that there is not.
    pub fn no_method() -> Broken {
        super::no_method()
    }
}
