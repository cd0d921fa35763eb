//! Faults on demand: which request goes wrong, and how.

use serde::{Deserialize, Serialize};

use crate::clock::{Clock, Dice, http_date};
use crate::reply::{Fate, Refusal, Reply};

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum Kind {
    /// 429 before any effect, with `Retry-After` where a wait is given.
    TooManyRequests {
        /// What `Retry-After` says.
        retry_after_s: Option<u64>,
        /// Whether it says so as an HTTP date.
        #[serde(default)]
        as_date: bool,
    },
    /// A status before any effect; `html` gives the body of a proxy instead of the API's.
    Before {
        /// The status.
        status: u16,
        /// Whether the body is HTML.
        #[serde(default)]
        html: bool,
    },
    /// 503 with `X-Maintenance-Mode`, before any effect.
    Maintenance,
    /// 400 `Linode busy.`, before any effect.
    Busy,
    /// The connection is reset before any effect.
    ResetBefore,
    /// The request is done, then the connection is reset.
    ResetAfter,
    /// The request is done, then a proxy answers with this status.
    After {
        /// The status, such as 504.
        status: u16,
    },
    /// The request is done, and its answer waits this long.
    Hang {
        /// How long, on the virtual clock.
        virtual_s: u64,
    },
    /// The request is done, and half of its answer arrives.
    Truncate,
    /// The request is done, and the body of its answer trickles in for this long.
    SlowBody {
        /// How long, on the virtual clock.
        virtual_s: u64,
    },
    /// 400 before any effect: a quota, a region that is full.
    Refuse {
        /// The field that it is about.
        #[serde(default)]
        field: Option<String>,
        /// What is said.
        reason: String,
    },
    /// From this request on, its token is no token any more.
    TokenEnds,
    /// The connection is reset before any effect, and the API refuses others for this long.
    Down {
        /// How long, on the virtual clock.
        virtual_s: u64,
    },
    /// A list does not yet show what is younger than this.
    ListLag {
        /// How long, on the virtual clock.
        virtual_s: u64,
    },
    /// A list shows its items twice, as when something shifts pages.
    Duplicates,
    /// A list shows what ended within this time.
    ListGhosts {
        /// How long, on the virtual clock.
        virtual_s: u64,
    },
    /// So many entries came before a list's first one, or that many of the first are gone.
    PageShift {
        /// How many came; below zero, how many went.
        by: i64,
    },
    /// The jobs that the request begins fail.
    JobFails,
    /// The first job that the request begins takes this much longer.
    JobSlow {
        /// How long, on the virtual clock.
        virtual_s: u64,
    },
    /// What the request boots fails to boot.
    BootFails,
    /// What the request boots dies after this long, and the watchdog boots it again.
    BootDies {
        /// How long after it came up, on the virtual clock.
        virtual_s: u64,
    },
    /// An answer of the metadata service without its body.
    Empty,
    /// An answer of the metadata service with its body twice.
    Twice,
}

/// One rule: the first that fits a request and is not used up counts. It is for the metadata
/// services too: their paths begin with `/v1/`, and their label is the instance's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The method that it is about; any, where absent.
    #[serde(default)]
    pub method: Option<String>,
    /// The path below the version, where `*` stands for anything: `/linode/instances/*`.
    pub path: String,
    /// The `label` in the request's body (or of the instance), where `*` stands for anything.
    #[serde(default)]
    pub label: Option<String>,
    /// How many fitting requests pass first.
    #[serde(default)]
    pub skip: u32,
    /// How many requests it hits after that.
    #[serde(default = "once")]
    pub times: u32,
    /// Whether only one in so many of these is hit, by the seed's chance.
    #[serde(default)]
    pub one_in: Option<u64>,
    /// What goes wrong.
    pub kind: Kind,
}

fn once() -> u32 {
    1
}

impl Fault {
    /// Returns a fault of the next fitting request.
    pub fn once(method: &str, path: &str, kind: Kind) -> Self {
        Self {
            method: Some(method.into()),
            path: path.into(),
            label: None,
            skip: 0,
            times: 1,
            one_in: None,
            kind,
        }
    }

    /// Returns this fault, hitting so many requests.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }

    /// Returns this fault, after so many fitting requests.
    #[must_use]
    pub fn after(mut self, skip: u32) -> Self {
        self.skip = skip;
        self
    }

    fn fits(&self, method: &str, path: &str, label: Option<&str>) -> bool {
        self.method.as_deref().is_none_or(|it| it == method)
            && matches(&self.path, path)
            && (self.label.as_deref())
                .is_none_or(|it| label.is_some_and(|label| matches(it, label)))
    }
}

