//! Watching an apply: its events become lines, Ctrl-C stops it.

use std::time::Instant;

use gobs_model::Diagnostic;
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

/// Waits for Ctrl-C. The first (or a SIGTERM) asks the apply to start nothing more; returns at the
/// second: the journal knows what is in doubt then.
pub(super) async fn interrupts(stop: &watch::Sender<bool>) {
    for asked in [false, true] {
        if signal().await.is_err() {
            // Signals cannot be had: then they end the process as they always do.
            return std::future::pending().await;
        }
        if !asked {
            stop.send_replace(true);
        }
    }
}

async fn signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => pressed,
        _ = terminate.recv() => Ok(()),
    }
}
