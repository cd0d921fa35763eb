//! Ends that come later: what is left of a revoked grant at its server, and grants with an end.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use ocapn::Broken;
use tokio::time::{sleep, timeout};

use super::{Grants, now};
use crate::protocol::{Attenuate, Generation, code};
use crate::store::{LeavingRow, Span};

/// How long a revocation waits until nothing is left at the server. The access is cut before; the
/// hob goes on in the background.
const AWAY_TIMEOUT: Duration = Duration::from_secs(5);

/// Pauses between tries to take away what is left, of all that is left together.
const RETRY_PAUSE_MIN: Duration = Duration::from_secs(1);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);

/// The longest that a grant's end is slept towards: the clock may be set meanwhile.
const CLOCK_PAUSE_MAX: Duration = Duration::from_secs(1);

impl Grants {
    /// Takes away what is left of grants at their servers: of a binding up to this generation, and
    /// of these.
    pub(super) async fn take_away(
        self: &Arc<Self>,
        revoked: &Generation,
        ended: &[Generation],
    ) -> Result<(), Broken> {
        let of = |row: &LeavingRow| {
            let it = &row.generation;
            it.binding == revoked.binding && it.generation <= revoked.generation
                || ended.contains(it)
        };
        let rows: Vec<_> = self.leaving().into_iter().filter(of).collect();
        let all = rows.into_iter().map(|row| {
            let grants = Arc::clone(self);
            // A task of its own, since it must not be dropped on the way.
            tokio::spawn(async move { grants.take_one_away(row).await })
        });
        let done = timeout(AWAY_TIMEOUT, futures_util::future::join_all(all)).await;
        let why = match done {
            Err(_) => format!("it takes longer than {} s", AWAY_TIMEOUT.as_secs()),
            Ok(done) => {
                let ended = |it| match it {
                    Ok(Ok(())) => None,
                    Ok(Err(why)) => Some(why),
                    Err(_) => Some("the service's module failed".to_owned()),
                };
                match done.into_iter().find_map(ended) {
                    None => return Ok(()),
                    Some(why) => why,
                }
            }
        };
        self.left.notify_one();
        let text = format!("nothing flows any more, but something is left at the server: {why}");
        Err(Broken::new(code::PENDING, text))
    }

    /// Revokes every grant that has made something at a server, since the machine ends.
    pub(crate) async fn retire(self: &Arc<Self>) -> Result<(), Broken> {
        let mut all: Vec<Generation> = {
            let live = self.live();
            let minted = live.grants.iter().filter(|(_, it)| it.row.minted.is_some());
            minted.map(|(generation, _)| generation.clone()).collect()
        };
        all.extend(self.leaving().into_iter().map(|row| row.generation));
        let revoked = all.into_iter();
        let revoked = revoked.map(|generation| self.revoke(generation, Span::AndBefore));
        let revoked = futures_util::future::join_all(revoked).await;
        revoked.into_iter().collect()
    }

    async fn take_one_away(&self, row: LeavingRow) -> Result<(), String> {
        let minting = self.minting(&row.generation.binding);
        let _minting = minting.lock_owned().await;
        if !self.leaving().contains(&row) {
            return Ok(());
        }
        let (spec, generation) = (row.spec.clone(), row.generation.clone());
        let gone = self.lease_of(spec, generation, Attenuate::default());
        self.services
            .unmint(&gone)
            .await
            .map_err(|error| error.to_string())?;
        self.store
            .write(move |contents| contents.leaving.retain(|it| *it != row))
            .await
            .map_err(|error| error.to_string())
    }

    fn leaving(&self) -> Vec<LeavingRow> {
        self.store.contents().leaving.clone()
    }

    /// Takes away what earlier revocations have left, for as long as the hob runs.
    pub(crate) async fn clear(self: Arc<Self>) {
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            for row in self.leaving() {
                let binding = row.generation.binding.clone();
                let grants = Arc::clone(&self);
                match tokio::spawn(async move { grants.take_one_away(row).await }).await {
                    Ok(Ok(())) => tracing::info!(%binding, "nothing is left of a revoked grant"),
                    Ok(Err(error)) => tracing::warn!(%binding, %error, "something is left"),
                    Err(error) => tracing::error!(%binding, %error, "something is left"),
                }
            }
            match self.leaving().is_empty() {
                true => {
                    pause = RETRY_PAUSE_MIN;
                    self.left.notified().await;
                }
                false => {
                    sleep(pause).await;
                    pause = RETRY_PAUSE_MAX.min(pause * 2);
                }
            }
        }
    }

    /// Ends grants when their time is over, for as long as the hob runs.
    pub(crate) async fn expire(self: Arc<Self>) {
        loop {
            let now = now();
            let ends: Vec<(u64, Generation)> = self
                .live()
                .grants
                .iter()
                .filter_map(|(generation, it)| Some((it.row.rights.expires?, generation.clone())))
                .collect();
            let mut next = None;
            for (end, generation) in ends {
                if end > now {
                    next = Some(next.map_or(end, |next: u64| next.min(end)));
                    continue;
                }
                tracing::info!(?generation, "a grant has expired");
                let grants = Arc::clone(&self);
                // One whose server is away must not keep others from ending.
                tokio::spawn(async move {
                    if let Err(error) = grants.revoke(generation, Span::AndBefore).await {
                        tracing::warn!(%error, "an expired grant has not ended yet");
                    }
                });
            }
            let until_next = async {
                match next {
                    Some(end) => sleep(Duration::from_secs(end - now).min(CLOCK_PAUSE_MAX)).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = until_next => {}
                () = self.ending.notified() => {}
            }
        }
    }
}
