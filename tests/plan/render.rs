//! A plan as text: everything that apply obeys, nothing that it does not.

use std::fmt::Write;

use gobs::plan::{Action, Because, DriftKind, Grant, HOB, Held, Plan, Step};
use gobs_model::{Diagnostic, Value};

pub(crate) fn diagnostics(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().fold(String::new(), |mut out, it| {
        let severity = if it.is_error() { "error" } else { "warning" };
        let _ = writeln!(out, "{severity}: {it}");
        out
    })
}

pub(crate) fn plan(plan: &Plan) -> String {
    let mut out = diagnostics(&plan.warnings);
    for drift in &plan.drift {
        match &drift.kind {
            DriftKind::Gone => {
                let _ = writeln!(out, "drift {}: gone", drift.address);
            }
            DriftKind::Changed(changed) => {
                for it in changed {
                    let (at, path) = (&drift.address, &it.path);
                    let _ = writeln!(out, "drift {at}: {path} {:?} -> {:?}", it.was, it.now);
                }
            }
        }
    }
    plan.steps.iter().for_each(|it| step(&mut out, it));
    for output in &plan.outputs {
        let before = output
            .before
            .as_ref()
            .map_or("nothing".into(), |it| format!("{it:?}"));
        let after = output
            .after
            .as_ref()
            .map_or("nothing".into(), |it| format!("{it:?}"));
        let _ = writeln!(out, "output {}: {before} -> {after}", output.name);
    }
    if plan.is_empty() {
        out += "nothing to do\n";
        return out;
    }
    let counts = plan.counts();
    let lines = std::iter::once(counts.machines_planned()).chain(counts.bindings_planned());
    lines.for_each(|line| out += &format!("{line}\n"));
    out
}

fn step(out: &mut String, step: &Step) {
    let what = match &step.action {
        Action::Create {
            provider,
            wanted,
            incarnation,
            replaces,
            ..
        } => {
            let replaces = if *replaces { " as replacement" } else { "" };
            format!(
                " at {provider}, incarnation {incarnation}{replaces}: {}",
                asked(wanted)
            )
        }
        Action::Import {
            provider,
            id,
            wanted,
            incarnation,
        } => format!(
            " at {provider}, {id}, incarnation {incarnation}: {}",
            asked(wanted)
        ),
        Action::Update {
            wanted,
            change,
            incarnation,
            calls_provider,
            ..
        } => {
            let called = if *calls_provider {
                ""
            } else {
                " in the row only"
            };
            format!(
                ", {change:?}, incarnation {incarnation}{called}: {}",
                asked(wanted)
            )
        }
        Action::Delete {
            provider, replaced, ..
        } => {
            format!(
                " at {provider}{}",
                if *replaced { ", to be replaced" } else { "" }
            )
        }
        Action::Admit { whom, .. } => {
            let machines: Vec<String> = whom.machines.iter().map(ToString::to_string).collect();
            let mut by = whom.attributes.join(", ");
            for within in &whom.networks {
                let (network, part) = (&within.network, &within.part);
                by += &format!(" {}.{} in {part:?}", network.block, network.address);
            }
            let also = &whom.also;
            format!(
                " {} by {by} at {}, and {also:?}",
                machines.join(", "),
                whom.port
            )
        }
        Action::Enroll {
            incarnation,
            deadline_s,
            ..
        } => {
            format!(", incarnation {incarnation}, within {deadline_s} s")
        }
        Action::Offer {
            spec,
            incarnation,
            of,
            ..
        } => {
            let of = of.as_ref().map(|it| format!(" for {it}"));
            let of = of.unwrap_or_default();
            format!("{of}, incarnation {incarnation}: {spec:?}")
        }
        Action::Withdraw {
            settled_by_delete, ..
        } => {
            if *settled_by_delete {
                ", settled by delete".into()
            } else {
                String::new()
            }
        }
        Action::Bind {
            grant: it, revokes, ..
        } => {
            let revokes = revokes.as_ref().map(|it| format!("; revokes {}", held(it)));
            format!(" {}{}", grant(it), revokes.unwrap_or_default())
        }
        Action::Move {
            grant: it, revokes, ..
        } => {
            format!(" {}; revokes {}", grant(it), held(revokes))
        }
        Action::Expose { grant: it, .. } => format!(" {}", grant(it)),
        Action::Unbind { held: it, .. } => format!(" {}", held(it)),
    };
    let simulated = if step.action.is_simulated() {
        " (simulated)"
    } else {
        ""
    };
    let (id, name, address) = (step.id, step.action.name(), &step.address);
    let _ = writeln!(out, "{id} {name} {address}{simulated}{what}");
    let because: Vec<String> = step.because.iter().map(because).collect();
    let _ = write!(out, "    because {}", because.join("; "));
    if !step.after.is_empty() {
        let after: Vec<String> = step.after.iter().map(ToString::to_string).collect();
        let _ = write!(out, "; after {}", after.join(" "));
    }
    if !step.depends_on.is_empty() {
        let needs: Vec<String> = step.depends_on.iter().map(ToString::to_string).collect();
        let _ = write!(out, "; needs {}", needs.join(" "));
    }
    out.push('\n');
}

