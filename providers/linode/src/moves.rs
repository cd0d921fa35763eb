//! A machine that moves: to another size, and to another region.

use gobs_model::{Known, Value};
use gobs_provider::{Error, Progress};
use serde_json::{Value as Json, json};

use crate::jobs::Job;
use crate::machine::Machines;
use crate::observe::{is_same_region, json_of};

impl Machines {
    /// Gives a machine another size.
    pub(crate) async fn resize(
        &self,
        id: &str,
        wanted: &Known,
        progress: &Progress,
    ) -> Result<(), Error> {
        let class = text(wanted, "type");
        if self.there(id).await?["type"] == class {
            return Ok(());
        }
        let body = json!({"type": class, "migration_type": "cold"});
        let (verb, event) = ("resize", "linode_resize");
        let job = Job {
            id,
            verb,
            body,
            event,
        };
        let is_so = |now: &Json| now["type"] == class;
        self.run_unless_so(&job, is_so, progress).await
    }

    /// Moves a machine to another region.
    pub(crate) async fn migrate(
        &self,
        id: &str,
        wanted: &Known,
        progress: &Progress,
    ) -> Result<(), Error> {
        let region = text(wanted, "region");
        let is_so = |now: &Json| is_same_region(now["region"].as_str().unwrap_or_default(), region);
        if is_so(&self.there(id).await?) {
            return Ok(());
        }
        let mut body = json!({"region": region, "type": "cold"});
        // It leaves the group that it is in, which is of its region.
        if let Some(group) = json_of(wanted, "placement_group") {
            body["placement_group"] = json!({"id": group});
        }
        let (verb, event) = ("migrate", "linode_migrate_datacenter");
        let job = Job {
            id,
            verb,
            body,
            event,
        };
        self.run_unless_so(&job, is_so, progress).await
    }

    /// Runs a job; a refusal is no failure where what it is for is so by then: the job that it
    /// waited for may have been the same, begun by a run that died.
    async fn run_unless_so(
        &self,
        job: &Job<'_>,
        is_so: impl Fn(&Json) -> bool,
        progress: &Progress,
    ) -> Result<(), Error> {
        match self.api.run(job, progress).await {
            Err(Error::Rejected { .. }) if is_so(&self.there(job.id).await?) => Ok(()),
            done => done,
        }
    }
}

fn text<'a>(wanted: &'a Known, name: &str) -> &'a str {
    wanted.get(name).and_then(Value::as_str).unwrap_or_default()
}
