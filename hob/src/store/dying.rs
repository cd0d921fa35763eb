//! Where tests of crash safety kill the hob: at one of its steps, counted from when they ask.
//!
//! A debug build looks for a number in the file `die-at` beside the state, counts it down with
//! each step, and dies when it is down. A release build has nothing of this.

use std::path::Path;

/// Dies here, as by SIGKILL, where a test has asked for it. Steps are taken one at a time.
#[cfg(debug_assertions)]
pub(super) fn step(state: &Path) {
    use std::fs::{File, remove_file};
    use std::io::{Read, Seek, Write};

    use rustix::process::{Signal, getpid, kill_process};

    let path = state.with_file_name("die-at");
    // Never made here: a test that takes it away must not find it again.
    let Ok(mut file) = File::options().read(true).write(true).open(&path) else {
        return;
    };
    let mut text = String::new();
    let left = file
        .read_to_string(&mut text)
        .ok()
        .and_then(|_| text.trim().parse::<u64>().ok());
    match left {
        Some(left @ 2..) => {
            let emptied = file.set_len(0).and_then(|()| file.rewind());
            let counted = emptied.and_then(|()| write!(file, "{}", left - 1));
            if let Err(error) = counted {
                tracing::error!(%error, "a step is not counted");
            }
        }
        // Whoever takes it away has the say, so that a test knows whether this lives. No
        // destructor may run, as none would.
        Some(1) if remove_file(&path).is_ok() => {
            let _ = kill_process(getpid(), Signal::KILL);
        }
        _ => {}
    }
}

#[cfg(not(debug_assertions))]
pub(super) fn step(_: &Path) {}
