//! A run that is killed while it grants a binding again, or moves it: whoever uses the binding
//! notices neither that nor the next run, which settles it. With real programs.

use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::{Project, Run, eventually, free_port};

const APPLY: &[&str] = &["apply", "--auto-approve"];

/// How long a condition is waited for.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// More than any operation has steps.
const STEPS_MAX: u64 = 60;

/// How long a program that uses the binding rests between two connections.
const REST: Duration = Duration::from_millis(3);

/// Says one line to whoever connects.
const HELLO: &str = "use IO::Socket::INET; $SIG{PIPE} = 'IGNORE';
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $ARGV[0],
    Listen => 128, ReuseAddr => 1) or die;
while (my $client = $server->accept) { print $client qq($ARGV[1]\\n); close $client }";

/// As [`HELLO`], until whoever connected ends.
const LINGERS: &str = "use IO::Socket::INET; $SIG{CHLD} = 'IGNORE'; $| = 1;
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $ARGV[0],
    Listen => 128, ReuseAddr => 1) or die;
while (1) {
    my $client = $server->accept or next;
    if (fork) { close $client; next }
    syswrite $client, qq($ARGV[1]\\n);
    1 while sysread $client, my $bytes, 99;
    exit;
}";

/// Two machines that offer the same, and one with a binding.
struct Stage {
    project: Project,
    services: [u16; 2],
    port: u16,
}

/// What a program asks for: from which machine, and with how many connections at most.
type Wish = (usize, u32);

/// A program that connects again and again.
struct Client {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<Vec<String>>,
}

impl Client {
    fn start(port: u16) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            let mut wrong = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let said = heard(port);
                if !["one\n", "two\n"].contains(&said.as_str()) {
                    wrong.push(said);
                }
                std::thread::sleep(REST);
            }
            wrong
        });
        Self { ends, thread }
    }

    /// Returns what it heard that no service says.
    fn end(self) -> Vec<String> {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().expect("the client ends")
    }
}

/// Returns what a program hears through the binding, or why it hears nothing.
fn heard(port: u16) -> String {
    let mut text = String::new();
    let heard = TcpStream::connect(("127.0.0.1", port))
        .and_then(|mut stream| stream.read_to_string(&mut text));
    match heard {
        Ok(_) => text,
        Err(error) => format!("{text}{error}"),
    }
}

impl Stage {
    fn new() -> Self {
        let stage = Self {
            project: Project::empty(),
            services: [free_port(), free_port()],
            port: free_port(),
        };
        stage.project.write("hello.pl", HELLO);
        stage
    }

    fn declare(&self, (from, connections_max): Wish) {
        let root = self.project.path().display();
        let machines = ["one", "two"].iter().zip(self.services);
        let machines = machines.map(|(name, service)| {
            format!(
                "machine \"{name}\" {{
                   provider = dummy
                   run      = [\"exec perl {root}/hello.pl {service} {name}\"]
                   service \"hello\" {{ tcp = \"127.0.0.1:{service}\" }}
                 }}\n"
            )
        });
        let mut text: String = machines.collect();
        let (from, port) = (["one", "two"][from], self.port);
        text += &format!(
            "machine \"app\" {{ provider = dummy }}
             binding \"hello\" {{
               from = machine.{from}.service.hello
               to   = machine.app
               attenuate {{ connections_max = {connections_max} }}
               expose {{ tcp = \"127.0.0.1:{port}\" }}
             }}"
        );
        self.project.write("main.gobs.hcl", &text);
    }

    /// Returns the grants that the hobs have given out.
    fn grants(&self) -> Vec<String> {
        let machines = ["one", "two"].into_iter();
        let grants = machines.flat_map(|name| {
            let directory = self.project.machine(name);
            let directory = directory.to_string_lossy();
            let told = self.project.gobs(&["hob", "--dir", &directory, "status"]);
            let status: serde_json::Value = serde_json::from_str(&told.ok().stdout).expect("JSON");
            let grants = status["grants"].as_array().expect("grants").clone();
            grants.into_iter().map(move |it| format!("{name} {it}"))
        });
        grants.collect()
    }

    /// Kills a run that leads from one wish to another at this step, under a client; then lets the
    /// next one settle it. Returns whether it was killed.
    fn kill(&self, [before, then]: [Wish; 2], at: &str) -> bool {
        self.declare(before);
        self.project.gobs(APPLY).ok();
        let client = Client::start(self.port);
        self.declare(then);
        let mut command = self.project.command(APPLY);
        command.env("GOBS_TEST_CRASH_AT", at);
        let killed = Run::of(command).code.is_none();
        let run = self.project.gobs(APPLY).ok();
        let wrong = client.end();
        let when = format!("{before:?} to {then:?}, killed at {at}: {run:?}");
        // Streams of a service that is left may end; rights that change end at once, and cut the
        // one connection that may be open just then: of the grant before, and of the one that the
        // killed run made.
        let cuts_max = if before.0 == then.0 { 2 } else { 0 };
        assert!(wrong.len() <= cuts_max, "{when}: {wrong:?}");
        assert_eq!(heard(self.port).trim(), ["one", "two"][then.0], "{when}");
        let left = self.grants();
        assert_eq!(left.len(), 1, "{when}: {left:?}");
        let plan = self.project.gobs(&["plan", "--detailed-exitcode"]);
        assert_eq!(plan.code, Some(0), "{when}: {plan:?}");
        killed
    }

    fn kill_everywhere(&self, wishes: [Wish; 2]) {
        for when in ["before", "after", "call"] {
            let mut deaths = 0;
            while deaths < STEPS_MAX && self.kill(wishes, &format!("{when}:{}", deaths + 1)) {
                deaths += 1;
            }
            assert!((2..STEPS_MAX).contains(&deaths), "{when}: {deaths}");
        }
    }
}

