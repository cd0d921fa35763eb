//! Who can dial whom: said before anything is made that would wait in vain.

use core::net::IpAddr;

use gobs_model::{Address, Diagnostic, Hosts, Instance, UserDataForm};
use hob::protocol::host_and_port;

use crate::lang::{BlockId, Dial, HobSource, HobValues, Settings};

use super::Planner;

/// From where somebody can be dialled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reach {
    /// From its own host alone: it has addresses of loopback only.
    #[default]
    Here,
    /// From elsewhere too, as far as can be said.
    Everywhere,
    /// It listens on all its addresses and nobody says which they are.
    Unsaid,
}

/// Where a machine's hob is, and from where it can be dialled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) elsewhere: bool,
    pub(crate) reach: Reach,
}

/// Returns from where somebody is dialled who listens and advertises so.
fn reach(listen: &str, advertise: &[String]) -> Reach {
    let is_here = |text: &String| is_loopback(&host_and_port(text, 0).0);
    if !advertise.is_empty() {
        return match advertise.iter().all(is_here) {
            true => Reach::Here,
            false => Reach::Everywhere,
        };
    }
    let host = host_and_port(listen, 0).0;
    let unsaid = host
        .parse::<IpAddr>()
        .is_ok_and(|address| address.is_unspecified());
    match (is_loopback(&host), unsaid) {
        (true, _) => Reach::Here,
        (false, true) => Reach::Unsaid,
        (false, false) => Reach::Everywhere,
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Returns where a machine's hob is.
pub(crate) fn place(hob: &HobValues, hosts: &Hosts) -> Place {
    Place {
        elsewhere: hosts.elsewhere,
        reach: reach(hob.listens_on(hosts.elsewhere), &hob.advertise),
    }
}

/// What stands between the boss and a machine's hob.
struct Gap {
    summary: &'static str,
    detail: String,
    hint: String,
}

fn gap(address: &Address, hob: &HobValues, hosts: &Hosts, settings: &Settings) -> Option<Gap> {
    let boss = reach(&settings.boss_listen, &settings.boss_advertise);
    let boss_unreached = match boss {
        Reach::Here => hosts.elsewhere,
        Reach::Unsaid => true,
        Reach::Everywhere => false,
    };
    if hob.require_address && hosts.addresses.is_empty() {
        return Some(Gap {
            summary: "No address to require",
            detail: format!(
                "The hob on {address} must call from the machine's address, and its provider \
                 tells no address of its machines."
            ),
            hint: "Take require_address out of the machine's hob block.".into(),
        });
    }
    let listens = &settings.boss_listen;
    let to_set = "listen = \"[::]:7462\" and advertise = [\"HOST:7462\"] in the boss block of \
                  gobs, with a HOST that leads to this one from there; GOBS_BOSS_LISTEN and \
                  GOBS_BOSS_ADVERTISE do so too.";
    let why = match boss {
        Reach::Unsaid => {
            format!("the boss listens on {listens}, on all addresses, and advertises none of them")
        }
        _ => format!(
            "the boss is at {} only, which leads nowhere from there",
            match settings.boss_advertise.first() {
                Some(advertised) => advertised,
                None => listens,
            }
        ),
    };
    if hob.dial == Dial::Hob {
        return boss_unreached.then(|| Gap {
            summary: "Boss out of reach",
            detail: format!("The hob on {address} is to call home, but {why}."),
            hint: format!("Set {to_set} Or set dial = \"boss\" in the machine's hob block."),
        });
    }
    let at = hob.listens_on(hosts.elsewhere);
    let in_block = "in the machine's hob block";
    if host_and_port(at, 0).1 == 0 {
        return Some(Gap {
            summary: "Hob out of reach",
            detail: format!(
                "The boss is to dial the hob on {address}, which listens on {at}: nobody knows \
                 the port before it is chosen."
            ),
            hint: format!("Set listen with a port {in_block}."),
        });
    }
    if hosts.elsewhere && reach(at, &hob.advertise) == Reach::Here {
        return Some(Gap {
            summary: "Hob out of reach",
            detail: format!(
                "The boss is to dial the hob on {address}, which listens on {at}, where only its \
                 own machine reaches it."
            ),
            hint: format!("Set listen = \"[::]:7463\" {in_block}, or leave it out."),
        });
    }
    if hosts.addresses.is_empty() && reach(at, &hob.advertise) == Reach::Unsaid {
        return Some(Gap {
            summary: "Hob out of reach",
            detail: format!(
                "The boss is to dial the hob on {address}, and its provider tells no address of \
                 its machines."
            ),
            hint: format!("Set advertise = [\"HOST\"] {in_block}."),
        });
    }
    let fetches = hosts.user_data == UserDataForm::CloudInit && hob.source == HobSource::Boss;
    (fetches && boss_unreached).then(|| Gap {
        summary: "Boss out of reach",
        detail: format!("{address} is to fetch its hob from the boss, but {why}."),
        hint: format!("Set url and sha256, or install = \"image\", {in_block}. Or set {to_set}"),
    })
}

impl Planner<'_> {
    /// Reports a machine whose hob and boss can dial each other neither way, once for each block.
    pub(crate) fn check_home(&mut self, address: &Address, hob: &HobValues, hosts: &Hosts) {
        let Some(machine) = address.as_machine().filter(|_| hob.enabled) else {
            return;
        };
        let block = BlockId::Machine(machine.name.clone());
        let settings = &self.config.settings;
        let Some(gap) = gap(address, hob, hosts, settings) else {
            return;
        };
        if self.out_of_reach.insert(block.clone()) {
            let error = Diagnostic::error(gap.summary, gap.detail).hint(gap.hint);
            self.report(&block, vec![error]);
        }
    }

    /// Reports a binding whose importer cannot dial its exporter, once for each block.
    pub(crate) fn check_edge(&mut self, binding: &Instance, from: &Address, to: &Address) {
        let place = |end: &Address| Some(self.machines.get(end.as_machine()?)?.place);
        let (Some(exporter), Some(importer)) = (place(from), place(to)) else {
            return;
        };
        let apart = exporter.elsewhere || importer.elsewhere;
        if !apart || exporter.reach != Reach::Here {
            return;
        }
        let block = BlockId::Binding(binding.name.clone());
        if !self.out_of_reach.insert(block.clone()) {
            return;
        }
        let detail = format!(
            "binding.{binding} has {to} dial {from}, whose hob listens where only its own host \
             reaches it."
        );
        let name = match exporter.elsewhere {
            true => "Set listen = \"[::]:7463\"",
            false => "Set listen = \"[::]:7463\" and advertise = [\"HOST\"]",
        };
        let hint = format!("{name} in the hob block of {from}.");
        let error = Diagnostic::error("Exporter out of reach", detail).hint(hint);
        self.report(&block, vec![error]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_tell_from_where_they_lead() {
        let check = |listen: &str, advertise: &[&str], expected: Reach| {
            let advertise: Vec<String> = advertise.iter().map(|it| (*it).to_owned()).collect();
            assert_eq!(
                reach(listen, &advertise),
                expected,
                "{listen} {advertise:?}"
            );
        };
        check("127.0.0.1:0", &[], Reach::Here);
        check("[::1]:7462", &[], Reach::Here);
        check("localhost:1", &[], Reach::Here);
        check("[::ffff:127.0.0.1]:1", &[], Reach::Here);
        check("[::]:7462", &[], Reach::Unsaid);
        check("0.0.0.0:0", &[], Reach::Unsaid);
        check("192.0.2.1:1", &[], Reach::Everywhere);
        check("[::]:1", &["localhost:1", "127.0.0.1:1"], Reach::Here);
        check("127.0.0.1:1", &["relay.example.net:1"], Reach::Everywhere);
        check("[::]:1", &["ipv4"], Reach::Everywhere);
    }
}
