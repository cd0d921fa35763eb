//! How fast the API may be asked: its windows as its headers tell them, so that what it would
//! refuse is not sent.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::HeaderMap;
use tokio::sync::watch;

/// How long a window is waited for when no header tells: the API's longest.
const WINDOW: Duration = Duration::from_secs(60);

/// What is added to a window's end: the headers count in whole seconds.
const MARGIN: Duration = Duration::from_secs(1);

/// The longest that an answer may keep requests back: no window of the API is near it, and a
/// header that says more is wrong.
const WAIT_MAX: Duration = Duration::from_hours(1);

/// The least that a limit is where the API's time runs faster than this host's.
const LIMIT_MIN: Duration = Duration::from_secs(60);

/// What the API counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// Creating instances.
    Create,
    /// Creating volumes.
    Volume,
    /// Paged collections.
    List,
    /// All else.
    Other,
}

/// The API's time: in tests it runs faster than the host's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Time {
    scale: u32,
}

impl Time {
    pub(crate) fn new(scale: u32) -> Self {
        let scale = scale.max(1);
        Self { scale }
    }

    /// Returns how long the API's duration takes here.
    pub(crate) fn here(self, duration: Duration) -> Duration {
        duration / self.scale
    }

    /// Returns how long something that the API does is waited for at most. Where the API's time
    /// runs faster, what asks and what answers still need this host's.
    pub(crate) fn limit(self, duration: Duration) -> Duration {
        self.here(duration).max(duration.min(LIMIT_MIN))
    }

    pub(crate) async fn sleep(self, duration: Duration) {
        tokio::time::sleep(self.here(duration)).await;
    }
}

/// The windows of one token.
#[derive(Debug)]
pub(crate) struct Pace {
    time: Time,
    windows: Mutex<HashMap<Class, Window>>,
    changes: watch::Sender<()>,
}

/// One class's window.
#[derive(Debug, Default)]
struct Window {
    /// How many requests a window has, once an answer told.
    limit: Option<i64>,
    /// How many are left, before those that are on their way.
    remaining: i64,
    /// The end as the API wrote it: windows are told apart by it.
    reset_s: u64,
    /// The end here; nothing once it has passed.
    ends: Option<Instant>,
    /// Nothing goes before this.
    held_until: Option<Instant>,
    in_flight: i64,
}

/// Leave to send one request; ends with its answer, or without one.
#[derive(Debug)]
pub(crate) struct Permit<'a> {
    pace: &'a Pace,
    class: Class,
    is_told: bool,
}

impl Pace {
    pub(crate) fn new(time: Time) -> Self {
        let windows = Mutex::new(HashMap::new());
        Self {
            time,
            windows,
            changes: watch::Sender::new(()),
        }
    }

    /// Waits until the API will take one more request of a class.
    pub(crate) async fn permit(&self, class: Class) -> Permit<'_> {
        loop {
            let mut changes = self.changes.subscribe();
            let now = Instant::now();
            let wait = {
                let mut windows = self.windows();
                let window = windows.entry(class).or_default();
                match window.wait(now) {
                    None => {
                        window.in_flight += 1;
                        return Permit {
                            pace: self,
                            class,
                            is_told: false,
                        };
                    }
                    Some(wait) => wait,
                }
            };
            // Either the window ends, or an answer says that there is room.
            let _ = tokio::time::timeout(wait, changes.changed()).await;
        }
    }

    /// Keeps a class back for so much of the API's time.
    pub(crate) fn hold(&self, class: Class, duration: Duration) {
        let until = Instant::now() + self.time.here(duration);
        let mut windows = self.windows();
        let window = windows.entry(class).or_default();
        window.held_until = window.held_until.max(Some(until));
    }

    fn windows(&self) -> MutexGuard<'_, HashMap<Class, Window>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    /// Returns how long to wait before looking again, or nothing if a request may go now.
    fn wait(&mut self, now: Instant) -> Option<Duration> {
        if let Some(until) = self.held_until.filter(|until| *until > now) {
            return Some(until - now);
        }
        self.held_until = None;
        let Some(limit) = self.limit else {
            // The first request alone finds out what the limit is.
            return (self.in_flight > 0).then_some(WINDOW);
        };
        if self.ends.is_some_and(|ends| ends <= now) {
            self.ends = None;
            self.remaining = limit;
        }
        if self.remaining > self.in_flight {
            return None;
        }
        Some(self.ends.map_or(WINDOW, |ends| ends - now))
    }
}

impl Permit<'_> {
    /// Takes in what an answer's headers say.
    pub(crate) fn told(&mut self, headers: &HeaderMap) {
        let number = |name| headers.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
        let (Some(limit), Some(left)) =
            (number("x-ratelimit-limit"), number("x-ratelimit-remaining"))
        else {
            return;
        };
        self.is_told = true;
        let clamp = |it: u64| i64::try_from(it).unwrap_or(i64::MAX);
        let (limit, left) = (clamp(limit).max(1), clamp(left));
        let mut windows = self.pace.windows();
        let window = windows.entry(self.class).or_default();
        let is_first = window.limit.replace(limit).is_none();
        match number("x-ratelimit-reset") {
            Some(reset_s) if is_first || reset_s > window.reset_s => {
                let wait = at_most(reset_s.saturating_sub(date_s(headers))) + MARGIN;
                window.reset_s = reset_s;
                window.ends = Some(Instant::now() + self.pace.time.here(wait));
                window.remaining = left;
            }
            // An answer out of a window that is over says nothing of the one that is open.
            Some(_) if window.ends.is_none() => window.remaining -= 1,
            Some(_) => window.remaining = window.remaining.min(left),
            None => {
                window.remaining = left;
                window.ends = Some(Instant::now() + self.pace.time.here(WINDOW));
            }
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut windows = self.pace.windows();
        let window = windows.entry(self.class).or_default();
        window.in_flight -= 1;
        if !self.is_told {
            window.remaining -= 1;
            if window.limit.is_some() && window.remaining <= 0 && window.ends.is_none() {
                window.ends = Some(Instant::now() + self.pace.time.here(WINDOW));
            }
        }
        drop(windows);
        self.pace.changes.send_replace(());
    }
}

/// Returns how long an answer of 429 asks to wait.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("retry-after")?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(at_most(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    let at_s = at.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    Some(at_most(at_s.saturating_sub(date_s(headers))))
}

fn at_most(seconds: u64) -> Duration {
    Duration::from_secs(seconds).min(WAIT_MAX)
}

/// Returns the API's own time, so that a wrong clock here does no harm.
fn date_s(headers: &HeaderMap) -> u64 {
    let told = headers.get("date").and_then(|it| it.to_str().ok());
    let told = told.and_then(|it| httpdate::parse_http_date(it).ok());
    let since = told
        .unwrap_or_else(SystemTime::now)
        .duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_header_keeps_requests_back_for_ever() {
        let pace = Pace::new(Time::new(1));
        let endless = u64::MAX.to_string();
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-ratelimit-limit", "10"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", &endless),
            ("retry-after", &endless),
        ] {
            headers.insert(name, value.parse().expect("a value"));
        }
        pace.permit(Class::Other).await.told(&headers);
        let wait = retry_after(&headers).expect("a time");
        assert_eq!(wait, WAIT_MAX);
        pace.hold(Class::Other, wait);
        let mut windows = pace.windows();
        let window = windows.get_mut(&Class::Other).expect("a window");
        let held = window.wait(Instant::now()).expect("it is held back");
        assert!(held <= WAIT_MAX);
        let ends = window.ends.expect("the window ends");
        assert!(ends <= Instant::now() + WAIT_MAX + MARGIN);
    }
}
