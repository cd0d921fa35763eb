//! The double over its wire, by the barest of clients.

use std::time::{Duration, Instant};

use gobs_linode_double::{Double, Fault, Guest, Kind, Options};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a condition may take on a busy host; virtual minutes are milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// One answer: its status, its head, its body. Status 0: the connection ended without one.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }

    #[track_caller]
    fn reason(&self) -> String {
        self.json()["errors"][0]["reason"]
            .as_str()
            .expect("a reason")
            .to_owned()
    }
}

async fn ask(method: &str, url: &str, headers: &str, body: &str) -> Answer {
    let rest = url.strip_prefix("http://").expect("http");
    let (host, path) = rest.split_once('/').expect("a path");
    let mut stream = TcpStream::connect(host).await.expect("listens");
    let length = body.len();
    let request = format!(
        "{method} /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\
         Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut text = Vec::new();
    let read = stream.read_to_end(&mut text).await;
    let text = String::from_utf8(text).expect("UTF-8");
    let Some((head, body)) = text.split_once("\r\n\r\n").filter(|_| read.is_ok()) else {
        return Answer {
            status: 0,
            head: String::new(),
            body: String::new(),
        };
    };
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|it| it.parse().ok())
        .expect("a status");
    Answer {
        status,
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

async fn call(double: &Double, method: &str, path: &str, body: Value) -> Answer {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let url = format!("{}{path}", double.url());
    ask(method, &url, "Authorization: Bearer double\r\n", &body).await
}

fn start() -> Double {
    Double::start(Options {
        seed: Some(7),
        ..Options::default()
    })
    .expect("listens")
}

fn machine(label: &str) -> Value {
    json!({"region": "eu-central", "type": "g6-nanode-1", "image": "linode/debian13",
        "label": label, "authorized_keys": ["ssh-ed25519 AAAA"], "tags": ["Blue", "abc"],
        "metadata": {"user_data": "aGVsbG8="}})
}

async fn until_status(double: &Double, id: u64, status: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = call(
            double,
            "GET",
            &format!("/linode/instances/{id}"),
            Value::Null,
        )
        .await;
        if seen.json()["status"] == status {
            return seen.json();
        }
        assert!(
            Instant::now() < deadline,
            "{id} never became {status}: {}",
            seen.body
        );
    }
}

#[tokio::test]
async fn an_instance_lives_as_on_linode() {
    let double = start();
    let made = call(&double, "POST", "/linode/instances", machine("web-1")).await;
    assert_eq!(
        (made.status, &made.json()["status"]),
        (200, &json!("provisioning"))
    );
    assert!(
        made.head.contains("x-ratelimit-remaining: 19"),
        "{}",
        made.head
    );
    let id = made.json()["id"].as_u64().expect("an id");
    let path = format!("/linode/instances/{id}");
    let busy = call(&double, "POST", &format!("{path}/reboot"), json!({})).await;
    assert_eq!((busy.status, busy.reason().as_str()), (400, "Linode busy."));
    until_status(&double, id, "running").await;

    let asked = json!({"image": "linode/debian12", "root_pass": "a long enough one",
        "metadata": {"user_data": "YWdhaW4="}});
    let answer = call(&double, "POST", &format!("{path}/rebuild"), asked)
        .await
        .json();
    assert_eq!(answer["image"], "linode/debian12");
    assert_eq!(
        until_status(&double, id, "running").await["image"],
        "linode/debian12"
    );
    let resize = json!({"type": "g6-standard-1"});
    assert_eq!(
        call(&double, "POST", &format!("{path}/resize"), resize)
            .await
            .body,
        "{}"
    );
    assert_eq!(
        until_status(&double, id, "running").await["type"],
        "g6-standard-1"
    );

    let events = call(&double, "GET", "/account/events", Value::Null)
        .await
        .json();
    let events = events["data"].as_array().expect("events").clone();
    let told: Vec<_> = events
        .iter()
        .rev()
        .map(|it| (&it["action"], &it["status"]))
        .collect();
    let actions = ["create", "boot", "rebuild", "boot", "resize", "boot"];
    let expected = actions.map(|it| (json!(format!("linode_{it}")), json!("finished")));
    assert_eq!(
        told,
        expected.iter().map(|(a, b)| (a, b)).collect::<Vec<_>>()
    );

    assert_eq!(call(&double, "DELETE", &path, Value::Null).await.body, "{}");
    let deadline = Instant::now() + PATIENCE;
    while call(&double, "GET", &path, Value::Null).await.status != 404 {
        assert!(Instant::now() < deadline, "it is never gone");
    }
    assert_eq!(double.metadata_url(id), None);
}

#[tokio::test]
async fn what_is_wrong_is_said_in_the_apis_words() {
    let double = start();
    let refused = |body: Value| {
        let double = double.clone();
        async move { call(&double, "POST", "/linode/instances", body).await }
    };
    let both = refused(json!({"label": "a--b"})).await.json();
    let fields: Vec<_> = (0..3)
        .map(|at| both["errors"][at]["field"].clone())
        .collect();
    assert_eq!(fields, ["region", "type", "label"]);
    let mut bare = machine("web-1");
    bare["authorized_keys"] = json!([]);
    let why = "Must provide valid root_pass, authorized_keys, or authorized_users";
    let bare = refused(bare).await;
    assert_eq!(bare.reason(), why);
    assert_eq!(bare.json()["errors"][0]["field"], json!(null));
    assert_eq!(refused(machine("web-1")).await.status, 200);
    let taken = refused(machine("web-1")).await;
    assert_eq!(taken.reason(), "Label must be unique among your linodes");
    let url = format!("{}/linode/instances", double.url());
    let stranger = ask("GET", &url, "Authorization: Bearer no\r\n", "").await;
    assert_eq!(
        (stranger.status, stranger.reason().as_str()),
        (401, "Invalid Token")
    );
    let filter = "Authorization: Bearer double\r\nX-Filter: {\"status\":\"running\"}\r\n";
    assert_eq!(
        ask("GET", &url, filter, "").await.reason(),
        "Cannot filter on status"
    );
    assert_eq!(double.stats().created, 1);
}

#[tokio::test]
async fn scopes_and_windows_are_kept() {
    let tokens = [("reader".to_owned(), "linodes:read_only".to_owned())].into();
    let options = Options {
        tokens,
        scale: 1,
        seed: Some(7),
        ..Options::default()
    };
    let double = Double::start(options).expect("listens");
    let bearer = "Authorization: Bearer reader\r\n";
    let url = format!("{}/linode/instances", double.url());
    let read = ask("GET", &url, bearer, "").await;
    assert_eq!(read.status, 200);
    assert!(
        read.head.contains("x-oauth-scopes: linodes:read_only"),
        "{}",
        read.head
    );
    for _ in 0..20 {
        assert_eq!(ask("POST", &url, bearer, "{}").await.status, 401);
    }
    let over = ask("POST", &url, bearer, "{}").await;
    assert_eq!(over.status, 429);
    assert!(over.head.contains("retry-after: "), "{}", over.head);
    double.advance(Duration::from_secs(15));
    assert_eq!(ask("POST", &url, bearer, "{}").await.status, 401);
}

#[tokio::test]
async fn a_lost_answer_has_its_effect() {
    let double = start();
    let kinds = [
        Kind::ResetAfter,
        Kind::After { status: 504 },
        Kind::ResetBefore,
    ];
    for (kind, status, count) in kinds
        .into_iter()
        .zip([0, 504, 0])
        .zip([1, 2, 2])
        .map(|((kind, status), count)| (kind, status, count))
    {
        double.fault(Fault::once("POST", "/linode/instances", kind));
        let body = machine(&format!("web-{}", double.stats().create_requests));
        assert_eq!(
            call(&double, "POST", "/linode/instances", body)
                .await
                .status,
            status
        );
        assert_eq!(double.instances().len(), count);
    }
}

#[tokio::test]
async fn the_metadata_service_wants_a_token() {
    let double = start();
    let made = call(&double, "POST", "/linode/instances", machine("web-1"))
        .await
        .json();
    let id = made["id"].as_u64().expect("an id");
    let url = double.metadata_url(id).expect("it listens");
    let get = |path: &str, header: String| {
        let url = format!("{url}{path}");
        async move { ask("GET", &url, &header, "").await }
    };
    assert_eq!(get("/user-data", String::new()).await.status, 401);
    let expiry = "Metadata-Token-Expiry-Seconds: 3600\r\n";
    let token = ask("PUT", &format!("{url}/token"), expiry, "").await.body;
    assert_eq!(token.len(), 64);
    let header = format!("Metadata-Token: {token}\r\n");
    assert_eq!(get("/user-data", header.clone()).await.body, "aGVsbG8=");
    let keys = get("/ssh-keys", format!("{header}Accept: application/json\r\n")).await;
    assert_eq!(keys.json()["users"]["root"], json!(["ssh-ed25519 AAAA"]));
    let lines = get("/instance", header.clone()).await.body;
    assert!(lines.contains("label: web-1\n"), "{lines}");
    double.advance(Duration::from_secs(3_601));
    assert_eq!(get("/user-data", header).await.status, 401);
}

#[tokio::test]
async fn the_admin_port_sets_faults_and_the_clock() {
    let double = start();
    let admin = double.admin_url();
    let fault = r#"{"method":"GET","path":"/profile","kind":{"fault":"before","status":500}}"#;
    assert_eq!(
        ask("POST", &format!("{admin}/faults"), "", fault)
            .await
            .status,
        200
    );
    assert_eq!(
        call(&double, "GET", "/profile", Value::Null).await.status,
        500
    );
    assert_eq!(
        call(&double, "GET", "/profile", Value::Null).await.status,
        200
    );
    let before = double.now_s();
    let day = r#"{"advance_s":86400}"#;
    assert_eq!(
        ask("POST", &format!("{admin}/clock"), "", day).await.status,
        200
    );
    assert!(double.now_s() >= before + 86_400);
    assert_eq!(
        ask("POST", &format!("{admin}/faults"), "", "{}")
            .await
            .status,
        400
    );
    let only = r#"{"interfaces_for_new_linodes":"linode_only"}"#;
    let set = ask("PUT", &format!("{admin}/settings"), "", only).await;
    assert_eq!(set.status, 200);
    let settings = call(&double, "GET", "/account/settings", Value::Null).await;
    assert_eq!(settings.json()["interfaces_for_new_linodes"], "linode_only");
    let unknown = r#"{"default_firewall_ids":{"public_interface":7}}"#;
    let refused = ask("PUT", &format!("{admin}/settings"), "", unknown).await;
    assert_eq!(refused.status, 400);
}

/// Makes an instance while this fault is met, and returns its id.
async fn made_with(double: &Double, kind: Kind) -> u64 {
    double.fault(Fault::once("POST", "/linode/instances", kind));
    let made = call(double, "POST", "/linode/instances", machine("web-1")).await;
    made.json()["id"].as_u64().expect("an id")
}

async fn until_event(double: &Double, action: &str, status: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let events = call(double, "GET", "/account/events", Value::Null).await;
        let events = events.json()["data"].as_array().cloned().expect("a list");
        let is_it = |it: &Value| it["action"] == action && it["status"] == status;
        if events.iter().any(is_it) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "no {action} {status}: {events:?}"
        );
    }
}

