//! What `create-machine` waits for: an apply makes every machine that is declared, so asking for
//! one is waiting until it is there.

use std::collections::HashMap;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use gobs_model::Address;
use tokio::sync::watch;

use crate::boss::Machines;
use crate::plan::{Action, Plan};

/// How far each machine is.
#[derive(Clone)]
pub(super) struct Arrivals(watch::Sender<HashMap<Address, Arrival>>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Arrival {
    /// This many steps make it.
    Coming(usize),
    /// It is as declared, and its hob has registered.
    Here,
    /// It will not come in this run.
    Failed(String),
}

impl Arrivals {
    /// Returns the machines that exist, and those that the plan makes.
    pub(super) fn new<'a>(plan: &Plan, existing: impl Iterator<Item = &'a Address>) -> Self {
        let mut machines: HashMap<_, _> = existing
            .filter(|address| matches!(address, Address::Machine(_)))
            .map(|address| (address.clone(), Arrival::Here))
            .collect();
        for step in plan.steps.iter().filter(|step| makes(&step.action)) {
            let arrival = machines
                .entry(step.address.clone())
                .or_insert(Arrival::Here);
            *arrival = match arrival {
                Arrival::Coming(steps) => Arrival::Coming(*steps + 1),
                _ => Arrival::Coming(1),
            };
        }
        Self(watch::Sender::new(machines))
    }

    /// Notes that a step has ended well.
    pub(super) fn done(&self, address: &Address, action: &Action) {
        self.0
            .send_if_modified(|machines| match (action, machines.get_mut(address)) {
                (Action::Delete { .. }, _) => false,
                (action, Some(arrival @ Arrival::Coming(_))) if makes(action) => {
                    *arrival = match *arrival {
                        Arrival::Coming(steps) if steps > 1 => Arrival::Coming(steps - 1),
                        _ => Arrival::Here,
                    };
                    *arrival == Arrival::Here
                }
                _ => false,
            });
    }

    /// Notes that a step has failed, or will not be tried.
    pub(super) fn failed(&self, address: &Address, why: &str) {
        self.0
            .send_if_modified(|machines| match machines.get_mut(address) {
                Some(arrival @ Arrival::Coming(_)) => {
                    *arrival = Arrival::Failed(why.to_owned());
                    true
                }
                _ => false,
            });
    }
}

impl Machines for Arrivals {
    fn create(&self, machine: Address) -> BoxFuture<'static, Result<(), String>> {
        let mut machines = self.0.subscribe();
        async move {
            let settled = machines
                .wait_for(|machines| !matches!(machines.get(&machine), Some(Arrival::Coming(_))));
            match settled
                .await
                .as_deref()
                .map(|machines| machines.get(&machine))
            {
                Ok(Some(Arrival::Here)) => Ok(()),
                Ok(Some(Arrival::Failed(why))) => Err(why.clone()),
                Ok(_) => Err(format!("{machine} is not declared")),
                Err(_) => Err("the apply has ended".into()),
            }
        }
        .boxed()
    }
}

fn makes(action: &Action) -> bool {
    matches!(
        action,
        Action::Create { .. } | Action::Update { .. } | Action::Enroll { .. }
    )
}
