//! Plugins that go wrong, each a real process: every one gives a clear error, at once.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gobs_model::{Address, Known, Name, Value};
use gobs_provider::pipe::{Client, LINE_BYTES_MAX, StartError};
use gobs_provider::{
    CreateRequest, Error, Intended, Objection, Observed, Oddity, Progress, Proposal, Provider,
    Token, UserData,
};

/// How long what must happen may take on a busy host.
const PATIENCE: Duration = Duration::from_secs(20);

/// A hello that is right; its deadlines are short for those who wait for them.
const HELLO: &str = r#"{"id": 1, "result": {"version": 1,
    "schema": {"name": "odd", "machine": {"attributes": {}}},
    "deadlines_s": {"create": 0.3, "look": 0.3}}}"#;

const NO_DEADLINES: &str = r#"{"id": 1, "result": {"version": 1,
    "schema": {"name": "odd", "machine": {"attributes": {}}}}}"#;

/// Returns a plugin that is this shell script; `$HELLO` is a hello.
fn script(text: &str, hello: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", text])
        .env("HELLO", hello.replace('\n', " "));
    command
}

fn start(text: &str) -> Result<Client, StartError> {
    Client::start("odd", script(text, NO_DEADLINES))
}

fn refused(text: &str) -> String {
    match start(text) {
        Ok(_) => panic!("it was taken for a plugin: {text}"),
        Err(error) => error.to_string(),
    }
}

/// Starts a plugin that says hello and then does this with what it reads.
fn greeted(then: &str, hello: &str) -> Client {
    let text = format!("read -r line; printf '%s\\n' \"$HELLO\"; {then}");
    Client::start("odd", script(&text, hello)).expect("it says hello")
}

fn machine() -> Observed {
    Observed {
        id: "m1".into(),
        attributes: Known::empty(),
    }
}

async fn create(client: &Client, progress: Progress) -> Result<Observed, Error> {
    let request = CreateRequest {
        token: Token::random().expect("randomness"),
        address: Address::machine(Name::new("db").expect("a name"), None),
        wanted: Known::empty(),
        user_data: Some(UserData("hunter2".into())),
        before: None,
    };
    client.create(request, progress).await
}

/// Checks what a create and, on another process, a read come to.
async fn check(then: &str, hello: &str, expected: &str) {
    let client = greeted(then, hello);
    let made = create(&client, Arc::new(drop)).await;
    let Err(Error::InDoubt(message)) = made else {
        panic!("{then}: {made:?}");
    };
    assert!(message.contains(expected), "{then}: {message}");
    assert!(!message.contains("hunter2"), "{message}");

    let client = greeted(then, hello);
    let error = client.read(&machine()).await.expect_err(then);
    assert!(error.to_string().contains(expected), "{then}: {error}");
}

#[test]
fn what_is_no_plugin_is_refused_with_what_it_did() {
    let missing = Client::start("odd", Command::new("/nonexistent/plugin"));
    let missing = missing.err().expect("nothing to start").to_string();
    assert!(missing.starts_with("it cannot be started: "), "{missing}");

    for (text, expected) in [
        ("exit 3", "it ended (exit status: 3)"),
        (
            "echo 'ImportError: no such module' >&2; exit 1",
            "it ended (exit status: 1); the last it said: ImportError: no such module",
        ),
        ("kill -9 $$", "it ended (signal: 9 (SIGKILL))"),
        ("exec >&-; exec sleep 100", "it closed its output"),
        (
            "echo Welcome to my plugin!; exec sleep 100",
            "it sent a line that is no answer: \"Welcome to my plugin!\"",
        ),
        (
            "head -c 17000000 /dev/zero; exec sleep 100",
            "it sent a line of more than 16 MiB",
        ),
        (
            r#"echo '{"id": 1, "result": {"version": 2, "novelties": []}}'; exec sleep 100"#,
            "it speaks version 2 of the protocol, this gobs version 1",
        ),
        (
            r#"echo '{"id": 1, "error": {"kind": "rejected", "message": "too old"}}'; sleep 100"#,
            "it answered `hello` with: too old",
        ),
        (
            r#"echo '{"id": 1, "result": {"version": 1}}'; exec sleep 100"#,
            "its hello is wrong: missing field `schema`",
        ),
        (
            r#"echo '{"id": 7, "result": {}}'; exec sleep 100"#,
            "it answered a request that it was not asked: 7",
        ),
        (
            r#"echo '{"id": 1}'; exec sleep 100"#,
            "it sent a line that is not one of result, error, progress",
        ),
        (
            r#"yes '{"id": 1, "progress": "almost"}'"#,
            "it sent more than 10000 lines of progress for one request",
        ),
    ] {
        assert_eq!(refused(text), expected, "{text}");
    }
}

