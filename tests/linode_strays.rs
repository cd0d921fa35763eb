//! Promises A1 and A3 for what belongs to machines at Linode: wherever a run dies, and whatever
//! becomes of an answer, nothing is made twice and nothing is left behind.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use gobs_linode_double::{Fault, Kind};
use serde_json::{Value, json};

use crate::account::Account;
use crate::support::{Project, Run, eventually};

const APPLY: &[&str] = &["apply", "--auto-approve"];
const DESTROY: &[&str] = &["destroy", "--auto-approve"];

/// How many lives are lived at once: they mostly wait.
const LIVES_AT_ONCE: usize = 4;

/// How long the answer is held during which a run is killed: longer than the kill takes.
const HELD: Kind = Kind::Hang { virtual_s: 10_000 };

/// How long a run may take to the request at which it is killed.
const REACHED_WITHIN: Duration = Duration::from_secs(60);

/// Everything that can belong to a machine; one of the volumes goes with it.
const FULL: &str = r#"
  firewall {
    inbound {
      label = "ssh"
      ports = "22"
      ipv4  = ["0.0.0.0/0"]
    }
  }
  dns {
    domain = "example.net"
    name   = "db"
  }
  volume "data" { size = 10 }
  volume "temp" {
    size   = 10
    delete = true
  }
"#;

/// The same, each otherwise.
const OTHER: &str = r#"
  firewall {
    inbound {
      label = "web"
      ports = "80"
      ipv4  = ["0.0.0.0/0"]
    }
  }
  dns {
    domain = "example.net"
    name   = "db"
    ttl    = 300
  }
  volume "data" { size = 20 }
  volume "temp" {
    size   = 10
    delete = true
  }
"#;

/// The way back from the newer generation of interfaces takes another machine.
const BEFORE: &str = "interface_generation = \"linode\"";
const ANEW: &str = "interface_generation = \"legacy_config\"";

fn configuration(more: &str, blocks: &str) -> String {
    format!(
        "machine \"db\" {{
           provider        = linode
           region          = \"eu-central\"
           type            = \"g6-nanode-1\"
           image           = \"linode/debian13\"
           authorized_keys = [\"ssh-ed25519 AAAA test\"]
           {more}
           hob {{ enabled = false }}
           {blocks}
         }}\n"
    )
}

/// An account with a domain, and a project with a machine.
struct Life {
    account: Account,
    records: String,
}

impl Life {
    fn begin(seed: u64, blocks: &str) -> Self {
        let account = Account::start(Project::new(&configuration("", blocks)), seed);
        let domain = account
            .double
            .ask("POST", "/domains", &json!({"domain": "example.net"}));
        let records = format!("/domains/{}/records", domain.expect("made")["id"]);
        Self { account, records }
    }

    fn declare(&self, more: &str, blocks: &str) {
        let text = configuration(more, blocks);
        self.account.project.write("main.gobs.hcl", &text);
    }

    fn run(&self, args: &[&str]) -> Result<Run, String> {
        let run = self.account.project.gobs(args);
        match run.code {
            Some(0) => Ok(run),
            _ => Err(format!("{args:?}: {run:?}")),
        }
    }

    fn all(&self, path: &str) -> Vec<Value> {
        let found = self.account.double.ask("GET", path, &Value::Null);
        found.expect("listed")["data"]
            .as_array()
            .expect("a list")
            .clone()
    }

    /// Returns how many machines, firewalls and records there are.
    fn there(&self) -> [usize; 3] {
        let of = |path: &str| self.all(path).len();
        let machines = self.account.double.instances().len();
        [machines, of("/networking/firewalls"), of(&self.records)]
    }

    /// Returns the volumes: what begins their labels, and whether they are attached.
    fn volumes(&self) -> Vec<(String, bool)> {
        let volume = |it: &Value| {
            let label = it["label"].as_str().unwrap_or_default();
            let label = label.rsplit_once('-').map_or(label, |it| it.0).to_owned();
            (label, !it["linode_id"].is_null())
        };
        let mut all: Vec<_> = self.all("/volumes").iter().map(volume).collect();
        all.sort();
        all
    }

    /// Checks that there is what is declared and no more, and that the next plan is empty.
    fn is_whole(&self) -> Result<(), String> {
        self.run(&["plan", "--detailed-exitcode"])?;
        let volumes = ["gobs-db-data", "gobs-db-temp"].map(|it| (it.to_owned(), true));
        match (self.there(), self.volumes()) {
            ([1, 1, 1], all) if all == volumes => self.is_well(),
            other => Err(format!("not whole: {other:?}")),
        }
    }

    /// Checks that nothing belongs to a machine any more but data that is kept.
    fn is_bare(&self, machines: usize) -> Result<(), String> {
        let kept = |all: &[(String, bool)]| match all {
            [] => true,
            [(label, attached)] => label == "gobs-db-data" && !attached,
            _ => false,
        };
        match (self.there(), self.volumes()) {
            (there, all) if there == [machines, 0, 0] && kept(&all) => self.is_well(),
            other => Err(format!("not bare: {other:?}")),
        }
    }

