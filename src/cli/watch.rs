//! Watching an apply: its events become lines, Ctrl-C stops it.

use std::io;
use std::time::Instant;

use gobs_model::Diagnostic;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::apply::Event;

use super::terminal::Terminal;
use super::view::apply::Progress;

/// Follows one run.
#[derive(Debug, Default)]
pub(super) struct Watcher {
    progress: Progress,
    failures: Vec<Diagnostic>,
}

impl Watcher {
    /// Prints events until nobody can send any more.
    pub(super) async fn print(
        &mut self,
        mut events: mpsc::UnboundedReceiver<Event>,
        terminal: &mut Terminal,
    ) {
        loop {
            let due = self.progress.next_tick();
            let tick = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            let mut next = tokio::select! {
                event = events.recv() => match event {
                    Some(event) => Some(event),
                    None => return,
                },
                () = tick => None,
            };
            let now = Instant::now();
            let mut lines = self.progress.tick(now);
            // What has gathered meanwhile is written at once: thousands of steps end in a second.
            while let Some(event) = next {
                lines += &self.progress.event(&event, now).unwrap_or_default();
                if let Event::Failed { diagnostic, .. } = event {
                    self.failures.push(*diagnostic);
                }
                next = events.try_recv().ok();
            }
            terminal.out(&lines);
        }
    }

    /// Returns what went wrong with the steps, once.
    pub(super) fn failures(&mut self) -> Vec<Diagnostic> {
        std::mem::take(&mut self.failures)
    }
}

/// Ctrl-C, and SIGTERM, which means the same.
#[derive(Debug)]
pub(super) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// Takes the signals from now on. Before the first effect begins: until then a signal ends the
    /// process, and an effect that has begun must not be cut by it.
    ///
    /// # Errors
    /// When signals cannot be had.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits. The first asks the apply to start nothing more; returns at the second: the journal
    /// knows what is in doubt then. Both are heard by the same listeners, so that none is lost
    /// between them.
    pub(super) async fn second(mut self, stop: &watch::Sender<bool>) {
        self.next().await;
        stop.send_replace(true);
        self.next().await;
    }

    /// Waits for one.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
