//! The account behind the API: its instances, their jobs and events.

use std::collections::{BTreeMap, VecDeque};

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::catalog;
use crate::clock::{Clock, Dice, api_time};
use crate::disk;
use crate::fault::{Fault, Kind};
use crate::firewall::asked_firewalls;
use crate::grants::Grants;
use crate::instance::{Instance, Work};
use crate::interface::{self, NetworkSettings};
use crate::limit::{Limits, Windows};
use crate::profile;
use crate::reply::Refusal;
use crate::resources::Resources;

/// The largest user data, decoded: what cloud-init's source takes.
const USER_DATA_BYTES_MAX: usize = 16_384;

/// Counts of what was asked, for tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    /// Requests to the API.
    pub requests: u64,
    /// Requests that were over a rate limit (not those of a fault).
    pub over_limit: u64,
    /// `POST /linode/instances`, whatever came of them.
    pub create_requests: u64,
    /// Instances that were made.
    pub created: u64,
    /// Instances whose delete began.
    pub deleted: u64,
    /// Requests that the witness refused.
    pub unwitnessed: u64,
    /// Volumes that were made.
    pub volumes_created: u64,
    /// Firewalls that were made.
    pub firewalls_created: u64,
    /// Records of domains that were made.
    pub records_created: u64,
}

/// How many that have ended are remembered, for lists that still show them.
const GHOSTS_MAX: usize = 100;

/// What becomes of the jobs that a request begins.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Luck {
    /// How much longer the first takes.
    slow_ms: u64,
    boot_fails: bool,
    /// How long after its boot an instance dies.
    boot_dies_ms: Option<u64>,
}

impl Luck {
    pub(crate) fn of(met: Option<&Kind>) -> Self {
        let mut luck = Self::default();
        match met {
            Some(Kind::JobSlow { virtual_s }) => luck.slow_ms = virtual_s * 1_000,
            Some(Kind::BootFails) => luck.boot_fails = true,
            Some(Kind::BootDies { virtual_s }) => luck.boot_dies_ms = Some(virtual_s * 1_000),
            _ => {}
        }
        luck
    }
}

/// The account.
pub(crate) struct Account {
    pub(crate) clock: Clock,
    pub(crate) dice: Dice,
    /// Chance of its own, so that a fault that is tried changes nothing else.
    pub(crate) chance: Dice,
    pub(crate) luck: Luck,
    /// Tokens, and the scopes of each.
    pub(crate) tokens: BTreeMap<String, String>,
    /// What the user may do, where it is a restricted one.
    pub(crate) grants: Option<Grants>,
    pub(crate) limits: Limits,
    pub(crate) windows: Windows,
    pub(crate) faults: Vec<Fault>,
    pub(crate) instances: BTreeMap<u64, Instance>,
    /// How many instances the account may have.
    pub(crate) instances_max: Option<usize>,
    ghosts: VecDeque<(u64, Value)>,
    pub(crate) resources: Resources,
    pub(crate) network: NetworkSettings,
    pub(crate) events: Vec<Value>,
    pub(crate) stats: Stats,
    /// Instances that came into being, until their metadata listener stands.
    pub(crate) born: Vec<u64>,
    /// For how long the API is about to go down.
    pub(crate) goes_down_s: Option<u64>,
    next_id: u64,
    next_event: u64,
}

impl Account {
    pub(crate) fn new(clock: Clock, seed: u64, tokens: BTreeMap<String, String>) -> Self {
        Self {
            clock,
            dice: Dice(seed),
            chance: Dice(!seed),
            luck: Luck::default(),
            tokens,
            grants: None,
            limits: Limits::default(),
            windows: Windows::default(),
            faults: Vec::new(),
            instances: BTreeMap::new(),
            instances_max: None,
            ghosts: VecDeque::new(),
            resources: Resources::default(),
            network: NetworkSettings::default(),
            events: Vec::new(),
            stats: Stats::default(),
            born: Vec::new(),
            goes_down_s: None,
            next_id: 60_303_116,
            next_event: 746_174_533,
        }
    }

