//! `from = "ocapn://…"`: objects of another process, bound to machines that reach them by
//! themselves.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use ocapn::{
    Identity, Methods, Peer, Sturdyref, Sturdyrefs, Swissnum, TlsRpk, TlsRpkOptions, Turn,
};

use crate::secrecy::{assert_clean, files, forms};
use crate::support::{Project, Run, eventually, free_port, hob_pid, is_dead};

/// How long a condition is waited for.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Where the other process listens; it is told so.
const PORT: &str = "GOBS_TEST_OBJECTS_PORT";

/// Its objects, by their swissnums.
const SECRETS: [&str; 2] = ["kestrel-52f7ab-orchard", "lantern-90cc1e-harbour"];

const APPLY: &[&str] = &["apply", "--auto-approve"];

/// Returns the sturdyrefs of the objects that are served at a port, by a key that stays the same.
pub(crate) fn sturdyrefs(port: u16) -> [String; 2] {
    let peer = ocapn::PeerLocator::new("tls-rpk", identity().designator());
    let peer = peer.with_addresses([("127.0.0.1", port)]);
    SECRETS.map(|secret| {
        let swissnum = Swissnum::new(secret.as_bytes());
        let peer = peer.clone();
        Sturdyref { peer, swissnum }.to_uri().to_string()
    })
}

fn identity() -> Identity {
    Identity::from_seed(&[7; 32])
}

/// Serves both objects: each knows its number, and counts its calls.
async fn serve(port: u16) -> Peer {
    let listen = ([127, 0, 0, 1], port).into();
    let netlayer = TlsRpk::bind(identity(), listen, TlsRpkOptions::default());
    let netlayer = netlayer.await.expect("the port is free");
    let table = Arc::new(Sturdyrefs::new());
    let peer = Peer::builder()
        .netlayer(netlayer)
        .sturdyrefs(table.clone())
        .spawn();
    for (number, secret) in (1..).zip(SECRETS) {
        let calls = AtomicI64::new(0);
        let object = Methods::new()
            .on("number", move |_: &Turn, ()| Ok::<i64, _>(number))
            .on("add", |_: &Turn, (a, b): (i64, i64)| Ok(a + b))
            .on("count", move |_: &Turn, ()| {
                Ok(calls.fetch_add(1, Ordering::SeqCst) + 1)
            });
        table.register(&Swissnum::new(secret.as_bytes()), &peer.export(object));
    }
    peer
}

/// The other process: this test alone, started again by the others, serves until it is killed.
#[tokio::test]
#[expect(
    clippy::disallowed_methods,
    reason = "the test program is told by its environment alone where to listen"
)]
async fn the_objects_of_these_tests_answer() {
    let told = std::env::var(PORT).ok();
    let port = told.as_ref().map(|it| it.parse().expect("a port"));
    let peer = serve(port.unwrap_or(0)).await;
    if told.is_some() {
        std::future::pending::<()>().await;
    }
    let at = peer.locator();
    let port = at.addresses()[0].1;
    let asker = TlsRpk::bind(
        Identity::generate().expect("a key"),
        ([127, 0, 0, 1], 0).into(),
        TlsRpkOptions::default(),
    );
    let asker = Peer::builder()
        .netlayer(asker.await.expect("a port"))
        .spawn();
    for (number, uri) in (1..).zip(sturdyrefs(port)) {
        let sturdyref = uri.parse().expect("a sturdyref");
        let object = asker.enliven(&sturdyref).await.expect("an object");
        let answer: i64 = object.ask("number", ()).await.expect("an answer");
        assert_eq!(answer, number);
    }
}

/// The other process.
pub(crate) struct Elsewhere(Child);