    /// Asks `gobs doctor`, which looks at the account by itself.
    fn is_well(&self) -> Result<(), String> {
        self.run(&["doctor"]).map(drop)
    }

    /// Goes on after a death as a user might, to the end.
    fn goes_on(&self, then: Then, more: &str, blocks: &str) -> Result<(), String> {
        // A list that nobody had to ask for is not late for whoever looks afterwards.
        let double = &self.account.double;
        match then {
            Then::Same => {
                self.run(APPLY)?;
                double.clear_faults();
                if blocks.is_empty() {
                    self.run(&["plan", "--detailed-exitcode"])?;
                    self.is_bare(1)?;
                } else {
                    self.is_whole()?;
                }
            }
            Then::Bare => {
                self.declare(more, "");
                self.run(APPLY)?;
                double.clear_faults();
                self.run(&["plan", "--detailed-exitcode"])?;
                self.is_bare(1)?;
            }
            Then::Destroy => {}
        }
        self.run(DESTROY)?;
        double.clear_faults();
        self.is_bare(0)?;
        let stats = double.stats();
        // What goes with its machine is made again for the one that takes the place.
        match (stats.volumes_created, stats.records_created) {
            (0..=3, 0..=2) => Ok(()),
            made => Err(format!("volumes and records made: {made:?}")),
        }
    }
}

/// What a user does after a run that died.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// Applies again.
    Same,
    /// Takes the blocks out, and applies.
    Bare,
    /// Destroys everything.
    Destroy,
}

/// What a run is about that dies.
#[derive(Clone, Copy, Debug)]
enum Step {
    Create,
    Add,
    Change,
    Remove,
    Replace,
    Destroy,
}

impl Step {
    /// Brings a life to where the step begins; returns the step's command, and what is declared.
    fn prepare(
        self,
        life: &Life,
    ) -> Result<(&'static [&'static str], &'static str, &'static str), String> {
        let (first, more, blocks, command) = match self {
            Self::Create => (None, "", FULL, APPLY),
            Self::Add => (Some(("", "")), "", FULL, APPLY),
            Self::Change => (Some(("", FULL)), "", OTHER, APPLY),
            Self::Remove => (Some(("", FULL)), "", "", APPLY),
            Self::Replace => (Some((BEFORE, FULL)), ANEW, FULL, APPLY),
            Self::Destroy => (Some(("", FULL)), "", FULL, DESTROY),
        };
        if let Some((more, blocks)) = first {
            life.declare(more, blocks);
            life.run(APPLY)?;
        }
        life.declare(more, blocks);
        Ok((command, more, blocks))
    }

    /// Returns the requests of the step that change something.
    fn requests(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Create => &[
                ("POST", "/networking/firewalls"),
                ("POST", "/linode/instances"),
                ("POST", "/volumes"),
                ("POST", "/volumes/*/attach"),
                ("POST", "/domains/*/records"),
            ],
            Self::Add => &[
                ("PUT", "/linode/instances/*"),
                ("POST", "/networking/firewalls"),
                ("PUT", "/linode/instances/*/firewalls"),
                ("POST", "/volumes"),
                ("POST", "/volumes/*/attach"),
                ("POST", "/domains/*/records"),
            ],
            Self::Change => &[
                ("PUT", "/networking/firewalls/*/rules"),
                ("POST", "/volumes/*/resize"),
                ("PUT", "/domains/*/records/*"),
            ],
            Self::Remove | Self::Destroy => &[
                ("DELETE", "/networking/firewalls/*"),
                ("POST", "/volumes/*/detach"),
                ("DELETE", "/volumes/*"),
                ("DELETE", "/domains/*/records/*"),
            ],
            Self::Replace => &[
                ("DELETE", "/networking/firewalls/*"),
                ("DELETE", "/linode/instances/*"),
                ("POST", "/networking/firewalls"),
                ("POST", "/linode/instances"),
                ("POST", "/volumes/*/attach"),
                ("POST", "/domains/*/records"),
            ],
        }
    }

    fn after(self) -> &'static [Then] {
        match self {
            Self::Create | Self::Add => &[Then::Same, Then::Bare, Then::Destroy],
            Self::Change | Self::Replace => &[Then::Same, Then::Bare],
            Self::Remove => &[Then::Same, Then::Destroy],
            Self::Destroy => &[Then::Destroy],
        }
    }
}

const STEPS: [Step; 6] = [
    Step::Create,
    Step::Add,
    Step::Change,
    Step::Remove,
    Step::Replace,
    Step::Destroy,
];

