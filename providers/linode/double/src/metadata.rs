//! The metadata service of one instance, as a process on it sees it.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde_json::{Value, json};

use crate::clock::Dice;
use crate::instance::Instance;
use crate::reply::{Refusal, Reply};
use crate::server::Asked;

/// How many tokens an instance may hold; the oldest go first.
const TOKENS_MAX: usize = 1_000;

/// The tokens of one instance, and when each ends.
#[derive(Debug)]
pub(crate) struct Tokens(Mutex<(Dice, BTreeMap<String, u64>)>);

impl Tokens {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mutex::new((Dice(seed), BTreeMap::new())))
    }

    fn mint(&self, ends_ms: u64) -> String {
        let mut held = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let token: String = (0..4).map(|_| format!("{:016x}", held.0.roll())).collect();
        if held.1.len() >= TOKENS_MAX {
            held.1.pop_first();
        }
        held.1.insert(token.clone(), ends_ms);
        token
    }

    fn holds(&self, token: &str, now_ms: u64) -> bool {
        let held = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        held.1.get(token).is_some_and(|ends_ms| *ends_ms > now_ms)
    }
}

/// Answers one request.
pub(crate) fn answer(instance: &Instance, tokens: &Tokens, now_ms: u64, asked: &Asked) -> Reply {
    let (method, path) = (asked.request.method.as_str(), asked.request.path.as_str());
    let wants_json = asked
        .header("accept")
        .is_some_and(|it| it.contains("application/json"));
    if (method, path) == ("PUT", "/v1/token") {
        let expiry = asked.header("metadata-token-expiry-seconds");
        let Some(expiry_s) = expiry
            .and_then(|it| it.parse::<u64>().ok())
            .filter(|it| *it > 0)
        else {
            let why = "Metadata-Token-Expiry-Seconds must be a positive integer";
            return Refusal::of(400, None, why).into();
        };
        let token = tokens.mint(now_ms.saturating_add(expiry_s.saturating_mul(1_000)));
        return match wants_json {
            true => Reply::json(200, &json!([token])),
            false => Reply::text(200, "text/plain", token),
        };
    }
    let token = asked.header("metadata-token").unwrap_or_default();
    if !tokens.holds(token, now_ms) {
        return Refusal::of(401, None, "Invalid or expired token").into();
    }
    let (public, private): (Vec<_>, Vec<_>) = instance
        .ipv4
        .iter()
        .partition(|it| !it.starts_with("192.168."));
    let shown = match (method, path) {
        ("GET", "/v1/user-data") => {
            let text = instance.user_data.clone().unwrap_or_default();
            return Reply::text(200, "text/plain", text);
        }
        ("GET", "/v1/instance") => instance.show_inside(),
        ("GET", "/v1/network") => json!({"interfaces": [],
            "ipv4": {"public": public, "private": private, "shared": []},
            "ipv6": {"slaac": format!("2001:db8::f03c:{:x}:{:x}/128", instance.id >> 16, instance.id & 0xffff),
                "link_local": format!("fe80::f03c:{:x}:{:x}/128", instance.id >> 16, instance.id & 0xffff),
                "ranges": [], "shared_ranges": []}}),
        ("GET", "/v1/ssh-keys") => json!({"users": {"root": instance.authorized_keys}}),
        _ => return Refusal::not_found().into(),
    };
    match wants_json {
        true => Reply::json(200, &shown),
        false => Reply::text(200, "text/plain", lines("", &shown)),
    }
}

/// Returns `key: value` lines, with dots between the names of nested ones.
fn lines(prefix: &str, value: &Value) -> String {
    let entries = value.as_object().into_iter().flatten();
    let shown = entries.map(|(name, value)| match value {
        Value::Object(_) => lines(&format!("{prefix}{name}."), value),
        Value::Array(items) => {
            let texts: Vec<String> = items.iter().map(plain).collect();
            format!("{prefix}{name}: {}\n", texts.join(","))
        }
        value => format!("{prefix}{name}: {}\n", plain(value)),
    });
    shown.collect()
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}
