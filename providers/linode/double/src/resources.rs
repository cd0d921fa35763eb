//! What an account has beside its instances: volumes, firewalls, domains, placement groups.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::account::Account;
use crate::clock::api_time;
use crate::domain::Domain;
use crate::firewall::Firewall;
use crate::placement::Group;
use crate::reply::Refusal;
use crate::volume::Volume;

const VOLUME_FIELDS: [&str; 2] = ["label", "tags"];
const FIREWALL_FIELDS: [&str; 5] = ["created", "id", "label", "tags", "updated"];
const DOMAIN_FIELDS: [&str; 3] = ["domain", "group", "tags"];
const RECORD_FIELDS: [&str; 4] = ["name", "tag", "target", "type"];
const GROUP_FIELDS: [&str; 3] = ["label", "placement_group_type", "region"];

/// They share their ids, which the API does not; so none is taken for another.
#[derive(Debug, Default)]
pub(crate) struct Resources {
    pub(crate) volumes: BTreeMap<u64, Volume>,
    pub(crate) firewalls: BTreeMap<u64, Firewall>,
    pub(crate) domains: BTreeMap<u64, Domain>,
    pub(crate) groups: BTreeMap<u64, Group>,
    last_id: u64,
}

/// What a request for one of them comes to: a body, or a list with the fields that can be
/// filtered.
pub(crate) enum Found {
    One(Value),
    List(Vec<Value>, &'static [&'static str]),
}

impl Account {
    /// Returns an id that nothing else has.
    pub(crate) fn fresh_id(&mut self) -> u64 {
        self.resources.last_id += self.dice.between(1, 9);
        15_000_000 + self.resources.last_id
    }

    /// Answers a request below `/volumes`, `/networking/firewalls`, `/domains`, `/placement` or
    /// for what is attached to an instance; nothing where it is for none of these.
    pub(crate) fn resource(
        &mut self,
        method: &str,
        parts: &[&str],
        body: &Value,
    ) -> Option<Result<Found, Refusal>> {
        let known = [
            &["volumes"][..],
            &["networking", "firewalls"],
            &["domains"],
            &["placement", "groups"],
        ];
        let is_attached = matches!(
            parts,
            [
                "linode",
                "instances",
                _,
                "volumes" | "firewalls" | "interfaces" | "configs",
                ..
            ]
        );
        if !is_attached && !known.iter().any(|it| parts.starts_with(it)) {
            return None;
        }
        Some(self.resource_of(method, parts, body))
    }

