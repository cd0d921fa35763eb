//! The typed layer, sturdyrefs and caretakers, between peers of one process.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ocapn::netlayer::memory::MemoryNetwork;
use ocapn::{
    Broken, Caretaker, Methods, Object, Passable, Peer, Reference, Reply, Resolver, Struct,
    Sturdyrefs, Symbol, Tagged, Turn, TypedPromise,
};

/// No wait of a test is for a time, but none may last for ever either.
const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it took too long")
}

/// Two peers, of which one has objects and the other calls them.
struct Pair {
    alice: Peer,
    bob: Peer,
    table: Arc<Sturdyrefs>,
}

impl Pair {
    fn new() -> Self {
        let network = MemoryNetwork::new(7, Duration::ZERO..Duration::ZERO);
        let table = Arc::new(Sturdyrefs::new());
        let alice = Peer::builder()
            .netlayer(network.netlayer("alice"))
            .sturdyrefs(table.clone());
        let bob = Peer::builder().netlayer(network.netlayer("bob"));
        Self {
            alice: alice.spawn(),
            bob: bob.spawn(),
            table,
        }
    }

    /// Exports an object of Alice's and returns Bob's reference to it.
    async fn lend(&self, object: impl Object) -> Reference {
        self.lend_reference(&self.alice.export(object)).await
    }

    async fn lend_reference(&self, reference: &Reference) -> Reference {
        let sturdyref = self.table.export(&self.alice.locator(), reference);
        soon(self.bob.enliven(&sturdyref.unwrap())).await.unwrap()
    }
}

async fn code<T: ocapn::FromPassable + std::fmt::Debug>(promise: TypedPromise<T>) -> String {
    let broken = soon(promise).await.unwrap_err();
    broken.code().unwrap_or_default().to_owned()
}

ocapn::interface! {
    /// Counts.
    pub trait Counter, object CounterObject, reference CounterRef {
        /// Adds, and returns the sum.
        "add" => fn add(amount: i64) -> i64;
        /// Returns a counter that starts where this one is.
        "fork" => fn fork() -> CounterRef;
    }
}

struct Count(Mutex<i64>);

impl Counter for Count {
    fn add(&self, _: &Turn, amount: i64) -> Reply<i64> {
        let mut sum = self.0.lock().unwrap();
        *sum += amount;
        Reply::value(*sum)
    }

    fn fork(&self, turn: &Turn) -> Reply<CounterRef> {
        let copy = Self(Mutex::new(*self.0.lock().unwrap()));
        Reply::value(CounterRef(turn.vat().export(CounterObject(copy))))
    }
}

#[tokio::test]
async fn traits_are_called_through_typed_references() {
    let pair = Pair::new();
    let counter = CounterRef(pair.lend(CounterObject(Count(Mutex::new(1)))).await);
    assert_eq!(soon(counter.add(2)).await, Ok(3));
    let fork = counter.fork();
    let (sum, again) = (fork.pipelined().add(10), fork.pipelined().add(10));
    assert_eq!(soon(again).await, Ok(23));
    assert_eq!(soon(sum).await, Ok(13));
    assert_eq!(soon(counter.add(0)).await, Ok(3));
    let no_argument = counter.0.ask::<i64>("add", ());
    assert_eq!(code(no_argument).await, "wrong-type");
    let two = counter.0.ask::<i64>("add", (1, 2));
    assert_eq!(code(two).await, "wrong-type");
    assert_eq!(code(counter.0.ask::<i64>("sub", (1,))).await, "no-method");
    let not_text = counter.0.ask::<String>("add", (1,));
    assert_eq!(code(not_text).await, "wrong-type");
}

#[tokio::test]
async fn every_type_comes_back_as_it_went() {
    let pair = Pair::new();
    let same = Methods::new().on("same", |_: &Turn, (value,): (Passable,)| Ok(value));
    let echo = pair.lend(same).await;
    macro_rules! check {
        ($($type:ty: $value:expr;)*) => {$(
            let value: $type = $value;
            let back = echo.ask::<$type>("same", (value.clone(),));
            assert_eq!(soon(back).await, Ok(value));
        )*};
    }
    check! {
        bool: true;
        i32: i32::MIN;
        u16: u16::MAX;
        u64: u64::MAX;
        f64: 0.5;
        String: "text".into();
        Symbol: Symbol::new("name");
        bytes::Bytes: bytes::Bytes::from_static(b"\0\xff");
        Option<i64>: None;
        Option<i64>: Some(3);
        Vec<(String, Option<bool>)>: vec![("a".into(), Some(true)), ("b".into(), None)];
        std::collections::BTreeMap<String, u32>: [("k".into(), 1), ("longer".into(), 2)].into();
        Tagged: Tagged { tag: Symbol::new("tag"), value: 1.into() };
        Struct: Struct::new().with("key", "value");
        (): ();
    }
    let wide = echo.ask::<u16>("same", (70_000_u32,));
    let wrong = soon(wide).await.unwrap_err();
    assert_eq!(
        wrong.to_string(),
        "result: wanted integer from 0 of 16 bits, found integer (wrong-type)"
    );
    let deep = echo.ask::<Vec<Vec<bool>>>("same", (vec![vec![1_i64]],));
    let wrong = soon(deep).await.unwrap_err().to_string();
    assert!(
        wrong.starts_with("result, item 1, item 1: wanted"),
        "{wrong}"
    );
}