impl Elsewhere {
    pub(crate) fn start(port: u16) -> Self {
        let process = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "objects::the_objects_of_these_tests_answer"])
            .env(PORT, port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let started = Self(process);
        eventually("the objects are served", WAIT_MAX, || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        started
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Calls an object as a program on a machine does; returns what is said.
pub(crate) fn call(project: &Project, on: &str, args: &[&str]) -> String {
    let directory = project.machine(on);
    let directory = directory.to_string_lossy();
    let run = project.gobs(&[&["hob", "--dir", &directory, "call"], args].concat());
    (run.stdout + &run.stderr).trim().to_owned()
}

const TWO_MACHINES: &str = r#"
variable "objects" {
  type      = list(string)
  sensitive = true
}
machine "app" { provider = dummy }
machine "report" { provider = dummy }
"#;

fn project(objects: &[String], config: &str) -> Project {
    let list = serde_json::to_string(objects).expect("text");
    Project::new(&format!("{TWO_MACHINES}{config}")).with_env("GOBS_VAR_objects", list)
}

#[test]
fn an_object_anywhere_is_bound_like_any_service() {
    let port = free_port();
    let _elsewhere = Elsewhere::start(port);
    let project = project(
        &sturdyrefs(port),
        r#"
binding "chat" {
  from = var.objects[0]
  to   = machine.app
  attenuate { methods = ["number", "add"] }
}
binding "given_on" {
  from = binding.chat
  to   = machine.report
  attenuate { methods = ["number"] }
}
output "at" { value = binding.chat.address }
"#,
    );
    let mut said = String::new();
    let mut gobs = |args: &[&str]| {
        let mut command = project.command(args);
        command.env("GOBS_LOG", "trace");
        let run = Run::of(command).ok();
        said += &run.stdout;
        said += &run.stderr;
        run.stdout
    };
    let plan = gobs(&["plan", "--out", "objects.gobsplan"]);
    assert!(plan.contains("sturdyref = (sensitive value)"), "{plan}");
    let done = gobs(&["apply", "objects.gobsplan"]);
    assert!(done.contains("Bindings: 2 granted."), "{done}");
    assert_eq!(call(&project, "app", &["chat", "add", "2", "40"]), "42");
    assert_eq!(call(&project, "report", &["given_on", "number"]), "1");
    let refused = call(&project, "app", &["chat", "count"]);
    assert!(refused.contains("not-allowed"), "{refused}");
    let refused = call(&project, "report", &["given_on", "add", "1", "1"]);
    assert!(refused.contains("not-allowed"), "{refused}");
    assert!(gobs(&["plan"]).contains("No changes."));
    let who = gobs(&["who", "machine.app.service.chat"]);
    assert!(who.contains("methods add number"), "{who}");
    assert!(who.contains("made from binding.chat"), "{who}");
    let open = project.gobs(&["open", "machine.app.service.chat"]).code(1);
    assert!(open.stderr.contains("of kind sturdyref"), "{open:?}");
    let status = gobs(&["status"]);
    assert!(!status.contains("not live"), "{status}");
    gobs(&["show"]);
    gobs(&["output"]);

    // Nothing of ours is printed or kept in clear but at the hob that reaches the object.
    for form in forms(SECRETS[0]) {
        assert_clean("what was said", said.as_bytes(), &[form]);
    }
    let mut found = Vec::new();
    files(project.path(), &mut found);
    let own = project.machine("app");
    let kept = found.iter().filter(|path| !path.starts_with(&own));
    for path in kept {
        let bytes = std::fs::read(path).unwrap_or_default();
        assert_clean(&path.display().to_string(), &bytes, &forms(SECRETS[0]));
    }

    // A hob that is killed comes back with it.
    let pid = hob_pid(&own).expect("a hob");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    eventually("it is dead", WAIT_MAX, || is_dead(pid));
    let mut hob = project.start_hob(&own);
    eventually("the object is called again", WAIT_MAX, || {
        // As systemd would: its port may be in use for a moment.
        if hob.try_wait().expect("a child").is_some() {
            hob = project.start_hob(&own);
        }
        call(&project, "app", &["chat", "add", "1", "1"]) == "2"
    });
    eventually("and through the other machine", WAIT_MAX, || {
        call(&project, "report", &["given_on", "number"]) == "1"
    });

    let done = project.gobs(&["destroy", "--auto-approve"]).ok().stdout;
    assert!(done.contains("2 revoked"), "{done}");
    let _ = hob.wait();
}

#[test]
fn what_a_binding_leads_to_changes_in_place() {
    let port = free_port();
    let _elsewhere = Elsewhere::start(port);
    let binding = r#"
machine "db" {
  provider = dummy
  service "plain" { tcp = "127.0.0.1:SERVED" }
}
binding "it" {
  from = FROM
  to   = machine.app
}
"#;
    let text = |from: &str| {
        let text = binding.replace("FROM", from);
        TWO_MACHINES.to_owned() + &text.replace("SERVED", &port.to_string())
    };
    let project = project(&sturdyrefs(port), "");
    let apply = |from: &str, expected: &str| {
        project.write("main.gobs.hcl", &text(from));
        let done = project.gobs(APPLY).ok().stdout;
        assert!(done.contains(expected), "{from}: {done}");
        let plan = project.gobs(&["plan"]).ok().stdout;
        assert!(plan.contains("No changes."), "{from}: {plan}");
    };
    let number = || call(&project, "app", &["it", "number"]);
    apply("var.objects[0]", "1 granted");
    assert_eq!(number(), "1");
    assert_eq!(call(&project, "app", &["it", "count"]), "1");
    // The other object, in the same session with the same process: whoever had the first has it
    // no longer.
    apply("var.objects[1]", "1 granted");
    assert_eq!(number(), "2");
    assert_eq!(call(&project, "app", &["it", "count"]), "1");
    apply("machine.db.service.plain", "1 moved");
    let said = call(&project, "app", &["it", "number"]);
    assert!(said.contains("a binding of kind tcp"), "{said}");
    let left = project.gobs(&["state", "list"]).ok().stdout;
    assert!(!left.contains("machine.app.service"), "{left}");
    apply("var.objects[0]", "1 moved");
    assert_eq!(number(), "1");
    project.write("main.gobs.hcl", TWO_MACHINES);
    let done = project.gobs(APPLY).ok().stdout;
    assert!(done.contains("1 revoked"), "{done}");
    assert_eq!(number(), "hob: no binding has this name");
}

#[test]
fn an_object_that_is_away_is_said_and_comes_back() {
    let port = free_port();
    let config = r#"
binding "it" {
  from  = var.objects[0]
  to    = machine.app
  ready = "2s"
}
"#;
    let project = project(&sturdyrefs(port), config);
    let failed = project.gobs(APPLY).code(1);
    for said in [
        "machine.app.service.it",
        "Connection refused",
        &port.to_string(),
    ] {
        assert!(failed.stderr.contains(said), "{said}: {failed:?}");
    }
    let number = || call(&project, "app", &["it", "number"]);
    assert_eq!(number(), "hob: no binding has this name");

    let elsewhere = Elsewhere::start(port);
    let done = project.gobs(APPLY).ok().stdout;
    assert!(done.contains("1 granted"), "{done}");
    assert_eq!(number(), "1");

    // Away later, the binding stays, and says why it does not answer.
    drop(elsewhere);
    eventually("the object is away", WAIT_MAX, || {
        number().contains("not reached")
    });
    assert!(project.gobs(&["plan"]).ok().stdout.contains("No changes."));
    let _elsewhere = Elsewhere::start(port);
    eventually("the object is back", WAIT_MAX, || number() == "1");
}
