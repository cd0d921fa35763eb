//! The half on the machine, as the boss calls it: names to capabilities.

use std::sync::Arc;

use ocapn::{Answer, Broken, Object, Passable, PeerId, Turn};

use crate::agent::Hob;
use crate::protocol::{
    Args, Generation, Grant, Granted, Malformed, Offer, Probe, Registration, Withdraw, code,
    method, to_passable,
};
use crate::store::Span;

/// The object that the hob registers. It answers the boss that its presence is of, nobody else.
pub(crate) struct ClientPresence {
    hob: Arc<Hob>,
}

impl ClientPresence {
    /// Returns the presence of this machine.
    pub(crate) fn new(hob: Arc<Hob>) -> Self {
        Self { hob }
    }

    fn turn(&self, turn: &Turn, args: Vec<Passable>) -> Result<Answer, Broken> {
        let mut args = Args::read(args)?;
        if !turn.peer().is_some_and(|peer| answers(&self.hob, peer)) {
            return Err(Broken::new(
                code::NOT_YOURS,
                "this presence answers its boss",
            ));
        }
        let hob = Arc::clone(&self.hob);
        Ok(match args.method() {
            method::OFFER => {
                let offer: Offer = args.data("offer")?;
                Answer::later(async move {
                    hob.grants.offer(offer).await?;
                    Ok(Passable::Null)
                })
            }
            method::PROBE => {
                let asked: Probe = args.data("probe")?;
                Answer::later(async move { Ok(to_passable(&hob.grants.probe(asked).await?)) })
            }
            method::STREAMS => {
                let asked: Generation = args.data("streams")?;
                Answer::value(hob.grants.streams(&asked))
            }
            method::LOG => Answer::later(async move { Ok(hob.log().await.into()) }),
            method::WITHDRAW => {
                let Withdraw { service } = args.data("withdraw")?;
                Answer::later(async move {
                    hob.store
                        .write(move |contents| contents.offers.remove(&service))
                        .await?;
                    Ok(Passable::Null)
                })
            }
            method::GRANT => {
                let grant: Grant = args.data("grant")?;
                let vat = turn.vat().clone();
                Answer::later(async move {
                    let (object, sturdyref) = hob.grants.grant(&hob.locator, grant).await?;
                    let grant = vat.export(object);
                    Ok(Granted { grant, sturdyref }.to_passable())
                })
            }
            method::REVOKE => {
                let revoked: Generation = args.data("revoke")?;
                Answer::later(async move {
                    hob.grants.revoke(revoked, Span::AndBefore).await?;
                    Ok(Passable::Null)
                })
            }
            method::ABANDON => {
                let abandoned: Generation = args.data("abandon")?;
                Answer::later(async move {
                    hob.grants.revoke(abandoned, Span::Alone).await?;
                    Ok(Passable::Null)
                })
            }
            method::RETIRE => Answer::later(async move {
                hob.grants.retire().await?;
                Ok(Passable::Null)
            }),
            method::REGISTER_BINDING => {
                let registration: Registration = args.data("register-binding")?;
                let capability = args.reference("register-binding")?;
                let sturdyref = args.sturdyref("register-binding")?;
                Answer::later(async move {
                    let held = hob
                        .bindings
                        .register(registration, capability, sturdyref)
                        .await;
                    Ok(to_passable(&held.map_err(|it| hob.excused(it))?))
                })
            }
            method::EXPOSE_BINDING => {
                let registration: Registration = args.data("expose-binding")?;
                Answer::later(async move {
                    let held = hob.bindings.expose(registration).await;
                    Ok(to_passable(&held.map_err(|it| hob.excused(it))?))
                })
            }
            method::UNREGISTER_BINDING => {
                let given_up: Generation = args.data("unregister-binding")?;
                Answer::later(async move {
                    hob.bindings.unregister(given_up, Span::AndBefore).await?;
                    Ok(Passable::Null)
                })
            }
            method::ABANDON_BINDING => {
                let abandoned: Generation = args.data("abandon-binding")?;
                Answer::later(async move {
                    let stays = hob.bindings.unregister(abandoned, Span::Alone).await?;
                    Ok(stays.into())
                })
            }
            method::CHECK_BINDING => {
                let asked: Generation = args.data("check-binding")?;
                Answer::later(async move {
                    Ok(to_passable(&Arc::clone(&hob.bindings).check(asked).await?))
                })
            }
            method::GET_BINDING => {
                let name: String = args.data("get-binding")?;
                Answer::later(async move { Ok(Arc::clone(&hob.bindings).get(name).await?.into()) })
            }
            method::LIST_BINDINGS => Answer::value(to_passable(&hob.bindings.status())),
            method::STATUS => Answer::value(to_passable(&hob.status())),
            _ => {
                let why = "a client presence has no such method".into();
                return Err(Malformed { what: "call", why }.into());
            }
        })
    }
}

impl Object for ClientPresence {
    fn deliver(&self, turn: &Turn, args: Vec<Passable>) -> Answer {
        self.turn(turn, args)
            .unwrap_or_else(|refused| Answer::Now(Err(refused)))
    }
}

/// Returns whether this peer is the boss that the machine's presence is of.
pub(crate) fn answers(hob: &Hob, peer: &PeerId) -> bool {
    peer.authenticated
        && hob
            .boss()
            .is_some_and(|boss| peer.is(&boss.transport, &boss.designator))
}
