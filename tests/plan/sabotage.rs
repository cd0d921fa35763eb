//! The plan's own checker finds what is wrong with a plan, whatever planning thought.

use gobs::plan::{Action, Plan, review};
use gobs_model::{Change, Value};

use super::World;
use super::simulation::{Pick, apply};

const BEFORE: &str = r#"
machine "db" {
  provider = dummy
  image    = "a"
  service "orders" { tcp = "127.0.0.1:5432" }
}
machine "app" { provider = dummy }
machine "old" { provider = dummy }
binding "db" {
  from = machine.db.service.orders
  to   = machine.app
}
binding "old" {
  from = machine.db.service.orders
  to   = machine.old
}
"#;

const AFTER: &str = r#"
machine "db" {
  provider = dummy
  image    = "b"
  service "orders" { tcp = "127.0.0.1:5432" }
}
machine "app" { provider = dummy }
machine "new" { 
  provider = cloud
  region   = "nl"
  type     = "small"
}
binding "db" {
  from = machine.db.service.orders
  to   = machine.app
}
"#;

/// Checks that the checker finds just this after the plan was spoilt; the ids of steps are left
/// out of what it says.
#[track_caller]
fn check(spoil: impl FnOnce(&mut Plan), expected: &[&str]) {
    let mut world = World::default();
    let before = world.load(BEFORE).expect("right");
    let plan = world.plan(&before).expect("a plan");
    world.snapshot = apply(&world, &before, &plan, Pick::First, usize::MAX);
    let after = world.load(AFTER).expect("right");
    let mut plan = world.plan(&after).expect("a plan");
    spoil(&mut plan);
    let found = review(&after, &world.schemas, &world.snapshot, &plan);
    let found = found.err().map(|error| error.findings).unwrap_or_default();
    let found: Vec<String> = found
        .iter()
        .map(|text| {
            text.split(' ')
                .filter(|it| !it.starts_with('#'))
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    assert_eq!(found, expected);
}

/// Returns the place of the step that does this.
fn place(plan: &Plan, action: &str, address: &str) -> usize {
    let is_it = |step: &gobs::plan::Step| {
        step.action.name() == action && step.address.to_string() == address
    };
    plan.steps
        .iter()
        .position(is_it)
        .expect("the step is there")
}

fn change(plan: &mut Plan, action: &str, address: &str) -> impl FnMut(fn(&mut Action)) {
    let at = place(plan, action, address);
    move |change| change(&mut plan.steps[at].action)
}

#[test]
fn a_right_plan_is_right() {
    check(|_| {}, &[]);
}

#[test]
fn every_step_waits_for_what_it_needs() {
    check(
        |plan| {
            let at = place(plan, "bind", "binding.db");
            plan.steps[at].after.clear();
        },
        &[
            "step (bind binding.db) does not wait for machine.db",
            "step (bind binding.db) does not wait for machine.db.service.orders",
        ],
    );
    check(
        |plan| {
            let at = place(plan, "delete", "machine.old");
            plan.steps[at].after.clear();
        },
        &["step (delete machine.old) does not wait for an unbind at this machine"],
    );
    check(
        |plan| {
            let at = place(plan, "enroll", "machine.db");
            let own = plan.steps[at].id;
            plan.steps[at].after = vec![own];
        },
        &[
            "step (enroll machine.db) waits for itself or for a later step",
            "step (enroll machine.db) does not wait for the earlier step on the same address",
        ],
    );
}

#[test]
fn numbers_only_grow() {
    check(
        |plan| {
            change(plan, "bind", "binding.db")(|action| {
                let Action::Bind { grant, .. } = action else {
                    panic!("a bind")
                };
                grant.generation = 1;
            });
        },
        &["step (bind binding.db) has a generation that is not higher than the last"],
    );
    check(
        |plan| {
            change(plan, "update", "machine.db")(|action| {
                let Action::Update { incarnation, .. } = action else {
                    panic!("an update")
                };
                *incarnation = 1;
            });
        },
        &[
            "step (update machine.db) has an incarnation that does not follow from the last",
            "step (enroll machine.db) enrolls a machine that does not wait for it",
            "step (offer machine.db.service.orders) needs a hob of machine.db that is not there",
            "step (bind binding.db) needs a hob of machine.db that is not there",
            "machine.db is not enrolled",
            "machine.db.service.orders is not offered by the machine as it is then",
            "binding.db is not granted between the machines as they are then",
        ],
    );
}

#[test]
fn what_is_made_is_complete() {
    check(
        |plan| {
            change(plan, "create", "machine.new")(|action| {
                let Action::Create { wanted, .. } = action else {
                    panic!("a create")
                };
                *wanted = Value::object([("region", "nl".into())]);
            });
        },
        &["step (create machine.new) lacks the attribute type"],
    );
    check(
        |plan| {
            change(plan, "update", "machine.db")(|action| {
                let Action::Update { change, .. } = action else {
                    panic!("an update")
                };
                *change = Change::Replace;
            });
        },
        &[
            "step (update machine.db) replaces in one step",
            "step (update machine.db) has an incarnation that does not follow from the last",
            "step (enroll machine.db) enrolls a machine that does not wait for it",
        ],
    );
}

#[test]
fn everything_is_settled_once() {
    check(
        |plan| {
            plan.steps.pop();
        },
        &["binding.db is not granted between the machines as they are then"],
    );
    check(
        |plan| {
            let mut again = plan.steps[place(plan, "delete", "machine.old")].clone();
            again.after.push(again.id);
            again.id = gobs::plan::StepId(u32::try_from(plan.steps.len()).expect("few"));
            plan.steps.push(again);
        },
        &[
            "step (delete machine.old) is there twice",
            "step (delete machine.old) settles what another step has settled",
            "step (delete machine.old) deletes what does not exist",
        ],
    );
    check(
        |plan| plan.steps.clear(),
        &[
            "machine.old is left, but not declared",
            "binding.old is left, but not declared",
            "machine.new is declared, but not there",
        ],
    );
    check(
        |plan| plan.destroy = true,
        &[
            "machine.app is left",
            "machine.db is left",
            "machine.new is left",
            "machine.db.service.orders is left",
            "binding.db is left",
        ],
    );
}