#[test]
fn a_plugin_of_another_name_is_refused() {
    let text = "read -r line; printf '%s\\n' \"$HELLO\"; read -r line";
    let other = Client::start("even", script(text, HELLO));
    let other = other.err().expect("it is odd").to_string();
    assert_eq!(other, "it calls itself \"odd\"");
}

#[test]
fn a_plugin_that_says_nothing_is_given_up() {
    let silent = script("exec sleep 100", HELLO);
    let begun = Instant::now();
    let silent = Client::start_within("odd", silent, Duration::from_millis(200));
    let silent = silent.err().expect("it says nothing").to_string();
    assert_eq!(silent, "it did not answer `hello` within 0.2 s");
    assert!(begun.elapsed() < PATIENCE);
}

#[tokio::test]
async fn death_in_the_midst_is_in_doubt() {
    check("read -r line; exit 4", HELLO, "it ended (exit status: 4)").await;
    check("read -r line; kill -9 $$", HELLO, "it ended (signal: 9").await;
    check(
        "read -r line; exec >&-; exec sleep 100",
        NO_DEADLINES,
        "it closed its output",
    )
    .await;
}

#[tokio::test]
async fn a_dead_plugin_is_not_asked_again() {
    let client = greeted("read -r line; exit 4", HELLO);
    create(&client, Arc::new(drop)).await.expect_err("it ends");
    let again = create(&client, Arc::new(drop)).await;
    let expected = "the plugin does not run: it ended (exit status: 4)";
    assert_eq!(again, Err(Error::rejected(expected)));
}

#[tokio::test]
async fn garbage_in_the_midst_is_in_doubt_and_not_repeated() {
    // The request holds a secret, so nothing that comes back of it may be shown.
    let echo = "read -r line; printf '%s\\n' \"garbage $line\"; exec sleep 100";
    check(
        echo,
        NO_DEADLINES,
        "it sent a line that is no answer: it is no JSON at column 1",
    )
    .await;
    let other = "read -r line; echo '{\"id\": 2, \"result\": {\"machine\": 5}}'; exec sleep 100";
    check(
        other,
        NO_DEADLINES,
        "what came is no answer to it: it does not fit",
    )
    .await;
    let empty = "read -r line; echo '{\"id\": 2, \"result\": {}}'; exec sleep 100";
    check(
        empty,
        NO_DEADLINES,
        "what came is no answer to it: missing field `machine`",
    )
    .await;
}

#[tokio::test]
async fn a_flood_in_the_midst_ends_the_plugin() {
    let endless = "read -r line; cat /dev/zero";
    let too_long = format!("it sent a line of more than {} MiB", LINE_BYTES_MAX >> 20);
    check(endless, NO_DEADLINES, &too_long).await;
    let progress = "read -r line; exec yes '{\"id\": 2, \"progress\": \"almost\"}'";
    check(
        progress,
        NO_DEADLINES,
        "it sent more than 10000 lines of progress",
    )
    .await;
}

#[tokio::test]
async fn a_flood_of_stderr_harms_nobody() {
    let noisy = "head -c 30000000 /dev/zero >&2; yes noise | head -n 100000 >&2; read -r line;
        echo '{\"id\": 2, \"result\": {\"machine\": null}}'; read -r line";
    let client = greeted(noisy, NO_DEADLINES);
    assert_eq!(client.read(&machine()).await, Ok(None));
}