#[tokio::test]
async fn jobs_are_slow_fail_or_end_badly() {
    let double = start();
    let id = made_with(&double, Kind::JobSlow { virtual_s: 86_400 }).await;
    double.advance(Duration::from_secs(80_000));
    let path = format!("/linode/instances/{id}");
    let stuck = call(&double, "GET", &path, Value::Null).await.json();
    assert_eq!(stuck["status"], "provisioning");
    double.advance(Duration::from_secs(10_000));
    until_status(&double, id, "running").await;

    let double = start();
    let id = made_with(&double, Kind::BootFails).await;
    until_event(&double, "linode_boot", "failed").await;
    until_status(&double, id, "offline").await;

    let double = start();
    let id = made_with(&double, Kind::BootDies { virtual_s: 600 }).await;
    until_event(&double, "linode_boot", "finished").await;
    until_event(&double, "lassie_reboot", "finished").await;
    until_status(&double, id, "running").await;
}

#[tokio::test]
async fn lists_shift_and_show_what_is_gone() {
    let double = start();
    let all = "/linode/instances";
    for name in ["web-1", "web-2"] {
        call(&double, "POST", all, machine(name)).await;
    }
    let labels = |answer: Answer| -> Vec<String> {
        let data = answer.json()["data"].as_array().cloned().expect("a list");
        let label = |it: &Value| it["label"].as_str().expect("a label").to_owned();
        data.iter().map(label).collect()
    };
    let list = || call(&double, "GET", all, Value::Null);
    double.fault(Fault::once("GET", all, Kind::PageShift { by: 1 }));
    assert_eq!(labels(list().await), ["web-1", "web-1", "web-2"]);
    double.fault(Fault::once("GET", all, Kind::PageShift { by: -1 }));
    assert_eq!(labels(list().await), ["web-2"]);
    let id = double.instances()[0]["id"].as_u64().expect("an id");
    double.meddle(id, None).expect("deleted");
    double.advance(Duration::from_secs(60));
    assert_eq!(labels(list().await), ["web-2"]);
    double.fault(Fault::once(
        "GET",
        all,
        Kind::ListGhosts { virtual_s: 86_400 },
    ));
    assert_eq!(labels(list().await), ["web-2", "web-1"]);
}

