//! A boss with a state of its own in this process, machines that are processes, and services.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use gobs::boss::{BindRequest, Boss, BossError, BossOptions, Bound, UnbindRequest};
use gobs::clock::Clock;
use gobs::lang::Dial;
use gobs_model::{Address, Instance, Known, Name, Value};
use gobs_state::{BossStore, DataKey, Intent, Lock, NewClaim, Store};
use hob::layout::{Layout, MACHINE_FORMAT, Machine};
use hob::protocol::UserData;
use ocapn::{EnlivenError, Identity, Passable, Peer, Reference, Sturdyref, TlsRpk, TlsRpkOptions};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::time::{sleep, timeout};

/// How long anything may take on a host that is busy with other tests.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until a condition holds.
pub(super) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// What a project's boss needs: a state file, and a run that may write intents.
pub(super) struct Home {
    directory: TempDir,
    key: DataKey,
    store: Mutex<Store>,
    /// The time that its bosses have.
    pub(super) clock: Clock,
}

impl Home {
    /// Returns a home in which nothing has happened.
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let key = DataKey::generate().expect("a key");
        let lock = Lock::acquire(&directory.path().join("lock"), "test", SystemTime::now());
        let state = directory.path().join("state.db");
        let mut store = Store::open(&state, &key, lock.expect("a free lock")).expect("a state");
        let _ = store.begin_run("apply", SystemTime::now()).expect("a run");
        Self {
            directory,
            key,
            store: Mutex::new(store),
            clock: Clock::system(),
        }
    }

    /// Returns the boss's tables.
    pub(super) fn tables(&self) -> BossStore {
        BossStore::open(&self.directory.path().join("state.db"), &self.key).expect("a state")
    }

    /// Returns the path of the boss's socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.directory.path().join("boss.sock")
    }

    /// Starts the boss, or says why it cannot.
    pub(super) async fn try_boss(&self) -> Result<Boss, BossError> {
        self.boss_at("127.0.0.1:0", &[]).await
    }

    /// Starts the boss with these addresses, or says why it cannot.
    pub(super) async fn boss_at(
        &self,
        listen: &str,
        advertise: &[&str],
    ) -> Result<Boss, BossError> {
        let options = BossOptions {
            listen: listen.into(),
            advertise: advertise.iter().map(|it| (*it).to_owned()).collect(),
            socket: self.socket(),
            program: None,
            clock: self.clock.clone(),
            homes: Vec::new(),
            dies_after: None,
        };
        Boss::start(self.tables(), options).await
    }

    /// Starts the boss.
    pub(super) async fn boss(&self) -> Boss {
        self.try_boss().await.expect("the boss starts")
    }

    /// Invites a machine's first incarnation, as apply does; returns its user data.
    pub(super) fn invite(&self, boss: &Boss, machine: &str) -> String {
        self.invite_as_of(boss, machine, 1, self.clock.now())
    }

    /// The same for any incarnation, with an invitation that was made at another time.
    pub(super) fn invite_as_of(
        &self,
        boss: &Boss,
        machine: &str,
        incarnation: u64,
        at: SystemTime,
    ) -> String {
        self.invite_to(boss, machine, incarnation, at, (Dial::Hob, "127.0.0.1:0"))
    }

    /// The same for a hob that listens here, and dials or is dialled.
    pub(super) fn invite_to(
        &self,
        boss: &Boss,
        machine: &str,
        incarnation: u64,
        at: SystemTime,
        (dial, listen): (Dial, &str),
    ) -> String {
        let machine = address(machine);
        let invitation = boss
            .mint_invitation(&machine, incarnation, dial, listen, Vec::new(), &[])
            .expect("an invitation");
        let intent = Intent {
            address: machine,
            action: "create".into(),
            token: None,
            claim: Some(NewClaim {
                minted_at: at,
                ..invitation.claim
            }),
            detail: serde_json::Value::Null,
        };
        let mut store = self.store.lock().expect("no panic");
        drop(store.commit(Vec::new(), vec![intent]).expect("committed"));
        invitation.user_data.encode().to_string()
    }
}

/// A machine: a directory, and an agent that is a process.
pub(super) struct Host {
    directory: TempDir,
    agent: Option<Child>,
}

impl Host {
    /// Makes a machine and starts its agent.
    pub(super) fn start(user_data: &str) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("gobs-boss-")
            .tempdir()
            .expect("a directory");
        let layout = Layout::new(directory.path());
        let machine = Machine {
            format: MACHINE_FORMAT,
            token: "test".into(),
            runtime: directory.path().join("run"),
            run: Vec::new(),
            units: None,
            cloud_init: Some(directory.path().join("cloud-init")),
        };
        let text = serde_json::to_vec(&machine).expect("JSON");
        std::fs::write(layout.machine(), text).expect("written");
        std::fs::write(layout.user_data(), user_data).expect("written");
        let mut host = Self {
            directory,
            agent: None,
        };
        host.start_again();
        host
    }

    /// Starts the agent alone.
    pub(super) fn start_again(&mut self) {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.log_path())
            .expect("a log");
        let agent = Command::new(env!("CARGO_BIN_EXE_gobs"))
            .args(["hob", "--session", "--dir"])
            .arg(self.directory.path())
            .env("GOBS_LOG", "debug")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn();
        self.agent = Some(agent.expect("the agent starts"));
    }

    /// Returns the path of a file of the machine.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    fn log_path(&self) -> PathBuf {
        self.path("hob.log")
    }

    /// Returns what the agent has logged.
    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).expect("a log")
    }

    /// Sends the agent a signal.
    pub(super) fn signal(&self, signal: Signal) {
        let agent = self.agent.as_ref().expect("an agent that runs");
        kill_process(Pid::from_child(agent), signal).expect("sent");
    }

    /// Kills the agent without a word.
    pub(super) fn kill(&mut self) {
        let mut agent = self.agent.take().expect("an agent that runs");
        agent.kill().expect("killed");
        agent.wait().expect("waited for");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = std::io::stderr().write_all(self.log().as_bytes());
        }
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// `machine.db` with the service `orders`, `machine.app`, and their boss.
pub(super) struct Pair {
    /// The app's user data, as whoever reads it on the machine has it.
    pub(super) invitation: String,
    pub(super) app: Host,
    pub(super) db: Host,
    pub(super) boss: Boss,
    pub(super) home: Home,
}