/// What is asked of a provider: what is not set is left out, and so is a hob like any other.
fn asked(wanted: &Value) -> String {
    let default = gobs::lang::HobValues::default().to_value();
    let entries = wanted.as_entries().into_iter().flatten();
    let set = entries
        .filter(|(name, value)| !(value.is_null() || &***name == HOB && value.same(&default)));
    format!(
        "{:?}",
        Value::object(set.map(|(name, value)| (name.clone(), value.clone())))
    )
}

fn grant(grant: &Grant) -> String {
    let mut out = format!(
        "generation {} from {} ({}) to {} ({}) as {}",
        grant.generation,
        grant.from,
        grant.from_incarnation,
        grant.to,
        grant.to_incarnation,
        grant.name
    );
    if let Some(via) = &grant.via {
        let _ = write!(out, ", via {} generation {}", via.binding, via.generation);
    }
    if !grant.attenuate.is_null() {
        let _ = write!(out, ", attenuate {:?}", grant.attenuate);
    }
    if grant.expose.as_elements().is_none_or(|it| !it.is_empty()) {
        let _ = write!(out, ", expose {:?}", grant.expose);
    }
    out
}

fn held(held: &Held) -> String {
    let settled = if held.settled_by_delete {
        ", settled by delete"
    } else {
        ""
    };
    let gone = if held.importer_gone {
        ", importer gone"
    } else {
        ""
    };
    let Held {
        generation,
        from,
        to,
        name,
        ..
    } = held;
    format!("generation {generation} from {from} to {to} as {name}{settled}{gone}")
}

fn because(because: &Because) -> String {
    match because {
        Because::Imported { id } => format!("imported from {id}"),
        Because::Declared => "declared".into(),
        Because::Destroy => "destroy".into(),
        Because::NotDeclared => "not declared".into(),
        Because::KeyGone => "its key is gone".into(),
        Because::Changed { path, change } if path.0.is_empty() => format!("changed ({change:?})"),
        Because::Changed { path, change } => format!("{path} changed ({change:?})"),
        Because::Drifted { path, change } => format!("{path} drifted ({change:?})"),
        Because::Gone => "gone".into(),
        Because::ProviderChanged { was } => format!("it was at {was}"),
        Because::NotEnrolled => "not enrolled".into(),
        Because::Unclaimed => "unclaimed".into(),
        Because::OfferUnsettled => "an earlier offer did not end well".into(),
        Because::NewIncarnation { machine } => format!("{machine} is new"),
        Because::FromChanged { was } => format!("it was from {was}"),
        Because::ToChanged { was } => format!("it was to {was}"),
        Because::ServiceChanged { service } => format!("{service} is another one"),
        Because::ParentGranted { parent } => format!("{parent} is granted again"),
        Because::RevokePending => "its revocation is pending".into(),
        Because::Lost { machine } => format!("{machine} has lost it"),
        Because::MachineGone { machine } => format!("{machine} goes"),
    }
}
