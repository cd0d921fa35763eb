//! Applies that do not go well: faults, Ctrl-C, locks, plan files, damaged state.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Project, Run, eventually};

const APPLY: &[&str] = &["apply", "--auto-approve"];

fn project(configuration: &str) -> Project {
    let project = Project::empty();
    project.write("main.gobs.hcl", configuration);
    project
}

#[track_caller]
fn contains(text: &str, part: &str) {
    assert!(text.contains(part), "{part:?} is not in:\n{text}");
}

/// Returns the addresses in the state, one a line.
fn state(project: &Project) -> String {
    project.gobs(&["state", "list"]).ok().stdout
}

#[test]
fn a_failed_step_stops_only_what_depends_on_it() {
    let project = project(
        "machine \"bad\" {
           provider = dummy
           fault    = \"create:fail-once\"
         }
         machine \"after\" {
           provider   = dummy
           depends_on = [machine.bad]
         }
         machine \"other\" { provider = dummy }",
    );
    let run = project.gobs(APPLY).code(1);
    contains(&run.stderr, "machine.bad");
    contains(&run.stdout, "Resources: 1 added, 0 changed, 0 destroyed.");
    assert_eq!(state(&project), "machine.other\n");
    let run = project.gobs(APPLY).ok();
    contains(
        &run.stdout,
        "Apply complete! Resources: 2 added, 0 changed, 0 destroyed.",
    );
    assert_eq!(
        state(&project),
        "machine.after\nmachine.bad\nmachine.other\n"
    );
}

#[test]
fn a3_an_answer_that_is_lost_is_looked_for_and_never_asked_for_twice() {
    for fault in ["create:lose-answer-once", "create:lose-request-once"] {
        let text = format!("machine \"one\" {{\n provider = dummy\n fault = \"{fault}\"\n}}");
        let project = project(&text);
        let run = project.gobs(APPLY).ok();
        contains(
            &run.stdout,
            "Apply complete! Resources: 1 added, 0 changed, 0 destroyed.",
        );
        let machines = std::fs::read_dir(project.path().join(".gobs/dummy")).expect("machines");
        let machines = machines.filter(|it| {
            it.as_ref()
                .expect("an entry")
                .path()
                .join("machine.json")
                .exists()
        });
        assert_eq!(machines.count(), 1, "{fault}");
        project.gobs(&["plan", "--detailed-exitcode"]).ok();
    }
}

/// Starts an apply whose one machine takes long, and waits until its creation has begun.
fn slow_apply(project: &Project) -> (Child, Pid) {
    let mut command = project.command(APPLY);
    let mut child = command.spawn().expect("the program starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let begun = lines.find(|line| {
        line.as_ref()
            .is_ok_and(|line| line.contains("machine.slow: Creating"))
    });
    begun.expect("the creation begins").expect("a line");
    // The rest is read to its end, so that the program is never stopped by a full pipe.
    std::thread::spawn(move || lines.for_each(drop));
    let pid = Pid::from_child(&child);
    (child, pid)
}

const SLOW: &str = "machine \"slow\" {
   provider = dummy
   fault    = \"create:slow=3s\"
 }
 machine \"later\" {
   provider   = dummy
   depends_on = [machine.slow]
 }";

#[test]
fn ctrl_c_once_finishes_what_runs_and_starts_nothing_more() {
    let project = project(SLOW);
    let (mut child, pid) = slow_apply(&project);
    kill_process(pid, Signal::INT).expect("it runs");
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(1));
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .expect("a pipe")
        .read_to_string(&mut stderr)
        .expect("text");
    assert_eq!(state(&project), "machine.slow\n", "{stderr}");
    let run = project.gobs(APPLY).ok();
    contains(
        &run.stdout,
        "Apply complete! Resources: 1 added, 0 changed, 0 destroyed.",
    );
}

#[test]
fn ctrl_c_twice_leaves_and_the_next_run_settles_what_was_in_doubt() {
    let project = project(SLOW);
    let (mut child, pid) = slow_apply(&project);
    kill_process(pid, Signal::INT).expect("it runs");
    // The second counts only when the first was taken.
    eventually("the program leaves", Duration::from_secs(60), || {
        let _ = kill_process(pid, Signal::INT);
        child.try_wait().expect("a child").is_some()
    });
    let run = project.gobs(APPLY).ok();
    contains(&run.stdout, "Recovered: machine.slow, left by run 1");
    assert_eq!(state(&project), "machine.later\nmachine.slow\n");
    project.gobs(&["plan", "--detailed-exitcode"]).ok();
}

