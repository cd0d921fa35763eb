//! S5: whoever is killed while a binding is granted, moved or revoked, the next apply converges,
//! the program reaches its service, and nothing is left at a server that nothing owns. With real
//! servers.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::objects::{Elsewhere, call, sturdyrefs};
use crate::support::{Project, Run, eventually, free_port, hob_pid, is_dead};

const APPLY: &[&str] = &["apply", "--auto-approve"];

/// How long a condition is waited for.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What is done in one round, by what it leads to: a grant, a move, a revocation.
const ROUND: [(&str, Option<usize>); 3] =
    [("grant", Some(0)), ("move", Some(1)), ("revocation", None)];

/// More than any of these has steps.
const STEPS_MAX: u64 = 100;

/// A service of a real server, at a machine of its own.
enum Server {
    /// A database of one server, and the name of the binding.
    Postgres(String, &'static str),
    Redis(Redis),
    /// An object of another process, and what it answers.
    Object {
        uri: String,
        number: usize,
        _elsewhere: Rc<Elsewhere>,
    },
}

/// A server of its own.
struct Redis {
    process: Child,
    dir: TempDir,
}

impl Redis {
    fn start(name: &str) -> Self {
        let dir = TempDir::with_prefix("redis").expect("a directory");
        let process = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket", "redis.sock"])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let redis = Self { process, dir };
        eventually("Redis listens", WAIT_MAX, || {
            redis.ask(&["SET", "name", name]) == "OK"
        });
        redis
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    fn ask(&self, words: &[&str]) -> String {
        redis_cli(&self.socket(), words)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn redis_cli(socket: &Path, words: &[&str]) -> String {
    let mut command = Command::new("redis-cli");
    let output = command.arg("-s").arg(socket).args(words).output();
    let output = output.expect("redis-cli is installed");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

impl Server {
    fn postgres(label: &'static str) -> [Self; 2] {
        [(), ()].map(|()| Self::Postgres(Cluster::database(), label))
    }

    fn redis() -> [Self; 2] {
        ["first", "second"].map(|name| Self::Redis(Redis::start(name)))
    }

    fn objects() -> [Self; 2] {
        let port = free_port();
        let elsewhere = Rc::new(Elsewhere::start(port));
        let mut number = 0;
        sturdyrefs(port).map(|uri| {
            number += 1;
            Self::Object {
                uri,
                number,
                _elsewhere: Rc::clone(&elsewhere),
            }
        })
    }

    /// Returns what it is in the language, in a service.
    fn kind(&self) -> String {
        match self {
            Self::Object { .. } => String::new(),
            Self::Postgres(database, _) => {
                let (directory, port) = Cluster::shared().place();
                let socket = directory.join(format!(".s.PGSQL.{port}"));
                let socket = socket.display();
                format!(
                    "postgres {{
                       database = \"{database}\"
                       create   = true
                       socket   = \"{socket}\"
                     }}"
                )
            }
            Self::Redis(redis) => {
                format!("redis {{ socket = \"{}\" }}", redis.socket().display())
            }
        }
    }

    /// Returns where a binding from the machine of this name is from.
    fn from(&self, machine: &str) -> String {
        match self {
            Self::Object { uri, .. } => format!("\"{uri}\""),
            _ => format!("machine.{machine}.service.data"),
        }
    }

    /// Returns the roles or users of bindings that are there; of objects, those to which the hob
    /// that reaches them lends them.
    fn holders(&self, stage: &Stage) -> Vec<String> {
        let text = match self {
            Self::Object { .. } => {
                let directory = stage.machine("app");
                let directory = directory.to_string_lossy();
                let told = stage.project.gobs(&["hob", "--dir", &directory, "status"]);
                let status: serde_json::Value =
                    serde_json::from_str(&told.stdout).unwrap_or_default();
                let list = |name: &str, of: &str| {
                    let list = status[name].as_array().cloned();
                    let list = list.unwrap_or_else(|| vec!["not said".into()]);
                    list.into_iter().map(|it| it[of].to_string()).collect()
                };
                let (grants, offers): (Vec<_>, Vec<_>) =
                    (list("grants", "binding"), list("offers", "service"));
                // Each has one service for itself.
                match grants.len() == offers.len() {
                    true => grants.join("\n"),
                    false => [grants, offers].concat().join("\n"),
                }
            }
            Self::Postgres(_, label) => Cluster::shared().sql(
                "postgres",
                &format!("select rolname from pg_roles where rolname ~ '^gobs_{label}_'"),
            ),
            Self::Redis(redis) => redis.ask(&["ACL", "USERS"]),
        };
        let lines = text.lines().filter(|line| *line != "default");
        lines.map(str::to_owned).collect()
    }

    /// Asserts that this answers through the binding whose files are here, to this role or user.
    #[track_caller]
    fn assert_answers(&self, stage: &Stage, holder: &str, when: &str) {
        let directory = &stage.directory;
        let read = |file: &str| std::fs::read_to_string(directory.join(file)).expect("a file");
        let (asked, expected) = match self {
            Self::Object { number, .. } => {
                let said = call(&stage.project, "app", &[stage.label, "number"]);
                (said, number.to_string())
            }
            Self::Postgres(database, _) => {
                let statement = "select current_database(), session_user";
                let mut psql = Command::new("psql");
                psql.env_clear().env("PATH", "/usr/bin:/bin");
                let output = psql.args(["-XAtc", statement, &read("uri")]).output();
                let output = output.expect("psql");
                let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat())
                    .trim()
                    .to_owned();
                (said, format!("{database}|{holder}"))
            }
            Self::Redis(redis) => {
                let socket = PathBuf::from(read("path"));
                let said = ["GET name", "ACL WHOAMI"].map(|it| {
                    let words: Vec<_> = it.split(' ').collect();
                    redis_cli(&socket, &words)
                });
                let name = redis.ask(&["GET", "name"]);
                (said.join("|"), format!("{name}|{holder}"))
            }
        };
        assert_eq!(asked, expected, "{when}");
    }
}

/// Two machines with a service each, one with a program, and a binding for it or none.
struct Stage {
    project: Project,
    servers: [Server; 2],
    label: &'static str,
    /// Where the binding's files are while it is there.
    directory: PathBuf,
    /// The hobs that were started again.
    hobs: Vec<Child>,
}

impl Stage {
    fn new(servers: [Server; 2], label: &'static str) -> Self {
        let mut stage = Self {
            project: Project::empty(),
            servers,
            label,
            directory: PathBuf::new(),
            hobs: Vec::new(),
        };
        // The directory is the same each time.
        for from in [Some(0), None] {
            stage.declare(from);
            stage.project.gobs(APPLY).ok();
            if from.is_some() {
                let told = stage.project.gobs(&["output", "--raw", "directory"]).ok();
                stage.directory = told.stdout.trim().into();
            }
        }
        stage
    }

