//! Peers, objects and waits that the tests of the driver share.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use ocapn::netlayer::Connection;
use ocapn::{
    Answer, Broken, Dialect, Direction, Greet, Identity, Limits, Netlayer, Object, Opening,
    Passable, Peer, PeerId, PeerLocator, Promise, Reference, SessionEvent, SessionId, Sturdyref,
    SturdyrefTable, Swissnum, TlsRpk, TlsRpkOptions, Turn, Vat, VatOptions,
};
use tokio::sync::broadcast;

/// A port of the operating system's choice.
pub(crate) const ANY_PORT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// No wait of a test is for a time, but none may last for ever either.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for what must come.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it took too long")
}

/// A peer with the objects that others may fetch from it.
pub(crate) struct TestPeer {
    pub(crate) peer: Peer,
    pub(crate) table: Arc<Table>,
    pub(crate) events: broadcast::Receiver<SessionEvent>,
}

/// Objects by swissnum, and who asked for which.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) objects: Mutex<HashMap<Vec<u8>, Reference>>,
    pub(crate) asked: Mutex<Vec<(Vec<u8>, PeerId)>>,
}

impl SturdyrefTable for Table {
    fn fetch(&self, swissnum: Bytes, from: &PeerId) -> BoxFuture<'static, Option<Reference>> {
        self.asked
            .lock()
            .unwrap()
            .push((swissnum.to_vec(), from.clone()));
        let object = self.objects.lock().unwrap().get(&*swissnum).cloned();
        async move {
            tokio::task::yield_now().await;
            object
        }
        .boxed()
    }
}

impl TestPeer {
    pub(crate) fn over(netlayer: impl Netlayer) -> Self {
        Self::with(Peer::builder().netlayer(netlayer))
    }

    pub(crate) fn with<N: Netlayer>(builder: ocapn::PeerBuilder<N>) -> Self {
        let table = Arc::new(Table::default());
        let peer = builder
            .sturdyrefs(Arc::clone(&table) as Arc<dyn SturdyrefTable>)
            .spawn();
        let events = peer.session_events();
        Self {
            peer,
            table,
            events,
        }
    }

    /// A peer that listens on a port of its own.
    pub(crate) async fn listening(options: TlsRpkOptions) -> Self {
        let identity = Identity::generate().unwrap();
        Self::over(TlsRpk::bind(identity, ANY_PORT, options).await.unwrap())
    }

    /// A peer that only dials.
    pub(crate) fn dialling(identity: Identity) -> Self {
        Self::over(TlsRpk::dial_only(identity, TlsRpkOptions::default()).unwrap())
    }

    pub(crate) fn designator(&self) -> String {
        self.peer.locator().designator
    }

    /// Exports an object under a swissnum.
    pub(crate) fn offer(&self, name: &str, object: impl Object) -> Sturdyref {
        let reference = self.peer.export(object);
        self.table
            .objects
            .lock()
            .unwrap()
            .insert(name.as_bytes().to_vec(), reference);
        self.sturdyref(name)
    }

    pub(crate) fn sturdyref(&self, name: &str) -> Sturdyref {
        Sturdyref {
            peer: self.peer.locator(),
            swissnum: Swissnum::new(name.as_bytes()),
        }
    }

    /// Waits for the next thing that happens to a session.
    pub(crate) async fn next_event(&mut self) -> SessionEvent {
        soon(self.events.recv()).await.unwrap()
    }

    pub(crate) async fn expect_up(&mut self, designator: &str) {
        match self.next_event().await {
            SessionEvent::Up(peer) => assert_eq!(peer.designator, designator),
            other => panic!("expected a session to come up, got {other:?}"),
        }
    }

    pub(crate) async fn expect_down(&mut self, designator: &str) -> String {
        match self.next_event().await {
            SessionEvent::Down(peer, reason) => {
                assert_eq!(peer.designator, designator);
                reason
            }
            other => panic!("expected a session to go down, got {other:?}"),
        }
    }
}

