//! The double over its wire, by the barest of clients.

use std::time::{Duration, Instant};

use gobs_linode_double::{Double, Fault, Kind, Options};
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
    assert_eq!(refused(bare).await.reason(), why);
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
}