/// Returns the fault that this request meets, and counts it.
pub(crate) fn next(
    faults: &mut [Fault],
    chance: &mut Dice,
    method: &str,
    path: &str,
    label: Option<&str>,
) -> Option<Kind> {
    let fitting = |fault: &&mut Fault| fault.times > 0 && fault.fits(method, path, label);
    let fault = faults.iter_mut().find(fitting)?;
    if fault.skip > 0 {
        fault.skip -= 1;
        return None;
    }
    if fault
        .one_in
        .is_some_and(|it| chance.between(1, it.max(1)) > 1)
    {
        return None;
    }
    fault.times -= 1;
    Some(fault.kind.clone())
}

/// Returns what is answered to a request that meets a fault; `done` does what it asks for.
pub(crate) fn met(kind: Option<&Kind>, clock: &Clock, done: impl FnOnce() -> Reply) -> Reply {
    let fated = |reply: Reply, fate: Fate| Reply { fate, ..reply };
    match kind {
        Some(Kind::TooManyRequests {
            retry_after_s,
            as_date,
        }) => {
            let mut reply: Reply = Refusal::of(429, None, "Too many requests").into();
            if let Some(wait_s) = *retry_after_s {
                let text = match as_date {
                    true => http_date(clock.now_ms() + wait_s * 1_000),
                    false => wait_s.to_string(),
                };
                reply.headers.push(("Retry-After", text));
            }
            reply
        }
        Some(Kind::Before { status, html: true }) => Reply::html(*status),
        Some(Kind::Before { status, .. }) => {
            let why = match status {
                401 => "Invalid Token",
                404 => "Not found",
                408 => "Request timed out",
                _ => "Internal Server Error",
            };
            Refusal::of(*status, None, why).into()
        }
        Some(Kind::Refuse { field, reason }) => Refusal::of(400, field.as_deref(), reason).into(),
        Some(Kind::TokenEnds) => Refusal::of(401, None, "Invalid Token").into(),
        Some(Kind::Maintenance) => {
            let mut reply: Reply = Refusal::of(503, None, "Under maintenance").into();
            reply.headers.push(("X-Maintenance-Mode", "all".into()));
            reply
        }
        Some(Kind::Busy) => Refusal::busy().into(),
        Some(Kind::ResetBefore | Kind::Down { .. }) => {
            fated(Reply::text(500, "text/plain", ""), Fate::Reset)
        }
        Some(Kind::ResetAfter) => fated(done(), Fate::Reset),
        Some(Kind::Truncate) => fated(done(), Fate::Truncated),
        Some(Kind::After { status }) => {
            done();
            Reply::html(*status)
        }
        Some(Kind::Hang { virtual_s }) => Reply {
            wait: clock.real(virtual_s * 1_000),
            ..done()
        },
        Some(Kind::SlowBody { virtual_s }) => Reply {
            trickle: clock.real(virtual_s * 1_000),
            ..done()
        },
        Some(Kind::Empty) => Reply {
            body: String::new(),
            ..done()
        },
        Some(Kind::Twice) => {
            let reply = done();
            Reply {
                body: reply.body.repeat(2),
                ..reply
            }
        }
        // These change what is done, not what becomes of its answer.
        Some(
            Kind::ListLag { .. }
            | Kind::ListGhosts { .. }
            | Kind::Duplicates
            | Kind::PageShift { .. }
            | Kind::JobFails
            | Kind::JobSlow { .. }
            | Kind::BootFails
            | Kind::BootDies { .. },
        )
        | None => done(),
    }
}

/// Returns whether a text fits a pattern in which `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        assert!(matches("/linode/instances", "/linode/instances"));
        assert!(!matches("/linode/instances", "/linode/instances/7"));
        assert!(matches("/linode/instances/*", "/linode/instances/7/boot"));
        assert!(matches("/linode/*/boot", "/linode/instances/7/boot"));
        assert!(!matches("/linode/*/boot", "/linode/instances/7/reboot/x"));
    }

    #[test]
    fn a_rule_is_used_up() {
        let mut faults = [Fault {
            skip: 1,
            ..Fault::once("GET", "/a", Kind::Busy)
        }];
        let met: Vec<_> = (0..3)
            .map(|_| next(&mut faults, &mut Dice(1), "GET", "/a", None))
            .collect();
        assert_eq!(met, [None, Some(Kind::Busy), None]);
    }
}
