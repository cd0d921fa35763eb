//! The disks of a machine: the one to swap to has the size that is asked for, and the one with the
//! system has the rest. They change while the machine is off. A rebuild writes both anew, and
//! takes no size.

use gobs_model::{Known, Value};
use gobs_provider::{Error, Objection, Progress, Proposal};
use serde_json::{Value as Json, json};

use crate::jobs::Job;
use crate::machine::{Machines, path_of};
use crate::observe::{OFF, tags};

/// How large a swap disk is where nobody says.
const SWAP_DEFAULT_MB: u64 = 512;

/// How little is left to the disk with the system: no image of Linode's fits into less.
const SYSTEM_MB_MIN: u64 = 1_000;

/// How often the disks are compared with what is asked: once for each of two, once to see that it
/// is so, and once more for each job of a run that died, of which there is one at a time.
const ROUNDS_MAX: u32 = 4;

/// What to do where a swap disk cannot be as it is asked for.
const BY_HAND: &str = "set swap_size to what it is; or make the machine anew, without its block \
                       for one apply";

/// One disk that changes: its identifier, and its size in MB afterwards.
#[derive(Debug, PartialEq)]
struct Step {
    disk: u64,
    size: u64,
    is_swap: bool,
}

/// Returns the size of the swap disk that is asked for.
pub(crate) fn swap_of(wanted: &Known) -> Option<u64> {
    let asked = wanted.get("swap_size").and_then(Value::as_i64);
    asked.and_then(|it| u64::try_from(it).ok())
}

impl Machines {
    /// Gives a machine's swap disk the size that is asked for. What a run before this one has done
    /// of it is not done again.
    pub(crate) async fn set_swap(
        &self,
        id: &str,
        wanted: &Known,
        progress: &Progress,
    ) -> Result<(), Error> {
        let Some(asked) = swap_of(wanted) else {
            return Ok(());
        };
        let is_paused = tags(&self.there(id).await?).any(|tag| tag == OFF);
        let steps = self.disk_steps(id, asked).await?;
        if !is_paused && steps.is_empty() {
            return Ok(());
        }
        let ran = self.pause(id, progress).await?;
        let done = self.resize_disks(id, asked, progress).await;
        // Whatever came of it, the machine is not left off.
        let on = wanted.get("booted").and_then(Value::as_bool);
        let resumed = self.resume(id, on.unwrap_or(ran), progress).await;
        done.and(resumed)
    }

    async fn disk_steps(&self, id: &str, asked: u64) -> Result<Vec<Step>, Error> {
        let path = format!("{}/disks", path_of(id)?);
        let disks = self.api.list(&path, None).await?;
        let all = self.there(id).await?["specs"]["disk"].as_u64();
        steps(&disks, all.unwrap_or_default(), asked).map_err(refused)
    }

    /// Resizes one disk after the other. What is left is found anew each time: a job of a run that
    /// died may have ended meanwhile.
    async fn resize_disks(&self, id: &str, asked: u64, progress: &Progress) -> Result<(), Error> {
        for _ in 0..ROUNDS_MAX {
            let Some(step) = self.disk_steps(id, asked).await?.into_iter().next() else {
                return Ok(());
            };
            let Step { disk, size, .. } = step;
            let what = if step.is_swap { "swap disk" } else { "disk" };
            progress(format!("makes its {what} {size} MB large"));
            let job = Job {
                id,
                verb: &format!("disks/{disk}/resize"),
                body: json!({"size": size}),
                event: "disk_resize",
            };
            let Err(error) = self.api.run(&job, progress).await else {
                continue;
            };
            let is_so = !self.disk_steps(id, asked).await?.contains(&step);
            return Err(match error {
                Error::Rejected { .. } if is_so => continue,
                Error::Rejected { message, .. } if !step.is_swap => refused(format!(
                    "{message}; the disk with the system is to have {size} MB, which must be more \
                     than the files on it take: remove some, or set a smaller swap_size"
                )),
                other => other,
            });
        }
        let why = format!("the disks of Linode {id} do not become as asked");
        Err(Error::InDoubt(why))
    }
}

fn refused(message: String) -> Error {
    Error::Rejected {
        message,
        attribute: Some("swap_size".into()),
    }
}

