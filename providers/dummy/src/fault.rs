//! Faults on demand: what a test asks the provider to do wrong.
//!
//! A text of `VERB:KIND[-once][=VALUE]`, separated by commas or spaces, in the machine's `fault`
//! attribute or the provider's `faults` setting:
//!
//! | kind | what happens |
//! |---|---|
//! | `fail`, `deny`, `busy[=100ms]` | that error, before any effect |
//! | `slow=DURATION` | the verb waits before its effect |
//! | `hang`, `hang-after` | no answer until cancelled, before or after the effect |
//! | `lose-request`, `lose-answer` | in doubt, without or with the effect |
//! | `lag=DURATION` | `find` or `list` does not show a machine until it is that old |
//! | `kill=POINT` | the calling process dies by SIGKILL at that [`Point`] |
//!
//! With `-once` a fault happens the first time only, also across processes.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use gobs_provider::Error;

/// How long `busy` without a value asks to wait: short, since only tests ask for it.
const BUSY_DEFAULT: Duration = Duration::from_millis(100);

macro_rules! words {
    (
        $(#[$doc:meta])*
        $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// Every one of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Returns the word for it in a fault's text.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            fn parse(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|it| it.word() == word)
            }

            fn words() -> String {
                Self::ALL.iter().map(|it| it.word()).collect::<Vec<_>>().join(", ")
            }
        }
    };
}

words! {
    /// The verbs that a fault can be about.
    Verb {
        /// `Provider::create`
        Create = "create",
        /// `Provider::find`
        Find = "find",
        /// `Provider::read`
        Read = "read",
        /// `Provider::update`
        Update = "update",
        /// `Provider::delete`
        Delete = "delete",
        /// `Provider::list`
        List = "list",
    }
}

words! {
    /// The moments at which a crash leaves something different behind.
    Point {
        /// Everything of a new machine is written, but not in its place yet.
        Staged = "staged",
        /// A new machine is in its place: it exists.
        Placed = "placed",
        /// The agent runs, and the record does not know it.
        Launched = "launched",
        /// The record knows the agent.
        Settled = "settled",
        /// A change in place is recorded, and the machine does not know it.
        Recorded = "recorded",
        /// The machine's own description is changed, and the agent was not told.
        Described = "described",
        /// A rebuild is recorded; everything old still runs.
        Accepted = "accepted",
        /// A rebuild has written the disk anew; nothing runs.
        Wiped = "wiped",
        /// A deletion is recorded; everything still runs.
        Doomed = "doomed",
        /// Nothing of a doomed machine runs.
        Stopped = "stopped",
        /// A doomed machine is out of its place, but not erased.
        Displaced = "displaced",
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Fail,
    Deny,
    Busy(Duration),
    Slow(Duration),
    Hang,
    HangAfter,
    LoseRequest,
    LoseAnswer,
    Lag(Duration),
    Kill(Point),
}

/// One fault that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) verb: Verb,
    pub(crate) kind: Kind,
    once: bool,
    text: String,
}

/// Why a text asks for no fault.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a fault: {why}")]
pub(crate) struct FaultError {
    text: String,
    why: String,
}

