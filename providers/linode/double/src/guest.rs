//! Guests: what runs inside an instance while it runs, as processes of this host.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::instance::Instance;

/// What is started when an instance comes up, and ended when it goes down.
#[derive(Clone, Debug)]
pub struct Guest {
    /// A command for `sh`. It finds its metadata service in `GUEST_METADATA_URL`, its disk, where
    /// it starts, in `GUEST_DIR`, and who it is in `GUEST_ID` and `GUEST_LABEL`.
    pub command: String,
    /// Where the disks are: one directory for each instance, emptied by a rebuild and gone with
    /// the instance. What the command says is in its `console.log`.
    pub directory: PathBuf,
}

/// The guests of an account.
#[derive(Debug)]
pub(crate) struct Guests {
    guest: Guest,
    running: BTreeMap<u64, Running>,
}

#[derive(Debug)]
struct Running {
    /// Which boot of the instance it belongs to.
    boots: u64,
    /// Which writing of its disk.
    disk: u64,
    child: Option<Child>,
}

impl Guests {
    pub(crate) fn new(guest: Guest) -> Self {
        let running = BTreeMap::new();
        Self { guest, running }
    }

    /// Starts what has come up, and ends what has gone down.
    pub(crate) fn settle(
        &mut self,
        instances: &BTreeMap<u64, Instance>,
        metadata_url: impl Fn(u64) -> Option<String>,
    ) {
        let gone: Vec<u64> = (self.running.keys())
            .filter(|id| !instances.contains_key(id))
            .copied()
            .collect();
        for id in gone {
            self.running.remove(&id);
            // A disk that was never written need not be taken away.
            let _ = std::fs::remove_dir_all(self.disk(id));
        }
        for (id, instance) in instances {
            let is_up = instance.status == "running";
            let directory = self.disk(*id);
            let running = self.running.entry(*id).or_insert(Running {
                boots: 0,
                disk: instance.disk,
                child: None,
            });
            if running.disk != instance.disk || !is_up || running.boots != instance.boots {
                running.end();
            }
            if running.disk != instance.disk {
                running.disk = instance.disk;
                let _ = std::fs::remove_dir_all(&directory);
            }
            if !is_up || running.boots == instance.boots {
                continue;
            }
            let Some(url) = metadata_url(*id) else {
                continue;
            };
            running.boots = instance.boots;
            match start(&self.guest.command, &directory, instance, &url) {
                Ok(child) => running.child = Some(child),
                Err(error) => tracing::warn!(id, %error, "no guest"),
            }
        }
    }

    fn disk(&self, id: u64) -> PathBuf {
        self.guest.directory.join(id.to_string())
    }
}

impl Running {
    fn end(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // What the command started is of its process group, and goes with it. One that has ended
        // cannot be killed, which is as good.
        if let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
        let _ = child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

fn start(
    command: &str,
    directory: &PathBuf,
    instance: &Instance,
    metadata_url: &str,
) -> io::Result<Child> {
    std::fs::create_dir_all(directory)?;
    let console = File::options()
        .create(true)
        .append(true)
        .open(directory.join("console.log"))?;
    Command::new("sh")
        .args(["-c", command])
        .current_dir(directory)
        .env("GUEST_METADATA_URL", metadata_url)
        .env("GUEST_DIR", directory)
        .env("GUEST_ID", instance.id.to_string())
        .env("GUEST_LABEL", &instance.label)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(console)
        .spawn()
}
