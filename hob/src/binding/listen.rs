//! The sockets of all names, kept there: announced, granted, or lost.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::sleep;

use super::{Bindings, check_name, lock};
use crate::expose::{ExposeError, Socket, remove_dead};
use crate::files;
use crate::grant::Chain;
use crate::layout::ENVIRONMENT_SUFFIX;
use crate::protocol::{Expose, Place};
use crate::slot::Slot;

/// How often it is looked whether every socket is there: a port may be taken for a while, and who
/// owns a directory may remove what is in it.
const MEND_PAUSE: Duration = Duration::from_secs(2);

impl Bindings {
    /// Listens for the names that the boss has announced, as the store has them, and no longer for
    /// those that it has not. Programs that connect wait for the grant.
    pub(crate) async fn expect(self: &Arc<Self>) {
        let changing = self.changing.lock().await;
        let contents = self.store.contents();
        for name in &contents.expects {
            if check_name(name).is_ok() && !self.slots().contains_key(name) {
                self.slots().insert(name.clone(), self.slot(name));
            }
        }
        let is_wanted = |name: &String, slot: &mut Arc<Slot>| {
            slot.link().is_some() || contents.expects.contains(name)
        };
        self.slots().retain(is_wanted);
        drop(changing);
        self.mend().await;
    }

    /// Listens again, for as long as the hob runs, where that failed or a socket was removed.
    pub(crate) async fn stay_whole(self: Arc<Self>) {
        loop {
            sleep(MEND_PAUSE).await;
            self.mend().await;
        }
    }

    /// Makes what is missing of sockets and files.
    async fn mend(self: &Arc<Self>) {
        let slots = self.slots().clone();
        for (name, slot) in slots {
            let _changing = self.changing.lock().await;
            let contents = self.store.contents();
            let exposes = contents.exposes_of(&name);
            let held = self
                .slots()
                .get(&name)
                .is_some_and(|now| Arc::ptr_eq(now, &slot));
            if !held || slot.is_whole(exposes) {
                continue;
            }
            let row = contents.bindings.get(&name);
            let mut kept = std::mem::take(&mut *lock(&slot.sockets));
            let bound = row.map_or(&[][..], |row| &row.bound);
            let opened = self.open_sockets(&slot, exposes, bound, &mut kept).await;
            let (mut sockets, error) = opened;
            let error = error.map(io::Error::other);
            if error.is_some() {
                kept.retain(|socket| self.is_stored(&slot, &name, &socket.asked));
                sockets.extend(kept);
            }
            *lock(&slot.sockets) = sockets;
            let written = match row {
                Some(row) => slot.write_files(row).await,
                None => Ok(()),
            };
            // One that cannot be exposed must not keep the others from working.
            match error.or(written.err()) {
                // Once is enough: it is tried for as long as the hob runs.
                Some(error) => {
                    if !slot.is_failing.swap(true, Ordering::Relaxed) {
                        tracing::error!(%name, error = %Chain(&error), "not exposed; trying on");
                    }
                }
                None => {
                    slot.is_failing.store(false, Ordering::Relaxed);
                    self.changed.send_replace(());
                }
            }
        }
    }

    /// Removes the files of names that are neither held nor expected: a hob that was killed while
    /// it gave one up has left them.
    pub(super) fn sweep(&self) {
        let contents = self.store.contents();
        let is_over = |name: &str| {
            !contents.bindings.contains_key(name)
                && contents.expects.iter().all(|expected| expected != name)
        };
        let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
        let named = entries(&self.root).filter(|it| it.file_type().is_ok_and(|it| it.is_dir()));
        for entry in named {
            if entry.file_name().to_str().is_some_and(is_over)
                && let Err(error) = files::remove_files(&entry.path())
            {
                tracing::warn!(%error, "the files of a binding that is over are not removed");
            }
        }
        for entry in entries(&self.layout.environments()) {
            let name = entry.file_name();
            let name = name
                .to_str()
                .and_then(|name| name.strip_suffix(ENVIRONMENT_SUFFIX));
            if name.is_some_and(is_over)
                && let Err(error) = files::remove_if_there(fs::remove_file(entry.path()))
            {
                tracing::warn!(%error, "the environment of a binding that is over is not removed");
            }
        }
    }

    /// Removes the sockets at paths of other people's choice where nobody is to listen: a hob that
    /// was killed left them.
    pub(super) async fn sweep_sockets(&self) {
        let contents = self.store.contents();
        let bound = contents.bindings.values();
        let bound = bound.flat_map(|row| &row.registration.expose);
        let expected = contents.expects.iter();
        let expected = expected.flat_map(|name| contents.exposes_of(name));
        let wanted: Vec<_> = bound
            .chain(expected)
            .filter_map(|it| it.place.clone())
            .collect();
        for path in &contents.sockets {
            if !wanted.contains(&Place::Unix(path.clone()))
                && let Err(error) = remove_dead(path).await
            {
                tracing::warn!(path = %path.display(), %error, "a dead socket is not removed");
            }
        }
    }

    /// Has it on disk where sockets are about to be made that no directory of ours tells of.
    async fn note_sockets(&self, slot: &Slot, exposes: &[Expose]) -> Result<(), ExposeError> {
        let known = &self.store.contents().sockets;
        let outside = slot.places(exposes).filter_map(|place| match place {
            Place::Unix(path) if !path.starts_with(&self.root) => Some(path),
            _ => None,
        });
        let new: Vec<_> = outside.filter(|path| !known.contains(path)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let written = self.store.write(move |contents| {
            let is_there = |path: &PathBuf| fs::symlink_metadata(path).is_ok();
            contents.sockets.retain(is_there);
            contents.sockets.extend(new);
        });
        written.await.map_err(|error| {
            tracing::error!(error = %Chain(&error), "state not written");
            ExposeError::Unwritten
        })
    }

    pub(super) fn slot(&self, name: &str) -> Arc<Slot> {
        Slot::new(name, &self.root, self.layout.environment(name))
    }

    pub(super) async fn open_sockets(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        exposes: &[Expose],
        bound: &[Place],
        kept: &mut Vec<Socket>,
    ) -> (Vec<Socket>, Option<ExposeError>) {
        let take = || {
            let (bindings, slot) = (Arc::downgrade(self), Arc::downgrade(slot));
            move |local| {
                if let (Some(bindings), Some(slot)) = (bindings.upgrade(), slot.upgrade()) {
                    bindings.take(&slot, local);
                }
            }
        };
        if let Err(error) = self.note_sockets(slot, exposes).await {
            return (Vec::new(), Some(error));
        }
        slot.open_sockets(exposes, bound, kept, take).await
    }

    pub(super) fn is_stored(&self, slot: &Slot, name: &str, asked: &Place) -> bool {
        let contents = self.store.contents();
        let is_known = contents.bindings.contains_key(name)
            || contents.expects.iter().any(|expected| expected == name);
        let mut places = slot.places(contents.exposes_of(name));
        is_known && places.any(|place| place == *asked)
    }
}
