//! S1, S2: an unmodified program lands as its role in its database, whatever it asks for.

use std::process::Command;

use futures_util::{SinkExt, StreamExt};
use hob::protocol::{Access, Attenuate};
use tokio::time::timeout;
use tokio_postgres::NoTls;

use super::bound::{Bound, ask, code};
use super::cluster::Cluster;
use crate::support::{PATIENCE, eventually, generation};

/// Rows of a COPY that does not fit into any buffer on its way.
const ROWS: usize = 200_000;

/// Where Debian's modules of Node are; `.ci/setup` puts npm's beside what is built.
const MODULES: &str = "/usr/share/nodejs:/usr/lib/nodejs";

#[tokio::test(flavor = "multi_thread")]
async fn s2_a_program_lands_as_its_role_whatever_it_sends() {
    let bound = Bound::start(Attenuate::default()).await;
    let role = bound.role();
    let landed = format!("{role} {role} {}", bound.database);
    let who = "select concat_ws(' ', session_user, current_user, current_database())";
    for (user, database, options) in [
        ("postgres", "postgres", ""),
        ("", "", ""),
        (
            "x'; drop role postgres; --",
            "template1",
            "-c role=postgres",
        ),
        (
            &role,
            &bound.database,
            "-c session_authorization=postgres -c search_path=x",
        ),
    ] {
        let mut config = bound.config();
        config
            .user(user)
            .dbname(database)
            .options(options)
            .password("wrong");
        config.application_name("orders app");
        let (client, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        assert_eq!(ask(&client, who).await, Ok(landed.clone()));
        let kept = ask(&client, "show application_name").await;
        assert_eq!(kept, Ok("orders app".into()));
        assert_eq!(
            ask(&client, "show search_path").await,
            Ok("\"$user\", public".into())
        );
    }
    let check = bound.pair.importer.check(&generation(1)).await;
    assert!(check.answers, "{}", check.detail);
    // A name that is the superuser's is out of reach from inside, too.
    for escape in ["set role postgres", "set session authorization postgres"] {
        assert_eq!(bound.ask(escape).await, Err("42501".into()), "{escape}");
    }
    assert_eq!(
        bound.ask("select 1 from pg_authid").await,
        Err("42501".into())
    );
}

/// Where the server sees a program come from: nothing is its socket.
const FROM: &str = "select coalesce(host(inet_client_addr()), '')";

#[tokio::test(flavor = "multi_thread")]
async fn a_role_comes_by_the_socket_where_pg_hba_conf_lets_it() {
    let cluster = Cluster::start(&[]);
    let mut bound = Bound::offer(&cluster).await;
    bound.bind(1, Attenuate::default()).await;
    let by_tcp = Ok("127.0.0.1".to_owned());
    assert_eq!(bound.ask(FROM).await, by_tcp);

    // A hob that begins looks for the way anew.
    cluster.admit_on_socket(true);
    bound.pair.db.kill();
    bound.pair.db.start_again();
    bound.pair.exporter = bound.pair.boss.client("machine.db").await;
    assert_eq!(bound.ask(FROM).await, Ok(String::new()));
    let who = "select session_user = current_user and pg_has_role('gobs_binding', 'member')";
    assert_eq!(bound.ask(who).await, Ok("t".into()));

    // Programs do not notice when the line is taken away.
    cluster.admit_on_socket(false);
    assert_eq!(bound.ask(FROM).await, by_tcp);
    bound.pair.exporter.revoke(&generation(1)).await.unwrap();
    assert_eq!(cluster.roles(&bound.database).len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn s1_programs_of_every_kind_connect_without_a_password() {
    let bound = Bound::start(Attenuate::default()).await;
    let role = bound.role();
    bound
        .ask("create table t as select 41 + 1 as answer")
        .await
        .unwrap();
    let host = bound.directory.display().to_string();
    let python = "import psycopg2, sys\n\
        with psycopg2.connect(host=sys.argv[1], dbname='x', user='y') as connection:\n    \
            cursor = connection.cursor()\n    \
            cursor.execute('select session_user, answer + %s from t', (0,))\n    \
            print(*cursor.fetchone(), sep='|')\n";
    let node = "const { Client } = require('pg');\n\
        const client = new Client({ host: process.argv[1], database: 'x', user: 'y' });\n\
        client.connect()\n  \
          .then(() => client.query('select session_user as who, answer + $1 as n from t', [0]))\n  \
          .then(({ rows }) => { console.log(rows[0].who + '|' + rows[0].n); return client.end(); })";
    let query = "select session_user, answer from t";
    let uri = format!("postgresql:///x?host={host}&user=y");
    let over_tcp = format!(
        "host=127.0.0.1 port={} sslmode=prefer dbname=x user=y",
        bound.port
    );
    let programs: [(&str, Vec<&str>); 5] = [
        ("psql", vec!["-XAtc", query, "-h", &host, "-U", "y", "x"]),
        ("psql", vec!["-XAtc", query, &uri]),
        ("psql", vec!["-XAtc", query, &over_tcp]),
        // Debian's own, which has Debian's modules.
        ("/usr/bin/python3", vec!["-c", python, &host]),
        ("/usr/bin/node", vec!["-e", node, &host]),
    ];
    for (program, args) in programs {
        let mut command = Command::new(program);
        // Nothing of this test's own surroundings.
        command.env_clear().env("PATH", "/usr/bin:/bin").args(&args);
        command.env(
            "NODE_PATH",
            format!(
                "{MODULES}:{}/../target/node/node_modules",
                env!("CARGO_MANIFEST_DIR")
            ),
        );
        let output = command
            .output()
            .expect("run .ci/setup: it installs what is missing");
        let said = String::from_utf8_lossy(&output.stderr);
        let answer = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            answer.trim(),
            format!("{role}|42"),
            "{program} {args:?}: {said}"
        );
    }
    // Who insists on TLS is told that there is none, and does not go on.
    let insists = format!(
        "host=127.0.0.1 port={} sslmode=require dbname=x user=y",
        bound.port
    );
    let output = Command::new("psql")
        .args(["-Xc", "select 1", &insists])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("server does not support SSL"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_and_copy_pass_untouched() {
    let bound = Bound::start(Attenuate::default()).await;
    let client = bound.connect().await.unwrap();
    client
        .batch_execute("create table numbers (n bigint, text text)")
        .await
        .unwrap();
    let sink = client.copy_in("copy numbers from stdin").await.unwrap();
    futures_util::pin_mut!(sink);
    for n in 0..ROWS {
        let row = bytes::Bytes::from(format!("{n}\t{}\n", "x".repeat(n % 100)));
        sink.feed(row).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), ROWS as u64);
    let sum = client
        .prepare("select sum(n)::bigint from numbers where n < $1")
        .await
        .unwrap();
    for below in [10_i64, 100] {
        let row = client.query_one(&sum, &[&below]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), below * (below - 1) / 2);
    }
    let stream = client.copy_out("copy numbers to stdout").await.unwrap();
    futures_util::pin_mut!(stream);
    let mut lines = 0;
    while let Some(part) = timeout(PATIENCE, stream.next()).await.unwrap() {
        lines += part.unwrap().iter().filter(|byte| **byte == b'\n').count();
    }
    assert_eq!(lines, ROWS);
    let one = client.query_one(&sum, &[&2_i64]).await.unwrap();
    assert_eq!(one.get::<_, i64>(0), 1, "the session goes on after a COPY");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_dumped_through_its_binding() {
    let bound = Bound::start(Attenuate::default()).await;
    let made = "create table t (n serial, x int); insert into t(x) values (4711)";
    bound.ask(made).await.unwrap();
    for (number, access) in [(1, None), (2, Some(Access::Read))] {
        let limits = Attenuate {
            access,
            ..Attenuate::default()
        };
        bound.bind(number, limits).await;
        let host = bound.directory.display().to_string();
        let dumped = Command::new("pg_dump")
            .args(["-h", &host, "-U", "y", "x"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&dumped.stderr);
        assert!(dumped.status.success(), "{access:?}: {said}");
        let text = String::from_utf8_lossy(&dumped.stdout);
        assert!(text.contains("1\t4711\n"), "{access:?}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s2_a_cancel_request_reaches_sessions_of_its_own_grant_only() {
    let (mine, other) = tokio::join!(
        Bound::start(Attenuate {
            connections_max: Some(2),
            ..Attenuate::default()
        }),
        Bound::start(Attenuate::default())
    );
    let (busy, idle) = (mine.connect().await.unwrap(), mine.connect().await.unwrap());
    // As many connections as there may be: a third is told so, as a server would say it.
    let full = mine.connect().await.err().map(|error| code(&error));
    assert_eq!(full.as_deref(), Some("53300"));
    let token = busy.cancel_token();
    let sleeping = tokio::spawn(async move { ask(&busy, "select pg_sleep(1000)").await });
    let count = "select count(*) from pg_stat_activity where query like 'select pg_sleep%'";
    let is_asleep = async || {
        let found = Cluster::shared().sql(&mine.database, &format!("{count} and state = 'active'"));
        found == "1"
    };
    eventually("a statement runs", is_asleep).await;
    // The same numbers through another binding's socket cancel nothing.
    let stream = tokio::net::UnixStream::connect(other.directory.join(".s.PGSQL.5432"));
    timeout(
        PATIENCE,
        token.cancel_query_raw(stream.await.unwrap(), NoTls),
    )
    .await
    .unwrap()
    .unwrap();
    assert!(is_asleep().await);
    // A request is a connection, and gets through though all are taken.
    timeout(PATIENCE, token.cancel_query(NoTls))
        .await
        .unwrap()
        .unwrap();
    let cancelled = timeout(PATIENCE, sleeping).await.unwrap().unwrap();
    assert_eq!(cancelled, Err("57014".into()));
    drop(idle);
    eventually("a place is free again", async || {
        mine.connect().await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s2_a_replication_connection_is_refused() {
    let bound = Bound::start(Attenuate::default()).await;
    for (value, refused) in [("true", true), ("database", true), ("off", false)] {
        let connection = format!(
            "host={} dbname=x user=y replication={value}",
            bound.directory.display()
        );
        let output = Command::new("psql")
            .args(["-XAtc", "select 1", &connection])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            said.contains("a binding gives no replication connections"),
            refused,
            "{said}"
        );
        assert_eq!(output.status.success(), !refused, "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_start_up_is_bounded_and_others_do_not_notice() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let bound = Bound::start(Attenuate::default()).await;
    let path = bound.directory.join(".s.PGSQL.5432");
    let open = async || tokio::net::UnixStream::connect(&path).await.unwrap();
    let streams = async || bound.pair.exporter.status().await.grants[0].streams;

    // A thousand that say half of something, or nothing, take no stream to the other machine.
    let mut crowd = Vec::new();
    for n in 0..1_000_u32 {
        let mut program = open().await;
        let half = [&40_u32.to_be_bytes()[..], &[0, 3, 0, 0], b"user\0half"].concat();
        program.write_all(&half[..(n % 18) as usize]).await.unwrap();
        crowd.push(program);
    }
    assert_eq!(bound.ask("select 'still'").await, Ok("still".into()));
    eventually("that one's stream has ended", async || streams().await == 0).await;
    drop(crowd);

    let huge = [&100_000_000_u32.to_be_bytes()[..], &[0, 3, 0, 0]].concat();
    for said in [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".as_slice(),
        &huge,
        &[0xff; 64],
        &[0; 64],
    ] {
        let mut program = open().await;
        program.write_all(said).await.unwrap();
        let mut heard = Vec::new();
        timeout(PATIENCE, program.read_to_end(&mut heard))
            .await
            .unwrap()
            .unwrap();
        assert!(heard.starts_with(b"E"), "{said:?}: {heard:?}");
    }
    assert_eq!(streams().await, 0);
    assert_eq!(bound.ask("select 'still'").await, Ok("still".into()));
}