#[test]
fn a7_a_second_writer_is_refused_with_who_holds_the_lock() {
    let project = project(SLOW);
    let (mut child, pid) = slow_apply(&project);
    let run = project.gobs(APPLY).code(1);
    contains(&run.stderr, &format!("{}", pid.as_raw_nonzero()));
    contains(&run.stderr, "apply");
    // Reading needs no lock.
    project.gobs(&["plan"]).ok();
    project.gobs(&["show"]).ok();
    // By now a machine may be there whose hob is not: then a person may want to look.
    let run = project.gobs(&["status"]);
    assert!(matches!(run.code, Some(0 | 3)), "{}", run.stderr);
    kill_process(pid, Signal::KILL).expect("it runs");
    child.wait().expect("it ends");
    project.gobs(APPLY).ok();
}

#[test]
fn a_plan_file_is_applied_exactly_or_refused() {
    let project = project("machine \"one\" { provider = dummy }");
    project.gobs(&["plan", "--out", "plan.bin"]).ok();
    // What the directory says meanwhile does not count.
    project.write("main.gobs.hcl", "machine \"two\" { provider = dummy }");
    project.gobs(&["apply", "plan.bin"]).ok();
    assert_eq!(state(&project), "machine.one\n");
    let run = project.gobs(&["apply", "plan.bin"]).code(1);
    contains(&run.stderr, "machine.one exists now");
    let other = self::project("machine \"one\" { provider = dummy }");
    other.gobs(APPLY).ok();
    std::fs::copy(
        project.path().join("plan.bin"),
        other.path().join("plan.bin"),
    )
    .expect("a copy");
    let run = other.gobs(&["apply", "plan.bin"]).code(1);
    contains(&run.stderr, "plan.bin");
    std::fs::write(project.path().join("plan.bin"), "{\"format\":1").expect("a file");
    project.gobs(&["apply", "plan.bin"]).code(1);
    project.gobs(&["apply", "nowhere.bin"]).code(1);
}

