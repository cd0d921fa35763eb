//! Vats connected in memory: bytes go from one to the other when the test says so.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt;
use ocapn::{
    Answer, Broken, Dialect, Direction, Greet, Limits, Object, Opening, Passable, PeerId,
    PeerLocator, Promise, Reference, SessionId, Turn, Vat, VatEvent, VatOptions,
};

pub(crate) const TRANSPORT: &str = "memory";

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct End {
    pub(crate) vat: usize,
    pub(crate) session: SessionId,
}

pub(crate) struct Link {
    pub(crate) ends: [End; 2],
    /// Bytes on their way to each end.
    pub(crate) to: [VecDeque<u8>; 2],
    pub(crate) cut: bool,
}

pub(crate) struct World {
    pub(crate) vats: Vec<Vat>,
    pub(crate) links: Vec<Link>,
    /// What each vat exports by swissnum.
    pub(crate) published: Vec<BTreeMap<Vec<u8>, Reference>>,
    pub(crate) ups: Vec<(usize, PeerId)>,
    pub(crate) downs: Vec<(usize, PeerId, String)>,
    pub(crate) fetched_by: Vec<PeerId>,
    pub(crate) authenticated: bool,
    pub(crate) dialect: Dialect,
    tasks: Vec<futures_util::future::BoxFuture<'static, ()>>,
    seed: u64,
}

pub(crate) fn name(vat: usize) -> String {
    format!("vat{vat}")
}

impl World {
    pub(crate) fn new(vats: usize) -> Self {
        Self::with_limits(vats, Limits::default())
    }

    pub(crate) fn with_limits(vats: usize, limits: Limits) -> Self {
        let vat = |n| {
            let location = PeerLocator::new(TRANSPORT, name(n)).with_hint("n", n.to_string());
            Vat::new(VatOptions {
                location,
                limits: limits.clone(),
            })
        };
        Self {
            vats: (0..vats).map(vat).collect(),
            links: Vec::new(),
            published: vec![BTreeMap::new(); vats],
            ups: Vec::new(),
            downs: Vec::new(),
            fetched_by: Vec::new(),
            authenticated: true,
            dialect: Dialect::D2,
            tasks: Vec::new(),
            seed: 0,
        }
    }

    fn seed(&mut self) -> [u8; 32] {
        self.seed += 1;
        let mut seed = [7; 32];
        seed[..8].copy_from_slice(&self.seed.to_be_bytes());
        seed
    }

    pub(crate) fn opening(&mut self, peer: usize, direction: Direction) -> Opening {
        let peer = PeerId {
            transport: TRANSPORT.into(),
            designator: if self.authenticated {
                name(peer)
            } else {
                String::new()
            },
            authenticated: self.authenticated,
            address: None,
        };
        let greet = match direction {
            Direction::Inbound if self.authenticated => Greet::AfterPeer,
            _ => Greet::AtOnce,
        };
        Opening {
            seed: self.seed(),
            direction,
            peer: Some(peer),
            dialect: self.dialect,
            greet,
        }
    }

    /// Connects two vats; nothing travels yet.
    pub(crate) fn dial(&mut self, from: usize, to: usize) -> usize {
        let locator = PeerLocator::new(TRANSPORT, name(to));
        let out = self.opening(to, Direction::Outbound(locator));
        let inbound = self.opening(from, Direction::Inbound);
        let ends = [
            End {
                vat: from,
                session: self.vats[from].open(out),
            },
            End {
                vat: to,
                session: self.vats[to].open(inbound),
            },
        ];
        self.links.push(Link {
            ends,
            to: Default::default(),
            cut: false,
        });
        self.links.len() - 1
    }

    /// Connects two vats and waits until both are up.
    pub(crate) fn connect(&mut self, from: usize, to: usize) {
        self.dial(from, to);
        self.run();
        assert!(
            self.session(from, to).is_some(),
            "{from} and {to} are connected"
        );
    }

    pub(crate) fn session(&self, at: usize, with: usize) -> Option<SessionId> {
        self.vats[at].session_with(TRANSPORT, &name(with))
    }

    pub(crate) fn publish(&mut self, at: usize, swissnum: &str, object: impl Object) -> Reference {
        let reference = self.vats[at].export(object);
        self.published[at].insert(swissnum.into(), reference.clone());
        reference
    }

    /// Returns the promise of an object that another vat published.
    pub(crate) fn fetch(&self, at: usize, from: usize, swissnum: &str) -> Promise {
        let session = self.session(at, from).expect("a session");
        self.vats[at].fetch(session, &ocapn::Swissnum::new(swissnum))
    }

