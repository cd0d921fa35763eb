//! Jobs: one at a time for each instance, begun by an action and told by an event.

use std::time::Duration;

use gobs_provider::{Error, Progress};
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use crate::api::{Api, Fail};
use crate::pace::Class;
use crate::schema::LIST_LAG;

/// How often an event is looked at: what linodego does.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// How long another job of the same instance is waited out: a migration takes an hour at worst.
const BUSY_WITHIN: Duration = Duration::from_secs(3_600);

/// How long a job may take: a large disk that moves to another region.
const JOB_WITHIN: Duration = Duration::from_secs(3_600);

/// How often an action is sent whose answer was lost and of which there is no sign.
const SENDS_MAX: u32 = 3;

/// One action on an instance, and the event that tells of it.
pub(crate) struct Job<'a> {
    pub(crate) id: &'a str,
    /// The last part of its path: `resize`.
    pub(crate) verb: &'a str,
    pub(crate) body: Json,
    /// The event's name: `linode_resize`.
    pub(crate) event: &'a str,
}

impl Api {
    /// Returns the newest event of an instance, so that later ones can be told from it.
    pub(crate) async fn newest_event(&self, id: &str) -> Result<u64, Fail> {
        let events = self.events(id, None).await?;
        Ok(events
            .iter()
            .filter_map(|event| event["id"].as_u64())
            .max()
            .unwrap_or(0))
    }

    /// Returns the event of an instance by its action, if one came after another.
    pub(crate) async fn event_after(
        &self,
        id: &str,
        action: &str,
        after: u64,
    ) -> Result<Option<Json>, Fail> {
        let events = self.events(id, Some(action)).await?;
        let is_later = |event: &Json| event["id"].as_u64().is_some_and(|it| it > after);
        let later = events.into_iter().filter(is_later);
        Ok(later.min_by_key(|event| event["id"].as_u64()))
    }

    async fn events(&self, id: &str, action: Option<&str>) -> Result<Vec<Json>, Fail> {
        let number = id.parse::<u64>().map_err(|_| Fail::Gone)?;
        let mut filter = json!({"entity.id": number, "entity.type": "linode",
            "+order_by": "created", "+order": "desc"});
        if let Some(action) = action {
            filter["action"] = action.into();
        }
        self.first("/account/events", &filter).await
    }

    /// Begins a job and waits until its event says that it has ended.
    pub(crate) async fn run(&self, job: &Job<'_>, progress: &Progress) -> Result<(), Error> {
        let before = self.newest_event(job.id).await?;
        self.begin(job, before, progress).await?;
        self.finish(job, before, progress).await
    }

    /// Sends the action until the API has it, and never once it has.
    pub(crate) async fn begin(
        &self,
        job: &Job<'_>,
        before: u64,
        progress: &Progress,
    ) -> Result<(), Error> {
        let path = format!("/linode/instances/{}/{}", job.id, job.verb);
        let until = Instant::now() + self.time.limit(BUSY_WITHIN);
        let mut sends = 0;
        loop {
            sends += 1;
            let lost = match self.post(&path, Class::Other, &job.body).await {
                Ok(_) => return Ok(()),
                Err(Fail::Busy) if Instant::now() < until => {
                    sends -= 1;
                    progress("waits for another job of this Linode".into());
                    // What makes it busy may be this action, of which an answer was lost.
                    if self.event_after(job.id, job.event, before).await?.is_some() {
                        return Ok(());
                    }
                    self.time.sleep(LOOK_EVERY).await;
                    continue;
                }
                Err(Fail::Lost(why)) => why,
                Err(fail) => {
                    // "It is already so" may be the answer to a repeat of what was done.
                    return match self.event_after(job.id, job.event, before).await? {
                        Some(_) => Ok(()),
                        None => Err(fail.into()),
                    };
                }
            };
            let seen_until = Instant::now() + self.time.here(LIST_LAG);
            loop {
                if self.event_after(job.id, job.event, before).await?.is_some() {
                    return Ok(());
                }
                if Instant::now() >= seen_until {
                    break;
                }
                self.time.sleep(LOOK_EVERY).await;
            }
            if sends >= SENDS_MAX {
                return Err(Error::InDoubt(lost));
            }
        }
    }

    /// Waits for the end of a job that began after an event.
    pub(crate) async fn finish(
        &self,
        job: &Job<'_>,
        before: u64,
        progress: &Progress,
    ) -> Result<(), Error> {
        let until = Instant::now() + self.time.limit(JOB_WITHIN);
        loop {
            let event = self.event_after(job.id, job.event, before).await?;
            let status = event
                .as_ref()
                .and_then(|it| it["status"].as_str())
                .unwrap_or("unseen");
            match status {
                "finished" | "notification" => return Ok(()),
                "failed" | "canceled" => {
                    let said = event.as_ref().and_then(|it| it["message"].as_str());
                    let said = said
                        .filter(|it| !it.is_empty())
                        .unwrap_or("no reason given");
                    let why = format!("Linode's {} {status}: {said}", job.event);
                    return Err(Error::rejected(why));
                }
                _ if Instant::now() >= until => {
                    let why = format!("Linode's {} has not ended; it is {status}", job.event);
                    return Err(Error::InDoubt(why));
                }
                _ => {}
            }
            let percent = event
                .as_ref()
                .and_then(|it| it["percent_complete"].as_u64());
            progress(format!("{} {status}, {}%", job.event, percent.unwrap_or(0)));
            self.time.sleep(LOOK_EVERY).await;
        }
    }
}
