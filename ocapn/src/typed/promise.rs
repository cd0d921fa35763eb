//! Promises that know what type their result has.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::{FromPassable, IntoArgs, IntoPassable, WrongType};
use crate::captp::broken::Broken;
use crate::captp::promise::{Promise, Reference};
use crate::passable::Passable;

/// A promise whose result is converted to a Rust type.
///
/// It is a future of the result; a result of another type is a break with the code `wrong-type`.
/// Before it is resolved it can be called, and what is a reference can be used as one
/// ([`TypedPromise::pipelined`]), without waiting for a round trip.
pub struct TypedPromise<T> {
    promise: Promise,
    result: PhantomData<fn() -> T>,
}

impl<T> TypedPromise<T> {
    /// Returns the promise without the type.
    pub fn promise(&self) -> &Promise {
        &self.promise
    }

    /// Calls `method` on what this promise will be.
    pub fn ask<U>(&self, method: &str, args: impl IntoArgs) -> TypedPromise<U> {
        self.promise.ask(method, args)
    }

    /// Calls `method` on what this promise will be, and wants no result.
    pub fn tell(&self, method: &str, args: impl IntoArgs) {
        self.promise.send(method, args.into_args());
    }
}

impl<T: From<Reference>> TypedPromise<T> {
    /// Returns the result before it is there: what is asked of it now is sent at once, and waits
    /// at the peer that will have the result.
    pub fn pipelined(&self) -> T {
        T::from(self.promise.as_reference().clone())
    }
}

impl<T: FromPassable> TypedPromise<T> {
    /// Returns the result if it is there already.
    pub fn now(&self) -> Option<Result<T, Broken>> {
        self.promise.now().map(converted)
    }
}

fn converted<T: FromPassable>(result: Result<Passable, Broken>) -> Result<T, Broken> {
    T::from_passable(result?).map_err(|wrong| wrong.within("result").into())
}

impl<T: FromPassable> Future for TypedPromise<T> {
    type Output = Result<T, Broken>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.promise).poll(cx).map(converted)
    }
}

impl<T> Clone for TypedPromise<T> {
    fn clone(&self) -> Self {
        self.promise.clone().into()
    }
}

impl<T> fmt::Debug for TypedPromise<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.promise.fmt(f)
    }
}

impl<T> From<Promise> for TypedPromise<T> {
    fn from(promise: Promise) -> Self {
        Self {
            promise,
            result: PhantomData,
        }
    }
}

impl<T> IntoPassable for TypedPromise<T> {
    fn into_passable(self) -> Passable {
        self.promise.into()
    }
}

impl<T> FromPassable for TypedPromise<T> {
    fn from_passable(value: Passable) -> Result<Self, WrongType> {
        Promise::from_passable(value).map(Self::from)
    }
}

impl Reference {
    /// Calls `method` with typed arguments and returns the promise of a typed result.
    pub fn ask<T>(&self, method: &str, args: impl IntoArgs) -> TypedPromise<T> {
        self.call(method, args.into_args()).into()
    }

    /// Calls `method` with typed arguments and wants no result.
    pub fn tell(&self, method: &str, args: impl IntoArgs) {
        self.send(method, args.into_args());
    }
}

impl Promise {
    /// Calls `method` with typed arguments on what this promise will be, and returns the promise
    /// of a typed result.
    pub fn ask<T>(&self, method: &str, args: impl IntoArgs) -> TypedPromise<T> {
        self.call(method, args.into_args()).into()
    }

    /// Returns the promise with a type for its result.
    pub fn typed<T>(self) -> TypedPromise<T> {
        self.into()
    }
}
