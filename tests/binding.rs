//! One binding from its declaration to its end, between two real hobs, for a program that is not
//! ours: promises S1, S4 and S9 as far as `tcp` services go.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use crate::support::{Project, eventually, free_port, hob_pid, is_dead};

/// Bytes sent each way.
const PAYLOAD_BYTES: usize = 10 << 20;

/// How long a condition is waited for.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A plain echo server: a process for each connection, every byte back.
const ECHO: &str = r"
use strict; use warnings; use IO::Socket::INET;
$SIG{CHLD} = 'IGNORE';
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $ARGV[0],
    Listen => 16, ReuseAddr => 1) or die;
while (1) {
    my $client = $server->accept or next;
    if (fork) { close $client; next }
    while (sysread $client, my $bytes, 65536) {
        my $done = 0;
        while ($done < length $bytes) {
            my $n = syswrite $client, $bytes, length($bytes) - $done, $done or exit;
            $done += $n;
        }
    }
    exit;
}
";

struct Ports {
    service: u16,
    binding: u16,
}

fn free_ports() -> Ports {
    Ports {
        service: free_port(),
        binding: free_port(),
    }
}

fn configuration(root: &Path, ports: &Ports, bound: bool) -> String {
    let Ports { service, binding } = ports;
    let root = root.display();
    let binding = match bound {
        false => String::new(),
        true => format!(
            "binding \"db\" {{
               from = machine.db.service.echo
               to   = machine.app
               expose {{ tcp = \"127.0.0.1:{binding}\" }}
             }}
             output \"address\" {{ value = binding.db.address }}\n"
        ),
    };
    format!(
        "machine \"db\" {{
           provider = dummy
           run      = [\"exec perl {root}/echo.pl {service}\"]
           service \"echo\" {{ tcp = \"127.0.0.1:{service}\" }}
         }}
         machine \"app\" {{ provider = dummy }}
         {binding}"
    )
}

/// Returns bytes without a period that a lost or doubled block would fit.
fn payload() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..PAYLOAD_BYTES / 8).flat_map(|_| next()).collect()
}

fn connect(port: u16) -> TcpStream {
    let mut stream = None;
    eventually("the binding takes a connection", WAIT_MAX, || {
        stream = TcpStream::connect(("127.0.0.1", port)).ok();
        stream.is_some()
    });
    stream.expect("it is connected")
}

/// Sends the payload and reads it back, both at once; every byte is compared.
#[track_caller]
fn exchange(port: u16) {
    let sent = payload();
    let mut reader = connect(port);
    reader
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a timeout");
    let mut writer = reader.try_clone().expect("a second handle");
    let bytes = sent.clone();
    let writing = std::thread::spawn(move || {
        writer
            .write_all(&bytes)
            .expect("the binding takes every byte");
        writer.shutdown(Shutdown::Write).expect("the end is told");
    });
    let mut received = Vec::with_capacity(sent.len());
    reader
        .read_to_end(&mut received)
        .expect("the binding gives every byte");
    writing.join().expect("the writer ends");
    assert_eq!(received.len(), sent.len());
    assert!(received == sent, "a byte differs");
}

fn kill_hobs(project: &Project) {
    for machine in project.machines() {
        let pid = hob_pid(&machine).expect("a hob runs");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it is there");
        eventually("the hob is dead", WAIT_MAX, || is_dead(pid));
    }
}

/// Starts every machine's hob alone, as a person would after a reboot.
fn start_hobs(project: &Project) -> Vec<Child> {
    let machines = project.machines().into_iter();
    machines.map(|it| project.start_hob(&it)).collect()
}

#[test]
fn a_binding_carries_every_byte_through_restarts_and_ends_when_it_is_revoked() {
    let project = Project::empty();
    let ports = free_ports();
    project.write("echo.pl", ECHO);
    project.write(
        "main.gobs.hcl",
        &configuration(project.path(), &ports, true),
    );
    let run = project.gobs(&["apply", "--auto-approve"]).ok();
    let summary =
        "Apply complete! Resources: 2 added, 0 changed, 0 destroyed. Bindings: 1 granted.";
    assert!(run.stdout.contains(summary), "{}", run.stdout);
    let address = project.gobs(&["output", "--raw", "address"]).ok().stdout;
    assert_eq!(address.trim_end(), format!("127.0.0.1:{}", ports.binding));
    let again = project.gobs(&["apply", "--auto-approve"]).ok();
    let nothing = "No changes. Your infrastructure matches the configuration.";
    assert!(again.stdout.contains(nothing), "{}", again.stdout);

    // No boss runs by now.
    exchange(ports.binding);

    kill_hobs(&project);
    let plan = project.gobs(&["plan"]).ok();
    assert!(plan.stdout.contains(nothing), "{}", plan.stdout);
    let silent = "No answer from the hob of machine.app, machine.db";
    assert!(plan.stderr.contains(silent), "{}", plan.stderr);
    let unbound = configuration(project.path(), &ports, false);
    project.write("main.gobs.hcl", &unbound);
    let plan = project.gobs(&["plan"]).ok().stdout;
    let unknown = "# (live streams: unknown, its hob cannot be reached)";
    assert!(plan.contains(unknown), "{plan}");
    let mut hobs = start_hobs(&project);
    exchange(ports.binding);
    let plan = project.gobs(&["plan"]).ok();
    assert!(!plan.stderr.contains("No answer"), "{}", plan.stderr);

    let mut live = connect(ports.binding);
    live.write_all(b"still there?").expect("the stream is open");
    let mut answer = [0; 12];
    live.read_exact(&mut answer).expect("the program answers");
    assert_eq!(&answer, b"still there?");

    project.write(
        "main.gobs.hcl",
        &configuration(project.path(), &ports, false),
    );
    let run = project.gobs(&["apply", "--auto-approve"]).ok();
    let summary =
        "Apply complete! Resources: 0 added, 0 changed, 0 destroyed. Bindings: 1 revoked.";
    assert!(run.stdout.contains(summary), "{}", run.stdout);
    live.set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a timeout");
    match live.read(&mut answer) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("the stream of a revoked binding goes on: {other:?}"),
    }
    let refused = TcpStream::connect(("127.0.0.1", ports.binding)).expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

    let run = project.gobs(&["destroy", "--auto-approve"]).ok();
    assert!(
        run.stdout
            .contains("Destroy complete! Resources: 2 destroyed."),
        "{}",
        run.stdout
    );
    for hob in &mut hobs {
        hob.wait().expect("the hobs that we started have ended");
    }
    assert_eq!(project.processes(), [], "processes are left");
    let left: Vec<_> = std::fs::read_dir(project.path().join(".gobs/dummy"))
        .map(|entries| {
            entries
                .map(|entry| entry.expect("an entry").path())
                .collect()
        })
        .unwrap_or_default();
    assert_eq!(left, Vec::<PathBuf>::new(), "files are left");
}
