//! What is live: hobs, bindings, alerts; and whether something needs a person.

use std::collections::BTreeMap;
use std::time::Duration;

use gobs_model::{Address, Value};
use gobs_state::{Phase, Row, RowKind, Snapshot};
use hob::protocol::{HobStatus, UnitStatus};

use crate::boss::{AlertReport, HobReport, StatusReport};
use crate::live::Unknown;

use super::text::{BOLD, DIM, GREEN, RED, YELLOW, printable_line, styled};

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    /// As it should be.
    Well,
    /// Nobody can say, or nobody needs to.
    Unsaid,
    /// Something needs a person.
    Ill,
}

/// One line about a thing.
struct Line {
    health: Health,
    address: String,
    state: String,
    more: Vec<String>,
}

/// Returns how everything that the state has is now, and whether something needs a person.
///
/// `now_s` is in seconds since 1970.
/// `unknown` are bindings that hobs have and the state has not.
pub(crate) fn status(
    (report, unknown): (&StatusReport, &[Unknown]),
    snapshot: &Snapshot,
    now_s: u64,
) -> (String, bool) {
    let hobs: BTreeMap<&str, &HobReport> = report
        .hobs
        .iter()
        .map(|hob| (hob.machine.as_str(), hob))
        .collect();
    let mut machines = Vec::new();
    let mut bindings = Vec::new();
    for row in snapshot.rows.values() {
        match &row.kind {
            RowKind::Machine {
                enrolled,
                incarnation,
                ..
            } => {
                let address = row.address.to_string();
                let hob = hobs.get(address.as_str()).copied();
                let state = match enrolled {
                    Some(_) => Enrollment::Done,
                    None if report.unclaimed.contains(&(address, *incarnation)) => Enrollment::Over,
                    None => Enrollment::Open,
                };
                machines.push(machine(row, state, hob, now_s));
            }
            RowKind::Binding {
                generation, phase, ..
            } => bindings.push(binding(row, *generation, *phase, &hobs)),
            RowKind::Service { .. } => {}
        }
    }
    bindings.extend(unknown.iter().map(|it| Line {
        health: Health::Ill,
        address: shown(&it.binding),
        state: "not in this state".into(),
        more: vec![
            printable_line(&it.whose()).into_owned(),
            Unknown::MEND.into(),
        ],
    }));
    let alerts: Vec<Line> = report.alerts.iter().map(|it| alert(it, now_s)).collect();
    let sections = [
        ("Machines", machines),
        ("Bindings", bindings),
        ("Alerts", alerts),
    ];
    let is_ill = |(_, lines): &(&str, Vec<Line>)| lines.iter().any(|it| it.health == Health::Ill);
    let needs_person = sections.iter().any(is_ill);
    let text: Vec<String> = sections
        .iter()
        .filter(|(_, lines)| !lines.is_empty())
        .map(|(heading, lines)| section(heading, lines))
        .collect();
    if text.is_empty() {
        return ("Nothing exists yet.\n".into(), false);
    }
    (text.join("\n"), needs_person)
}

fn section(heading: &str, lines: &[Line]) -> String {
    let width = |of: fn(&Line) -> &str| lines.iter().map(|it| of(it).chars().count()).max();
    let addresses = width(|it| &it.address).unwrap_or(0);
    let states = width(|it| &it.state).unwrap_or(0);
    let mut out = styled(BOLD, heading) + "\n";
    for Line {
        health,
        address,
        state,
        more,
    } in lines
    {
        let style = match health {
            Health::Well => GREEN,
            Health::Unsaid => YELLOW,
            Health::Ill => RED,
        };
        out += &format!("  {address:addresses$}  ");
        if more.is_empty() {
            out += &styled(style, state);
        } else {
            let more = styled(DIM, more.join(", "));
            out += &format!("{}  {more}", styled(style, format_args!("{state:states$}")));
        }
        out.push('\n');
    }
    out
}

/// How it stands with a machine's first call home.
#[derive(Clone, Copy)]
enum Enrollment {
    Done,
    Open,
    /// Nobody called in time.
    Over,
}

