//! A real PostgreSQL server in a directory of its own.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hob::protocol::{Postgres, ServiceKind};
use tempfile::TempDir;

/// How long a server may take to start on a host that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// Says where the server's programs are, or what to do.
const MISSING: &str = "PostgreSQL's server is not installed: run .ci/setup";

/// Who runs the server where the tests run as root, which it refuses to be.
const SERVER_USER: &str = "postgres";

/// A server. It ends with its handle, or with the test's process.
pub(crate) struct Cluster {
    dir: TempDir,
    port: u16,
    /// A shell that keeps the server until its input ends.
    keeper: Child,
}

/// Returns a port that nobody listens on now.
pub(crate) fn free_port() -> u16 {
    // Below the ports that the system chooses for others, which would take it at any moment, and
    // apart from those that the tests of `gobs` choose.
    const PORTS: std::ops::Range<u32> = 20_000..30_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in PORTS {
        let number = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id() * 97;
        let port = (PORTS.start + number % PORTS.len() as u32) as u16;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("every port is taken");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns where the server's programs are.
pub(crate) fn programs() -> PathBuf {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .expect(MISSING)
        .map(|entry| entry.expect("an entry").path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    versions.sort();
    versions.pop().expect(MISSING)
}

/// Returns the name of the server's superuser: whoever runs it.
pub(crate) fn superuser() -> String {
    if is_root() {
        return SERVER_USER.into();
    }
    let output = Command::new("id").arg("-un").output().expect("id");
    String::from_utf8(output.stdout)
        .expect("a name")
        .trim()
        .into()
}

/// Returns a command that runs as who runs the server.
pub(crate) fn as_superuser(program: impl AsRef<std::ffi::OsStr>) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    let user = format!("--reuid={SERVER_USER}");
    command.args([&user, "--regid=nogroup", "--clear-groups"]);
    command.arg(program);
    command
}

fn run(command: &mut Command) -> Output {
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    output
}

impl Cluster {
    /// Starts one as Debian sets it up: by the kernel's word on the socket, by SCRAM on TCP.
    pub(crate) fn start(settings: &[&str]) -> Self {
        let dir = TempDir::with_prefix("pg").expect("a directory");
        if is_root() {
            let user = run(Command::new("id").args(["-u", SERVER_USER])).stdout;
            let user = String::from_utf8(user).expect("a number");
            let user = user.trim().parse().expect("a number");
            std::os::unix::fs::chown(dir.path(), Some(user), None).expect("chown");
        }
        let port = free_port();
        let mut init = as_superuser(programs().join("initdb"));
        init.args([
            "-D",
            "data",
            "-A",
            "peer",
            "--auth-host=scram-sha-256",
            "--no-sync",
        ]);
        init.args(["-U", &superuser(), "-E", "UTF8"]);
        run(init.current_dir(dir.path()));
        let keeper = Self::keep(&dir, port, settings);
        let cluster = Self { dir, port, keeper };
        cluster.wait();
        cluster
    }

    /// Lets the roles of bindings in by the socket, as the docs recommend, or no longer.
    pub(crate) fn admit_on_socket(&self, admit: bool) {
        const LINE: &str = "local all +gobs_binding scram-sha-256\n";
        let file = self.dir.path().join("data/pg_hba.conf");
        let lines = std::fs::read_to_string(&file).expect("pg_hba.conf");
        let others = lines.strip_prefix(LINE).unwrap_or(&lines);
        let line = if admit { LINE } else { "" };
        std::fs::write(&file, [line, others].concat()).expect("pg_hba.conf");
        let loaded = || self.sql("postgres", "select pg_conf_load_time()");
        let before = loaded();
        self.sql("postgres", "select pg_reload_conf()");
        let begun = Instant::now();
        while loaded() == before {
            assert!(begun.elapsed() < PATIENCE, "{}", self.log());
        }
    }

    /// Returns the server that most tests share, each with a database of its own.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&["max_connections=400"]))
    }

    /// Returns a name for a database that nobody has had.
    pub(crate) fn database() -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        format!("orders{}", COUNT.fetch_add(1, Ordering::Relaxed))
    }

    fn keep(dir: &TempDir, port: u16, settings: &[&str]) -> Child {
        // Its input ends when the test's process does, however that ends.
        let script = "\"$@\" </dev/null >>log 2>&1 & server=$!; cat >/dev/null; \
                      kill -QUIT $server; wait $server; [ -e keep ] || rm -rf \"$PWD\"";
        let mut keeper = as_superuser("sh");
        keeper
            .args(["-c", script, "sh"])
            .arg(programs().join("postgres"));
        keeper.args(["-D", "data", "-k"]).arg(dir.path());
        keeper.args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        // A crash of the host is none of these tests.
        for setting in ["fsync=off", "log_statement=all"].iter().chain(settings) {
            keeper.args(["-c", setting]);
        }
        let keeper = keeper.current_dir(dir.path()).stdin(Stdio::piped());
        keeper.stdout(Stdio::null()).stderr(Stdio::null());
        keeper.spawn().expect("a server")
    }

    fn wait(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.psql("postgres", "select 1").status.success() {
            assert!(Instant::now() < deadline, "no server: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops the server at once.
    pub(crate) fn stop(&mut self) {
        std::fs::write(self.dir.path().join("keep"), "").expect("a file");
        drop(self.keeper.stdin.take());
        self.keeper.wait().expect("the server ends");
    }

    /// Starts it again after [`Cluster::stop`].
    pub(crate) fn start_again(&mut self, settings: &[&str]) {
        std::fs::remove_file(self.dir.path().join("keep")).expect("it is stopped");
        self.keeper = Self::keep(&self.dir, self.port, settings);
        self.wait();
    }

    /// Returns the directory of its socket, and its port.
    pub(crate) fn place(&self) -> (PathBuf, u16) {
        (self.dir.path().to_owned(), self.port)
    }

    /// Returns the server's log.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Returns the server's own process.
    pub(crate) fn pid(&self) -> rustix::process::Pid {
        let file = std::fs::read_to_string(self.dir.path().join("data/postmaster.pid"));
        let pid = file
            .expect("a pid file")
            .lines()
            .next()
            .and_then(|pid| pid.parse().ok());
        rustix::process::Pid::from_raw(pid.expect("a pid")).expect("a pid")
    }

    pub(crate) fn psql(&self, database: &str, statements: &str) -> Output {
        let mut psql = as_superuser("psql");
        psql.args([
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            database,
            "-U",
            &superuser(),
        ]);
        psql.arg("-h")
            .arg(self.dir.path())
            .args(["-p", &self.port.to_string()]);
        let psql = psql
            .args(["-f", "-"])
            .current_dir("/")
            .stdin(Stdio::piped());
        psql.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut psql = psql.spawn().expect("psql");
        let mut stdin = psql.stdin.take().expect("a pipe");
        // One that finds no server ends before it has read them, and its status tells.
        let _ = stdin.write_all(statements.as_bytes());
        drop(stdin);
        psql.wait_with_output().expect("psql")
    }

    /// Runs statements as the superuser; returns what they answer.
    #[track_caller]
    pub(crate) fn sql(&self, database: &str, statements: &str) -> String {
        let output = self.psql(database, statements);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{statements}: {said}");
        String::from_utf8(output.stdout)
            .expect("UTF-8")
            .trim()
            .into()
    }

    /// Returns the roles that were made for a database, by name.
    pub(crate) fn roles(&self, database: &str) -> Vec<String> {
        let ledger = "select p.name from gobs.present p where kind = 'binding' order by 1";
        self.sql(database, ledger)
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// Returns the service of one of its databases.
    pub(crate) fn service(&self, database: &str) -> ServiceKind {
        ServiceKind::Postgres(Postgres {
            database: database.into(),
            create: true,
            socket: Some({
                let (directory, port) = self.place();
                directory.join(format!(".s.PGSQL.{port}"))
            }),
            admin_user: None,
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}