/// Lives many lives, a few at once; tells what was wrong with them.
fn live_all<T: Sync + std::fmt::Debug>(
    cases: &[T],
    live: impl Fn(u64, &T) -> Result<(), String> + Sync,
) {
    let (next, broken) = (AtomicUsize::new(0), Mutex::new(String::new()));
    std::thread::scope(|scope| {
        for _ in 0..LIVES_AT_ONCE {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(at) else { break };
                    if let Err(why) = live(at as u64, case) {
                        let mut broken = broken.lock().expect("a lock");
                        // Writing to a string cannot fail.
                        let _ = writeln!(broken, "{case:?}: {why}");
                    }
                }
            });
        }
    });
    let broken = broken.into_inner().expect("a lock");
    assert!(broken.is_empty(), "{broken}");
}

#[test]
fn a1_a_run_killed_at_any_request_for_what_belongs_to_a_machine_leaves_nothing() {
    let cases: Vec<_> = STEPS
        .iter()
        .flat_map(|step| step.requests().iter().map(move |request| (*step, *request)))
        .flat_map(|(step, request)| step.after().iter().map(move |then| (step, request, *then)))
        .collect();
    live_all(&cases, |seed, (step, (method, path), then)| {
        let life = Life::begin(seed, FULL);
        let (command, more, blocks) = step.prepare(&life)?;
        let double = &life.account.double;
        double.fault(Fault::once(method, path, HELD));
        let run = life.account.project.start(command);
        eventually("the request", REACHED_WITHIN, || {
            double.unused_faults() == 0
        });
        run.signal(rustix::process::Signal::KILL);
        run.end();
        // What it asked for last does not show at once.
        for list in ["/networking/firewalls", "/volumes", "/domains/*/records"] {
            double.fault(Fault::once(
                "GET",
                list,
                Kind::ListLag { virtual_s: 100_000 },
            ));
        }
        life.goes_on(*then, more, blocks)
    });
}

#[test]
fn a1_a_run_that_dies_at_any_journal_write_leaves_nothing_of_what_belongs_to_a_machine() {
    let cases: Vec<_> = STEPS
        .iter()
        .flat_map(|step| step.after().iter().map(move |then| (*step, *then)))
        .flat_map(|case| ["before", "after"].map(|when| (case, when)))
        .collect();
    live_all(&cases, |seed, ((step, then), when)| {
        for write in 1.. {
            let life = Life::begin(seed, FULL);
            let (command, more, blocks) = step.prepare(&life)?;
            let mut command = life.account.project.command(command);
            command.env("GOBS_TEST_CRASH_AT", format!("{when}:{write}"));
            let run = Run::of(command);
            match run.code {
                Some(0) if write > 2 => break,
                None => {}
                _ => return Err(format!("not killed at {write}: {run:?}")),
            }
            life.goes_on(*then, more, blocks)
                .map_err(|why| format!("at write {write}: {why}"))?;
        }
        Ok(())
    });
}

#[test]
fn a3_no_fault_at_what_belongs_to_a_machine_makes_an_apply_fail_or_repeat() {
    let json = |status| Kind::Before {
        status,
        html: false,
    };
    let kinds = [
        Kind::ResetBefore,
        Kind::ResetAfter,
        Kind::After { status: 504 },
        Kind::Truncate,
        Kind::SlowBody { virtual_s: 100 },
        Kind::Hang { virtual_s: 2_500 },
        Kind::Down { virtual_s: 20 },
        Kind::Before {
            status: 502,
            html: true,
        },
        json(500),
        Kind::TooManyRequests {
            retry_after_s: Some(7),
            as_date: false,
        },
    ];
    // Each life meets its fault once at every kind of request.
    let reads = [
        "/networking/firewalls",
        "/linode/instances/*/firewalls",
        "/linode/instances/*/volumes",
        "/volumes",
        "/volumes/*",
        "/domains",
        "/domains/*/records",
    ];
    live_all(&kinds, |seed, kind| {
        let life = Life::begin(seed, FULL);
        let double = &life.account.double;
        let writes = STEPS.iter().flat_map(|step| step.requests());
        let reads = reads.iter().map(|path| ("GET", *path));
        let mut all: Vec<_> = writes.copied().chain(reads).collect();
        all.sort_unstable();
        all.dedup();
        for (method, path) in all {
            double.fault(Fault::once(method, path, kind.clone()));
        }
        for (more, blocks) in [(BEFORE, FULL), (BEFORE, OTHER), (ANEW, OTHER), (ANEW, "")] {
            life.declare(more, blocks);
            life.run(APPLY)?;
            life.run(&["plan", "--detailed-exitcode"])?;
        }
        life.is_bare(1)?;
        life.declare(ANEW, OTHER);
        life.run(APPLY)?;
        life.is_whole()?;
        life.run(DESTROY)?;
        life.is_bare(0)?;
        let stats = double.stats();
        let made = [
            stats.created,
            stats.firewalls_created,
            stats.volumes_created,
            stats.records_created,
        ];
        match (made, double.unused_faults()) {
            // Three times something that goes with its machine, and the data once.
            ([2, 3, 4, 3], 0) => Ok(()),
            other => Err(format!("made, and faults not met: {other:?}")),
        }
    });
}
