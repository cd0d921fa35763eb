//! The disks of instances: one that an image is written to, and one to swap to.

use serde_json::{Value, json};

use crate::account::Account;
use crate::catalog;
use crate::instance::{Instance, Work};
use crate::reply::Refusal;

/// How large a swap disk is where nobody says.
const SWAP_DEFAULT_MB: u64 = 512;

/// How much of the disk that an image is written to its files take: it cannot become smaller.
const FILES_MB: u64 = 2_000;

/// One disk.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) id: u64,
    filesystem: &'static str,
    size: u64,
}

/// Returns the disks that an image is written to; `swap` is how large the one to swap to is.
pub(crate) fn written(id: u64, class: &str, swap: Option<u64>) -> Vec<Disk> {
    let all = catalog::class(class).map_or(0, |it| it.disk);
    let swap = swap.unwrap_or(SWAP_DEFAULT_MB).min(all);
    let disk = |at: u64, filesystem, size| Disk {
        id: id * 10 + at,
        filesystem,
        size,
    };
    let mut disks = vec![disk(1, "ext4", all - swap)];
    if swap > 0 {
        disks.push(disk(2, "swap", swap));
    }
    disks
}

impl Disk {
    fn show(&self) -> Value {
        json!({"id": self.id, "label": format!("{} disk", self.filesystem),
            "filesystem": self.filesystem, "size": self.size, "status": "ready",
            "disk_encryption": "enabled", "created": "2026-01-01T00:00:00",
            "updated": "2026-01-01T00:00:00"})
    }
}

impl Instance {
    /// Lets the disk that has the system grow into what a larger class has more.
    pub(crate) fn grow_disks(&mut self) {
        let all = catalog::class(&self.class).map_or(0, |it| it.disk);
        let has: u64 = self.disks.iter().map(|it| it.size).sum();
        if let Some(first) = self.disks.first_mut() {
            first.size += all.saturating_sub(has);
        }
    }

    pub(crate) fn set_disk(&mut self, id: u64, size: u64) {
        for disk in self.disks.iter_mut().filter(|it| it.id == id) {
            disk.size = size;
        }
    }
}

impl Account {
    pub(crate) fn disks_of(&mut self, id: u64) -> Result<Vec<Value>, Refusal> {
        Ok(self.instance(id)?.disks.iter().map(Disk::show).collect())
    }

    /// Begins to change a disk's size.
    pub(crate) fn resize_disk(
        &mut self,
        id: u64,
        disk: u64,
        body: &Value,
        job_fails: bool,
    ) -> Result<Value, Refusal> {
        let instance = self.instance(id)?;
        if !instance.jobs.is_empty() {
            return Err(Refusal::busy());
        }
        let Some(was) = instance.disks.iter().find(|it| it.id == disk) else {
            return Err(Refusal::not_found());
        };
        let Some(size) = body["size"].as_u64().filter(|it| *it > 0) else {
            return Err(Refusal::of(400, Some("size"), "size is required"));
        };
        let all = catalog::class(&instance.class).map_or(0, |it| it.disk);
        let has: u64 = instance.disks.iter().map(|it| it.size).sum();
        if has - was.size + size > all {
            // The words are a guess.
            let why = "The Linode has not enough unallocated storage for that";
            return Err(Refusal::of(400, Some("size"), why));
        }
        // Of a disk in use, or too small for what is on it, the request succeeds and its job fails.
        let too_small = was.filesystem != "swap" && size < FILES_MB;
        let fails = job_fails || too_small || instance.status == "running";
        self.queue(id, Work::ResizeDisk { disk, size }, fails)?;
        Ok(json!({}))
    }
}
