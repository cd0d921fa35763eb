//! Whom a derived firewall lets in: the machines that a machine's bindings are given to, at the
//! port where its hob listens, and the boss where that dials.

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gobs_model::{
    Address, Block, Change, Diagnostic, Instance, Nesting, Network, Path, ProviderSchema, Role,
    Value,
};
use gobs_state::{Row, RowKind};
use hob::protocol::host_and_port;

use crate::lang::{BlockId, Dial, MachineValues};

use super::draft::{NewStep, Node};
use super::step::{Whom, Within};
use super::{Action, Because, Planner};

/// The attributes that say where a machine is, where its hob does not say which lead to it.
const ADDRESSES: [&str; 3] = ["address", "ipv4", "ipv6"];

/// A machine whose firewall is derived, while the bindings are planned.
#[derive(Debug)]
pub(crate) struct Derived {
    pub(crate) provider: String,
    pub(crate) whom: Whom,
    /// Whom it lets in before the plan, or as the machine is made.
    pub(crate) was: Value,
    /// What a reference to the machine shows before, and with its own changes.
    pub(crate) before: Value,
    pub(crate) planned: Value,
    /// The machines that bindings from it are given to.
    pub(crate) importers: BTreeSet<Address>,
    /// The steps that grant bindings from it, and that take them back.
    pub(crate) binds: Vec<Node>,
    pub(crate) unbinds: Vec<Node>,
}

/// Returns the nested block that is derived, and its attribute of [`Role::Admits`].
fn derived_block<'a>(schema: &'a Block, wanted: &Value) -> Option<(&'a str, &'a str)> {
    schema.blocks.iter().find_map(|(name, nested)| {
        let attributes = &nested.block.attributes;
        let admits = attributes.iter().find(|(_, it)| it.role == Role::Admits)?;
        let flag = wanted.get(name)?.get("derived")?.as_bool()?;
        (nested.nesting == Nesting::Single && flag).then_some((name.as_str(), admits.0.as_str()))
    })
}

/// Returns whom a machine's derived firewall was to let in, as its row has it.
fn admitted<'a>(schema: &Block, wanted: &'a Value) -> Option<&'a Value> {
    let (block, attribute) = derived_block(schema, wanted)?;
    wanted.get(block)?.get(attribute).filter(|it| !it.is_null())
}

/// Returns a machine's attributes with whom its derived firewall lets in, where it has one.
pub(crate) fn admitting(schema: &Block, attributes: &Value, admits: &Value) -> Value {
    match derived_block(schema, attributes) {
        Some((block, attribute)) => with(attributes, block, attribute, admits.clone()),
        None => attributes.clone(),
    }
}

/// Returns a machine's attributes with whom those that were planned let in.
pub(crate) fn admitting_as(schema: &Block, attributes: &Value, planned: &Value) -> Value {
    match admitted(schema, planned) {
        Some(admits) => admitting(schema, attributes, admits),
        None => attributes.clone(),
    }
}

/// Returns what is planned of a machine that will be at other addresses, which the provider has
/// yet to say.
pub(crate) fn moved(schema: &ProviderSchema, planned: Value) -> Value {
    let mut entries = planned.as_entries().cloned().unwrap_or_default();
    let named = schema.hosts.addresses.iter().map(String::as_str);
    for name in ADDRESSES.into_iter().chain(named) {
        let attribute = schema.machine.attributes.get(name);
        if let Some(computed) = attribute.filter(|it| it.role == Role::Computed) {
            entries.insert(name.into(), Value::unknown(computed.ty.clone()));
        }
    }
    Value::object::<Arc<str>>(entries).sensitive_if(planned.sensitive)
}

fn with(of: &Value, block: &str, attribute: &str, admits: Value) -> Value {
    let mut entries = of.as_entries().cloned().unwrap_or_default();
    if let Some(inner) = entries.get_mut(block) {
        let mut fields = inner.as_entries().cloned().unwrap_or_default();
        fields.insert(attribute.into(), admits);
        *inner = Value::object::<Arc<str>>(fields).sensitive_if(inner.sensitive);
    }
    Value::object::<Arc<str>>(entries).sensitive_if(of.sensitive)
}

impl Whom {
    /// Returns a machine's `wanted` with these let in.
    pub fn put_into(&self, wanted: &Value, admits: Value) -> Value {
        with(wanted, &self.block, &self.attribute, admits)
    }

