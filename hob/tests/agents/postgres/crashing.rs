//! S5, X1: whoever is killed, roles and grants come to agree; a secret is nowhere it must not be.

use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;

use data_encoding::{BASE64, HEXLOWER};
use hob::protocol::Attenuate;
use hob::store::Store;
use tokio::time::sleep;

use super::bound::Bound;
use super::cluster::Cluster;
use crate::support::{eventually, generation};

/// Kills, each a little later in a grant or a revocation than the one before.
const KILLS: u64 = 24;

/// How much later: some of each fall before, into and after what is done at the server.
const STEP: Duration = Duration::from_millis(2);

#[tokio::test(flavor = "multi_thread")]
async fn s5_a_killed_exporter_leaves_no_role_that_nothing_owns() {
    let cluster = Cluster::shared();
    let mut bound = Bound::offer(cluster).await;
    let mut number = 0;
    for kill in 0..KILLS {
        number += 1;
        let asked = bound.asked(number, Attenuate::default());
        let exporter = bound.pair.exporter.clone();
        let revokes = kill % 2 == 1;
        if revokes {
            exporter.grant(&asked).await.unwrap();
        }
        let call = tokio::spawn(async move {
            // Its answer may be lost: it is asked again below.
            let _ = match revokes {
                true => exporter.revoke(&generation(number)).await,
                false => exporter.grant(&asked).await.map(drop),
            };
        });
        // Not a wait for anything: it picks the moment of the kill.
        sleep(STEP * (kill / 2) as u32).await;
        bound.pair.db.kill();
        call.await.unwrap();
        bound.pair.db.start_again();
        let down = bound.pair.exporter.clone();
        let status = hob::protocol::method::STATUS;
        eventually("the old session ends", async || {
            down.hob.call(status, []).await.is_err()
        })
        .await;
        bound.pair.exporter = bound.pair.boss.client("machine.db").await;
        if !revokes {
            bound.bind(number, Attenuate::default()).await;
            assert_eq!(
                bound.ask("select 'in'").await,
                Ok("in".into()),
                "kill {kill}"
            );
            assert_eq!(cluster.roles(&bound.database).len(), 1, "kill {kill}");
        }
        bound
            .pair
            .exporter
            .revoke(&generation(number))
            .await
            .unwrap();
        assert_eq!(
            cluster.roles(&bound.database),
            Vec::<String>::new(),
            "kill {kill}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s9_a_killed_receiver_and_a_restarted_server_come_back() {
    let mut bound = Bound::start(Attenuate::default()).await;
    bound.ask("create table t as select 1 as x").await.unwrap();
    bound.pair.boss.peer.clone().close().await;
    bound.pair.app.kill();
    bound.pair.db.kill();
    bound.pair.app.start_again();
    bound.pair.db.start_again();
    let back = async || bound.ask("select x from t").await == Ok("1".into());
    eventually("the binding works again", back).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn x1_the_machine_of_the_program_has_nothing_to_log_in_with() {
    let cluster = Cluster::shared();
    let bound = Bound::start(Attenuate::default()).await;
    let client = bound.connect().await.unwrap();
    let verifier = "select rolpassword from pg_authid where rolname = ";
    let verifier = cluster.sql("postgres", &format!("{verifier}'{}'", bound.role()));
    let (_, keys) = verifier.rsplit_once('$').unwrap();
    let (stored, server) = keys.split_once(':').unwrap();
    // What all keys of the role follow from, as the exporter computes it.
    let store = Store::open(&bound.pair.db.layout).unwrap();
    let secret = store.derive("service", &["binding.db", "1"]);
    let mut needles: Vec<Vec<u8>> = vec![stored.into(), server.into()];
    for raw in [secret.to_vec(), BASE64.decode(stored.as_bytes()).unwrap()] {
        needles.extend([
            HEXLOWER.encode(&raw).into(),
            BASE64.encode(&raw).into(),
            raw,
        ]);
    }
    let finder = |haystack: &[u8], what: &str| {
        for needle in &needles {
            let found = haystack.windows(needle.len()).any(|part| part == needle);
            assert!(!found, "{what} has a key of the role");
        }
    };
    let process = format!("/proc/{}", bound.pair.app.pid().as_raw_nonzero());
    for file in ["environ", "cmdline"] {
        finder(&std::fs::read(format!("{process}/{file}")).unwrap(), file);
    }
    let mut memory = std::fs::File::open(format!("{process}/mem")).unwrap();
    let mut read = 0;
    for line in std::fs::read_to_string(format!("{process}/maps"))
        .unwrap()
        .lines()
    {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16).unwrap());
        if !rights.starts_with("rw") {
            continue;
        }
        let mut part = vec![0; (end - start) as usize];
        memory.seek(SeekFrom::Start(start)).unwrap();
        // Some pages, such as a stack's guard, cannot be read.
        if memory.read_exact(&mut part).is_ok() {
            read += part.len();
            finder(&part, "the hob's memory");
        }
    }
    assert!(read > 100_000, "the memory was read: {read} bytes");
    let mut open = vec![bound.pair.app.layout.dir().to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap() {
                it if it.is_dir() => open.push(entry.path()),
                it if it.is_file() => {
                    finder(
                        &std::fs::read(entry.path()).unwrap(),
                        &entry.path().display().to_string(),
                    );
                }
                _ => {}
            }
        }
    }
    // Nor has the exporter written it down; the same needles are found where they must be.
    finder(bound.pair.db.log().as_bytes(), "the exporter's log");
    assert!(
        cluster.log().contains(stored),
        "the server was told its half"
    );
    drop(client);
}
