//! What tests of Linode share: a project whose account is a double, and what runs inside it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gobs_linode_double::{Double, Guest, Options, Witness};
use gobs_state::{DataKey, Reader};
use serde_json::Value;

use crate::support::Project;

/// A machine without a hob.
pub(crate) const MACHINE: &str = r#"
machine "one" {
  provider        = linode
  region          = "eu-central"
  type            = "g6-nanode-1"
  image           = "linode/debian13"
  authorized_keys = ["ssh-ed25519 AAAA test"]

  hob { enabled = false }
}
"#;

/// How much faster than this host's the double's clock runs.
pub(crate) const SCALE: u32 = 1_000;

/// How often a state file is copied that is written meanwhile: a checkpoint between the copies of
/// its two parts makes one of no use.
const COPIES_MAX: usize = 5;

/// How long a socket of a test may be silent.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What a machine does when it comes up: once it fetches its user data as cloud-init does, and
/// then its hob runs.
const GUEST: &str = r#"set -eu
if ! [ -e seeded ]; then
    token=$(curl -sSf -X PUT -H 'Metadata-Token-Expiry-Seconds: 3600' "$GUEST_METADATA_URL/token")
    curl -sSf -H "Metadata-Token: $token" "$GUEST_METADATA_URL/user-data" | base64 -d >user-data
    printf '{"format": 1, "token": "%s", "runtime": "%s/run", "run": []}' \
        "$GUEST_ID" "$GUEST_DIR" >machine.json
    touch seeded
fi
exec GOBS hob --dir "$GUEST_DIR"
"#;

