//! Bindings made from others, bindings that lead elsewhere, and who holds what: with real hobs.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{Project, eventually, free_port, hob_pid, is_dead};

const APPLY: &[&str] = &["apply", "--auto-approve"];

/// How long a condition is waited for.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// How long after its end something may still be heard of a stream: a second on a calm machine.
const CUT_MAX: Duration = Duration::from_secs(5);

/// Listens, and answers each byte with its own name.
fn service(name: u8) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&[name]).is_ok() {}
            });
        }
    });
    port
}

/// Sends a byte and returns the name that answers; nothing where the stream is over.
fn ask(stream: &mut (impl Read + Write)) -> Option<u8> {
    let mut byte = [b'?'];
    stream.write_all(&byte).ok()?;
    stream.read_exact(&mut byte).ok()?;
    Some(byte[0])
}

fn tcp(port: u16) -> Option<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(WAIT_MAX)).ok()?;
    Some(stream)
}

fn unix(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).expect("connected");
    stream.set_read_timeout(Some(WAIT_MAX)).expect("a timeout");
    stream
}

/// Sends a byte as another user, and returns what is answered.
fn ask_as(user: &str, socket: &Path) -> String {
    const PROGRAM: &str = r"
        use strict; use IO::Socket::UNIX;
        my $socket = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die qq($!);
        $SIG{PIPE} = 'IGNORE';
        syswrite $socket, '?';
        sysread $socket, my $byte, 1;
        print $byte // '';
    ";
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--clear-groups", "perl", "-e", PROGRAM]);
    let output = command.arg(socket).output().expect("setpriv");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

fn now_s() -> u64 {
    let now = std::time::UNIX_EPOCH.elapsed();
    now.expect("after 1970").as_secs()
}

fn ask_anew(port: u16) -> Option<u8> {
    ask(&mut tcp(port)?)
}

fn machines(services: [u16; 2]) -> String {
    let [one, two] = services;
    format!(
        "machine \"db\" {{
           provider = dummy
           service \"one\" {{ tcp = \"127.0.0.1:{one}\" }}
           service \"two\" {{ tcp = \"127.0.0.1:{two}\" }}
         }}
         machine \"app\" {{ provider = dummy }}
         machine \"report\" {{ provider = dummy }}\n"
    )
}

fn binding(label: &str, from: &str, to: &str, port: u16, more: &str) -> String {
    format!(
        "binding \"{label}\" {{
           from = {from}
           to   = machine.{to}
           expose {{ tcp = \"127.0.0.1:{port}\" }}
           {more}
         }}\n"
    )
}

#[test]
fn s7_what_is_given_on_ends_with_what_it_is_made_from() {
    let project = Project::empty();
    let machines = machines([service(b'1'), service(b'2')]);
    let (app, report) = (free_port(), free_port());
    let of_app = |limit: u32| {
        let more = format!("attenuate {{ connections_max = {limit} }}");
        binding("app", "machine.db.service.one", "app", app, &more)
    };
    let of_report = binding("report", "binding.app", "report", report, "");
    project.write(
        "main.gobs.hcl",
        &(machines.clone() + &of_app(1) + &of_report),
    );
    project.gobs(APPLY).ok();
    project.gobs(&["plan", "--detailed-exitcode"]).ok();

    let mut live = tcp(report).expect("connected");
    assert_eq!(ask(&mut live), Some(b'1'));
    // It counts under the limit of what it is made from.
    assert_eq!(ask_anew(app), None);

    let who = project.gobs(&["who", "machine.db.service.one"]).ok().stdout;
    let lines: Vec<&str> = who.lines().collect();
    assert!(
        lines[1].contains("binding.app     machine.app     1 connections at most"),
        "{who}"
    );
    assert!(
        lines[2].contains("binding.report  machine.report  1 connections at most"),
        "{who}"
    );
    assert!(lines[2].contains("made from binding.app"), "{who}");
    assert!(lines[2].ends_with("1 stream"), "{who}");
    let json = project
        .gobs(&["who", "machine.db.service.one", "--json"])
        .ok();
    let json: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(json["holders"][1]["rights"]["connections_max"], 1);
    let nobody = project.gobs(&["who", "machine.db.service.two"]).ok().stdout;
    assert_eq!(nobody, "Nobody holds machine.db.service.two.\n");
    let wrong = project.gobs(&["who", "machine.db.service.three"]).code(1);
    assert!(
        wrong.stderr.contains("machine.db.service.one"),
        "{}",
        wrong.stderr
    );

    // Granted again with another limit, the one it was made from ends, and it with that.
    project.write(
        "main.gobs.hcl",
        &(machines.clone() + &of_app(2) + &of_report),
    );
    let run = project.gobs(APPLY).ok();
    assert!(run.stdout.contains("Bindings: 2 granted"), "{}", run.stdout);
    assert_eq!(
        ask(&mut live),
        None,
        "what was made from an ended grant goes on"
    );
    assert_eq!(ask_anew(report), Some(b'1'));
    project.gobs(&["plan", "--detailed-exitcode"]).ok();

    project.write("main.gobs.hcl", &machines);
    let run = project.gobs(APPLY).ok();
    assert!(run.stdout.contains("Bindings: 2 revoked"), "{}", run.stdout);
    assert_eq!(ask_anew(report), None);
    project.gobs(&["destroy", "--auto-approve"]).ok();
}

