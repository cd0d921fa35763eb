//! Faults on demand: which request goes wrong, and how.

use serde::{Deserialize, Serialize};

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
    /// A list does not yet show what is younger than this.
    ListLag {
        /// How long, on the virtual clock.
        virtual_s: u64,
    },
    /// A list shows its items twice, as when something shifts pages.
    Duplicates,
    /// The jobs that the request begins fail.
    JobFails,
}

/// One rule: the first that fits a request and is not used up counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The method that it is about; any, where absent.
    #[serde(default)]
    pub method: Option<String>,
    /// The path below the version, where `*` stands for anything: `/linode/instances/*`.
    pub path: String,
    /// The `label` in the request's body, where `*` stands for anything.
    #[serde(default)]
    pub label: Option<String>,
    /// How many fitting requests pass first.
    #[serde(default)]
    pub skip: u32,
    /// How many requests it hits after that.
    #[serde(default = "once")]
    pub times: u32,
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
            kind,
        }
    }

    /// Returns this fault, hitting so many requests.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = times;
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
    fault.times -= 1;
    Some(fault.kind.clone())
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
            .map(|_| next(&mut faults, "GET", "/a", None))
            .collect();
        assert_eq!(met, [None, Some(Kind::Busy), None]);
    }
}
