//! An apply as people watch it: a line when a step starts, while it waits, and when it ends.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gobs_model::{Address, Value};

use crate::apply::{Event, Summary, Verb};

use super::text::{BOLD, GREEN, RED, YELLOW, printable_line, styled};
use super::value::literal;

/// How long a step goes on before it is said that it still does, and then again: Terraform's.
const STILL_EVERY: Duration = Duration::from_secs(10);
/// The same for the first word about a wait: somebody who waits for a boot wants to know early
/// what for.
const WAIT_FIRST: Duration = Duration::from_secs(3);

/// Turns events into lines. It is given the time, so that what it says is repeatable.
#[derive(Debug, Default)]
pub struct Progress {
    running: BTreeMap<Address, Running>,
}

#[derive(Debug)]
struct Running {
    verb: Verb,
    id: Option<String>,
    since: Instant,
    waiting: Option<String>,
    /// When the next line is due.
    next: Instant,
}

impl Progress {
    /// Returns the line for an event, if it has one.
    pub fn event(&mut self, event: &Event, now: Instant) -> Option<String> {
        match event {
            Event::Started { address, verb, id } => {
                let enrolls = *verb == Verb::Enroll;
                let running = Running {
                    verb: *verb,
                    id: id.clone(),
                    since: now,
                    waiting: enrolls.then(|| "the hob".to_owned()),
                    next: now + if enrolls { WAIT_FIRST } else { STILL_EVERY },
                };
                let line = if enrolls {
                    waits("the hob", address, "")
                } else {
                    say(address, words(*verb).doing, &details(id.as_deref(), None))
                };
                self.running.insert(address.clone(), running);
                Some(line)
            }
            Event::Waiting { address, what } => {
                let running = self.running.get_mut(address)?;
                let is_news = running.waiting.as_ref() != Some(what);
                running.waiting = Some(what.clone());
                is_news.then(|| {
                    running.next = now + WAIT_FIRST;
                    waits(what, address, "")
                })
            }
            Event::Progress { address, text } => Some(say(address, text, "")),
            Event::Done {
                address,
                verb,
                id,
                took,
            } => {
                self.running.remove(address);
                let text = format!("{} after {}", words(*verb).done, elapsed(*took));
                Some(say(address, &text, &details(id.as_deref(), None)))
            }
            Event::Failed { address, verb, .. } => {
                let since = self.running.remove(address).map(|running| running.since);
                let took = since.map_or(Duration::ZERO, |since| now.duration_since(since));
                let failed = styled(RED.bold(), words(*verb).failed);
                Some(say(
                    address,
                    &format!("{failed} after {}", elapsed(took)),
                    "",
                ))
            }
            Event::Skipped {
                address,
                verb,
                because,
            } => {
                let text = format!("{} skipped, since {because} failed", words(*verb).noun);
                Some(say(address, &text, ""))
            }
            Event::Recovered { address, run, what } => Some(format!(
                "Recovered: {}, left by run {run}, {}.\n",
                printable_line(&address.to_string()),
                printable_line(what)
            )),
            Event::Stopping { running } => Some(styled(YELLOW.bold(), stopping(*running)) + "\n"),
        }
    }

    /// Returns the lines that are due: what still goes on, and for how long.
    pub fn tick(&mut self, now: Instant) -> String {
        let mut out = String::new();
        for (address, running) in &mut self.running {
            if now < running.next {
                continue;
            }
            running.next = now + STILL_EVERY;
            let for_so_long = elapsed(now.duration_since(running.since));
            out += &match &running.waiting {
                Some(what) => waits(what, address, &format!(" [{for_so_long}]")),
                None => {
                    let details = details(running.id.as_deref(), Some(&for_so_long));
                    say(
                        address,
                        &format!("Still {}...", words(running.verb).still),
                        &details,
                    )
                }
            };
        }
        out
    }

    /// Returns when [`Progress::tick`] next has something to say.
    pub fn next_tick(&self) -> Option<Instant> {
        self.running.values().map(|running| running.next).min()
    }
}

