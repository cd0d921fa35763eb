//! A boss for tests, machines that are processes, and services to bind.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hob::layout::{Layout, MACHINE_FORMAT};
use hob::protocol::{
    Args, Attenuate, Check, Expose, Generation, Grant, Granted, Held, HobStatus, Offer,
    RegisterReply, Registered, Registration, ServiceKind, ServiceSpec, USER_DATA_FORMAT, UserData,
    from_passable, method, to_passable,
};
use hob::server::{Call, Registering, Reply, ServerPresence};
use ocapn::{
    Answer, Broken, Identity, Object, Passable, Peer, PeerId, Reference, Sturdyref, SturdyrefTable,
    Swissnum, TlsRpk, TlsRpkOptions, Turn,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// How long anything may take on a host that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How often a process without any environment is looked at: while it becomes another program, it
/// has none.
const ENVIRONMENT_LOOKS_MAX: usize = 10;

/// Waits until a condition holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A boss that knows its machines from memory only.
pub(crate) struct Boss {
    pub(crate) peer: Peer,
    pub(crate) known: Arc<Known>,
}

/// What a boss has to keep when it ends.
#[derive(Default)]
pub(crate) struct Known {
    machines: Mutex<HashMap<String, Machine>>,
}

struct Machine {
    one_time: Vec<u8>,
    bound: Vec<u8>,
    expects: Vec<String>,
    exposes: BTreeMap<String, Vec<Expose>>,
    presence: watch::Sender<Option<ServerPresence<Reference>>>,
}

struct Table {
    known: Arc<Known>,
    own: OnceLock<(ocapn::PeerLocator, ocapn::Vat)>,
}

struct Presence {
    known: Arc<Known>,
    own: ocapn::PeerLocator,
    machine: String,
}

impl SturdyrefTable for Table {
    fn fetch(&self, swissnum: Bytes, from: &PeerId) -> BoxFuture<'static, Option<Reference>> {
        let mut machines = self.known.machines.lock().unwrap();
        let found = machines.iter_mut().find(|(_, machine)| {
            machine.one_time == swissnum.as_ref() || machine.bound == swissnum.as_ref()
        });
        let reference = found.and_then(|(name, machine)| {
            // The first fetch binds the key.
            machine.presence.send_modify(|presence| {
                presence.get_or_insert_with(|| ServerPresence::pending(&from.designator));
            });
            let bound_to = machine.presence.borrow().as_ref().unwrap().key().to_owned();
            let (own, vat) = self.own.get().unwrap().clone();
            let known = Arc::clone(&self.known);
            (from.authenticated && bound_to == from.designator).then(|| {
                vat.export(Presence {
                    known,
                    own,
                    machine: name.clone(),
                })
            })
        });
        Box::pin(async move { reference })
    }
}

impl Object for Presence {
    fn deliver(&self, turn: &Turn, args: Vec<Passable>) -> Answer {
        let register = || -> Result<Passable, Broken> {
            let mut args = Args::read(args)?;
            assert_eq!(args.method(), method::REGISTER);
            let call = Call::Register(Box::new(Registering {
                from: turn.peer().unwrap().clone(),
                register: args.data("register")?,
                client: args.reference("register")?,
                sturdyref: args.sturdyref("register")?,
            }));
            let machines = self.known.machines.lock().unwrap();
            let machine = &machines[&self.machine];
            let mut reply = Reply::Noted;
            machine.presence.send_modify(|presence| {
                let (next, answer) = presence.take().unwrap().turn(call);
                (*presence, reply) = (Some(next), answer);
            });
            match reply {
                Reply::Registered { join_sequence } => Ok(RegisterReply {
                    registered: Registered {
                        machine: self.machine.clone(),
                        join_sequence,
                        expects: machine.expects.clone(),
                        exposes: machine.exposes.clone(),
                    },
                    presence: Sturdyref {
                        peer: self.own.clone(),
                        swissnum: Swissnum::new(machine.bound.clone()),
                    },
                }
                .to_passable()),
                Reply::Refused(refused) => Err(Broken::new(refused.code(), refused.to_string())),
                Reply::Noted => unreachable!("a registration is answered"),
            }
        };
        Answer::Now(register())
    }
}

