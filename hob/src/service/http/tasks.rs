//! Work beside a stream that ends with it.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, Stream};
use futures_util::task::AtomicWaker;

/// Where hyper puts what it would have done beside a connection: streams of HTTP/2, connections to
/// the server. Nothing of it is spawned, so that all of it is gone the moment its stream is. How
/// many there are is bounded by the streams of one connection.
#[derive(Clone, Default)]
pub(super) struct Tasks(Arc<Shared>);

#[derive(Default)]
struct Shared {
    new: Mutex<Vec<BoxFuture<'static, ()>>>,
    waker: AtomicWaker,
}

/// Does the work; it never ends by itself.
pub(super) struct Work {
    shared: Arc<Shared>,
    running: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl Tasks {
    /// Returns what has to be polled for the tasks to go on.
    pub(super) fn work(&self) -> Work {
        Work {
            shared: Arc::clone(&self.0),
            running: FuturesUnordered::new(),
        }
    }
}

impl Shared {
    fn fresh(&self) -> MutexGuard<'_, Vec<BoxFuture<'static, ()>>> {
        self.new.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.fresh().push(Box::pin(async move {
            task.await;
        }));
        self.0.waker.wake();
    }
}

impl Future for Work {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.shared.waker.register(cx.waker());
        loop {
            let new = std::mem::take(&mut *self.shared.fresh());
            let more = !new.is_empty();
            self.running.extend(new);
            match Pin::new(&mut self.running).poll_next(cx) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) | Poll::Pending if !more => return Poll::Pending,
                Poll::Ready(None) | Poll::Pending => {}
            }
        }
    }
}
