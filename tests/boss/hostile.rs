//! Hostile peers on the boss's port: nobody else notices.

use hob::protocol::{PROTOCOL, Register, RegisterReply, code, method, to_passable};
use ocapn::{
    Answer, Identity, Object, Passable, Peer, PeerLocator, Reference, SessionEvent, Sturdyref,
    Swissnum, TlsRpk, TlsRpkOptions, Turn,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::home::{
    Client, Host, PATIENCE, Pair, enliven, peer, refusal, registered, stranger, sturdyref,
};

const OCAPN: &[u8] = b"ocapn/1";

/// Machines that work while others attack.
struct Town {
    pair: Pair,
    client: Client,
    newcomers: u32,
}

impl Town {
    async fn new() -> Self {
        let pair = Pair::start().await;
        let bound = pair.bind(1).await.expect("bound");
        Self {
            client: Client::connect(&bound).await,
            pair,
            newcomers: 0,
        }
    }

    fn boss(&self) -> PeerLocator {
        self.pair.boss.locator()
    }

    /// Bytes flow, sessions stand, calls are answered, and a new machine is enrolled.
    async fn goes_on(&mut self) {
        self.client.ping().await;
        self.newcomers += 1;
        let machine = format!("machine.late[{}]", self.newcomers);
        let _host = Host::start(&self.pair.home.invite(&self.pair.boss, &machine));
        registered(&self.pair.boss, &machine).await;
        let report = self.pair.boss.status().await.expect("a report");
        for machine in ["machine.app", "machine.db"] {
            let hob = report.hobs.iter().find(|hob| hob.machine == machine);
            assert!(hob.is_some_and(|hob| hob.status.is_some()), "{machine}");
        }
        for host in [&self.pair.app, &self.pair.db] {
            assert!(!host.log().contains("the session with the boss is over"));
        }
    }
}

async fn tcp(boss: &PeerLocator) -> TcpStream {
    let (host, port) = boss.addresses().remove(0);
    TcpStream::connect((host, port)).await.expect("connected")
}

#[tokio::test(flavor = "multi_thread")]
async fn c4_garbage_is_cut_off() {
    let mut town = Town::new().await;
    let garbage: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[0xff; 70_000],
        // A frame of 4 GiB, one that is no Syrup, and one that never ends.
        &[0xff, 0xff, 0xff, 0xff, 1, 2, 3],
        b"\0\0\0\x0899999999",
        b"\0\0\0\x04[[[[",
    ];
    let identity = Identity::generate().expect("a key");
    let netlayer = TlsRpk::dial_only(identity, TlsRpkOptions::default()).expect("a key");
    for bytes in garbage {
        let mut plain = tcp(&town.boss()).await;
        // It may be cut while it is still talking.
        let _ = plain.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, plain.read_to_end(&mut answer))
            .await
            .expect("cut off");
        let dialled = netlayer.stream_dialer().dial(&town.boss(), OCAPN).await;
        let mut authenticated = dialled.expect("connected");
        let _ = authenticated.write_all(bytes).await;
        let _ = authenticated.shutdown().await;
        let end = timeout(PATIENCE, authenticated.read_to_end(&mut answer)).await;
        let _ = end.expect("cut off");
    }
    town.goes_on().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c4_silent_connections_leave_room_for_others() {
    const CONNECTIONS: usize = 100;
    let mut town = Town::new().await;
    let mut silent = Vec::new();
    let mut authenticated = Vec::new();
    let identity = Identity::generate().expect("a key");
    let netlayer = TlsRpk::dial_only(identity, TlsRpkOptions::default()).expect("a key");
    for _ in 0..CONNECTIONS {
        let dialled = netlayer.stream_dialer().dial(&town.boss(), OCAPN).await;
        authenticated.push(dialled.expect("connected"));
    }
    for _ in 0..CONNECTIONS {
        silent.push(tcp(&town.boss()).await);
    }
    town.goes_on().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c4_who_guesses_swissnums_is_sent_away() {
    const GUESSES_MAX: u32 = 1_000;
    let mut town = Town::new().await;
    let guesser = stranger();
    let mut events = guesser.session_events();
    let mut guesses = 0u32;
    loop {
        let guess = Sturdyref {
            peer: town.boss(),
            swissnum: Swissnum::new(guesses.to_be_bytes()),
        };
        let _ = timeout(PATIENCE, guesser.enliven(&guess))
            .await
            .expect("an answer");
        guesses += 1;
        assert!(guesses < GUESSES_MAX, "never sent away");
        if let Ok(SessionEvent::Down(_, reason)) = events.try_recv() {
            assert!(reason.contains("too many"), "{reason}");
            break;
        }
    }
    town.goes_on().await;
}

/// What a made-up hob hands over as itself.
struct Nothing;

impl Object for Nothing {
    fn deliver(&self, _turn: &Turn, _args: Vec<Passable>) -> Answer {
        Answer::value(Passable::Null)
    }
}

/// A hob that says what it likes.
struct Liar {
    peer: Peer,
    presence: Reference,
}

impl Liar {
    fn own(&self) -> PeerLocator {
        self.peer.locator()
    }

    fn sturdyref(&self, peer: PeerLocator) -> Passable {
        let swissnum = Swissnum::new([1; 32]);
        Sturdyref { peer, swissnum }.into()
    }

    fn register(&self, protocol: u32, locator: PeerLocator, join_sequence: u64) -> Vec<Passable> {
        let register = Register {
            protocol,
            locator,
            join_sequence,
            version: "0".into(),
        };
        let client = self.peer.export(Nothing).into();
        vec![to_passable(&register), client, self.sturdyref(self.own())]
    }

    async fn refused(&self, method: &str, args: Vec<Passable>) -> String {
        let answer = timeout(PATIENCE, self.presence.call(method, args)).await;
        let broken = answer.expect("an answer").expect_err("refused");
        broken.code().expect("a code").to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hob_that_lies_changes_nothing() {
    let mut town = Town::new().await;
    let identity = Identity::generate().expect("a key");
    let claim = sturdyref(&town.pair.home.invite(&town.pair.boss, "machine.liar"));
    let peer = peer(&identity);
    let presence = enliven(&peer, &claim).await;
    let liar = Liar { peer, presence };
    let hobs = town.pair.home.tables().hobs().expect("readable");
    let db = hobs
        .iter()
        .find(|hob| hob.machine.to_string() == "machine.db");
    let other: PeerLocator = db.expect("registered").locator.parse().expect("a locator");
    let own = liar.own();

    let mut others_sturdyref = liar.register(PROTOCOL, own.clone(), 0);
    others_sturdyref[2] = liar.sturdyref(other.clone());
    let mut no_client = liar.register(PROTOCOL, own.clone(), 0);
    no_client.remove(1);
    let mut no_data = liar.register(PROTOCOL, own.clone(), 0);
    no_data[0] = "register".into();
    for (method, args, expected) in [
        (
            method::REGISTER,
            liar.register(PROTOCOL, other, 0),
            code::MALFORMED,
        ),
        (
            method::REGISTER,
            liar.register(PROTOCOL + 1, own.clone(), 0),
            code::VERSION,
        ),
        (method::REGISTER, others_sturdyref, code::MALFORMED),
        (method::REGISTER, no_client, code::MALFORMED),
        (method::REGISTER, no_data, code::MALFORMED),
        (method::REGISTER, Vec::new(), code::MALFORMED),
        (method::GRANT, Vec::new(), code::MALFORMED),
        ("get-machine", vec!["machine.db".into()], code::MALFORMED),
    ] {
        assert_eq!(liar.refused(method, args).await, expected);
    }
    assert_eq!(town.pair.home.tables().hobs().expect("readable"), hobs);
    town.goes_on().await;

    // It can still say the truth; a stale word after that tells of a copy, and locks it.
    let registered = liar
        .presence
        .call(method::REGISTER, liar.register(PROTOCOL, own.clone(), 0));
    let registered = timeout(PATIENCE, registered)
        .await
        .expect("an answer")
        .expect("taken");
    let registered = RegisterReply::from_passable(&registered).expect("an answer");
    assert_eq!(registered.registered.machine, "machine.liar");
    refusal(&stranger(), &registered.presence).await;
    assert_eq!(
        enliven(&liar.peer, &registered.presence).await,
        liar.presence
    );
    let confirmed = liar
        .presence
        .call(method::REGISTER, liar.register(PROTOCOL, own.clone(), 1));
    timeout(PATIENCE, confirmed)
        .await
        .expect("an answer")
        .expect("taken");
    for join_sequence in [0, 1] {
        let stale = liar.register(PROTOCOL, own.clone(), join_sequence);
        assert_eq!(liar.refused(method::REGISTER, stale).await, code::STALE);
    }
    let report = town.pair.boss.status().await.expect("a report");
    let locked: Vec<_> = report.hobs.iter().filter(|hob| hob.locked).collect();
    assert_eq!(locked.len(), 1);
    assert_eq!(locked[0].machine, "machine.liar");
    town.goes_on().await;
}
