//! Volumes: block storage that is attached to at most one instance at a time.

use serde_json::{Value, json};

use crate::account::{Account, check_tags};
use crate::catalog;
use crate::clock::api_time;
use crate::reply::Refusal;
use crate::resources::check_label;

/// The smallest and the largest, in GB.
const SIZES: std::ops::RangeInclusive<u64> = 10..=16_384;

/// What one has where nothing is asked.
const SIZE_DEFAULT: u64 = 20;

/// How many an instance takes.
const ATTACHED_MAX: usize = 8;

/// How long a job of a volume takes at most, in seconds.
const JOB_S_MAX: u64 = 20;

/// One volume.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    pub(crate) id: u64,
    pub(crate) label: String,
    pub(crate) region: String,
    size: u64,
    tags: Vec<String>,
    pub(crate) linode: Option<u64>,
    /// Which of the profiles that its instance has had has it.
    pub(crate) profile: u64,
    encryption: String,
    created_ms: u64,
    /// What it is doing, and until when.
    job: Option<(&'static str, u64)>,
    /// When it is detached.
    leaves_ms: Option<u64>,
}

impl Volume {
    pub(crate) fn show(&self, account: &Account) -> Value {
        let linode = self.linode.and_then(|it| account.instances.get(&it));
        let is_ready = linode.is_some() && self.job.is_none() && self.leaves_ms.is_none();
        json!({
            "id": self.id, "status": self.job.map_or("active", |it| it.0), "label": self.label,
            "created": api_time(self.created_ms), "updated": api_time(self.created_ms),
            "filesystem_path": format!("/dev/disk/by-id/scsi-0Linode_Volume_{}", self.label),
            "size": self.size, "linode_id": linode.map(|it| it.id),
            "linode_label": linode.map(|it| it.label.clone()), "io_ready": is_ready,
            "region": self.region, "tags": self.tags, "hardware_type": "nvme",
            "encryption": self.encryption, "locks": [],
        })
    }

    fn settle(&mut self, now_ms: u64) {
        if self.job.is_some_and(|(_, end)| end <= now_ms) {
            self.job = None;
        }
        if self.leaves_ms.is_some_and(|it| it <= now_ms) {
            (self.leaves_ms, self.linode) = (None, None);
        }
    }
}

impl Account {
    /// Brings the volumes to this moment: an instance that is gone holds none.
    pub(crate) fn settle_volumes(&mut self) {
        let now_ms = self.clock.now_ms();
        for volume in self.resources.volumes.values_mut() {
            volume.settle(now_ms);
            if volume
                .linode
                .is_some_and(|it| !self.instances.contains_key(&it))
            {
                volume.linode = None;
            }
        }
    }

    pub(crate) fn volume(&mut self, id: u64) -> Result<&mut Volume, Refusal> {
        let volumes = &mut self.resources.volumes;
        volumes.get_mut(&id).ok_or_else(Refusal::not_found)
    }

    fn job_end(&mut self) -> u64 {
        let takes_ms = self.dice.between(1_000, JOB_S_MAX * 1_000);
        self.clock.now_ms() + takes_ms
    }

    /// Makes a volume. Labels need not be unique: nothing says that they must.
    pub(crate) fn create_volume(&mut self, body: &Value) -> Result<Value, Refusal> {
        let mut wrong = Vec::new();
        if body["label"].is_null() {
            wrong.push(("label", "label is required".into()));
        }
        check_label(body, (1, 32), &mut wrong);
        let tags = check_tags(body, &mut wrong).unwrap_or_default();
        let size = body["size"].as_u64().unwrap_or(SIZE_DEFAULT);
        if !SIZES.contains(&size) {
            wrong.push(("size", "Must be 10-16384".into()));
        }
        let linode = body["linode_id"].as_u64();
        let region = match linode {
            Some(id) => self.can_take(id)?,
            None => match body["region"].as_str().and_then(catalog::region) {
                Some(region) => region.to_owned(),
                None if body["region"].is_null() => {
                    let why = "Must provide a region or a Linode ID";
                    return Err(Refusal::of(400, None, why));
                }
                None => return Err(Refusal::of(400, Some("region"), "region is not valid")),
            },
        };
        Refusal::of_fields(wrong)?;
        let id = self.fresh_id();
        let label = body["label"].as_str().unwrap_or_default().to_owned();
        let encryption = body["encryption"].as_str().unwrap_or("disabled").to_owned();
        let end_ms = self.job_end();
        let volume = Volume {
            id,
            label: label.clone(),
            region,
            size,
            tags,
            linode,
            profile: linode.map_or(0, |id| self.instances.get(&id).map_or(0, |it| it.disk)),
            encryption,
            created_ms: self.clock.now_ms(),
            job: Some(("creating", end_ms)),
            leaves_ms: None,
        };
        self.resources.volumes.insert(id, volume.clone());
        self.stats.volumes_created += 1;
        self.note("volume_create", "volume", id, &label);
        Ok(volume.show(self))
    }

