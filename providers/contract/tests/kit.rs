//! The kit finds what is broken: a provider in memory, right or with one defect at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use gobs_model::{Address, Attribute, Block, Change, Known, ProviderSchema, Type, Value};
use gobs_provider::conformance::{Fixture, check};
use gobs_provider::{
    Bounded, CreateRequest, Deadlines, Error, Intended, Objection, Observed, Progress, Proposal,
    Provider, Token, UpdateRequest,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    MakesAnotherOnRepeat,
    ForgetsItsTokens,
    FindsWhatIsNot,
    ReadsTheSecret,
    SaysMoreThanItsSchema,
    AppendsOnUpdate,
    ReplacesOnUpdate,
    KeepsWhatIsDeleted,
    MissesWhatIsGone,
    MakesWhatItRefuses,
    LosesTheEffectToo,
    ImportsNothing,
    AdoptsUnderAnotherToken,
    DeletesWhenAskedForRights,
    ObjectsToWhatItMakes,
    AbandonsWhatIsThere,
    Hangs,
}

struct Memory {
    defect: Defect,
    schema: ProviderSchema,
    machines: Mutex<BTreeMap<String, (Token, Observed)>>,
}

impl Memory {
    fn new(defect: Defect) -> Self {
        let text = || Attribute::optional(Type::String, Change::InPlace, "Text.");
        let machine = Block::of([("size", text()), ("password", text().secret())]);
        Self {
            defect,
            schema: ProviderSchema {
                name: "memory".into(),
                settings: Block::default(),
                machine,
                list_lag: Duration::ZERO,
                hosts: gobs_model::Hosts::default(),
            },
            machines: Mutex::default(),
        }
    }

    fn machines(&self) -> MutexGuard<'_, BTreeMap<String, (Token, Observed)>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observe(&self, id: String, wanted: &Known) -> Observed {
        let size = wanted.get("size").cloned().unwrap_or(Value::NULL);
        let mut attributes = vec![("size", size)];
        if self.defect == Defect::ReadsTheSecret {
            attributes.push(("password", "hunter2".into()));
        }
        if self.defect == Defect::SaysMoreThanItsSchema {
            attributes.push(("colour", "red".into()));
        }
        let attributes = Known::try_from(Value::object(attributes)).expect("nothing unknown");
        Observed { id, attributes }
    }
}

#[async_trait]
impl Provider for Memory {
    fn schema(&self) -> &ProviderSchema {
        &self.schema
    }

    fn deadlines(&self) -> Deadlines {
        let usual = Deadlines::default();
        match self.defect {
            Defect::Hangs => Deadlines {
                look: Duration::from_millis(50),
                ..usual
            },
            _ => usual,
        }
    }

    async fn configure(&self, _: &Known) -> Result<(), Error> {
        Ok(())
    }

    async fn create(&self, request: CreateRequest, _: Progress) -> Result<Observed, Error> {
        let size = request.wanted.get("size").and_then(Value::as_str);
        let mut machines = self.machines();
        if size == Some("refused") && self.defect != Defect::MakesWhatItRefuses {
            return Err(Error::rejected("no such size"));
        }
        if size == Some("lost") && self.defect == Defect::LosesTheEffectToo {
            return Err(Error::InDoubt("lost".into()));
        }
        let known = machines
            .values()
            .find(|(token, _)| *token == request.token)
            .cloned();
        if let Some((_, machine)) = known
            && self.defect != Defect::MakesAnotherOnRepeat
        {
            return Ok(machine);
        }
        let id = format!("{}-{}", request.token, machines.len());
        let made = self.observe(id.clone(), &request.wanted);
        machines.insert(id, (request.token, made.clone()));
        match size {
            Some("refused") => Err(Error::rejected("no such size")),
            Some("lost") => Err(Error::InDoubt("lost".into())),
            _ => Ok(made),
        }
    }

    async fn find(&self, token: &Token) -> Result<Option<Observed>, Error> {
        if self.defect == Defect::Hangs {
            std::future::pending::<()>().await;
        }
        let machines = self.machines();
        let mut found = machines.values().filter(|(known, _)| match self.defect {
            Defect::ForgetsItsTokens => false,
            Defect::FindsWhatIsNot => true,
            _ => known == token,
        });
        let nobody = || self.observe("nobody".into(), &Known::empty());
        let found = found.next().map(|(_, machine)| machine.clone());
        Ok(found.or_else(|| (self.defect == Defect::FindsWhatIsNot).then(nobody)))
    }

    async fn read(&self, last: &Observed) -> Result<Option<Observed>, Error> {
        Ok(self
            .machines()
            .get(&last.id)
            .map(|(_, machine)| machine.clone()))
    }

    async fn import(&self, id: &str) -> Result<Option<Observed>, Error> {
        let machine = self.machines().get(id).map(|(_, machine)| machine.clone());
        Ok(machine.filter(|_| self.defect != Defect::ImportsNothing))
    }

    async fn adopt(&self, id: &str, token: &Token) -> Result<Option<(Token, Observed)>, Error> {
        let mut machines = self.machines();
        let Some((own, machine)) = machines.get_mut(id) else {
            return Ok(None);
        };
        if self.defect == Defect::AdoptsUnderAnotherToken {
            *own = token.clone();
        }
        Ok(Some((own.clone(), machine.clone())))
    }

    async fn lacking(&self, _: &[Intended]) -> Result<Vec<String>, Error> {
        if self.defect == Defect::DeletesWhenAskedForRights {
            self.machines().clear();
        }
        Ok(Vec::new())
    }

