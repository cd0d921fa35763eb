//! Whole plans, as they are shown.

use gobs_model::{Diagnostic, Known, Nesting, Path, Type};

use super::*;
use crate::plan::{DriftedAttribute, StepId};

fn check(it: &Plan, expected: &str) {
    let text = plan(it);
    assert_eq!(anstream::adapter::strip_str(&text).to_string(), expected);
}

fn address(text: &str) -> Address {
    text.parse().expect("an address")
}

fn object<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Value::object(entries)
}

fn changed(name: &str, change: Change) -> Because {
    let path = Path::attribute(name);
    Because::Changed { path, change }
}

fn of(steps: impl IntoIterator<Item = Step>) -> Plan {
    Plan {
        steps: steps.into_iter().collect(),
        ..Plan::default()
    }
}

fn step(at: &str, action: Action, because: Because, before: Value, planned: Value) -> Step {
    Step {
        id: StepId(0),
        address: address(at),
        action,
        because: vec![because],
        after: Vec::new(),
        depends_on: Vec::new(),
        before,
        planned,
    }
}

fn create(at: &str, planned: Value, replaces: bool) -> Step {
    let action = Action::Create {
        provider: "dummy".into(),
        wanted: Value::NULL,
        incarnation: 1,
        replaces,
        simulated: false,
    };
    step(at, action, Because::Declared, Value::NULL, planned)
}

fn update(at: &str, change: Change, because: Because, before: Value, planned: Value) -> Step {
    let action = Action::Update {
        provider: "dummy".into(),
        wanted: Value::NULL,
        change,
        incarnation: 1,
        calls_provider: true,
        simulated: false,
    };
    step(at, action, because, before, planned)
}

fn delete(at: &str, because: Because, before: Value, replaced: bool) -> Step {
    let action = Action::Delete {
        provider: "dummy".into(),
        replaced,
        simulated: false,
    };
    step(at, action, because, before, Value::NULL)
}

fn enroll(at: &str) -> Step {
    let action = Action::Enroll {
        incarnation: 1,
        deadline_s: 60,
        simulated: false,
    };
    step(at, action, Because::NotEnrolled, Value::NULL, Value::NULL)
}

fn offer(at: &str, before: Value, spec: Value) -> Step {
    let action = Action::Offer {
        spec,
        incarnation: 1,
        ready_s: 300,
        of: None,
        simulated: false,
    };
    step(at, action, Because::Declared, before, Value::NULL)
}

fn grant(from: &str) -> Grant {
    Grant {
        generation: 2,
        from: address(from),
        via: None,
        to: address("machine.app"),
        name: Name::new("db").expect("a name"),
        attenuate: object([("connections_max", 20.into())]),
        expose: Value::list([]),
        from_incarnation: 1,
        to_incarnation: 1,
        ready_s: 60,
        drain_s: 30,
    }
}

fn held(from: &str, settled_by_delete: bool) -> Held {
    Held {
        generation: 1,
        from: address(from),
        to: address("machine.app"),
        name: Name::new("db").expect("a name"),
        settled_by_delete,
        importer_gone: false,
    }
}

fn bind(revokes: Option<Held>, because: Because, before: Value) -> Step {
    let action = Action::Bind {
        grant: grant("machine.db.service.orders"),
        revokes,
        simulated: false,
    };
    let planned = object([
        ("as", "db".into()),
        ("address", Value::unknown(Type::String)),
    ]);
    step("binding.db", action, because, before, planned)
}

#[test]
fn nothing_to_do() {
    check(
        &Plan::default(),
        "No changes. Your infrastructure matches the configuration.\n",
    );
}

#[test]
fn everything_is_new() {
    let machine = object([
        ("id", Value::unknown(Type::String)),
        ("password", Value::from("hunter2").sensitive()),
        ("size", "small".into()),
        ("zone", Value::NULL),
    ]);
    let tcp = object([("tcp", "127.0.0.1:5432".into())]);
    let mut it = of([
        create("machine.db", machine.clone(), false),
        create("machine.app", machine, false),
        enroll("machine.db"),
        enroll("machine.app"),
        offer("machine.db.service.orders", Value::NULL, tcp),
        bind(None, Because::Declared, Value::NULL),
    ]);
    it.outputs.push(OutputChange {
        name: Name::new("try").expect("a name"),
        before: None,
        after: Some(Value::unknown(Type::String)),
    });
    check(
        &it,
        r#"gobs used the selected providers to generate the following execution
plan. Resource actions are indicated with the following symbols:
  + create

gobs will perform the following actions:

  # machine.app will be created
  + machine "app" {
      + id       = (known after apply)
      + password = (sensitive value)
      + size     = "small"
    }

  # machine.db will be created
  + machine "db" {
      + id       = (known after apply)
      + password = (sensitive value)
      + size     = "small"

      + service "orders" {
          + tcp = "127.0.0.1:5432"
        }
    }

  # binding.db will be granted
  + binding "db" {
      + from      = machine.db.service.orders
      + to        = machine.app
      + as        = "db"
      + address   = (known after apply)
      + attenuate = {
          + connections_max = 20
        }
    }

Changes to Outputs:
  + try = (known after apply)

Plan: 2 to add, 0 to change, 0 to destroy.
Bindings: 1 to grant.
"#,
    );
}

