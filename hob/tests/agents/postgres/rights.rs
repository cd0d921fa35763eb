//! What a role may do, and the traps of PostgreSQL that would let it do more.

use std::process::Stdio;
use std::time::{Duration, SystemTime};

use hob::protocol::{Access, Attenuate, Postgres, ServiceKind, code};

use super::bound::{Bound, ask};
use super::cluster::Cluster;
use crate::support::{eventually, generation};

/// What PostgreSQL answers to who may not.
const DENIED: &str = "42501";

fn limited(access: Access, schemas: Option<&[&str]>) -> Attenuate {
    Attenuate {
        access: Some(access),
        schemas: schemas.map(|all| all.iter().map(|it| (*it).to_owned()).collect()),
        ..Attenuate::default()
    }
}

/// Offers a database that somebody has made before, with tables in two schemas.
async fn furnished() -> (Bound, &'static Cluster) {
    let cluster = Cluster::shared();
    let bound = Bound::offer(cluster).await;
    cluster.sql("postgres", &format!("create database {}", bound.database));
    cluster.sql(
        &bound.database,
        "create schema sales; create table sales.t (n serial, x int); insert into sales.t(x) values (7);
         create table public.u (n serial, x int); insert into public.u(x) values (8);
         create view public.v as select x from public.u;",
    );
    (bound, cluster)
}

async fn check_denied(bound: &Bound, statements: &[&str]) {
    for statement in statements {
        assert_eq!(
            bound.ask(statement).await,
            Err(DENIED.into()),
            "{statement}"
        );
    }
}