/// An object that is a function of its method and arguments.
pub(crate) struct Methods<F>(pub(crate) F);

impl<F> Object for Methods<F>
where
    F: Fn(&Turn, &str, &[Passable]) -> Answer + Send + Sync + 'static,
{
    fn deliver(&self, turn: &Turn, args: Vec<Passable>) -> Answer {
        match args.split_first() {
            Some((Passable::Symbol(method), args)) => (self.0)(turn, method.as_str(), args),
            _ => Answer::broken("no-method", "a method is wanted"),
        }
    }
}

/// What answers `echo` with its argument, `fail` with a break, `never` not at all, `who` with the
/// caller's designator, `self` with a new object of the kind.
pub(crate) fn service() -> impl Object {
    Methods(
        |turn: &Turn, method: &str, args: &[Passable]| match method {
            "echo" => Answer::Now(Ok(args.first().cloned().unwrap_or(Passable::Undefined))),
            "fail" => Answer::broken("asked-for", "as you wished"),
            "never" => Answer::later(std::future::pending()),
            "who" => Answer::value(turn.peer().map_or("", |peer| &peer.designator)),
            "self" => Answer::value(turn.vat().export(service())),
            _ => Answer::broken("no-method", "no such method"),
        },
    )
}

/// Calls `echo` and shows that the answer is right.
pub(crate) async fn echoes(reference: &Reference, text: &str) {
    let answer = soon(reference.call("echo", [text.into()])).await.unwrap();
    assert_eq!(answer.as_str(), Some(text));
}

/// Waits for a promise that must break because its session ended.
pub(crate) async fn severed(promise: Promise) {
    let broken: Broken = soon(promise).await.unwrap_err();
    assert!(broken.is_severed(), "{broken}");
}

/// One end of a session that is driven by hand, to do what no driver would.
pub(crate) struct ByHand {
    pub(crate) vat: Vat,
    pub(crate) session: SessionId,
    pub(crate) connection: Connection,
}

impl ByHand {
    /// Dials `to` and says that its own location is `claims`.
    pub(crate) async fn dial(
        netlayer: &dyn Netlayer,
        to: &PeerLocator,
        claims: PeerLocator,
    ) -> Self {
        let connection = soon(netlayer.dial(to)).await.unwrap();
        let vat = Vat::new(VatOptions {
            location: claims,
            limits: Limits::default(),
        });
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).unwrap();
        let session = vat.open(Opening {
            seed,
            direction: Direction::Outbound(to.clone()),
            peer: None,
            dialect: Dialect::D2,
            greet: Greet::AtOnce,
        });
        let mut by_hand = Self {
            vat,
            session,
            connection,
        };
        by_hand.send_pending().await;
        by_hand
    }

    /// Sends what the vat has to send, once there is something.
    pub(crate) async fn send_pending(&mut self) {
        let output = soon(self.vat.transmit(self.session)).await.unwrap();
        self.send(output.bytes).await;
    }

    pub(crate) async fn send(&mut self, bytes: impl Into<Bytes>) {
        soon(self.connection.outgoing.write(&mut vec![bytes.into()]))
            .await
            .unwrap();
    }

    /// Reads until the other end closes, and returns everything it sent.
    pub(crate) async fn read_to_end(&mut self) -> Vec<u8> {
        let mut chunks = Vec::new();
        while let Ok(true) = soon(self.connection.incoming.read(&mut chunks)).await {}
        chunks.concat()
    }

    /// Gives the vat what arrives until the session is up.
    pub(crate) async fn set_up(&mut self, with: &PeerLocator) {
        let mut chunks = Vec::new();
        while self
            .vat
            .session_with(&with.transport, &with.designator)
            .is_none()
        {
            assert!(
                soon(self.connection.incoming.read(&mut chunks))
                    .await
                    .unwrap()
            );
            for chunk in chunks.drain(..) {
                self.vat.receive(self.session, &chunk).unwrap();
            }
        }
    }
}
