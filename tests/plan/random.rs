//! Whatever was applied before, however far an apply came: the next one leaves nothing to do.

use std::fmt::Write;

use proptest::prelude::*;

use super::simulation::{Pick, World, apply};
use super::{edit, render, settles};

/// Single machines, and one block with `count` after them.
const SINGLE: usize = 4;

/// Bindings that a project may have.
const BINDINGS: usize = 4;

/// What they are called: some come before what they are made from, and some after it.
const LABELS: [&str; BINDINGS] = ["b1", "b3", "b0", "b2"];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Size,
    Zone,
    Services,
}

#[derive(Clone, Debug)]
struct Machine {
    declared: bool,
    size: u8,
    image: u8,
    zone: u8,
    /// What refers to another machine, if anything does, and to which.
    needs: Option<(Place, usize)>,
    services: [bool; 2],
    simulated: bool,
}

#[derive(Clone, Debug)]
struct Binding {
    declared: bool,
    from: usize,
    service: usize,
    /// The binding that it is made from, if that is there and is one.
    parent: Option<usize>,
    to: usize,
    name: u8,
    connections: u8,
    /// The machine whose id the limit is counted from, if any.
    needs: Option<usize>,
}

#[derive(Clone, Debug)]
struct Project {
    machines: Vec<Machine>,
    bindings: Vec<Binding>,
    count: usize,
    /// Whether machines refer to those after them, instead of those before.
    forward: bool,
}

fn machine() -> impl Strategy<Value = Machine> {
    let places = prop::sample::select(vec![Place::Size, Place::Zone, Place::Services]);
    let needs = prop::option::of((places, 0..SINGLE));
    let services = any::<[bool; 2]>();
    (
        prop::bool::weighted(0.8),
        0..2u8,
        0..2u8,
        0..2u8,
        needs,
        services,
    )
        .prop_map(|(declared, size, image, zone, needs, services)| Machine {
            declared,
            size,
            image,
            zone,
            needs,
            services,
            simulated: false,
        })
}

fn binding() -> impl Strategy<Value = Binding> {
    let needs = prop::option::weighted(0.2, 0..SINGLE);
    let parent = prop::option::weighted(0.5, 0..BINDINGS);
    let ends = (0..SINGLE, 0..2usize, parent, 0..=SINGLE);
    (prop::bool::weighted(0.8), ends, 0..3u8, 0..2u8, needs).prop_map(
        |(declared, (from, service, parent, to), name, connections, needs)| Binding {
            declared,
            from,
            service,
            parent,
            to,
            name,
            connections,
            needs,
        },
    )
}

fn project() -> impl Strategy<Value = Project> {
    let machines = prop::collection::vec(machine(), SINGLE);
    let bindings = prop::collection::vec(binding(), BINDINGS);
    (
        machines,
        bindings,
        0..3usize,
        any::<bool>(),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(mut machines, bindings, count, forward, simulated)| {
            machines
                .iter_mut()
                .for_each(|machine| machine.simulated = simulated);
            Project {
                machines,
                bindings,
                count,
                forward,
            }
        })
}