#[tokio::test]
async fn an_account_has_limits_and_its_tokens_end() {
    let double = start();
    double.set_instances_max(Some(1));
    let all = "/linode/instances";
    call(&double, "POST", all, machine("web-1")).await;
    let over = call(&double, "POST", all, machine("web-2")).await;
    assert!(
        over.reason().starts_with("Account Limit reached"),
        "{}",
        over.body
    );
    let full = Kind::Refuse {
        field: Some("region".into()),
        reason: "Region is full".into(),
    };
    double.fault(Fault::once("POST", all, full));
    let full = call(&double, "POST", all, machine("web-2")).await;
    assert_eq!(full.json()["errors"][0]["field"], "region");
    double.fault(Fault::once("GET", all, Kind::TokenEnds));
    for _ in 0..2 {
        let ended = call(&double, "GET", all, Value::Null).await;
        assert_eq!(
            (ended.status, ended.reason().as_str()),
            (401, "Invalid Token")
        );
    }
    double.set_token("double", Some("*"));
    assert_eq!(call(&double, "GET", all, Value::Null).await.status, 200);
}

#[tokio::test]
async fn an_api_that_is_down_refuses_connections_and_comes_back() {
    let double = start();
    let address = double.url().replace("http://", "").replace("/v4", "");
    double.go_down(Duration::from_secs(200));
    let deadline = Instant::now() + PATIENCE;
    // The listener ends a moment after it is told to.
    while TcpStream::connect(&address).await.is_ok() {
        assert!(Instant::now() < deadline, "it never goes down");
    }
    while TcpStream::connect(&address).await.is_err() {
        assert!(Instant::now() < deadline, "it never comes back");
    }
    assert_eq!(
        call(&double, "GET", "/profile", Value::Null).await.status,
        200
    );
}

