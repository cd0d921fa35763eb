//! One instance: what it is, and the jobs that make it so, one at a time.

use std::collections::VecDeque;

use serde_json::{Value, json};

use crate::catalog;
use crate::clock::{Dice, api_time};
use crate::disk::{self, Disk};

/// What a job does to its instance.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Work {
    Create,
    Boot,
    Shutdown,
    Reboot,
    /// What the watchdog does about an instance that died.
    Revive,
    Rebuild {
        image: String,
    },
    Resize {
        class: String,
    },
    ResizeDisk {
        disk: u64,
        size: u64,
    },
    Migrate {
        region: String,
        /// The placement group that it comes into, and how that is shown.
        group: Option<(u64, Value)>,
    },
    Delete,
}

impl Work {
    /// Returns the name of its event.
    pub(crate) fn action(&self) -> &'static str {
        match self {
            Self::Create => "linode_create",
            Self::Boot => "linode_boot",
            Self::Shutdown => "linode_shutdown",
            Self::Reboot => "linode_reboot",
            Self::Revive => "lassie_reboot",
            Self::Rebuild { .. } => "linode_rebuild",
            Self::Resize { .. } => "linode_resize",
            Self::ResizeDisk { .. } => "disk_resize",
            Self::Migrate { .. } => "linode_migrate_datacenter",
            Self::Delete => "linode_delete",
        }
    }

    /// Returns what the instance is while it goes on; nothing where that stays what it was.
    fn status(&self) -> Option<&'static str> {
        Some(match self {
            Self::Create => "provisioning",
            Self::Boot => "booting",
            Self::Shutdown => "shutting_down",
            Self::Reboot | Self::Revive => "rebooting",
            Self::Rebuild { .. } => "rebuilding",
            Self::Resize { .. } => "resizing",
            Self::ResizeDisk { .. } => return None,
            Self::Migrate { .. } => "migrating",
            Self::Delete => "deleting",
        })
    }

    /// Returns how long it takes, from recorded durations where there are such.
    fn duration_ms(&self, dice: &mut Dice) -> u64 {
        let (low_s, high_s) = match self {
            Self::Create => (3, 65),
            Self::Boot | Self::Reboot | Self::Revive => (24, 67),
            Self::Shutdown => (15, 30),
            Self::Rebuild { .. } => (30, 90),
            Self::Resize { .. } => (60, 240),
            Self::ResizeDisk { .. } => (10, 60),
            Self::Migrate { .. } => (120, 480),
            Self::Delete => (2, 10),
        };
        dice.between(low_s * 1_000, high_s * 1_000)
    }
}

/// One job, which is one event.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) event: u64,
    pub(crate) work: Work,
    /// When it was asked for.
    asked_ms: u64,
    /// When it began and ends, once it runs.
    span_ms: Option<(u64, u64)>,
    fails: bool,
    slow_ms: u64,
    /// How long after it the instance dies.
    dies_ms: Option<u64>,
}

/// What an event's job came to.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) event: u64,
    pub(crate) status: &'static str,
    pub(crate) percent: u64,
    pub(crate) duration_ms: Option<u64>,
}

/// One instance.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    pub(crate) id: u64,
    pub(crate) label: String,
    pub(crate) region: String,
    pub(crate) class: String,
    pub(crate) image: Option<String>,
    pub(crate) tags: Vec<String>,
    pub(crate) ipv4: Vec<String>,
    pub(crate) status: &'static str,
    pub(crate) created_ms: u64,
    pub(crate) updated_ms: u64,
    pub(crate) user_data: Option<String>,
    pub(crate) authorized_keys: Vec<String>,
    pub(crate) backups: bool,
    pub(crate) disk_encryption: String,
    pub(crate) maintenance_policy: String,
    pub(crate) watchdog: bool,
    pub(crate) firewalls: Vec<u64>,
    pub(crate) interface_generation: String,
    /// Of a configuration profile, as they were asked for; or Linode interfaces, as they show.
    pub(crate) interfaces: Vec<Value>,
    /// Its placement group, and how that is shown.
    pub(crate) group: Option<u64>,
    pub(crate) group_shown: Value,
    pub(crate) jobs: VecDeque<Job>,
    /// How often it came up, so that a guest is started once for each.
    pub(crate) boots: u64,
    /// How often its disk was written anew.
    pub(crate) disk: u64,
    pub(crate) disks: Vec<Disk>,
    /// When it dies.
    pub(crate) dies_ms: Option<u64>,
    /// Gone: nothing shows it any more.
    pub(crate) gone: bool,
}

impl Instance {
    pub(crate) fn queue(
        &mut self,
        event: u64,
        work: Work,
        asked_ms: u64,
        (fails, slow_ms, dies_ms): (bool, u64, Option<u64>),
    ) {
        self.jobs.push_back(Job {
            event,
            work,
            asked_ms,
            span_ms: None,
            fails,
            slow_ms,
            dies_ms,
        });
    }

    /// Returns whether it has just died: it is off then.
    pub(crate) fn dies(&mut self, now_ms: u64) -> bool {
        let is_dead = self.dies_ms.is_some_and(|it| it <= now_ms) && self.jobs.is_empty();
        if is_dead {
            self.dies_ms = None;
            self.status = "offline";
        }
        is_dead && self.watchdog
    }

