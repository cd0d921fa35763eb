//! SIGKILL to whoever calls the provider, at every point where it leaves something different.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use gobs_model::{Change, Known, Value};
use gobs_provider::{CreateRequest, Observed, Provider, UpdateRequest};
use gobs_provider_dummy::{Dummy, Point, Verb};
use serde::{Deserialize, Serialize};

use crate::host::{Host, create, host, text, token, update};

/// Holds the call that a second run of this binary makes.
const JOB_VARIABLE: &str = "DUMMY_TEST_JOB";

#[derive(Serialize, Deserialize)]
struct Job {
    root: PathBuf,
    runtime_root: PathBuf,
    faults: String,
    call: Call,
}

#[derive(Clone, Serialize, Deserialize)]
enum Call {
    Create(CreateRequest),
    Update(UpdateRequest),
    Delete(Observed),
}

const CREATE: &[Point] = &[
    Point::Staged,
    Point::Placed,
    Point::Launched,
    Point::Settled,
];
const DESCRIBE: &[Point] = &[Point::Recorded, Point::Described, Point::Settled];
const REBUILD: &[Point] = &[
    Point::Accepted,
    Point::Wiped,
    Point::Launched,
    Point::Settled,
];
const DELETE: &[Point] = &[Point::Doomed, Point::Stopped, Point::Displaced];

/// Also the crashing half of the tests below: told a job, it makes that call and nothing else.
#[tokio::test]
async fn every_point_is_crashed_at() {
    if let Some(job) = told() {
        return run(job).await;
    }
    let tested = |point| {
        [CREATE, DESCRIBE, REBUILD, DELETE]
            .iter()
            .any(|it| it.contains(point))
    };
    assert_eq!(Point::ALL.iter().find(|point| !tested(point)), None);
}

#[expect(
    clippy::disallowed_methods,
    reason = "the binary's own second run is told its job so"
)]
fn told() -> Option<Job> {
    let job = std::env::var(JOB_VARIABLE).ok()?;
    Some(serde_json::from_str(&job).expect("a job"))
}

async fn run(job: Job) {
    let dummy = Dummy::new(host(&job.root, &job.runtime_root));
    let settings = Value::object([("faults", Value::from(job.faults))]);
    dummy
        .configure(&Known::try_from(settings).expect("known"))
        .await
        .expect("configured");
    match job.call {
        Call::Create(it) => drop(dummy.create(it, Arc::new(drop)).await.expect("created")),
        Call::Update(it) => drop(dummy.update(it, Arc::new(drop)).await.expect("updated")),
        Call::Delete(it) => dummy.delete(&it, Arc::new(drop)).await.expect("deleted"),
    }
}

/// Makes a call in a process that dies at this point; returns whether it came there.
///
/// Waits for the end of its output too, so a machine that held it would make this hang.
fn crash(host: &Host, call: &Call, point: Point) -> bool {
    let verb = match call {
        Call::Create(_) => Verb::Create,
        Call::Update(_) => Verb::Update,
        Call::Delete(_) => Verb::Delete,
    };
    let job = Job {
        root: host.root.clone(),
        runtime_root: host.runtime_root.clone(),
        faults: format!("{}:kill={}", verb.word(), point.word()),
        call: call.clone(),
    };
    // The third descriptor is what a shell around gobs may have left open.
    let line = r#"exec "$0" --exact crash::every_point_is_crashed_at --nocapture 3>&1"#;
    let output = Command::new("sh")
        .args(["-c", line])
        .arg(std::env::current_exe().expect("this binary"))
        .env(JOB_VARIABLE, serde_json::to_string(&job).expect("JSON"))
        .output()
        .expect("a run");
    let killed = output.status.signal() == Some(9);
    assert!(killed || output.status.success(), "{output:?}");
    killed
}