#[test]
fn a_machine_is_replaced_and_its_binding_granted_again() {
    let was = object([
        ("id", "i-1".into()),
        ("size", "small".into()),
        ("zone", "a".into()),
    ]);
    let is = object([
        ("id", Value::unknown(Type::String)),
        ("size", "small".into()),
        ("zone", "b".into()),
    ]);
    let mut again = create("machine.db", is, true);
    again.because = vec![changed("zone", Change::Replace)];
    let end = delete("machine.db", changed("zone", Change::Replace), was, true);
    let binding = bind(
        Some(held("machine.db.service.orders", true)),
        Because::NewIncarnation {
            machine: address("machine.db"),
        },
        object([("as", "db".into()), ("address", "unix:/x".into())]),
    );
    let text = r#"gobs used the selected providers to generate the following execution
plan. Resource actions are indicated with the following symbols:
-/+ destroy and then create replacement

gobs will perform the following actions:

  # machine.db must be replaced
-/+ machine "db" {
      ~ id   = "i-1" -> (known after apply)
      ~ zone = "a" -> "b" # forces replacement
        # (1 unchanged attribute hidden)
    }

  # binding.db will be granted again
  # (because machine.db begins anew)
-/+ binding "db" {
        from    = machine.db.service.orders
        to      = machine.app
      ~ address = "unix:/x" -> (known after apply)
        # (2 unchanged attributes hidden)
    }

Plan: 1 to add, 0 to change, 1 to destroy.
Bindings: 1 to grant.
"#;
    check(&of([end.clone(), again.clone(), binding]), text);

    let first = of([again, end]);
    assert!(plan(&first).contains("create replacement and then destroy"));
}

#[test]
fn machines_change_and_end() {
    let small = object([("id", "i-1".into()), ("size", "small".into())]);
    let large = object([("id", "i-1".into()), ("size", "large".into())]);
    let tcp = |port: &str| object([("tcp", port.into())]);
    let withdraw = Action::Withdraw {
        settled_by_delete: false,
        simulated: false,
    };
    let mut simulated = delete("machine.x", Because::NotDeclared, small.clone(), false);
    if let Action::Delete { simulated, .. } = &mut simulated.action {
        *simulated = true;
    }
    let hob = Because::Changed {
        path: Path::attribute("hob").join("deadline"),
        change: Change::InPlace,
    };
    let at = "machine.kept.service.old";
    check(
        &of([
            update(
                "machine.a",
                Change::InPlace,
                changed("size", Change::InPlace),
                small.clone(),
                large.clone(),
            ),
            update(
                "machine.b",
                Change::Rebuild,
                changed("size", Change::Rebuild),
                small.clone(),
                large,
            ),
            update(
                "machine.c",
                Change::InPlace,
                hob,
                small.clone(),
                small.clone(),
            ),
            enroll("machine.late"),
            offer("machine.kept.service.s", tcp(":1"), tcp(":2")),
            step(at, withdraw, Because::NotDeclared, tcp(":3"), Value::NULL),
            delete("machine.web[2]", Because::KeyGone, small, false),
            simulated,
        ]),
        r#"gobs used the selected providers to generate the following execution
plan. Resource actions are indicated with the following symbols:
  ~ update in-place (current -> planned)
  - destroy

gobs will perform the following actions:

  # machine.a will be updated in-place
  ~ machine "a" {
        id   = "i-1"
      ~ size = "small" -> "large"
    }

  # machine.b will be rebuilt (downtime; the data on its disk will be lost)
  ~ machine "b" {
        id   = "i-1"
      ~ size = "small" -> "large" # forces a rebuild
    }

  # machine.c will be updated in-place
  # (hob.deadline changes)
  ~ machine "c" {
        id = "i-1"
        # (1 unchanged attribute hidden)
    }

  # machine.kept has changes to its services
  ~ machine "kept" {
      ~ service "s" {
          ~ tcp = ":1" -> ":2"
        }

      - service "old" {
          - tcp = ":3"
        }
    }

  # machine.late will be enrolled
  # (because its hob has not registered yet)
  ~ machine "late" {
    }

  # machine.web[2] will be destroyed
  # (because index [2] is out of range for count)
  - machine "web" {
      - id   = "i-1" -> null
      - size = "small" -> null
    }

  # machine.x will be destroyed
  # (because it is not in configuration)
  # (simulated: a row only, no machine)
  - machine "x" {
      - id   = "i-1" -> null
      - size = "small" -> null
    }

Plan: 0 to add, 3 to change, 2 to destroy.
"#,
    );
}