#[test]
fn a_move_lets_live_streams_drain_and_then_cuts_them() {
    let project = Project::empty();
    let machines = machines([service(b'1'), service(b'2')]);
    let port = free_port();
    let declare = |service: &str, drain: &str| {
        let from = format!("machine.db.service.{service}");
        let more = format!("drain = \"{drain}\"");
        let text = machines.clone() + &binding("db", &from, "app", port, &more);
        project.write("main.gobs.hcl", &text);
    };
    declare("one", "1h");
    project.gobs(APPLY).ok();
    let mut live = tcp(port).expect("connected");
    assert_eq!(ask(&mut live), Some(b'1'));

    declare("two", "1h");
    // A plan asks the hobs: it runs beside nothing here, and beside the apply below.
    let plan = || project.gobs(&["plan"]).ok().stdout;
    let counted = "# (1 live stream drains for 3600s)";
    assert!(plan().contains(counted), "{}", plan());
    let run = project.start(APPLY);
    run.wait_for("Waiting for live streams to end");
    // The address leads elsewhere already, and who was there is still served.
    eventually("the listener has switched", WAIT_MAX, || {
        ask_anew(port) == Some(b'2')
    });
    assert_eq!(ask(&mut live), Some(b'1'));
    assert!(plan().contains(counted), "{}", plan());
    drop(live);
    let run = run.end().ok();
    assert!(run.stdout.contains("Bindings: 1 moved"), "{}", run.stdout);
    assert!(run.stdout.contains(counted), "{}", run.stdout);

    let mut live = tcp(port).expect("connected");
    assert_eq!(ask(&mut live), Some(b'2'));
    declare("one", "1s");
    let asked = Instant::now();
    project.gobs(APPLY).ok();
    assert!(
        asked.elapsed() >= Duration::from_secs(1),
        "nothing was drained"
    );
    assert_eq!(ask(&mut live), None, "a stream outlives its grant");
    assert_eq!(ask_anew(port), Some(b'1'));
    project.gobs(&["plan", "--detailed-exitcode"]).ok();
    project.gobs(&["destroy", "--auto-approve"]).ok();
}

#[test]
fn s6_a_move_away_from_a_machine_that_does_not_answer_is_not_forgotten() {
    let project = Project::empty();
    let other = format!(
        "machine \"other\" {{
           provider = dummy
           service \"three\" {{ tcp = \"127.0.0.1:{}\" }}
         }}\n",
        service(b'3')
    );
    let machines = machines([service(b'1'), service(b'2')]) + &other;
    let port = free_port();
    let declare = |from: &str| {
        let text = machines.clone() + &binding("db", from, "app", port, "drain = \"1s\"");
        project.write("main.gobs.hcl", &text);
    };
    declare("machine.db.service.one");
    project.gobs(APPLY).ok();
    assert_eq!(ask_anew(port), Some(b'1'));
    let db = project.machine("db");
    let pid = hob_pid(&db).expect("a hob runs");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it is there");
    eventually("the hob is dead", WAIT_MAX, || is_dead(pid));

    declare("machine.other.service.three");
    let run = project.gobs(APPLY).code(1);
    let said = "Old grant not revoked";
    assert!(run.stderr.contains(said), "{}", run.stderr);
    assert_eq!(ask_anew(port), Some(b'3'), "programs are led to the other");
    let mut hob = project.start_hob(&db);
    project.gobs(APPLY).ok();
    let who = project.gobs(&["who", "machine.db.service.one"]).ok().stdout;
    assert_eq!(who, "Nobody holds machine.db.service.one.\n");
    assert_eq!(ask_anew(port), Some(b'3'));
    project.gobs(&["plan", "--detailed-exitcode"]).ok();
    project.gobs(&["destroy", "--auto-approve"]).ok();
    hob.wait().expect("the hob has ended");
}

