//! Prints what goes over a session, in readable form and without its secrets.
//!
//! ```text
//! cargo run -p ocapn --example trace
//!     two peers in this process: a fetch, pipelined calls, a part of a promise, a break
//! cargo run -p ocapn --example trace -- STURDYREF [METHOD]
//!     fetches an object over tcp-testing-only, and calls it
//! ```

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ocapn::netlayer::memory::MemoryNetwork;
use ocapn::netlayer::tcp_testing::{TcpFraming, TcpTesting};
use ocapn::netlayer::trace::{Trace, Traced};
use ocapn::{Broken, Identity, Methods, Netlayer, Peer, Reference, Struct, Sturdyrefs, Turn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    match args.next() {
        Some(sturdyref) => call(&sturdyref, args.next()).await,
        None => demonstrate().await,
    }
}

fn traced(netlayer: impl Netlayer) -> Peer {
    let netlayer = Trace::new(netlayer, |message: Traced| {
        let arrow = if message.sent { "→" } else { "←" };
        println!("{} {arrow} {}", message.connection, message.text);
    });
    Peer::builder().netlayer(netlayer).spawn()
}

async fn call(sturdyref: &str, method: Option<String>) -> Result<(), Box<dyn Error>> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let designator = Identity::generate()?.designator();
    let peer = traced(TcpTesting::bind(designator, listen, TcpFraming::Unframed).await?);
    let object = peer.enliven(&sturdyref.parse()?).await?;
    let result = match method {
        Some(method) => object.call(&method, []).await,
        None => object.call_raw(Vec::new()).await,
    };
    println!("result: {result:?}");
    peer.close().await;
    Ok(())
}

async fn demonstrate() -> Result<(), Box<dyn Error>> {
    let network = MemoryNetwork::new(1, Duration::ZERO..Duration::ZERO);
    let table = Arc::new(Sturdyrefs::new());
    let alice = Peer::builder()
        .netlayer(network.netlayer("alice"))
        .sturdyrefs(table.clone())
        .spawn();
    let factory = Methods::new()
        .on("make", |turn: &Turn, (color,): (String,)| {
            let noise = format!("Vroom! I am a {color} car!");
            let car = Methods::new().on("drive", move |_: &Turn, ()| Ok(noise.clone()));
            Ok(turn.vat().export(car))
        })
        .on("describe", |_: &Turn, ()| {
            Ok(Struct::new().with("colors", 2))
        })
        .on("close", |_: &Turn, ()| {
            Err::<(), _>(Broken::new("not-yours", "only the owner closes it"))
        });
    let sturdyref = table.export(&alice.locator(), &alice.export(factory))?;

    let bob = traced(network.netlayer("bob"));
    let factory = bob.enliven(&sturdyref).await?;
    let car = factory.ask::<Reference>("make", ("red",));
    println!("{}", car.ask::<String>("drive", ()).await?);
    let colors = factory.call("describe", []).get("colors");
    println!("{:?}", colors.await);
    println!("{:?}", factory.ask::<()>("close", ()).await);
    bob.close().await;
    Ok(())
}
