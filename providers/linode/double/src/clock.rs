//! Virtual time: it runs faster than the host's, and can be moved on by hand.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// When every account begins: a fixed moment, so that two runs with one seed agree.
const EPOCH_S: u64 = 1_767_225_600;

/// A clock that runs `scale` times faster than the host's.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    start: Instant,
    scale: u32,
    skipped_ms: u64,
}

impl Clock {
    pub(crate) fn new(scale: u32) -> Self {
        Self {
            start: Instant::now(),
            scale: scale.max(1),
            skipped_ms: 0,
        }
    }

    /// Returns the virtual time in milliseconds since 1970.
    pub(crate) fn now_ms(&self) -> u64 {
        let real_us = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let gone_ms = real_us.saturating_mul(u64::from(self.scale)) / 1_000;
        EPOCH_S * 1_000 + self.skipped_ms + gone_ms
    }

    /// Moves the clock on.
    pub(crate) fn advance(&mut self, by_ms: u64) {
        self.skipped_ms = self.skipped_ms.saturating_add(by_ms);
    }

    /// Returns how long a virtual duration takes on the host's clock.
    pub(crate) fn real(&self, virtual_ms: u64) -> Duration {
        Duration::from_micros(virtual_ms.saturating_mul(1_000) / u64::from(self.scale))
    }
}

/// Returns a moment as the `Date` header has it.
pub(crate) fn http_date(ms: u64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(ms / 1_000))
}

/// Returns a moment as the API writes it: UTC, and without a zone.
pub(crate) fn api_time(ms: u64) -> String {
    let seconds = ms / 1_000;
    let (year, month, day) = civil(seconds / 86_400);
    let of_day = seconds % 86_400;
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

/// Returns the date that is this many days after 1970-01-01, by Hinnant's `civil_from_days`.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// Returns the seed for a run that names none.
pub(crate) fn seed_of_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::from(since.subsec_nanos()) ^ since.as_secs())
}

/// Numbers that one seed always gives in the same order (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.roll() % (high.saturating_sub(low) + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_no_zone_and_know_leap_years() {
        assert_eq!(api_time(0), "1970-01-01T00:00:00");
        assert_eq!(api_time(1_709_210_096_000), "2024-02-29T12:34:56");
        assert_eq!(api_time(EPOCH_S * 1_000), "2026-01-01T00:00:00");
    }
}