#[tokio::test]
async fn a_slow_body_is_whole_in_the_end() {
    let double = start();
    let slow = Kind::SlowBody { virtual_s: 100 };
    double.fault(Fault::once("GET", "/linode/types", slow));
    let begun = Instant::now();
    let types = call(&double, "GET", "/linode/types", Value::Null).await;
    assert!(
        begun.elapsed() >= Duration::from_millis(90),
        "it did not trickle"
    );
    assert_eq!(types.json()["page"], 1);
}

#[tokio::test]
async fn a_metadata_service_has_faults_of_its_own() {
    let double = start();
    let made = call(&double, "POST", "/linode/instances", machine("web-1")).await;
    let id = made.json()["id"].as_u64().expect("an id");
    let url = double.metadata_url(id).expect("it listens");
    let token = || async {
        let expiry = "Metadata-Token-Expiry-Seconds: 3600\r\n";
        ask("PUT", &format!("{url}/token"), expiry, "").await
    };
    let down = Kind::Before {
        status: 503,
        html: false,
    };
    double.fault(Fault::once("PUT", "/v1/token", down));
    assert_eq!(token().await.status, 503);
    double.fault(Fault::once("PUT", "/v1/token", Kind::ResetBefore));
    assert_eq!(token().await.status, 0);
    let token = token().await.body;
    let header = format!("Metadata-Token: {token}\r\n");
    let path = format!("{url}/user-data");
    let data = || ask("GET", &path, &header, "");
    let expired = Kind::Before {
        status: 401,
        html: false,
    };
    for (kind, body) in [(Kind::Empty, ""), (Kind::Twice, "aGVsbG8=aGVsbG8=")] {
        double.fault(Fault::once("GET", "/v1/user-data", kind));
        assert_eq!(data().await.body, body);
    }
    double.fault(Fault::once("GET", "/v1/user-data", expired));
    assert_eq!(data().await.status, 401);
    assert_eq!(data().await.body, "aGVsbG8=");
}