impl Boss {
    /// Starts a boss; with another's port, key and machines it is the same one again.
    pub(crate) async fn start(seed: &[u8; 32], listen: SocketAddr, known: Arc<Known>) -> Self {
        let identity = Identity::from_seed(seed);
        let netlayer = TlsRpk::bind(identity, listen, TlsRpkOptions::default())
            .await
            .unwrap();
        let own = OnceLock::new();
        let table = Arc::new(Table {
            known: Arc::clone(&known),
            own,
        });
        let peer = Peer::builder()
            .netlayer(netlayer)
            .sturdyrefs(table.clone())
            .spawn();
        table
            .own
            .set((peer.locator(), peer.vat().clone()))
            .ok()
            .unwrap();
        Self { peer, known }
    }

    /// Starts a boss with a key and a port of its own.
    pub(crate) async fn new() -> Self {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).unwrap();
        Self::start(&seed, "127.0.0.1:0".parse().unwrap(), Arc::default()).await
    }

    /// Returns what a new machine starts with.
    pub(crate) fn invite(&self, machine: &str, expects: &[&str]) -> UserData {
        let secret = |what: &str| format!("swissnum {what} of {machine}").into_bytes();
        let one_time = secret("one-time");
        let sturdyref = Sturdyref {
            peer: self.peer.locator(),
            swissnum: Swissnum::new(one_time.clone()),
        };
        let bound = secret("key-bound");
        let expects = expects.iter().map(|name| (*name).to_owned()).collect();
        let presence = watch::Sender::new(None);
        let entry = Machine {
            one_time,
            bound,
            expects,
            exposes: BTreeMap::new(),
            presence,
        };
        self.known
            .machines
            .lock()
            .unwrap()
            .insert(machine.to_owned(), entry);
        let listen = "127.0.0.1:0".into();
        UserData {
            format: USER_DATA_FORMAT,
            sturdyref,
            listen,
            advertise: Vec::new(),
        }
    }

    /// Says how a name will be exposed that a machine expects.
    pub(crate) fn announce(&self, machine: &str, name: &str, expose: Expose) {
        let mut machines = self.known.machines.lock().unwrap();
        let exposes = &mut machines.get_mut(machine).unwrap().exposes;
        exposes.insert(name.to_owned(), vec![expose]);
    }

    /// Waits until a machine's hob has registered on a session that stands.
    pub(crate) async fn client(&self, machine: &str) -> Client {
        let mut presence = self.known.machines.lock().unwrap()[machine]
            .presence
            .subscribe();
        let find = async {
            loop {
                let active = presence
                    .wait_for(|presence| matches!(presence, Some(ServerPresence::Active(_))))
                    .await
                    .unwrap()
                    .clone();
                let Some(ServerPresence::Active(active)) = active else {
                    unreachable!()
                };
                let hob = Client {
                    hob: active.client.unwrap(),
                    designator: active.key,
                };
                // One that registered on a session that is over will register again.
                match hob.hob.call(method::STATUS, []).await {
                    Ok(_) => return hob,
                    Err(_) => presence.changed().await.unwrap(),
                }
            }
        };
        timeout(PATIENCE, find).await.expect("the hob registers")
    }

    /// Returns the durable name that a machine's hob gave of its client presence.
    pub(crate) fn client_sturdyref(&self, machine: &str) -> Sturdyref {
        let presence = self.known.machines.lock().unwrap()[machine]
            .presence
            .borrow()
            .clone();
        let Some(ServerPresence::Active(active)) = presence else {
            panic!("not active")
        };
        active.sturdyref
    }
}

/// A machine's hob as the boss calls it.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) hob: Reference,
    pub(crate) designator: String,
}