#[tokio::test]
async fn a_hang_ends_at_the_deadline() {
    let begun = Instant::now();
    check(
        "exec sleep 100",
        HELLO,
        "was not answered within its deadline of 0.3 s",
    )
    .await;
    assert!(begun.elapsed() < PATIENCE);
}

#[tokio::test]
async fn a_plugin_that_does_not_read_is_busy() {
    let client = greeted("exec sleep 100", HELLO);
    let mut big = machine();
    // More than the pipe and the queue hold.
    big.id = "x".repeat(200_000);
    let mut seen = Vec::new();
    for _ in 0..2_000 {
        let read = tokio::time::timeout(Duration::ZERO, client.read(&big)).await;
        if let Ok(Err(error)) = read {
            seen.push(error);
            break;
        }
    }
    assert!(matches!(seen.as_slice(), [Error::Busy { .. }]), "{seen:?}");
}

#[tokio::test]
async fn an_error_of_the_plugin_arrives_as_it_is() {
    let deny = "read -r line; echo '{\"id\": 2, \"error\": {\"kind\": \"busy\", \"message\": \
                \"later\", \"after_s\": 2.5}}'; read -r line";
    let client = greeted(deny, HELLO);
    let after = Duration::from_millis(2_500);
    let message = "later".into();
    let busy = Err(Error::Busy { message, after });
    assert_eq!(client.read(&machine()).await, busy);
}

#[tokio::test]
async fn progress_arrives_before_the_answer() {
    let slow = "read -r line; echo '{\"id\": 2, \"progress\": \"booting\"}';
        echo '{\"id\": 2, \"result\": {\"machine\": {\"id\": \"m1\", \"attributes\": \
        {\"object\": {}}}}}'; read -r line";
    let client = greeted(slow, NO_DEADLINES);
    let said = Arc::new(Mutex::new(Vec::new()));
    let listener = said.clone();
    let made = create(
        &client,
        Arc::new(move |text| listener.lock().expect("the list").push(text)),
    );
    assert_eq!(made.await, Ok(machine()));
    assert_eq!(*said.lock().expect("the list"), ["booting"]);
}

#[tokio::test]
async fn an_abandoned_call_is_cancelled_and_its_late_answer_is_nobody_s() {
    // It answers the abandoned call when it is told, then the next one.
    let late = "read -r line; read -r cancel; printf '%s\\n' \"$cancel\" > cancelled;
        echo '{\"id\": 2, \"result\": {\"machine\": null}}'; echo '{\"id\": 3, \"result\": {}}';
        read -r line; echo '{\"id\": 4, \"result\": {\"machine\": null}}'; read -r line";
    let directory = tempfile::tempdir().expect("a directory");
    let text = format!("read -r line; printf '%s\\n' \"$HELLO\"; {late}");
    let mut command = script(&text, NO_DEADLINES);
    command.current_dir(directory.path());
    let client = Client::start("odd", command).expect("it says hello");
    let last = machine();
    let abandoned = tokio::time::timeout(Duration::from_millis(1), client.read(&last)).await;
    assert!(abandoned.is_err(), "{abandoned:?}");
    assert_eq!(client.read(&last).await, Ok(None));
    let told = fs::read_to_string(directory.path().join("cancelled")).expect("what it was told");
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["method"], "cancel");
    assert_eq!(told["params"]["id"], 2);
}