    /// Brings everything to this moment.
    pub(crate) fn settle(&mut self) {
        let now_ms = self.clock.now_ms();
        let first = self
            .events
            .first()
            .and_then(|event| event["id"].as_u64())
            .unwrap_or(0);
        for instance in self.instances.values_mut().filter(|it| !it.jobs.is_empty()) {
            for told in instance.settle(now_ms, &mut self.dice) {
                // Ids are four apart, as recorded.
                let at = usize::try_from((told.event - first) / 4).unwrap_or(usize::MAX);
                let Some(event) = self.events.get_mut(at) else {
                    continue;
                };
                event["status"] = told.status.into();
                event["percent_complete"] = told.percent.into();
                if let Some(ms) = told.duration_ms {
                    event["duration"] = (ms / 1_000).into();
                }
            }
        }
        for gone in self.instances.values().filter(|it| it.gone) {
            self.ghosts.push_back((now_ms, gone.show()));
        }
        let too_many = self.ghosts.len().saturating_sub(GHOSTS_MAX);
        self.ghosts.drain(..too_many);
        self.instances.retain(|_, instance| !instance.gone);
        let all = self.instances.values_mut();
        let dead = all.filter_map(|it| it.dies(now_ms).then_some(it.id));
        for id in dead.collect::<Vec<_>>() {
            // It is there, so this is never refused.
            let _ = self.queue(id, Work::Revive, false);
        }
        self.settle_volumes();
    }

    /// Returns what ended within this time, as it was last.
    pub(crate) fn ghosts(&self, within_ms: u64) -> impl Iterator<Item = Value> {
        let since_ms = self.clock.now_ms().saturating_sub(within_ms);
        let ghosts = self.ghosts.iter();
        let recent = ghosts.filter(move |(at_ms, _)| *at_ms >= since_ms);
        recent.map(|(_, shown)| shown.clone())
    }

    /// Returns an instance that shows.
    pub(crate) fn instance(&mut self, id: u64) -> Result<&mut Instance, Refusal> {
        self.instances.get_mut(&id).ok_or_else(Refusal::not_found)
    }

    /// Returns the instances as a list shows them.
    pub(crate) fn list(&self, lag_ms: u64) -> Vec<Value> {
        let until_ms = self.clock.now_ms().saturating_sub(lag_ms);
        let shown = self
            .instances
            .values()
            .filter(|it| it.created_ms <= until_ms);
        shown.map(Instance::show).collect()
    }

    /// Returns every tag once.
    pub(crate) fn tags(&self) -> Vec<Value> {
        let tags = self.instances.values().flat_map(|it| &it.tags);
        let unique: std::collections::BTreeSet<&String> = tags.collect();
        unique
            .into_iter()
            .map(|tag| json!({"label": tag}))
            .collect()
    }

    /// Makes an instance, and queues its jobs.
    pub(crate) fn create(&mut self, body: &Value, job_fails: bool) -> Result<Value, Refusal> {
        let text = |name: &str| body[name].as_str().map(str::to_owned);
        let mut wrong = Vec::new();
        let region = text("region").and_then(|it| catalog::region(&it));
        let class = text("type").filter(|it| catalog::class(it).is_some());
        match body["region"].as_str() {
            None => wrong.push(("region", "region is required".into())),
            Some(_) if region.is_none() => wrong.push(("region", "region is not valid".into())),
            _ => {}
        }
        match body["type"].as_str() {
            None => wrong.push(("type", "type is required".into())),
            Some(_) if class.is_none() => {
                wrong.push(("type", "A valid plan type by that ID was not found".into()));
            }
            _ => {}
        }
        self.check_label(body, None, &mut wrong);
        let tags = check_tags(body, &mut wrong);
        check_image(body, &mut wrong);
        check_user_data(body, &mut wrong);
        let generation = self.check_interfaces(body, &mut wrong);
        let known = &self.resources.firewalls;
        if asked_firewalls(body)
            .iter()
            .any(|it| !known.contains_key(it))
        {
            wrong.push(("firewall_id", "firewall_id is not valid".into()));
        }
        Refusal::of_fields(wrong)?;
        let (Some(region), Some(class)) = (region, class) else {
            return Err(Refusal::of(400, None, "region and type are required"));
        };
        self.check_group(body, region)?;
        if self
            .instances_max
            .is_some_and(|max| self.instances.len() >= max)
        {
            // The words are a guess; that it is a 400 without a field is not.
            let why = "Account Limit reached. Please open a support ticket.";
            return Err(Refusal::of(400, None, why));
        }
        let (now_ms, id) = (self.clock.now_ms(), self.next_id);
        self.next_id += self.dice.between(1, 9);
        let image = text("image");
        let boots = body["booted"].as_bool().unwrap_or(image.is_some()) && image.is_some();
        let mut ipv4 = vec![address(id, "203.0")];
        if body["private_ip"] == true {
            ipv4.push(address(id, "192.168"));
        }
        let disks = match image.is_some() {
            true => disk::written(id, &class, body["swap_size"].as_u64()),
            false => Vec::new(),
        };
        let keys = body["authorized_keys"].as_array().into_iter().flatten();
        let group = body["placement_group"]["id"].as_u64();
        let group_shown = group.map_or(Value::Null, |id| self.group_of(id));
        let instance = Instance {
            id,
            label: text("label").unwrap_or_else(|| format!("linode{id}")),
            region: region.into(),
            class,
            image,
            tags: tags.unwrap_or_default(),
            ipv4,
            status: "provisioning",
            created_ms: now_ms,
            updated_ms: now_ms,
            user_data: body["metadata"]["user_data"].as_str().map(str::to_owned),
            authorized_keys: keys.filter_map(Value::as_str).map(str::to_owned).collect(),
            backups: body["backups_enabled"] == true,
            disk_encryption: text("disk_encryption").unwrap_or_else(|| "enabled".into()),
            maintenance_policy: text("maintenance_policy")
                .unwrap_or_else(|| "linode/migrate".into()),
            watchdog: true,
            firewalls: Vec::new(),
            interface_generation: generation.into(),
            interfaces: match generation {
                interface::LINODE => Vec::new(),
                _ => profile::interfaces(body, id),
            },
            group,
            group_shown,
            jobs: VecDeque::new(),
            boots: 0,
            disk: 0,
            disks,
            dies_ms: None,
            gone: false,
        };
        self.instances.insert(id, instance);
        self.born.push(id);
        self.stats.created += 1;
        match generation {
            interface::LINODE => self.first_interfaces(id, body)?,
            _ => self.first_firewall(id, body)?,
        }
        self.queue(id, Work::Create, job_fails)?;
        if boots {
            self.queue(id, Work::Boot, false)?;
        }
        Ok(self.instance(id)?.show())
    }