#[test]
fn a_grant_that_cannot_take_over_leaves_the_one_before_in_use() {
    let project = Project::empty();
    let two = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = two.local_addr().expect("an address");
    let machines = machines([service(b'1'), at.port()]);
    let machines = machines.replace("\"two\" {", "\"two\" {\nready = \"1s\"\n");
    let machines = machines.replace("\" }\n         }", "\"\n}\n         }");
    let port = free_port();
    let declare = |service: &str, more: &str| {
        let from = format!("machine.db.service.{service}");
        let more = format!("drain = \"1s\"\n{more}");
        let text = machines.clone() + &binding("db", &from, "app", port, &more);
        project.write("main.gobs.hcl", &text);
    };
    declare("one", "");
    project.gobs(APPLY).ok();
    let mut live = tcp(port).expect("connected");
    let mut goes_on = |what: &str| {
        assert_eq!(ask(&mut live), Some(b'1'), "{what}: its streams");
        assert_eq!(ask_anew(port), Some(b'1'), "{what}: its address");
        let status = project.gobs(&["status"]).ok().stdout;
        assert!(status.contains("binding.db  live"), "{what}: {status}");
    };

    // The exporter makes it, and the importer cannot take it.
    declare(
        "one",
        "attenuate { connections_max = 9 }\nexpose { unix = \"/proc/none/socket\" }",
    );
    let run = project.gobs(APPLY).code(1);
    let stays = "What it had before stays in use.";
    assert!(run.stderr.contains(stays), "{}", run.stderr);
    goes_on("a grant that cannot be taken");

    // The other service ends, which nobody has been told of.
    drop(two);
    declare("two", "");
    let run = project.gobs(APPLY).code(1);
    assert!(run.stderr.contains("did not answer"), "{}", run.stderr);
    assert!(run.stderr.contains(stays), "{}", run.stderr);
    goes_on("a move to what does not answer");

    let _two = TcpListener::bind(at).expect("the port again");
    let run = project.gobs(APPLY).ok();
    assert!(run.stdout.contains("Bindings: 1 moved"), "{}", run.stdout);
    assert_eq!(ask(&mut live), None, "a stream outlives its grant");
    project.gobs(&["plan", "--detailed-exitcode"]).ok();
    project.gobs(&["destroy", "--auto-approve"]).ok();
}

