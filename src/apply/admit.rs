//! Whom a machine's derived firewall is to let in: now that it is known where they are.

use gobs_model::Change;
use gobs_provider::{Token, UpdateRequest};
use gobs_state::{Intent, Row, RowChange};

use crate::lang::HobValues;
use crate::plan::{Step, Whom};

use super::Walk;
use super::act::Work;
use super::prepare::{
    Detail, Prepared, detail, incarnation_of, known, observed_of, provider_wanted, randomness,
};

impl Walk<'_> {
    /// Returns the change of a firewall; nothing to do where all are where they were.
    pub(super) fn admit_work(
        &self,
        step: &Step,
        provider: &str,
        whom: &Whom,
        simulated: bool,
        intent: &mut Intent,
    ) -> Prepared<Work> {
        let row = self.row(step, &step.address)?;
        let admits = whom.resolve(|it| Some(self.rows.get(it)?.observed.value()));
        let mut next = Row::clone(&row);
        next.wanted = known(step, whom.put_into(row.wanted.value(), admits))?;
        if next.wanted == row.wanted {
            return Ok(Work::Rows(Vec::new()));
        }
        if simulated {
            return Ok(Work::Rows(vec![RowChange::PutRow(Box::new(next))]));
        }
        intent.detail = detail(&Detail::Update {
            wanted: next.wanted.clone(),
            incarnation: incarnation_of(&row).unwrap_or_default(),
            rebuilt: false,
        });
        let token = Token::random().map_err(|error| randomness(step, &error.into()))?;
        intent.token = Some(token.0.clone());
        let request = UpdateRequest {
            token,
            address: step.address.clone(),
            before: observed_of(&row),
            was_wanted: provider_wanted(&row.wanted),
            wanted: provider_wanted(&next.wanted),
            change: Change::InPlace,
            user_data: None,
        };
        self.machine_work(step, provider, intent, HobValues::default(), |work| {
            Work::Update {
                work,
                request,
                old: row,
                row: next,
                ended: None,
            }
        })
    }
}