async fn check_answers(bound: &Bound, expected: &[(&str, &str)]) {
    for (statement, answer) in expected {
        assert_eq!(
            bound.ask(statement).await,
            Ok((*answer).into()),
            "{statement}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_reads_and_no_setting_lets_it_write() {
    let (bound, cluster) = furnished().await;
    let role = format!("clerk_{}", bound.database);
    cluster.sql("postgres", &format!("create role {role}"));
    bound.bind(1, limited(Access::Read, None)).await;
    check_answers(
        &bound,
        &[
            ("select x from sales.t", "7"),
            ("select x from v", "8"),
            ("select last_value from u_n_seq", "1"),
        ],
    )
    .await;
    check_denied(
        &bound,
        &[
            "insert into u(x) values (1)",
            "begin read write; insert into u(x) values (1); commit",
            "set default_transaction_read_only = off; update u set x = 1",
            "delete from sales.t",
            "truncate u",
            "select nextval('u_n_seq')",
            "select * from u for update",
            "create table made ()",
            "create schema made",
            // A read-only transaction would not keep these out.
            "create temp table made ()",
            "select lo_create(0)",
            "select lo_creat(-1)",
            "select lo_from_bytea(0, 'x')",
            "copy u to program 'true'",
            "alter role current_user valid until 'infinity'",
            "alter role current_user createdb",
            "delete from gobs.role",
            "table gobs.present",
            "select gobs.version()",
        ],
    )
    .await;
    // What comes later is readable too, whoever made it.
    cluster.sql(
        &bound.database,
        "create schema late; create table late.t as select 9 as x",
    );
    check_answers(&bound, &[("select x from late.t", "9")]).await;
    // Nobody else has lost what PUBLIC had.
    cluster.sql(
        &bound.database,
        &format!("set role {role}; create temp table theirs (); select lo_unlink(lo_create(0))"),
    );
    // What PUBLIC may do, a binding cannot be kept from: so it is not made.
    cluster.sql(&bound.database, "grant insert (x) on u to public");
    let refused = bound
        .try_bind(2, limited(Access::Read, None))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some(code::SERVICE));
    assert!(
        refused
            .to_string()
            .contains("PUBLIC has rights on public.u"),
        "{refused}"
    );
    // The group of readers goes with the last of them.
    let groups = "select rolname from pg_roles, pg_database d
        where datname = current_database() and rolname = 'gobs_read_' || d.oid";
    assert_ne!(cluster.sql(&bound.database, groups), "");
    bound.pair.exporter.revoke(&generation(2)).await.unwrap();
    assert_eq!(cluster.sql(&bound.database, groups), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_changes_rows_and_no_tables() {
    let (bound, cluster) = furnished().await;
    bound.bind(1, limited(Access::Write, None)).await;
    cluster.sql(&bound.database, "create table late (n serial, x int)");
    check_answers(
        &bound,
        &[
            ("insert into late(x) values (5) returning n", "1"),
            ("update u set x = 3 returning x", "3"),
            ("delete from sales.t returning x", "7"),
            (
                "create temp table mine as select 4 as x; select x from mine",
                "4",
            ),
        ],
    )
    .await;
    check_denied(
        &bound,
        &[
            "create table made ()",
            "alter table u add y int",
            "drop schema sales cascade",
        ],
    )
    .await;
    assert_eq!(bound.ask("drop table u").await, Err(DENIED.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_are_all_that_it_sees() {
    let (bound, cluster) = furnished().await;
    bound
        .bind(1, limited(Access::Write, Some(&["sales"])))
        .await;
    check_answers(
        &bound,
        &[("insert into sales.t(x) values (1) returning x", "1")],
    )
    .await;
    check_denied(
        &bound,
        &["table u", "table v", "insert into u(x) values (1)"],
    )
    .await;
    cluster.sql(
        &bound.database,
        "create table sales.late as select 6 as x; create table public.other as select 5 as x;
         alter table sales.t set schema public",
    );
    check_answers(&bound, &[("select x from sales.late", "6")]).await;
    check_denied(&bound, &["table public.t", "table public.other"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_own_together_and_what_they_made_stays() {
    let bound = Bound::start(Attenuate::default()).await;
    let made =
        "create table shared (n serial primary key, x int); insert into shared(x) values (1);
                create schema own; create view own.v as select x from shared;
                create function own.f() returns int language sql as 'select 2';
                create type own.mood as enum ('fine'); select lo_create(4711)";
    bound.ask(made).await.unwrap();
    // The next generation changes what the first has made, while that is still there.
    bound.bind(2, Attenuate::default()).await;
    bound
        .ask("alter table shared add y int default 3; drop type own.mood")
        .await
        .unwrap();
    bound.pair.exporter.revoke(&generation(1)).await.unwrap();
    assert_eq!(
        bound.ask("select x + y + own.f() from shared").await,
        Ok("6".into())
    );
    bound.pair.exporter.revoke(&generation(2)).await.unwrap();
    let cluster = Cluster::shared();
    assert_eq!(cluster.roles(&bound.database), Vec::<String>::new());
    let owners = "select distinct pg_get_userbyid(relowner) from pg_class c
                  where relnamespace in ('public'::regnamespace, 'own'::regnamespace)
                  union select pg_get_userbyid(lomowner) from pg_largeobject_metadata
                  union select pg_get_userbyid(datdba) from pg_database
                  where datname = current_database()";
    let owner = format!("gobs_owner_{}", bound.database);
    assert_eq!(cluster.sql(&bound.database, owners), owner);
    assert_eq!(cluster.sql(&bound.database, "select x from shared"), "1");
    // No command made it whose end the server tells of, so it was the role's own until then.
    let large = "select count(*) from pg_largeobject_metadata where oid = 4711";
    assert_eq!(cluster.sql(&bound.database, large), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_to_a_copy_of_a_database_has_no_rights_in_the_first() {
    let cluster = Cluster::shared();
    let mut first = Bound::start(Attenuate::default()).await;
    first.ask("create table t ()").await.unwrap();
    // The hob's own sessions end with it, and a template must have none.
    first.pair.db.kill();
    let copy = Bound::offer(cluster).await;
    let names = (&copy.database, &first.database);
    eventually("nobody is in it", async || {
        let made = format!("create database {} template {}", names.0, names.1);
        cluster.psql("postgres", &made).status.success()
    })
    .await;
    copy.bind(1, Attenuate::default()).await;
    let owner = format!("gobs_owner_{}", first.database);
    check_denied(
        &copy,
        &[
            &format!("set role {owner}"),
            &format!("alter database {} set search_path = x", first.database),
            &format!("drop database {}", first.database),
        ],
    )
    .await;
    let members = "select count(*) from pg_auth_members where roleid = ";
    let members = cluster.sql("postgres", &format!("{members}'{owner}'::regrole"));
    assert_eq!(members, "1", "its own binding");
    // What is revoked in the copy is the copy's.
    copy.pair.exporter.revoke(&generation(1)).await.unwrap();
    first.pair.db.start_again();
    eventually("the first one goes on", async || {
        first.ask("alter table t add x int").await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_role_does_to_itself_ends_with_its_generation() {
    let bound = Bound::start(Attenuate::default()).await;
    // Its own password, which nobody may need: the hob comes in all the same.
    bound
        .ask("alter role current_user password 'mine'")
        .await
        .unwrap();
    assert_eq!(bound.ask("select 'in'").await, Ok("in".into()));
    bound
        .ask("alter role current_user set search_path = 'mine'")
        .await
        .unwrap();
    assert_eq!(bound.ask("show search_path").await, Ok("mine".into()));
    let other = format!(
        "alter role current_user set role = 'gobs_owner_{}'",
        bound.database
    );
    bound.ask(&other).await.unwrap();
    assert_eq!(bound.ask("select 'in'").await, Ok("in".into()));
    bound.bind(2, Attenuate::default()).await;
    assert_eq!(
        bound.ask("show search_path").await,
        Ok("\"$user\", public".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_generation_has_a_role_with_keys_and_a_limit_of_its_own() {
    let cluster = Cluster::shared();
    let bound = Bound::offer(cluster).await;
    for number in [1, 2] {
        let limit = Attenuate {
            connections_max: Some(number + 2),
            ..Attenuate::default()
        };
        bound.bind(number.into(), limit).await;
    }
    let roles = cluster.roles(&bound.database).join("', '");
    // The server's own limit holds for whoever finds a way around the hob; and what somebody has
    // learned of one generation is of no use for another.
    let statement = format!(
        "select array_agg(rolconnlimit order by rolname), count(distinct rolname),
         count(distinct split_part(rolpassword, '$', 2)),
         count(distinct split_part(rolpassword, '$', 3)),
         bool_or(rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls)
         from pg_authid where rolname in ('{roles}')"
    );
    assert_eq!(cluster.sql("postgres", &statement), "{3,4}|2|2|2|f");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_grant_ends_its_sessions_too() {
    let cluster = Cluster::shared();
    let bound = Bound::offer(cluster).await;
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    // `valid until` would be about the password only.
    // Time enough to be bound and to connect on a busy host.
    let expires = (now + Duration::from_secs(10)).as_secs();
    let until = Attenuate {
        expires: Some(expires),
        ..Attenuate::default()
    };
    bound.bind(1, until).await;
    let client = bound.connect().await.unwrap();
    assert_eq!(ask(&client, "select 'in'").await, Ok("in".into()));
    eventually("the session is cut", async || client.is_closed()).await;
    eventually("the role is gone", async || {
        cluster.roles(&bound.database).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hob_that_is_no_superuser_makes_roles_once_it_was_set_up() {
    let cluster = Cluster::shared();
    let bound = Bound::offer(cluster).await;
    let ServiceKind::Postgres(spec) = cluster.service(&bound.database) else {
        unreachable!("a database")
    };
    // A user of the machine whom the server knows as nobody special.
    let user = "games";
    cluster.sql(
        "postgres",
        &format!(
            "create role {user} login; create database {}",
            bound.database
        ),
    );
    let spec = Postgres {
        admin_user: Some(user.into()),
        create: false,
        ..spec
    };
    bound
        .pair
        .exporter
        .offer("orders", ServiceKind::Postgres(spec))
        .await;
    let refused = bound
        .try_bind(1, Attenuate::default())
        .await
        .unwrap_err()
        .to_string();
    let command = format!(
        "hob setup postgres {user} | sudo -u postgres psql -d {}",
        bound.database
    );
    assert!(refused.contains(&command), "{refused}");

    let mut setup = bound.pair.db.command();
    let setup = setup
        .args(["setup", "postgres", user])
        .stdout(Stdio::piped());
    let statements = setup.output().unwrap().stdout;
    cluster.sql(&bound.database, &String::from_utf8(statements).unwrap());
    bound.bind(1, Attenuate::default()).await;
    assert_eq!(bound.ask("select 'in'").await, Ok("in".into()));
    let special = "select rolsuper or rolcreaterole or rolcreatedb from pg_roles where rolname = ";
    assert_eq!(cluster.sql("postgres", &format!("{special}'{user}'")), "f");
    // It cannot make or take away any role but those of the ledger.
    let untouched = "set role gobs_hob;
                     select coalesce(gobs.close('postgres'), 0), gobs.unmake('postgres') is null,
                     gobs.cut(10), rolcanlogin from pg_roles where rolname = 'postgres'";
    assert_eq!(cluster.sql(&bound.database, untouched), "0|t|0|t");
    // To other databases it cannot go: what the role has there is for somebody else to clear.
    let role = bound.role();
    let other = Cluster::database();
    cluster.sql("postgres", &format!("create database {other}"));
    cluster.sql(
        &other,
        &format!("create table t (); alter table t owner to {role}"),
    );
    let client = bound.connect().await.unwrap();
    let pending = bound
        .pair
        .exporter
        .revoke(&generation(1))
        .await
        .unwrap_err();
    assert_eq!(pending.code(), Some(code::PENDING), "{pending}");
    let text = pending.to_string();
    assert!(
        text.contains(&other) && text.contains(&format!("DROP OWNED BY {role}")),
        "{text}"
    );
    eventually("the session is cut", async || client.is_closed()).await;
    let login = format!("select rolcanlogin from pg_roles where rolname = '{role}'");
    assert_eq!(
        cluster.sql("postgres", &login),
        "f",
        "the access has ended all the same"
    );
    // At once: the hob takes the role away as soon as nothing is left.
    let mend =
        format!("begin; reassign owned by {role} to current_user; drop owned by {role}; commit");
    cluster.sql(&other, &mend);
    let is_gone = async || cluster.roles(&bound.database).is_empty();
    eventually("the hob comes again", is_gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_a_database_s_owner_do_not_reach_the_hob() {
    let cluster = Cluster::shared();
    let mut bound = Bound::offer(cluster).await;
    bound.bind(1, limited(Access::Owner, None)).await;
    let database = bound.database.clone();
    let statements = [
        "create schema evil".to_owned(),
        "create function evil.current_setting(text) returns text language plpgsql as $$ begin
           if pg_catalog.current_setting('is_superuser') = 'on' then
             execute format('alter role %I superuser', (select min(rolname) from
               pg_catalog.pg_roles where rolname like 'gobs\\_%' and rolcanlogin));
           end if;
           return pg_catalog.current_setting($1); end $$"
            .to_owned(),
        format!("alter database {database} set search_path = evil, pg_catalog"),
        format!("alter database {database} set default_transaction_read_only = on"),
        format!("alter database {database} set role = 'pg_monitor'"),
        format!("alter database {database} set standard_conforming_strings = off"),
    ];
    for statement in &statements {
        // Some of them are refused, and that is as good.
        let _ = bound.ask(statement).await;
    }
    // They are for sessions that begin now, and the hob has one that it keeps.
    bound.pair.db.kill();
    bound.pair.db.start_again();
    bound.pair.exporter = bound.pair.boss.client("machine.db").await;
    bound.bind(2, limited(Access::Owner, None)).await;
    bound.pair.exporter.revoke(&generation(2)).await.unwrap();
    let supers = "select count(*) from pg_roles where rolname like 'gobs\\_%' and rolsuper";
    assert_eq!(cluster.sql("postgres", supers), "0");
    assert_eq!(cluster.roles(&database), [""; 0]);
}