impl Client {
    pub(crate) async fn call(&self, method: &str, args: Vec<Passable>) -> Result<Passable, Broken> {
        timeout(PATIENCE, self.hob.call(method, args))
            .await
            .expect("an answer")
    }

    pub(crate) async fn offer(&self, service: &str, kind: ServiceKind) {
        let spec = ServiceSpec {
            kind,
            r#type: Some("orders".into()),
        };
        let offer = Offer {
            service: service.into(),
            spec,
        };
        self.call(method::OFFER, vec![to_passable(&offer)])
            .await
            .unwrap();
    }

    pub(crate) async fn grant(&self, grant: &Grant) -> Result<Granted, Broken> {
        let granted = self.call(method::GRANT, vec![to_passable(grant)]).await?;
        Ok(Granted::from_passable(&granted).unwrap())
    }

    pub(crate) async fn revoke(&self, generation: &Generation) -> Result<(), Broken> {
        self.call(method::REVOKE, vec![to_passable(generation)])
            .await
            .map(drop)
    }

    pub(crate) async fn register(
        &self,
        registration: &Registration,
        granted: &Granted,
    ) -> Result<Held, Broken> {
        let args = vec![
            to_passable(registration),
            (&granted.grant).into(),
            granted.sturdyref.clone().into(),
        ];
        let held = self.call(method::REGISTER_BINDING, args).await?;
        Ok(from_passable("held", &held).unwrap())
    }

    pub(crate) async fn unregister(&self, generation: &Generation) {
        self.call(method::UNREGISTER_BINDING, vec![to_passable(generation)])
            .await
            .unwrap();
    }

    pub(crate) async fn check(&self, generation: &Generation) -> Check {
        let check = self
            .call(method::CHECK_BINDING, vec![to_passable(generation)])
            .await;
        from_passable("check", &check.unwrap()).unwrap()
    }

    pub(crate) async fn status(&self) -> HobStatus {
        from_passable("status", &self.call(method::STATUS, vec![]).await.unwrap()).unwrap()
    }
}

/// A generation of the binding that the tests make.
pub(crate) fn generation(number: u64) -> Generation {
    Generation {
        binding: "binding.db".into(),
        generation: number,
    }
}

/// A grant of the service `orders` for it.
pub(crate) fn grant(number: u64, receiver: &str) -> Grant {
    let Generation {
        binding,
        generation,
    } = generation(number);
    let attenuate = Attenuate::default();
    Grant {
        service: "orders".into(),
        binding,
        generation,
        receiver: receiver.into(),
        attenuate,
        parent: None,
    }
}

/// Its registration under the name `db`.
pub(crate) fn registration(number: u64, expose: &[Expose]) -> Registration {
    let Generation {
        binding,
        generation,
    } = generation(number);
    Registration {
        name: "db".into(),
        binding,
        generation,
        expose: expose.to_vec(),
    }
}

/// What hobs log: everything in tests, for whoever looks why one failed. Benchmarks say less, as
/// machines do.
pub(crate) static LOG: OnceLock<&str> = OnceLock::new();

/// A machine: a directory, and a hob that is a process.
pub(crate) struct Host {
    pub(crate) layout: Layout,
    pub(crate) runtime: PathBuf,
    token: String,
    dir: TempDir,
    hob: Option<Child>,
}

impl Host {
    /// Makes a machine that will run these lines, and starts its hob.
    pub(crate) fn start(user_data: &UserData, run: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let runtime = dir.path().join("run");
        let token = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
        std::fs::write(layout.user_data(), user_data.encode().as_bytes()).unwrap();
        let mut host = Self {
            layout,
            runtime,
            token,
            dir,
            hob: None,
        };
        host.describe(run);
        host.start_again();
        host
    }

