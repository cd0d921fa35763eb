//! Turning machines on and off.

use gobs_provider::{Error, Progress};
use serde_json::json;
use tokio::time::Instant;

use crate::jobs::Job;
use crate::machine::{DELETE_WITHIN, LOOK_EVERY, Machines, path_of};
use crate::observe::{OFF, tags};

impl Machines {
    /// Turns a machine on or off, unless it is so.
    pub(crate) async fn power(&self, id: &str, on: bool, progress: &Progress) -> Result<(), Error> {
        if self.is_on_when_settled(id).await? == on {
            return Ok(());
        }
        let (verb, event) = match on {
            true => ("boot", "linode_boot"),
            false => ("shutdown", "linode_shutdown"),
        };
        let job = Job {
            id,
            verb,
            body: json!({}),
            event,
        };
        self.api.run(&job, progress).await
    }

    /// Waits for jobs that are on their way, and returns whether the machine runs then.
    pub(crate) async fn is_on_when_settled(&self, id: &str) -> Result<bool, Error> {
        let until = Instant::now() + self.api.time.limit(DELETE_WITHIN);
        loop {
            let instance = self.there(id).await?;
            match instance["status"].as_str().unwrap_or_default() {
                "running" => return Ok(true),
                "offline" | "stopped" => return Ok(false),
                status if Instant::now() >= until => {
                    let why = format!("Linode {id} does not settle: it is {status}");
                    return Err(Error::Busy {
                        message: why,
                        after: LOOK_EVERY,
                    });
                }
                _ => self.api.time.sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Turns a machine off for a while, and returns whether it is to run again. That is written
    /// at the machine before, for a run that dies meanwhile.
    pub(crate) async fn pause(&self, id: &str, progress: &Progress) -> Result<bool, Error> {
        let instance = self.there(id).await?;
        let is_paused = tags(&instance).any(|tag| tag == OFF);
        let ran = is_paused || self.is_on_when_settled(id).await?;
        if ran && !is_paused {
            self.set_tags(id, tags(&instance).chain([OFF]).collect())
                .await?;
        }
        self.power(id, false, progress).await?;
        Ok(ran)
    }

    /// Turns it on again, where it is to be.
    pub(crate) async fn resume(
        &self,
        id: &str,
        on: bool,
        progress: &Progress,
    ) -> Result<(), Error> {
        if on {
            self.power(id, true, progress).await?;
        }
        let instance = self.there(id).await?;
        if tags(&instance).any(|tag| tag == OFF) {
            self.set_tags(id, tags(&instance).filter(|tag| *tag != OFF).collect())
                .await?;
        }
        Ok(())
    }

    async fn set_tags(&self, id: &str, tags: Vec<&str>) -> Result<(), Error> {
        let set = self.api.put(&path_of(id)?, &json!({"tags": tags})).await;
        set.map(drop).map_err(Error::from)
    }
}