#[test]
fn a9_a_state_that_cannot_be_used_says_why_and_loses_nothing() {
    let project = project("machine \"one\" { provider = dummy }");
    project.gobs(APPLY).ok();
    let path = project.path().join(".gobs/state.db");
    let good = std::fs::read(&path).expect("a state");
    let mode = std::fs::metadata(&path)
        .expect("a state")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    for name in ["state.db-wal", "state.db-shm"] {
        let _ = std::fs::remove_file(project.path().join(".gobs").join(name));
    }
    std::fs::write(&path, b"this is no database, and never was one").expect("a file");
    let run = project.gobs(APPLY).code(1);
    contains(&run.stderr, "is not a state file of gobs");
    let mut newer = good.clone();
    newer[60..64].copy_from_slice(&9_999_u32.to_be_bytes());
    std::fs::write(&path, newer).expect("a file");
    let run = project.gobs(&["plan"]).code(1);
    contains(&run.stderr, "has format 9999");
    std::fs::write(&path, good).expect("a file");
    let key = project.path().join(".gobs/key");
    let kept = std::fs::read(&key).expect("a key");
    std::fs::remove_file(&key).expect("a key");
    let run = project.gobs(APPLY).code(1);
    contains(&run.stderr, "key");
    std::fs::write(&key, kept).expect("a key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("a mode");
    project.gobs(APPLY).code(1);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("a mode");
    let run = project.gobs(APPLY).ok();
    contains(&run.stdout, "No changes.");

    // What another user cannot look at is not taken for nothing.
    for command in ["plan", "output", "show"] {
        let Some(run) = as_nobody(&project, command) else {
            return; // Only root can be somebody else.
        };
        let run = run.code(1);
        contains(&run.stderr, "Permission denied");
        assert_eq!(run.stdout, "", "{command}");
    }
}

/// Runs the program as a user to whom nothing of the project's state belongs.
fn as_nobody(project: &Project, command: &str) -> Option<Run> {
    const NOBODY: &[&str] = &["--reuid=65534", "--regid=65534", "--clear-groups"];
    let may = Command::new("setpriv").args(NOBODY).arg("true").output();
    may.ok().filter(|it| it.status.success())?;
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(project.path(), open).expect("a mode");
    let outside = project.command(&[]);
    // The program itself may be in a directory that is closed to others.
    let program = project.path().join("program");
    // Not by this process: what other tests start meanwhile would have it open to write for a
    // moment, and the kernel runs no such file.
    let mut copy = Command::new("cp");
    copy.arg(outside.get_program()).arg(&program);
    assert!(copy.status().expect("cp").success());
    let mut run = Command::new("setpriv");
    run.args(NOBODY)
        .arg(program)
        .arg(command)
        .current_dir(project.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Some(Run::of(run))
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let project = project(&format!(
        "machine \"db\" {{
           provider = dummy
           service \"any\" {{ tcp = \"127.0.0.1:{port}\" }}
         }}
         machine \"app\" {{ provider = dummy }}
         binding \"any\" {{
           from = machine.db.service.any
           to   = machine.app
           expose {{ tcp = \"127.0.0.1:{port}\" }}
         }}"
    ));
    let run = project.gobs(APPLY).code(1);
    contains(&run.stderr, &port.to_string());
    contains(&run.stderr, "binding.any");
    assert_eq!(
        state(&project),
        "machine.app\nmachine.db\nmachine.db.service.any\n"
    );

    // The boss keeps its port, since hobs know it.
    let boss = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = boss.local_addr().expect("an address").port();
    let text = format!(
        "gobs {{
           boss {{ listen = \"127.0.0.1:{port}\" }}
         }}
         machine \"one\" {{ provider = dummy }}"
    );
    let other = self::project(&text);
    let run = other.gobs(APPLY).code(1);
    contains(&run.stderr, &format!("cannot listen on 127.0.0.1:{port}"));
    drop(boss);
    other.gobs(APPLY).ok();

    // So does a hob; one that cannot listen ends, and nobody waits for it.
    let hob = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = hob.local_addr().expect("an address").port();
    let text = format!(
        "machine \"one\" {{
           provider = dummy
           hob {{ listen = \"127.0.0.1:{port}\" }}
         }}"
    );
    let third = self::project(&text);
    let run = third.gobs(APPLY).code(1);
    contains(&run.stderr, "its hob has ended before it called home");
    contains(
        &run.stderr,
        &format!("127.0.0.1:{port} cannot be listened on"),
    );
    assert_eq!(state(&third), "machine.one\n");
    drop(hob);
    let run = third.gobs(APPLY).ok();
    contains(&run.stdout, "because its hob never called home");
    third.gobs(&["plan", "--detailed-exitcode"]).ok();
}

#[test]
fn nothing_of_a_machine_holds_the_pipe_of_an_apply() {
    let project = project("machine \"one\" { provider = dummy }");
    let mut command = project.command(APPLY);
    command.stdin(Stdio::null());
    // Run::of reads both pipes to their end, which comes only when nobody holds them.
    Run::of(command).ok();
}