    /// Returns whom to let in; a machine that says nothing of itself is not let in.
    pub fn resolve<'a>(&self, observed: impl Fn(&Address) -> Option<&'a Value>) -> Value {
        let machines = self.machines.iter().filter_map(observed);
        let addresses = machines.flat_map(|observed| self.addresses_of(observed));
        let also = self.also.as_elements().unwrap_or_default();
        Value::set(addresses.chain(also.iter().cloned()))
    }

    fn addresses_of(&self, observed: &Value) -> Vec<Value> {
        let of = |names: &mut dyn Iterator<Item = &str>| -> Vec<String> {
            let values = names.filter_map(|name| observed.get(name));
            let texts = values.flat_map(|value| match value.as_str() {
                Some(text) => vec![text],
                None => {
                    let elements = value.as_elements().unwrap_or_default();
                    elements.iter().filter_map(Value::as_str).collect()
                }
            });
            let bare = texts.map(|it| it.split('/').next().unwrap_or(it).to_owned());
            bare.collect()
        };
        let mut found = of(&mut self.attributes.iter().map(String::as_str));
        if found.is_empty() && !self.attributes.is_empty() {
            // A machine of another provider may not have these.
            found = of(&mut ADDRESSES.into_iter());
        }
        let there = self
            .networks
            .iter()
            .flat_map(|it| it.addresses_of(observed));
        found.extend(there.map(|it| it.to_string()));
        found.iter().map(|it| one(it, self.port)).collect()
    }
}

impl Within {
    fn of(network: &Network, block: &Value) -> Self {
        let part = block.get(&network.part).filter(|it| !it.contains_unknown());
        Self {
            network: network.clone(),
            part: part.cloned().unwrap_or(Value::NULL),
        }
    }

    /// Returns where a machine is that comes by this network: in the same part of it where it is
    /// in that, and otherwise wherever it is in such networks, since parts may lead to each other.
    fn addresses_of(&self, machine: &Value) -> Vec<IpAddr> {
        let blocks = || {
            let all = blocks_in(&self.network, machine);
            all.filter_map(|it| Some((it, address_in(&self.network, it)?)))
        };
        let part = |block: &Value| {
            block
                .get(&self.network.part)
                .is_some_and(|it| self.part.same(it))
        };
        let near = blocks().filter(|it| !self.part.is_null() && part(it.0));
        let near: Vec<IpAddr> = near.map(|it| it.1).collect();
        match near.is_empty() {
            true => blocks().map(|it| it.1).collect(),
            false => near,
        }
    }
}

/// How those come to a machine who dial what its hob advertises.
#[derive(Default)]
struct Ways {
    /// The attributes that hold the addresses that they come from.
    attributes: Vec<String>,
    networks: Vec<Within>,
}

impl Ways {
    fn of(schema: &ProviderSchema, values: &MachineValues) -> Self {
        let mut ways = Self::default();
        let mut said = values.hob.advertise.clone();
        let listen = host_and_port(values.hob.listens_on(schema.hosts.elsewhere), 0).0;
        let any = |it: IpAddr| it.is_unspecified();
        if said.is_empty() && !listen.parse().is_ok_and(any) {
            said.push(listen);
        }
        let mut from_anywhere = false;
        for text in &said {
            if schema.machine.attributes.contains_key(text) {
                ways.attributes.push(text.clone());
                continue;
            }
            let address = host_and_port(text, 0).0.parse::<IpAddr>().ok();
            let is_it = |network: &Network, block: &Value| {
                address.is_some() && address_in(network, block) == address
            };
            // What is not one of its own is a name, or an address that leads to it.
            from_anywhere |= !ways.lead_by(schema, &values.attributes, is_it);
        }
        if said.is_empty() {
            // It is where its default route begins.
            let is_default = |network: &Network, block: &Value| {
                let blocks = values.attributes.get(&network.block);
                let is_sole = blocks
                    .and_then(Value::as_elements)
                    .is_some_and(|it| it.len() == 1);
                is_sole || block.get(&network.route).and_then(Value::as_bool) == Some(true)
            };
            from_anywhere = !ways.lead_by(schema, &values.attributes, is_default);
        }
        if from_anywhere {
            let more = ADDRESSES.map(str::to_owned).into_iter();
            ways.attributes.extend(more.filter(|it| !said.contains(it)));
        }
        ways
    }

