//! The contract between gobs and a provider.
//!
//! A provider makes machines and takes them away. It decides nothing: the planner compares what
//! is declared with what was asked last, by the [`ProviderSchema`] alone, and the provider is
//! told what to do. Whatever it does must be findable afterwards by the [`Token`] it was given.

pub mod conformance;
mod deadline;
mod error;
pub mod pipe;

use std::sync::Arc;

use async_trait::async_trait;
use gobs_model::{Address, Change, Known, ProviderSchema, Value};
use serde::{Deserialize, Serialize};

pub use deadline::{Bounded, Deadlines};
pub use error::Error;

/// What makes a machine findable after a crash: minted by gobs for each create, durable before
/// the provider is asked, and kept by the provider with the machine (a tag, a label, a file).
///
/// 26 characters of lower-case base32; not a secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Token(pub String);

impl Token {
    /// Returns a token that nobody has: 130 random bits.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn random() -> Result<Self, getrandom::Error> {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let mut bytes = [0; 26];
        getrandom::fill(&mut bytes)?;
        let letters = bytes.map(|byte| char::from(ALPHABET[usize::from(byte % 32)]));
        Ok(Self(letters.into_iter().collect()))
    }

    /// Returns this token with the mark of a project at its end, so that the machines of one
    /// project can be told from those of others in the same account. The rest stays random.
    #[must_use]
    pub fn marked(mut self, mark: &str) -> Self {
        let kept = self.0.len().saturating_sub(mark.len());
        self.0.truncate(kept);
        self.0.push_str(mark);
        self
    }

    /// Returns whether this is a token of a project with this mark.
    pub fn has_mark(&self, mark: &str) -> bool {
        self.0.ends_with(mark)
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A machine as its provider sees it now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// The provider's own identifier; never reused for another machine.
    pub id: String,
    /// Every attribute of the schema that the provider can see: what was set, as the provider
    /// has it, and what it computed.
    pub attributes: Known,
}

/// Why a machine cannot be as it is planned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objection {
    /// The attribute or block that it is about.
    pub attribute: String,
    /// Of labelled blocks, which one.
    #[serde(default)]
    pub label: Option<String>,
    /// What is wrong, as a fragment.
    pub message: String,
    /// What to do, as a fragment.
    #[serde(default)]
    pub hint: String,
}

impl Objection {
    /// Returns an objection to an attribute or a block.
    pub fn new(attribute: &str, message: String, hint: &str) -> Self {
        Self {
            attribute: attribute.into(),
            label: None,
            message,
            hint: hint.into(),
        }
    }

    /// Returns this objection to one of labelled blocks.
    #[must_use]
    pub fn labelled(mut self, label: &str) -> Self {
        self.label = Some(label.into());
        self
    }
}

/// What a machine's agent gets to start with: handed to the provider as opaque text.
///
/// It holds a one-time secret, so it is never logged and its memory is wiped by whoever made it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserData(pub String);

/// What to create.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateRequest {
    /// By which the machine can be found from now on.
    pub token: Token,
    /// The declaration that it comes from; for labels and messages.
    pub address: Address,
    /// The attributes asked for, complete by the schema; nothing computed.
    pub wanted: Known,
    /// For the machine's agent, where it has one.
    pub user_data: Option<UserData>,
    /// The machine whose place it takes, as it was last seen: what outlived that is found by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Observed>,
}

/// What a plan makes of one machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Proposal {
    /// The declaration.
    pub address: Address,
    /// What it is to be; what is not known yet is unknown.
    pub wanted: Value,
    /// Whether it is yet to be made.
    pub is_new: bool,
    /// As it was last seen, or as that was whose place it takes.
    pub before: Option<Observed>,
}

/// Something beside a machine that belongs to one, and is not as the machine's row has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oddity {
    /// What it is, as a sentence that begins after the provider's name.
    pub what: String,
    /// What to do about it.
    #[serde(default)]
    pub mend: String,
    /// Whether a person has to look.
    #[serde(default)]
    pub is_problem: bool,
}

/// What to change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpdateRequest {
    /// Marks this change, so that a repeat can be told from a second change.
    pub token: Token,
    /// The declaration that it comes from.
    pub address: Address,
    /// The machine as it was last seen.
    pub before: Observed,
    /// What was asked last.
    pub was_wanted: Known,
    /// What is asked now.
    pub wanted: Known,
    /// The costliest change that the plan announced; the provider does nothing costlier.
    pub change: Change,
    /// For the fresh agent, where `change` is [`Change::Rebuild`].
    pub user_data: Option<UserData>,
}