/// What a machine does that has only what its image brings: it runs the part of its user data that
/// is for cloud-init's first stage, and then what the unit does that this makes. Where the disk
/// is another directory than `/`, and nobody is root, stand-ins note what is asked of the system.
const BARE_GUEST: &str = r#"set -eu
export GOBS_ROOT="$GUEST_DIR/root" PATH="$GUEST_DIR/bin:$PATH"
if ! [ -e root ]; then
    mkdir bin
    for name in systemctl useradd nft; do
        printf '#!/bin/sh\nexit 0\n' >"bin/$name"
    done
    printf '#!/bin/sh\necho 999\n' >bin/id
    chmod +x bin/*
    token=$(curl -sSf -X PUT -H 'Metadata-Token-Expiry-Seconds: 3600' "$GUEST_METADATA_URL/token")
    curl -sSf -H "Metadata-Token: $token" "$GUEST_METADATA_URL/user-data" | base64 -d |
        python3 -c '
import email, sys
parts = email.message_from_file(sys.stdin).walk()
bodies = {it.get_content_type(): it.get_payload(decode=True) for it in parts}
open("own", "wb").write(bodies.get("text/cloud-config") or b"")
open("hook", "wb").write(bodies["text/cloud-boothook"])'
    sh hook
fi
# The unit is started again until this is well.
until "$GOBS_ROOT/usr/local/lib/gobs/prepare"; do sleep 0.2; done
export RUNTIME_DIRECTORY="$GUEST_DIR/run"
exec "$GOBS_ROOT/usr/local/bin/hob" --dir "$GOBS_ROOT/var/lib/gobs" \
    --metadata http://127.0.0.1:1 --metadata "$GUEST_METADATA_URL"
"#;

/// A project, and the account that it uses.
pub(crate) struct Account {
    /// Dropped first, since it destroys what it made.
    pub(crate) project: Project,
    pub(crate) double: Double,
    /// How many intents were found before their machine was made.
    witnessed: Arc<AtomicU64>,
    _runtime: tokio::runtime::Runtime,
}

impl Account {
    /// Starts a double for a project; it refuses whatever is not journalled before it is asked.
    pub(crate) fn start(project: Project, seed: u64) -> Self {
        let witnessed = Arc::new(AtomicU64::new(0));
        let witness = a2_witness(project.path(), Arc::clone(&witnessed));
        Self::with(project, seed, GUEST, (witnessed, Some(witness)))
    }

    /// The same, with machines that have no hob until their user data installs one.
    pub(crate) fn bare(project: Project, seed: u64) -> Self {
        let witnessed = Arc::new(AtomicU64::new(0));
        let witness = a2_witness(project.path(), Arc::clone(&witnessed));
        Self::with(project, seed, BARE_GUEST, (witnessed, Some(witness)))
    }

    /// Starts a double that others ask too.
    pub(crate) fn unwitnessed(project: Project, seed: u64) -> Self {
        Self::with(project, seed, GUEST, (Arc::default(), None))
    }

    fn with(
        project: Project,
        seed: u64,
        guest: &str,
        (witnessed, witness): (Arc<AtomicU64>, Option<Witness>),
    ) -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let _inside = runtime.enter();
        let double = Double::start(Options {
            seed: Some(seed),
            scale: SCALE,
            guest: Some(Guest {
                command: guest.replace("GOBS hob", concat!(env!("CARGO_BIN_EXE_gobs"), " hob")),
                directory: project.path().join("linodes"),
            }),
            witness,
            ..Options::default()
        })
        .expect("listens");
        let project = project
            .with_env("LINODE_TOKEN", "double")
            .with_env("LINODE_URL", double.url())
            .with_env("GOBS_LINODE_CLOCK_SCALE", SCALE);
        drop(_inside);
        Self {
            project,
            double,
            witnessed,
            _runtime: runtime,
        }
    }

    /// Asserts that the account has so many machines, and that none was ever made twice.
    #[track_caller]
    pub(crate) fn assert_machines(&self, there: usize, made: u64, when: &str) {
        let (instances, stats) = (self.double.instances(), self.double.stats());
        let labels: Vec<&Value> = instances.iter().map(|it| &it["label"]).collect();
        assert_eq!(
            (there, made),
            (labels.len(), stats.created),
            "{when}: {labels:?}"
        );
        let witnessed = self.witnessed.load(Ordering::Relaxed);
        assert!(
            stats.unwitnessed == 0 && witnessed >= made,
            "{when}: of {made} machines, {witnessed} were intended durably before they were made"
        );
    }
}

/// Promise A2: whoever is asked for a machine finds the intent in a copy of the state.
fn a2_witness(project: &Path, witnessed: Arc<AtomicU64>) -> Witness {
    let dot = project.join(".gobs");
    Arc::new(move |path, body| {
        if path != "/linode/instances" {
            return Ok(());
        }
        let tags = body["tags"].as_array().into_iter().flatten();
        let mut tags = tags.filter_map(Value::as_str);
        let token = tags.find_map(|tag| tag.strip_prefix("gobs:"));
        let token = token.ok_or("the machine carries no token")?;
        let mut why = String::new();
        for _ in 0..COPIES_MAX {
            match is_journalled(&dot, token) {
                Ok(true) => {
                    witnessed.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Ok(false) => why = format!("the intent of {token} is not durable"),
                Err(error) => why = error.to_string(),
            }
        }
        Err(why)
    })
}

fn is_journalled(dot: &Path, token: &str) -> Result<bool, Box<dyn std::error::Error>> {
    let copies = tempfile::tempdir()?;
    let state = copies.path().join("state.db");
    std::fs::copy(dot.join("state.db"), &state)?;
    std::fs::copy(dot.join("state.db-wal"), copies.path().join("state.db-wal"))?;
    let reader = Reader::open(&state, &DataKey::load(&dot.join("key"))?)?;
    let doubts = reader.in_doubt()?;
    Ok(doubts.iter().any(|doubt| {
        let intent = doubt.started.intent();
        intent.action == "create" && intent.token.as_deref() == Some(token)
    }))
}

/// Answers every connection with one line; returns the port.
pub(crate) fn serve_line() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else {
                return;
            };
            // A connection that only looks whether somebody listens wants no line.
            let _ = stream.write_all(b"orders here\n");
        }
    });
    port
}

/// Asserts that the service answers at an address.
#[track_caller]
pub(crate) fn assert_answers(address: &str) {
    let mut stream = TcpStream::connect(address.trim_end()).expect("the binding listens");
    stream
        .set_read_timeout(Some(SILENCE_MAX))
        .expect("a timeout");
    let mut line = [0; 12];
    stream.read_exact(&mut line).expect("the service answers");
    assert_eq!(&line, b"orders here\n");
}