    /// Takes what a vat has to send to the link, and serves its events.
    pub(crate) fn serve(&mut self, vat: usize) -> bool {
        let mut progress = false;
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(event) = self.vats[vat].poll_event(&mut cx) {
            progress = true;
            match event {
                VatEvent::Spawn(task) => self.tasks.push(task),
                VatEvent::Fetch {
                    swissnum,
                    from,
                    answer,
                } => {
                    self.fetched_by.push(from);
                    if let Some(found) = self.published[vat].get(swissnum.reveal()) {
                        answer.fulfill(found.clone());
                    }
                }
                VatEvent::Dial(peer) => {
                    match (0..self.vats.len()).find(|n| name(*n) == peer.designator) {
                        Some(to) => drop(self.dial(vat, to)),
                        None => self.vats[vat].dial_failed(&peer, "no such peer"),
                    }
                }
                // Nothing is on its way when events are served: whoever waits is refused.
                VatEvent::Contested(session) => self.vats[vat].decide(session),
                VatEvent::Up(_, peer) => self.ups.push((vat, peer)),
                VatEvent::Down(_, peer, why) => self.downs.push((vat, peer, why)),
            }
        }
        self.tasks
            .retain_mut(|task| task.poll_unpin(&mut cx).is_pending());
        for link in &mut self.links {
            for side in 0..2 {
                if link.ends[side].vat != vat {
                    continue;
                }
                while let Poll::Ready(Some(output)) =
                    self.vats[vat].poll_transmit(link.ends[side].session, &mut cx)
                {
                    assert_eq!(output.ends.last(), Some(&output.bytes.len()));
                    progress = true;
                    if !link.cut {
                        link.to[1 - side].extend(output.bytes.iter());
                    }
                }
            }
        }
        progress
    }

    /// Gives one end up to `most` bytes that are on their way to it.
    pub(crate) fn arrive(&mut self, link: usize, side: usize, most: usize) -> bool {
        let link = &mut self.links[link];
        let most = most.min(link.to[side].len());
        let bytes: Vec<u8> = link.to[side].drain(..most).collect();
        if !bytes.is_empty() && !link.cut {
            let End { vat, session } = link.ends[side];
            // An end that is over drops what comes.
            let _ = self.vats[vat].receive(session, &bytes);
        }
        !bytes.is_empty()
    }

    pub(crate) fn cut(&mut self, link: usize) {
        let link = &mut self.links[link];
        link.cut = true;
        for end in link.ends {
            self.vats[end.vat].closed(end.session, "cut");
        }
    }

    /// Cuts the connection between two vats.
    pub(crate) fn cut_between(&mut self, one: usize, two: usize) {
        for link in 0..self.links.len() {
            let vats = self.links[link].ends.map(|end| end.vat);
            if vats == [one, two] || vats == [two, one] {
                self.cut(link);
            }
        }
    }

    /// Moves everything until nothing moves.
    pub(crate) fn run(&mut self) {
        loop {
            let mut progress = false;
            for vat in 0..self.vats.len() {
                progress |= self.serve(vat);
            }
            for link in 0..self.links.len() {
                for side in 0..2 {
                    progress |= self.arrive(link, side, usize::MAX);
                }
            }
            if !progress {
                return;
            }
        }
    }

    /// Runs until `promise` is settled, and lets go of it.
    pub(crate) fn get(&mut self, promise: Promise) -> Result<Passable, Broken> {
        self.wait(&promise)
    }

    /// Runs until `promise` is settled.
    pub(crate) fn wait(&mut self, promise: &Promise) -> Result<Passable, Broken> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut promise = promise.clone();
        // Polling asks the peer for the resolution, where that was not asked.
        let _ = promise.poll_unpin(&mut cx);
        self.run();
        loop {
            match promise.poll_unpin(&mut cx) {
                Poll::Ready(result) => return result,
                Poll::Pending => {
                    assert!(self.step_once(), "the promise never settles");
                }
            }
        }
    }

    fn step_once(&mut self) -> bool {
        let mut progress = false;
        for vat in 0..self.vats.len() {
            progress |= self.serve(vat);
        }
        self.run();
        progress
    }

    /// Panics unless no session of any vat holds anything, but perhaps gifts.
    pub(crate) fn assert_empty(&self, but_gifts: bool) {
        for link in &self.links {
            for end in link.ends {
                let held = self.vats[end.vat].inspect(end.session);
                let mut held = held.unwrap_or_default();
                if but_gifts {
                    held.gifts = 0;
                }
                assert_eq!(held, ocapn::Inspection::default(), "{end:?}");
            }
        }
    }
}

/// An object from a function.
pub(crate) struct Behavior<F>(pub(crate) F);

impl<F> Object for Behavior<F>
where
    F: Fn(&Turn, Vec<Passable>) -> Answer + Send + Sync + 'static,
{
    fn deliver(&self, turn: &Turn, args: Vec<Passable>) -> Answer {
        (self.0)(turn, args)
    }
}

/// Answers the list of what it gets.
pub(crate) fn echo() -> impl Object {
    Behavior(|_: &Turn, args| Answer::value(args))
}

/// Keeps what it gets, in order.
#[derive(Clone, Default)]
pub(crate) struct Log(pub(crate) Arc<Mutex<Vec<Vec<Passable>>>>);

impl Log {
    pub(crate) fn taken(&self) -> Vec<Vec<Passable>> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Object for Log {
    fn deliver(&self, _: &Turn, args: Vec<Passable>) -> Answer {
        self.0.lock().unwrap().push(args);
        Answer::value(true)
    }
}

/// Bytes to vat 1 as its peer, vat 0, would send them; `None` once the session is over.
pub(crate) fn send(world: &mut World, bytes: impl AsRef<[u8]>) -> Option<String> {
    let End { vat, session } = world.links[0].ends[1];
    let sent = world.vats[vat].receive(session, bytes.as_ref());
    for _ in 0..3 {
        world.serve(vat);
    }
    let back: Vec<u8> = world.links[0].to[0].drain(..).collect();
    sent.ok()?;
    Some(String::from_utf8_lossy(&back).into_owned())
}