/// Returns the faults that a text asks for.
pub(crate) fn parse(text: &str) -> Result<Vec<Fault>, FaultError> {
    text.split([',', ' ', '\n', '\t'])
        .filter(|word| !word.is_empty())
        .map(str::parse)
        .collect()
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let wrong = |why: String| FaultError {
            text: text.into(),
            why,
        };
        let (verb, rest) = text
            .split_once(':')
            .ok_or_else(|| wrong("it reads VERB:KIND[-once][=VALUE]".into()))?;
        let verb =
            Verb::parse(verb).ok_or_else(|| wrong(format!("the verbs are {}", Verb::words())))?;
        let (kind, value) = match rest.split_once('=') {
            Some((kind, value)) => (kind, Some(value)),
            None => (rest, None),
        };
        let (kind, once) = match kind.strip_suffix("-once") {
            Some(kind) => (kind, true),
            None => (kind, false),
        };
        let time = || {
            value
                .and_then(duration)
                .ok_or_else(|| wrong("its value is a time such as 200ms or 2s".into()))
        };
        let kind = match kind {
            "busy" if value.is_none() => Kind::Busy(BUSY_DEFAULT),
            "busy" => Kind::Busy(time()?),
            "slow" => Kind::Slow(time()?),
            "lag" => Kind::Lag(time()?),
            "kill" => Kind::Kill(
                value
                    .and_then(Point::parse)
                    .ok_or_else(|| wrong(format!("its value is one of {}", Point::words())))?,
            ),
            _ if value.is_some() => return Err(wrong("this kind takes no value".into())),
            "fail" => Kind::Fail,
            "deny" => Kind::Deny,
            "hang" => Kind::Hang,
            "hang-after" => Kind::HangAfter,
            "lose-request" => Kind::LoseRequest,
            "lose-answer" => Kind::LoseAnswer,
            _ => {
                return Err(wrong(
                    "the kinds are fail, deny, busy, slow, hang, hang-after, lose-request, \
                     lose-answer, lag, kill"
                        .into(),
                ));
            }
        };
        Ok(Self {
            verb,
            kind,
            once,
            text: text.into(),
        })
    }
}

/// The faults that hold for one call, and which of them have happened.
pub(crate) struct Faults<'a> {
    pub(crate) faults: Vec<Fault>,
    pub(crate) ledger: &'a Ledger,
    /// Whom `-once` counts for: a machine's address, or the provider.
    pub(crate) who: String,
}

