//! What carries bytes once more, between hobs that stay apart as those of two hosts do: the
//! program's socket goes nowhere, and all of it passes through TLS.

#[path = "../agents/bindings.rs"]
mod bindings;
#[path = "../agents/http.rs"]
mod http;
#[path = "../agents/redis/mod.rs"]
mod redis;
#[path = "../agents/revocation.rs"]
mod revocation;
#[expect(dead_code, reason = "the other tests use more of it")]
#[path = "../agents/support.rs"]
mod support;

#[path = "../agents/postgres"]
mod postgres {
    mod bound;
    #[expect(dead_code, reason = "the other tests use more of it")]
    pub(crate) mod cluster;
    mod crashing;
    mod landing;
    mod revoking;
}

/// Returns whether hobs stay apart.
fn apart() -> bool {
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lent() {
    let (orders, _) = support::mirror().await;
    let pair = support::Pair::start(&orders).await;
    let held = pair.bind(1, &[]).await;
    assert!(held.address.starts_with("unix:"), "{}", held.address);
    support::exchange(support::connect(&held.address).await, b"through both").await;
    assert!(!pair.db.log().contains("taken over"));
}
