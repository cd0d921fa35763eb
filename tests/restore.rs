//! A state file that was restored from a backup: what was revoked stays revoked, and the project
//! goes on (promises S5, T8 and X4).

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use crate::support::{Project, check, eventually, free_port};

const APPLY: &[&str] = &["apply", "--auto-approve"];

/// How long hobs may take to register, with a boss that is there for moments only.
const LOCKED_MAX: Duration = Duration::from_secs(60);

/// Says one line to whoever connects.
const HELLO: &str = "use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $ARGV[0],
    Listen => 16, ReuseAddr => 1) or die;
while (my $client = $server->accept) { print $client qq(hello\\n); close $client }";

fn configuration(project: &Project, ports: [u16; 2], binding: &str) -> String {
    let ([service, bound], root) = (ports, project.path().display());
    let binding = match binding {
        "" => String::new(),
        narrowed => format!(
            "binding \"hello\" {{
               from = machine.db.service.hello
               to   = machine.app
               {narrowed}
               expose {{ tcp = \"127.0.0.1:{bound}\" }}
             }}"
        ),
    };
    format!(
        "machine \"db\" {{
           provider = dummy
           run      = [\"exec perl {root}/hello.pl {service}\"]
           service \"hello\" {{ tcp = \"127.0.0.1:{service}\" }}
         }}
         machine \"app\" {{ provider = dummy }}
         {binding}"
    )
}

/// Returns what a program hears through the binding.
fn heard(port: u16) -> String {
    let mut text = String::new();
    if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
        // What a server leaves unread when it closes could take its own words with it.
        let _ = stream.read_to_string(&mut text);
    }
    text
}

/// Puts the oldest backup in the place of the state.
fn restore(project: &Project) {
    let dot = project.path().join(".gobs");
    let backups = std::fs::read_dir(dot.join("backups")).expect("backups");
    let oldest = backups.map(|it| it.expect("an entry").path()).min();
    for name in ["state.db-wal", "state.db-shm"] {
        let _ = std::fs::remove_file(dot.join(name));
    }
    std::fs::copy(oldest.expect("a backup"), dot.join("state.db")).expect("a copy");
}

#[test]
fn s5_x4_an_old_state_brings_nothing_back_and_the_project_goes_on() {
    let project = Project::empty();
    let ports = [free_port(), free_port()];
    let write = |binding: &str| {
        project.write("main.gobs.hcl", &configuration(&project, ports, binding));
    };
    let declared = "attenuate { connections_max = 2 }";
    project.write("hello.pl", HELLO);
    write(declared);
    project.gobs(APPLY).ok();
    assert_eq!(heard(ports[1]), "hello\n");

    // The next run begins with a backup; after it the binding is granted again, and then revoked.
    for binding in ["attenuate { connections_max = 3 }", ""] {
        write(binding);
        project.gobs(APPLY).ok();
    }
    assert_eq!(heard(ports[1]), "");

    restore(&project);
    write(declared);

    // The hobs have seen more than this state, as if there were two of each: as soon as they have
    // registered again, that is said.
    let machines = ["machine.db", "machine.app"];
    eventually("the hobs are locked", LOCKED_MAX, || {
        let status = project.gobs(&["status"]).code(3).stdout;
        let locked = |machine| status.contains(&format!("gobs unlock {machine} lets it back in"));
        machines.into_iter().all(locked)
    });
    for machine in machines {
        project.gobs(&["unlock", machine]).ok();
    }
    let status = project.gobs(&["status"]).code(3);
    assert!(status.stdout.contains("missing"), "{}", status.stdout);
    assert_eq!(heard(ports[1]), "", "a revoked grant is back");

    let plan = project.gobs(&["plan"]).ok();
    let lost = "because machine.app does not have it any more";
    assert!(plan.stdout.contains(lost), "{}", plan.stdout);
    let run = project.gobs(APPLY).ok();
    let summary =
        "Apply complete! Resources: 0 added, 0 changed, 0 destroyed. Bindings: 1 granted.";
    assert!(run.stdout.contains(summary), "{}", run.stdout);
    assert_eq!(heard(ports[1]), "hello\n");
    project.gobs(&["plan", "--detailed-exitcode"]).ok();
    project.gobs(&["status"]).ok();
}

#[test]
fn s5_x4_what_hobs_have_and_an_old_state_has_not_is_said_and_can_be_ended() {
    let project = Project::empty();
    let ports = [free_port(), free_port()];
    let write = |binding: &str| {
        project.write("main.gobs.hcl", &configuration(&project, ports, binding));
    };
    let declared = "attenuate { connections_max = 2 }";
    project.write("hello.pl", HELLO);
    write("");
    project.gobs(APPLY).ok();
    // The next run begins with a backup, of a state without the binding.
    write(declared);
    project.gobs(APPLY).ok();
    assert_eq!(heard(ports[1]), "hello\n");
    restore(&project);
    write("");
    let machines = ["machine.db", "machine.app"];
    eventually("the hobs are locked", LOCKED_MAX, || {
        let status = project.gobs(&["status"]).code(3).stdout;
        let locked = |machine| status.contains(&format!("gobs unlock {machine} lets it back in"));
        machines.into_iter().all(locked)
    });
    for machine in machines {
        project.gobs(&["unlock", machine]).ok();
    }
    let whose = "held by machine.app, given by machine.db";
    check(
        project.gobs(&["status"]),
        3,
        &["not in this state", whose, "declare it as it was"],
    );
    check(
        project.gobs(&["doctor"]),
        3,
        &["binding.hello is not in this state", whose],
    );
    let said = ["Bindings not in this state", whose, "declare it as it was"];
    for command in [&["plan"][..], APPLY] {
        check(project.gobs(command), 0, &said);
    }
    // Nothing was done about it.
    assert_eq!(heard(ports[1]), "hello\n");

    // What is said to do about it ends it.
    for binding in [declared, ""] {
        write(binding);
        project.gobs(APPLY).ok();
    }
    assert_eq!(heard(ports[1]), "");
    project.gobs(&["status"]).ok();
    check(project.gobs(&["plan"]), 0, &["No changes."]);
    let directory = project.machine("db").display().to_string();
    let told = project.gobs(&["hob", "--dir", &directory, "status"]).ok();
    assert!(told.stdout.contains("\"grants\": []"), "{told:?}");
}