    fn resource_of(
        &mut self,
        method: &str,
        parts: &[&str],
        body: &Value,
    ) -> Result<Found, Refusal> {
        let id = |text: &str| text.parse::<u64>().map_err(|_| Refusal::not_found());
        let one = |value: Value| Ok(Found::One(value));
        match (method, parts) {
            ("GET", ["volumes"]) => {
                let all = self.resources.volumes.values();
                let shown = all.map(|it| it.show(self)).collect();
                Ok(Found::List(shown, &VOLUME_FIELDS))
            }
            ("POST", ["volumes"]) => one(self.create_volume(body)?),
            ("GET", ["volumes", it]) => one(self.volume(id(it)?)?.clone().show(self)),
            ("PUT", ["volumes", it]) => one(self.update_volume(id(it)?, body)?),
            ("DELETE", ["volumes", it]) => one(self.delete_volume(id(it)?)?),
            ("POST", ["volumes", it, verb]) => one(self.act_on_volume(id(it)?, verb, body)?),
            ("GET", ["linode", "instances", it, "volumes"]) => {
                let linode = self.instance(id(it)?)?.id;
                let all = self.resources.volumes.values();
                let ours = all.filter(|it| it.linode == Some(linode));
                let shown = ours.map(|it| it.show(self)).collect();
                Ok(Found::List(shown, &VOLUME_FIELDS))
            }

            ("GET", ["networking", "firewalls"]) => {
                let all = self.resources.firewalls.values();
                let shown = all.map(|it| it.show(self)).collect();
                Ok(Found::List(shown, &FIREWALL_FIELDS))
            }
            ("POST", ["networking", "firewalls"]) => one(self.create_firewall(body)?),
            ("GET", ["networking", "firewalls", "settings"]) => one(self.firewall_settings()),
            ("PUT", ["networking", "firewalls", "settings"]) => {
                one(self.set_firewall_settings(body)?)
            }
            ("GET", ["networking", "firewalls", it]) => {
                one(self.firewall(id(it)?)?.clone().show(self))
            }
            ("PUT", ["networking", "firewalls", it]) => one(self.update_firewall(id(it)?, body)?),
            ("DELETE", ["networking", "firewalls", it]) => one(self.delete_firewall(id(it)?)?),
            ("GET", ["networking", "firewalls", it, "rules"]) => {
                one(self.firewall(id(it)?)?.rules.clone())
            }
            ("PUT", ["networking", "firewalls", it, "rules"]) => {
                one(self.set_rules(id(it)?, body)?)
            }
            ("GET", ["networking", "firewalls", it, "devices"]) => {
                let shown = self.devices_of(id(it)?)?;
                Ok(Found::List(shown, &["created", "id", "updated"]))
            }
            ("POST", ["networking", "firewalls", it, "devices"]) => {
                one(self.add_device(id(it)?, body)?)
            }
            ("DELETE", ["networking", "firewalls", it, "devices", device]) => {
                one(self.remove_device(id(it)?, id(device)?)?)
            }
            ("GET", ["linode", "instances", it, "firewalls"]) => {
                let shown = self.firewalls_of(id(it)?)?;
                Ok(Found::List(shown, &[]))
            }
            ("PUT", ["linode", "instances", it, "firewalls"]) => {
                self.set_firewalls(id(it)?, body)?;
                let shown = self.firewalls_of(id(it)?)?;
                Ok(Found::List(shown, &[]))
            }

            ("GET", ["domains"]) => {
                let all = self.resources.domains.iter();
                let shown = all.map(|(id, it)| it.show(*id)).collect();
                Ok(Found::List(shown, &DOMAIN_FIELDS))
            }
            ("POST", ["domains"]) => one(self.create_domain(body)?),
            ("GET", ["domains", it]) => one(self.domain(id(it)?)?.show(id(it)?)),
            ("DELETE", ["domains", it]) => {
                self.domain(id(it)?)?;
                self.resources.domains.remove(&id(it)?);
                one(json!({}))
            }
            ("GET", ["domains", it, "records"]) => {
                let records = &self.domain(id(it)?)?.records;
                Ok(Found::List(
                    records.values().cloned().collect(),
                    &RECORD_FIELDS,
                ))
            }
            ("POST", ["domains", it, "records"]) => one(self.create_record(id(it)?, body)?),
            ("GET", ["domains", it, "records", record]) => {
                let records = &self.domain(id(it)?)?.records;
                let record = records.get(&id(record)?);
                one(record.cloned().ok_or_else(Refusal::not_found)?)
            }
            ("PUT", ["domains", it, "records", record]) => {
                one(self.update_record(id(it)?, id(record)?, body)?)
            }
            ("DELETE", ["domains", it, "records", record]) => {
                let removed = self.domain(id(it)?)?.records.remove(&id(record)?);
                removed.ok_or_else(Refusal::not_found)?;
                one(json!({}))
            }

            ("GET", ["placement", "groups"]) => {
                let all = self.resources.groups.iter();
                let shown = all.map(|(id, it)| self.show_group(*id, it)).collect();
                Ok(Found::List(shown, &GROUP_FIELDS))
            }
            ("POST", ["placement", "groups"]) => one(self.create_group(body)?),
            ("GET", ["placement", "groups", it]) => {
                let group = self.group(id(it)?)?.clone();
                one(self.show_group(id(it)?, &group))
            }
            ("DELETE", ["placement", "groups", it]) => one(self.delete_group(id(it)?)?),
            ("POST", ["placement", "groups", it, verb @ ("assign" | "unassign")]) => {
                one(self.assign(id(it)?, body, *verb == "assign")?)
            }

            ("GET", ["linode", "instances", it, "configs"]) => {
                Ok(Found::List(vec![self.profile(id(it)?)?], &["label"]))
            }
            ("GET", ["linode", "instances", it, "configs", of]) => {
                let shown = self.profile(id(it)?)?;
                one(match shown["id"].as_u64() == Some(id(of)?) {
                    true => shown,
                    false => return Err(Refusal::not_found()),
                })
            }
            ("PUT", ["linode", "instances", it, "configs", of]) => {
                one(self.set_profile(id(it)?, id(of)?, body)?)
            }
            ("GET", ["linode", "instances", it, "interfaces", of, "firewalls"]) => {
                let shown = self.firewalls_of_interface(id(it)?, id(of)?)?;
                Ok(Found::List(shown, &[]))
            }
            (method, ["linode", "instances", it, "interfaces", rest @ ..]) => {
                one(self.ask_interfaces(method, id(it)?, rest, body)?)
            }
            _ => Err(Refusal::not_found()),
        }
    }

    /// Says that something happened to one of them: the API tells it at once as over.
    pub(crate) fn note(&mut self, action: &str, kind: &str, id: u64, label: &str) {
        let event = self.fresh_event();
        let now_ms = self.clock.now_ms();
        self.events.push(json!({
            "id": event, "created": api_time(now_ms), "seen": false, "read": false,
            "percent_complete": 100, "time_remaining": null, "rate": null, "duration": null,
            "action": action, "username": "double",
            "entity": {"label": label, "id": id, "type": kind, "url": format!("/v4/{kind}s/{id}")},
            "status": "notification", "secondary_entity": null, "message": "",
        }));
    }
}

/// Says what is wrong with a label of these lengths.
pub(crate) fn check_label(
    body: &Value,
    (least, most): (usize, usize),
    wrong: &mut Vec<(&'static str, String)>,
) {
    let Some(label) = body["label"].as_str() else {
        return;
    };
    let doubled = ["--", "__", ".."].iter().any(|it| label.contains(it));
    let allowed = |it: char| it.is_ascii_alphanumeric() || "-_.".contains(it);
    let begins = label.starts_with(|it: char| it.is_ascii_alphabetic());
    if !(least..=most).contains(&label.len()) {
        wrong.push(("label", format!("Length must be {least}-{most} characters")));
    } else if doubled || !begins || !label.chars().all(allowed) {
        let why = "Label must begin with a letter, and have only letters, numbers and single \
                   dashes, underscores or periods";
        wrong.push(("label", why.into()));
    }
}