    fn declare(&self, from: Option<usize>) {
        let machines = ["one", "two"].iter().zip(&self.servers);
        // Objects need no machine.
        let machines = machines.filter(|(_, server)| !matches!(server, Server::Object { .. }));
        let machines = machines.map(|(name, server)| {
            format!(
                "machine \"{name}\" {{
                   provider = dummy
                   service \"data\" {{
                     {}
                   }}
                 }}\n",
                server.kind()
            )
        });
        let mut text: String = machines.collect();
        text += "machine \"app\" { provider = dummy }\n";
        if let Some(at) = from {
            let (from, label) = (["one", "two"][at], self.label);
            text += &format!(
                "binding \"{label}\" {{
                   from = {}
                   to   = machine.app
                 }}
                 output \"directory\" {{ value = binding.{label}.directory }}",
                self.servers[at].from(from)
            );
        }
        self.project.write("main.gobs.hcl", &text);
    }

    fn machine(&self, name: &str) -> PathBuf {
        self.project.machine(name)
    }

    /// Applies while a machine's hob dies at this step of its own, and is started again. Returns
    /// whether it died.
    fn kill_hob(&mut self, machine: &str, step: u64) -> bool {
        let directory = self.machine(machine);
        let armed = directory.join("hob/die-at");
        let pid = hob_pid(&directory).expect("a hob runs");
        std::fs::write(&armed, step.to_string()).expect("a file");
        let mut run = self.project.start(APPLY);
        eventually("the hob dies, or the run ends", WAIT_MAX, || {
            !armed.exists() || run.has_ended()
        });
        let died = std::fs::remove_file(&armed).is_err();
        if died {
            eventually("the hob is dead", WAIT_MAX, || is_dead(pid));
            let mut hob = self.project.start_hob(&directory);
            eventually("the run ends", WAIT_MAX, || {
                // As systemd would: its port may be in use for a moment.
                if hob.try_wait().expect("a child").is_some() {
                    hob = self.project.start_hob(&directory);
                }
                run.has_ended()
            });
            self.hobs.push(hob);
        }
        // It may have failed: then the next one must not.
        run.end();
        died
    }

    /// Applies while gobs dies at this journal write, or thing done. Returns whether it died.
    fn kill_gobs(&self, when: &str, write: u64) -> bool {
        let mut command = self.project.command(APPLY);
        command.env("GOBS_TEST_CRASH_AT", format!("{when}:{write}"));
        Run::of(command).code.is_none()
    }

    /// Asserts that one more apply leaves nothing to do, and everything as it is declared.
    #[track_caller]
    fn assert_converges(&self, from: Option<usize>, when: &str) {
        let plan = |text: &str| {
            let run = self.project.gobs(&["plan", "--detailed-exitcode"]);
            assert!(
                text.is_empty() || run.code == Some(0),
                "{when}: {text}: {run:?}"
            );
            run.code == Some(0)
        };
        if !plan("") {
            let run = self.project.gobs(APPLY);
            assert_eq!(run.code, Some(0), "{when}: {run:?}\n{}", self.logs());
            plan("an apply does not converge");
        }
        let expected = usize::from(from.is_some());
        let mut holders = Vec::new();
        // What is left of the last one may be taken away in the background.
        let what = format!("{when}: {expected} are left at the servers");
        eventually(&what, WAIT_MAX, || {
            holders = self.holders();
            holders.len() == expected
        });
        match from {
            Some(from) => {
                self.servers[from].assert_answers(self, &holders[0], when);
            }
            None => {
                let files = [self.directory.clone(), self.environment()];
                let left: Vec<_> = files.iter().filter(|it| it.exists()).collect();
                assert!(left.is_empty(), "{when}: {left:?}");
            }
        }
    }

    /// Returns what the hobs have logged.
    fn logs(&self) -> String {
        let machines = self.project.machines().into_iter();
        let logs = machines.map(|it| std::fs::read_to_string(it.join("logs/hob.log")));
        logs.map(Result::unwrap_or_default).collect()
    }

    fn environment(&self) -> PathBuf {
        let file = format!("environment/{}.env", self.label);
        self.machine("app").join(file)
    }

    fn holders(&self) -> Vec<String> {
        let servers = self.servers.iter();
        let mut all: Vec<_> = servers.flat_map(|it| it.holders(self)).collect();
        all.sort();
        // Databases of one server have their roles in common, and objects their hob.
        all.dedup();
        all
    }

    /// Kills a hob at each step of each operation: `victims` are the machines whose hob it is.
    fn kill_hobs(&mut self, victims: [Option<&str>; 3]) {
        let mut deaths = [0_u64; 3];
        for step in 1..=STEPS_MAX {
            let before = deaths;
            for (at, (operation, from)) in ROUND.into_iter().enumerate() {
                self.declare(from);
                let died = match victims[at] {
                    // One that lived through every step need not be looked at again.
                    Some(victim) if deaths[at] + 1 == step => self.kill_hob(victim, step),
                    _ => {
                        self.project.gobs(APPLY).ok();
                        continue;
                    }
                };
                deaths[at] += u64::from(died);
                let victim = victims[at].unwrap_or_default();
                let when = format!("{operation}, the hob of {victim} dies at step {step}");
                self.assert_converges(from, &when);
            }
            if deaths == before {
                break;
            }
        }
        for (died, victim) in deaths.into_iter().zip(victims) {
            // Its registration and one change are two writes, with a step before and after each. A
            // release build has no steps.
            let least = if cfg!(debug_assertions) && victim.is_some() {
                4
            } else {
                0
            };
            assert!(
                (least..STEPS_MAX).contains(&died),
                "{victims:?}: {deaths:?}"
            );
        }
    }

    /// Kills gobs at each journal write of each operation, and when a hob has done a thing for it.
    fn kill_runs(&self) {
        for when in ["before", "after", "call"] {
            let mut deaths = [0_u64; 3];
            for write in 1..=STEPS_MAX {
                let before = deaths;
                for (at, (operation, from)) in ROUND.into_iter().enumerate() {
                    self.declare(from);
                    if deaths[at] + 1 < write {
                        self.project.gobs(APPLY).ok();
                        continue;
                    }
                    deaths[at] += u64::from(self.kill_gobs(when, write));
                    let when = format!("{operation}, gobs dies {when} write {write}");
                    self.assert_converges(from, &when);
                }
                if deaths == before {
                    break;
                }
            }
            let all = deaths.iter().all(|died| (2..STEPS_MAX).contains(died));
            assert!(all, "{when}: {deaths:?}");
        }
    }

    /// Destroys all, with the binding in use, and asserts that nothing is left.
    fn end(mut self) {
        self.declare(Some(0));
        self.project.gobs(APPLY).ok();
        self.project.gobs(&["destroy", "--auto-approve"]).ok();
        if !matches!(self.servers[0], Server::Object { .. }) {
            assert_eq!(self.holders(), Vec::<String>::new(), "after destroy");
        }
        if let Server::Postgres(_, label) = &self.servers[0] {
            let members = format!(
                "select count(*) from pg_auth_members m left join pg_roles r on r.oid = m.member
                 where r.oid is null or r.rolname ~ '^gobs_{label}_'"
            );
            assert_eq!(Cluster::shared().sql("postgres", &members), "0");
        }
        for hob in &mut self.hobs {
            hob.wait().expect("the hobs that we started have ended");
        }
        assert_eq!(self.project.processes(), [], "processes are left");
    }
}

