//! Every fault × create, read, update, delete: it converges, with one machine and no stray.

use futures_util::StreamExt as _;
use gobs_linode_double::{Double, Fault, Kind};
use gobs_model::{Change, Known};
use gobs_provider::{CreateRequest, Error, Observed, Provider};
use gobs_provider_linode::Linode;

use crate::host::{create, quiet, start, text, update, wanted};

/// How often a caller asks again, as `apply` does.
const TRIES_MAX: usize = 4;

fn kinds() -> Vec<Kind> {
    vec![
        Kind::TooManyRequests {
            retry_after_s: Some(7),
            as_date: false,
        },
        Kind::TooManyRequests {
            retry_after_s: Some(7),
            as_date: true,
        },
        Kind::TooManyRequests {
            retry_after_s: None,
            as_date: false,
        },
        Kind::Before {
            status: 500,
            html: false,
        },
        Kind::Before {
            status: 502,
            html: true,
        },
        Kind::Before {
            status: 503,
            html: false,
        },
        Kind::Before {
            status: 504,
            html: true,
        },
        Kind::Before {
            status: 400,
            html: true,
        },
        Kind::Before {
            status: 408,
            html: false,
        },
        Kind::Maintenance,
        Kind::Busy,
        Kind::ResetBefore,
        Kind::ResetAfter,
        Kind::After { status: 502 },
        Kind::After { status: 504 },
        Kind::After { status: 500 },
        // Longer than an answer is waited for.
        Kind::Hang { virtual_s: 2_500 },
        Kind::Truncate,
        Kind::SlowBody { virtual_s: 100 },
        Kind::Down { virtual_s: 20 },
    ]
}

/// Asks as `apply` does: it waits where the provider is busy, and looks where it is in doubt.
async fn made(linode: &Linode, request: &CreateRequest) -> Result<Observed, String> {
    for _ in 0..TRIES_MAX {
        match linode.create(request.clone(), quiet()).await {
            Ok(seen) => return Ok(seen),
            Err(Error::Busy { .. }) => {}
            Err(Error::InDoubt(_)) => {
                if let Ok(Some(seen)) = linode.find(&request.token).await {
                    return Ok(seen);
                }
            }
            Err(error) => return Err(format!("create: {error}")),
        }
    }
    Err("create does not converge".into())
}

async fn updated(
    linode: &Linode,
    before: &Observed,
    change: Change,
    was: &Known,
    wanted: &Known,
) -> Result<Observed, String> {
    let request = update(before, change, was.clone(), wanted.clone());
    for _ in 0..TRIES_MAX {
        match linode.update(request.clone(), quiet()).await {
            Ok(seen) => return Ok(seen),
            Err(Error::Busy { .. } | Error::InDoubt(_)) => {}
            Err(error) => return Err(format!("{change:?}: {error}")),
        }
    }
    Err(format!("{change:?} does not converge"))
}

async fn deleted(linode: &Linode, seen: &Observed) -> Result<(), String> {
    for _ in 0..TRIES_MAX {
        match linode.delete(seen, quiet()).await {
            Ok(()) => return Ok(()),
            Err(Error::Busy { .. } | Error::InDoubt(_)) => {}
            Err(error) => return Err(format!("delete: {error}")),
        }
    }
    Err("delete does not converge".into())
}

/// Lives a machine's whole life with a fault at one kind of request.
async fn live(double: &Double, linode: &Linode, fault: &Fault) -> Result<(), String> {
    let said = |error: Error| error.to_string();
    let first = wanted([]);
    let request = create("web", first.clone());
    if (fault.method.as_deref(), fault.path.as_str()) == (Some("GET"), "/linode/instances") {
        // A list is asked for only where an answer was lost.
        double.fault(Fault::once("POST", &fault.path, Kind::ResetAfter));
    }
    double.fault(fault.clone());
    let seen = made(linode, &request).await?;
    if double.instances().len() != 1 {
        return Err(format!("{} machines", double.instances().len()));
    }
    let mut read = linode.read(&seen).await;
    for _ in 0..TRIES_MAX {
        if !matches!(read, Err(Error::Busy { .. } | Error::InDoubt(_))) {
            break;
        }
        read = linode.read(&seen).await;
    }
    if read.map_err(said)?.is_none_or(|it| it.id != seen.id) {
        return Err("it is not read".into());
    }
    let labelled = wanted([("label", "renamed".into())]);
    let seen = updated(linode, &seen, Change::InPlace, &first, &labelled).await?;
    let larger = wanted([
        ("label", "renamed".into()),
        ("type", "g6-standard-1".into()),
    ]);
    let seen = updated(linode, &seen, Change::Resize, &labelled, &larger).await?;
    let newer = wanted([
        ("label", "renamed".into()),
        ("type", "g6-standard-1".into()),
        ("image", "linode/debian12".into()),
    ]);
    let seen = updated(linode, &seen, Change::Rebuild, &larger, &newer).await?;
    let shown = ["label", "type", "image"].map(|name| text(&seen, name).to_owned());
    if shown != ["renamed", "g6-standard-1", "linode/debian12"] {
        return Err(format!("it became {shown:?}"));
    }
    if double.events("linode_rebuild") != 1 || double.events("linode_resize") != 1 {
        return Err("something was done twice".into());
    }
    deleted(linode, &seen).await?;
    if !double.instances().is_empty() || double.stats().created != 1 {
        return Err(format!("{:?} and {:?}", double.instances(), double.stats()));
    }
    if double.unused_faults() > 0 {
        return Err("the fault was never met".into());
    }
    Ok(())
}