#[test]
fn bindings_move_change_and_end() {
    let moved = Action::Move {
        grant: grant("machine.db2.service.orders"),
        revokes: held("machine.db.service.orders", false),
        simulated: false,
    };
    let was = address("machine.db.service.orders");
    let narrowed = bind(
        Some(held("machine.db.service.orders", false)),
        changed("attenuate", Change::InPlace),
        object([
            ("address", Value::unknown(Type::String)),
            ("attenuate", object([("connections_max", 50.into())])),
        ]),
    );
    let revoked = Action::Unbind {
        held: held("machine.db.service.orders", true),
        simulated: false,
    };
    let gone = Because::MachineGone {
        machine: address("machine.db"),
    };
    check(
        &of([
            step(
                "binding.moved",
                moved,
                Because::FromChanged { was },
                object([("address", "unix:/x".into())]),
                object([("address", "unix:/x".into())]),
            ),
            narrowed,
            step("binding.old", revoked, gone, Value::NULL, Value::NULL),
        ]),
        r#"gobs used the selected providers to generate the following execution
plan. Resource actions are indicated with the following symbols:
  ~ update in-place (current -> planned)
  - destroy
+/- create replacement and then destroy

gobs will perform the following actions:

  # binding.db will be granted again
+/- binding "db" {
        from      = machine.db.service.orders
        to        = machine.app
      ~ attenuate = {
          ~ connections_max = 50 -> 20
        }
        # (2 unchanged attributes hidden)
    }

  # binding.moved will be moved
  ~ binding "moved" {
      ~ from = machine.db.service.orders -> machine.db2.service.orders
        to   = machine.app
        # (3 unchanged attributes hidden)
    }

  # binding.old will be revoked
  # (because machine.db goes away)
  - binding "old" {
      - from = machine.db.service.orders
      - to   = machine.app
      - as   = "db"
    }

Plan: 0 to add, 0 to change, 0 to destroy.
Bindings: 1 to grant, 1 to move, 1 to revoke.
"#,
    );
}

#[test]
fn drift_comes_first_and_outputs_alone_are_no_machines() {
    let mut it = Plan {
        drift: vec![
            Drift {
                address: address("machine.a"),
                kind: DriftKind::Changed(vec![DriftedAttribute {
                    path: Path::attribute("tags").index(0),
                    was: "x".into(),
                    now: "y".into(),
                }]),
            },
            Drift {
                address: address("machine.b"),
                kind: DriftKind::Gone,
            },
        ],
        warnings: vec![Diagnostic::warning("Not shown here", "The caller does.")],
        ..Plan::default()
    };
    let drifted = format!(
        r#"Note: Objects have changed outside of gobs

gobs detected the following changes made outside of gobs since the
last "gobs apply":

  # machine.a has changed
  ~ machine "a" {{
      ~ tags[0] = "x" -> "y"
    }}

  # machine.b has been deleted
  - machine "b" {{
    }}

{}

"#,
        "─".repeat(77)
    );
    check(&it, &format!("{drifted}{NO_CHANGES}\n"));

    it.drift.clear();
    let name = |text: &str| Name::new(text).expect("a name");
    let known = |value: Value| Known::try_from(value).expect("known");
    it.outputs = vec![
        OutputChange {
            name: name("a"),
            before: Some(known("x".into())),
            after: None,
        },
        OutputChange {
            name: name("b"),
            before: Some(known(Value::from("x").sensitive())),
            after: Some(Value::from("y").sensitive()),
        },
    ];
    check(
        &it,
        r#"Changes to Outputs:
  - a = "x" -> null
  ~ b = (sensitive value)

These output values can be saved without changing any machine or binding.
"#,
    );
}