/// Returns the last lines of an apply, or of a destroy.
pub fn summary(summary: &Summary, destroy: bool) -> String {
    let name = if destroy { "Destroy" } else { "Apply" };
    let counts = counts(summary, destroy && summary.is_complete());
    if summary.is_complete() {
        return styled(GREEN.bold(), format_args!("{name} complete! {counts}")) + "\n";
    }
    let why = if summary.interrupted {
        "was interrupted"
    } else {
        "is not complete"
    };
    let mut out = styled(BOLD, format_args!("{name} {why}. {counts}")) + "\n";
    if summary.failed > 0 {
        out += &format!("{}.\n", steps(summary.failed, ["failed", "failed"]));
    }
    if summary.revoke_pending > 0 {
        out += &format!(
            "Bindings whose revocation is pending, as told above: {}. The next apply tries \
             again.\n",
            summary.revoke_pending
        );
    }
    if !summary.remaining.is_empty() {
        let words = ["was not started", "were not started"];
        out += &format!("{}:\n", steps(summary.remaining.len(), words));
        for address in summary.remaining.iter().take(REMAINING_SHOWN) {
            out += &format!("  - {}\n", printable_line(&address.to_string()));
        }
        let more = summary.remaining.len().saturating_sub(REMAINING_SHOWN);
        if more > 0 {
            out += &format!("  and {more} more\n");
        }
    }
    out
}

/// How many of the steps that were not started are named: a screenful.
const REMAINING_SHOWN: usize = 20;

/// Returns the outputs under their heading, or nothing where there are none.
pub fn outputs<'a>(outputs: impl IntoIterator<Item = (&'a str, &'a Value)>) -> String {
    let lines: String = outputs
        .into_iter()
        .map(|(name, value)| format!("{name} = {}\n", output(value)))
        .collect();
    if lines.is_empty() {
        return lines;
    }
    format!("\n{}\n\n{lines}", styled(GREEN.bold(), "Outputs:"))
}

/// Returns one output's value; a sensitive one is masked, as Terraform does.
pub fn output(value: &Value) -> String {
    if value.sensitive {
        "<sensitive>".into()
    } else {
        literal(value, 0)
    }
}

fn counts(summary: &Summary, destroyed_only: bool) -> String {
    let all = &summary.counts;
    let machines = if destroyed_only {
        format!("Resources: {} destroyed.", all.destroy)
    } else {
        all.machines_done()
    };
    match all.bindings_done() {
        Some(bindings) => format!("{machines} {bindings}"),
        None => machines,
    }
}

fn steps(count: usize, what: [&str; 2]) -> String {
    match count {
        1 => format!("1 step {}", what[0]),
        _ => format!("{count} steps {}", what[1]),
    }
}

fn stopping(running: usize) -> String {
    let running = steps(running, ["still runs", "still run"]);
    format!("Stopping: nothing more is started, {running}. Ctrl-C again leaves at once.")
}

fn say(address: &Address, text: &str, details: &str) -> String {
    let address = address.to_string();
    format!(
        "{}: {text}{details}\n",
        styled(BOLD, printable_line(&address))
    )
}

fn waits(what: &str, address: &Address, for_so_long: &str) -> String {
    let address = address.to_string();
    format!(
        "Waiting for {} on {}...{for_so_long}\n",
        printable_line(what),
        styled(BOLD, printable_line(&address))
    )
}

/// Returns ` [id=i-1, 20s elapsed]`, with what there is.
fn details(id: Option<&str>, for_so_long: Option<&str>) -> String {
    let id = id.map(|id| format!("id={}", printable_line(id)));
    let for_so_long = for_so_long.map(|it| format!("{it} elapsed"));
    let parts: Vec<String> = id.into_iter().chain(for_so_long).collect();
    if parts.is_empty() {
        String::new()
    } else {
        format!(" [{}]", parts.join(", "))
    }
}

