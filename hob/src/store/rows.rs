//! The rows of the machine's own state, and the rules of grants among them.

use ocapn::Sturdyref;
use serde::{Deserialize, Serialize};

use super::Contents;
use crate::protocol::{
    Attenuate, Described, Generation, Grant, Place, Registration, ServiceSpec, Unenforceable,
    Wider, check_limits, code, sturdyref_text,
};

/// Grants that one machine gives out; more are refused. Each is a row of the file, which is
/// written whole at each change.
const GRANTS_MAX: usize = 20_000;

/// Grants that one may be made from, one from the other: a stream is counted at each of them.
const LINEAGE_MAX: usize = 16;

/// A grant given out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantRow {
    /// What was asked.
    pub grant: Grant,
    /// The limits that hold: those asked for, within those of the grant that it was made from.
    pub rights: Attenuate,
    /// [`swissnum_hash`] of its durable name.
    pub swissnum_hash: String,
    /// When it was made, in seconds since 1970.
    pub since: u64,
    /// The service that it has something at, a role or a user. Entered before that is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minted: Option<ServiceSpec>,
}

/// What ends with a generation of a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// All before it as well.
    AndBefore,
    /// It alone: those before it go on.
    Alone,
}

impl Span {
    /// Returns whether a generation ends when another one does.
    pub fn has(self, ends: &Generation, asked: &Generation) -> bool {
        let (ends_at, at) = (ends.generation, asked.generation);
        ends.binding == asked.binding
            && match self {
                Self::AndBefore => at <= ends_at,
                Self::Alone => at == ends_at,
            }
    }
}

/// A revoked grant of which something may be left at a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeavingRow {
    /// Which.
    pub generation: Generation,
    /// The service that it has something at.
    pub spec: ServiceSpec,
}

/// A binding held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindingRow {
    /// What was asked.
    pub registration: Registration,
    /// The grant's durable name, bound to this hob's key.
    #[serde(with = "sturdyref_text")]
    pub grant: Sturdyref,
    /// What is listened on, as asked but with the ports that were chosen.
    pub bound: Vec<Place>,
    /// What the grant said of itself.
    pub service: Described,
}

/// A program that was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgramRow {
    /// Its process.
    pub pid: i32,
    /// When that process started, in the kernel's ticks: a pid alone may come again.
    pub started: u64,
    /// The digest of all that it was started with.
    #[serde(default)]
    pub digest: String,
}

/// Why a grant cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantRefused {
    /// The service is not offered.
    #[error("no such service is offered here")]
    UnknownService,
    /// This generation or a later one is revoked, or a later one is granted.
    #[error("a generation as late was already seen here")]
    Generation,
    /// The same generation was granted with other terms.
    #[error("this generation was already granted on other terms")]
    Terms,
    /// The grant that it is to be made from is not given out here.
    #[error("the grant that it is made from is not given out here, or is one of too many")]
    Parent,
    /// It asks for more than the grant that it is made from has.
    #[error(transparent)]
    Wider(#[from] Wider),
    /// It asks for what its service cannot enforce.
    #[error(transparent)]
    Unenforceable(#[from] Unenforceable),
    /// It asks for what is no limit.
    #[error("{0}")]
    Limit(String),
    /// It would have ended before it began.
    #[error("it has expired by this machine's clock")]
    Expired,
    /// `GRANTS_MAX` is reached.
    #[error("this machine gives out no more grants")]
    Full,
}

impl GrantRefused {
    /// Returns the code on the wire.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownService => code::UNKNOWN,
            Self::Generation => code::REVOKED,
            Self::Parent => code::UNKNOWN,
            Self::Wider(_) | Self::Unenforceable(_) | Self::Limit(_) | Self::Expired => {
                code::RIGHTS
            }
            Self::Terms => code::TAKEN,
            Self::Full => code::BUSY,
        }
    }
}

impl Contents {
    /// Enters a grant, or finds it entered already.
    pub fn admit(
        &mut self,
        grant: Grant,
        swissnum_hash: String,
        now: u64,
    ) -> Result<GrantRow, GrantRefused> {
        let same = self
            .grants
            .iter()
            .filter(|row| row.grant.binding == grant.binding);
        if let Some(last) = same.max_by_key(|row| row.grant.generation) {
            if last.grant.generation > grant.generation {
                return Err(GrantRefused::Generation);
            }
            if last.grant.generation == grant.generation {
                return if last.grant == grant {
                    Ok(last.clone())
                } else {
                    Err(GrantRefused::Terms)
                };
            }
        }
        // After that: one that is still given out may be earlier than one that was abandoned.
        let last = self.revoked.get(&grant.binding);
        if last.is_some_and(|last| *last >= grant.generation) {
            return Err(GrantRefused::Generation);
        }
        let Some(spec) = self.offers.get(&grant.service) else {
            return Err(GrantRefused::UnknownService);
        };
        spec.kind.enforces(&grant.attenuate)?;
        let rights = match &grant.parent {
            None => grant.attenuate.clone(),
            Some(parent) => self
                .lineage(parent)
                .filter(|it| it.len() < LINEAGE_MAX && it[0].grant.service == grant.service)
                .ok_or(GrantRefused::Parent)?[0]
                .rights
                .narrowed(&grant.attenuate)?,
        };
        check_limits(spec.kind.name(), &rights).map_err(GrantRefused::Limit)?;
        if rights.expires.is_some_and(|end| end <= now) {
            return Err(GrantRefused::Expired);
        }
        if self.grants.len() >= GRANTS_MAX {
            return Err(GrantRefused::Full);
        }
        let row = GrantRow {
            minted: spec.kind.mints().then(|| spec.clone()),
            grant,
            rights,
            swissnum_hash,
            since: now,
        };
        self.grants.push(row.clone());
        Ok(row)
    }