#[test]
fn a_person_opens_a_service_for_a_while_and_on_the_record() {
    let project = Project::empty().with_env("USER", "maria");
    project.write("main.gobs.hcl", &machines([service(b'1'), service(b'2')]));
    project.gobs(APPLY).ok();
    let socket = project.path().join("person.sock");
    let path = socket.display().to_string();
    let open = |time: &'static str| {
        let service = "machine.db.service.one";
        project.start(&["open", service, "--for", time, "--socket", &path])
    };
    let run = open("1h");
    run.wait_for("Ctrl-C ends it");
    let mut live = unix(&socket);
    assert_eq!(ask(&mut live), Some(b'1'));
    let who = || project.gobs(&["who", "machine.db.service.one"]).ok().stdout;
    assert!(who().contains("open by maria on "), "{}", who());
    // Not even root has it who is not the person, although no mode keeps it out; who is not root
    // cannot be another user to try.
    if rustix::process::geteuid().is_root() {
        std::fs::set_permissions(project.path(), Permissions::from_mode(0o755)).expect("a mode");
        std::fs::set_permissions(&socket, Permissions::from_mode(0o666)).expect("a mode");
        assert_eq!(ask_as("nobody", &socket), "");
        assert_eq!(ask_as("root", &socket), "1");
    }
    run.signal(rustix::process::Signal::INT);
    run.end().ok();
    assert_eq!(ask(&mut live), None, "it goes on after its end");
    let said = who();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "Nobody holds machine.db.service.one.");
    assert_eq!(lines[1], "Had it for a while:");
    assert!(lines[2].starts_with("  open by maria on "), "{said}");
    assert_eq!(lines.len(), 3, "{said}");
    assert!(!socket.exists());

    let run = open("5s");
    run.wait_for("Ctrl-C ends it");
    let mut live = unix(&socket);
    assert_eq!(ask(&mut live), Some(b'1'));
    run.end().ok();
    assert_eq!(ask(&mut live), None, "it goes on after its time");
    let json = project.gobs(&["who", "machine.db.service.one", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json.ok().stdout).expect("JSON");
    let loans = json["loans"].as_array().expect("a list");
    assert_eq!(loans.len(), 2, "{json}");
    for (loan, seconds) in loans.iter().zip([5, 3_600]) {
        let at = |name: &str| loan[name].as_u64().expect("a time");
        // The boss has to be started in between.
        let late = at("since_s") + seconds - at("expires_s");
        assert!(late < WAIT_MAX.as_secs(), "{json}");
        assert!((at("since_s")..=now_s()).contains(&at("ended_s")), "{json}");
        assert!(loan["key"].is_string(), "{json}");
    }
    // Whoever is killed gives nothing back: the clock of the machine that gives it ends it.
    let run = open("5s");
    run.wait_for("Ctrl-C ends it");
    run.signal(rustix::process::Signal::KILL);
    drop(run.end());
    eventually("the grant has ended", WAIT_MAX, || {
        who().starts_with("Nobody holds machine.db.service.one.")
    });
    let wrong = ["open", "machine.db.service.one", "--for", "1d"];
    assert!(project.gobs(&wrong).code(1).stderr.contains("1d"));
    project.gobs(&["destroy", "--auto-approve"]).ok();
}

#[test]
fn a_person_opens_what_a_machine_offers_by_itself() {
    let project = Project::empty();
    project.write("main.gobs.hcl", &machines([service(b'1'), service(b'2')]));
    project.gobs(APPLY).ok();
    let extra = format!("127.0.0.1:{}", service(b'3'));
    let directory = project.machine("db").display().to_string();
    let offer = |args: &[&str]| {
        let run = [&["hob", "--dir", &directory, "offer", "extra"], args].concat();
        project.gobs(&run)
    };
    let socket = project.path().join("person.sock");
    let path = socket.display().to_string();
    let open = ["open", "machine.db.service.extra", "--socket", &path];
    let refused = project.gobs(&open).code(1);
    assert!(refused.stderr.contains("is not offered"), "{refused:?}");
    offer(&["--tcp", &extra]).ok();
    let run = project.start(&open);
    run.wait_for("Ctrl-C ends it");
    assert_eq!(ask(&mut unix(&socket)), Some(b'3'));
    let who = ["who", "machine.db.service.extra"];
    let holders = project.gobs(&who).ok().stdout;
    assert!(holders.contains("open by "), "{holders}");
    run.signal(rustix::process::Signal::INT);
    run.end().ok();
    assert!(project.gobs(&["plan"]).ok().stdout.contains("No changes."));

    // What is withdrawn is cut, as by a revocation.
    let run = project.start(&open);
    run.wait_for("Ctrl-C ends it");
    let mut streams = [unix(&socket), unix(&socket)];
    assert_eq!(streams.each_mut().map(ask), [Some(b'3'); 2]);
    offer(&["--withdraw"]).ok();
    let withdrawn = Instant::now();
    assert_eq!(streams.each_mut().map(ask), [None; 2]);
    assert!(withdrawn.elapsed() < CUT_MAX, "{:?}", withdrawn.elapsed());
    assert_eq!(ask(&mut unix(&socket)), None);
    // Nor does it come back when something is offered by that name again.
    offer(&["--tcp", &extra]).ok();
    assert_eq!(ask(&mut unix(&socket)), None);
    run.signal(rustix::process::Signal::INT);
    run.end().ok();
    let run = project.start(&open);
    run.wait_for("Ctrl-C ends it");
    assert_eq!(ask(&mut unix(&socket)), Some(b'3'));
    run.signal(rustix::process::Signal::INT);
    run.end().ok();
    offer(&["--withdraw"]).ok();
    project.gobs(&open).code(1);
    project.gobs(&["destroy", "--auto-approve"]).ok();
}