/// Returns `45s`, `1m5s`, `2h0m5s`.
fn elapsed(duration: Duration) -> String {
    let (hours, minutes, seconds) = {
        let all = duration.as_secs();
        (all / 3600, all / 60 % 60, all % 60)
    };
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

struct Words {
    /// Said when it starts.
    doing: &'static str,
    /// Said while it goes on, after `Still`.
    still: &'static str,
    /// Said when it is done.
    done: &'static str,
    /// Said when it failed.
    failed: &'static str,
    /// The step's name.
    noun: &'static str,
}

fn words(verb: Verb) -> Words {
    let [doing, still, done, failed, noun] = match verb {
        Verb::Create => [
            "Creating...",
            "creating",
            "Creation complete",
            "Creation failed",
            "Creation",
        ],
        Verb::Import => [
            "Importing...",
            "importing",
            "Import complete",
            "Import failed",
            "Import",
        ],
        Verb::Update => [
            "Modifying...",
            "modifying",
            "Modifications complete",
            "Modifications failed",
            "Modifications",
        ],
        Verb::Rebuild => [
            "Rebuilding...",
            "rebuilding",
            "Rebuild complete",
            "Rebuild failed",
            "Rebuild",
        ],
        Verb::Delete => [
            "Destroying...",
            "destroying",
            "Destruction complete",
            "Destruction failed",
            "Destruction",
        ],
        Verb::Enroll => [
            "Enrolling...",
            "enrolling",
            "Hob registered",
            "Enrollment failed",
            "Enrollment",
        ],
        Verb::Offer => [
            "Offering...",
            "offering",
            "Offer complete",
            "Offer failed",
            "Offer",
        ],
        Verb::Withdraw => [
            "Withdrawing...",
            "withdrawing",
            "Withdrawal complete",
            "Withdrawal failed",
            "Withdrawal",
        ],
        Verb::Bind => [
            "Granting...",
            "granting",
            "Grant complete",
            "Grant failed",
            "Grant",
        ],
        Verb::Move => [
            "Moving...",
            "moving",
            "Move complete",
            "Move failed",
            "Move",
        ],
        Verb::Unbind => [
            "Revoking...",
            "revoking",
            "Revocation complete",
            "Revocation failed",
            "Revocation",
        ],
    };
    Words {
        doing,
        still,
        done,
        failed,
        noun,
    }
}

#[cfg(test)]
mod tests {
    use gobs_model::Diagnostic;

    use super::*;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    fn address(text: &str) -> Address {
        text.parse().expect("an address")
    }

    fn started(at: &str, verb: Verb, id: Option<&str>) -> Event {
        Event::Started {
            address: address(at),
            verb,
            id: id.map(str::to_owned),
        }
    }

    fn done(at: &str, verb: Verb, id: Option<&str>, seconds: u64) -> Event {
        Event::Done {
            address: address(at),
            verb,
            id: id.map(str::to_owned),
            took: Duration::from_secs(seconds),
        }
    }

    /// Plays events at their seconds and returns every line, those of the timer too.
    fn play(events: &[(u64, Event)], until: u64) -> String {
        let (mut progress, start) = (Progress::default(), Instant::now());
        let mut out = String::new();
        for second in 0..=until {
            let now = start + Duration::from_secs(second);
            for (_, event) in events.iter().filter(|(at, _)| *at == second) {
                out += &progress.event(event, now).unwrap_or_default();
            }
            let is_due = progress.next_tick().is_some_and(|next| next <= now);
            let ticked = progress.tick(now);
            assert_eq!(is_due, !ticked.is_empty());
            out += &ticked;
        }
        plain(&out)
    }

    #[test]
    fn a_step_says_when_it_starts_goes_on_and_ends() {
        let waiting = |what: &str| Event::Waiting {
            address: address("machine.db"),
            what: what.into(),
        };
        let events = [
            (0, started("machine.db", Verb::Create, None)),
            (0, started("machine.old[0]", Verb::Delete, Some("i-0"))),
            (12, done("machine.db", Verb::Create, Some("i-1"), 12)),
            (12, started("machine.db", Verb::Enroll, Some("i-1"))),
            (12, waiting("the hob")),
            (27, done("machine.db", Verb::Enroll, Some("i-1"), 15)),
            (27, started("binding.db", Verb::Bind, None)),
            (28, done("binding.db", Verb::Bind, None, 1)),
            (75, done("machine.old[0]", Verb::Delete, None, 75)),
        ];
        assert_eq!(
            play(&events, 80),
            "machine.db: Creating...
machine.old[0]: Destroying... [id=i-0]
machine.db: Still creating... [10s elapsed]
machine.old[0]: Still destroying... [id=i-0, 10s elapsed]
machine.db: Creation complete after 12s [id=i-1]
Waiting for the hob on machine.db...
Waiting for the hob on machine.db... [3s]
machine.old[0]: Still destroying... [id=i-0, 20s elapsed]
Waiting for the hob on machine.db... [13s]
machine.db: Hob registered after 15s [id=i-1]
binding.db: Granting...
binding.db: Grant complete after 1s
machine.old[0]: Still destroying... [id=i-0, 30s elapsed]
machine.old[0]: Still destroying... [id=i-0, 40s elapsed]
machine.old[0]: Still destroying... [id=i-0, 50s elapsed]
machine.old[0]: Still destroying... [id=i-0, 1m0s elapsed]
machine.old[0]: Still destroying... [id=i-0, 1m10s elapsed]
machine.old[0]: Destruction complete after 1m15s
"
        );
    }

    #[test]
    fn what_fails_is_skipped_or_recovered_is_said() {
        let failed = Event::Failed {
            address: address("machine.db"),
            verb: Verb::Create,
            diagnostic: Box::new(Diagnostic::error("Create failed", "No quota.")),
        };
        let skipped = Event::Skipped {
            address: address("binding.db"),
            verb: Verb::Bind,
            because: address("machine.db"),
        };
        let recovered = Event::Recovered {
            address: address("machine.app"),
            run: 41,
            what: "adopted".into(),
        };
        let events = [
            (0, recovered),
            (0, started("machine.db", Verb::Create, None)),
            (2, failed),
            (2, skipped),
            (2, Event::Stopping { running: 2 }),
        ];
        assert_eq!(
            play(&events, 20),
            "Recovered: machine.app, left by run 41, adopted.
machine.db: Creating...
machine.db: Creation failed after 2s
binding.db: Grant skipped, since machine.db failed
Stopping: nothing more is started, 2 steps still run. Ctrl-C again leaves at once.
"
        );
    }

    #[test]
    fn the_last_lines_leave_out_bindings_that_are_zero() {
        let mut it = Summary::default();
        it.counts.add = 2;
        let check = |it: &Summary, destroy, expected: &str| {
            assert_eq!(plain(&summary(it, destroy)), expected);
        };
        check(
            &it,
            false,
            "Apply complete! Resources: 2 added, 0 changed, 0 destroyed.\n",
        );
        it.counts.grant = 1;
        check(
            &it,
            false,
            "Apply complete! Resources: 2 added, 0 changed, 0 destroyed. Bindings: 1 granted.\n",
        );
        let mut it = Summary::default();
        (it.counts.destroy, it.counts.revoke) = (3, 2);
        check(
            &it,
            true,
            "Destroy complete! Resources: 3 destroyed. Bindings: 2 revoked.\n",
        );
    }

    #[test]
    fn an_apply_that_is_not_complete_says_what_remains() {
        let it = Summary {
            counts: crate::plan::Counts {
                add: 1,
                ..Default::default()
            },
            failed: 1,
            revoke_pending: 1,
            remaining: (0..22)
                .map(|at| address(&format!("machine.web[{at}]")))
                .collect(),
            ..Summary::default()
        };
        let text = plain(&summary(&it, false));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..5],
            [
                "Apply is not complete. Resources: 1 added, 0 changed, 0 destroyed.",
                "1 step failed.",
                "Bindings whose revocation is pending, as told above: 1. The next apply tries again.",
                "22 steps were not started:",
                "  - machine.web[0]",
            ]
        );
        assert_eq!(lines[24..], ["  and 2 more"]);
    }

    #[test]
    fn outputs_are_hcl_and_secrets_are_masked() {
        let values = [
            ("list", Value::list(["a".into(), "b".into()])),
            ("secret", Value::from("hunter2").sensitive()),
            ("url", "http://x/".into()),
        ];
        let text = outputs(values.iter().map(|(name, value)| (*name, value)));
        assert_eq!(
            plain(&text),
            "\nOutputs:\n\nlist = [\n    \"a\",\n    \"b\",\n]\nsecret = <sensitive>\n\
             url = \"http://x/\"\n"
        );
    }
}