/// Returns what makes the disks as they are to be: what becomes smaller comes first, since the
/// machine has no more than `all`.
fn steps(disks: &[Json], all: u64, asked: u64) -> Result<Vec<Step>, String> {
    let is_swap = |it: &&Json| it["filesystem"] == "swap";
    let size = |it: &Json| it["size"].as_u64().unwrap_or_default();
    let swap = disks
        .iter()
        .filter(is_swap)
        .min_by_key(|it| it["id"].as_u64());
    let rest = disks
        .iter()
        .filter(|it| !is_swap(it))
        .max_by_key(|it| size(it));
    let (swap, rest) = match (swap, rest) {
        (None, _) if asked == 0 => return Ok(Vec::new()),
        (Some(swap), Some(rest)) if asked > 0 => (swap, rest),
        (None, _) => return Err("it was made without a swap disk, and gets none any more".into()),
        _ => return Err("its swap disk can change its size, and is not taken away".into()),
    };
    let others: u64 = disks.iter().map(size).sum::<u64>() - size(swap) - size(rest);
    let left = all.saturating_sub(others + asked);
    let step = |of: &Json, size, is_swap| Step {
        disk: of["id"].as_u64().unwrap_or_default(),
        size,
        is_swap,
    };
    let mut steps = [(swap, asked, true), (rest, left, false)].to_vec();
    if asked > size(swap) {
        steps.reverse();
    }
    let steps = steps.into_iter().filter(|(of, to, _)| size(of) != *to);
    Ok(steps
        .map(|(of, to, is_swap)| step(of, to, is_swap))
        .collect())
}

/// Returns why a machine cannot have the swap disk that is asked for.
pub(crate) fn of_swap(proposal: &Proposal) -> Option<Objection> {
    let before = proposal.before.as_ref().filter(|_| !proposal.is_new)?;
    let asked = proposal.wanted.get("swap_size").and_then(Value::as_i64)?;
    let was = before.attributes.get("swap_size").and_then(Value::as_i64);
    let was = was.unwrap_or_else(|| i64::try_from(SWAP_DEFAULT_MB).unwrap_or_default());
    let disk = before.attributes.get("disk").and_then(Value::as_i64);
    let object = |why: &str, hint: &str| Some(Objection::new("swap_size", why.into(), hint));
    let room = disk.map(|all| all - i64::try_from(SYSTEM_MB_MIN).unwrap_or_default());
    match (was, asked) {
        (was, asked) if was == asked => None,
        (_, ..0) => object("a size is no less than 0", "set another size"),
        (0, _) => object(
            "it was made without a swap disk, and gets none any more",
            BY_HAND,
        ),
        (_, 0) => object(
            "its swap disk can change its size, and is not taken away",
            BY_HAND,
        ),
        (_, asked) if room.is_some_and(|room| asked > room) => {
            let why = format!(
                "of its {} MB, {asked} MB to swap to leave no room for the system",
                disk.unwrap_or_default()
            );
            object(&why, "set a smaller swap_size, or a larger type first")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_smaller_comes_first_and_nothing_is_done_twice() {
        let disks = |rest: u64, swap: u64| {
            [
                json!({"id": 1, "filesystem": "ext4", "size": rest}),
                json!({"id": 2, "filesystem": "swap", "size": swap}),
            ]
        };
        let check = |rest, swap, asked, expected: &[(u64, u64)]| {
            let steps = steps(&disks(rest, swap), 10_000, asked).expect("possible");
            let seen: Vec<_> = steps.iter().map(|it| (it.disk, it.size)).collect();
            assert_eq!(seen, expected);
        };
        check(9_488, 512, 512, &[]);
        check(9_488, 512, 1_000, &[(1, 9_000), (2, 1_000)]);
        check(9_000, 512, 1_000, &[(2, 1_000)]);
        check(9_000, 1_000, 512, &[(2, 512), (1, 9_488)]);
        check(9_000, 512, 512, &[(1, 9_488)]);
        let none = [json!({"id": 1, "filesystem": "ext4", "size": 10_000})];
        assert_eq!(steps(&none, 10_000, 0), Ok(Vec::new()));
        assert!(steps(&none, 10_000, 512).is_err());
        assert!(steps(&disks(9_488, 512), 10_000, 0).is_err());
    }
}