/// Lives one life for each fault at each request, each with a double of its own; `at_once` of them
/// side by side, since a hang waits and the others need not.
pub(crate) async fn every_fault(
    requests: &[(&str, &str)],
    first_seed: u64,
    at_once: usize,
    live: impl AsyncFn(&Double, &Linode, &Fault) -> Result<(), String>,
) {
    let cases = requests.iter().flat_map(|(method, path)| {
        let kinds = kinds().into_iter();
        kinds.map(move |kind| Fault::once(method, path, kind))
    });
    let live = &live;
    let lives = (first_seed..).zip(cases).map(|(seed, fault)| async move {
        let (double, linode) = start(seed).await;
        let lived = live(&double, &linode, &fault).await;
        lived
            .err()
            .map(|why| format!("{} {fault:?}: {why}", fault.path))
    });
    let lives = futures_util::stream::iter(lives).buffer_unordered(at_once);
    let broken: Vec<String> = lives.filter_map(std::future::ready).collect().await;
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a3_every_fault_converges_at_every_verb() {
    let requests = [
        ("POST", "/linode/instances"),
        ("GET", "/linode/instances"),
        ("GET", "/linode/instances/*"),
        ("PUT", "/linode/instances/*"),
        ("POST", "/linode/instances/*/resize"),
        ("POST", "/linode/instances/*/rebuild"),
        ("GET", "/account/events"),
        ("DELETE", "/linode/instances/*"),
    ];
    every_fault(&requests, 0, 6, live).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a3_a_lost_create_is_found_though_the_list_lags() {
    let (double, linode) = start(1).await;
    double.fault(Fault::once("POST", "/linode/instances", Kind::ResetAfter));
    let lag = Kind::ListLag { virtual_s: 8 };
    double.fault(Fault::once("GET", "/linode/instances", lag).times(2));
    let seen = linode
        .create(create("web", wanted([])), quiet())
        .await
        .expect("adopted");
    assert_eq!((double.instances().len(), double.stats().created), (1, 1));
    assert_eq!(double.instances()[0]["id"].to_string(), seen.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a3_a_list_that_shows_twice_is_read_once() {
    let (double, linode) = start(1).await;
    linode
        .create(create("web", wanted([])), quiet())
        .await
        .expect("made");
    double.fault(Fault::once("GET", "/linode/instances", Kind::Duplicates));
    assert_eq!(linode.list().await.expect("listed").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a3_a_list_that_shifts_between_its_pages_is_read_again() {
    let (double, linode) = start(1).await;
    for name in ["one", "two"] {
        let made = linode.create(create(name, wanted([])), quiet()).await;
        made.expect("made");
    }
    // The first page says that there are two, and by the second they are gone.
    let shift = Kind::PageShift { by: 600 };
    double.fault(Fault::once("GET", "/linode/instances", shift));
    assert_eq!(linode.list().await.expect("listed").len(), 2);
    assert_eq!(double.unused_faults(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a3_a_job_that_fails_is_said() {
    let (double, linode) = start(1).await;
    let seen = linode
        .create(create("web", wanted([])), quiet())
        .await
        .expect("made");
    // While it is being made, it is busy: whichever request is taken fails.
    let resize = "/linode/instances/*/resize";
    double.fault(Fault::once("POST", resize, Kind::JobFails).times(u32::MAX));
    let larger = wanted([("type", "g6-standard-1".into())]);
    let request = update(&seen, Change::Resize, wanted([]), larger);
    match linode.update(request, quiet()).await {
        Err(Error::Rejected { message, .. }) => {
            assert_eq!(message, "Linode's linode_resize failed: no reason given");
        }
        other => panic!("{other:?}"),
    }
}
