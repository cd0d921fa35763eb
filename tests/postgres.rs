//! A database of a real PostgreSQL server, from the language to a program that uses it.

use std::process::Command;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::support::{Project, eventually};

/// Declares two databases of one server, with a binding from one of them.
fn configuration(cluster: &Cluster, databases: [&str; 2], from: Option<&str>) -> String {
    let (directory, port) = cluster.place();
    let socket = format!("{}/.s.PGSQL.{port}", directory.display());
    let service = |name: &str| {
        format!(
            "service \"{name}\" {{
               postgres {{
                 database = \"{name}\"
                 create   = true
                 socket   = \"{socket}\"
               }}
             }}"
        )
    };
    let [one, two] = databases.map(service);
    let bound = from.map_or(String::new(), |from| {
        format!(
            "binding \"db\" {{
               from = machine.db.service.{from}
               to   = machine.app
               attenuate {{ access = \"write\" }}
             }}
             output \"directory\" {{ value = binding.db.directory }}"
        )
    });
    format!(
        "machine \"db\" {{
           provider = dummy
           {one}
           {two}
         }}
         machine \"app\" {{ provider = dummy }}
         {bound}"
    )
}

/// Returns what a program says, that was told the directory of its binding and nothing else.
fn ask(project: &Project, statement: &str) -> String {
    let directory = project.gobs(&["output", "--raw", "directory"]).ok().stdout;
    let read = |file: &str| {
        let path = format!("{}/{file}", directory.trim());
        std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{file}: {error}"))
    };
    assert_eq!(read("type"), "postgresql");
    let mut psql = Command::new("psql");
    psql.env_clear().env("PATH", "/usr/bin:/bin");
    let output = psql
        .args(["-XAtc", statement, &read("uri")])
        .output()
        .expect("psql");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

const APPLY: &[&str] = &["apply", "--auto-approve"];

#[test]
fn s1_a_program_lands_in_its_database_and_a_move_and_an_unbind_leave_no_role() {
    let cluster = Cluster::shared();
    let databases = [Cluster::database(), Cluster::database()];
    let [one, two] = databases.each_ref().map(String::as_str);
    let project = Project::empty();
    let declare = |from| project.write("main.gobs.hcl", &configuration(cluster, [one, two], from));
    declare(Some(one));
    project.gobs(APPLY).ok();
    let who = "select current_database(), session_user = current_user";
    assert_eq!(ask(&project, who), format!("{one}|t"));
    assert_eq!(cluster.roles(one).len(), 1);
    project.gobs(&["plan", "--detailed-exitcode"]).ok();

    declare(Some(two));
    project.gobs(APPLY).ok();
    assert_eq!(ask(&project, who), format!("{two}|t"));
    assert_eq!((cluster.roles(one).len(), cluster.roles(two).len()), (0, 1));

    declare(None);
    project.gobs(APPLY).ok();
    assert_eq!(cluster.roles(two).len(), 0);
    project.gobs(&["destroy", "--auto-approve"]).ok();
}

#[test]
fn a_rebuild_and_a_destroy_of_the_database_s_machine_leave_no_role_at_a_server_that_outlives_it() {
    let cluster = Cluster::shared();
    let databases = [Cluster::database(), Cluster::database()];
    let [one, two] = databases.each_ref().map(String::as_str);
    let project = Project::empty();
    let text = configuration(cluster, [one, two], Some(one));
    project.write("main.gobs.hcl", &text);
    project.gobs(APPLY).ok();
    assert_eq!(cluster.roles(one).len(), 1);

    let rebuilt = text.replacen("provider = dummy", "provider = dummy\nimage = \"b\"", 1);
    project.write("main.gobs.hcl", &rebuilt);
    project.gobs(APPLY).ok();
    assert_eq!(cluster.roles(one).len(), 1, "that of the new grant");
    assert_eq!(ask(&project, "select current_database()"), one);

    let run = project.gobs(&["destroy", "--auto-approve"]).ok();
    assert_eq!(cluster.roles(one).len(), 0, "{run:?}");
}

#[test]
fn a_move_away_from_a_machine_that_ends_drains_and_leaves_no_role() {
    let cluster = Cluster::shared();
    let databases = [Cluster::database(), Cluster::database()];
    let [one, two] = databases.each_ref().map(String::as_str);
    let project = Project::empty();
    let text = configuration(cluster, [one, two], Some(two));
    let old = "machine \"old\" {\n  provider = dummy\n".to_owned();
    let (begin, end) = (
        text.find("service").unwrap(),
        text.find("machine \"app\"").unwrap(),
    );
    let first = text.replace(
        &format!("machine.db.service.{two}"),
        &format!("machine.old.service.{one}"),
    );
    project.write(
        "main.gobs.hcl",
        &format!("{old}{}\n{first}", &text[begin..end]),
    );
    project.gobs(APPLY).ok();
    assert_eq!(ask(&project, "select current_database()"), one);
    assert_eq!(cluster.roles(one).len(), 1);

    std::thread::scope(|scope| {
        let last = "select pg_sleep(3); select current_database()";
        let lives = scope.spawn(|| ask(&project, last));
        let asleep = "select count(*) from pg_stat_activity where query like 'select pg_sleep(3)%'
                      and datname = current_database() and pid <> pg_backend_pid()";
        eventually("a program is busy", Duration::from_secs(60), || {
            cluster.sql(one, asleep) == "1"
        });
        project.write("main.gobs.hcl", &text);
        project.gobs(APPLY).ok();
        let said = lives.join().unwrap();
        assert!(said.ends_with(one), "{said}");
    });
    assert_eq!(ask(&project, "select current_database()"), two);
    assert_eq!(cluster.roles(one).len(), 0);
    project.gobs(&["destroy", "--auto-approve"]).ok();
}

#[test]
fn rights_that_cannot_be_changed_now_leave_those_before_and_a_busy_server_is_waited_for() {
    let cluster = Cluster::shared();
    let databases = [Cluster::database(), Cluster::database()];
    let [one, two] = databases.each_ref().map(String::as_str);
    let project = Project::empty();
    let text = configuration(cluster, [one, two], Some(one));
    project.write("main.gobs.hcl", &text);
    project.gobs(APPLY).ok();
    let user = ask(&project, "select session_user");

    let limits = |limits: &str| text.replace("access = \"write\"", limits);
    project.write("main.gobs.hcl", &limits("schemas = [\"none\"]"));
    let run = project.gobs(APPLY).code(1);
    for said in ["has no schema \"none\"", "What it had before stays in use."] {
        assert!(run.stderr.contains(said), "{}", run.stderr);
    }
    assert_eq!(ask(&project, "select session_user"), user);
    assert_eq!(cluster.roles(one).len(), 1, "nothing is left of the other");

    // Longer than the hob waits for a lock, so that its first try fails.
    let hold = "begin; lock table gobs.role; select pg_sleep(4)";
    std::thread::scope(|scope| {
        let holding = scope.spawn(|| cluster.sql(one, hold));
        let locked = "select count(*) from pg_locks where relation = 'gobs.role'::regclass \
                      and mode = 'AccessExclusiveLock'";
        eventually("the ledger is locked", Duration::from_secs(60), || {
            cluster.sql(one, locked) == "1" || holding.is_finished()
        });
        project.write("main.gobs.hcl", &limits("access = \"read\""));
        project.gobs(APPLY).ok();
    });
    assert_ne!(ask(&project, "select session_user"), user);
    assert_eq!(cluster.roles(one).len(), 1);
    project.gobs(&["plan", "--detailed-exitcode"]).ok();
    project.gobs(&["destroy", "--auto-approve"]).ok();
}
