//! What providers may not do of what a plan asks of them: said before anything is begun.

use std::collections::BTreeMap;
use std::sync::Arc;

use gobs_model::{Address, Value};
use gobs_provider::{Error, Intended};

use crate::apply::Providers;
use crate::plan::{Action, HOB, Plan};

/// Returns, for each provider that lacks rights for a plan, its name and what it lacks.
pub(crate) async fn lacking(providers: &Providers, plan: &Plan) -> Vec<(String, String)> {
    let mut lacking = Vec::new();
    for (name, intended) in intended(plan) {
        let Some(provider) = providers.get(name) else {
            continue;
        };
        let rights = match provider.lacking(&intended).await {
            Ok(rights) => rights,
            Err(Error::Denied(why)) => vec![why],
            Err(error) => {
                // What cannot be asked now may be there when it is needed.
                tracing::debug!(provider = name, %error, "its rights are not known");
                Vec::new()
            }
        };
        if !rights.is_empty() {
            lacking.push((name.to_owned(), rights.join(", ")));
        }
    }
    lacking
}

/// Returns what a plan is to make of the machines of each provider.
fn intended(plan: &Plan) -> BTreeMap<&str, Vec<Intended>> {
    let mut all: BTreeMap<&str, Vec<Intended>> = BTreeMap::new();
    let mut goes: BTreeMap<(&Address, &str), Value> = BTreeMap::new();
    for step in &plan.steps {
        if let Action::Delete {
            provider,
            simulated: false,
            ..
        } = &step.action
        {
            goes.insert((&step.address, provider), theirs(&step.before));
        }
    }
    for step in &plan.steps {
        let (provider, after) = match &step.action {
            Action::Create {
                provider,
                wanted,
                simulated: false,
                ..
            } => {
                // One that takes the place of another: what outlives that is there already.
                let before = goes.remove(&(&step.address, provider.as_str()));
                all.entry(provider).or_default().push(Intended {
                    before: before.unwrap_or(Value::NULL),
                    after: theirs(wanted),
                    anew: true,
                });
                continue;
            }
            Action::Update {
                provider,
                wanted,
                simulated: false,
                calls_provider: true,
                ..
            } => (provider, wanted),
            Action::Import {
                provider, wanted, ..
            } => (provider, wanted),
            Action::Admit {
                provider,
                simulated: false,
                ..
            } => (provider, &step.planned),
            _ => continue,
        };
        all.entry(provider).or_default().push(Intended {
            before: theirs(&step.before),
            after: theirs(after),
            anew: false,
        });
    }
    for ((_, provider), before) in goes {
        all.entry(provider).or_default().push(Intended {
            before,
            after: Value::NULL,
            anew: false,
        });
    }
    all
}

/// Returns a machine's attributes without what is gobs' own.
fn theirs(machine: &Value) -> Value {
    let Some(entries) = machine.as_entries() else {
        return machine.clone();
    };
    let theirs = entries.iter().filter(|(name, _)| &***name != HOB);
    let theirs = theirs.map(|(name, value)| (name.clone(), value.clone()));
    Value::object::<Arc<str>>(theirs).sensitive_if(machine.sensitive)
}