    /// Changes what can be changed at once.
    pub(crate) fn update(&mut self, id: u64, body: &Value) -> Result<Value, Refusal> {
        self.instance(id)?;
        let mut wrong = Vec::new();
        self.check_label(body, Some(id), &mut wrong);
        let tags = check_tags(body, &mut wrong);
        Refusal::of_fields(wrong)?;
        let now_ms = self.clock.now_ms();
        let instance = self.instance(id)?;
        if let Some(label) = body["label"].as_str() {
            instance.label = label.into();
        }
        if let Some(tags) = tags {
            instance.tags = tags;
        }
        if let Some(watchdog) = body["watchdog_enabled"].as_bool() {
            instance.watchdog = watchdog;
        }
        if let Some(policy) = body["maintenance_policy"].as_str() {
            instance.maintenance_policy = policy.into();
        }
        instance.updated_ms = now_ms;
        Ok(instance.show())
    }

    /// Begins an action; what it does is told by its event.
    pub(crate) fn act(
        &mut self,
        id: u64,
        action: &str,
        body: &Value,
        job_fails: bool,
    ) -> Result<Value, Refusal> {
        let instance = self.instance(id)?;
        let (runs, is_busy) = (instance.status == "running", !instance.jobs.is_empty());
        let boots_by_itself = |runs: bool| body["booted"].as_bool().unwrap_or(runs);
        if is_busy {
            return Err(Refusal::busy());
        }
        let mut wrong = Vec::new();
        let mut answer = json!({});
        match action {
            "boot" if runs => return Err(Refusal::of(400, None, "Linode is already booted.")),
            "boot" => self.queue(id, Work::Boot, job_fails)?,
            "reboot" => self.queue(id, Work::Reboot, job_fails)?,
            "shutdown" => self.queue(id, Work::Shutdown, job_fails)?,
            "password" if runs => {
                let why = "Linode must be powered off to reset the root password.";
                return Err(Refusal::of(400, None, why));
            }
            "password" => {
                check_password(body, &mut wrong);
                Refusal::of_fields(wrong)?;
            }
            "resize" => {
                let class = body["type"]
                    .as_str()
                    .filter(|it| catalog::class(it).is_some());
                let Some(class) = class else {
                    let why = "A valid plan type by that ID was not found";
                    return Err(Refusal::of(400, Some("type"), why));
                };
                let class = class.to_owned();
                if self.instance(id)?.class == class {
                    let why = "Linode is already running this service plan.";
                    return Err(Refusal::of(400, None, why));
                }
                self.queue(id, Work::Resize { class }, job_fails)?;
                if runs {
                    self.queue(id, Work::Boot, false)?;
                }
            }
            "migrate" => {
                let region = body["region"].as_str().and_then(catalog::region);
                let Some(region) = region else {
                    return Err(Refusal::of(400, Some("region"), "region is not valid"));
                };
                if self.instance(id)?.region == region {
                    let why = "Cannot migrate linode to the same region";
                    return Err(Refusal::of(400, Some("region"), why));
                }
                if self.instance(id)?.has_vpc() {
                    // The words are a guess; the API's document says that it is not allowed.
                    let why = "Linodes with a VPC interface cannot migrate between regions";
                    return Err(Refusal::of(400, Some("region"), why));
                }
                self.check_group(body, region)?;
                if self
                    .resources
                    .volumes
                    .values()
                    .any(|it| it.linode == Some(id))
                {
                    // The words are a guess; a volume cannot move between regions.
                    let why = "Volumes must be detached before a migration between regions";
                    return Err(Refusal::of(400, None, why));
                }
                let group = body["placement_group"]["id"].as_u64();
                self.queue(
                    id,
                    Work::Migrate {
                        region: region.into(),
                        group: group.map(|id| (id, self.group_of(id))),
                    },
                    job_fails,
                )?;
                if runs {
                    self.queue(id, Work::Boot, false)?;
                }
            }
            "rebuild" => {
                if body["image"].is_null() {
                    wrong.push(("image", "image is required".into()));
                }
                check_image(body, &mut wrong);
                check_user_data(body, &mut wrong);
                Refusal::of_fields(wrong)?;
                let user_data = body["metadata"]["user_data"].as_str().map(str::to_owned);
                let instance = self.instance(id)?;
                instance.user_data = user_data;
                if let Some(encryption) = body["disk_encryption"].as_str() {
                    instance.disk_encryption = encryption.into();
                }
                let image = body["image"].as_str().unwrap_or_default().to_owned();
                let mut shown = instance.show();
                // The answer has the new image and everything else as it was, as recorded.
                shown["image"] = image.as_str().into();
                answer = shown;
                self.queue(id, Work::Rebuild { image }, job_fails)?;
                if boots_by_itself(true) {
                    self.queue(id, Work::Boot, false)?;
                }
            }
            _ => return Err(Refusal::not_found()),
        }
        Ok(answer)
    }

