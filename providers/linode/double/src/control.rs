//! The control plane: who may ask what, how often, and what goes wrong on the way.

use serde_json::{Value, json};

use crate::account::{Account, Luck};
use crate::catalog;
use crate::clock::{api_time, http_date};
use crate::fault::{self, Kind};
use crate::filter::page;
use crate::grants::Grants;
use crate::limit::Class;
use crate::reply::{Refusal, Reply};
use crate::resources::Found;

/// A request, as far as the API looks at it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) token: Option<String>,
    pub(crate) filter: Option<String>,
    pub(crate) body: Value,
}

const INSTANCE_FIELDS: [&str; 9] = [
    "group",
    "id",
    "image",
    "interface_generation",
    "ipv4",
    "label",
    "placement_group.label",
    "region",
    "tags",
];
const EVENT_FIELDS: [&str; 5] = ["action", "created", "entity.id", "entity.type", "id"];
const REGION_FIELDS: [&str; 2] = ["country", "site_type"];
const TYPE_FIELDS: [&str; 9] = [
    "accelerated_devices",
    "class",
    "disk",
    "gpus",
    "label",
    "memory",
    "network_out",
    "transfer",
    "vcpus",
];
const IMAGE_FIELDS: [&str; 8] = [
    "deprecated",
    "is_public",
    "is_shared",
    "label",
    "size",
    "status",
    "type",
    "vendor",
];

/// Answers one request below `/v4` or `/v4beta`.
pub(crate) fn answer(account: &mut Account, request: &Request) -> Reply {
    account.settle();
    account.stats.requests += 1;
    let parts: Vec<&str> = request
        .path
        .split('/')
        .filter(|it| !it.is_empty())
        .collect();
    let (class, scope) = (class_of(request, &parts), scope_of(&request.method, &parts));
    if class == Class::Create {
        account.stats.create_requests += 1;
    }
    let mut headers = vec![
        ("Date", http_date(account.clock.now_ms())),
        (
            "Cache-Control",
            "private, max-age=0, s-maxage=0, no-cache, no-store".into(),
        ),
        ("X-Spec-Version", "4.229.1".into()),
        ("X-Accepted-OAuth-Scopes", scope.unwrap_or("*").into()),
    ];
    let token = request.token.as_deref().unwrap_or_default();
    let scopes = account.tokens.get(token).cloned();
    let count = account
        .windows
        .count(&account.limits, token, class, account.clock.now_ms());
    headers.push(("X-RateLimit-Limit", count.limit.to_string()));
    headers.push(("X-RateLimit-Remaining", count.remaining.to_string()));
    headers.push(("X-RateLimit-Reset", count.reset_s.to_string()));
    if let Some(scopes) = &scopes {
        headers.push(("X-OAuth-Scopes", scopes.clone()));
    }
    let reply = match (scope, scopes) {
        _ if count.refused => {
            account.stats.over_limit += 1;
            let now_s = account.clock.now_ms() / 1_000;
            headers.push((
                "Retry-After",
                count.reset_s.saturating_sub(now_s).max(1).to_string(),
            ));
            Refusal::of(429, None, "Too many requests").into()
        }
        (Some(_), None) => Refusal::of(401, None, "Invalid Token").into(),
        (Some(scope), Some(scopes)) if !allows(&scopes, scope) => {
            let why = "Your OAuth token is not authorized to use this endpoint.";
            Refusal::of(401, None, why).into()
        }
        _ => with_faults(account, request, &parts),
    };
    let mut reply: Reply = reply;
    // What a proxy answers has nothing of the API's own.
    if reply.content_type == "application/json" {
        headers.append(&mut reply.headers);
        reply.headers = headers;
    }
    reply
}

/// Does a request past limits and faults.
pub(crate) fn ask(
    account: &mut Account,
    method: &str,
    path: &str,
    body: &Value,
) -> Result<Value, String> {
    let request = Request {
        method: method.into(),
        path: path.into(),
        query: "page_size=500".into(),
        body: body.clone(),
        ..Request::default()
    };
    let parts: Vec<&str> = path.split('/').filter(|it| !it.is_empty()).collect();
    routed(account, &request, &parts, None).map_err(|refusal| refusal.body().to_string())
}

fn with_faults(account: &mut Account, request: &Request, parts: &[&str]) -> Reply {
    let label = request.body["label"].as_str();
    let (faults, chance) = (&mut account.faults, &mut account.chance);
    let met = fault::next(faults, chance, &request.method, &request.path, label);
    match met {
        Some(Kind::TokenEnds) => {
            let token = request.token.as_deref().unwrap_or_default();
            account.tokens.remove(token);
        }
        Some(Kind::Down { virtual_s }) => account.goes_down_s = Some(virtual_s),
        _ => {}
    }
    let clock = account.clock.clone();
    fault::met(met.as_ref(), &clock, || {
        account.luck = Luck::of(met.as_ref());
        let reply = route(account, request, parts, met.as_ref());
        account.luck = Luck::default();
        reply
    })
}

