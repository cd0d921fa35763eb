//! The grant as its receiver sees it: an object that answers one key.

use std::sync::{Arc, Weak};

use ocapn::{Answer, Broken, Object, Passable, PeerId, Turn};

use super::Grants;
use super::live::Membrane;
use crate::protocol::{Args, Described, code, method, to_passable};

pub(super) struct GrantObject {
    grants: Weak<Grants>,
    membrane: Arc<Membrane>,
}

impl Grants {
    pub(super) fn object(self: &Arc<Self>, membrane: Arc<Membrane>) -> GrantObject {
        GrantObject {
            grants: Arc::downgrade(self),
            membrane,
        }
    }

    fn describe(&self, membrane: &Membrane) -> Result<Described, Broken> {
        let lease = self.lease(membrane)?;
        let facts = self.services.facts(&lease);
        Ok(Described {
            binding: lease.generation.binding,
            generation: lease.generation.generation,
            kind: lease.spec.kind.name().into(),
            r#type: lease.spec.r#type,
            database: facts.database,
            username: facts.username,
        })
    }
}

impl Object for GrantObject {
    fn deliver(&self, turn: &Turn, args: Vec<Passable>) -> Answer {
        self.turn(turn.peer(), args)
            .unwrap_or_else(|refused| Answer::Now(Err(refused)))
    }
}

impl GrantObject {
    fn turn(&self, from: Option<&PeerId>, args: Vec<Passable>) -> Result<Answer, Broken> {
        let args = Args::read(args)?;
        let membrane = &self.membrane;
        let gone = || Broken::new(code::UNREACHABLE, "the machine is shutting down");
        let grants = self.grants.upgrade().ok_or_else(gone)?;
        // A call from nobody is the hob's own: it holds what it gives to its own machine.
        let answers = membrane.answers(from) || from.is_none() && grants.is_own(membrane);
        if !answers {
            return Err(Broken::new(
                code::NOT_YOURS,
                "this grant answers another key",
            ));
        }
        let other = match args.method() {
            method::OPEN => {
                return Ok(Answer::value(grants.ticket(membrane)?.to_passable()));
            }
            method::DESCRIBE => {
                return Ok(Answer::value(to_passable(&grants.describe(membrane)?)));
            }
            other => other.to_owned(),
        };
        let lease = grants.lease(membrane)?;
        let mut revoked = membrane.revoked.subscribe();
        let answer = grants
            .services
            .call(&lease, &other, args.rest())
            .ok_or_else(|| Broken::new(code::MALFORMED, "this grant has no such method"))?;
        let (grants, membrane) = (Arc::clone(&grants), Arc::clone(membrane));
        Ok(Answer::later(async move {
            // A revocation waits for what it has cut.
            let place = grants.enter(&membrane).map_err(|reply| match reply {
                crate::protocol::StreamReply::Busy => Broken::new(
                    code::BUSY,
                    "as many calls as the grant allows are under way",
                ),
                _ => Broken::new(code::REVOKED, "this grant is revoked"),
            })?;
            let answer = tokio::select! {
                biased;
                _ = revoked.wait_for(|revoked| *revoked) => {
                    Err(Broken::new(code::REVOKED, "this grant is revoked"))
                }
                answer = answer => answer,
            };
            drop(place);
            answer
        }))
    }
}