    /// Writes the machine's description.
    pub(crate) fn describe(&self, run: &[&str]) {
        let machine = hob::layout::Machine {
            format: MACHINE_FORMAT,
            token: self.token.clone(),
            runtime: self.runtime.clone(),
            run: run.iter().map(|line| (*line).to_owned()).collect(),
            units: Some(self.units()),
            cloud_init: Some(self.units().with_file_name("cloud-init")),
        };
        let beside = self.layout.machine().with_extension("new");
        std::fs::write(&beside, serde_json::to_vec(&machine).unwrap()).unwrap();
        std::fs::rename(beside, self.layout.machine()).unwrap();
    }

    /// Returns where the machine's units are.
    pub(crate) fn units(&self) -> PathBuf {
        self.dir.path().join("units")
    }

    /// Returns where the hob finds programs first.
    pub(crate) fn bin(&self) -> PathBuf {
        self.dir.path().join("bin")
    }

    /// Returns the hob's command.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hob"));
        command.arg("--dir").arg(self.layout.dir());
        command
    }

    /// Starts the hob, alone.
    pub(crate) fn start_again(&mut self) {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.log_path())
            .unwrap();
        let mut command = self.command();
        let path = std::env::var("PATH").unwrap();
        command
            .arg("--session")
            .env("GOBS_LOG", LOG.get().unwrap_or(&"trace"))
            .env("PATH", format!("{}:{path}", self.bin().display()))
            .stdin(Stdio::null());
        if crate::apart() {
            command.env("GOBS_APART", "yes");
        }
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.hob = Some(command.spawn().unwrap());
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("hob.log")
    }

    /// Returns what the hob has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap()
    }

    /// Returns the process id of the hob.
    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(self.hob.as_ref().unwrap())
    }

    /// Sends the hob a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Kills the hob without a word.
    pub(crate) fn kill(&mut self) {
        let mut hob = self.hob.take().unwrap();
        hob.kill().unwrap();
        hob.wait().unwrap();
    }

    /// Asks the hob to end and returns its exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        self.hob.take().unwrap().wait().unwrap().code()
    }

    /// Returns the processes that carry the machine's token.
    pub(crate) fn programs(&self) -> Vec<rustix::process::Pid> {
        let mark = format!("GOBS_MACHINE_TOKEN={}\0", self.token);
        let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        entries
            .filter(|entry| {
                environment(&entry.path())
                    .windows(mark.len())
                    .any(|part| part == mark.as_bytes())
            })
            .filter_map(|entry| {
                rustix::process::Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)
            })
            .collect()
    }
}

/// Returns the environment of a process, given its directory below `/proc`.
fn environment(process: &Path) -> Vec<u8> {
    for _ in 0..ENVIRONMENT_LOOKS_MAX {
        let environment = std::fs::read(process.join("environ")).unwrap_or_default();
        // One that has ended, and what is none of ours, has no program to be seen.
        if !environment.is_empty() || std::fs::read_link(process.join("exe")).is_err() {
            return environment;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Vec::new()
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = std::io::stderr().write_all(self.log().as_bytes());
        }
        if let Some(mut hob) = self.hob.take() {
            let _ = hob.kill();
            let _ = hob.wait();
        }
        for program in self.programs() {
            let _ = rustix::process::kill_process(program, rustix::process::Signal::KILL);
        }
    }
}

/// Returns bytes in which no stretch repeats soon.
pub(crate) fn pattern(len: usize, salt: u32) -> Vec<u8> {
    (0..len as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761).wrapping_add(salt) >> 24) as u8)
        .collect()
}

/// A program not ours: it reads to the end, then answers as many bytes of its own, and ends.
/// Returns its address and how many connections it has taken.
pub(crate) async fn mirror() -> (String, watch::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (taken, connections) = watch::channel(0);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            taken.send_modify(|taken| *taken += 1);
            tokio::spawn(async move {
                let mut got = Vec::new();
                stream.read_to_end(&mut got).await?;
                for byte in &mut got {
                    *byte = !*byte;
                }
                stream.write_all(&got).await?;
                stream.shutdown().await
            });
        }
    });
    (address, connections)
}

/// A program not ours that answers each byte at once. Returns its address.
pub(crate) async fn echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
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