/// Returns a list's items as a fault shows them.
fn shown(mut items: Vec<Value>, met: Option<&Kind>) -> Vec<Value> {
    match met {
        Some(Kind::Duplicates) => items.extend(items.clone()),
        Some(Kind::PageShift { by }) => {
            let count = usize::try_from(by.unsigned_abs()).unwrap_or(usize::MAX);
            match (by.is_negative(), items.first().cloned()) {
                (false, Some(first)) => {
                    items.splice(0..0, std::iter::repeat_n(first, count));
                }
                _ => {
                    items.drain(..count.min(items.len()));
                }
            }
        }
        _ => {}
    }
    items
}

fn route(account: &mut Account, request: &Request, parts: &[&str], met: Option<&Kind>) -> Reply {
    let method = request.method.as_str();
    if method == "GET" && parts == ["profile", "grants"] {
        return match &account.grants {
            Some(grants) => Reply::json(200, &grants.show()),
            None => Reply::text(204, "application/json", ""),
        };
    }
    let may = |it: &Grants| it.allow(method, parts, &request.body);
    if !account.grants.as_ref().is_none_or(may) {
        return Refusal::of(403, None, "Unauthorized").into();
    }
    match routed(account, request, parts, met) {
        Ok(body) => {
            if let Some(grants) = &mut account.grants {
                grants.note(method, parts, &body);
            }
            Reply::json(200, &body)
        }
        Err(refusal) => refusal.into(),
    }
}

fn routed(
    account: &mut Account,
    request: &Request,
    parts: &[&str],
    met: Option<&Kind>,
) -> Result<Value, Refusal> {
    let fails = met == Some(&Kind::JobFails);
    let list = |items: Vec<Value>, fields: &[&str]| {
        let items = shown(items, met);
        page(items, fields, request.filter.as_deref(), &request.query)
    };
    let one = |items: Vec<Value>, id: &str| {
        let number = id.parse::<u64>().ok();
        let is =
            |item: &Value| item["id"] == id || number.is_some() && item["id"].as_u64() == number;
        let found = items.into_iter().find(is);
        found.ok_or_else(Refusal::not_found)
    };
    let id = |text: &str| text.parse::<u64>().map_err(|_| Refusal::not_found());
    let body = &request.body;
    if let Some(found) = account.resource(&request.method, parts, body) {
        return match found? {
            Found::One(value) => Ok(value),
            Found::List(mut items, fields) => {
                if let Some(Kind::ListLag { virtual_s }) = met {
                    let now_ms = account.clock.now_ms();
                    let until = api_time(now_ms.saturating_sub(virtual_s * 1_000));
                    items.retain(|it| it["created"].as_str().is_none_or(|at| *at < *until));
                }
                list(items, fields)
            }
        };
    }
    match (request.method.as_str(), parts) {
        ("GET", ["regions"]) => list(catalog::regions(), &REGION_FIELDS),
        ("GET", ["regions", it]) => one(catalog::regions(), it),
        ("GET", ["linode", "types"]) => list(catalog::classes(), &TYPE_FIELDS),
        ("GET", ["linode", "types", it]) => one(catalog::classes(), it),
        ("GET", ["images"]) => list(catalog::images(), &IMAGE_FIELDS),
        ("GET", ["images", it]) => one(catalog::images(), &it.replace("%2F", "/")),
        ("GET", ["images", maker, it]) => one(catalog::images(), &format!("{maker}/{it}")),
        ("GET", ["profile"]) => {
            let restricted = account.grants.is_some();
            Ok(json!({"username": "double", "restricted": restricted,
                "email": "double@example.com", "uid": 1, "timezone": "GMT"}))
        }
        ("GET", ["account", "settings"]) => Ok(account.settings()),
        ("PUT", ["account", "settings"]) => account.set_settings(body),
        ("GET", ["account", "events"]) => {
            // The newest comes first, as with the real API.
            list(
                account.events.iter().rev().cloned().collect(),
                &EVENT_FIELDS,
            )
        }
        ("GET", ["account", "events", it]) => one(account.events.clone(), it),
        ("GET", ["tags"]) => list(account.tags(), &[]),
        ("GET", ["linode", "instances"]) => {
            let lag_ms = match met {
                Some(Kind::ListLag { virtual_s }) => virtual_s * 1_000,
                _ => 0,
            };
            let mut items = account.list(lag_ms);
            if let Some(Kind::ListGhosts { virtual_s }) = met {
                items.extend(account.ghosts(virtual_s * 1_000));
            }
            list(items, &INSTANCE_FIELDS)
        }
        ("POST", ["linode", "instances"]) => account.create(body, fails),
        ("GET", ["linode", "instances", it]) => Ok(account.instance(id(it)?)?.show()),
        ("PUT", ["linode", "instances", it]) => account.update(id(it)?, body),
        ("DELETE", ["linode", "instances", it]) => account.delete(id(it)?, fails),
        ("POST", ["linode", "instances", it, "ips"]) => {
            let instance = account.instance(id(it)?)?;
            if body["public"] != false || instance.ipv4.len() > 1 {
                let why = "Additional IPv4 addresses require technical justification.";
                return Err(Refusal::of(400, None, why));
            }
            let address = format!(
                "192.168.{}.{}",
                instance.id / 250 % 250,
                instance.id % 250 + 1
            );
            instance.ipv4.push(address.clone());
            Ok(json!({"address": address, "type": "ipv4", "public": false,
                "linode_id": instance.id, "prefix": 17}))
        }
        (
            "POST",
            [
                "linode",
                "instances",
                it,
                "backups",
                verb @ ("enable" | "cancel"),
            ],
        ) => {
            account.instance(id(it)?)?.backups = *verb == "enable";
            Ok(json!({}))
        }
        ("GET", ["linode", "instances", it, "disks"]) => {
            list(account.disks_of(id(it)?)?, &["label"])
        }
        ("GET", ["linode", "instances", it, "disks", disk]) => {
            one(account.disks_of(id(it)?)?, disk)
        }
        ("POST", ["linode", "instances", it, "disks", disk, "resize"]) => {
            account.resize_disk(id(it)?, id(disk)?, body, fails)
        }
        ("POST", ["linode", "instances", it, "upgrade-interfaces"]) => {
            account.upgrade_interfaces(id(it)?, body)
        }
        ("POST", ["linode", "instances", it, action]) => account.act(id(it)?, action, body, fails),
        _ => Err(Refusal::not_found()),
    }
}

