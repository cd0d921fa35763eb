//! The end of a machine, with what goes with it; and of what was made for one that never was.

use gobs_model::Address;
use gobs_provider::{Error, Observed, Progress};
use tokio::time::Instant;

use crate::api::Fail;
use crate::machine::{DELETE_WITHIN, LOOK_EVERY, Machines, path_of};
use crate::marks::Mark;

impl Machines {
    pub(crate) async fn delete(&self, last: &Observed, progress: &Progress) -> Result<(), Error> {
        let (id, path) = (&*last.id, path_of(&last.id)?);
        let mut instance = self.get(id).await?;
        // A machine without a mark has never had anything beside itself.
        let mark = instance.as_ref().and_then(Mark::on);
        let mark = mark.or_else(|| Mark::seen(&last.attributes));
        // What goes with the machine goes before it, while the machine tells that it is to go.
        self.remove_records(&last.attributes).await?;
        let firewall = self
            .doomed_firewall(&last.attributes, mark.as_ref())
            .await?;
        if firewall.is_some() || Self::has_doomed_volumes(&last.attributes) {
            if instance.is_some_and(|it| it["status"] != "deleting") {
                // Nobody reaches it without its firewall, and it writes to no volume.
                self.power(id, false, progress).await?;
            }
            if let Some(firewall) = firewall {
                self.remove_at(&firewall).await?;
            }
            self.delete_doomed_volumes(id, &last.attributes, mark.as_ref())
                .await?;
            instance = self.get(id).await?;
        }
        if let Some(mark) = &mark {
            self.mark_kept_volumes(id, &last.attributes, mark).await?;
        }
        let until = Instant::now() + self.api.time.limit(DELETE_WITHIN);
        while let Some(seen) = instance {
            let status = seen["status"].as_str().unwrap_or_default();
            if Instant::now() >= until {
                let why = format!("Linode {id} is still there: it is {status}");
                return Err(Error::InDoubt(why));
            }
            if status == "deleting" {
                progress("Linode is deleting it".into());
            } else {
                match self.api.delete(&path).await {
                    // What was lost is seen by the next look.
                    Ok(_) | Err(Fail::Busy | Fail::Lost(_)) => {}
                    Err(Fail::Gone) => return Ok(()),
                    Err(fail) => return Err(fail.into()),
                }
            }
            self.api.time.sleep(LOOK_EVERY).await;
            instance = self.get(id).await?;
        }
        Ok(())
    }

    /// Takes away what was made for a machine which was not made itself.
    pub(crate) async fn abandon(&self, address: &Address) -> Result<(), Error> {
        let _turn = self.turns.at(address).await;
        let mark = Mark::of(&self.project, address);
        self.abandon_firewall(&mark).await
    }
}
