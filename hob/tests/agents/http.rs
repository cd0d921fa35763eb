//! HTTP through a binding: real servers, curl, and programs that want more.

use std::convert::Infallible;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use hob::protocol::{
    Attenuate, Check, Http, Probe, ServiceKind, from_passable, method, to_passable,
};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use crate::postgres::cluster::free_port;
use crate::support::{PATIENCE, Pair, ends, eventually, generation};

type Body = BoxBody<Bytes, hyper::Error>;

/// A server that says what it was asked, or does what the path asks for.
struct Origin {
    address: String,
    /// The requests that it has seen, as `METHOD /path`.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Origin {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let seeing = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let seen = Arc::clone(&seeing);
                tokio::spawn(async move {
                    let service = service_fn(|request: Request<Incoming>| {
                        let text = format!("{} {}", request.method(), request.uri().path());
                        seen.lock().unwrap().push(text);
                        async move { Ok::<_, Infallible>(answer(request).await) }
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder
                        .serve_connection_with_upgrades(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, seen }
    }

    fn kind(&self, header_file: Option<PathBuf>) -> ServiceKind {
        ServiceKind::Http(Http {
            address: self.address.clone(),
            header_file,
        })
    }

    /// Returns the requests but the hob's own.
    fn seen(&self) -> Vec<String> {
        let mut seen = self.seen.lock().unwrap().clone();
        seen.retain(|it| it != "HEAD /");
        seen
    }
}

fn text(text: String) -> Body {
    Full::new(Bytes::from(text))
        .map_err(|never| match never {})
        .boxed()
}

async fn answer(request: Request<Incoming>) -> Response<Body> {
    let mut response = Response::new(text(String::new()));
    match request.uri().path() {
        "/echo" => *response.body_mut() = request.into_body().boxed(),
        "/never" => std::future::pending::<()>().await,
        "/ticks" => {
            let ticks = stream::unfold(0_u64, |tick| async move {
                sleep(Duration::from_millis(2)).await;
                let frame = Frame::data(Bytes::from(format!("tick {tick}\n")));
                Some((Ok(frame), tick + 1))
            });
            *response.body_mut() = BodyExt::boxed(StreamBody::new(ticks));
        }
        "/socket" => {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            for name in [header::CONNECTION, header::UPGRADE] {
                let value = request.headers()[&name].clone();
                response.headers_mut().insert(name, value);
            }
            tokio::spawn(async move {
                let stream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
                let (mut read, mut write) = tokio::io::split(stream);
                tokio::io::copy(&mut read, &mut write).await
            });
        }
        _ => {
            // An answer to what is not read yet ends in a reset, which curl takes for an error.
            let (head, body) = request.into_parts();
            let _ = body.collect().await;
            let mut said = format!("{} {} {:?}\n", head.method, head.uri, head.version);
            for (name, value) in &head.headers {
                said += &format!("{name}: {}\n", value.to_str().unwrap());
            }
            let headers = response.headers_mut();
            headers.insert("keep-alive", "timeout=5".parse().unwrap());
            headers.insert("alt-svc", "h3=\":443\"".parse().unwrap());
            headers.insert("x-kept", "yes".parse().unwrap());
            *response.body_mut() = text(said);
        }
    }
    response
}

/// Runs curl at a binding; returns what it writes.
async fn curl(held: &str, args: &[&str]) -> String {
    let mut command = Command::new("curl");
    let path = held.strip_prefix("unix:").unwrap();
    command
        .args(["-sS", "--max-time", "30", "--unix-socket", path])
        .args(args);
    command.env_clear().stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().expect("curl is installed"));
    let output = output.await.unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// Says this on a connection, and returns all that comes back until it ends or is silent.
async fn raw(held: &str, said: &str) -> String {
    let mut stream = UnixStream::connect(held.strip_prefix("unix:").unwrap())
        .await
        .unwrap();
    // What is too long is refused before all of it is said.
    let _ = stream.write_all(said.as_bytes()).await;
    let mut heard = Vec::new();
    let first = timeout(PATIENCE, stream.read_buf(&mut heard)).await;
    let _ = first.expect("an answer, or the end");
    // A connection that is kept open ends with the silence.
    let _ = timeout(Duration::from_millis(500), stream.read_to_end(&mut heard)).await;
    String::from_utf8_lossy(&heard).into_owned()
}

fn listed(list: &[&str]) -> Option<Vec<String>> {
    Some(list.iter().map(|it| (*it).to_owned()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn s1_curl_asks_with_a_key_that_it_does_not_have() {
    let origin = Origin::start().await;
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "X-Api-Key: sesame-one\n").unwrap();
    let pair = Pair::of(origin.kind(Some(key.clone()))).await;
    let held = pair.bind(1, &[]).await;
    assert!(pair.importer.check(&generation(1)).await.answers);
    let said = curl(
        &held.address,
        &["-H", "x_api_key: mine", "http://x/a?b=c", "-i"],
    )
    .await;
    for part in [
        "HTTP/1.1 200 OK",
        "GET /a?b=c HTTP/1.1",
        "x-kept: yes",
        "x-api-key: sesame-one",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(
        said.contains(&format!("host: {}", origin.address)),
        "{said}"
    );
    for part in ["mine", "keep-alive", "alt-svc"] {
        assert!(!said.contains(part), "{part}: {said}");
    }
    // It is read again when it changes, for connections that are there as for new ones; and a file
    // that is none is told at the right place.
    let mut kept = UnixStream::connect(held.address.strip_prefix("unix:").unwrap())
        .await
        .unwrap();
    for number in ["one", "two"] {
        let line = format!("X-Api-Key: sesame-{number}\n");
        std::fs::write(&key, &line).unwrap();
        let ask = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n";
        kept.write_all(ask).await.unwrap();
        let mut heard = Vec::new();
        while !String::from_utf8_lossy(&heard).contains(&line.to_ascii_lowercase()) {
            let read = timeout(PATIENCE, kept.read_buf(&mut heard)).await;
            assert_ne!(read.expect("the other key").unwrap(), 0, "{number}");
        }
    }
    let again = curl(
        &held.address,
        &["--http2-prior-knowledge", "http://x/a", "-i"],
    )
    .await;
    assert!(
        again.contains("HTTP/2 200") && again.contains("x-api-key: sesame-two"),
        "{again}"
    );
    std::fs::write(&key, "sesame-three").unwrap();
    let none = curl(&held.address, &["http://x/a", "-w", "%{http_code}"]).await;
    assert_eq!(
        none,
        "gobs: the key of this binding cannot be read on the service's machine\n502"
    );
    // A service that is offered without its key is not ready, whatever its server answers.
    let probe = async || -> Check {
        let asked = Probe {
            service: "orders".into(),
        };
        let asked = pair.exporter.call(method::PROBE, vec![to_passable(&asked)]);
        from_passable("probe", &asked.await.unwrap()).unwrap()
    };
    let probed = probe().await;
    assert!(
        !probed.answers && probed.detail.contains("line 1 is not"),
        "{probed:?}"
    );
    std::fs::write(&key, "X-Api-Key: sesame-four\n").unwrap();
    assert!(probe().await.answers);
    let logs = pair.db.log() + &pair.app.log();
    assert!(logs.contains("line 1 is not `name: value`"));
    assert!(!logs.contains("sesame"), "the key is in no log");
    // What a server could be made to repeat is not asked for.
    let trace = curl(
        &held.address,
        &["-X", "TRACE", "http://x/", "-w", "%{http_code}"],
    )
    .await;
    assert_eq!(
        trace,
        "gobs: the method is not allowed through this binding\n405"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_streamed_both_ways() {
    let origin = Origin::start().await;
    let pair = Pair::of(origin.kind(None)).await;
    let held = pair.bind(1, &[]).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("body");
    let sent = crate::support::pattern(5 << 20, 7);
    std::fs::write(&file, &sent).unwrap();
    let body = format!("@{}", file.display());
    let back = dir.path().join("back");
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let args = [
            version,
            "--data-binary",
            &body,
            "-o",
            back.to_str().unwrap(),
            "-H",
            "Expect: 100-continue",
            "http://x/echo",
        ];
        assert_eq!(curl(&held.address, &args).await, "");
        assert!(std::fs::read(&back).unwrap() == sent, "{version}");
    }
    // Each piece arrives before the next is sent.
    let path = held.address.strip_prefix("unix:").unwrap();
    let mut stream = UnixStream::connect(path).await.unwrap();
    let head = "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut heard = String::new();
    for piece in ["first", "second"] {
        let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
        stream.write_all(chunk.as_bytes()).await.unwrap();
        let mut bytes = [0; 1024];
        while !heard.contains(piece) {
            let read = timeout(PATIENCE, stream.read(&mut bytes))
                .await
                .unwrap()
                .unwrap();
            assert_ne!(read, 0);
            heard += &String::from_utf8_lossy(&bytes[..read]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_passes_and_is_cut() {
    let origin = Origin::start().await;
    let pair = Pair::of(origin.kind(None)).await;
    let held = pair.bind(1, &[]).await;
    let path = held.address.strip_prefix("unix:").unwrap();
    let mut stream = UnixStream::connect(path).await.unwrap();
    let ask = "GET /socket HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\n\
               Upgrade: WebSocket\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
    }
    assert!(
        head.starts_with(b"HTTP/1.1 101 "),
        "{}",
        String::from_utf8_lossy(&head)
    );
    for _ in 0..3 {
        stream.write_all(b"frame").await.unwrap();
        let mut back = [0; 5];
        timeout(PATIENCE, stream.read_exact(&mut back))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&back, b"frame");
    }
    pair.exporter.revoke(&generation(1)).await.unwrap();
    assert!(timeout(PATIENCE, ends(&mut stream)).await.unwrap());

    // Another protocol would carry what nobody compares with the rules.
    let held = pair.bind(2, &[]).await;
    let ask = "GET /socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n\
               Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    let answer = raw(&held.address, ask).await;
    assert!(!answer.contains(" 101 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_allowed_reaches_the_server() {
    let origin = Origin::start().await;
    let pair = Pair::of(origin.kind(None)).await;
    let rights = Attenuate {
        methods: listed(&["GET", "POST"]),
        paths: listed(&["/api/*", "/echo"]),
        ..Attenuate::default()
    };
    let held = pair.bind_narrowed(1, &[], rights).await;
    let address = held.address.as_str();
    let code = ["-o", "/dev/null", "-w", "%{http_code}", "--path-as-is"];
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for (args, expected) in [
            (&["http://x/api/a?x=/admin"][..], "200"),
            (&["http://x/admin"], "403"),
            (&["http://x/api/../admin"], "400"),
            (&["http://x/api/%2e%2e/admin"], "400"),
            (&["http://x//admin"], "400"),
            (&["-X", "DELETE", "http://x/api/a"], "405"),
            (
                &["-X", "OPTIONS", "--request-target", "*", "http://x/"],
                "405",
            ),
            (
                &["-H", "X-HTTP-Method-Override: DELETE", "http://x/api/b"],
                "200",
            ),
            (&["-H", "X-Original-URL: /admin", "http://x/api/c"], "200"),
        ] {
            let args = [&[version], args, &code].concat();
            assert_eq!(curl(address, &args).await, expected, "{args:?}");
        }
    }
    let plain = curl(address, &["-H", "X-Original-URL: /admin", "http://x/api/c"]).await;
    assert!(!plain.contains("admin"), "{plain}");
    // What one side could take for one request and the other for two.
    let hidden = "GET /admin HTTP/1.1\r\nHost: x\r\n\r\n";
    for head in [
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 44\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: +0\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0;\n\r\n\r\n",
        "GET http://127.0.0.1/admin HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http://x/api/../admin HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /api/\t/admin HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /api/#/../../admin HTTP/1.1\r\nHost: x\r\n\r\n",
        "CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /api/x\r\nHost: x\r\n\r\n",
        "\u{0}\u{1}garbage\r\n\r\n",
    ] {
        raw(address, &format!("{head}{hidden}")).await;
    }
    let out: Vec<_> = origin
        .seen()
        .into_iter()
        .filter(|it| {
            !matches!(it.split_once(' '), Some(("GET" | "POST", path))
            if path == "/echo" || path.starts_with("/api/"))
        })
        .collect();
    assert_eq!(out, [""; 0]);

    let long = format!(
        "GET /api/{} HTTP/1.1\r\nHost: x\r\n\r\n",
        "x".repeat(200_000)
    );
    let refused = raw(address, &long).await;
    // One that is still speaking when it is refused may see no more than the end.
    assert!(
        ["HTTP/1.1 414", "HTTP/1.1 431"]
            .iter()
            .any(|it| refused.starts_with(it))
            || refused.is_empty(),
        "{refused}"
    );
    assert!(origin.seen().iter().all(|it| it.len() < 100_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn s4_answers_that_never_end_are_cut() {
    let origin = Origin::start().await;
    let pair = Pair::of(origin.kind(None)).await;
    for (round, target) in ["/ticks", "/never"].into_iter().enumerate() {
        let number = round as u64 + 1;
        let held = pair.bind(number, &[]).await;
        let path = held.address.strip_prefix("unix:").unwrap();
        let mut open = Vec::new();
        for _ in 0..10 {
            let mut stream = UnixStream::connect(path).await.unwrap();
            let ask = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
            stream.write_all(ask.as_bytes()).await.unwrap();
            open.push(stream);
        }
        eventually("all have asked", async || {
            origin
                .seen()
                .iter()
                .filter(|it| it.ends_with(target))
                .count()
                == 10
        })
        .await;
        pair.exporter.revoke(&generation(number)).await.unwrap();
        for mut stream in open {
            let mut rest = Vec::new();
            // Cut or closed: it is over.
            let _ = timeout(PATIENCE, stream.read_to_end(&mut rest))
                .await
                .unwrap();
        }
    }
}

/// gRPC is HTTP/2 on both sides; everything else reaches the server by HTTP/1.1.
#[tokio::test(flavor = "multi_thread")]
async fn grpc_is_http2_to_the_end() {
    let origin = Origin::start().await;
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "Authorization: Bearer sesame").unwrap();
    let pair = Pair::of(origin.kind(Some(key))).await;
    let held = pair.bind(1, &[]).await;
    for (kind, version) in [
        ("application/grpc+proto", Version::HTTP_2),
        ("application/json", Version::HTTP_11),
    ] {
        let kind = format!("content-type: {kind}");
        let args = [
            "--http2-prior-knowledge",
            "-H",
            &kind,
            "-H",
            "te: trailers",
            "-d",
            "x",
            "http://x/a",
        ];
        let said = curl(&held.address, &args).await;
        assert!(said.contains(&format!("{version:?}")), "{said}");
        assert!(said.contains("te: trailers"), "{said}");
        assert!(said.contains("authorization: Bearer sesame"), "{said}");
    }
    let logs = pair.db.log() + &pair.app.log();
    assert!(!logs.contains("sesame"), "the key is in no log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_slow_or_odd_is_told_in_http() {
    // One that closes each connection, as Python's does.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("hello"), "hello").unwrap();
    let port = free_port().to_string();
    let address = format!("127.0.0.1:{port}");
    let kind = ServiceKind::Http(Http {
        address: address.clone(),
        header_file: None,
    });
    let pair = Pair::of(kind).await;
    let held = pair.bind(1, &[]).await;
    let away = curl(&held.address, &["-w", "%{http_code}", "http://x/hello"]).await;
    let told = "gobs: the service on the other machine does not answer";
    assert!(away.starts_with(told) && away.ends_with("\n503"), "{away}");
    let check = pair.importer.check(&generation(1)).await;
    assert!(!check.answers, "{check:?}");
    let mut server = Command::new("python3")
        .args([
            "-m",
            "http.server",
            "--bind",
            "127.0.0.1",
            &port,
            "--directory",
        ])
        .arg(dir.path())
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("python3 is installed");
    eventually("Python listens", async || {
        TcpStream::connect(&address).await.is_ok()
    })
    .await;
    assert!(pair.importer.check(&generation(1)).await.answers);
    let two = ["http://x/hello", "http://x/hello"];
    assert_eq!(curl(&held.address, &two).await, "hellohello");
    server.kill().unwrap();
    server.wait().unwrap();

    // One that speaks something else.
    let listener = TcpListener::bind(&address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"220 mail.example.net ESMTP\r\n").await;
        }
    });
    let odd = curl(&held.address, &["-w", "%{http_code}", "http://x/hello"]).await;
    assert_eq!(odd, "gobs: the service does not answer\n502");
}