    /// Returns the region of an instance that can take one volume more.
    fn can_take(&self, linode: u64) -> Result<String, Refusal> {
        let not_active = || Refusal::of(400, Some("linode_id"), "Linode is not active");
        let instance = self.instances.get(&linode).ok_or_else(not_active)?;
        if instance.status == "deleting" {
            return Err(not_active());
        }
        if !instance.jobs.is_empty() {
            return Err(Refusal::busy());
        }
        let attached = self.resources.volumes.values();
        if attached.filter(|it| it.linode == Some(linode)).count() >= ATTACHED_MAX {
            let why = "A maximum of 8 volumes may be attached to this Linode";
            return Err(Refusal::of(400, None, why));
        }
        Ok(instance.region.clone())
    }

    pub(crate) fn update_volume(&mut self, id: u64, body: &Value) -> Result<Value, Refusal> {
        self.volume(id)?;
        let mut wrong = Vec::new();
        check_label(body, (1, 32), &mut wrong);
        let tags = check_tags(body, &mut wrong);
        Refusal::of_fields(wrong)?;
        let volume = self.volume(id)?;
        if let Some(label) = body["label"].as_str() {
            volume.label = label.into();
        }
        if let Some(tags) = tags {
            volume.tags = tags;
        }
        let volume = volume.clone();
        self.note("volume_update", "volume", id, &volume.label);
        Ok(volume.show(self))
    }

    /// Deletes a volume, attached or not: as recorded, the API does both.
    pub(crate) fn delete_volume(&mut self, id: u64) -> Result<Value, Refusal> {
        let label = self.volume(id)?.label.clone();
        self.resources.volumes.remove(&id);
        self.note("volume_delete", "volume", id, &label);
        Ok(json!({}))
    }

    pub(crate) fn act_on_volume(
        &mut self,
        id: u64,
        verb: &str,
        body: &Value,
    ) -> Result<Value, Refusal> {
        let volume = self.volume(id)?.clone();
        let (end_ms, now) = (self.job_end(), volume.job.map(|it| it.0));
        let answer = match verb {
            "attach" => {
                let Some(linode) = body["linode_id"].as_u64() else {
                    return Err(Refusal::of(400, Some("linode_id"), "linode_id is required"));
                };
                // The words are guesses; that these are refused is not.
                if volume.linode.is_some() {
                    let why = "Volume is already attached to a Linode";
                    return Err(Refusal::of(400, None, why));
                }
                if self.can_take(linode)? != volume.region {
                    let why = "Volume and Linode must be in the same region";
                    return Err(Refusal::of(400, Some("linode_id"), why));
                }
                let profile = self.instance(linode)?.disk;
                let volume = self.volume(id)?;
                (volume.linode, volume.profile) = (Some(linode), profile);
                let busy = now.unwrap_or("active");
                volume.job = Some((busy, end_ms));
                volume.clone().show(self)
            }
            "detach" => {
                if volume.linode.is_none() {
                    return Err(Refusal::of(400, None, "Volume is not attached"));
                }
                self.volume(id)?.leaves_ms.get_or_insert(end_ms);
                json!({})
            }
            "resize" => {
                let size = body["size"].as_u64().unwrap_or_default();
                if now.is_some_and(|it| it != "active") {
                    return Err(Refusal::of(
                        400,
                        None,
                        "Volume must be active to be resized",
                    ));
                }
                if size < volume.size || !SIZES.contains(&size) {
                    let why = "Volumes can only be resized up";
                    return Err(Refusal::of(400, Some("size"), why));
                }
                let volume = self.volume(id)?;
                volume.size = size;
                volume.job = Some(("resizing", end_ms));
                volume.clone().show(self)
            }
            _ => return Err(Refusal::not_found()),
        };
        self.note(&format!("volume_{verb}"), "volume", id, &volume.label);
        Ok(answer)
    }
}