#[test]
fn s5_nobody_notices_a_run_that_dies_in_a_move() {
    Stage::new().kill_everywhere([(0, 20), (1, 20)]);
}

#[test]
fn s5_nobody_notices_a_run_that_dies_while_rights_change() {
    Stage::new().kill_everywhere([(0, 20), (0, 30)]);
}

/// A service that answers its own machine, and nobody through the new grant: what that took the
/// place of is in use again.
#[test]
fn s5_a_grant_that_does_not_answer_gives_way_to_the_one_before() {
    let project = Project::empty();
    let [service, all, some] = [free_port(), free_port(), free_port()];
    project.write("hello.pl", LINGERS);
    let declare = |day: u32| {
        let root = project.path().display();
        let text = format!(
            "machine \"db\" {{
               provider = dummy
               run      = [\"exec perl {root}/hello.pl {service} one\"]
               service \"hello\" {{
                 tcp   = \"127.0.0.1:{service}\"
                 ready = \"3s\"
               }}
             }}
             machine \"app\" {{ provider = dummy }}
             binding \"all\" {{
               from = machine.db.service.hello
               to   = machine.app
               attenuate {{ connections_max = 1 }}
               expose {{ tcp = \"127.0.0.1:{all}\" }}
             }}
             binding \"some\" {{
               from = binding.all
               to   = machine.app
               attenuate {{ expires = \"2999-01-0{day}T00:00:00Z\" }}
               expose {{ tcp = \"127.0.0.1:{some}\" }}
             }}"
        );
        project.write("main.gobs.hcl", &text);
    };
    let heard = |port: u16| {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("somebody listens");
        stream.shutdown(Shutdown::Write).expect("the end is told");
        let mut text = String::new();
        let _ = (&stream).read_to_string(&mut text);
        text
    };
    declare(1);
    project.gobs(APPLY).ok();
    assert_eq!(heard(some), "one\n");

    // The one connection that there may be is in use.
    let mut held = TcpStream::connect(("127.0.0.1", all)).expect("somebody listens");
    let mut line = [0; 4];
    held.read_exact(&mut line).expect("a line");
    declare(2);
    let failed = project.gobs(APPLY).code(1);
    let stays = "What it had before stays in use.";
    let said = failed.stderr.split_whitespace().collect::<Vec<_>>();
    assert!(said.join(" ").contains(stays), "{failed:?}");
    held.shutdown(Shutdown::Both).expect("it ends");
    drop(held);
    eventually("the grant before is in use", WAIT_MAX, || {
        heard(some) == "one\n"
    });
    let plan = project.gobs(&["plan"]).ok().stdout;
    assert!(
        plan.contains("binding.some will be granted again"),
        "{plan}"
    );
    project.gobs(APPLY).ok();
    eventually("so is the new one", WAIT_MAX, || heard(some) == "one\n");
    project.gobs(&["plan", "--detailed-exitcode"]).ok();
}
