//! The admin port: faults, the clock, and what happens behind the account's back.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::World;
use crate::fault::Fault;
use crate::grants::Grants;
use crate::limit::Limits;
use crate::reply::Reply;
use crate::server::Asked;

/// What an account allows.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    limits: Option<Limits>,
    instances_max: Option<usize>,
}

impl World {
    /// Answers what only tests ask.
    pub(crate) fn admin(self: &Arc<Self>, asked: Asked) -> Reply {
        let Asked { request, .. } = asked;
        let refused = |why: String| Reply::json(400, &json!({"error": why}));
        let done = Reply::json(200, &json!({}));
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/faults") => match serde_json::from_value::<Fault>(request.body) {
                Ok(fault) => {
                    self.account().faults.push(fault);
                    done
                }
                Err(error) => refused(error.to_string()),
            },
            ("DELETE", "/faults") => {
                self.account().faults.clear();
                done
            }
            ("POST", "/clock") => match request.body["advance_s"].as_u64() {
                Some(by_s) => {
                    let mut account = self.account();
                    account.clock.advance(by_s.saturating_mul(1_000));
                    account.settle();
                    done
                }
                None => refused("advance_s is missing".into()),
            },
            ("GET", "/clock") => {
                let now_ms = self.account().clock.now_ms();
                Reply::json(200, &json!({"now_s": now_ms / 1_000, "seed": self.seed}))
            }
            ("GET", "/stats") => {
                let stats = serde_json::to_value(self.account().stats).unwrap_or_default();
                Reply::json(200, &stats)
            }
            ("GET", "/instances") => {
                let mut account = self.account();
                account.settle();
                let shown = account.list(0);
                drop(account);
                let with_url = shown.into_iter().map(|instance| {
                    let url = instance["id"].as_u64().and_then(|id| self.metadata_url(id));
                    json!({"instance": instance, "metadata_url": url})
                });
                Reply::json(200, &Value::Array(with_url.collect()))
            }
            ("POST", "/down") => match request.body["virtual_s"].as_u64() {
                Some(virtual_s) => {
                    self.go_down(Duration::from_secs(virtual_s));
                    done
                }
                None => refused("virtual_s is missing".into()),
            },
            ("PUT", "/limits") => match serde_json::from_value::<Change>(request.body) {
                Ok(change) => {
                    let mut account = self.account();
                    if let Some(limits) = change.limits {
                        account.limits = limits;
                    }
                    account.instances_max = change.instances_max;
                    done
                }
                Err(error) => refused(error.to_string()),
            },
            ("PUT", "/settings") => {
                let mut account = self.account();
                let body = &request.body;
                let set = account.set_settings(body);
                let set = set.and_then(|_| account.set_firewall_settings(body));
                set.map_or_else(Reply::from, |_| done)
            }
            ("PUT", "/grants") => {
                let grants = Some(request.body).filter(Value::is_object);
                self.account().grants = grants.map(Grants::new);
                done
            }
            ("PUT", "/tokens") => match serde_json::from_value(request.body) {
                Ok(tokens) => {
                    self.account().tokens = tokens;
                    done
                }
                Err(error) => refused(error.to_string()),
            },
            (method @ ("PUT" | "DELETE"), path) => {
                let id = path
                    .strip_prefix("/instances/")
                    .and_then(|it| it.parse().ok());
                let Some(id) = id else {
                    return Reply::json(404, &json!({"error": "no such request"}));
                };
                let mut account = self.account();
                let meddled = match method {
                    "PUT" => account.update(id, &request.body),
                    _ => account.delete(id, false),
                };
                meddled.map_or_else(Reply::from, |_| done)
            }
            _ => Reply::json(404, &json!({"error": "no such request"})),
        }
    }
}
