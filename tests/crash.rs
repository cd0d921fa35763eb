//! Promise A1: killed at any journal write, the next run converges.

use std::path::Path;
use std::time::Duration;

use crate::support::{Project, eventually, hob_pid, is_dead};

/// How long a condition is waited for.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// An answer to whoever connects, at a unix socket.
const PROGRAM: &str = r"
use strict; use warnings; use IO::Socket::UNIX;
unlink $ARGV[0];
my $server = IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 16) or die;
while (my $client = $server->accept) { print $client qq(hello\n); close $client }
";

fn configuration(root: &Path, image: &str, from: &str) -> String {
    let root = root.display();
    let machine = |name: &str| {
        format!(
            "machine \"{name}\" {{
               provider = dummy
               image    = \"{image}\"
               run      = [\"exec perl {root}/program.pl {root}/{name}.sock\"]
               service \"hello\" {{ unix = \"{root}/{name}.sock\" }}
             }}\n"
        )
    };
    format!(
        "{}{}
         machine \"app\" {{ provider = dummy }}
         binding \"hello\" {{
           from = machine.{from}.service.hello
           to   = machine.app
         }}",
        machine("one"),
        machine("two"),
    )
}

fn project() -> Project {
    let project = Project::empty();
    project.write("program.pl", PROGRAM);
    project
}

fn machine_count(project: &Project) -> usize {
    std::fs::read_dir(project.path().join(".gobs/dummy")).map_or(0, |entries| {
        let paths = entries.map(|entry| entry.expect("an entry").path());
        paths
            .filter(|path| path.join("machine.json").exists())
            .count()
    })
}

/// Runs a command again and again, each time in a project brought to the same place, and dies at
/// one journal write after the other, until it reaches its end alive. Returns how often it died.
fn die_everywhere(when: &str, prepare: &dyn Fn(&Project), args: &[&str], machines: usize) -> u64 {
    for write in 1.. {
        let project = project();
        prepare(&project);
        let mut command = project.command(args);
        command.env("GOBS_TEST_CRASH_AT", format!("{when}:{write}"));
        let run = crate::support::Run::of(command);
        if run.code == Some(0) {
            return write - 1;
        }
        assert_eq!(
            run.code, None,
            "not killed at {when}:{write}:\n{}{}",
            run.stdout, run.stderr
        );
        let again = project.gobs(args);
        assert_eq!(
            again.code,
            Some(0),
            "after {when}:{write}, the next run fails:\n{}{}",
            again.stdout,
            again.stderr
        );
        if machines > 0 {
            let plan = project.gobs(&["plan", "--detailed-exitcode"]);
            assert_eq!(
                plan.code,
                Some(0),
                "after {when}:{write}, the plan is not empty:\n{}{}",
                plan.stdout,
                plan.stderr
            );
            project.gobs(&["status"]).ok();
        }
        assert_eq!(machine_count(&project), machines, "after {when}:{write}");
        project.gobs(&["destroy", "--auto-approve"]).ok();
        assert_eq!(
            machine_count(&project),
            0,
            "after {when}:{write} and destroy"
        );
        assert_eq!(project.processes(), [], "after {when}:{write} and destroy");
    }
    unreachable!("a run has an end");
}

fn declare(image: &'static str, from: &'static str) -> impl Fn(&Project) {
    move |project| project.write("main.gobs.hcl", &configuration(project.path(), image, from))
}

/// Applies one configuration and declares another.
fn change(then: impl Fn(&Project)) -> impl Fn(&Project) {
    move |project| {
        declare("a", "one")(project);
        project.gobs(&["apply", "--auto-approve"]).ok();
        then(project);
    }
}

/// A program whose environment names nothing, as that of Redis, is known to its hob alone.
#[test]
fn destroy_ends_a_program_that_shows_no_marks_and_whose_hob_was_killed() {
    let project = Project::empty();
    let root = project.path().display();
    let program = "$SIG{TERM} = 'DEFAULT'; sleep 3600";
    project.write("sleep.pl", program);
    project.write(
        "main.gobs.hcl",
        &format!(
            "machine \"one\" {{
               provider = dummy
               run      = [\"exec env -i /usr/bin/perl {root}/sleep.pl\"]
             }}"
        ),
    );
    project.gobs(APPLY).ok();
    let machine = project.machine("one");
    let program = || {
        let directory = machine.to_string_lossy();
        let told = project.gobs(&["hob", "--dir", &directory, "status"]).stdout;
        let status: serde_json::Value = serde_json::from_str(&told).unwrap_or_default();
        let pid = status["programs"][0]["pid"].as_i64()?;
        rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)
    };
    let kill = |pid| {
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it runs");
        eventually("it is dead", WAIT_MAX, || is_dead(pid));
    };
    let mut first = None;
    eventually("the program runs", WAIT_MAX, || {
        first = program();
        first.is_some()
    });
    let first = first.expect("it runs");
    // The session in which the first hob began tells nothing of what a later one starts.
    kill(hob_pid(&machine).expect("a hob"));
    let mut hob = project.start_hob(&machine);
    eventually("the next hob has taken it up", WAIT_MAX, || {
        // As systemd would: its port may be in use for a moment.
        if hob.try_wait().expect("a child").is_some() {
            hob = project.start_hob(&machine);
        }
        program() == Some(first)
    });
    kill(first);
    let mut second = None;
    eventually("it is started again", WAIT_MAX, || {
        second = program().filter(|pid| *pid != first);
        second.is_some()
    });
    let second = second.expect("it runs");
    let recorded = format!("\"pid\": {second}");
    eventually("it is written down", WAIT_MAX, || {
        let state = std::fs::read_to_string(machine.join("hob/state.json"));
        state.is_ok_and(|it| it.contains(&recorded))
    });
    kill(hob_pid(&machine).expect("a hob"));
    hob.wait().expect("it is dead");
    assert!(!is_dead(second), "a program outlives its hob");
    project.gobs(DESTROY).ok();
    assert!(is_dead(second), "a program is left over");
    assert_eq!(project.processes(), []);
}

const APPLY: &[&str] = &["apply", "--auto-approve"];
const DESTROY: &[&str] = &["destroy", "--auto-approve"];

#[test]
fn a1_a_first_apply_that_dies_before_any_journal_write_converges() {
    let deaths = die_everywhere("before", &declare("a", "one"), APPLY, 3);
    assert!(deaths >= 5, "{deaths}");
}

#[test]
fn a1_a_first_apply_that_dies_after_any_journal_write_converges() {
    let deaths = die_everywhere("after", &declare("a", "one"), APPLY, 3);
    assert!(deaths >= 5, "{deaths}");
}

#[test]
fn a1_a_rebuild_and_a_move_that_die_at_any_journal_write_converge() {
    for when in ["before", "after"] {
        let deaths = die_everywhere(when, &change(declare("b", "two")), APPLY, 3);
        assert!(deaths >= 4, "{deaths}");
    }
}

#[test]
fn a1_a_destroy_that_dies_at_any_journal_write_converges() {
    for when in ["before", "after"] {
        let deaths = die_everywhere(when, &change(|_| {}), DESTROY, 0);
        assert!(deaths >= 2, "{deaths}");
    }
}