fn class_of(request: &Request, parts: &[&str]) -> Class {
    match (request.method.as_str(), parts) {
        ("POST", ["linode", "instances"]) => Class::Create,
        ("GET", ["images"]) => Class::Images,
        ("POST", ["volumes"]) => Class::Volumes,
        ("GET", ["linode", "instances"] | ["regions"] | ["linode", "types"] | ["tags"]) => {
            Class::List
        }
        ("GET", ["volumes"] | ["networking", "firewalls"] | ["domains"]) => Class::List,
        ("GET", ["domains", _, "records"] | ["placement", "groups"]) => Class::List,
        (
            "GET",
            [
                "linode",
                "instances",
                _,
                "volumes" | "firewalls" | "configs" | "disks",
            ]
            | ["linode", "instances", _, "interfaces", _, "firewalls"],
        ) => Class::List,
        _ => Class::Other,
    }
}

/// Returns the scope that a request needs; nothing where anybody may ask.
fn scope_of(method: &str, parts: &[&str]) -> Option<&'static str> {
    match (method, parts) {
        ("GET", ["regions" | "images", ..] | ["linode", "types", ..]) => None,
        ("GET", ["profile", ..]) => Some(""),
        ("GET", ["account", "events", ..]) => Some("events:read_only"),
        ("GET", ["volumes", ..]) => Some("volumes:read_only"),
        (_, ["volumes", ..]) => Some("volumes:read_write"),
        ("GET", ["networking", "firewalls", ..]) => Some("firewall:read_only"),
        (_, ["networking", "firewalls", ..]) => Some("firewall:read_write"),
        ("GET", ["domains", ..]) => Some("domains:read_only"),
        (_, ["domains", ..]) => Some("domains:read_write"),
        ("GET", ["placement", ..]) => Some("linodes:read_only"),
        (_, ["placement", ..]) => Some("linodes:read_write"),
        ("GET", ["linode", ..]) => Some("linodes:read_only"),
        (_, ["linode", ..]) => Some("linodes:read_write"),
        ("GET", _) => Some("account:read_only"),
        _ => Some("account:read_write"),
    }
}

fn allows(scopes: &str, needed: &str) -> bool {
    let area = needed.split(':').next().unwrap_or_default();
    let writes = needed.ends_with(":read_write");
    needed.is_empty()
        || scopes
            .split_whitespace()
            .any(|scope| match scope.split_once(':') {
                _ if scope == "*" => true,
                Some((held, "read_write")) => held == area,
                Some((held, "read_only")) => held == area && !writes,
                _ => false,
            })
}
