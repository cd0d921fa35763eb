//! Taking over a machine that exists already, as a plan's `import` blocks say.

use gobs_model::{Diagnostic, Known, Path};
use gobs_provider::{Error, Token};
use gobs_state::{Intent, Row, RowChange, RowKind};

use crate::plan::{Action, Step};

use super::act::{Ended, MachineWork, Work};
use super::home;
use super::prepare::{Prepared, with_observed};
use super::{Walk, mark_of};

impl Walk<'_> {
    /// Returns the effect of an import, and adds its token to its intent. A run that is cut off
    /// leaves at most the mark, which the next plan finds.
    pub(super) fn prepare_import(&self, step: &Step, intent: &mut Intent) -> Prepared<Work> {
        let fail = |why: String| {
            let error = Diagnostic::error("Import failed", format!("{}: {why}.", step.address));
            Box::new(error.about(step.address.clone(), Path::default()))
        };
        let Action::Import {
            provider,
            id,
            wanted,
            incarnation,
        } = &step.action
        else {
            return Err(fail("it is no import".into()));
        };
        let token = Token::random().map_err(|error| fail(error.to_string()))?;
        let mark = mark_of(self.apply.store.lineage());
        let token = token.marked(&mark);
        intent.token = Some(token.0.clone());
        let wanted = Known::try_from(wanted.clone()).map_err(|error| fail(error.to_string()))?;
        let hob = home::hob_of(&wanted);
        let row = Row {
            address: step.address.clone(),
            wanted,
            observed: Known::empty(),
            depends_on: step.depends_on.clone(),
            version: 0,
            kind: RowKind::Machine {
                provider: provider.clone(),
                id: id.clone(),
                token: token.0,
                incarnation: *incarnation,
                enrolled: None,
            },
        };
        self.machine_work(step, provider, intent, hob, |work| Work::Import {
            work,
            row,
            mark,
        })
    }
}

impl MachineWork {
    /// Marks a machine as this project's, and keeps it.
    pub(super) async fn adopt(self, mut row: Row, mark: &str) -> Ended {
        let RowKind::Machine { id, token, .. } = &row.kind else {
            return self.failed("Import failed", &Error::rejected("it is no machine"));
        };
        let (id, token) = (id.clone(), Token(token.clone()));
        let answer = self.unless_busy(|| self.provider.adopt(&id, &token)).await;
        let refusal = match answer {
            Ok(Some((token, _))) if !token.has_mark(mark) => {
                Error::rejected(format!("{id} belongs to another project of gobs by now"))
            }
            Ok(Some((own, observed))) => {
                if let RowKind::Machine { token, .. } = &mut row.kind {
                    *token = own.0;
                }
                let row = with_observed(row, observed);
                return Ended::Done(vec![RowChange::PutRow(Box::new(row))]);
            }
            Ok(None) => Error::rejected(format!("there is no machine {id} any more")),
            Err(error) => error,
        };
        self.failed("Import failed", &refusal)
    }
}