fn with_blocks(steps: impl IntoIterator<Item = Step>) -> Plan {
    let shape = |nesting, outlives, blocks: BTreeMap<String, BlockShape>| BlockShape {
        nesting,
        outlives,
        blocks,
    };
    let rule = (
        "rule".to_owned(),
        shape(Nesting::List, false, BTreeMap::new()),
    );
    let shapes = [
        (
            "wall".to_owned(),
            shape(Nesting::Single, false, [rule].into()),
        ),
        (
            "volume".to_owned(),
            shape(Nesting::Labelled, true, BTreeMap::new()),
        ),
    ];
    Plan {
        blocks: [("dummy".to_owned(), shapes.into())].into(),
        ..of(steps)
    }
}

fn volume(size: i64, delete: bool) -> Value {
    object([
        ("delete", delete.into()),
        ("label", "gobs-m-data".into()),
        ("size", size.into()),
    ])
}

#[test]
fn nested_blocks_read_as_they_are_written() {
    let rule = |ports: &str| object([("ports", ports.into())]);
    let planned = object([
        ("id", Value::unknown(Type::String)),
        ("volume", Value::map([("data", volume(10, false))])),
        ("wall", object([("rule", Value::list([rule("22")]))])),
    ]);
    check(
        &with_blocks([create("machine.m", planned, false)]),
        r#"gobs used the selected providers to generate the following execution
plan. Resource actions are indicated with the following symbols:
  + create

gobs will perform the following actions:

  # machine.m will be created
  + machine "m" {
      + id = (known after apply)

      + volume "data" {
          + delete = false
          + label  = "gobs-m-data"
          + size   = 10
        }

      + wall {
          + rule {
              + ports = "22"
            }
        }
    }

Plan: 1 to add, 0 to change, 0 to destroy.
"#,
    );
    let before = object([
        ("id", "1".into()),
        (
            "volume",
            Value::map([
                ("data", volume(10, false)),
                ("logs", volume(10, false)),
                ("temp", volume(10, true)),
            ]),
        ),
        (
            "wall",
            object([("rule", Value::list([rule("22"), rule("80")]))]),
        ),
    ]);
    let after = object([
        ("id", "1".into()),
        ("volume", Value::map([("data", volume(20, false))])),
        (
            "wall",
            object([("rule", Value::list([rule("22"), rule("81")]))]),
        ),
    ]);
    let path = Path::attribute("volume").join("data").join("size");
    let change = Change::PowerCycle;
    let mut step = update(
        "machine.m",
        change,
        changed("x", Change::InPlace),
        before,
        after,
    );
    step.because = vec![Because::Changed { path, change }];
    check(
        &with_blocks([step]),
        r#"gobs used the selected providers to generate the following execution
plan. Resource actions are indicated with the following symbols:
  ~ update in-place (current -> planned)

gobs will perform the following actions:

  # machine.m will be updated (downtime: it is shut down and started)
  # (volume "logs", gobs-m-data: is kept; nothing manages it then)
  # (volume "temp", gobs-m-data: data will be lost)
  ~ machine "m" {
        id = "1"

      ~ volume "data" {
          ~ size = 10 -> 20 # forces a restart
            # (2 unchanged attributes hidden)
        }

      - volume "logs" {
          - delete = false -> null
          - label  = "gobs-m-data" -> null
          - size   = 10 -> null
        }

      - volume "temp" {
          - delete = true -> null
          - label  = "gobs-m-data" -> null
          - size   = 10 -> null
        }

      ~ wall {
          ~ rule {
              ~ ports = "80" -> "81"
            }

            # (1 unchanged block hidden)
        }
    }

Plan: 0 to add, 1 to change, 0 to destroy.
"#,
    );
}

#[test]
fn data_that_outlives_a_machine_is_named() {
    let with = |delete| {
        object([
            ("id", "1".into()),
            ("volume", Value::map([("data", volume(10, delete))])),
        ])
    };
    let told = |end: End| {
        let shapes = with_blocks([]).blocks.remove("dummy").expect("its blocks");
        [false, true].map(|delete| {
            let text = nested::data(&with(delete), &with(delete), &shapes, end);
            anstream::adapter::strip_str(&text).to_string()
        })
    };
    let line = |what: &str| format!("  # (volume \"data\", gobs-m-data: {what})\n");
    let lost = line("data will be lost");
    assert_eq!(told(End::None), [String::new(), String::new()]);
    assert_eq!(
        told(End::Replaced),
        [line("is kept, for the new machine"), lost]
    );
    let shapes = with_blocks([]).blocks.remove("dummy").expect("its blocks");
    let text = nested::data(&with(false), &Value::NULL, &shapes, End::Deleted);
    assert_eq!(text, line("is kept; nothing manages it then"));
}