#[test]
fn how_programs_see_a_binding_changes_and_its_streams_go_on() {
    let project = Project::empty();
    let machines = machines([service(b'1'), service(b'2')]);
    let ports = [free_port(), free_port(), free_port()];
    let declare = |port: u16| {
        let given_on = binding("report", "binding.db", "report", ports[2], "");
        let from = "machine.db.service.one";
        let text = machines.clone() + &binding("db", from, "app", port, "") + &given_on;
        project.write("main.gobs.hcl", &text);
    };
    declare(ports[0]);
    project.gobs(APPLY).ok();
    let mut live = [ports[0], ports[2]].map(|port| tcp(port).expect("connected"));
    assert_eq!(live.each_mut().map(ask), [Some(b'1'); 2]);
    let granted = || {
        let json = project
            .gobs(&["who", "machine.db.service.one", "--json"])
            .ok();
        let json: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
        [0, 1].map(|n| {
            let holder = &json["holders"][n];
            ["binding", "generation", "since"].map(|field| holder[field].clone())
        })
    };
    let before = granted();

    declare(ports[1]);
    let run = project.gobs(APPLY).ok();
    for text in [
        "# binding.db will be updated in-place\n  # (live streams go on)",
        "Bindings: 1 to update.",
        "Bindings: 1 updated.",
    ] {
        assert!(run.stdout.contains(text), "{text}: {}", run.stdout);
    }
    assert_eq!(live.each_mut().map(ask), [Some(b'1'); 2]);
    assert_eq!((ask_anew(ports[1]), ask_anew(ports[0])), (Some(b'1'), None));
    assert_eq!(granted(), before, "it is another grant");
    project.gobs(&["plan", "--detailed-exitcode"]).ok();

    // What cannot be done leaves what was there, and the file of before is a change again.
    let taken = TcpListener::bind(("127.0.0.1", ports[0])).expect("it is free now");
    declare(ports[0]);
    let run = project.gobs(APPLY).code(1);
    assert!(run.stderr.contains("Binding not updated"), "{}", run.stderr);
    assert_eq!(live.each_mut().map(ask), [Some(b'1'); 2]);
    declare(ports[1]);
    project.gobs(APPLY).ok();
    assert_eq!(ask_anew(ports[1]), Some(b'1'));
    project.gobs(&["plan", "--detailed-exitcode"]).ok();
    drop(taken);
    project.gobs(&["destroy", "--auto-approve"]).ok();
}

#[test]
fn a_service_that_was_declared_wrong_for_a_while_is_right_again() {
    let project = Project::empty();
    let (right, port, other) = (service(b'1'), free_port(), free_port());
    let declare = |service: u16, more: &str| {
        let text = format!(
            "machine \"db\" {{
               provider = dummy
               service \"one\" {{
                 tcp   = \"127.0.0.1:{service}\"
                 ready = \"1s\"
               }}
             }}
             machine \"app\" {{ provider = dummy }}\n"
        );
        let text = text + &binding("db", "machine.db.service.one", "app", port, "") + more;
        project.write("main.gobs.hcl", &text);
    };
    declare(right, "");
    project.gobs(APPLY).ok();
    declare(free_port(), "");
    let run = project.gobs(APPLY).code(1);
    assert!(
        run.stderr.contains("Service does not answer"),
        "{}",
        run.stderr
    );
    // As it was: nothing in the file differs from what is remembered, but the hob has the other.
    declare(right, "");
    let run = project.gobs(APPLY).ok();
    assert!(
        run.stdout.contains("an earlier offer did not end well"),
        "{}",
        run.stdout
    );
    assert_eq!(ask_anew(port), Some(b'1'));
    project.gobs(&["plan", "--detailed-exitcode"]).ok();
    let more = binding("more", "machine.db.service.one", "app", other, "");
    declare(right, &more);
    project.gobs(APPLY).ok();
    assert_eq!(ask_anew(other), Some(b'1'));
    project.gobs(&["destroy", "--auto-approve"]).ok();
}
