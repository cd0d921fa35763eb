//! What is told of bindings, and to whom.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Bindings, Link, check_name};
use crate::protocol::{BindingStatus, Held, UnitStatus};
use crate::slot::Slot;
use crate::units;

impl Bindings {
    /// Returns what an operator may see.
    pub(crate) fn status(&self) -> Vec<BindingStatus> {
        self.status_for(|_| true)
    }

    /// Returns what programs of this user may see.
    pub(crate) fn status_shown_to(&self, uid: u32) -> Vec<BindingStatus> {
        self.status_for(|slot| slot.shows(uid))
    }

    fn status_for(&self, is_shown: impl Fn(&Slot) -> bool) -> Vec<BindingStatus> {
        self.granted()
            .into_iter()
            .filter(|(_, slot, _)| is_shown(slot))
            .map(|(name, slot, link)| self.status_of(name, &slot, &link))
            .collect()
    }

    fn status_of(&self, name: String, slot: &Slot, link: &Link) -> BindingStatus {
        let Held { address, directory } = slot.held();
        let streams = *link.streams.borrow() as u64;
        let by = &link.sturdyref.peer;
        let is_reached = self.peer.locator().same_peer(by) || self.peer.has_session(&by.designator);
        BindingStatus {
            name,
            binding: link.generation.binding.clone(),
            generation: link.generation.generation,
            address,
            directory,
            live: link.live().is_some() && is_reached,
            streams,
        }
    }

    /// Returns the units that do not have what they are to have.
    pub(crate) fn failing_units(&self) -> Vec<UnitStatus> {
        self.units.failing()
    }

    /// Returns the names that are granted, with what each adds to the environment of programs.
    pub(crate) fn variables(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        self.variables_for(|_| true)
    }

    /// Returns the same, as far as programs of this user may see.
    pub(crate) fn variables_shown_to(
        &self,
        uid: u32,
    ) -> BTreeMap<String, BTreeMap<String, String>> {
        self.variables_for(|slot| slot.shows(uid))
    }

    fn variables_for(
        &self,
        is_shown: impl Fn(&Slot) -> bool,
    ) -> BTreeMap<String, BTreeMap<String, String>> {
        let granted = self.granted().into_iter();
        granted
            .filter(|(_, slot, _)| is_shown(slot))
            .map(|(name, slot, _)| (name, slot.variables()))
            .collect()
    }

    /// Returns what units get.
    pub(crate) fn units(&self) -> units::Wanted {
        let mut wanted = units::Wanted::new();
        for (name, slot, _) in self.granted() {
            for unit in slot.units() {
                let environments = wanted.entry(unit).or_default();
                environments.insert(name.clone(), slot.environment_text());
            }
        }
        wanted
    }

    /// Returns whether all of these names are known: the boss's answer is in the store a moment
    /// before they are listened for.
    pub(crate) fn has_all(&self, names: &[String]) -> bool {
        let slots = self.slots();
        let mut names = names.iter();
        names.all(|name| slots.contains_key(name) || check_name(name).is_err())
    }

    /// Returns the names that have no grant yet.
    pub(crate) fn waits_for(&self) -> Vec<String> {
        let slots = self.slots();
        let waiting = slots.iter().filter(|(_, slot)| slot.link().is_none());
        waiting.map(|(name, _)| name.clone()).collect()
    }

    fn granted(&self) -> Vec<(String, Arc<Slot>, Arc<Link>)> {
        let slots = self.slots();
        let granted = slots.iter();
        granted
            .filter_map(|(name, slot)| Some((name.clone(), Arc::clone(slot), slot.link()?)))
            .collect()
    }
}
