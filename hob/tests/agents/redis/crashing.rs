//! S5: a hob that is killed while it makes or deletes a user leaves none that nothing owns.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use hob::protocol::{Redis, ServiceKind, method};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::server::{Program, Server};
use crate::support::{PATIENCE, Pair, eventually, generation, grant};

/// Whether Redis is given the command during which the hob dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Given {
    No,
    Yes,
}

/// What stands between the hob and Redis: it can stop at a command.
struct Between {
    stop_at: Arc<Mutex<Option<(&'static str, Given)>>>,
    stopped: mpsc::Receiver<()>,
}

impl Between {
    fn start(path: &Path, server: PathBuf) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let stop_at = Arc::new(Mutex::new(None));
        let (sender, stopped) = mpsc::channel(1);
        let stops_at = Arc::clone(&stop_at);
        tokio::spawn(async move {
            loop {
                let (hob, _) = listener.accept().await.unwrap();
                let server = UnixStream::connect(&server).await.unwrap();
                tokio::spawn(carry(hob, server, Arc::clone(&stops_at), sender.clone()));
            }
        });
        Self { stop_at, stopped }
    }

    /// Stops the next such command; its connection is never answered.
    fn stop_at(&self, command: &'static str, given: Given) {
        *self.stop_at.lock().unwrap() = Some((command, given));
    }

    async fn stopped(&mut self) {
        timeout(PATIENCE, self.stopped.recv())
            .await
            .unwrap()
            .unwrap();
    }
}

async fn carry(
    mut hob: UnixStream,
    mut server: UnixStream,
    stops_at: Arc<Mutex<Option<(&'static str, Given)>>>,
    stopped: mpsc::Sender<()>,
) {
    let (mut asked, mut answered) = ([0; 16 << 10], [0; 16 << 10]);
    loop {
        tokio::select! {
            read = hob.read(&mut asked) => {
                let Ok(read @ 1..) = read else { return };
                let bytes = &asked[..read];
                let is_it = |command: &str| {
                    bytes.windows(command.len()).any(|it| it == command.as_bytes())
                };
                let stop = stops_at.lock().unwrap().take_if(|(command, _)| is_it(command));
                if stop.is_none_or(|(_, given)| given == Given::Yes) {
                    server.write_all(bytes).await.unwrap();
                }
                if let Some((_, given)) = stop {
                    if given == Given::Yes {
                        // It is done, and the hob will not hear of it.
                        let _ = server.read(&mut answered).await;
                    }
                    stopped.send(()).await.unwrap();
                    // Until the hob is dead.
                    let _ = hob.read(&mut asked).await;
                    return;
                }
            }
            read = server.read(&mut answered) => {
                let Ok(read @ 1..) = read else { return };
                if hob.write_all(&answered[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s5_a_killed_exporter_leaves_no_user_that_nothing_owns() {
    let server = Server::start("").await;
    let path = server.dir.path().join("between.sock");
    let mut between = Between::start(&path, server.socket());
    let redis = Redis {
        socket: Some(path),
        admin_file: None,
    };
    let mut pair = Pair::of(ServiceKind::Redis(redis)).await;
    let cases = ["SETUSER", "DELUSER"]
        .into_iter()
        .flat_map(|command| [Given::No, Given::Yes].map(|given| (command, given)))
        .flat_map(|(command, given)| [false, true].map(|again| (command, given, again)));
    for (number, (command, given, again)) in (1..).zip(cases) {
        let when = format!("{command}, given: {given:?}, asked again: {again}");
        let asked = grant(number, &pair.importer.designator);
        let exporter = pair.exporter.clone();
        let revokes = command == "DELUSER";
        if revokes {
            exporter.grant(&asked).await.unwrap();
        }
        between.stop_at(command, given);
        let call = tokio::spawn(async move {
            // Its answer is lost.
            let _ = match revokes {
                true => exporter.revoke(&generation(number)).await,
                false => exporter.grant(&asked).await.map(drop),
            };
        });
        between.stopped().await;
        pair.db.kill();
        call.await.unwrap();
        let there = (command == "SETUSER") == (given == Given::Yes);
        assert_eq!(server.users().await.len(), usize::from(there), "{when}");
        pair.db.start_again();
        let down = pair.exporter.clone();
        eventually("the old session ends", async || {
            down.hob.call(method::STATUS, []).await.is_err()
        })
        .await;
        pair.exporter = pair.boss.client("machine.db").await;
        if again && !revokes {
            let held = pair.bind(number, &[]).await;
            let mut program = Program::at(&held.address).await;
            program.check(&[(&["PING"], "+PONG")]).await;
            assert_eq!(server.users().await.len(), 1, "{when}");
        }
        if again || !revokes {
            pair.exporter.revoke(&generation(number)).await.unwrap();
            assert_eq!(server.users().await, Vec::<String>::new(), "{when}");
        }
        // Nobody need ask again for what was begun.
        eventually(&when, async || server.users().await.is_empty()).await;
        pair.importer.unregister(&generation(number)).await;
    }
}