#[tokio::test]
async fn parts_of_promises_are_taken_where_the_value_is() {
    let pair = Pair::new();
    let directory = Methods::new().on("list", |turn: &Turn, ()| {
        let greeter = Methods::new().on("greet", |_: &Turn, ()| Ok("hello".to_owned()));
        let tagged = Tagged {
            tag: Symbol::new("box"),
            value: turn.vat().export(greeter).into(),
        };
        let entries = vec![Passable::Null, Passable::Tagged(Box::new(tagged))];
        Ok(Struct::new().with("entries", entries))
    });
    let directory = pair.lend(directory).await;
    let list = directory.call("list", []);
    let inside = list.get("entries").index(1).untag("box");
    let greeting = inside.ask::<String>("greet", ());
    assert_eq!(soon(greeting).await, Ok("hello".into()));
    assert!(soon(inside).await.unwrap().as_reference().is_some());
    // What has come needs no question.
    soon(list.clone()).await.unwrap();
    let there = list.get("entries").index(1).untag("box");
    assert!(soon(there).await.is_ok());
    for none in [
        list.get("none"),
        directory.call("list", []).get("none"),
        directory.call("list", []).get("entries").index(9),
        directory
            .call("list", [])
            .get("entries")
            .index(1)
            .untag("bag"),
    ] {
        assert_eq!(code(none.typed::<Passable>()).await, "absent");
    }
    let on_a_list = directory.call("list", []).get("entries").get("x");
    assert_eq!(code(on_a_list.typed::<Passable>()).await, "wrong-type");
}

#[tokio::test]
async fn a_part_breaks_with_its_session() {
    let pair = Pair::new();
    let kept = Arc::new(Mutex::new(Vec::<Resolver>::new()));
    let keep = Arc::clone(&kept);
    let slow = Methods::new().on("wait", move |turn: &Turn, ()| {
        let (promise, resolver) = turn.vat().promise();
        keep.lock().unwrap().push(resolver);
        Reply::<Passable>::Promised(promise)
    });
    let slow = pair.lend(slow).await;
    let part = slow.call("wait", []).get("field");
    let further = part.call("m", []);
    pair.bob.disconnect("alice", "enough");
    assert!(soon(part).await.unwrap_err().is_severed());
    assert!(soon(further).await.unwrap_err().is_severed());
}

#[tokio::test]
async fn sturdyrefs_end_when_revoked_and_keep_to_their_peer() {
    let pair = Pair::new();
    let object = pair.alice.export(Methods::new());
    let here = pair.alice.locator();
    let sturdyref = pair.table.export(&here, &object).unwrap();
    let live = soon(pair.bob.enliven(&sturdyref)).await.unwrap();
    assert_eq!(soon(pair.bob.enliven(&sturdyref)).await.unwrap(), live);
    assert!(pair.table.revoke(&sturdyref.swissnum));
    assert!(!pair.table.revoke(&sturdyref.swissnum));
    let unknown = soon(pair.bob.enliven(&sturdyref)).await.unwrap_err();

    let for_carol = pair.table.export_bound(&here, &object, "carol").unwrap();
    let foreign = soon(pair.bob.enliven(&for_carol)).await.unwrap_err();
    assert_eq!(
        foreign.to_string(),
        unknown.to_string(),
        "all refusals are alike"
    );
    let for_bob = pair.table.export_bound(&here, &object, "bob").unwrap();
    assert_eq!(soon(pair.bob.enliven(&for_bob)).await.unwrap(), live);
    assert_eq!(pair.table.len(), 2);
}

/// A directory with a file in it, which takes a watcher and tells it of what happens.
fn directory(watchers: &Arc<Mutex<Vec<Reference>>>) -> impl Object {
    let watchers = Arc::clone(watchers);
    Methods::new()
        .on("open", |turn: &Turn, (_name,): (String,)| {
            let file = Methods::new()
                .on("read", |_: &Turn, ()| Ok("text".to_owned()))
                .on("erase", |_: &Turn, ()| Ok(()));
            Ok(turn.vat().export(file))
        })
        .on("watch", move |_: &Turn, (watcher,): (Reference,)| {
            watchers.lock().unwrap().push(watcher.clone());
            Ok(watcher)
        })
        .on("format", |_: &Turn, ()| Ok(()))
        .on("leak", |_: &Turn, ()| {
            let text = "ocapn://alice.memory/s/AAAA";
            Ok(text
                .parse::<ocapn::Sturdyref>()
                .map(Passable::from)
                .unwrap_or(Passable::Null))
        })
}

