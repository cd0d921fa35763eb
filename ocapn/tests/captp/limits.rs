//! What one session may use of a vat, and what happens at each limit.

use crate::support::{Behavior, World, echo};
use ocapn::{Answer, Limits, Object, Turn};

/// Answers never.
fn stuck() -> impl Object {
    Behavior(|_: &Turn, _| Answer::later(std::future::pending()))
}

/// A call that finds the table full breaks alone: the peer is told nothing of it.
#[test]
fn at_the_limit_of_exports_one_call_breaks() {
    let limits = Limits {
        exports_max: 4,
        ..Limits::default()
    };
    let mut world = World::with_limits(2, limits);
    world.connect(0, 1);
    world.publish(1, "stuck", stuck());
    world.publish(1, "echo", echo());
    let object = world.fetch(0, 1, "stuck");
    assert!(world.wait(&object).is_ok());
    let calls: Vec<_> = (0..8).map(|_| object.call_raw(vec![])).collect();
    let codes: Vec<_> = calls
        .iter()
        .filter_map(|call| call.now())
        .map(|result| result.unwrap_err().code().map(str::to_owned))
        .collect();
    assert!((1..8).contains(&codes.len()), "{codes:?}");
    assert!(
        codes
            .iter()
            .all(|code| code.as_deref() == Some("not-sendable"))
    );
    world.run();
    assert_eq!(world.downs, []);
    drop(calls);
    world.run();
    assert_eq!(world.downs, []);
}
