//! What gobs remembers: rows, outputs, a journal and the boss's own tables, in one SQLite file.

mod claim;
mod journal;
mod snapshot;

pub use claim::{
    Alert, CLAIM_LIFETIME_MAX, CLAIM_TTL, Claim, ClaimOutcome, HobRow, JoinOutcome, NewClaim,
    Refusal, SwissnumHash,
};
pub use journal::{Doubt, Finished, Intent, Outcome, RowChange, Run, Started};
pub use snapshot::{Phase, Row, RowKind, Snapshot};