    /// Begins to delete an instance, whatever it is doing.
    pub(crate) fn delete(&mut self, id: u64, job_fails: bool) -> Result<Value, Refusal> {
        self.instance(id)?.jobs.clear();
        self.stats.deleted += 1;
        self.queue(id, Work::Delete, job_fails)?;
        Ok(json!({}))
    }

    /// Returns the id of the next event: ids are four apart, as recorded.
    pub(crate) fn fresh_event(&mut self) -> u64 {
        let event = self.next_event;
        self.next_event += 4;
        event
    }

    pub(crate) fn queue(&mut self, id: u64, work: Work, fails: bool) -> Result<(), Refusal> {
        let (now_ms, event) = (self.clock.now_ms(), self.fresh_event());
        let label = self.instance(id)?.label.clone();
        self.events.push(json!({
            "id": event, "created": api_time(now_ms), "seen": false, "read": false,
            "percent_complete": 0, "time_remaining": null, "rate": null, "duration": null,
            "action": work.action(), "username": "double",
            "entity": {"label": label, "id": id, "type": "linode",
                "url": format!("/v4/linode/instances/{id}")},
            "status": "scheduled", "secondary_entity": null, "message": "",
        }));
        let slow_ms = std::mem::take(&mut self.luck.slow_ms);
        let is_boot = work == Work::Boot;
        let fails = fails || is_boot && self.luck.boot_fails;
        let dies_ms = self.luck.boot_dies_ms.filter(|_| is_boot);
        let instance = self.instance(id)?;
        instance.queue(event, work, now_ms, (fails, slow_ms, dies_ms));
        // A job that waits for nothing begins at once.
        self.settle();
        Ok(())
    }