/// There, gobs belongs to a session whose leader, outside, has no number.
#[test]
fn machines_come_and_go_in_a_container() {
    const CONTAINER: &[&str] = &[
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--mount-proc",
    ];
    let may = Command::new("unshare").args(CONTAINER).arg("true").output();
    if !may.is_ok_and(|it| it.status.success()) {
        return; // This host gives nobody a container.
    }
    let project = project("machine \"one\" { provider = dummy }");
    let script = "\"$0\" apply --auto-approve && \"$0\" destroy --auto-approve";
    let outside = project.command(&[]);
    let mut command = Command::new("unshare");
    command
        .args(CONTAINER)
        .args(["sh", "-c", script])
        .arg(outside.get_program())
        .current_dir(project.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let run = Run::of(command).ok();
    contains(&run.stdout, "Destroy complete! Resources: 1 destroyed.");
}

#[test]
fn an_image_rebuilds_and_grants_both_ends_anew() {
    let project = Project::empty();
    let root = project.path().display().to_string();
    let text = |image: &str, zone: &str| {
        format!(
            "machine \"db\" {{
               provider = dummy
               image    = \"{image}\"
               run      = [\"exec perl {root}/program.pl {root}/db.sock\"]
               service \"hello\" {{ unix = \"{root}/db.sock\" }}
             }}
             machine \"app\" {{
               provider = dummy
               zone     = \"{zone}\"
             }}
             binding \"hello\" {{
               from = machine.db.service.hello
               to   = machine.app
             }}"
        )
    };
    project.write("main.gobs.hcl", &text("a", "z1"));
    project.write(
        "program.pl",
        "use IO::Socket::UNIX; unlink $ARGV[0];
         my $server = IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 16) or die;
         while (my $client = $server->accept) { print $client qq(hello\\n); close $client }",
    );
    project.gobs(APPLY).ok();
    project.write("main.gobs.hcl", &text("b", "z1"));
    let run = project.gobs(APPLY).ok();
    let summary =
        "Apply complete! Resources: 0 added, 1 changed, 0 destroyed. Bindings: 1 granted.";
    contains(&run.stdout, summary);
    project.gobs(&["plan", "--detailed-exitcode"]).ok();
    project.write("main.gobs.hcl", &text("b", "z2"));
    let run = project.gobs(APPLY).ok();
    let summary =
        "Apply complete! Resources: 1 added, 0 changed, 1 destroyed. Bindings: 1 granted.";
    contains(&run.stdout, summary);
    project.gobs(&["plan", "--detailed-exitcode"]).ok();
}

#[test]
fn a_hob_that_was_killed_is_named_and_nothing_is_lost() {
    let project = Project::empty();
    let root = project.path().display().to_string();
    let text = |bound: bool| {
        let binding = "binding \"hello\" {
               from = machine.db.service.hello
               to   = machine.app
             }";
        format!(
            "machine \"db\" {{
               provider = dummy
               service \"hello\" {{ unix = \"{root}/db.sock\" }}
             }}
             machine \"app\" {{ provider = dummy }}
             {}",
            if bound { binding } else { "" }
        )
    };
    let _service = std::os::unix::net::UnixListener::bind(project.path().join("db.sock"));
    project.write("main.gobs.hcl", &text(false));
    project.gobs(APPLY).ok();
    let db = std::fs::read_dir(project.path().join(".gobs/dummy")).expect("machines");
    let mut db = db.map(|it| it.expect("an entry").path()).filter(|path| {
        let record = std::fs::read_to_string(path.join("record.json")).unwrap_or_default();
        record.contains("machine.db")
    });
    let db = db.next().expect("machine.db has a directory");
    let lock = std::fs::read_to_string(db.join("hob/lock")).expect("a lock");
    let pid = lock
        .split_whitespace()
        .next()
        .and_then(|pid| pid.parse().ok());
    let pid = pid.and_then(Pid::from_raw).expect("a process");
    kill_process(pid, Signal::KILL).expect("it runs");

    project.write("main.gobs.hcl", &text(true));
    let run = project.gobs(APPLY).code(1);
    contains(&run.stderr, "the hob on machine.db was not reached");
    let run = project.gobs(&["status"]).code(3);
    contains(&run.stdout, "not reached");

    let mut hob = project.command(&["hob", "--dir", &db.display().to_string()]);
    let mut hob = hob
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the agent");
    let run = project.gobs(APPLY).ok();
    contains(&run.stdout, "Bindings: 1 granted.");
    project.gobs(&["destroy", "--auto-approve"]).ok();
    hob.wait().expect("the hob has ended");
}