#[tokio::test]
async fn a_crash_in_create_leaves_nothing_or_one_machine() {
    for &first in CREATE {
        for second in std::iter::once(None).chain(CREATE.iter().map(Some)) {
            let (host, token) = (Host::new(), token());
            let dummy = host.dummy();
            let request = create(&token, []);
            let call = Call::Create(request.clone());
            assert!(crash(&host, &call, first), "{first:?} is not reached");
            if let Some(&second) = second {
                crash(&host, &call, second);
            }
            let found = dummy.find(&token).await.expect("found");
            if first == Point::Staged && second.is_none_or(|it| *it == Point::Staged) {
                assert_eq!(found, None, "{first:?}, {second:?}");
                assert_eq!(std::fs::read_dir(&host.root).expect("the root").count(), 0);
            } else {
                let found = found.as_ref().map(|it| text(it, "status"));
                assert_eq!(found, Some("running"), "{first:?}, {second:?}");
            }
            let made = dummy
                .create(request, Arc::new(drop))
                .await
                .expect("created");
            host.wait_started(&token, 1);
            assert_eq!(dummy.list().await.expect("listed").len(), 1);
            dummy.delete(&made, Arc::new(drop)).await.expect("deleted");
            assert_eq!(host.leftovers(), [""; 0], "{first:?}, {second:?}");
        }
    }
}

#[tokio::test]
async fn a_crash_in_update_comes_to_the_same_as_none() {
    let run = || Value::list(["exec true".into()]);
    for (change, points) in [(Change::InPlace, DESCRIBE), (Change::Rebuild, REBUILD)] {
        for &point in points {
            for repeat in [true, false] {
                let (host, token) = (Host::new(), token());
                let dummy = host.dummy();
                let made = dummy
                    .create(create(&token, []), Arc::new(drop))
                    .await
                    .expect("made");
                host.wait_started(&token, 1);
                let set = match change {
                    Change::Rebuild => [("image", "new".into()), ("run", run())],
                    _ => [("size", "big".into()), ("run", run())],
                };
                let request = update(&made, change, set);
                assert!(
                    crash(&host, &Call::Update(request.clone()), point),
                    "{point:?}"
                );
                let seen = if repeat {
                    dummy
                        .update(request, Arc::new(drop))
                        .await
                        .expect("updated")
                } else {
                    dummy.read(&made).await.expect("read").expect("the machine")
                };
                let starts = if change == Change::Rebuild { 2 } else { 1 };
                host.wait_started(&token, starts);
                let seen = (
                    text(&seen, "size"),
                    text(&seen, "image"),
                    text(&seen, "status"),
                );
                let expected = match change {
                    Change::Rebuild => ("", "new", "running"),
                    _ => ("big", "", "running"),
                };
                assert_eq!(seen, expected, "{point:?}, repeated: {repeat}");
                let description = std::fs::read_to_string(host.dir(&token).join("machine.json"));
                assert!(
                    description.expect("a description").contains("exec true"),
                    "{point:?}"
                );
                dummy.delete(&made, Arc::new(drop)).await.expect("deleted");
                assert_eq!(host.leftovers(), [""; 0], "{point:?}, repeated: {repeat}");
            }
        }
    }
}

#[tokio::test]
async fn a_crash_in_delete_still_deletes() {
    for &first in DELETE {
        for second in std::iter::once(None).chain(DELETE.iter().map(Some)) {
            let (host, token) = (Host::new(), token());
            let dummy = host.dummy();
            let made = dummy
                .create(create(&token, []), Arc::new(drop))
                .await
                .expect("made");
            host.wait_started(&token, 1);
            let call = Call::Delete(made.clone());
            assert!(crash(&host, &call, first), "{first:?} is not reached");
            if let Some(&second) = second {
                crash(&host, &call, second);
            } else {
                assert_eq!(dummy.read(&made).await, Ok(None), "{first:?}");
            }
            dummy
                .delete(&made, Arc::new(drop))
                .await
                .expect("deleted again");
            assert_eq!(host.leftovers(), [""; 0], "{first:?}, {second:?}");
        }
    }
}