impl Project {
    fn text(&self) -> String {
        let mut out = String::from("provider \"dummy\" {\n  alias = \"rows\"\n}\n");
        let simulated = self.machines.iter().any(|machine| machine.simulated);
        let provider = if simulated { "dummy.rows" } else { "dummy" };
        for (at, machine) in self
            .machines
            .iter()
            .enumerate()
            .filter(|(_, it)| it.declared)
        {
            let _ = writeln!(out, "machine \"m{at}\" {{\n  provider = {provider}");
            let Machine {
                size, image, zone, ..
            } = machine;
            let needed = machine.needs.filter(|(_, on)| {
                self.machines[*on].declared && if self.forward { *on > at } else { *on < at }
            });
            let (mut size, mut zone) = (format!("\"s{size}\""), format!("\"z{zone}\""));
            let mut host = "127.0.0.1".to_owned();
            if let Some((place, on)) = needed {
                let needed = format!("machine.m{on}.id");
                match place {
                    Place::Size => size = needed,
                    Place::Zone => zone = needed,
                    Place::Services => host = format!("${{{needed}}}"),
                }
            }
            let _ = writeln!(
                out,
                "  size = {size}\n  image = \"i{image}\"\n  zone = {zone}"
            );
            for service in (0..2).filter(|service| machine.services[*service]) {
                let _ = writeln!(
                    out,
                    "  service \"s{service}\" {{ tcp = \"{host}:100{at}\" }}"
                );
            }
            out += "}\n";
        }
        let count = self.count;
        let _ = writeln!(
            out,
            "machine \"many\" {{\n  count = {count}\n  provider = {provider}\n}}"
        );
        let mut names = std::collections::BTreeSet::new();
        // The machines that serve those that others can be made from.
        let mut parents = std::collections::BTreeMap::new();
        for (at, it) in self.bindings.iter().enumerate() {
            let parent = it.parent.and_then(|it| Some((it, *parents.get(&it)?)));
            let root = parent.map_or(it.from, |(_, root)| root);
            let exported = self.machines[root].declared
                && (parent.is_some() || self.machines[root].services[it.service]);
            let many = it.to == SINGLE;
            let imported = many || self.machines[it.to].declared;
            let alone = names.insert((it.to, it.name));
            let itself = root == it.to;
            if !(it.declared && exported && imported && alone) || itself {
                continue;
            }
            let from = match parent {
                Some((parent, _)) => format!("binding.{}", LABELS[parent]),
                None => format!("machine.m{root}.service.s{}", it.service),
            };
            if !many {
                parents.insert(at, root);
            }
            let _ = writeln!(
                out,
                "binding \"{}\" {{\n  from = {from}\n  as = \"n{}\"",
                LABELS[at], it.name
            );
            let connections = match it.needs.filter(|on| self.machines[*on].declared) {
                Some(on) => format!("length(machine.m{on}.id)"),
                None => (it.connections + 1).to_string(),
            };
            // What is made from another one has what that has.
            if parent.is_none() {
                let _ = writeln!(out, "  attenuate {{ connections_max = {connections} }}");
            }
            let to = match many {
                true => "machine.many[count.index]".to_owned(),
                false => format!("machine.m{}", it.to),
            };
            if many {
                let _ = writeln!(out, "  count = {count}");
            }
            let _ = writeln!(out, "  to = {to}\n}}");
        }
        out
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200,
        failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_was_left_the_next_apply_settles_it(
        projects in prop::collection::vec((project(), 0..40usize, any::<bool>()), 1..4),
        gone in prop::option::of(0..SINGLE),
        pending in prop::collection::btree_set(prop::sample::select(&LABELS[..]), 0..BINDINGS),
    ) {
        let mut world = World::default();
        let last = projects.len() - 1;
        for (at, (project, steps, first)) in projects.iter().enumerate() {
            let text = project.text();
            let failed = |what: String| TestCaseError::fail(format!("{text}\n{what}"));
            let wrong = |it: Vec<_>| failed(render::diagnostics(&it));
            let config = world.load(&text).map_err(wrong)?;
            let pick = if *first { Pick::First } else { Pick::Last };
            if at == last && let Some(gone) = gone {
                let address = format!("machine.m{gone}");
                if world.snapshot.rows.contains_key(&address.parse().expect("an address")) {
                    edit(&mut world, &format!("gone {address}"));
                }
            }
            for label in pending.iter().filter(|_| at == last) {
                let address = format!("binding.{label}");
                if world.snapshot.rows.contains_key(&address.parse().expect("an address")) {
                    edit(&mut world, &format!("revoke-pending {address}"));
                }
            }
            let plan = world.plan(&config).map_err(wrong)?;
            if at == last {
                settles(&world, &config, &plan, pick).map_err(failed)?;
                world.options.destroy = true;
                let plan = world.plan(&config).map_err(wrong)?;
                settles(&world, &config, &plan, pick).map_err(failed)?;
            } else {
                world.snapshot = apply(&world, &config, &plan, pick, *steps);
            }
        }
    }
}
