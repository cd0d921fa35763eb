//! Redis through a binding: a real server, real clients, and programs that want more.

mod chains;
mod crashing;
mod server;

use std::process::Command;
use std::sync::Mutex;

use futures_util::StreamExt;
use hob::protocol::{Attenuate, Redis, ServiceKind, code};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use self::server::{Program, Server};
use crate::support::{Pair, eventually, generation, grant};

fn listed(list: &[&str]) -> Option<Vec<String>> {
    Some(list.iter().map(|it| (*it).to_owned()).collect())
}

fn cli(held: &str, args: &[&str]) -> String {
    let mut command = Command::new("redis-cli");
    command
        .arg("-s")
        .arg(held.strip_prefix("unix:").unwrap())
        .args(args);
    let output = command
        .env_clear()
        .output()
        .expect("redis-cli is installed");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn s1_a_program_lands_as_its_own_user_whatever_it_says() {
    let server = Server::start("").await;
    let pair = Pair::of(server.kind()).await;
    let held = pair.bind(1, &[]).await;
    assert!(pair.importer.check(&generation(1)).await.answers);
    let [user] = server.users().await.try_into().unwrap();
    assert!(user.starts_with("gobs-db-1-"), "{user}");
    let address = held.address.clone();
    let whoami = tokio::task::spawn_blocking(move || {
        let set = cli(&address, &["SET", "k", "v"]);
        let other = ["--user", "default", "--pass", "", "ACL", "WHOAMI"];
        let other = cli(&address, &other);
        (
            set,
            cli(&address, &["-3", "ACL", "WHOAMI"]),
            other.lines().last().unwrap().to_owned(),
        )
    });
    assert_eq!(
        whoami.await.unwrap(),
        ("OK".into(), user.clone(), user.clone())
    );

    let who = user.as_str();
    let mut program = Program::at(&held.address).await;
    program
        .check(&[
            (&["AUTH", "default", ""], "+OK"),
            (&["ACL", "WHOAMI"], who),
            (
                &["HELLO", "3", "AUTH", "default", "", "SETNAME", "app"],
                "[server, redis",
            ),
            (&["ACL", "WHOAMI"], who),
            (&["CLIENT", "GETNAME"], "app"),
            (&["SELECT", "0"], "+OK"),
            (&["SELECT", "1"], "-NOPERM"),
            (
                &["RESET"],
                "-ERR unknown command 'RESET is not possible through a binding'",
            ),
            (&["ACL", "WHOAMI"], who),
            (&["HELLO", "2"], "[server, redis"),
            (&["MULTI"], "+OK"),
            (&["AUTH", "x"], "+QUEUED"),
            (&["SET", "a", "1"], "+QUEUED"),
            (&["EXEC"], "[+OK, +OK]"),
            (&["WATCH", "a"], "+OK"),
            (
                &["EVAL", "return redis.call('get', KEYS[1])", "1", "a"],
                "1",
            ),
            (&["INFO", "server"], "# Server"),
            (&["KEYS", "*"], "["),
            (&["QUIT"], "+OK"),
        ])
        .await;
    assert_eq!(program.hear().await, "end");
}

/// What must not be possible through any binding, in whatever way it is asked.
#[tokio::test(flavor = "multi_thread")]
async fn the_administrators_commands_and_other_databases_are_refused() {
    let server = Server::start("").await;
    let pair = Pair::of(server.kind()).await;
    let everything = ["@all", "select", "acl", "client", "cluster", "script"];
    let widest = Attenuate {
        commands: listed(&everything),
        ..Attenuate::default()
    };
    let refused: &[&[&str]] = &[
        &["CONFIG", "GET", "*"],
        &["CONFIG", "SET", "requirepass", ""],
        &["ACL", "LIST"],
        &["ACL", "SETUSER", "default", "on"],
        &["ACL", "DELUSER", "x"],
        &["ACL", "LOG"],
        &["SHUTDOWN", "NOSAVE"],
        &["DEBUG", "SLEEP", "0"],
        &["MODULE", "LIST"],
        &["MODULE", "LOAD", "/x.so"],
        &["REPLICAOF", "127.0.0.1", "1"],
        &["SLAVEOF", "NO", "ONE"],
        &["PSYNC", "?", "-1"],
        &["SYNC"],
        &["MONITOR"],
        &["CLIENT", "LIST"],
        &["CLIENT", "KILL", "TYPE", "normal"],
        &["CLIENT", "PAUSE", "1"],
        &["CLIENT", "UNBLOCK", "1"],
        &["CLIENT", "NO-EVICT", "on"],
        &["SCRIPT", "FLUSH"],
        &["SCRIPT", "KILL"],
        &[
            "FUNCTION",
            "LOAD",
            "#!lua name=x\nredis.register_function('f', function() return 1 end)",
        ],
        &["FUNCTION", "FLUSH"],
        &["FUNCTION", "DUMP"],
        &["SWAPDB", "0", "1"],
        &["FLUSHALL"],
        &["SELECT", "1"],
        &["select", "2"],
        &["MOVE", "k", "1"],
        &["COPY", "k", "j", "DB", "1"],
        &["MIGRATE", "127.0.0.1", "1", "k", "0", "1"],
        &["SAVE"],
        &["BGSAVE"],
        &["SLOWLOG", "GET"],
        &["LATENCY", "RESET"],
        &["FAILOVER"],
        &["CLUSTER", "MEET", "127.0.0.1", "1"],
        &["RESTORE", "k", "0", "x"],
    ];
    for (number, rights) in [(1, Attenuate::default()), (2, widest)] {
        let held = pair.bind_narrowed(number, &[], rights).await;
        let mut program = Program::at(&held.address).await;
        for words in refused {
            let answer = program.ask(words).await;
            assert!(answer.starts_with('-'), "{words:?}: {answer}");
            let inside = words
                .iter()
                .map(|word| format!("{word:?}"))
                .collect::<Vec<_>>()
                .join(",");
            let script = format!("return redis.pcall({inside})");
            let answer = program.ask(&["EVAL", &script, "0"]).await;
            assert!(answer.starts_with('-'), "{script}: {answer}");
        }
    }
    // What would be had by no name is not asked for in vain.
    for command in ["flushall", "CONFIG|GET", "@admin"] {
        let mut asked = grant(3, &pair.importer.designator);
        asked.attenuate.commands = listed(&["get", command]);
        let refused = pair.exporter.grant(&asked).await.unwrap_err();
        assert_eq!(refused.code(), Some(code::RIGHTS), "{refused}");
        assert!(
            refused.to_string().contains("no binding has it"),
            "{refused}"
        );
    }
    // It lives, as it was.
    assert_eq!(server.ask(&["PING"]).await, "+PONG");
    assert_eq!(
        server.ask(&["CONFIG", "GET", "requirepass"]).await,
        "[requirepass, ]"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_of_some_keys_tells_nothing_of_others() {
    let server = Server::start("notify-keyspace-events KEA").await;
    server
        .ask(&["MSET", "app:1", "one", "other", "secret"])
        .await;
    let pair = Pair::of(server.kind()).await;
    let keys = Attenuate {
        keys: listed(&["app:*", "shared"]),
        ..Attenuate::default()
    };
    let held = pair.bind_narrowed(1, &[], keys.clone()).await;
    let mut program = Program::at(&held.address).await;
    program
        .check(&[
            (&["GET", "app:1"], "one"),
            (&["SET", "shared", "x"], "+OK"),
            (&["EVAL", "return redis.call('get', 'app:1')", "0"], "one"),
            (&["HSET", "app:h", "f", "v"], ":1"),
            (&["TIME"], "["),
            (&["GET", "other"], "-NOPERM"),
            (&["MGET", "app:1", "other"], "-NOPERM"),
            (&["RENAME", "app:1", "other"], "-NOPERM"),
            (&["EVAL", "return redis.call('get', 'other')", "0"], "-"),
            (
                &["EVAL", "return redis.call('get', KEYS[1])", "1", "other"],
                "-NOPERM",
            ),
            (
                &["SORT", "app:h", "BY", "nosort", "GET", "other"],
                "-NOPERM",
            ),
            (&["SCAN", "0"], "-NOPERM"),
            (&["RANDOMKEY"], "-NOPERM"),
            (&["DBSIZE"], "-NOPERM"),
            (&["KEYS", "*"], "-NOPERM"),
            (&["FLUSHDB"], "-NOPERM"),
            (&["INFO"], "-NOPERM"),
            (&["MEMORY", "STATS"], "-NOPERM"),
            (&["PUBSUB", "CHANNELS"], "-NOPERM"),
            (&["CLUSTER", "GETKEYSINSLOT", "0", "9"], "-NOPERM"),
            (&["CLIENT", "TRACKING", "on", "BCAST"], "-NOPERM"),
            (&["SUBSCRIBE", "__keyevent@0__:set"], "-NOPERM"),
            (&["PSUBSCRIBE", "*"], "-NOPERM"),
        ])
        .await;

    let rights = Attenuate {
        commands: listed(&["@read", "set", "subscribe", "publish"]),
        channels: listed(&["news.*"]),
        ..keys
    };
    let held = pair.bind_narrowed(2, &[], rights).await;
    let mut program = Program::at(&held.address).await;
    program
        .check(&[
            (&["PING"], "+PONG"),
            (&["GET", "app:1"], "one"),
            (&["SET", "app:1", "two"], "+OK"),
            (&["DEL", "app:1"], "-NOPERM"),
            (&["SET", "other", "x"], "-NOPERM"),
            (&["KEYS", "*"], "-NOPERM"),
            (&["SCAN", "0"], "-NOPERM"),
            (&["PUBLISH", "other", "x"], "-NOPERM"),
            (&["PUBLISH", "news.1", "x"], ":0"),
            (&["SUBSCRIBE", "news.1"], "[subscribe, news.1, :1]"),
        ])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_and_large_conversations_pass() {
    let server = Server::start("").await;
    let pair = Pair::of(server.kind()).await;
    let held = pair.bind(1, &[]).await;
    let mut program = Program::at(&held.address).await;
    let large = "0123456789abcdef".repeat(1 << 18);
    assert_eq!(program.ask(&["SET", "large", &large]).await, "+OK");
    assert!(program.ask(&["GET", "large"]).await == large);
    for n in 0..2_000 {
        program.say(&["RPUSH", "list", &n.to_string()]).await;
    }
    for n in 1..=2_000 {
        assert_eq!(program.hear().await, format!(":{n}"));
    }

    let mut blocked = Program::at(&held.address).await;
    blocked.say(&["BLPOP", "queue", "0"]).await;
    let mut listener = Program::at(&held.address).await;
    listener
        .check(&[(&["SUBSCRIBE", "c"], "[subscribe, c, :1]")])
        .await;
    // One who is subscribed may say little else, as without a binding.
    listener
        .check(&[
            (&["GET", "k"], "-ERR Can't execute"),
            (&["PING"], "[pong, ]"),
        ])
        .await;
    program
        .check(&[
            (&["RPUSH", "queue", "x"], ":1"),
            (&["PUBLISH", "c", "m"], ":1"),
        ])
        .await;
    assert_eq!(blocked.hear().await, "[queue, x]");
    assert_eq!(listener.hear().await, "[message, c, m]");
    listener
        .check(&[
            (&["UNSUBSCRIBE"], "[unsubscribe, c, :0]"),
            (&["GET", "k"], "nil"),
        ])
        .await;

    program
        .0
        .write_all(b"SET inline 'a b'\r\nGET inline\r\nget \"x\r\n")
        .await
        .unwrap();
    assert_eq!(program.hear().await, "+OK");
    assert_eq!(program.hear().await, "a b");
    assert_eq!(
        program.hear().await,
        "-ERR Protocol error: unbalanced quotes in request"
    );
    assert_eq!(program.hear().await, "end");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_thrown_at_it_no_stream_is_another_users() {
    let server = Server::start("").await;
    let pair = Pair::of(server.kind()).await;
    let held = pair.bind(1, &[]).await;
    let [user] = server.users().await.try_into().unwrap();
    let parts = [
        "*1\r\n$5\r\nRESET\r\n",
        "*2\r\n$4\r\nAUTH\r\n",
        "$7\r\ndefault\r\n",
        "RESET\r\n",
        "AUTH default x\r\n",
        "*0\r\n",
        "*-1\r\n",
        "$-1\r\n",
        "*5\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$4\r\nAUTH\r\n",
        "$0\r\n\r\n",
        "\r\n",
        "\"RESET\"\r\n",
        "*2\r\n$3\r\nGET\r\n",
        "$5\r\nRESET\r\n",
        "*1\r\n",
        "x",
        "*1000\r\n",
        "\n",
        "*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n$3\r\nOFF\r\n",
    ];
    let mut open = Vec::new();
    let mut seed = 1_u32;
    for _ in 0..300 {
        let mut said = String::new();
        for _ in 0..8 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            said += parts[(seed >> 16) as usize % parts.len()];
        }
        let mut program = Program::at(&held.address).await;
        // One that is closed already has been answered.
        let _ = program.0.write_all(said.as_bytes()).await;
        open.push(program);
    }
    // Every one is logged in, and has said nothing else before; the administrator asks.
    eventually("every stream is the grant's user's", async || {
        let clients = server.ask(&["CLIENT", "LIST"]).await;
        let own = format!("user={user} ");
        let strangers: Vec<_> = clients.lines().filter(|it| !it.contains(&own)).collect();
        let is_new = |it: &&str| it.contains("cmd=NULL ") || it.contains("cmd=auth ");
        let said = strangers.iter().filter(|it| !is_new(it)).count();
        assert_eq!(said, 1, "{strangers:?}");
        strangers.len() == 1
    })
    .await;
    drop(open);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_generation_has_a_password_of_its_own() {
    let server = Server::start("").await;
    let pair = Pair::of(server.kind()).await;
    let mut passwords = Vec::new();
    for number in [1, 2] {
        pair.bind(number, &[]).await;
    }
    for user in server.users().await {
        let shown = server.ask(&["ACL", "GETUSER", &user]).await;
        let (_, rest) = shown.split_once("passwords, [").expect("passwords");
        passwords.push(rest.split(']').next().unwrap().to_owned());
    }
    assert_eq!(passwords.len(), 2, "{passwords:?}");
    assert_ne!(passwords[0], passwords[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_has_made_of_a_user_is_undone_when_it_is_granted_again() {
    let server = Server::start("").await;
    let pair = Pair::of(server.kind()).await;
    let keys = Attenuate {
        keys: listed(&["app:*"]),
        ..Attenuate::default()
    };
    pair.bind_narrowed(1, &[], keys.clone()).await;
    let [user] = server.users().await.try_into().unwrap();
    let shown = async || server.ask(&["ACL", "GETUSER", &user]).await;
    let before = shown().await;
    let wider = ["ACL", "SETUSER", &user, ">mine", "~*", "(~* &* +@all)"];
    assert_eq!(server.ask(&wider).await, "+OK");
    assert_ne!(shown().await, before);
    pair.bind_narrowed(1, &[], keys).await;
    assert_eq!(shown().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn s4_revoking_deletes_the_user_and_cuts_every_session() {
    let server = Server::start("").await;
    let pair = Pair::of(server.kind()).await;
    let held = pair.bind(1, &[]).await;
    let mut programs = Vec::new();
    for number in 0..20 {
        let mut program = Program::at(&held.address).await;
        match number % 4 {
            0 => program.say(&["BLPOP", "never", "0"]).await,
            1 => program.check(&[(&["SUBSCRIBE", "c"], "[")]).await,
            2 => program.check(&[(&["MULTI"], "+OK")]).await,
            _ => program.check(&[(&["PING"], "+PONG")]).await,
        }
        programs.push(program);
    }
    pair.exporter.revoke(&generation(1)).await.unwrap();
    assert_eq!(server.users().await, [""; 0]);
    for mut program in programs {
        assert_eq!(program.hear().await, "end");
    }
    let clients = server.ask(&["CLIENT", "LIST"]).await;
    assert_eq!(clients.lines().count(), 1, "{clients}");
    // Again is the same.
    pair.exporter.revoke(&generation(1)).await.unwrap();
}

/// S4: storms of connections, each revoked in the middle: what was counted when the revocation was
/// acknowledged is all there is.
#[tokio::test(flavor = "multi_thread")]
async fn s4_no_command_is_done_after_the_acknowledgement() {
    let server = Server::start("").await;
    let pair = Pair::of(server.kind()).await;
    for round in 1..=30 {
        let held = pair.bind(round, &[]).await;
        let storm: Vec<_> = (0..16)
            .map(|_| {
                let path = held.address.strip_prefix("unix:").unwrap().to_owned();
                tokio::spawn(async move {
                    while let Ok(mut stream) = UnixStream::connect(&path).await {
                        let mut answer = [0; 64];
                        for _ in 0..20 {
                            let said = stream.write_all(b"*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n").await;
                            if said.is_err() || !matches!(stream.read(&mut answer).await, Ok(1..)) {
                                break;
                            }
                        }
                    }
                })
            })
            .collect();
        let goal = round * 50;
        eventually("the storm is on", async || {
            server
                .ask(&["GET", "n"])
                .await
                .parse::<u64>()
                .is_ok_and(|n| n > goal)
        })
        .await;
        pair.exporter.revoke(&generation(round)).await.unwrap();
        let counted = server.ask(&["GET", "n"]).await;
        assert_eq!(server.users().await, [""; 0], "round {round}");
        pair.importer.unregister(&generation(round)).await;
        for program in storm {
            program.await.unwrap();
        }
        assert_eq!(server.ask(&["GET", "n"]).await, counted, "round {round}");
        assert_eq!(
            server.ask(&["CLIENT", "LIST"]).await.lines().count(),
            1,
            "round {round}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_has_lost_is_made_again_and_what_is_left_is_taken_away_later() {
    let mut server = Server::start("aclfile users.acl").await;
    let mut pair = Pair::of(server.kind()).await;
    let held = pair.bind(1, &[]).await;
    // Somebody keeps it in the file.
    assert_eq!(server.ask(&["ACL", "SAVE"]).await, "+OK");
    assert_eq!(
        server
            .ask(&["ACL", "DELUSER", &server.users().await[0]])
            .await,
        ":1"
    );
    let mut program = Program::at(&held.address).await;
    program.check(&[(&["PING"], "+PONG")]).await;

    server.stop();
    let refused = pair.exporter.revoke(&generation(1)).await.unwrap_err();
    assert_eq!(refused.code(), Some(code::PENDING), "{refused}");
    assert_eq!(program.hear().await, "end");
    // Not even a hob that was killed forgets it.
    pair.db.kill();
    server.run().await;
    assert_eq!(server.users().await.len(), 1, "it was in the file");
    pair.db.start_again();
    eventually("nothing is left, in the file either", async || {
        let file = std::fs::read_to_string(server.dir.path().join("users.acl")).unwrap();
        server.users().await.is_empty() && !file.contains("gobs")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_cannot_be_used_are_told_apart() {
    let mut server = Server::start("requirepass sesame").await;
    let pair = Pair::of(server.kind()).await;
    let receiver = pair.importer.designator.clone();
    let why = async |number| {
        let refused = pair.exporter.grant(&grant(number, &receiver)).await;
        refused
            .err()
            .map(|broken| broken.to_string())
            .unwrap_or_default()
    };
    let without = why(1).await;
    assert!(
        without.contains("NOAUTH") && without.contains("`admin_file`"),
        "{without}"
    );
    let admin_file = server.dir.path().join("admin");
    std::fs::write(&admin_file, "default wrong\n").unwrap();
    let with_file = ServiceKind::Redis(Redis {
        socket: Some(server.socket()),
        admin_file: Some(admin_file.clone()),
    });
    pair.exporter.offer("orders", with_file).await;
    let wrong = why(1).await;
    assert!(wrong.contains("WRONGPASS"), "{wrong}");
    std::fs::write(&admin_file, "default sesame\n").unwrap();
    let held = pair.bind(2, &[]).await;
    let mut program = Program::at(&held.address).await;
    program
        .check(&[
            (&["AUTH", "sesame"], "+OK"),
            (&["ACL", "WHOAMI"], "gobs-db-2-"),
        ])
        .await;

    // One that hangs: no stream, and the others do not notice.
    let process = rustix::process::Pid::from_child(server.process.as_ref().unwrap());
    rustix::process::kill_process(process, Signal::STOP).unwrap();
    let hung = why(3).await;
    assert!(hung.contains("no answer in 4 s"), "{hung}");
    rustix::process::kill_process(process, Signal::CONT).unwrap();

    server.stop();
    let away = why(4).await;
    assert!(
        away.contains("connecting to Redis at") && away.contains("unixsocket"),
        "{away}"
    );
    let mut program = Program::at(&held.address).await;
    let told = program.ask(&["PING"]).await;
    assert!(
        told.starts_with("-ERR gobs: the service on the other machine"),
        "{told}"
    );
    assert!(!pair.db.log().contains("sesame"));

    server.config = "maxclients 1".into();
    server.run().await;
    // Whoever looked whether it listens, or what is left to delete, has the one place for a moment.
    let only = Mutex::new(None);
    eventually("the one place is taken", async || {
        let mut program = Program::connect(&server.socket()).await;
        // One that is refused may be closed before it has asked.
        let asked = program.0.write_all(b"PING\r\n").await;
        let is_in = asked.is_ok() && program.hear().await == "+PONG";
        *only.lock().unwrap() = is_in.then_some(program);
        is_in
    })
    .await;
    let full = why(5).await;
    assert!(full.contains("max number of clients reached"), "{full}");
    drop(only);
}

/// No such server is kept by Debian, so what one says of itself is said here.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_an_unsupported_version_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("redis.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = vec![0; 1024];
            while let Ok(1..) = stream.read(&mut asked).await {
                let info = "redis_version:6.2.14\r\n";
                let said = format!("${}\r\n{info}\r\n", info.len());
                let _ = stream.write_all(said.as_bytes()).await;
            }
        }
    });
    let pair = Pair::of(ServiceKind::Redis(Redis {
        socket: Some(path),
        admin_file: None,
    }))
    .await;
    let asked = grant(1, &pair.importer.designator);
    let refused = pair.exporter.grant(&asked).await.unwrap_err();
    assert_eq!(refused.code(), Some(code::SERVICE), "{refused}");
    let said = "this is Redis 6.2.14; bindings need 7.0 or newer";
    assert!(refused.to_string().contains(said), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connections_are_served() {
    let server = Server::start("maxclients 4000").await;
    let pair = Pair::of(server.kind()).await;
    let held = pair.bind(1, &[]).await;
    let all = (0..1_000).map(|_| async {
        let mut program = Program::at(&held.address).await;
        program.check(&[(&["PING"], "+PONG")]).await;
        program
    });
    let all = futures_util::stream::iter(all).buffer_unordered(64);
    let mut all: Vec<_> = all.collect().await;
    for program in &mut all {
        program.check(&[(&["INCR", "n"], ":")]).await;
    }
    assert_eq!(server.ask(&["GET", "n"]).await, "1000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_was_declared_wrong_is_forgotten_once_it_is_right() {
    let server = Server::start("").await;
    let pair = Pair::of(ServiceKind::Redis(Redis {
        socket: Some(server.dir.path().join("wrong.sock")),
        admin_file: None,
    }))
    .await;
    let asked = grant(1, &pair.importer.designator);
    let refused = pair.exporter.grant(&asked).await.unwrap_err();
    assert_eq!(refused.code(), Some(code::UNREACHABLE), "{refused}");
    pair.exporter.offer("orders", server.kind()).await;
    // The same generation, asked for again.
    let held = pair.bind(1, &[]).await;
    let mut program = Program::at(&held.address).await;
    program.check(&[(&["PING"], "+PONG")]).await;
    pair.exporter.revoke(&generation(1)).await.unwrap();
    assert_eq!(server.users().await, [""; 0]);

    let wrong = Redis {
        socket: Some(server.dir.path().join("wrong.sock")),
        admin_file: None,
    };
    pair.exporter
        .offer("orders", ServiceKind::Redis(wrong))
        .await;
    let asked = grant(2, &pair.importer.designator);
    pair.exporter.grant(&asked).await.unwrap_err();
    // Nothing was made there, so nothing is left, and nobody waits for a server that never was.
    pair.exporter.revoke(&generation(2)).await.unwrap();
    let status = pair.exporter.status().await;
    assert_eq!((status.grants, status.leaving), (Vec::new(), Vec::new()));
}
