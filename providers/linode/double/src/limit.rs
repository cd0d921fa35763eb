//! Rate limits: fixed windows per token and class, as the API's headers tell them.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// What is counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Creating instances.
    Create,
    /// Paged collections.
    List,
    /// The list of images.
    Images,
    /// Creating volumes.
    Volumes,
    /// All else.
    Other,
}

/// How much a class allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// How many requests.
    pub requests: u64,
    /// In how many seconds.
    pub window_s: u64,
}

/// What every class allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// [`Class::Create`].
    pub create: Limit,
    /// [`Class::List`].
    pub list: Limit,
    /// [`Class::Images`].
    pub images: Limit,
    /// [`Class::Volumes`].
    pub volumes: Limit,
    /// [`Class::Other`].
    pub other: Limit,
}

impl Default for Limits {
    /// Returns what the API allowed in 2026-09.
    fn default() -> Self {
        let limit = |requests, window_s| Limit { requests, window_s };
        Self {
            create: limit(20, 15),
            list: limit(200, 60),
            images: limit(20, 60),
            volumes: limit(100, 60),
            other: limit(1_600, 60),
        }
    }
}

/// What the headers of one answer say.
pub(crate) struct Count {
    pub(crate) limit: u64,
    pub(crate) remaining: u64,
    pub(crate) reset_s: u64,
    /// Whether this request is over the limit.
    pub(crate) refused: bool,
}

/// The windows of all tokens.
#[derive(Debug, Default)]
pub(crate) struct Windows(HashMap<(String, Class), (u64, u64)>);

impl Windows {
    /// Counts a request; windows begin at multiples of their length.
    pub(crate) fn count(
        &mut self,
        limits: &Limits,
        token: &str,
        class: Class,
        now_ms: u64,
    ) -> Count {
        let limit = match class {
            Class::Create => limits.create,
            Class::List => limits.list,
            Class::Images => limits.images,
            Class::Volumes => limits.volumes,
            Class::Other => limits.other,
        };
        let window_s = limit.window_s.max(1);
        let window = now_ms / 1_000 / window_s;
        let slot = self.0.entry((token.into(), class)).or_insert((window, 0));
        if slot.0 != window {
            *slot = (window, 0);
        }
        slot.1 += 1;
        Count {
            limit: limit.requests,
            remaining: limit.requests.saturating_sub(slot.1),
            reset_s: (window + 1) * window_s,
            refused: slot.1 > limit.requests,
        }
    }
}