impl Pair {
    /// Starts both machines; `orders` is an echo.
    pub(super) async fn start() -> Self {
        let home = Home::new();
        let boss = home.boss().await;
        let db = Host::start(&home.invite(&boss, "machine.db"));
        let invitation = home.invite(&boss, "machine.app");
        let app = Host::start(&invitation);
        let pair = Self {
            invitation,
            app,
            db,
            boss,
            home,
        };
        for machine in ["machine.db", "machine.app"] {
            registered(&pair.boss, machine).await;
        }
        let spec = Value::object([("tcp", Value::from(echo().await))]);
        let spec = Known::try_from(spec).expect("known");
        let offered = pair
            .boss
            .offer(
                &(instance("machine.db"), 1),
                &name("orders"),
                &spec,
                PATIENCE,
                &tokio::sync::watch::Sender::default(),
            )
            .await;
        offered.expect("offered");
        pair
    }

    /// Gives `db` to the app.
    pub(super) async fn bind(&self, generation: u64) -> Result<Bound, BossError> {
        let reason = tokio::sync::watch::Sender::default();
        self.boss.bind(bind_request(generation), &reason).await
    }
}

/// Waits until a machine's hob has registered.
pub(super) async fn registered(boss: &Boss, machine: &str) -> String {
    let registered = boss.wait_registered(&address(machine), 1, PATIENCE).await;
    registered.expect("registered").designator
}

/// A grant of `orders` on the db to the app, under the name `db`.
pub(super) fn bind_request(generation: u64) -> BindRequest {
    BindRequest {
        binding: address("binding.db"),
        generation,
        exporter: (instance("machine.db"), 1),
        service: name("orders"),
        parent: None,
        importer: (instance("machine.app"), 1),
        name: name("db"),
        attenuate: hob::protocol::Attenuate::default(),
        expose: Value::list([]),
        ready: PATIENCE,
        replaces: false,
    }
}

/// The way back.
pub(super) fn unbind_request(generation: u64) -> UnbindRequest {
    let BindRequest {
        binding,
        exporter,
        importer,
        ..
    } = bind_request(generation);
    UnbindRequest {
        binding,
        generation,
        exporter: Some(exporter),
        importer: Some(importer),
    }
}

/// Returns the one-time sturdyref in a machine's user data.
pub(super) fn sturdyref(user_data: &str) -> Sturdyref {
    UserData::decode(user_data).expect("user data").sturdyref
}

/// Returns a peer with this key that dials and does not listen.
pub(super) fn peer(identity: &Identity) -> Peer {
    let netlayer = TlsRpk::dial_only(identity.clone(), TlsRpkOptions::default());
    Peer::builder().netlayer(netlayer.expect("a key")).spawn()
}

/// Returns a peer with a key that nobody knows.
pub(super) fn stranger() -> Peer {
    peer(&Identity::generate().expect("a key"))
}

/// Returns what the peer with the object says of a refused fetch, as it crossed the wire.
pub(super) async fn refusal(peer: &Peer, sturdyref: &Sturdyref) -> Passable {
    match timeout(PATIENCE, peer.enliven(sturdyref))
        .await
        .expect("an answer")
    {
        Err(EnlivenError::Refused(broken)) => broken.reason(),
        other => panic!("not refused: {other:?}"),
    }
}

/// Returns the object that a sturdyref names.
pub(super) async fn enliven(peer: &Peer, sturdyref: &Sturdyref) -> Reference {
    let enlivened = timeout(PATIENCE, peer.enliven(sturdyref)).await;
    enlivened.expect("an answer").expect("given")
}

pub(super) fn address(text: &str) -> Address {
    text.parse().expect("an address")
}

pub(super) fn instance(text: &str) -> Instance {
    address(text).as_machine().expect("a machine").clone()
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

/// A program not ours that answers each byte at once. Returns its address.
async fn echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    address
}

/// A program's connection through a binding.
pub(super) struct Client(UnixStream);

impl Client {
    /// Connects to where the binding is exposed.
    pub(super) async fn connect(bound: &Bound) -> Self {
        let path = bound.address.strip_prefix("unix:").expect("a socket");
        Self(UnixStream::connect(path).await.expect("a listener"))
    }

    /// Sends some bytes and waits for them to come back.
    pub(super) async fn ping(&mut self) {
        let there_and_back = async {
            self.0.write_all(b"over and back").await.expect("sent");
            let mut back = [0; 13];
            self.0.read_exact(&mut back).await.expect("answered");
            assert_eq!(&back, b"over and back");
        };
        timeout(PATIENCE, there_and_back).await.expect("an answer");
    }

    /// Waits until the stream has ended, without another byte.
    pub(super) async fn ends(&mut self) {
        let mut byte = [0; 1];
        let read = timeout(PATIENCE, self.0.read(&mut byte)).await;
        assert!(matches!(read.expect("an end"), Ok(0) | Err(_)));
    }
}
