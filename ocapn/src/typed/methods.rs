//! Objects made of functions.

use std::collections::HashMap;
use std::future::Future;

use futures_util::future::BoxFuture;

use super::{FromArgs, IntoPassable};
use crate::captp::broken::Broken;
use crate::captp::promise::Promise;
use crate::passable::Passable;
use crate::vat::{Answer, Object, Turn};

/// What a typed method answers.
pub enum Reply<T> {
    /// At once.
    Now(Result<T, Broken>),
    /// When the future is done. The turns that follow do not wait for it.
    Later(BoxFuture<'static, Result<T, Broken>>),
    /// What the promise resolves to. Messages to the answer follow it at once.
    Promised(Promise),
}

impl<T> Reply<T> {
    /// Returns the answer with this value.
    pub fn value(value: T) -> Self {
        Self::Now(Ok(value))
    }

    /// Returns the answer that this future will have.
    pub fn later(answer: impl Future<Output = Result<T, Broken>> + Send + 'static) -> Self {
        Self::Later(Box::pin(answer))
    }
}

impl<T> From<Result<T, Broken>> for Reply<T> {
    fn from(result: Result<T, Broken>) -> Self {
        Self::Now(result)
    }
}

impl<T: IntoPassable + Send + 'static> From<Reply<T>> for Answer {
    fn from(reply: Reply<T>) -> Self {
        match reply {
            Reply::Now(result) => Self::Now(result.map(T::into_passable)),
            Reply::Later(later) => Self::later(async { later.await.map(T::into_passable) }),
            Reply::Promised(promise) => Self::value(promise),
        }
    }
}

type Method = Box<dyn Fn(&Turn, Vec<Passable>) -> Answer + Send + Sync>;

/// An object made of functions by their names, as Goblins' `methods` makes them.
///
/// A function takes the turn and a tuple of its arguments. What it returns is a `Result` or a
/// [`Reply`].
///
/// ```
/// # use ocapn::{Broken, Methods, Reply, Turn};
/// let account = Methods::new()
///     .on("describe", |_: &Turn, ()| Ok("an account".to_owned()))
///     .on("withdraw", |_: &Turn, (amount,): (u64,)| match amount {
///         0 => Err(Broken::new("wrong-amount", "nothing to withdraw")),
///         amount => Ok(amount),
///     })
///     .on("audit", |_: &Turn, ()| Reply::later(async { Ok(true) }));
/// ```
#[derive(Default)]
pub struct Methods {
    methods: HashMap<&'static str, Method>,
    label: Option<&'static str>,
}

impl Methods {
    /// Returns an object without methods.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names the object in reports ([`Object::label`]).
    #[must_use]
    pub fn labelled(mut self, label: &'static str) -> Self {
        self.label = Some(label);
        self
    }

    /// Adds a method; the last of the same name counts.
    #[must_use]
    pub fn on<A, T, R, F>(mut self, name: &'static str, method: F) -> Self
    where
        A: FromArgs,
        T: IntoPassable + Send + 'static,
        R: Into<Reply<T>> + AnswerOf<T>,
        F: Fn(&Turn, A) -> R + Send + Sync + 'static,
    {
        let method = move |turn: &Turn, args| match A::from_args(args) {
            Ok(args) => method(turn, args).into().into(),
            Err(wrong) => Answer::Now(Err(wrong.into())),
        };
        self.methods.insert(name, Box::new(method));
        self
    }
}

/// Tells the compiler which type a method answers with.
pub trait AnswerOf<T> {}

impl<T> AnswerOf<T> for Result<T, Broken> {}

impl<T> AnswerOf<T> for Reply<T> {}

impl Object for Methods {
    fn deliver(&self, turn: &Turn, args: Vec<Passable>) -> Answer {
        let (name, args) = match method_of(args) {
            Ok(call) => call,
            Err(broken) => return Answer::Now(Err(broken)),
        };
        match self.methods.get(name.as_str()) {
            Some(method) => method(turn, args),
            None => Answer::Now(Err(no_method())),
        }
    }

    fn label(&self) -> &str {
        self.label.unwrap_or("methods")
    }
}

/// Returns the name of the method that is called, and the arguments after it.
pub(crate) fn method_of(
    mut args: Vec<Passable>,
) -> Result<(crate::passable::Symbol, Vec<Passable>), Broken> {
    match args.first() {
        Some(Passable::Symbol(name)) => {
            let name = name.clone();
            args.remove(0);
            Ok((name, args))
        }
        _ => Err(no_method()),
    }
}

/// Returns the break for a call of a method that there is not.
pub(crate) fn no_method() -> Broken {
    Broken::new("no-method", "the object has no such method")
}
