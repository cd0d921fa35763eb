//! Bindings that are made from others: where each comes from, and what happens to one when
//! something happens to the other.

use gobs_model::{Address, Diagnostic, Instance};
use gobs_state::RowKind;
use hob::protocol::{Attenuate, Wider, check_together};

use crate::lang::{BindingValues, BlockId, rights};

use super::{Because, Planner, Via};

/// Bindings that one may be made from, one from the other; hobs allow as many.
const DEPTH_MAX: usize = 15;

/// Where a declared binding comes from.
#[derive(Debug)]
pub(crate) struct Traced {
    /// The service.
    root: Address,
    /// The binding that it is given on from.
    via: Option<Instance>,
    /// How many bindings it is made from, one from the other.
    depth: usize,
    /// The limits that hold, its parents' among them; nothing while some are unknown.
    rights: Option<Attenuate>,
}

impl Planner<'_> {
    /// Follows a binding to the service that it comes from, which takes the place of the binding
    /// it names. Returns the binding that it names; nothing where it is wrong, which is reported.
    pub(super) fn trace(
        &mut self,
        instance: &Instance,
        values: &mut BindingValues,
    ) -> Option<Option<Instance>> {
        let own = rights(&values.attenuate);
        let Address::Binding(parent) = values.from.clone() else {
            let traced = Traced {
                root: values.from.clone(),
                via: None,
                depth: 0,
                rights: own,
            };
            self.traced.insert(instance.clone(), traced);
            return Some(None);
        };
        let block = BlockId::Binding(instance.name.clone());
        if self.failed.contains(&BlockId::Binding(parent.name.clone())) {
            return None;
        }
        let Some(from) = self.traced.get(&parent) else {
            let error = Diagnostic::error(
                "Binding to nothing",
                format!("binding.{instance} is from binding.{parent}, which is not declared."),
            );
            self.report(&block, vec![error]);
            return None;
        };
        let root = from.root.clone();
        let depth = from.depth + 1;
        let mut errors = Vec::new();
        if depth > DEPTH_MAX {
            errors.push(Diagnostic::error(
                "Binding made from too many",
                format!(
                    "binding.{instance} is made from binding.{parent}, which is the last of \
                     {DEPTH_MAX} that are made one from the other; more are not possible."
                ),
            ));
        }
        let narrowed = match (&from.rights, &own) {
            (Some(held), Some(own)) => held.narrowed(own).map(Some),
            _ => Ok(None),
        };
        if let Err(Wider { limit }) = &narrowed {
            let error = Diagnostic::error(
                "Binding wider than what it is made from",
                format!(
                    "binding.{instance} asks for more with \"{limit}\" than binding.{parent} has, \
                     which it is made from; it can only narrow that."
                ),
            );
            let error = match self.config.limit_at(&instance.name, limit) {
                Some(place) => error.at(place),
                None => error,
            };
            let hint = format!("Without \"{limit}\" it has as much as binding.{parent}.");
            errors.push(error.hint(hint));
        }
        let kind = self.kind_of(&root);
        errors.extend(
            kind.into_iter()
                .flat_map(|kind| self.config.unenforceable(&instance.name, kind)),
        );
        if let (Ok(Some(narrowed)), Some(kind)) = (&narrowed, kind)
            && let Err((limit, why)) = check_together(kind.as_str(), narrowed)
        {
            let error = Diagnostic::error(
                "Binding of what it cannot have",
                format!(
                    "With what it has from binding.{parent}, \"{limit}\" of binding.{instance} \
                     {why}."
                ),
            );
            let place = self.config.limit_at(&instance.name, &limit);
            errors.push(match place {
                Some(place) => error.at(place),
                None => error,
            });
        }
        let failed = !errors.is_empty();
        self.report(&block, errors);
        values.from = root.clone();
        let traced = Traced {
            root,
            via: Some(parent.clone()),
            depth,
            rights: narrowed.unwrap_or_default(),
        };
        self.traced.insert(instance.clone(), traced);
        (!failed).then_some(Some(parent))
    }

    /// Reports a binding that ended before it began, and mentions one that has ended since.
    pub(super) fn check_expiry(&mut self, instance: &Instance, stays: bool) {
        let rights = self.traced.get(instance).and_then(|it| it.rights.as_ref());
        let Some(end) = rights.and_then(|it| it.expires) else {
            return;
        };
        if end > self.evaluator.now_s().unwrap_or(0) {
            return;
        }
        let when = crate::lang::rfc3339(end);
        let found = match stays {
            true => Diagnostic::warning(
                "Binding has expired",
                format!(
                    "binding.{instance} has expired at {when}: nothing flows through it any more."
                ),
            )
            .hint("Remove the binding, or give it another time with `expires`."),
            false => Diagnostic::error(
                "Binding expires before it begins",
                format!("binding.{instance} is to expire at {when}, which is over."),
            )
            .hint("Give it another time with `expires`."),
        };
        let found = match self.config.limit_at(&instance.name, "expires") {
            Some(place) => found.at(place),
            None => found,
        };
        self.report(&BlockId::Binding(instance.name.clone()), vec![found]);
    }

    /// Returns how many bindings this one is made from.
    pub(super) fn depth(&self, instance: &Instance) -> usize {
        self.traced.get(instance).map_or(0, |it| it.depth)
    }

    /// Lets the bindings that are made from one that is granted again be granted again too.
    pub(super) fn follow_parents(&mut self) {
        let mut given_on = std::mem::take(&mut self.given_on);
        given_on.sort_by_key(|it| self.depth(it.instance()));
        for mut binding in given_on {
            let Some(parent) = self
                .traced
                .get(binding.instance())
                .and_then(|it| it.via.clone())
            else {
                continue;
            };
            let mut waiting = self.to_grant.iter();
            let again = waiting.find(|it| *it.instance() == parent);
            let again = again.is_some_and(|it| self.is_granted_again(it));
            let is = self.granted(&parent).map(|(generation, _)| generation);
            if again || is != self.parent_of(binding.instance()) {
                let parent = Address::Binding(parent);
                binding.because(Because::ParentGranted { parent });
                self.to_grant.push(binding);
            }
        }
    }

    /// Returns the generation that a binding has, and that of the one that it was made from.
    fn granted(&self, instance: &Instance) -> Option<(u64, Option<u64>)> {
        let address = Address::Binding(instance.clone());
        match self.snapshot.rows.get(&address)?.kind {
            RowKind::Binding {
                generation, parent, ..
            } => Some((generation, parent)),
            _ => None,
        }
    }

    /// Returns the generation that a binding was made from.
    pub(super) fn parent_of(&self, instance: &Instance) -> Option<u64> {
        self.granted(instance)?.1
    }

    /// Returns the grant of a binding that another one is made from.
    pub(super) fn via(&self, parent: &Instance) -> Via {
        let binding = Address::Binding(parent.clone());
        let stays = self.granted(parent).map_or(0, |(generation, _)| generation);
        let generation = self.generations.get(parent).copied().unwrap_or(stays);
        Via {
            binding,
            generation,
        }
    }

    /// Lets what was made from a binding be revoked before it: the other way round it would end
    /// unasked.
    pub(super) fn end_children_first(&mut self) {
        let unbinds = std::mem::take(&mut self.unbinds);
        for (child, first) in &unbinds {
            let row = self.snapshot.rows.get(&Address::Binding(child.clone()));
            let from = row.and_then(|row| row.wanted.get("from")?.as_ref_address().cloned());
            let Some(Address::Binding(parent)) = from else {
                continue;
            };
            for (_, then) in unbinds.iter().filter(|(it, _)| *it == parent) {
                self.draft.wait(*first, *then);
            }
        }
        self.unbinds = unbinds;
    }
}
