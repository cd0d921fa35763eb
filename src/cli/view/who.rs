//! Who holds a service, and who had it for a while.

use std::time::{SystemTime, UNIX_EPOCH};

use gobs_model::{Address, Value};
use gobs_state::{LoanRow, RowKind, Snapshot};
use hob::protocol::{Access, Attenuate};
use serde::Serialize;

use crate::boss::StatusReport;
use crate::lang::{rfc3339, rights};

use super::status::ago;
use super::text::{BOLD, DIM, printable_line, styled};

/// Somebody who holds a service.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Holder {
    /// The binding.
    pub(in crate::cli) binding: String,
    /// Which grant of it.
    generation: u64,
    /// The machine that has it; the key of its hob, where the state knows no such machine.
    holder: String,
    /// The binding that it is made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    made_from: Option<String>,
    /// The limits that hold, its parents' among them.
    rights: Attenuate,
    /// When it was granted, in seconds since 1970; nothing where the hob could not be asked.
    since_s: Option<u64>,
    /// Streams open now, likewise.
    streams: Option<u64>,
}

/// A person who has or had a service for a while, as our own record has it.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct LoanView {
    holder: String,
    generation: u64,
    /// The designator of the person's key.
    key: String,
    /// In seconds since 1970: when it was asked for, when it ends at the latest, and when it was
    /// given back; the last is nothing where it was not.
    since_s: u64,
    expires_s: u64,
    ended_s: Option<u64>,
}

/// Those shown to people; who asks for JSON gets all that are kept.
const LOANS_SHOWN_MAX: usize = 20;

/// Returns loans as they are shown.
pub(in crate::cli) fn loans(rows: Vec<LoanRow>) -> Vec<LoanView> {
    let seconds = |time: SystemTime| {
        let since = time.duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs())
    };
    let view = |row: LoanRow| LoanView {
        holder: row.holder,
        generation: row.generation,
        key: row.key,
        since_s: seconds(row.since),
        expires_s: seconds(row.expires),
        ended_s: row.ended.map(seconds),
    };
    rows.into_iter().map(view).collect()
}

/// Returns who holds a service: as the hob that gives it out says, or else the state.
pub(in crate::cli) fn holders(
    service: &Address,
    report: &StatusReport,
    snapshot: &Snapshot,
) -> Vec<Holder> {
    let Address::Service {
        machine,
        service: name,
    } = service
    else {
        return Vec::new();
    };
    let machine = Address::Machine(machine.clone()).to_string();
    let hob = report.hobs.iter().find(|it| it.machine == machine);
    let Some(status) = hob.and_then(|it| it.status.as_ref()) else {
        return remembered(service, snapshot);
    };
    let held = status
        .grants
        .iter()
        .filter(|it| it.service == name.as_str());
    let of_key = |key: &str| {
        let found = report.hobs.iter().find(|it| it.designator == key);
        found.map_or_else(|| format!("key {key}"), |it| it.machine.clone())
    };
    held.map(|grant| Holder {
        binding: grant.binding.clone(),
        generation: grant.generation,
        holder: of_key(&grant.receiver),
        made_from: grant.parent.as_ref().map(|it| it.binding.clone()),
        rights: grant.rights.clone(),
        since_s: Some(grant.since),
        streams: Some(grant.streams),
    })
    .collect()
}

fn remembered(service: &Address, snapshot: &Snapshot) -> Vec<Holder> {
    let rows = snapshot.rows.values().filter_map(|row| {
        let RowKind::Binding { generation, .. } = row.kind else {
            return None;
        };
        let from = row.wanted.get("from")?.as_ref_address()?;
        let root = row.wanted.get("service").and_then(Value::as_ref_address);
        (root.unwrap_or(from) == service).then(|| Holder {
            binding: row.address.to_string(),
            generation,
            holder: row.wanted.get("to").map_or_else(String::new, |to| {
                to.as_ref_address()
                    .map_or_else(String::new, ToString::to_string)
            }),
            made_from: root.map(|_| from.to_string()),
            rights: row
                .wanted
                .get("attenuate")
                .and_then(rights)
                .unwrap_or_default(),
            since_s: None,
            streams: None,
        })
    });
    rows.collect()
}

/// Returns the holders for people, and who had it before. `now_s` is in seconds since 1970.
pub(in crate::cli) fn who(
    service: &Address,
    holders: &[Holder],
    loans: &[LoanView],
    now_s: u64,
) -> String {
    let holds = |loan: &LoanView| {
        let mut holders = holders.iter();
        holders.any(|it| it.binding == loan.holder && it.generation == loan.generation)
    };
    let before = loans.iter().filter(|loan| !holds(loan));
    let before: String = before
        .take(LOANS_SHOWN_MAX)
        .map(|loan| {
            let end = loan.ended_s.unwrap_or(loan.expires_s).min(loan.expires_s);
            let (since, until) = (rfc3339(loan.since_s), rfc3339(end));
            let line = format!("{}, {since} to {until}", loan.holder);
            format!("  {}\n", styled(DIM, printable_line(&line)))
        })
        .collect();
    let before = match before.is_empty() {
        true => before,
        false => format!("Had it for a while:\n{before}"),
    };
    if holders.is_empty() {
        return format!("Nobody holds {service}.\n{before}");
    }
    let mut out = styled(BOLD, printable_line(&service.to_string())) + "\n";
    let width = |of: fn(&Holder) -> &str| holders.iter().map(|it| of(it).chars().count()).max();
    let bindings = width(|it| &it.binding).unwrap_or(0);
    let machines = width(|it| &it.holder).unwrap_or(0);
    for holder in holders {
        let mut more = limits(&holder.rights);
        more.extend(holder.made_from.iter().map(|it| format!("made from {it}")));
        match (holder.since_s, holder.streams) {
            (Some(since), Some(streams)) => {
                more.push(format!("for {}", ago(since, now_s)));
                more.push(match streams {
                    1 => "1 stream".into(),
                    streams => format!("{streams} streams"),
                });
            }
            _ => more.push("as far as the state tells; the hob cannot be reached".into()),
        }
        let (binding, machine) = (
            printable_line(&holder.binding),
            printable_line(&holder.holder),
        );
        let more = printable_line(&more.join(", ")).into_owned();
        out += &format!(
            "  {binding:bindings$}  {machine:machines$}  {}\n",
            styled(DIM, more)
        );
    }
    out + &before
}

/// Returns the limits, each in a few words.
fn limits(rights: &Attenuate) -> Vec<String> {
    let mut all = Vec::new();
    all.extend(rights.access.map(|access| {
        let word = match access {
            Access::Read => "read",
            Access::Write => "write",
            Access::Owner => "owner",
        };
        format!("access {word}")
    }));
    let lists = [
        ("schemas", &rights.schemas),
        ("keys", &rights.keys),
        ("commands", &rights.commands),
        ("channels", &rights.channels),
        ("methods", &rights.methods),
        ("paths", &rights.paths),
    ];
    for (name, list) in lists {
        all.extend(list.iter().map(|list| format!("{name} {}", list.join(" "))));
    }
    let max = rights.connections_max;
    all.extend(max.map(|max| format!("{max} connections at most")));
    all.extend(rights.expires.map(|end| format!("until {}", rfc3339(end))));
    if all.is_empty() {
        all.push("all rights".into());
    }
    all
}
