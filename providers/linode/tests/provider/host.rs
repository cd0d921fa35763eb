//! A provider with a double of its own.

use std::sync::Arc;

use gobs_linode_double::{Double, Options};
use gobs_model::{Address, Change, Known, Name, Value};
use gobs_provider::{CreateRequest, Observed, Provider, Token, UpdateRequest, UserData};
use gobs_provider_linode::{Linode, LinodeHost};

/// How much faster than this host's the double's clock runs.
pub(crate) const SCALE: u32 = 1_000;

/// Starts a double with a seed, and a provider that uses it.
pub(crate) async fn start(seed: u64) -> (Double, Linode) {
    let options = Options {
        seed: Some(seed),
        scale: SCALE,
        ..Options::default()
    };
    let double = Double::start(options).expect("listens");
    let linode = provider(&double, "double").await;
    (double, linode)
}

/// Returns a provider with a token.
pub(crate) async fn provider(double: &Double, token: &str) -> Linode {
    let linode = Linode::new(LinodeHost {
        token: Some(token.to_owned().into()),
        url: Some(double.url()),
        allow_commands: false,
        clock_scale: SCALE,
        project: "p".into(),
    });
    linode.configure(&Known::empty()).await.expect("configured");
    linode
}

/// Returns the attributes of a plain machine, complete by the schema, with these set otherwise.
pub(crate) fn wanted<const N: usize>(set: [(&'static str, Value); N]) -> Known {
    let key = "ssh-ed25519 AAAA test";
    let plain = [
        ("region", "eu-central".into()),
        ("type", "g6-nanode-1".into()),
        ("image", "linode/debian13".into()),
        ("authorized_keys", Value::list([key.into()])),
        ("authorized_users", Value::NULL),
        ("root_pass", Value::NULL),
        ("label", Value::NULL),
        ("tags", Value::set(["Blue".into(), "abc".into()])),
        ("private_ip", Value::NULL),
        ("backups", Value::NULL),
        ("swap_size", Value::NULL),
        ("booted", Value::NULL),
        ("disk_encryption", Value::NULL),
        ("firewall_id", Value::NULL),
        ("maintenance_policy", Value::NULL),
        ("placement_group", Value::NULL),
        ("interface_generation", Value::NULL),
        ("firewall", Value::NULL),
        ("dns", Value::list([])),
        ("volume", Value::map::<Arc<str>>([])),
        ("interface", Value::list([])),
    ];
    let mut all: std::collections::BTreeMap<&str, Value> = plain.into();
    all.extend(set);
    Known::try_from(Value::object(all)).expect("known")
}

pub(crate) fn address(name: &str) -> Address {
    Address::machine(Name::new(name).expect("a name"), None)
}

pub(crate) fn create(name: &str, wanted: Known) -> CreateRequest {
    CreateRequest {
        token: Token::random().expect("random"),
        address: address(name),
        wanted,
        user_data: Some(UserData("the way home".into())),
        before: None,
    }
}

pub(crate) fn update(
    before: &Observed,
    change: Change,
    was: Known,
    wanted: Known,
) -> UpdateRequest {
    UpdateRequest {
        token: Token::random().expect("random"),
        address: address("web"),
        before: before.clone(),
        was_wanted: was,
        wanted,
        change,
        user_data: Some(UserData("the way home, again".into())),
    }
}

/// Returns a progress that nobody looks at.
pub(crate) fn quiet() -> gobs_provider::Progress {
    Arc::new(drop)
}

#[track_caller]
pub(crate) fn text<'a>(seen: &'a Observed, name: &str) -> &'a str {
    seen.attributes
        .get(name)
        .and_then(Value::as_str)
        .expect("a text")
}
