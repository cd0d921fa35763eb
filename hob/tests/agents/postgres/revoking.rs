//! S4, S5: nothing of a role survives its revocation, and what it made does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hob::protocol::{Access, Attenuate, code};
use tokio::time::timeout;

use super::bound::{Bound, ask};
use super::cluster::{Cluster, superuser};
use crate::support::{PATIENCE, eventually, generation};

/// Storms that are revoked in the middle, and the programs of each.
const STORMS: u64 = 30;
const PROGRAMS: usize = 12;

/// Sessions whose role is not there any more, or is one of a binding.
const SURVIVORS: &str = "select count(*) from pg_stat_activity a
    where datname = current_database() and pid <> pg_backend_pid()
    and backend_type = 'client backend'
    and application_name <> 'gobs' and (usename is null or usename like 'gobs\\_%')";

#[tokio::test(flavor = "multi_thread")]
async fn s4_a_session_that_set_another_role_ends_with_its_own() {
    let cluster = Cluster::shared();
    let bound = Bound::start(Attenuate::default()).await;
    let owner = format!("set role gobs_owner_{}", bound.database);
    let mut sleeping = Vec::new();
    for statement in [
        format!("{owner}; select pg_sleep(1000)"),
        format!("{owner}; do $$ begin loop perform 1; end loop; end $$"),
        "begin; create table open (); select pg_sleep(1000)".into(),
    ] {
        let client = bound.connect().await.unwrap();
        sleeping.push(tokio::spawn(async move { ask(&client, &statement).await }));
    }
    let (idle, listening) = (
        bound.connect().await.unwrap(),
        bound.connect().await.unwrap(),
    );
    ask(&idle, &owner).await.unwrap();
    ask(&listening, "listen anything; select pg_advisory_lock(1)")
        .await
        .unwrap();
    let busy =
        "select count(*) from pg_stat_activity where state = 'active' and usename like 'gobs\\_%'
                and datname = current_database()";
    eventually("all are busy", async || {
        cluster.sql(&bound.database, busy) == "3"
    })
    .await;

    bound.pair.exporter.revoke(&generation(1)).await.unwrap();
    assert_eq!(cluster.sql(&bound.database, SURVIVORS), "0");
    assert_eq!(cluster.roles(&bound.database), Vec::<String>::new());
    for program in sleeping {
        assert!(timeout(PATIENCE, program).await.unwrap().unwrap().is_err());
    }
    eventually("the others end", async || {
        idle.is_closed() && listening.is_closed()
    })
    .await;
    assert_eq!(bound.ask("select 1").await, Err("57P03".into()));
    // Again is the same, and the name never comes back.
    bound.pair.exporter.revoke(&generation(1)).await.unwrap();
    let refused = bound.try_bind(1, Attenuate::default()).await.unwrap_err();
    assert_eq!(refused.code(), Some(code::REVOKED));
    assert_eq!(
        cluster.sql(&bound.database, "select to_regclass('open') is null"),
        "t"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn s4_sessions_of_a_role_that_somebody_has_dropped_end_too() {
    let cluster = Cluster::shared();
    let bound = Bound::start(Attenuate::default()).await;
    let (role, client) = (bound.role(), bound.connect().await.unwrap());
    let program = tokio::spawn(async move { ask(&client, "select pg_sleep(1000)").await });
    let asleep = "select count(*) from pg_stat_activity
        where datname = current_database() and query like 'select pg_sleep%'";
    let sleeps = async || cluster.sql(&bound.database, asleep) == "1";
    eventually("it sleeps", sleeps).await;
    let drop_it = format!("drop owned by {role}; drop role {role}");
    cluster.sql(&bound.database, &drop_it);
    assert!(sleeps().await, "the server itself ends nothing");
    bound.pair.exporter.revoke(&generation(1)).await.unwrap();
    assert_eq!(cluster.sql(&bound.database, asleep), "0");
    assert!(timeout(PATIENCE, program).await.unwrap().unwrap().is_err());
    let ledger = format!("select count(*) from gobs.role where name = '{role}'");
    assert_eq!(cluster.sql(&bound.database, &ledger), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn s5_what_a_role_owns_elsewhere_goes_to_the_databases_owner() {
    let cluster = Cluster::shared();
    let bound = Bound::start(Attenuate::default()).await;
    let role = bound.role();
    let other = Cluster::database();
    cluster.sql("postgres", &format!("create database {other}"));
    cluster.sql(
        &other,
        &format!("create table t (); alter table t owner to {role}"),
    );
    bound.pair.exporter.revoke(&generation(1)).await.unwrap();
    assert_eq!(cluster.roles(&bound.database), Vec::<String>::new());
    let owner = "select pg_get_userbyid(relowner) from pg_class where relname = 't'";
    assert_eq!(cluster.sql(&other, owner), superuser());
}

#[tokio::test(flavor = "multi_thread")]
async fn s5_a_role_goes_with_a_database_that_is_gone() {
    let cluster = Cluster::shared();
    let bound = Bound::start(Attenuate::default()).await;
    let role = bound.role();
    cluster.sql(
        "postgres",
        &format!("drop database {} with (force)", bound.database),
    );
    assert_eq!(bound.ask("select 1").await, Err("3D000".into()));
    bound.pair.exporter.revoke(&generation(1)).await.unwrap();
    let left = "select count(*) from pg_roles where rolname = ";
    assert_eq!(cluster.sql("postgres", &format!("{left}'{role}'")), "0");
    let made = "select count(*) from pg_database where datname = ";
    assert_eq!(
        cluster.sql("postgres", &format!("{made}'{}'", bound.database)),
        "0"
    );
    assert_eq!(groups(&bound.database), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn s5_a_database_that_is_made_again_is_used_again_and_its_roles_go() {
    let cluster = Cluster::shared();
    for access in [Access::Owner, Access::Write] {
        let limits = Attenuate {
            access: Some(access),
            ..Attenuate::default()
        };
        let bound = Bound::start(limits).await;
        let again = |bound: &Bound| {
            let name = &bound.database;
            let drop = format!("drop database {name} with (force)");
            cluster.sql("postgres", &drop);
            cluster.sql("postgres", &format!("create database {name}"));
            cluster.sql(name, "create table t (n int)");
        };
        let role = bound.role();
        again(&bound);
        // Its role still gets in, and had no rights there: what holds them went with the other one.
        eventually("its rights are back", async || {
            bound.ask("insert into t values (1)").await.is_ok()
        })
        .await;
        assert_eq!(bound.role(), role);
        again(&bound);
        bound.pair.exporter.revoke(&generation(1)).await.unwrap();
        let left = format!("select count(*) from pg_roles where rolname = '{role}'");
        assert_eq!(cluster.sql("postgres", &left), "0");
        assert_eq!(groups(&bound.database), "0");
    }
}

/// Counts the groups that were made for a database.
fn groups(database: &str) -> String {
    let groups = "select count(*) from pg_roles where shobj_description(oid, 'pg_authid') ~ ";
    let sql = format!("{groups}'^Kept by gobs: (read|write|owner), database {database}$'");
    Cluster::shared().sql("postgres", &sql)
}

#[tokio::test(flavor = "multi_thread")]
async fn s4_nothing_survives_a_storm_and_no_byte_comes_after_the_acknowledgement() {
    let cluster = Cluster::shared();
    let bound = Arc::new(Bound::start(Attenuate::default()).await);
    let tables = "create table stamps (n bigint); grant insert on stamps to public";
    cluster.sql(&bound.database, tables);
    // Every number is counted before it is sent.
    let stamp = Arc::new(AtomicU64::new(0));
    for storm in 1..=STORMS {
        if storm > 1 {
            bound.bind(storm, Attenuate::default()).await;
        }
        let before = stamp.load(Ordering::SeqCst);
        let programs: Vec<_> = (0..PROGRAMS)
            .map(|_| {
                let (bound, stamp) = (Arc::clone(&bound), Arc::clone(&stamp));
                tokio::spawn(async move {
                    // Until it cannot connect any more: a new session each few statements.
                    while let Ok(client) = bound.connect().await {
                        for _ in 0..5 {
                            let number = stamp.fetch_add(1, Ordering::SeqCst) + 1;
                            let insert = format!("insert into stamps values ({number})");
                            if ask(&client, &insert).await.is_err() {
                                break;
                            }
                        }
                    }
                })
            })
            .collect();
        eventually("the storm blows", async || {
            stamp.load(Ordering::SeqCst) > before + 10 * PROGRAMS as u64
        })
        .await;
        bound
            .pair
            .exporter
            .revoke(&generation(storm))
            .await
            .unwrap();
        let acknowledged = stamp.load(Ordering::SeqCst);
        // What has arrived so far, and the largest number.
        let stamps = "select count(*), max(n) from stamps";
        let arrived = cluster.sql(&bound.database, stamps);
        assert_eq!(
            cluster.sql(&bound.database, SURVIVORS),
            "0",
            "storm {storm}"
        );
        assert_eq!(
            cluster.roles(&bound.database),
            Vec::<String>::new(),
            "storm {storm}"
        );
        for program in programs {
            timeout(PATIENCE, program).await.unwrap().unwrap();
        }
        assert_eq!(
            cluster.sql(&bound.database, stamps),
            arrived,
            "storm {storm}: statements after the acknowledgement"
        );
        let (_, last) = arrived.split_once('|').unwrap();
        let last: u64 = last.parse().unwrap();
        assert!(
            last <= acknowledged,
            "storm {storm}: {last} after {acknowledged}"
        );
    }
}