    /// Brings the instance to this moment, and tells what its jobs came to.
    pub(crate) fn settle(&mut self, now_ms: u64, dice: &mut Dice) -> Vec<Told> {
        let mut told = Vec::new();
        let mut free_ms = 0;
        while let Some(job) = self.jobs.front_mut() {
            let event = job.event;
            let (begin, end) = match job.span_ms {
                Some(span) => span,
                None => {
                    let begin = job.asked_ms.max(free_ms);
                    let takes_ms = job.work.duration_ms(dice) + job.slow_ms;
                    let span = (begin, begin + takes_ms);
                    job.span_ms = Some(span);
                    self.status = job.work.status().unwrap_or(self.status);
                    span
                }
            };
            if end > now_ms {
                let done = now_ms.saturating_sub(begin) * 100 / (end - begin).max(1);
                let percent = done.min(99);
                told.push(Told {
                    event,
                    status: "started",
                    percent,
                    duration_ms: None,
                });
                break;
            }
            let (fails, work) = (job.fails, job.work.clone());
            self.dies_ms = job.dies_ms.map(|after| end + after);
            self.jobs.pop_front();
            free_ms = end;
            self.updated_ms = end;
            let duration_ms = Some(end - begin);
            let status = if fails { "failed" } else { "finished" };
            told.push(Told {
                event,
                status,
                percent: 100,
                duration_ms,
            });
            if fails {
                if work.status().is_some() {
                    self.status = "offline";
                }
                for job in self.jobs.drain(..) {
                    let (event, status) = (job.event, "failed");
                    told.push(Told {
                        event,
                        status,
                        percent: 0,
                        duration_ms: None,
                    });
                }
                break;
            }
            self.finish(work);
        }
        told
    }

    fn finish(&mut self, work: Work) {
        self.status = "offline";
        match work {
            Work::Create | Work::Shutdown => {}
            Work::Boot | Work::Reboot | Work::Revive => {
                self.status = "running";
                self.boots += 1;
            }
            Work::Rebuild { image } => {
                self.image = Some(image);
                self.disk += 1;
                self.disks = disk::written(self.id, &self.class, None);
                // Its configuration profile is another one, with nothing in it.
                if !self.has_linode_interfaces() {
                    self.interfaces.clear();
                }
            }
            Work::Resize { class } => {
                self.class = class;
                self.grow_disks();
            }
            Work::ResizeDisk { disk, size } => self.set_disk(disk, size),
            Work::Migrate { region, group } => {
                self.region = region;
                // It leaves the group that it was in.
                (self.group, self.group_shown) = match group {
                    Some((id, shown)) => (Some(id), shown),
                    None => (None, Value::Null),
                };
                // Another region has other addresses.
                let last = self.ipv4.iter_mut().find(|it| it.starts_with("203."));
                if let Some(address) = last {
                    *address = address.replacen("203.0", "198.51", 1);
                }
            }
            Work::Delete => self.gone = true,
        }
    }

    /// Returns the address that it has towards the internet, where it has one.
    pub(crate) fn public_address(&self) -> String {
        let has = self.ipv4.iter().find(|it| !it.starts_with("192.168."));
        has.cloned()
            .unwrap_or_else(|| crate::account::address(self.id, "203.0"))
    }

    /// Returns the address that it makes itself, by its interface's own.
    pub(crate) fn slaac(&self) -> String {
        format!("2001:db8::f03c:{:x}:{:x}", self.id >> 16, self.id & 0xffff)
    }

    /// Returns the instance as the API shows it.
    pub(crate) fn show(&self) -> Value {
        let specs = catalog::class(&self.class).map(|it| it.specs());
        json!({
            "id": self.id, "label": self.label, "group": "", "status": self.status,
            "created": api_time(self.created_ms), "updated": api_time(self.updated_ms),
            "type": self.class, "ipv4": self.ipv4,
            "ipv6": format!("{}/128", self.slaac()),
            "image": self.image, "region": self.region, "site_type": "core", "specs": specs,
            "alerts": {"cpu": 90, "network_in": 10, "network_out": 10, "transfer_quota": 80,
                "io": 10_000, "system_alerts": [], "user_alerts": []},
            "backups": {"enabled": self.backups, "available": false,
                "schedule": {"day": null, "window": null}, "last_successful": null},
            "hypervisor": "kvm", "watchdog_enabled": self.watchdog, "tags": self.tags,
            "host_uuid": format!("{:040x}", self.id),
            "has_user_data": self.user_data.is_some(), "placement_group": self.group_shown,
            "disk_encryption": self.disk_encryption, "lke_cluster_id": null,
            "capabilities": ["Block Storage Encryption", "SMTP Enabled", "Maintenance Policy"],
            "interface_generation": self.interface_generation,
            "maintenance_policy": self.maintenance_policy, "locks": [],
        })
    }

    /// Returns the instance as its own metadata service shows it.
    pub(crate) fn show_inside(&self) -> Value {
        let specs = catalog::class(&self.class).map(|it| it.specs());
        json!({
            "id": self.id, "label": self.label, "region": self.region, "type": self.class,
            "host_uuid": format!("{:040x}", self.id), "tags": self.tags, "specs": specs,
            "backups": {"enabled": self.backups, "status": null},
            "image": {"id": self.image, "label": self.image},
            "account_euuid": "00000000-0000-4000-8000-000000000000",
        })
    }
}