/// What a plan is to make of one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Intended {
    /// The machine as it was last seen and asked for; `null` where there is none.
    pub before: Value,
    /// What is asked, with what is not known yet; `null` where it is to go.
    pub after: Value,
    /// Whether another machine is made: what is there before goes, and of its nested blocks only
    /// those stay that outlive it.
    pub anew: bool,
}

/// Told while a call goes on.
pub type Progress = Arc<dyn Fn(String) + Send + Sync>;

/// Makes machines and takes them away.
///
/// Every verb is safe to run twice. A verb whose answer was lost returns [`Error::InDoubt`];
/// gobs then looks with `find` or `read` and never repeats blindly. A call is cancelled by dropping
/// its future, at any moment: what it did until then must be findable like any lost answer.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Returns what gobs must know to plan; the same for as long as the process runs.
    fn schema(&self) -> &ProviderSchema;

    /// Takes the settings of the `provider` block; called once, before any verb.
    async fn configure(&self, settings: &Known) -> Result<(), Error>;

    /// Returns whether machines are rows only, without agents or effects (after `configure`).
    fn is_simulated(&self) -> bool {
        false
    }

    /// Returns how long each verb may take (after `configure` too).
    fn deadlines(&self) -> Deadlines {
        Deadlines::default()
    }

    /// Returns the rights that are lacking for a plan, each as people know it. Asked when something
    /// is planned, so that nothing is begun which cannot be ended; it changes nothing.
    async fn lacking(&self, _plan: &[Intended]) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    /// Returns why a machine cannot become what is proposed, as far as its provider and the account
    /// can say before anything is done; what is not known yet is no reason.
    async fn objections(&self, _proposal: &Proposal) -> Result<Vec<Objection>, Error> {
        Ok(Vec::new())
    }

    /// Creates a machine; returns when the provider says that it exists, not when it has booted.
    async fn create(&self, request: CreateRequest, progress: Progress) -> Result<Observed, Error>;

    /// Returns the machine that was created under this token, if the provider shows one.
    ///
    /// Absence means something only after the schema's `list_lag`.
    async fn find(&self, token: &Token) -> Result<Option<Observed>, Error>;

    /// Takes away what was made for a machine of this declaration that was not made itself: where
    /// its create ended without one. What belongs to a machine that is there stays.
    async fn abandon(&self, _address: &Address) -> Result<(), Error> {
        Ok(())
    }

    /// Returns the machine as it is now; nothing when it is gone for good.
    async fn read(&self, last: &Observed) -> Result<Option<Observed>, Error>;

    /// Returns a machine that gobs did not make, or does not know any more, by its own
    /// identifier; nothing when there is none.
    async fn import(&self, id: &str) -> Result<Option<Observed>, Error> {
        if self.is_simulated() {
            return Ok(None);
        }
        let named = Observed {
            id: id.into(),
            attributes: Known::empty(),
        };
        self.read(&named).await
    }

    /// Takes over a machine by its own identifier: it can be found by a token from now on, by this
    /// one or by the one that it had already, and is otherwise left as it is. Nothing when there
    /// is none.
    ///
    /// # Errors
    /// When it cannot be marked so. By default, only what has a token already is taken over.
    async fn adopt(&self, id: &str, _token: &Token) -> Result<Option<(Token, Observed)>, Error> {
        adopt_own(self, id).await
    }

    /// Changes a machine.
    async fn update(&self, request: UpdateRequest, progress: Progress) -> Result<Observed, Error>;

    /// Deletes a machine; one that is gone already is a success.
    async fn delete(&self, last: &Observed, progress: Progress) -> Result<(), Error>;

    /// Returns every machine that carries a gobs token, with it; for `doctor` and for strays.
    async fn list(&self) -> Result<Vec<(Token, Observed)>, Error>;

    /// Returns what belongs to machines of the project and is not as these, all that it has, were
    /// last seen; for `doctor`.
    async fn oddities(&self, _known: &[(Address, Observed)]) -> Result<Vec<Oddity>, Error> {
        Ok(Vec::new())
    }
}

/// Takes over a machine that has a token already, of a provider that takes over no other.
async fn adopt_own<P: Provider + ?Sized>(
    provider: &P,
    id: &str,
) -> Result<Option<(Token, Observed)>, Error> {
    let all = provider.list().await?;
    if let Some(found) = all.into_iter().find(|(_, seen)| seen.id == id) {
        return Ok(Some(found));
    }
    match provider.import(id).await? {
        None => Ok(None),
        Some(_) => Err(Error::rejected(
            "this provider takes over no machine that it did not make",
        )),
    }
}

impl std::fmt::Debug for UserData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UserData(…)")
    }
}
