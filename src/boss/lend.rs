//! Services for people: a grant to a key that is no machine's, which ends by itself.

use std::time::{Duration, SystemTime};

use gobs_model::{Address, Instance, Name};
use gobs_state::LoanRow;
use hob::protocol::{self, Attenuate, method};
use ocapn::Sturdyref;

use super::bind::{HOB_DEADLINE, key, malformed};
use super::{Boss, BossError};

/// A service that a person is to have for a while.
#[derive(Clone, Debug)]
pub struct Loan {
    /// The service's machine, with its incarnation.
    pub exporter: (Instance, u64),
    /// The service's name on it.
    pub service: Name,
    /// Who has it, for whoever asks the exporter: `open by maria on laptop`.
    pub holder: String,
    /// Higher than that of any loan to this holder.
    pub generation: u64,
    /// The designator of the person's key.
    pub receiver: String,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
}

impl Boss {
    /// Grants a loan; it is on the exporter's record until it is over, and on ours for good.
    /// Returns its durable name.
    ///
    /// # Errors
    /// When the exporter is away or refuses, or the record cannot be written.
    pub async fn lend(&self, loan: &Loan) -> Result<Sturdyref, BossError> {
        self.0.store.begin_loan(&LoanRow {
            service: Address::Service {
                machine: loan.exporter.0.clone(),
                service: loan.service.clone(),
            },
            holder: loan.holder.clone(),
            generation: loan.generation,
            key: loan.receiver.clone(),
            since: self.0.clock.now(),
            expires: SystemTime::UNIX_EPOCH + Duration::from_secs(loan.expires),
            ended: None,
        })?;
        let grant = protocol::to_passable(&protocol::Grant {
            service: loan.service.to_string(),
            binding: loan.holder.clone(),
            generation: loan.generation,
            receiver: loan.receiver.clone(),
            attenuate: Attenuate {
                expires: Some(loan.expires),
                ..Attenuate::default()
            },
            parent: None,
        });
        let key = key(&loan.exporter);
        let answer = self
            .call(&key, method::GRANT, vec![grant], HOB_DEADLINE)
            .await;
        if let Err(BossError::Refused { .. }) = &answer {
            self.end(loan)?;
        }
        let answer = answer?;
        let granted =
            protocol::Granted::from_passable(&answer).map_err(|error| malformed(&key, &error))?;
        Ok(granted.sturdyref)
    }

    /// Ends a loan before its time.
    ///
    /// # Errors
    /// When the exporter is away or refuses; the loan then ends when its time is over.
    pub async fn take_back(&self, loan: &Loan) -> Result<(), BossError> {
        let ended = protocol::to_passable(&protocol::Generation {
            binding: loan.holder.clone(),
            generation: loan.generation,
        });
        self.call(
            &key(&loan.exporter),
            method::REVOKE,
            vec![ended],
            HOB_DEADLINE,
        )
        .await?;
        self.end(loan)
    }

    fn end(&self, loan: &Loan) -> Result<(), BossError> {
        let now = self.0.clock.now();
        let ended = self.0.store.end_loan(&loan.holder, loan.generation, now);
        Ok(ended?)
    }
}