    /// Returns a grant with those that it was made from, itself first; nothing where one is
    /// missing.
    pub fn lineage(&self, generation: &Generation) -> Option<Vec<&GrantRow>> {
        let mut lineage = Vec::new();
        let mut next = Some(generation);
        while let Some(generation) = next.filter(|_| lineage.len() < LINEAGE_MAX) {
            let row = self.grants.iter().find(|row| row.grant.is(generation))?;
            lineage.push(row);
            next = row.grant.parent.as_ref();
        }
        Some(lineage)
    }

    /// Enters that a generation, and all before it or none of them, are revoked, whether or not
    /// they were granted, and with them what was made from them. Returns the grants that have
    /// ended. No generation up to this one is granted any more.
    pub fn revoke(&mut self, revoked: &Generation, span: Span) -> Vec<Generation> {
        let mut ended = Vec::new();
        let mut next = vec![revoked.clone()];
        while let Some(revoked) = next.pop() {
            let last = self.revoked.entry(revoked.binding.clone()).or_default();
            *last = revoked.generation.max(*last);
            let ends = |row: &mut GrantRow| span.has(&revoked, &row.grant.generation());
            for row in self.grants.extract_if(.., ends) {
                let generation = row.grant.generation();
                if let Some(spec) = row.minted {
                    let generation = generation.clone();
                    self.leaving.push(LeavingRow { generation, spec });
                }
                ended.push(generation);
            }
            let children = self.grants.iter().filter(|row| {
                let parent = row.grant.parent.as_ref();
                parent.is_some_and(|parent| span.has(&revoked, parent))
            });
            next.extend(children.map(|row| row.grant.generation()));
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{grant, offering};
    use super::*;
    use crate::protocol::Access;

    #[test]
    fn grants_repeat_and_generations_only_rise() {
        let mut contents = offering();
        let mut admit = |grant: Grant| contents.admit(grant, "hash".into(), 7).map(|row| row.since);
        assert_eq!(admit(grant("binding.db", 2)), Ok(7));
        assert_eq!(admit(grant("binding.db", 2)), Ok(7));
        let other = Grant {
            receiver: "xyz".into(),
            ..grant("binding.db", 2)
        };
        assert_eq!(admit(other), Err(GrantRefused::Terms));
        assert_eq!(admit(grant("binding.db", 1)), Err(GrantRefused::Generation));
        let unknown = Grant {
            service: "nothing".into(),
            ..grant("binding.db", 3)
        };
        assert_eq!(admit(unknown), Err(GrantRefused::UnknownService));
        assert_eq!(admit(grant("binding.db", 3)), Ok(7));
        assert_eq!(contents.grants.len(), 2);
    }

    #[test]
    fn s7_a_grant_is_of_what_its_parent_is_of_and_of_what_can_be_enforced() {
        let mut contents = offering();
        let spec = contents.offers["orders"].clone();
        contents.offers.insert("other".into(), spec);
        let mut admit = |grant: Grant| contents.admit(grant, "hash".into(), 7).map(drop);
        let attenuate = Attenuate {
            access: Some(Access::Read),
            ..Attenuate::default()
        };
        let unenforceable = Grant {
            attenuate,
            ..grant("binding.db", 1)
        };
        let refused = admit(unenforceable).unwrap_err();
        assert!(
            matches!(refused, GrantRefused::Unenforceable(_)),
            "{refused}"
        );
        admit(grant("binding.db", 1)).unwrap();
        let child = |service: &str| Grant {
            service: service.into(),
            parent: Some(grant("binding.db", 1).generation()),
            ..grant("binding.on", 1)
        };
        assert_eq!(admit(child("other")), Err(GrantRefused::Parent));
        assert_eq!(admit(child("orders")), Ok(()));
    }

    proptest! {
        /// S5: whatever the order, nothing that was revoked is granted, now or later.
        #[test]
        fn what_was_revoked_never_comes_back(
            steps in prop::collection::vec((any::<bool>(), 0..3_u8, 0..6_u64), 0..40),
        ) {
            let mut contents = offering();
            let mut revoked = [None::<u64>; 3];
            for (grants, which, generation) in steps {
                let binding = format!("binding.b{which}");
                let last = &mut revoked[usize::from(which)];
                if grants {
                    let result = contents.admit(grant(&binding, generation), String::new(), 0);
                    prop_assert!(result.is_err() || last.is_none_or(|last| generation > last));
                } else {
                    contents.revoke(&Generation { binding, generation }, Span::AndBefore);
                    *last = (*last).max(Some(generation));
                }
                for row in &contents.grants {
                    let which: usize = row.grant.binding["binding.b".len()..].parse().unwrap();
                    prop_assert!(revoked[which].is_none_or(|last| row.grant.generation > last));
                }
            }
        }
    }
}
