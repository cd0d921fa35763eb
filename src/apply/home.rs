//! Where a machine is, as its provider says, and from where its hob is expected to call.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use gobs_model::{Address, Diagnostic, Known, Path, ProviderSchema, Value};
use gobs_provider::{Observed, Provider};
use gobs_state::{Row, RowKind, Snapshot, SwissnumHash};
use hob::protocol::host_and_port;

use crate::boss::{Boss, Expected, Home};
use crate::lang::{Dial, HobValues, Schemas};
use crate::plan::HOB;

/// What a machine's hob was invited with.
#[derive(Clone, Debug)]
pub(super) struct Invited {
    pub(super) claim: SwissnumHash,
    pub(super) incarnation: u64,
    pub(super) hob: HobValues,
}

impl Invited {
    /// Says that the provider has made the machine, and where it is.
    pub(super) fn accepted(
        &self,
        boss: &Boss,
        machine: &Address,
        schema: &ProviderSchema,
        seen: &Observed,
    ) {
        let seen = Some(&seen.attributes);
        expect(boss, machine, self.incarnation, &self.hob, schema, seen);
        if let Err(error) = boss.accepted(self.claim, self.hob.deadline) {
            // The time to claim then counts from the invitation, which is a little earlier.
            tracing::warn!(%error, %machine, "an acceptance was not noted");
        }
    }
}

/// A machine whose hob is waited for.
pub(super) struct Awaited {
    pub(super) provider: Arc<dyn Provider>,
    pub(super) seen: Observed,
    /// Where the boss calls it, if it does.
    pub(super) call: Vec<(String, u16)>,
    pub(super) ttl: Duration,
}

impl Awaited {
    /// Asks the provider now and then whether it is still making the machine, which leaves its
    /// hob more time; returns why nobody will call home, once that is so.
    pub(super) async fn look_after(
        &self,
        boss: &Boss,
        machine: &Address,
        incarnation: u64,
    ) -> Box<Diagnostic> {
        let hosts = &self.provider.schema().hosts;
        let look = match (hosts.provisioning.is_empty(), hosts.ended.is_empty()) {
            (true, true) => return std::future::pending().await,
            (true, false) => ENDED_LOOK,
            (false, _) => PROVISIONING_LOOK,
        };
        loop {
            boss.pause(look).await;
            // What cannot be read now is read the next time.
            let Ok(Some(seen)) = self.provider.read(&self.seen).await else {
                continue;
            };
            let is_one_of = |states: &[String]| states.iter().any(|it| has_status(&seen, it));
            if is_one_of(&hosts.ended) {
                return self.ended(machine, &seen);
            }
            if is_one_of(&hosts.provisioning)
                && let Err(error) = boss.provisioning(machine, incarnation, self.ttl)
            {
                tracing::warn!(%error, %machine, "the time to claim was not extended");
            }
        }
    }

    /// Says that a machine's hob has ended, and what it said last, if that can be read here.
    fn ended(&self, machine: &Address, seen: &Observed) -> Box<Diagnostic> {
        let mut detail = format!("{machine}: its hob has ended before it called home.");
        let directory = seen.attributes.get("directory").and_then(Value::as_str);
        if let Some(directory) = directory.filter(|_| !self.provider.schema().hosts.elsewhere) {
            let log = hob::layout::Layout::new(directory).log_tail();
            if !log.trim().is_empty() {
                detail += &format!("\nThe end of its logs:\n{}", log.trim_end());
            }
        }
        let hint = "Mend what it says; the next apply has the machine begin anew.";
        let error = Diagnostic::error("Enrollment failed", detail);
        Box::new(error.about(machine.clone(), Path::default()).hint(hint))
    }
}

fn has_status(seen: &Observed, status: &str) -> bool {
    seen.attributes.get("status").and_then(Value::as_str) == Some(status)
}

/// How often a provider is asked whether a machine's agent has ended: it runs on this host, so
/// asking costs little.
const ENDED_LOOK: Duration = Duration::from_secs(1);

