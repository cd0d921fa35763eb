//! Servers that are down, slow, full or odd, and names that clash: one clear error, at its place.

use std::os::unix::fs::PermissionsExt;

use hob::protocol::{Access, Attenuate, Postgres, ServiceKind, code};
use rustix::process::{Signal, kill_process};

use super::bound::Bound;
use super::cluster::Cluster;
use crate::support::{eventually, generation};

/// Returns why a generation cannot be granted: the code, and the text.
async fn refusal(bound: &Bound, number: u64, attenuate: Attenuate) -> (String, String) {
    let error = bound
        .try_bind(number, attenuate)
        .await
        .expect_err("a refusal");
    (
        error.code().unwrap_or_default().to_owned(),
        error.to_string(),
    )
}

/// Checks a refusal's code, and that its text says this.
#[track_caller]
fn check((code, text): (String, String), expected: &str, says: &str) {
    assert_eq!(code, expected, "{text}");
    assert!(text.contains(says), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_slow_or_back_is_told_apart() {
    // Of its own, since it is stopped; for as long as the process.
    let cluster = Box::leak(Box::new(Cluster::start(&[])));
    let server = cluster.pid();
    let mut bound = Bound::offer_of(cluster.service("orders"), "orders").await;
    // Slow: it takes connections and says nothing.
    kill_process(server, Signal::STOP).unwrap();
    check(
        refusal(&bound, 1, Attenuate::default()).await,
        code::UNREACHABLE,
        "did not answer in 5 s",
    );
    kill_process(server, Signal::CONT).unwrap();
    bound.bind(2, Attenuate::default()).await;
    assert_eq!(bound.ask("select 'up'").await, Ok("up".into()));

    cluster.stop();
    check(
        refusal(&bound, 3, Attenuate::default()).await,
        code::UNREACHABLE,
        "PostgreSQL does not answer at",
    );
    assert_eq!(bound.ask("select 1").await, Err("57P03".into()));
    let answer = bound.pair.importer.check(&generation(2)).await;
    assert!(
        !answer.answers && answer.detail.contains("does not answer"),
        "{}",
        answer.detail
    );
    // What cannot be taken away now is pending, and gone some time after the server is back.
    let revoked = bound.pair.exporter.revoke(&generation(3)).await;
    let revoked = revoked.expect_err("the server is away");
    assert_eq!(revoked.code(), Some(code::PENDING), "{revoked}");
    bound.pair.db.kill();
    cluster.start_again(&[]);
    bound.pair.db.start_again();
    let ledger = "select count(*) from gobs.role where kind = 'binding'";
    eventually("no role is left", async || {
        cluster.sql("orders", ledger) == "0"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_is_said_to_be_full() {
    let cluster = Box::leak(Box::new(Cluster::start(&["max_connections=8"])));
    let bound = Bound::offer_of(cluster.service("orders"), "orders").await;
    bound.bind(1, Attenuate::default()).await;
    let mut held = Vec::new();
    let refused = loop {
        match bound.connect().await {
            Ok(client) => held.push(client),
            Err(error) => break super::bound::code(&error),
        }
    };
    assert_eq!(refused, "53300");
    drop(held);
    eventually("there is room again", async || {
        bound.connect().await.is_ok()
    })
    .await;
}

/// No such server is kept by Debian, so what one says of itself is said here.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_an_unsupported_version_is_named() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(".s.PGSQL.5432");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    for path in [dir.path(), &path] {
        // A hob that is root comes as somebody else.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut startup = vec![0; 1024];
            let _ = stream.read(&mut startup).await;
            let said = b"R\0\0\0\x08\0\0\0\0S\0\0\0\x19server_version\x0013.23\0Z\0\0\0\x05I";
            let _ = stream.write_all(said).await;
        }
    });
    let service = ServiceKind::Postgres(Postgres {
        database: "orders".into(),
        create: false,
        socket: Some(path),
        admin_user: None,
    });
    let bound = Bound::offer_of(service, "orders").await;
    check(
        refusal(&bound, 1, Attenuate::default()).await,
        code::SERVICE,
        "is PostgreSQL 13.23; gobs needs 14 or later",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_not_there_or_anothers_are_refused() {
    let cluster = Cluster::shared();
    let bound = Bound::offer(cluster).await;
    let ServiceKind::Postgres(spec) = cluster.service(&bound.database) else {
        unreachable!("a database")
    };
    let offer = async |spec: Postgres| {
        bound
            .pair
            .exporter
            .offer("orders", ServiceKind::Postgres(spec))
            .await;
    };
    offer(Postgres {
        create: false,
        ..spec.clone()
    })
    .await;
    let no_database = format!("has no database \"{}\"", bound.database);
    check(
        refusal(&bound, 1, Attenuate::default()).await,
        code::SERVICE,
        &no_database,
    );
    offer(Postgres {
        admin_user: Some("nobody".into()),
        ..spec.clone()
    })
    .await;
    check(
        refusal(&bound, 2, Attenuate::default()).await,
        code::SERVICE,
        "refuses the user nobody: role \"nobody\" does not exist",
    );
    offer(Postgres {
        socket: Some("/nowhere".into()),
        ..spec.clone()
    })
    .await;
    check(
        refusal(&bound, 3, Attenuate::default()).await,
        code::UNREACHABLE,
        "does not answer at /nowhere/.s.PGSQL.5432: No such file",
    );
    offer(spec).await;
    let of = |access, schemas: &[&str]| Attenuate {
        access,
        schemas: Some(schemas.iter().map(|it| (*it).to_owned()).collect()),
        ..Attenuate::default()
    };
    check(
        refusal(&bound, 4, of(Some(Access::Read), &["public", "salse"])).await,
        code::SERVICE,
        "has no schema salse",
    );
    check(
        refusal(&bound, 5, of(Some(Access::Owner), &["public"])).await,
        code::RIGHTS,
        "schemas cannot narrow access = \"owner\", which has the whole database",
    );
    check(
        refusal(&bound, 6, of(None, &[])).await,
        code::SERVICE,
        "no schemas",
    );

    // Somebody's own schema, table and roles of the names that gobs uses.
    let other = Bound::offer(cluster).await;
    cluster.sql("postgres", &format!("create database {}", other.database));
    cluster.sql(&other.database, "create schema gobs");
    check(
        refusal(&other, 1, Attenuate::default()).await,
        code::SERVICE,
        "a schema gobs exists in this database, and gobs did not make it",
    );
    cluster.sql(&other.database, "drop schema gobs");
    let owner = format!("gobs_owner_{}", other.database);
    cluster.sql("postgres", &format!("create role {owner}"));
    check(
        refusal(&other, 2, Attenuate::default()).await,
        code::SERVICE,
        &format!("the role {owner} exists, and gobs did not make it; rename that role"),
    );
    cluster.sql("postgres", &format!("drop role {owner}"));
    other.bind(3, Attenuate::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_was_declared_wrong_is_forgotten_once_it_is_right() {
    let database = Cluster::database();
    let right = Cluster::shared().service(&database);
    let ServiceKind::Postgres(mut wrong) = right.clone() else {
        unreachable!("a database")
    };
    wrong.socket = Some("/nowhere/.s.PGSQL.5432".into());
    let bound = Bound::offer_of(ServiceKind::Postgres(wrong), &database).await;
    check(
        refusal(&bound, 1, Attenuate::default()).await,
        code::UNREACHABLE,
        "PostgreSQL does not answer at /nowhere/",
    );
    let status = bound.pair.exporter.status().await;
    assert_eq!((status.grants, status.leaving), (Vec::new(), Vec::new()));
    bound.pair.exporter.offer("orders", right).await;
    bound.bind(1, Attenuate::default()).await;
    assert_eq!(bound.ask("select 'up'").await, Ok("up".into()));
    bound.pair.exporter.revoke(&generation(1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_version_installed_is_replaced() {
    let bound = Bound::start(Attenuate::default()).await;
    let cluster = Cluster::shared();
    let earlier = "create or replace function gobs.version() returns integer
                   language sql immutable as 'select 1';
                   create or replace function gobs.close(role text) returns oid
                   language sql as 'select 1 / 0 from pg_class; select 0::oid';";
    cluster.sql(
        &bound.database,
        &earlier.replace("role text", &closes(&bound)),
    );
    // A hob that begins anew looks at what is there.
    let mut bound = bound;
    bound.pair.db.kill();
    bound.pair.db.start_again();
    bound.pair.exporter = bound.pair.boss.client("machine.db").await;
    bound.bind(2, Attenuate::default()).await;
    let version = cluster.sql(&bound.database, "select gobs.version() > 1");
    assert_eq!(version, "t");
    bound.pair.exporter.revoke(&generation(2)).await.unwrap();
    assert_eq!(cluster.roles(&bound.database).len(), 0);
}

/// Returns the parameters of a function that is installed.
fn closes(bound: &Bound) -> String {
    let asked = "select pg_get_function_arguments('gobs.close(text)'::regprocedure)";
    Cluster::shared().sql(&bound.database, asked)
}