#[test]
fn drift_is_shown_until_it_is_settled() {
    let project = project(
        "machine \"one\" {
           provider = dummy
           size     = \"small\"
         }",
    );
    project.gobs(APPLY).ok();
    let machines = std::fs::read_dir(project.path().join(".gobs/dummy")).expect("machines");
    let records = machines.map(|it| it.expect("an entry").path().join("record.json"));
    let record = records
        .filter(|path| path.exists())
        .last()
        .expect("a record");
    let text = std::fs::read_to_string(&record).expect("a record");
    let changed = text.replace("\"small\"", "\"huge\"");
    assert_ne!(text, changed);
    std::fs::write(&record, changed).expect("a file");

    let run = project.gobs(&["plan", "--detailed-exitcode"]).code(2);
    contains(&run.stdout, "huge");
    // Nobody approves it: what was seen is not forgotten.
    let run = project.gobs(&["apply"]).code(1);
    contains(&run.stdout, "huge");
    project.gobs(&["plan", "--detailed-exitcode"]).code(2);
    let run = project.gobs(APPLY).ok();
    contains(
        &run.stdout,
        "Apply complete! Resources: 0 added, 1 changed, 0 destroyed.",
    );
    project.gobs(&["plan", "--detailed-exitcode"]).code(0);
}

/// Two machines, a service of `db` at `{root}/db.sock`, and bindings to `app`.
fn between(root: &str, bindings: &str) -> String {
    format!(
        "machine \"db\" {{
           provider = dummy
           service \"hello\" {{
             unix  = \"{root}/db.sock\"
             ready = \"1s\"
           }}
         }}
         machine \"app\" {{ provider = dummy }}
         {bindings}"
    )
}

fn binding(label: &str, name: &str) -> String {
    format!(
        "binding \"{label}\" {{
           from = machine.db.service.hello
           to   = machine.app
           as   = \"{name}\"
         }}\n"
    )
}

/// Returns the directory of one machine.
fn directory_of(project: &Project, address: &str) -> std::path::PathBuf {
    let machines = std::fs::read_dir(project.path().join(".gobs/dummy")).expect("machines");
    let mut found = machines
        .map(|it| it.expect("an entry").path())
        .filter(|path| {
            let record = std::fs::read_to_string(path.join("record.json")).unwrap_or_default();
            record.contains(&format!("{address:?}"))
        });
    found.next().expect("the machine has a directory")
}

fn kill_hob(machine: &std::path::Path) {
    let lock = std::fs::read_to_string(machine.join("hob/lock")).expect("a lock");
    let pid = lock
        .split_whitespace()
        .next()
        .and_then(|pid| pid.parse().ok());
    let pid = pid.and_then(Pid::from_raw).expect("a process");
    kill_process(pid, Signal::KILL).expect("it runs");
}

/// Returns the names of the bindings that a machine's hob keeps files of.
fn names_on(machine: &std::path::Path) -> Vec<String> {
    let text = std::fs::read_to_string(machine.join("machine.json")).expect("a description");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let runtime = json["runtime"].as_str().expect("a path").to_owned();
    let Ok(entries) = std::fs::read_dir(format!("{runtime}/bindings")) else {
        return Vec::new();
    };
    let names = entries.map(|it| it.expect("an entry").file_name());
    let mut names: Vec<_> = names
        .map(|name| name.into_string().expect("text"))
        .collect();
    names.sort();
    names
}

#[test]
fn what_does_not_answer_is_waited_for_and_tried_by_the_next_apply() {
    let project = Project::empty();
    let root = project.path().display().to_string();
    let socket = project.path().join("db.sock");
    let listen = || std::os::unix::net::UnixListener::bind(&socket).expect("listens");
    // Who waits for longer is told why, and who gives up too.
    let patient = between(&root, "").replace("\"1s\"", "\"5m\"");
    project.write("main.gobs.hcl", &patient);
    let run = project.start(APPLY);
    run.wait_for("db.sock failed: No such file");
    run.signal(rustix::process::Signal::INT);
    let run = run.end().code(1);
    contains(&run.stderr, "machine.db.service.hello did not answer yet (");
    contains(&run.stderr, "db.sock failed: No such file");

    project.write("main.gobs.hcl", &between(&root, ""));
    let run = project.gobs(APPLY).code(1);
    contains(&run.stderr, "with machine.db.service.hello");
    contains(&run.stderr, "db.sock failed: No such file");
    // The hob's own log is among them.
    contains(&run.stderr, "The end of the logs of machine.db");
    contains(&run.stderr, "registered machine=\"machine.db\"");
    let service = listen();
    project.gobs(APPLY).ok();

    drop(service);
    std::fs::remove_file(&socket).expect("removed");
    project.write("main.gobs.hcl", &between(&root, &binding("x", "x")));
    let run = project.gobs(APPLY).code(1);
    contains(&run.stderr, "did not answer");
    let _service = listen();
    let run = project.gobs(APPLY).ok();
    contains(&run.stdout, "Bindings: 1 granted");
    project.gobs(&["plan", "--detailed-exitcode"]).ok();
}