impl Faults<'_> {
    /// Does what is asked for before the effect.
    pub(crate) async fn before(&self, verb: Verb) -> Result<(), Error> {
        for fault in self.of(verb) {
            let message = || format!("the fault {} was asked for", fault.text);
            match fault.kind {
                Kind::Lag(_) | Kind::Kill(_) | Kind::LoseAnswer | Kind::HangAfter => {}
                _ if !self.ledger.fires(&self.who, fault) => {}
                Kind::Fail => return Err(Error::rejected(message())),
                Kind::Deny => return Err(Error::Denied(message())),
                Kind::Busy(after) => {
                    let message = message();
                    return Err(Error::Busy { message, after });
                }
                Kind::LoseRequest => return Err(Error::InDoubt(message())),
                Kind::Slow(time) => tokio::time::sleep(time).await,
                Kind::Hang => std::future::pending().await,
            }
        }
        Ok(())
    }

    /// Does what is asked for after the effect.
    pub(crate) async fn after(&self, verb: Verb) -> Result<(), Error> {
        for fault in self.of(verb) {
            match fault.kind {
                Kind::LoseAnswer if self.ledger.fires(&self.who, fault) => {
                    return Err(Error::InDoubt(format!(
                        "the fault {} was asked for",
                        fault.text
                    )));
                }
                Kind::HangAfter if self.ledger.fires(&self.who, fault) => {
                    std::future::pending::<()>().await;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns the crash that is asked for, for the work itself to run into.
    pub(crate) fn crash(&self, verb: Verb) -> Option<Point> {
        self.of(verb).find_map(|fault| match fault.kind {
            Kind::Kill(point) if self.ledger.fires(&self.who, fault) => Some(point),
            _ => None,
        })
    }

    /// Returns how old a machine must be to be shown.
    pub(crate) fn lag(&self, verb: Verb) -> Duration {
        self.of(verb)
            .filter_map(|fault| match fault.kind {
                Kind::Lag(time) => Some(time),
                _ => None,
            })
            .max()
            .unwrap_or_default()
    }

    fn of(&self, verb: Verb) -> impl Iterator<Item = &Fault> {
        self.faults.iter().filter(move |fault| fault.verb == verb)
    }
}

/// Dies, where the call was asked to die at this point.
pub(crate) fn reach(crash: Option<Point>, here: Point) {
    if crash == Some(here) {
        tracing::warn!(point = here.word(), "dying, as a fault asks");
        // Nothing after SIGKILL to oneself runs, so there is no failure to handle.
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Which `-once` faults have happened.
pub(crate) enum Ledger {
    /// A file each, in this directory, so that other processes know.
    Directory(PathBuf),
    /// For as long as this process lives: simulated machines leave no files.
    Memory(Mutex<BTreeSet<(String, String)>>),
}

impl Ledger {
    /// Forgets what has happened to a machine.
    pub(crate) fn forget(&self, who: &str) {
        match self {
            Self::Memory(spent) => spent
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .retain(|(whom, _)| whom != who),
            // What cannot be removed makes a test's fault happen once too seldom.
            Self::Directory(root) => drop(std::fs::remove_dir_all(root.join(place(who)))),
        }
    }

    fn fires(&self, who: &str, fault: &Fault) -> bool {
        if !fault.once {
            return true;
        }
        match self {
            Self::Memory(spent) => spent
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert((who.into(), fault.text.clone())),
            // A ledger that cannot be written spends every fault, so that a test ends.
            Self::Directory(root) => {
                let place = root.join(place(who));
                std::fs::create_dir_all(&place).is_ok()
                    && std::fs::File::create_new(place.join(fault.text.replace(':', "-"))).is_ok()
            }
        }
    }
}

/// Returns the name of the directory for a machine's faults: an address may have any character.
fn place(who: &str) -> String {
    let mut hasher = DefaultHasher::new();
    who.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let count: u32 = digits.parse().ok()?;
    match &text[digits.len()..] {
        "ms" => Some(Duration::from_millis(count.into())),
        "s" => Some(Duration::from_secs(count.into())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&[(Verb, Kind, bool)], &str>) {
        let seen = parse(text)
            .map(|faults| {
                faults
                    .iter()
                    .map(|it| (it.verb, it.kind, it.once))
                    .collect::<Vec<_>>()
            })
            .map_err(|error| error.to_string());
        assert_eq!(seen, expected.map(<[_]>::to_vec).map_err(str::to_owned));
    }

    #[test]
    fn a_text_asks_for_faults() {
        let second = Duration::from_secs(1);
        check("", Ok(&[]));
        check(
            "create:fail-once, delete:busy=1s list:lag=1s",
            Ok(&[
                (Verb::Create, Kind::Fail, true),
                (Verb::Delete, Kind::Busy(second), false),
                (Verb::List, Kind::Lag(second), false),
            ]),
        );
        check(
            "create:kill-once=launched,update:hang-after-once",
            Ok(&[
                (Verb::Create, Kind::Kill(Point::Launched), true),
                (Verb::Update, Kind::HangAfter, true),
            ]),
        );
    }

    #[test]
    fn a_wrong_text_says_what_would_be_right() {
        let form = "it reads VERB:KIND[-once][=VALUE]";
        check("fail", Err(&format!("\"fail\" is not a fault: {form}")));
        let verbs = "the verbs are create, find, read, update, delete, list";
        check(
            "make:fail",
            Err(&format!("\"make:fail\" is not a fault: {verbs}")),
        );
        let time = "its value is a time such as 200ms or 2s";
        for text in [
            "create:slow",
            "create:slow=1h",
            "create:slow=é",
            "create:slow=99999999999s",
        ] {
            check(text, Err(&format!("{text:?} is not a fault: {time}")));
        }
        let value = "this kind takes no value";
        check(
            "create:fail=1",
            Err(&format!("\"create:fail=1\" is not a fault: {value}")),
        );
    }

    #[test]
    fn a_fault_that_happens_once_is_spent_for_other_processes_too() {
        let home = tempfile::tempdir().expect("a directory");
        let fault: Fault = "create:fail-once".parse().expect("a fault");
        let ledger = || Ledger::Directory(home.path().join("faults"));
        assert!(ledger().fires("machine.db", &fault));
        assert!(!ledger().fires("machine.db", &fault));
        assert!(ledger().fires("machine.app", &fault));
    }
}