/// How often a provider is asked whether it is still making a machine: seldom enough for hundreds
/// of machines under any limit of requests, and often within the time that it adds.
const PROVISIONING_LOOK: Duration = Duration::from_secs(60);

/// Returns the settings of a machine's hob, as its row has them.
pub(super) fn hob_of(wanted: &Known) -> HobValues {
    HobValues::of_value(wanted.get(HOB).unwrap_or(&Value::NULL))
}

/// Says from where a machine's hob is to call, as far as the provider tells.
pub(super) fn expect(
    boss: &Boss,
    machine: &Address,
    incarnation: u64,
    hob: &HobValues,
    schema: &ProviderSchema,
    seen: Option<&Known>,
) {
    if let Some(expected) = expected(hob, schema, seen) {
        boss.expect_from(machine, incarnation, expected);
    }
}

fn expected(hob: &HobValues, schema: &ProviderSchema, seen: Option<&Known>) -> Option<Expected> {
    let names = &schema.hosts.addresses;
    if names.is_empty() {
        return None;
    }
    let addresses: Option<Vec<IpAddr>> = seen.map(|seen| {
        let texts = names.iter().filter_map(|name| seen.get(name));
        let texts = texts.flat_map(addresses_in);
        texts
            .filter_map(|text| text.parse::<IpAddr>().ok())
            .collect()
    });
    // A machine of this host calls from whichever of the host's addresses leads to the boss.
    let is_here = |all: &Vec<IpAddr>| all.iter().any(|it| it.is_loopback());
    let addresses = addresses.filter(|all| hob.require_address || !is_here(all));
    Some(Expected {
        addresses,
        required: hob.require_address,
    })
}

/// Returns from where the hobs are to call that have not registered yet.
pub fn homes(snapshot: &Snapshot, schemas: &Schemas) -> Vec<Home> {
    let home = |row: &Arc<Row>| {
        let RowKind::Machine {
            provider,
            incarnation,
            enrolled: None,
            ..
        } = &row.kind
        else {
            return None;
        };
        let schema = schemas.get(provider.split('.').next().unwrap_or_default())?;
        let expected = expected(&hob_of(&row.wanted), schema, Some(&row.observed))?;
        Some((row.address.clone(), *incarnation, expected))
    };
    snapshot.rows.values().filter_map(home).collect()
}

/// Returns where the boss calls a machine's hob, where it is the one that calls.
pub(super) fn call(hob: &HobValues, schema: &ProviderSchema, seen: &Known) -> Vec<(String, u16)> {
    if hob.dial != Dial::Boss {
        return Vec::new();
    }
    let (host, port) = host_and_port(hob.listens_on(schema.hosts.elsewhere), 0);
    let mut hosts = advertised(hob, schema, Some(seen));
    if hosts.is_empty() {
        let said = schema.hosts.addresses.iter();
        hosts.extend(
            said.filter_map(|name| seen.get(name))
                .flat_map(addresses_in),
        );
    }
    if hosts.is_empty() {
        hosts.push(host);
    }
    let places = hosts.iter().map(|host| host_and_port(host, port));
    places.collect()
}

/// Returns what a hob tells others to dial. An attribute of the machine stands for its value;
/// where that is not known yet, the hob finds its own address.
pub(super) fn advertised(
    hob: &HobValues,
    schema: &ProviderSchema,
    seen: Option<&Known>,
) -> Vec<String> {
    let resolve = |text: &String| -> Vec<String> {
        if !schema.machine.attributes.contains_key(text) {
            return vec![text.clone()];
        }
        seen.and_then(|seen| seen.get(text))
            .map(addresses_in)
            .unwrap_or_default()
    };
    hob.advertise.iter().flat_map(resolve).collect()
}

/// Returns the addresses in an attribute: a text or a list of them, a prefix's length left out.
fn addresses_in(value: &Value) -> Vec<String> {
    let texts: Vec<&str> = match value.as_str() {
        Some(text) => vec![text],
        None => value
            .as_elements()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect(),
    };
    let bare = texts
        .iter()
        .map(|text| text.split('/').next().unwrap_or_default());
    bare.map(str::to_owned).collect()
}