    /// Adds the network of the machine's block that is meant; returns whether there is one.
    fn lead_by(
        &mut self,
        schema: &ProviderSchema,
        machine: &Value,
        is_meant: impl Fn(&Network, &Value) -> bool,
    ) -> bool {
        let networks = schema.hosts.networks.iter();
        let mut blocks =
            networks.flat_map(|network| blocks_in(network, machine).map(move |it| (network, it)));
        let Some((network, block)) = blocks.find(|(network, block)| is_meant(network, block))
        else {
            return false;
        };
        let within = Within::of(network, block);
        if network.filtered && !self.networks.contains(&within) {
            self.networks.push(within);
        }
        true
    }
}

/// Returns the blocks that say that a machine is in a network.
fn blocks_in<'a>(network: &'a Network, machine: &'a Value) -> impl Iterator<Item = &'a Value> {
    let blocks = machine.get(&network.block).and_then(Value::as_elements);
    let says = |block: &Value, name: &str| block.get(name).is_some_and(|it| !it.is_null());
    let is_in = move |it: &&Value| says(it, &network.address) || says(it, &network.part);
    blocks.into_iter().flatten().filter(is_in)
}

/// Returns where a block says that its machine is.
fn address_in(network: &Network, block: &Value) -> Option<IpAddr> {
    let text = block.get(&network.address)?.as_str()?;
    text.split('/').next()?.parse().ok()
}

/// Returns the networks in which a machine says where it is, which may be known later.
pub(crate) fn networks_of(schema: &ProviderSchema, attributes: &Value) -> Vec<Network> {
    let says = |network: &Network, block: &Value| {
        let address = block.get(&network.address);
        address.is_some_and(|it| !it.is_null())
    };
    let networks = schema.hosts.networks.iter();
    let own = networks.filter(|network| blocks_in(network, attributes).any(|it| says(network, it)));
    own.cloned().collect()
}

fn one(address: &str, port: u16) -> Value {
    let port = Value::from(i64::from(port));
    Value::object([("address", address.into()), ("port", port)])
}

