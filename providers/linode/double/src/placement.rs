//! Placement groups: instances that are kept on different hosts.

use serde_json::{Value, json};

use crate::account::Account;
use crate::catalog;
use crate::reply::Refusal;
use crate::resources::check_label;

/// How many instances a group has, as the regions of the catalogue say.
const MEMBERS_MAX: usize = 5;

/// One group.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    label: String,
    region: String,
    policy: String,
}

impl Account {
    pub(crate) fn group(&mut self, id: u64) -> Result<&mut Group, Refusal> {
        let groups = &mut self.resources.groups;
        groups.get_mut(&id).ok_or_else(Refusal::not_found)
    }

    pub(crate) fn show_group(&self, id: u64, group: &Group) -> Value {
        let members = self.instances.values().filter(|it| it.group == Some(id));
        let members: Vec<Value> = members
            .map(|it| json!({"linode_id": it.id, "is_compliant": true}))
            .collect();
        json!({"id": id, "label": group.label, "region": group.region,
            "placement_group_type": "anti_affinity:local", "placement_group_policy": group.policy,
            "is_compliant": true, "members": members, "migrations": null})
    }

    /// Returns a group as an instance shows it.
    pub(crate) fn group_of(&self, id: u64) -> Value {
        self.resources.groups.get(&id).map_or(Value::Null, |group| {
            json!({"id": id, "label": group.label, "placement_group_type": "anti_affinity:local",
                "placement_group_policy": group.policy, "migrating_to": null})
        })
    }

    pub(crate) fn create_group(&mut self, body: &Value) -> Result<Value, Refusal> {
        let mut wrong = Vec::new();
        check_label(body, (1, 64), &mut wrong);
        let region = body["region"].as_str().and_then(catalog::region);
        let region =
            region.ok_or_else(|| Refusal::of(400, Some("region"), "region is not valid"))?;
        Refusal::of_fields(wrong)?;
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let group = Group {
            label: text("label"),
            region: region.into(),
            policy: text("placement_group_policy"),
        };
        let id = self.fresh_id();
        self.resources.groups.insert(id, group.clone());
        self.note(
            "placement_group_create",
            "placement_group",
            id,
            &group.label,
        );
        Ok(self.show_group(id, &group))
    }

    pub(crate) fn delete_group(&mut self, id: u64) -> Result<Value, Refusal> {
        let label = self.group(id)?.label.clone();
        if self.instances.values().any(|it| it.group == Some(id)) {
            let why = "The placement group must be empty before it can be deleted.";
            return Err(Refusal::of(400, None, why));
        }
        self.resources.groups.remove(&id);
        self.note("placement_group_delete", "placement_group", id, &label);
        Ok(json!({}))
    }

    pub(crate) fn assign(&mut self, id: u64, body: &Value, joins: bool) -> Result<Value, Refusal> {
        let group = self.group(id)?.clone();
        let linodes = body["linodes"].as_array().into_iter().flatten();
        for linode in linodes.filter_map(Value::as_u64).collect::<Vec<_>>() {
            if joins {
                self.can_join(id, &group.region, linode)?;
            }
            let shown = self.group_of(id);
            let instance = self.instance(linode)?;
            let of = match joins {
                true => (Some(id), shown),
                false if instance.group == Some(id) => (None, Value::Null),
                false => continue,
            };
            (instance.group, instance.group_shown) = of;
        }
        let verb = if joins { "assign" } else { "unassign" };
        let action = format!("placement_group_{verb}");
        self.note(&action, "placement_group", id, &group.label);
        Ok(self.show_group(id, &group))
    }

    fn can_join(&mut self, id: u64, region: &str, linode: u64) -> Result<(), Refusal> {
        let (of, at) = {
            let instance = self.instance(linode)?;
            (instance.group, instance.region.clone())
        };
        // The words are guesses; that these are refused is not.
        let refused = |why: &str| Err(Refusal::of(400, Some("linodes"), why));
        if of.is_some_and(|it| it != id) {
            return refused("The Linode is already in another placement group");
        }
        if at != region {
            return refused("The Linode is in another region than the placement group");
        }
        let members = self.instances.values().filter(|it| it.group == Some(id));
        match of.is_none() && members.count() >= MEMBERS_MAX {
            true => refused("The placement group is full"),
            false => Ok(()),
        }
    }

    /// Checks the group that a create asks for.
    pub(crate) fn check_group(&self, body: &Value, region: &str) -> Result<(), Refusal> {
        let Some(id) = body["placement_group"]["id"].as_u64() else {
            return Ok(());
        };
        let field = Some("placement_group.id");
        match self.resources.groups.get(&id) {
            None => Err(Refusal::of(400, field, "placement_group.id is not valid")),
            Some(group) if group.region != region => {
                let why = "The placement group is in another region";
                Err(Refusal::of(400, field, why))
            }
            Some(_) => Ok(()),
        }
    }
}