#[test]
fn names_of_bindings_change_and_are_exchanged() {
    let project = Project::empty();
    let root = project.path().display().to_string();
    let _service = std::os::unix::net::UnixListener::bind(project.path().join("db.sock"));
    let declare = |names: [&str; 2]| {
        let bindings = binding("x", names[0]) + &binding("y", names[1]);
        project.write("main.gobs.hcl", &between(&root, &bindings));
        project.gobs(APPLY).ok();
        project.gobs(&["plan", "--detailed-exitcode"]).ok();
    };
    declare(["one", "two"]);
    let app = directory_of(&project, "machine.app");
    assert_eq!(names_on(&app), ["one", "two"]);
    declare(["three", "two"]);
    assert_eq!(names_on(&app), ["three", "two"]);
    declare(["two", "three"]);
    assert_eq!(names_on(&app), ["three", "two"]);
    declare(["two", "one"]);
    assert_eq!(names_on(&app), ["one", "two"]);
}

#[test]
fn s6_a_receiver_that_was_away_gives_the_name_up_when_it_is_back() {
    let project = Project::empty();
    let root = project.path().display().to_string();
    let _service = std::os::unix::net::UnixListener::bind(project.path().join("db.sock"));
    project.write("main.gobs.hcl", &between(&root, &binding("x", "db")));
    project.gobs(APPLY).ok();
    let app = directory_of(&project, "machine.app");
    kill_hob(&app);
    project.write("main.gobs.hcl", &between(&root, ""));
    project.gobs(APPLY).code(1);
    contains(&state(&project), "binding.x");

    let mut hob = project.command(&["hob", "--dir", &app.display().to_string()]);
    let mut hob = hob
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the agent");
    project.gobs(APPLY).ok();
    assert_eq!(names_on(&app), Vec::<String>::new());
    project.write("main.gobs.hcl", &between(&root, &binding("y", "db")));
    project.gobs(APPLY).ok();
    project.gobs(&["destroy", "--auto-approve"]).ok();
    hob.wait().expect("the hob has ended");
}

#[test]
fn a9_a_state_that_was_emptied_is_no_new_project() {
    let project = project("machine \"one\" { provider = dummy }");
    project.gobs(APPLY).ok();
    let path = project.path().join(".gobs/state.db");
    let good = std::fs::read(&path).expect("a state");
    std::fs::write(&path, b"").expect("a file");
    for args in [&["plan"][..], APPLY] {
        let run = project.gobs(args).code(1);
        contains(&run.stderr, "it is empty");
        contains(&run.stderr, "backup");
    }
    std::fs::write(&path, good).expect("a file");
    project.gobs(&["plan", "--detailed-exitcode"]).ok();
}

#[test]
fn many_simulated_steps_in_doubt_are_settled_at_once() {
    let project = project(
        "provider \"dummy\" { simulated = true }
         machine \"many\" {
           provider = dummy
           count    = 500
         }",
    );
    let mut command = project.command(APPLY);
    command.env("GOBS_TEST_CRASH_AT", "after:1");
    Run::of(command);
    let run = project.gobs(&["plan"]).ok();
    contains(&run.stderr, "and 499 more");
    let run = project.gobs(APPLY).ok();
    contains(&run.stdout, "Resources: 500 added");
}

#[test]
fn validate_says_all_that_needs_no_state() {
    let project = project(
        "machine \"db\" {
           provider = dummy
           service \"orders\" { tcp = \"127.0.0.1:5432\" }
         }
         machine \"app\" {
           provider = dummy
           hob { enabled = false }
         }
         binding \"app\" {
           from = machine.db.service.orders
           to   = machine.app
         }
         binding \"own\" {
           from = machine.db.service.orders
           to   = machine.db
         }",
    );
    let run = project.gobs(&["validate"]).code(1);
    contains(&run.stderr, "Binding without a hob");
    contains(&run.stderr, "Binding of a machine to itself");
}
