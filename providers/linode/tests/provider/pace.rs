//! 200 machines under the real rate limits, on the virtual clock.

use futures_util::future::join_all;
use gobs_provider::Provider;

use crate::host::{create, quiet, start, wanted};

/// How many creates: ten windows of 20.
const CREATES: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creates_keep_within_the_window() {
    let (double, linode) = start(5).await;
    let begin_s = double.now_s();
    let wanted = wanted([]);
    let creates = (0..CREATES).map(|at| {
        let request = create(&format!("web{at}"), wanted.clone());
        linode.create(request, quiet())
    });
    for made in join_all(creates).await {
        made.expect("made");
    }
    let (stats, took_s) = (double.stats(), double.now_s() - begin_s);
    assert_eq!((stats.over_limit, stats.created), (0, CREATES as u64));
    // Ten windows begin, so at least nine of 15 s have passed but for the part of the first.
    assert!(took_s >= 9 * 15 - 15, "{took_s} s cannot be");
    assert_eq!(linode.list().await.expect("listed").len(), CREATES);
}