impl Planner<'_> {
    /// Returns what a machine's derived firewall is about, and whom it lets in before the plan.
    pub(crate) fn derived(
        &mut self,
        instance: &Instance,
        schema: &ProviderSchema,
        values: &MachineValues,
        row: Option<&Row>,
    ) -> Option<(Whom, Value)> {
        let (block, attribute) = derived_block(&schema.machine, &values.attributes)?;
        let listen = values.hob.listens_on(schema.hosts.elsewhere);
        let port = listen.rsplit(':').next().and_then(|it| it.parse().ok());
        let Ways {
            attributes,
            networks,
        } = Ways::of(schema, values);
        let mut errors = Vec::new();
        let port = match port {
            Some(port @ 1..) => port,
            _ => {
                let detail = format!(
                    "The firewall of machine.{instance} is derived, but its hob listens on \
                     {listen}: which port to let others in at is not known."
                );
                let error = Diagnostic::error("Firewall without a port", detail);
                errors.push(error.hint("Set listen = \"[::]:7463\" in its hob block."));
                0
            }
        };
        let boss = match values.hob.dial {
            Dial::Hob => Vec::new(),
            Dial::Boss => self.boss_addresses(instance, schema.hosts.elsewhere, &mut errors),
        };
        let block_id = BlockId::Machine(instance.name.clone());
        self.report(&block_id, errors);
        let whom = Whom {
            block: block.into(),
            attribute: attribute.into(),
            port,
            machines: Vec::new(),
            attributes,
            networks,
            also: Value::set(boss.iter().map(|it| one(it, port))),
        };
        let was = row.and_then(|row| admitted(&schema.machine, row.wanted.value()));
        let was = was.cloned().unwrap_or_else(|| {
            // Whoever is served already is not to be locked out meanwhile.
            let machines = self.served_by(instance);
            let rows = &self.snapshot.rows;
            let observed = |it: &Address| rows.get(it).map(|row| row.observed.value());
            Whom {
                machines,
                ..whom.clone()
            }
            .resolve(observed)
        });
        Some((whom, was))
    }

    /// Returns the addresses from which the boss dials a machine, which may be elsewhere.
    fn boss_addresses(
        &self,
        instance: &Instance,
        elsewhere: bool,
        errors: &mut Vec<Diagnostic>,
    ) -> Vec<String> {
        let settings = &self.config.settings;
        let listen = [settings.boss_listen.clone()];
        let hosts = settings.boss_advertise.iter().chain(&listen);
        let hosts = hosts.map(|text| {
            let host = text.rsplit_once(':').map_or(text.as_str(), |it| it.0);
            host.trim_start_matches('[')
                .trim_end_matches(']')
                .parse::<IpAddr>()
        });
        let known: Vec<IpAddr> = hosts.filter_map(Result::ok).collect();
        let from = known
            .iter()
            .filter(|it| !it.is_unspecified() && !it.is_loopback());
        let from: Vec<String> = from.map(ToString::to_string).collect();
        if from.is_empty() && (elsewhere || !known.iter().any(IpAddr::is_loopback)) {
            let detail = format!(
                "The boss dials machine.{instance}, whose firewall is derived, but from which \
                 address is not known."
            );
            let error = Diagnostic::error("Boss without an address", detail);
            errors.push(error.hint("Name an address in advertise of the boss block."));
        }
        from
    }

    /// Returns the machines that have bindings from a machine now.
    fn served_by(&self, instance: &Instance) -> Vec<Address> {
        let rows = self.snapshot.rows.values();
        let bindings = rows.filter(|row| matches!(row.kind, RowKind::Binding { .. }));
        let of = |row: &Row, end: &str| row.wanted.get(end)?.as_ref_address().cloned();
        let served = bindings.filter_map(|row| {
            let from = of(row, "from")?;
            (from.as_machine() == Some(instance)).then(|| of(row, "to"))?
        });
        served.collect()
    }

    /// Plans whom each derived firewall lets in, around the grants that need it.
    pub(crate) fn admissions(&mut self) {
        for (instance, derived) in std::mem::take(&mut self.derived) {
            self.admission(&instance, derived);
        }
    }

    /// Reports those who are to come by a network in which they do not say where they are.
    fn check_networks(&mut self, instance: &Instance, whom: &Whom, importers: &BTreeSet<Address>) {
        if whom.networks.is_empty() || !whom.attributes.is_empty() {
            return;
        }
        let plan = |it: &Address| self.machines.get(it.as_machine()?).filter(|it| it.stays);
        let is_there = |it: &&Address| {
            let ways = |network: &Network| whom.networks.iter().any(|it| it.network == *network);
            plan(it).is_none_or(|it| it.networks.iter().any(ways))
        };
        let lost: Vec<Address> = importers
            .iter()
            .filter(|it| !is_there(it))
            .cloned()
            .collect();
        let names = whom.networks.iter().map(|it| &it.network);
        let names = names.map(|it| format!("{} of its {} block", it.address, it.block));
        let names = names.collect::<Vec<_>>().join(" or ");
        for importer in lost {
            let Some(machine) = importer.as_machine() else {
                continue;
            };
            let detail = format!(
                "The hob on machine.{instance} is dialled in a network among machines, and its \
                 firewall is derived: from which address {importer} comes there is not known."
            );
            let hint = format!("Set {names} in {importer}, or advertise another address.");
            let error = Diagnostic::error("Importer without an address", detail).hint(hint);
            self.report(&BlockId::Machine(machine.name.clone()), vec![error]);
        }
    }

    fn admission(&mut self, instance: &Instance, derived: Derived) {
        let Some(machine) = self.machines.get(instance) else {
            return;
        };
        let (ready, simulated) = (machine.ready.clone(), machine.simulated);
        let mut whom = derived.whom;
        self.check_networks(instance, &whom, &derived.importers);
        let moves = |it: &Address| {
            let plan = it.as_machine().and_then(|it| self.machines.get(it));
            plan.is_none_or(|it| it.moves)
        };
        let (unknown, known): (Vec<Address>, Vec<Address>) =
            derived.importers.iter().cloned().partition(moves);
        let waits: Vec<Node> = unknown
            .iter()
            .filter_map(|it| self.machines.get(it.as_machine()?))
            .flat_map(|it| it.ready.iter().copied())
            .collect();
        let rows = &self.snapshot.rows;
        let observed = |it: &Address| rows.get(it).map(|row| row.observed.value());
        whom.machines.clone_from(&known);
        let sure = whom.resolve(observed);
        whom.machines = derived.importers.into_iter().collect();
        let has = |set: &Value, it: &Value| {
            let elements = set.as_elements().unwrap_or_default();
            elements.iter().any(|other| other.same(it))
        };
        let all = |set: &Value, within: &Value| {
            let mut elements = set.as_elements().unwrap_or_default().iter();
            elements.all(|it| has(within, it))
        };
        let narrows = !all(&derived.was, &sure);
        let widens = !unknown.is_empty() || !all(&sure, &derived.was);
        let path = Path::attribute(&whom.block).join(&whom.attribute);
        let shown = match unknown.is_empty() {
            true => sure,
            false => Value::unknown(gobs_model::ADMITS.clone()),
        };
        let planned = whom.put_into(&derived.planned, shown);
        let (before, provider) = (derived.before, derived.provider);
        let step = |whom: Whom, narrows| NewStep {
            address: Address::Machine(instance.clone()),
            action: Action::Admit {
                provider: provider.clone(),
                whom,
                narrows,
                simulated,
            },
            because: vec![Because::Changed {
                path: path.clone(),
                change: Change::InPlace,
            }],
            depends_on: Vec::new(),
            before: before.clone(),
            planned: planned.clone(),
        };
        let mut last = None;
        if widens {
            let mut wide = whom.clone();
            if narrows {
                // Whoever goes is let in until its bindings are taken back.
                let both = [&wide.also, &derived.was].map(Value::as_elements);
                let both = both.into_iter().flatten().flatten().cloned();
                wide.also = Value::set(both);
            }
            let widen = self.draft.step(step(wide, false));
            for first in ready.iter().chain(&waits) {
                self.draft.wait(*first, widen);
            }
            for bind in &derived.binds {
                self.draft.wait(widen, *bind);
            }
            last = Some(widen);
        }
        if narrows {
            let narrow = self.draft.step(step(whom, true));
            let firsts = ready.iter().chain(&derived.binds).chain(&derived.unbinds);
            for first in firsts.copied().chain(last).chain(waits) {
                self.draft.wait(first, narrow);
            }
        }
    }
}