/// Sends bytes through a binding to [`mirror`], ends that direction, and checks the answer.
pub(crate) async fn exchange(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite,
    sent: &[u8],
) {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut back = Vec::new();
    let both = async {
        let write = async {
            write.write_all(sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        tokio::join!(write, async { read.read_to_end(&mut back).await.unwrap() });
    };
    timeout(PATIENCE, both).await.expect("bytes flow");
    assert_eq!(back.len(), sent.len());
    assert!(
        back.iter().zip(sent).all(|(back, sent)| *back == !*sent),
        "other bytes came back"
    );
}

/// Connects to a binding's address, `unix:/path` or `host:port`.
pub(crate) async fn connect(address: &str) -> Box<dyn Stream> {
    match address.strip_prefix("unix:") {
        Some(path) => Box::new(tokio::net::UnixStream::connect(path).await.unwrap()),
        None => Box::new(TcpStream::connect(address).await.unwrap()),
    }
}

/// A connection of either kind.
pub(crate) trait Stream:
    tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send
{
}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send> Stream for T {}

/// Two machines, `machine.db` with the service `orders`, and `machine.app`.
pub(crate) struct Pair {
    pub(crate) boss: Boss,
    pub(crate) db: Host,
    pub(crate) app: Host,
    pub(crate) exporter: Client,
    pub(crate) importer: Client,
}

impl Pair {
    /// Starts both, with `orders` at this TCP address.
    pub(crate) async fn start(orders: &str) -> Self {
        Self::of(ServiceKind::Tcp(orders.into())).await
    }

    /// Starts both, with `orders` of this kind.
    pub(crate) async fn of(orders: ServiceKind) -> Self {
        let boss = Boss::new().await;
        let db = Host::start(&boss.invite("machine.db", &[]), &[]);
        let app = Host::start(&boss.invite("machine.app", &["db"]), &[]);
        let (exporter, importer) =
            tokio::join!(boss.client("machine.db"), boss.client("machine.app"));
        exporter.offer("orders", orders).await;
        Self {
            boss,
            db,
            app,
            exporter,
            importer,
        }
    }

    /// Grants a generation and registers it.
    pub(crate) async fn bind(&self, number: u64, expose: &[Expose]) -> Held {
        self.bind_narrowed(number, expose, Attenuate::default())
            .await
    }

    /// Grants a generation with these limits and registers it.
    pub(crate) async fn bind_narrowed(
        &self,
        number: u64,
        expose: &[Expose],
        attenuate: Attenuate,
    ) -> Held {
        let grant = Grant {
            attenuate,
            ..grant(number, &self.importer.designator)
        };
        let granted = self.exporter.grant(&grant).await.unwrap();
        self.importer
            .register(&registration(number, expose), &granted)
            .await
            .unwrap()
    }
}

/// Returns whether a connection ends without more bytes.
pub(crate) async fn ends(stream: &mut dyn Stream) -> bool {
    let mut byte = [0; 1];
    let read = timeout(PATIENCE, stream.read(&mut byte)).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

/// Sends a byte to [`echo`] and waits for it to come back.
pub(crate) async fn ping(stream: &mut dyn Stream) -> std::io::Result<()> {
    stream.write_all(b"x").await?;
    stream.flush().await?;
    let mut byte = [0; 1];
    timeout(PATIENCE, stream.read_exact(&mut byte))
        .await
        .expect("an answer")?;
    assert_eq!(&byte, b"x");
    Ok(())
}

/// A peer that is neither boss nor hob, with a dialler of byte streams.
pub(crate) fn stranger() -> (Peer, ocapn::StreamDialer, String) {
    let identity = Identity::generate().unwrap();
    let designator = identity.designator();
    let netlayer = TlsRpk::dial_only(identity, TlsRpkOptions::default()).unwrap();
    let dialer = netlayer.stream_dialer();
    (
        Peer::builder().netlayer(netlayer).spawn(),
        dialer,
        designator,
    )
}