fn machine(row: &Row, enrollment: Enrollment, hob: Option<&HobReport>, now_s: u64) -> Line {
    let has_hob = row.wanted.get("hob").and_then(|hob| hob.get("enabled"));
    let has_hob = has_hob.and_then(Value::as_bool).unwrap_or(true);
    let (health, state, more) = match hob {
        Some(hob) if hob.locked => {
            let more = format!(
                "its key was used from two places, or this state is an old one; if there is one \
                 such machine only, gobs unlock {} lets it back in",
                word(&row.address.to_string())
            );
            (Health::Ill, "locked", vec![more])
        }
        Some(HobReport {
            status: Some(status),
            ..
        }) => {
            let health = match status.units.is_empty() {
                true => Health::Well,
                false => Health::Ill,
            };
            (health, "connected", of_hob(status))
        }
        Some(hob) => {
            let ago = ago(hob.last_seen_s, now_s);
            let mut more = vec![format!("last registered {ago} ago")];
            more.extend(start_again(row));
            (Health::Ill, "not reached", more)
        }
        None if !has_hob => (Health::Unsaid, "no hob", Vec::new()),
        None => match enrollment {
            Enrollment::Done => (Health::Unsaid, "a row only", Vec::new()),
            Enrollment::Open => {
                let more = vec!["its hob has not registered; the next apply waits for it".into()];
                (Health::Ill, "not enrolled", more)
            }
            Enrollment::Over => {
                let more = "its hob did not call home in time; the next apply offers to begin anew";
                (Health::Ill, "unclaimed", vec![more.into()])
            }
        },
    };
    Line {
        health,
        address: shown(&row.address),
        state: state.into(),
        more,
    }
}

/// Returns how the hob of a machine on this host is started again.
fn start_again(row: &Row) -> Option<String> {
    let RowKind::Machine { provider, .. } = &row.kind else {
        return None;
    };
    let directory = row.observed.get("directory")?.as_str()?;
    let is_here = provider == "dummy" || provider.starts_with("dummy.");
    is_here.then(|| format!("gobs hob --dir {} starts it again", word(directory)))
}

/// Returns a text as one word of a shell, whatever spaces and quotes it has.
fn word(text: &str) -> String {
    let word = shlex::try_quote(text).unwrap_or(text.into());
    printable_line(&word).into_owned()
}

fn of_hob(status: &HobStatus) -> Vec<String> {
    let running = status.programs.iter().filter(|it| it.pid.is_some()).count();
    let (services, programs) = (status.offers.len(), status.programs.len());
    let mut more = vec![format!("hob {}", printable_line(&status.version))];
    if services > 0 {
        more.push(counted(services, "service"));
    }
    if programs > 0 {
        more.push(format!(
            "{running} of {} running",
            counted(programs, "program")
        ));
    }
    more.extend(status.units.iter().map(|UnitStatus { unit, error }| {
        let (unit, error) = (printable_line(unit), printable_line(error));
        format!("{unit}: {error} (the hob looks again by itself)")
    }));
    more
}

fn binding(row: &Row, generation: u64, phase: Phase, hobs: &BTreeMap<&str, &HobReport>) -> Line {
    let address = row.address.to_string();
    let end = |name: &str| row.wanted.get(name).and_then(Value::as_ref_address);
    let mut more = Vec::new();
    if let (Some(from), Some(to)) = (end("from"), end("to")) {
        more.push(format!("{} to {}", shown(from), shown(to)));
    }
    let importer = end("to").map(Address::to_string);
    let hob = importer.and_then(|machine| hobs.get(machine.as_str()).copied());
    let held = hob.and_then(|hob| hob.status.as_ref()).map(|status| {
        let mut all = status.bindings.iter();
        all.find(|it| it.binding == address && it.generation == generation)
    });
    let (health, state) = match (phase, held) {
        (Phase::RevokePending, _) => {
            more.push("an earlier grant is still to be taken back; the next apply does it".into());
            (Health::Ill, "revoke pending")
        }
        (Phase::Granted, Some(Some(held))) => {
            more.push(printable_line(&held.address).into_owned());
            more.push(counted(
                usize::try_from(held.streams).unwrap_or(usize::MAX),
                "stream",
            ));
            // A grant that is not live becomes so when a program connects.
            (Health::Well, if held.live { "live" } else { "ready" })
        }
        (Phase::Granted, Some(None)) => {
            more.push("its machine does not have it; the next apply grants it again".into());
            (Health::Ill, "missing")
        }
        (Phase::Granted, None) if hob.is_none() => (Health::Unsaid, "a row only"),
        (Phase::Granted, None) => (Health::Unsaid, "not known"),
    };
    Line {
        health,
        address: shown(&row.address),
        state: state.into(),
        more,
    }
}

