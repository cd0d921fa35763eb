//! The objects that the public conformance suite asks for, over `tcp-testing-only`.
//!
//! ```text
//! cargo run -p ocapn --example suite_peer -- [PORT [D1|D2|D3]]
//! ```
//! prints the locator to be given to the suite's `test_runner.py`, and serves until it is killed.

#![expect(
    clippy::print_stdout,
    reason = "the suite is started with what is printed"
)]

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use ocapn::netlayer::tcp_testing::{TcpFraming, TcpTesting};
use ocapn::{
    Answer, Broken, Dialect, Identity, Object, Passable, Peer, PeerId, Reference, SturdyrefTable,
    Turn,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let port = args.next().map_or(Ok(0), |port| port.parse())?;
    let (dialect, framing) = match args.next().as_deref() {
        Some("D1") => (Dialect::D1, TcpFraming::Unframed),
        Some("D2") | None => (Dialect::D2, TcpFraming::Unframed),
        Some("D3") => (Dialect::D2, TcpFraming::Netstring),
        Some(other) => return Err(format!("no such dialect: {other}").into()),
    };
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let designator = Identity::generate()?.designator();
    let netlayer = TcpTesting::bind(designator, listen, framing).await?;
    let objects = Arc::new(Objects::default());
    let peer = Peer::builder()
        .netlayer(netlayer)
        .dialect(dialect)
        .sturdyrefs(Arc::clone(&objects) as Arc<dyn SturdyrefTable>)
        .spawn();
    objects.export_on(&peer);
    println!("{}", peer.locator());
    std::future::pending().await
}

/// The suite's objects, by the numbers that its README gives them.
#[derive(Default)]
struct Objects(OnceLock<HashMap<&'static [u8], Reference>>);

impl Objects {
    fn export_on(&self, peer: &Peer) {
        self.0.get_or_init(|| {
            HashMap::from([
                (
                    &b"JadQ0++RzsD4M+40uLxTWVaVqM10DcBJ"[..],
                    peer.export(Function(build_factory)),
                ),
                (
                    &b"IO58l1laTyhcrgDKbEzFOO32MDd6zE5w"[..],
                    peer.export(Function(echo)),
                ),
                (
                    &b"VMDDd1voKWarCe2GvgLbxbVFysNzRPzx"[..],
                    peer.export(Function(greet)),
                ),
                (
                    &b"IokCxYmMj04nos2JN1TDoY1bT8dXh6Lr"[..],
                    peer.export(Function(make_promise)),
                ),
                (
                    &b"gi02I1qghIwPiKGKleCQAOhpy3ZtYRpB"[..],
                    peer.export(Enlivener(peer.clone())),
                ),
            ])
        });
    }
}

impl SturdyrefTable for Objects {
    fn fetch(&self, swissnum: Bytes, _from: &PeerId) -> BoxFuture<'static, Option<Reference>> {
        let object = self
            .0
            .get()
            .and_then(|objects| objects.get(&*swissnum))
            .cloned();
        async move { object }.boxed()
    }
}

/// An object that is a function of its messages.
struct Function<F>(F);

impl<F> Object for Function<F>
where
    F: Fn(&Turn, Vec<Passable>) -> Result<Passable, Broken> + Send + Sync + 'static,
{
    fn deliver(&self, turn: &Turn, args: Vec<Passable>) -> Answer {
        Answer::Now((self.0)(turn, args))
    }
}

fn wrong_arguments() -> Broken {
    Broken::with(Passable::symbol("wrong-arguments"))
}

/// The car factory's builder: no arguments, a factory.
fn build_factory(turn: &Turn, _args: Vec<Passable>) -> Result<Passable, Broken> {
    Ok(turn.vat().export(Function(make_car)).into())
}

/// A car factory: colour and model as symbols, a car.
fn make_car(turn: &Turn, args: Vec<Passable>) -> Result<Passable, Broken> {
    let [order] = &args[..] else {
        return Err(wrong_arguments());
    };
    let Some([color, model]) = order.as_list() else {
        return Err(wrong_arguments());
    };
    let (Some(color), Some(model)) = (color.as_symbol(), model.as_symbol()) else {
        return Err(wrong_arguments());
    };
    let noise = format!("Vroom! I am a {color} {model} car!");
    Ok(turn
        .vat()
        .export(Function(move |_: &Turn, _| Ok(noise.as_str().into())))
        .into())
}

/// Returns its arguments.
fn echo(_turn: &Turn, args: Vec<Passable>) -> Result<Passable, Broken> {
    Ok(args.into())
}

/// Greets its argument, and drops what comes of it.
fn greet(_turn: &Turn, args: Vec<Passable>) -> Result<Passable, Broken> {
    let [greeted] = &args[..] else {
        return Err(wrong_arguments());
    };
    drop(
        greeted
            .as_reference()
            .ok_or_else(wrong_arguments)?
            .call_raw(vec!["Hello".into()]),
    );
    Ok(Passable::Undefined)
}

/// Returns a promise and its resolver.
fn make_promise(turn: &Turn, _args: Vec<Passable>) -> Result<Passable, Broken> {
    let (promise, resolver) = turn.vat().promise();
    let promise = Reference::from(promise);
    Ok(vec![promise.into(), resolver.into_reference().into()].into())
}

/// Makes sturdyrefs live. It holds on to its peer, which is well where the peer ends with the
/// process.
struct Enlivener(Peer);

impl Object for Enlivener {
    fn deliver(&self, _turn: &Turn, args: Vec<Passable>) -> Answer {
        let peer = self.0.clone();
        Answer::later(async move {
            let sturdyref = args
                .first()
                .and_then(Passable::as_sturdyref)
                .ok_or_else(wrong_arguments)?;
            let reference = peer.enliven(sturdyref).await;
            reference
                .map(Passable::from)
                .map_err(|error| Broken::new("not-enlivened", error.to_string()))
        })
    }
}
