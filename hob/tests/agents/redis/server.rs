//! A Redis server of one's own, and a program that speaks to one.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hob::protocol::{Redis, ServiceKind};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::support::{PATIENCE, eventually};

/// A server of its own.
pub(crate) struct Server {
    pub(crate) dir: TempDir,
    pub(crate) process: Option<Child>,
    pub(crate) config: String,
}

impl Server {
    /// Starts one, with more lines of configuration.
    pub(crate) async fn start(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let users = "user default on nopass ~* &* +@all\n";
        std::fs::write(dir.path().join("users.acl"), users).unwrap();
        let mut server = Self {
            dir,
            process: None,
            config: config.to_owned(),
        };
        server.run().await;
        server
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    pub(crate) async fn run(&mut self) {
        let dir = self.dir.path().display();
        let common = "port 0\nsave \"\"\ndatabases 4\nloglevel warning";
        let text = format!(
            "{common}\ndir {dir}\nunixsocket {dir}/redis.sock\n{}\n",
            self.config
        );
        let path = self.dir.path().join("redis.conf");
        std::fs::write(&path, text).unwrap();
        let mut command = Command::new("redis-server");
        command.arg(path).stdin(Stdio::null()).stdout(Stdio::null());
        self.process = Some(command.spawn().expect("redis-server is installed"));
        let socket = self.socket();
        eventually("Redis listens", async || {
            UnixStream::connect(&socket).await.is_ok()
        })
        .await;
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub(crate) fn kind(&self) -> ServiceKind {
        ServiceKind::Redis(Redis {
            socket: Some(self.socket()),
            admin_file: None,
        })
    }

    /// Asks as its administrator.
    pub(crate) async fn ask(&self, words: &[&str]) -> String {
        Program::connect(&self.socket()).await.ask(words).await
    }

    pub(crate) async fn users(&self) -> Vec<String> {
        let users = self.ask(&["ACL", "USERS"]).await;
        let users = users.trim_matches(['[', ']']).split(", ");
        users
            .filter(|user| *user != "default")
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A program that speaks to Redis.
pub(crate) struct Program(pub(crate) BufReader<UnixStream>);

impl Program {
    pub(crate) async fn connect(path: &Path) -> Self {
        Self(BufReader::new(UnixStream::connect(path).await.unwrap()))
    }

    /// Connects to where a binding is.
    pub(crate) async fn at(address: &str) -> Self {
        Self::connect(Path::new(address.strip_prefix("unix:").unwrap())).await
    }

    pub(crate) async fn say(&mut self, words: &[&str]) {
        let mut said = format!("*{}\r\n", words.len());
        for word in words {
            said += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.0.write_all(said.as_bytes()).await.unwrap();
    }

    /// Returns the next answer, written so that it can be compared; `end` is the end.
    pub(crate) async fn hear(&mut self) -> String {
        let mut line = String::new();
        let read = timeout(PATIENCE, self.0.read_line(&mut line));
        if !matches!(read.await.expect("an answer"), Ok(1..)) {
            return "end".into();
        }
        let line = line.trim_end().to_owned();
        let size = || line[1..].parse::<i64>().unwrap();
        match line.as_bytes()[0] {
            b'$' if size() < 0 => "nil".into(),
            b'$' => {
                let mut bytes = vec![0; size() as usize + 2];
                self.0.read_exact(&mut bytes).await.unwrap();
                bytes.truncate(bytes.len() - 2);
                String::from_utf8_lossy(&bytes).into_owned()
            }
            b'*' | b'>' | b'%' => {
                let pairs = if line.starts_with('%') { 2 } else { 1 };
                let mut all = Vec::new();
                for _ in 0..size().max(0) * pairs {
                    all.push(Box::pin(self.hear()).await);
                }
                format!("[{}]", all.join(", "))
            }
            _ => line,
        }
    }

    pub(crate) async fn ask(&mut self, words: &[&str]) -> String {
        self.say(words).await;
        self.hear().await
    }

    /// Asks for each line, and compares: what is expected is how the answer begins.
    pub(crate) async fn check(&mut self, asked: &[(&[&str], &str)]) {
        for (words, expected) in asked {
            let answer = self.ask(words).await;
            assert!(answer.starts_with(expected), "{words:?}: {answer}");
        }
    }
}