fn alert(alert: &AlertReport, now_s: u64) -> Line {
    let times = if alert.count == 1 {
        "once".to_owned()
    } else {
        format!("{} times", alert.count)
    };
    let from = alert
        .other_address
        .as_deref()
        .unwrap_or("an unknown address");
    let mut more = vec![
        format!("another key tried to claim it {times}"),
        format!(
            "last {} ago from {}",
            ago(alert.last_time_s, now_s),
            printable_line(from)
        ),
        format!("key {}", printable_line(&alert.other_key)),
    ];
    if alert.contested {
        more.push("while its claim was open: whoever was first may not be the machine".into());
    }
    more.push(format!("gobs ack {} settles it", alert.id));
    Line {
        health: Health::Ill,
        address: printable_line(&alert.machine).into_owned(),
        state: format!("alert {}", alert.id),
        more,
    }
}

fn shown(address: &Address) -> String {
    printable_line(&address.to_string()).into_owned()
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Returns how long ago something was, in its largest unit.
pub(super) fn ago(then_s: u64, now_s: u64) -> String {
    let passed = Duration::from_secs(now_s.saturating_sub(then_s)).as_secs();
    match passed {
        0..=119 => counted(usize::try_from(passed).unwrap_or(0), "second"),
        120..=7_199 => format!("{} minutes", passed / 60),
        7_200..=172_799 => format!("{} hours", passed / 3_600),
        _ => format!("{} days", passed / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gobs_model::Known;
    use hob::protocol::{BindingStatus, ProgramStatus};

    use super::*;

    fn known(value: Value) -> Known {
        Known::try_from(value).expect("known")
    }

    fn row(at: &str, wanted: Value, kind: RowKind) -> Row {
        Row {
            address: at.parse().expect("an address"),
            wanted: known(wanted),
            observed: Known::empty(),
            depends_on: Vec::new(),
            version: 1,
            kind,
        }
    }

    fn machine_row(at: &str, enrolled: bool) -> Row {
        let kind = RowKind::Machine {
            provider: "dummy".into(),
            id: "i-1".into(),
            token: "t".into(),
            incarnation: 1,
            enrolled: enrolled.then(|| "designator".into()),
        };
        row(at, Value::object::<Arc<str>>([]), kind)
    }

    fn binding_row(at: &str, to: &str, phase: Phase) -> Row {
        let reference = |text: &str| Value::from(text.parse::<Address>().expect("an address"));
        let wanted = Value::object([
            ("from", reference("machine.db.service.orders")),
            ("to", reference(to)),
        ]);
        let kind = RowKind::Binding {
            generation: 2,
            from_incarnation: 1,
            to_incarnation: 1,
            parent: None,
            phase,
        };
        row(at, wanted, kind)
    }

    fn hob(machine: &str, status: Option<HobStatus>) -> HobReport {
        HobReport {
            machine: machine.into(),
            incarnation: 1,
            designator: "designator".into(),
            last_seen_s: 1_000,
            locked: false,
            status,
        }
    }

    fn held(binding: &str, generation: u64) -> BindingStatus {
        BindingStatus {
            name: "db".into(),
            binding: binding.into(),
            generation,
            address: "127.0.0.1:27462".into(),
            directory: "/x".into(),
            live: true,
            streams: 1,
        }
    }

    fn snapshot<const N: usize>(rows: [Row; N]) -> Snapshot {
        let rows = rows.map(|row| (row.address.clone(), Arc::new(row)));
        Snapshot {
            rows: rows.into(),
            ..Snapshot::default()
        }
    }

    #[track_caller]
    fn check(report: &StatusReport, snapshot: &Snapshot, needs_person: bool, expected: &str) {
        let (text, needs) = status((report, &[]), snapshot, 1_300);
        let text = anstream::adapter::strip_str(&text).to_string();
        assert_eq!((text.as_str(), needs), (expected, needs_person));
    }

    #[test]
    fn all_is_well() {
        let app = HobStatus {
            version: "0.1.0".into(),
            bindings: vec![held("binding.db", 2)],
            programs: vec![ProgramStatus {
                index: 0,
                pid: Some(1),
                restarts: 0,
            }],
            ..HobStatus::default()
        };
        let report = StatusReport {
            hobs: vec![hob("machine.app", Some(app))],
            alerts: Vec::new(),
            unclaimed: Vec::new(),
        };
        check(
            &report,
            &snapshot([
                machine_row("machine.app", true),
                machine_row("machine.simulated", true),
                binding_row("binding.db", "machine.app", Phase::Granted),
                binding_row("binding.rows", "machine.simulated", Phase::Granted),
            ]),
            false,
            "Machines
  machine.app        connected   hob 0.1.0, 1 of 1 program running
  machine.simulated  a row only

Bindings
  binding.db    live        machine.db.service.orders to machine.app, 127.0.0.1:27462, 1 stream
  binding.rows  a row only  machine.db.service.orders to machine.simulated
",
        );
        let nothing = (StatusReport::default(), Snapshot::default());
        check(&nothing.0, &nothing.1, false, "Nothing exists yet.\n");
    }

    #[test]
    fn what_needs_a_person_is_said() {
        let app = HobStatus {
            version: "0.1.0".into(),
            bindings: vec![held("binding.old", 1)],
            units: vec![UnitStatus {
                unit: "app.service".into(),
                error: "no bus".into(),
            }],
            ..HobStatus::default()
        };
        let alert = AlertReport {
            id: 7,
            machine: "machine.app".into(),
            bound_key: "a".into(),
            other_key: "b".into(),
            other_address: Some("10.0.0.9:1".into()),
            last_time_s: 1_200,
            count: 3,
            contested: false,
        };
        let report = StatusReport {
            hobs: vec![
                hob("machine.app", Some(app)),
                hob("machine.away", None),
                HobReport {
                    locked: true,
                    ..hob("machine.web[\"a\"]", None)
                },
            ],
            alerts: vec![alert],
            unclaimed: vec![("machine.never".into(), 1), ("machine.new".into(), 7)],
        };
        check(
            &report,
            &snapshot([
                machine_row("machine.app", true),
                Row {
                    observed: known(Value::object([("directory", "/m".into())])),
                    ..machine_row("machine.away", true)
                },
                machine_row("machine.never", false),
                machine_row("machine.new", false),
                machine_row("machine.web[\"a\"]", true),
                binding_row("binding.away", "machine.away", Phase::Granted),
                binding_row("binding.old", "machine.app", Phase::Granted),
                binding_row("binding.revoked", "machine.app", Phase::RevokePending),
            ]),
            true,
            "Machines
  machine.app       connected     hob 0.1.0, app.service: no bus (the hob looks again by \
             itself)
  machine.away      not reached   last registered 5 minutes ago, gobs hob --dir /m starts it \
             again
  machine.never     unclaimed     its hob did not call home in time; the next apply offers to \
             begin anew
  machine.new       not enrolled  its hob has not registered; the next apply waits for it
  machine.web[\"a\"]  locked        its key was used from two places, or this state is an old one; \
             if there is one such machine only, gobs unlock 'machine.web[\"a\"]' lets it back in

Bindings
  binding.away     not known       machine.db.service.orders to machine.away
  binding.old      missing         machine.db.service.orders to machine.app, its machine does \
             not have it; the next apply grants it again
  binding.revoked  revoke pending  machine.db.service.orders to machine.app, an earlier grant is \
             still to be taken back; the next apply does it

Alerts
  machine.app  alert 7  another key tried to claim it 3 times, last 100 seconds ago from \
             10.0.0.9:1, key b, gobs ack 7 settles it
",
        );
    }
}
