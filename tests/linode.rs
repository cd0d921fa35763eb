//! `gobs apply` of `examples/linode` against the double of Linode's API: what boots there is a
//! real hob, which gets its user data through the metadata protocol.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gobs_linode_double::{Double, Fault, Kind, Options};
use serde_json::{Value, json};

use crate::support::{Project, free_port};

/// How often the double is asked what has booted.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long a socket of a test may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Asks an instance's metadata service.
fn ask(url: &str, method: &str, path: &str, header: &str) -> Option<String> {
    let host = url.strip_prefix("http://")?.strip_suffix("/v1")?;
    let mut stream = TcpStream::connect(host).ok()?;
    stream.set_read_timeout(Some(SILENCE_MAX)).ok()?;
    let head = format!("{method} /v1{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    stream
        .write_all(format!("{head}{header}\r\n\r\n").as_bytes())
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
}

/// Returns what an instance was given to start with, as a process on it asks for it.
fn user_data(double: &Double, id: u64) -> Option<String> {
    let url = double.metadata_url(id)?;
    let token = ask(&url, "PUT", "/token", "Metadata-Token-Expiry-Seconds: 3600")?;
    let encoded = ask(
        &url,
        "GET",
        "/user-data",
        &format!("Metadata-Token: {token}"),
    )?;
    let bytes = data_encoding::BASE64.decode(encoded.as_bytes()).ok()?;
    String::from_utf8(bytes).ok()
}

/// Starts a real hob for whatever runs at the double, and ends it with its instance.
struct Guests<'a> {
    project: &'a Project,
    double: &'a Double,
    hobs: BTreeMap<u64, Child>,
}

impl Guests<'_> {
    fn look(&mut self) {
        let instances = self.double.instances();
        let ids: Vec<u64> = instances
            .iter()
            .filter_map(|it| it["id"].as_u64())
            .collect();
        let gone: Vec<u64> = self
            .hobs
            .keys()
            .filter(|id| !ids.contains(id))
            .copied()
            .collect();
        for id in gone {
            self.stop(id);
        }
        for instance in instances.iter().filter(|it| it["status"] == "running") {
            let id = instance["id"].as_u64().expect("an id");
            if !self.hobs.contains_key(&id) {
                self.start(id, instance);
            }
        }
    }

    fn start(&mut self, id: u64, instance: &Value) {
        let tags = instance["tags"].as_array().expect("tags");
        let token = tags
            .iter()
            .find_map(|it| it.as_str()?.strip_prefix("gobs:"));
        let token = token.expect("it carries its token");
        let directory = self.project.path().join("linodes").join(id.to_string());
        std::fs::create_dir_all(&directory).expect("a directory");
        let runtime = std::env::temp_dir().join(format!("gobs-l-{}-{id}", std::process::id()));
        let machine = json!({"format": 1, "token": token, "runtime": runtime, "run": []});
        std::fs::write(directory.join("machine.json"), machine.to_string()).expect("written");
        let data = user_data(self.double, id).expect("the metadata service has its user data");
        std::fs::write(directory.join("user-data"), data).expect("written");
        let directory = directory.to_str().expect("UTF-8");
        let mut command = self.project.command(&["hob", "--dir", directory]);
        let hob = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.hobs.insert(id, hob.expect("the hob starts"));
    }

    fn stop(&mut self, id: u64) {
        if let Some(mut hob) = self.hobs.remove(&id) {
            // One that has ended cannot be killed, which is as good.
            let _ = hob.kill();
            hob.wait().expect("it has ended");
            let runtime = std::env::temp_dir().join(format!("gobs-l-{}-{id}", std::process::id()));
            let _ = std::fs::remove_dir_all(runtime);
        }
    }
}

impl Drop for Guests<'_> {
    fn drop(&mut self) {
        for id in self.hobs.keys().copied().collect::<Vec<_>>() {
            self.stop(id);
        }
    }
}

/// Runs the program while what boots gets its hob.
#[track_caller]
fn run_with(guests: &mut Guests<'_>, work: impl FnOnce() -> String + Send) -> String {
    let is_done = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let done = Arc::clone(&is_done);
        let run = scope.spawn(move || {
            // Also when it panics, the watch must end.
            let _end = End(done);
            work()
        });
        while !is_done.load(Ordering::Acquire) {
            guests.look();
            std::thread::sleep(LOOK_EVERY);
        }
        run.join().expect("the run ends well")
    })
}

struct End(Arc<AtomicBool>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Answers every connection with one line.
fn serve(listener: TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else {
            return;
        };
        // A connection that only looks whether somebody listens wants no line.
        let _ = stream.write_all(b"orders here\n");
    }
}

#[test]
fn the_example_lives_and_ends_at_linode() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _inside = runtime.enter();
    let double = Double::start(Options {
        seed: Some(42),
        ..Options::default()
    })
    .expect("listens");
    // The answer to the first create is lost: it must be adopted, not doubled.
    double.fault(Fault::once("POST", "/linode/instances", Kind::ResetAfter));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || serve(listener));
    let project = Project::copy_of("examples/linode")
        .with_env("LINODE_TOKEN", "double")
        .with_env("LINODE_URL", double.url())
        .with_env("GOBS_LINODE_CLOCK_SCALE", 1_000)
        .with_env("GOBS_VAR_ssh_key", "ssh-ed25519 AAAA test")
        .with_env("GOBS_VAR_orders_port", port)
        .with_env("GOBS_VAR_app_port", free_port());
    let mut guests = Guests {
        project: &project,
        double: &double,
        hobs: BTreeMap::new(),
    };

    let apply = || project.gobs(&["apply", "--auto-approve"]).ok().stdout;
    let done = run_with(&mut guests, apply);
    let summary =
        "Apply complete! Resources: 2 added, 0 changed, 0 destroyed. Bindings: 1 granted.";
    assert!(done.contains(summary), "{done}");
    assert_eq!((double.stats().created, guests.hobs.len()), (2, 2));

    let address = project.gobs(&["output", "--raw", "orders"]).ok().stdout;
    let mut stream = TcpStream::connect(address.trim_end()).expect("the binding listens");
    stream
        .set_read_timeout(Some(SILENCE_MAX))
        .expect("a timeout");
    let mut line = [0; 12];
    stream.read_exact(&mut line).expect("the service answers");
    assert_eq!(&line, b"orders here\n");

    let again = project.gobs(&["plan"]).ok().stdout;
    let nothing = "No changes. Your infrastructure matches the configuration.";
    assert!(again.contains(nothing), "{again}");

    run_with(&mut guests, || {
        project.gobs(&["destroy", "--auto-approve"]).ok().stdout
    });
    assert!(double.instances().is_empty(), "{:?}", double.instances());
}