    /// Returns the generation of a new instance's interfaces, and says what is wrong with them.
    fn check_interfaces(
        &self,
        body: &Value,
        wrong: &mut Vec<(&'static str, String)>,
    ) -> &'static str {
        let asked = body["interface_generation"].as_str();
        let generation = self.network.generation(asked).unwrap_or_else(|why| {
            wrong.push(("interface_generation", why));
            "legacy_config"
        });
        if generation == interface::LINODE {
            // The words are the API's for other fields.
            let why = "Option cannot be set on a Linode that is configured to use Linode \
                       Interfaces";
            if body["firewall_id"].is_i64() {
                wrong.push(("firewall_id", why.into()));
            }
            if body["private_ip"] == true {
                wrong.push(("private_ip", why.into()));
            }
            interface::check(&interface::asked_of(body), &self.network, wrong);
            return generation;
        }
        for interface in body["interfaces"].as_array().into_iter().flatten() {
            let kinds = ["public", "vpc", "vlan"];
            let is_of_profile = interface["purpose"]
                .as_str()
                .is_some_and(|it| kinds.contains(&it));
            if !is_of_profile || kinds.iter().any(|it| interface[*it].is_object()) {
                let why = "Interfaces must be of the Linode's interface generation";
                wrong.push(("interfaces", why.into()));
            }
        }
        generation
    }

    fn check_label(&self, body: &Value, own: Option<u64>, wrong: &mut Vec<(&'static str, String)>) {
        let Some(label) = body["label"].as_str() else {
            return;
        };
        let doubled = ["--", "__", ".."].iter().any(|it| label.contains(it));
        let allowed = |it: char| it.is_ascii_alphanumeric() || "-_.".contains(it);
        let ends = label.ends_with(|it: char| it.is_ascii_alphanumeric());
        let begins = label.starts_with(|it: char| it.is_ascii_alphabetic());
        if !(3..=64).contains(&label.len()) {
            wrong.push(("label", "Length must be 3-64 characters".into()));
        } else if doubled || !ends || !begins || !label.chars().all(allowed) {
            let why = "Label must begin with a letter, end with a letter or number, and have \
                       only letters, numbers and single dashes, underscores or periods";
            wrong.push(("label", why.into()));
        }
        let taken = |it: &&Instance| it.label == label && Some(it.id) != own;
        if self.instances.values().any(|it| taken(&it)) {
            wrong.push(("label", "Label must be unique among your linodes".into()));
        }
    }
}

pub(crate) fn address(id: u64, network: &str) -> String {
    format!("{network}.{}.{}", id / 250 % 250, id % 250 + 1)
}

/// Returns the tags of a request: a set whatever their case, in an order of its own.
pub(crate) fn check_tags(
    body: &Value,
    wrong: &mut Vec<(&'static str, String)>,
) -> Option<Vec<String>> {
    let asked = body["tags"].as_array()?;
    let mut tags: Vec<String> = Vec::new();
    for tag in asked.iter().filter_map(Value::as_str) {
        if !(3..=50).contains(&tag.chars().count()) {
            wrong.push(("tags", "Length must be 3-50 characters".into()));
        }
        if !tags.iter().any(|it| it.eq_ignore_ascii_case(tag)) {
            tags.push(tag.into());
        }
    }
    tags.sort_by_key(|tag| tag.to_ascii_lowercase());
    Some(tags)
}

fn check_image(body: &Value, wrong: &mut Vec<(&'static str, String)>) {
    let Some(image) = body["image"].as_str() else {
        return;
    };
    if !catalog::has_image(image) {
        wrong.push(("image", "image is not valid".into()));
    }
    let has_any = |name: &str| body[name].as_array().is_some_and(|it| !it.is_empty());
    if body["root_pass"].is_null() && !has_any("authorized_keys") && !has_any("authorized_users") {
        let why = "Must provide valid root_pass, authorized_keys, or authorized_users";
        // As recorded, it names no field.
        wrong.push(("", why.into()));
    }
    check_password(body, wrong);
}

fn check_password(body: &Value, wrong: &mut Vec<(&'static str, String)>) {
    match body["root_pass"].as_str() {
        Some(it) if !(7..=128).contains(&it.len()) => {
            wrong.push(("root_pass", "Length must be 7-128 characters".into()));
        }
        Some(it) if it.len() < 11 => {
            wrong.push((
                "root_pass",
                "Password does not meet strength requirement".into(),
            ));
        }
        _ => {}
    }
}

fn check_user_data(body: &Value, wrong: &mut Vec<(&'static str, String)>) {
    let Some(text) = body["metadata"]["user_data"].as_str() else {
        return;
    };
    match BASE64.decode(text.as_bytes()) {
        Err(_) => wrong.push(("metadata.user_data", "Must be base64 encoded".into())),
        Ok(bytes) if bytes.len() > USER_DATA_BYTES_MAX => {
            let why = "Unencoded data can't exceed 65535 bytes when encoded";
            wrong.push(("metadata.user_data", why.into()));
        }
        Ok(_) => {}
    }
}
