//! Sturdyrefs that work for one peer alone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ocapn::netlayer::memory::MemoryNetwork;
use ocapn::netlayer::tcp_testing::{TcpFraming, TcpTesting};
use ocapn::{Netlayer, Peer, PeerId, PeerLocator, SturdyrefTable, Sturdyrefs};

use crate::support::{ANY_PORT, echoes, service, soon};

/// C2: a name is not enough.
#[tokio::test]
async fn c2_a_bound_sturdyref_needs_its_name_and_the_proof_of_it() {
    let table = Sturdyrefs::new();
    let vat = ocapn::Vat::new(ocapn::VatOptions {
        location: PeerLocator::new("memory", "here"),
        limits: ocapn::Limits::default(),
    });
    let object = vat.export(service());
    let here = PeerLocator::new("memory", "here");
    let bound = table.export_bound(&here, &object, "bob").unwrap();
    let free = table.export(&here, &object).unwrap();
    for (designator, authenticated, is_given) in [
        ("bob", true, true),
        ("bob", false, false),
        ("eve", true, false),
        ("eve", false, false),
    ] {
        let from = PeerId {
            transport: "memory".into(),
            designator: designator.into(),
            authenticated,
            address: None,
        };
        let swissnum = Bytes::copy_from_slice(bound.swissnum.reveal());
        let found = table.fetch(swissnum, &from).await;
        assert_eq!(found.is_some(), is_given, "{from:?}");
        let swissnum = Bytes::copy_from_slice(free.swissnum.reveal());
        assert_eq!(table.fetch(swissnum, &from).await, Some(object.clone()));
    }
}

/// Returns whether "bob" gets what is bound to "bob", over these netlayers.
async fn bob_gets_it(alice: impl Netlayer, bob: impl Netlayer) -> bool {
    let table = Arc::new(Sturdyrefs::new());
    let alice = Peer::builder()
        .netlayer(alice)
        .sturdyrefs(table.clone())
        .spawn();
    let object = alice.export(service());
    let free = table.export(&alice.locator(), &object).unwrap();
    let bound = table
        .export_bound(&alice.locator(), &object, "bob")
        .unwrap();
    let bob = Peer::builder().netlayer(bob).spawn();
    let free = soon(bob.enliven(&free)).await.unwrap();
    echoes(&free, "the session is good").await;
    soon(bob.enliven(&bound)).await.is_ok()
}

#[tokio::test]
async fn c2_a_bound_sturdyref_is_never_given_where_names_are_not_proven() {
    let network = MemoryNetwork::new(1, Duration::ZERO..Duration::ZERO);
    let proven = bob_gets_it(network.netlayer("alice"), network.netlayer("bob")).await;
    assert!(proven, "with proof it is");
    let tcp = |name| TcpTesting::bind(name, ANY_PORT, TcpFraming::Unframed);
    let (alice, bob) = (tcp("alice").await.unwrap(), tcp("bob").await.unwrap());
    assert!(!bob_gets_it(alice, bob).await, "a claim is no proof");
}