#[tokio::test]
async fn a_witness_sees_what_is_about_to_be_done() {
    let witness: gobs_linode_double::Witness = std::sync::Arc::new(|path, body| {
        let is_marked = body["label"] != "web-1";
        is_marked
            .then_some(())
            .ok_or_else(|| format!("{path} is not to be"))
    });
    let options = Options {
        witness: Some(witness),
        ..Options::default()
    };
    let double = Double::start(options).expect("listens");
    let all = "/linode/instances";
    let refused = call(&double, "POST", all, machine("web-1")).await;
    assert_eq!(refused.reason(), "/linode/instances is not to be");
    assert_eq!(
        call(&double, "POST", all, machine("web-2")).await.status,
        200
    );
    assert_eq!((double.stats().unwitnessed, double.stats().created), (1, 1));
}

#[tokio::test]
async fn a_guest_lives_while_its_instance_runs() {
    let directory = std::env::temp_dir().join(format!("gobs-guests-{}", std::process::id()));
    let guest = Guest {
        command: "echo $GUEST_LABEL $GUEST_METADATA_URL >>boots; echo $$ >pid; exec sleep 600"
            .into(),
        directory: directory.clone(),
    };
    let options = Options {
        seed: Some(7),
        guest: Some(guest),
        ..Options::default()
    };
    let double = Double::start(options).expect("listens");
    let made = call(&double, "POST", "/linode/instances", machine("web-1")).await;
    let id = made.json()["id"].as_u64().expect("an id");
    let disk = directory.join(id.to_string());
    let expected = format!("web-1 {}\n", double.metadata_url(id).expect("it listens"));
    let until_booted = async |times: usize| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let boots = std::fs::read_to_string(disk.join("boots")).unwrap_or_default();
            let pid = std::fs::read_to_string(disk.join("pid")).unwrap_or_default();
            if boots == expected.repeat(times) && !pid.is_empty() {
                return format!("/proc/{}", pid.trim());
            }
            assert!(Instant::now() < deadline, "{times} boots: {boots:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let process = until_booted(1).await;
    assert!(std::fs::exists(&process).expect("/proc"), "{process}");
    let path = format!("/linode/instances/{id}");
    call(&double, "POST", &format!("{path}/reboot"), json!({})).await;
    until_status(&double, id, "running").await;
    let second = until_booted(2).await;
    assert!(
        !std::fs::exists(&process).expect("/proc"),
        "{process} lives on"
    );
    let rebuild = json!({"image": "linode/debian12", "authorized_keys": ["ssh-ed25519 AAAA"]});
    call(&double, "POST", &format!("{path}/rebuild"), rebuild).await;
    // Its disk is written anew.
    until_status(&double, id, "running").await;
    let third = until_booted(1).await;
    assert_ne!(second, third);
    call(&double, "DELETE", &path, Value::Null).await;
    let deadline = Instant::now() + PATIENCE;
    while std::fs::exists(&disk).expect("a directory") || std::fs::exists(&third).expect("/proc") {
        assert!(Instant::now() < deadline, "it is never gone");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Nothing is left in it.
    std::fs::remove_dir(directory).expect("removed");
}