/// Machines with derived firewalls, by their addresses.
pub(crate) type AllDerived = BTreeMap<Instance, Derived>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_by_a_network_is_let_in_by_its_address_there() {
        let network = |address: &str, part| Within {
            network: Network {
                block: "interface".into(),
                address: address.into(),
                part: "subnet".into(),
                route: "primary".into(),
                filtered: true,
            },
            part,
        };
        let interface = |name, address: &str, subnet: i64| {
            Value::object([(name, Value::from(address)), ("subnet", subnet.into())])
        };
        let machine = Value::object([
            ("ipv4", Value::list(["192.0.2.3".into()])),
            (
                "interface",
                Value::list([
                    interface("vpc", "10.0.0.3", 7),
                    interface("vpc", "10.0.8.3", 8),
                    interface("vlan", "10.1.0.3/24", 1),
                ]),
            ),
        ]);
        let app: Address = "machine.app".parse().expect("an address");
        let check = |attributes: &[&str], networks: &[Within], expected: &[&str]| {
            let whom = Whom {
                block: "firewall".into(),
                attribute: "admits".into(),
                port: 7463,
                machines: vec![app.clone()],
                attributes: attributes.iter().map(|it| (*it).to_owned()).collect(),
                networks: networks.to_vec(),
                also: Value::set([]),
            };
            let expected = expected.iter().map(|it| one(it, 7463));
            assert_eq!(whom.resolve(|_| Some(&machine)), Value::set(expected));
        };
        check(&[], &[network("vpc", 7.into())], &["10.0.0.3"]);
        // In another subnet it may be of the same VPC, which is known to nobody here.
        let both = ["10.0.0.3", "10.0.8.3"];
        check(&[], &[network("vpc", 9.into())], &both);
        check(&[], &[network("vpc", Value::NULL)], &both);
        check(&[], &[network("vlan", Value::NULL)], &["10.1.0.3"]);
        check(&[], &[], &[]);
        let with_public = ["192.0.2.3", "10.0.8.3"];
        check(&["ipv4"], &[network("vpc", 8.into())], &with_public);
        // A machine of another provider has other names for its addresses.
        check(&["address4"], &[], &["192.0.2.3"]);
    }
}