#[tokio::test]
async fn a_caretaker_narrows_and_cuts_what_was_reached_through_it() {
    let pair = Pair::new();
    let watchers = Arc::default();
    let object = pair.alice.export(directory(&watchers));
    let caretaker = Caretaker::new(pair.alice.vat()).allow(["open", "watch", "leak"]);
    let directory = pair.lend_reference(&caretaker.guard(&object)).await;

    assert_eq!(code(directory.ask::<()>("format", ())).await, "not-allowed");
    assert_eq!(code(directory.ask::<()>("leak", ())).await, "not-allowed");
    let file = directory.ask::<Reference>("open", ("a",));
    let read = file.ask::<String>("read", ());
    assert_eq!(soon(read).await, Ok("text".into()));
    let file = soon(file).await.unwrap();
    assert_eq!(
        soon(file.ask::<()>("erase", ())).await,
        Ok(()),
        "reached, not guarded"
    );

    // What comes back to its own side is what it was.
    let told = Methods::new().on("tell", |_: &Turn, (n,): (i64,)| Ok(n + 1));
    let watcher = pair.bob.export(told);
    let back = soon(directory.ask::<Reference>("watch", (&watcher,))).await;
    assert_eq!(back.unwrap(), watcher);
    let held = watchers.lock().unwrap()[0].clone();
    assert_eq!(soon(held.ask::<i64>("tell", (1,))).await, Ok(2));

    caretaker.revoke();
    assert_eq!(
        code(directory.ask::<Reference>("open", ("a",))).await,
        "revoked"
    );
    assert_eq!(code(file.ask::<String>("read", ())).await, "revoked");
    assert_eq!(
        code(held.ask::<i64>("tell", (1,))).await,
        "revoked",
        "nor the other way"
    );
    let after = pair.lend_reference(&caretaker.guard(&object)).await;
    assert_eq!(
        code(after.ask::<Reference>("open", ("a",))).await,
        "revoked"
    );
}

#[tokio::test]
async fn a_caretaker_breaks_what_is_under_way_and_keeps_its_filter() {
    let pair = Pair::new();
    let kept = Arc::new(Mutex::new(Vec::<Resolver>::new()));
    let keep = Arc::clone(&kept);
    let object = Methods::new()
        .on("wait", move |turn: &Turn, ()| {
            let (promise, resolver) = turn.vat().promise();
            keep.lock().unwrap().push(resolver);
            // A promise inside of a value passes as a promise.
            Ok(vec![Passable::from(promise)])
        })
        .on("secret", |_: &Turn, ()| Ok(()));
    let object = pair.alice.export(object);
    let this = object.clone();
    let door = Methods::new()
        .on("object", move |_: &Turn, ()| Ok(this.clone()))
        .on("secret", |_: &Turn, ()| Ok(()));
    let caretaker = Caretaker::new(pair.alice.vat()).allow(["wait", "object"]);
    let guarded = caretaker.guard(&object);
    let door = pair
        .lend_reference(&caretaker.guard(&pair.alice.export(door)))
        .await;
    let reached = soon(door.ask::<Reference>("object", ())).await.unwrap();
    assert_eq!(code(reached.ask::<()>("secret", ())).await, "not-allowed");
    drop(guarded);
    let waited = soon(reached.ask::<Vec<TypedPromise<i64>>>("wait", ())).await;
    let [promise] = <[_; 1]>::try_from(waited.unwrap()).unwrap();
    assert!(promise.now().is_none());
    caretaker.revoke();
    assert_eq!(code(promise).await, "revoked");
}

#[tokio::test]
async fn breaks_carry_a_code_and_a_correlation_id_and_no_detail() {
    let pair = Pair::new();
    let failing = Methods::new()
        .on("read", |_: &Turn, ()| {
            Err::<(), _>(Broken::reported("store", "cannot read", "/var/secret/path"))
        })
        .on(
            "panic",
            |_: &Turn, (what,): (String,)| -> Result<(), Broken> { panic!("secret {what}") },
        );
    let failing = pair.lend(failing).await;
    let read = soon(failing.ask::<()>("read", ())).await.unwrap_err();
    assert_eq!(read.code(), Some("store"));
    assert_eq!(read.correlation_id().map(str::len), Some(16));
    assert!(!format!("{:?}", read.reason()).contains("secret"));
    let panicked = soon(failing.ask::<()>("panic", ("x",))).await.unwrap_err();
    assert_eq!(panicked.code(), Some("internal"));
    assert!(panicked.correlation_id().is_some());
    assert_ne!(panicked.correlation_id(), read.correlation_id());
    assert!(!format!("{:?}", panicked.reason()).contains("secret"));
}