/// Kills the hob that grants or revokes, the receiver's, and that of the service moved from.
fn kill_all_hobs(mut stage: Stage) {
    stage.kill_hobs([Some("one"), Some("two"), Some("two")]);
    stage.kill_hobs([Some("app"); 3]);
    stage.kill_hobs([None, Some("one"), None]);
    stage.end();
}

fn kill_all_runs(stage: Stage) {
    stage.kill_runs();
    stage.end();
}

#[test]
fn s5_hobs_that_die_at_any_step_leave_no_role() {
    kill_all_hobs(Stage::new(Server::postgres("steps"), "steps"));
}

#[test]
fn s5_hobs_that_die_at_any_step_leave_no_user_of_redis() {
    kill_all_hobs(Stage::new(Server::redis(), "steps"));
}

#[test]
fn s5_a_hob_that_dies_at_any_step_lends_no_object_that_nobody_has() {
    let mut stage = Stage::new(Server::objects(), "steps");
    stage.kill_hobs([Some("app"); 3]);
    stage.end();
}

#[test]
fn s5_runs_that_die_at_any_journal_write_leave_no_object_lent() {
    kill_all_runs(Stage::new(Server::objects(), "writes"));
}

#[test]
fn s5_runs_that_die_at_any_journal_write_leave_no_role() {
    kill_all_runs(Stage::new(Server::postgres("writes"), "writes"));
}

#[test]
fn s5_runs_that_die_at_any_journal_write_leave_no_user_of_redis() {
    kill_all_runs(Stage::new(Server::redis(), "writes"));
}
