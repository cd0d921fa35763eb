//! User data from a metadata service, which the hob asks until it has an answer.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use data_encoding::BASE64;
use hob::layout::Layout;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use crate::support::{Boss, eventually};

/// Answers as a metadata service does whose first answers are of little use.
async fn serve(listener: TcpListener, user_data: String, asked: Arc<AtomicUsize>) {
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut stream = BufReader::new(stream);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.expect("a line");
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let (status, body) = match (lines[0].as_str(), asked.fetch_add(1, Ordering::SeqCst)) {
            (_, 0) => ("503 Service Unavailable", "later"),
            ("PUT /v1/token HTTP/1.1", _) => ("200 OK", "token-1\n"),
            ("GET /v1/user-data HTTP/1.1", _)
                if !lines.iter().any(|it| it == "Metadata-Token: token-1") =>
            {
                ("401 Unauthorized", "")
            }
            // The token was asked for once, and then there is nothing.
            ("GET /v1/user-data HTTP/1.1", 2) => ("200 OK", ""),
            ("GET /v1/user-data HTTP/1.1", _) => ("200 OK", user_data.as_str()),
            _ => ("404 Not Found", ""),
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        );
        // A body of no bytes is the last chunk.
        let answer = answer.replacen("\r\n0\r\n\r\n0\r\n\r\n", "\r\n0\r\n\r\n", 1);
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hob_gets_its_user_data_from_the_metadata_service() {
    let boss = Boss::new().await;
    let data = boss.invite("machine.db", &[]);
    let message = format!(
        "MIME-Version: 1.0\n{}\nContent-Type: multipart/mixed; boundary=\"x\"\n\n--x--\n",
        *data.to_header()
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = Arc::new(AtomicUsize::new(0));
    let encoded = BASE64.encode(message.as_bytes());
    let service = tokio::spawn(serve(listener, encoded.clone(), Arc::clone(&asked)));

    let dir = tempfile::tempdir().expect("a directory");
    let layout = Layout::new(dir.path().join("machine"));
    let runtime = dir.path().join("run");
    let mut hob = tokio::process::Command::new(env!("CARGO_BIN_EXE_hob"));
    hob.arg("--dir").arg(layout.dir());
    // A service that is nowhere does not keep the other from being asked.
    hob.args(["--metadata", "http://127.0.0.1:1", "--metadata", &url]);
    hob.env("RUNTIME_DIRECTORY", &runtime);
    hob.env("GOBS_LOG", "trace").kill_on_drop(true);
    hob.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut hob = hob.spawn().expect("the hob starts");

    let client = boss.client("machine.db").await;
    eventually("the hob knows", async || {
        client.status().await.boss_connected
    })
    .await;
    assert!(asked.load(Ordering::SeqCst) >= 5, "it was refused before");
    eventually("user data erased", async || !layout.user_data().exists()).await;
    let machine = layout.read_machine().expect("a description");
    assert_eq!(machine.runtime, runtime);

    let pid = rustix::process::Pid::from_raw(hob.id().expect("it runs").cast_signed());
    rustix::process::kill_process(pid.expect("a number"), rustix::process::Signal::TERM)
        .expect("it is told");
    let output = hob.stderr.take().expect("its log");
    let mut log = BufReader::new(output).lines();
    while let Some(line) = log.next_line().await.expect("a line") {
        assert!(!line.contains(&encoded), "{line}");
        assert!(!line.contains(data.sturdyref.to_uri().as_str()), "{line}");
    }
    assert!(hob.wait().await.expect("it ends").success());
    service.abort();
}