#[tokio::test]
async fn only_a_plugin_that_says_so_is_asked_what_it_need_not_know() {
    let plan = |secret: &str| {
        let after = Value::object([("key", Value::from(secret).sensitive())]);
        [Intended {
            before: Value::NULL,
            after,
            anew: true,
        }]
    };
    // It would answer nothing.
    let silent = greeted("cat >/dev/null", HELLO);
    assert_eq!(silent.lacking(&plan("hunter2")).await, Ok(Vec::new()));
    let asked = tempfile::NamedTempFile::new().expect("a file");
    let then = format!(
        "read -r line; printf '%s' \"$line\" >{}; \
         echo '{{\"id\": 2, \"result\": {{\"lacking\": [\"scope x\"]}}}}'; cat >/dev/null",
        asked.path().display()
    );
    let hello = HELLO.replace(
        "\"deadlines_s\"",
        "\"methods\": {\"lacking\": true}, \"deadlines_s\"",
    );
    let telling = greeted(&then, &hello.replace("\"look\": 0.3", "\"look\": 20"));
    let lacking = telling.lacking(&plan("hunter2")).await;
    assert_eq!(lacking, Ok(vec!["scope x".to_owned()]));
    let asked = fs::read_to_string(asked.path()).expect("what was asked");
    assert!(
        asked.contains(r#"{"key":{"sensitive":{"unknown":"any"}}}"#),
        "{asked}"
    );
    assert!(!asked.contains("hunter2"), "{asked}");
}

#[tokio::test]
async fn what_a_plugin_objects_to_abandons_and_finds_odd_comes_through_the_pipe() {
    let address: Address = "machine.web".parse().expect("an address");
    let known = Observed {
        id: "m".into(),
        attributes: Known::empty(),
    };
    let proposal = Proposal {
        address: address.clone(),
        wanted: Value::object([("key", Value::from("hunter2").sensitive())]),
        is_new: true,
        before: None,
    };
    // One that says nothing of these is not asked.
    let silent = greeted("cat >/dev/null", HELLO);
    assert_eq!(silent.objections(&proposal).await, Ok(Vec::new()));
    assert_eq!(silent.abandon(&address).await, Ok(()));
    let all = [(address.clone(), known)];
    assert_eq!(silent.oddities(&all).await, Ok(Vec::new()));

    let asked = tempfile::NamedTempFile::new().expect("a file");
    let answers = [
        r#"{"id": 2, "result": {"objections": [{"attribute": "size", "message": "too large"}]}}"#,
        r#"{"id": 3, "result": {}}"#,
        r#"{"id": 4, "result": {"oddities": [{"what": "a wall is gone", "is_problem": true}]}}"#,
    ];
    let then = answers.map(|it| {
        let note = format!("printf '%s\\n' \"$line\" >>{}", asked.path().display());
        format!("read -r line; {note}; echo '{it}'; ")
    });
    let methods = "\"methods\": {\"objections\": true, \"abandon\": true, \"oddities\": true}, ";
    let hello = HELLO.replace("\"deadlines_s\"", &format!("{methods}\"deadlines_s\""));
    let hello = hello.replace("\"look\": 0.3", "\"look\": 20");
    let telling = greeted(&(then.concat() + "cat >/dev/null"), &hello);
    let objection = Objection::new("size", "too large".into(), "");
    assert_eq!(telling.objections(&proposal).await, Ok(vec![objection]));
    assert_eq!(telling.abandon(&address).await, Ok(()));
    let oddity = Oddity {
        what: "a wall is gone".into(),
        mend: String::new(),
        is_problem: true,
    };
    assert_eq!(telling.oddities(&all).await, Ok(vec![oddity]));
    let asked = fs::read_to_string(asked.path()).expect("what was asked");
    assert!(asked.contains(r#""address":"machine.web""#), "{asked}");
    assert!(
        asked.contains(r#"{"sensitive":{"unknown":"any"}}"#),
        "{asked}"
    );
    assert!(!asked.contains("hunter2"), "{asked}");
}

#[test]
fn a_dropped_client_ends_its_plugin_and_what_that_started() {
    let directory = tempfile::tempdir().expect("a directory");
    let stubborn = "trap '' TERM HUP; sleep 100 & echo $! > child; echo $$ > plugin;
        while :; do sleep 1; done";
    let text = format!("read -r line; printf '%s\\n' \"$HELLO\"; {stubborn}");
    let mut command = script(&text, HELLO);
    command.current_dir(directory.path());
    let client = Client::start("odd", command).expect("it says hello");
    let pid = |name| running(&directory.path().join(name));
    let deadline = Instant::now() + PATIENCE;
    while pid("plugin").is_none() || pid("child").is_none() {
        assert!(Instant::now() < deadline, "it does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(client);
    while pid("plugin").is_some() || pid("child").is_some() {
        assert!(Instant::now() < deadline, "it goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the process that a file names, where it runs.
fn running(file: &Path) -> Option<u32> {
    let pid = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let is_dead = stat.contains(") Z ");
    (!is_dead).then_some(pid)
}