    async fn objections(&self, _: &Proposal) -> Result<Vec<Objection>, Error> {
        let objection = || Objection::new("size", "too large".into(), "make it smaller");
        let objects = self.defect == Defect::ObjectsToWhatItMakes;
        Ok(objects.then(objection).into_iter().collect())
    }

    async fn abandon(&self, _: &Address) -> Result<(), Error> {
        if self.defect == Defect::AbandonsWhatIsThere {
            self.machines().clear();
        }
        Ok(())
    }

    async fn update(&self, request: UpdateRequest, _: Progress) -> Result<Observed, Error> {
        let mut machines = self.machines();
        let id = request.before.id.clone();
        let (token, machine) = machines
            .remove(&id)
            .ok_or_else(|| Error::rejected("gone"))?;
        let mut changed = self.observe(id, &request.wanted);
        if self.defect == Defect::AppendsOnUpdate {
            let was = machine
                .attributes
                .get("size")
                .and_then(Value::as_str)
                .unwrap_or("");
            let size = Value::object([("size", Value::from(format!("{was}+")))]);
            changed.attributes = Known::try_from(size).expect("nothing unknown");
        }
        if self.defect == Defect::ReplacesOnUpdate {
            changed.id.push_str("-new");
        }
        machines.insert(changed.id.clone(), (token, changed.clone()));
        Ok(changed)
    }

    async fn delete(&self, last: &Observed, _: Progress) -> Result<(), Error> {
        let mut machines = self.machines();
        if self.defect == Defect::KeepsWhatIsDeleted {
            return Ok(());
        }
        match machines.remove(&last.id) {
            None if self.defect == Defect::MissesWhatIsGone => Err(Error::rejected("not found")),
            _ => Ok(()),
        }
    }

    async fn list(&self) -> Result<Vec<(Token, Observed)>, Error> {
        Ok(self.machines().values().cloned().collect())
    }
}

async fn broken(defect: Defect) -> Vec<&'static str> {
    let wanted = |size: &str| {
        Known::try_from(Value::object([("size", Value::from(size))])).expect("nothing unknown")
    };
    let fixture = Fixture {
        wanted: wanted("small"),
        changes: vec![(Change::InPlace, wanted("big"))],
        refused: Some(wanted("refused")),
        loses_answer: Some(wanted("lost")),
        user_data: None,
    };
    let outcomes = check(&Memory::new(defect), &fixture).await;
    outcomes
        .iter()
        .filter(|it| it.result.is_err())
        .map(|it| it.check)
        .collect()
}

#[tokio::test]
async fn a_call_that_hangs_ends_at_its_deadline() {
    let bounded = Bounded(Arc::new(Memory::new(Defect::Hangs)));
    let found = bounded.find(&Token("t".into())).await;
    let late = "find was not answered within its deadline of 0.05 s".into();
    assert_eq!(found, Err(Error::InDoubt(late)));
    // What does not hang is as it was.
    assert_eq!(bounded.list().await, Ok(Vec::new()));
}

#[tokio::test]
async fn a_provider_that_keeps_the_contract_passes() {
    assert_eq!(broken(Defect::None).await, [""; 0]);
}

#[tokio::test]
async fn each_defect_breaks_the_check_that_is_about_it() {
    for (defect, check) in [
        (
            Defect::MakesAnotherOnRepeat,
            "a create that is repeated makes one machine",
        ),
        (
            Defect::MakesAnotherOnRepeat,
            "creates at the same time make one machine",
        ),
        (Defect::ForgetsItsTokens, "a machine is found by its token"),
        (
            Defect::ForgetsItsTokens,
            "a create whose answer was lost is found",
        ),
        (
            Defect::FindsWhatIsNot,
            "a token that was never used finds nothing",
        ),
        (
            Defect::ReadsTheSecret,
            "what is observed is in the schema, and no secret",
        ),
        (
            Defect::SaysMoreThanItsSchema,
            "what is observed is in the schema, and no secret",
        ),
        (
            Defect::AppendsOnUpdate,
            "an update that is repeated changes nothing more",
        ),
        (
            Defect::ReplacesOnUpdate,
            "an update that is repeated changes nothing more",
        ),
        (
            Defect::KeepsWhatIsDeleted,
            "a deleted machine is gone, and may be deleted again",
        ),
        (
            Defect::KeepsWhatIsDeleted,
            "a delete that was abandoned can be repeated",
        ),
        (
            Defect::MissesWhatIsGone,
            "a deleted machine is gone, and may be deleted again",
        ),
        (
            Defect::ImportsNothing,
            "a machine is imported by its identifier",
        ),
        (
            Defect::AdoptsUnderAnotherToken,
            "a machine that is adopted is found by the token it has",
        ),
        (
            Defect::DeletesWhenAskedForRights,
            "asking for rights that are lacking changes nothing",
        ),
        (
            Defect::ObjectsToWhatItMakes,
            "objections and oddities are none where all is well, and asking changes nothing",
        ),
        (
            Defect::AbandonsWhatIsThere,
            "a machine that is there keeps what belongs to it when abandoned",
        ),
        (Defect::MakesWhatItRefuses, "what is refused leaves nothing"),
        (
            Defect::LosesTheEffectToo,
            "a create whose answer was lost is found",
        ),
    ] {
        let broken = broken(defect).await;
        assert!(
            broken.contains(&check),
            "{defect:?} is not seen by {check:?}, but by {broken:?}"
        );
    }
}
