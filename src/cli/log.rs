//! Where the program's own log goes: nowhere, unless `GOBS_LOG` asks for it.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;

use gobs_model::Diagnostic;
use tracing_subscriber::EnvFilter;

use super::environment::Environment;

/// Starts logging as `GOBS_LOG` (`debug`, or `gobs=trace,ocapn=info`) says, to stderr or to the
/// file that `GOBS_LOG_PATH` names.
///
/// # Errors
/// When the filter cannot be read or the file cannot be opened.
pub(super) fn start(env: &Environment) -> Result<(), Box<Diagnostic>> {
    let Some(filter) = env.get("GOBS_LOG") else {
        return Ok(());
    };
    let text = filter.to_string_lossy();
    let filter = EnvFilter::builder().parse(&*text).map_err(|error| {
        Diagnostic::error(
            "Bad log filter",
            format!("GOBS_LOG is {text:?}, which cannot be read: {error}."),
        )
        .hint("Use a level (error, warn, info, debug, trace) or a list such as gobs=debug.")
    })?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter);
    let started = match env.get("GOBS_LOG_PATH") {
        Some(path) => {
            // A log may name machines and addresses: it is its owner's.
            let mut options = OpenOptions::new();
            let file = options.create(true).append(true).mode(0o600).open(path);
            let file = file.map_err(|error| {
                Diagnostic::error(
                    "Log file cannot be opened",
                    format!("GOBS_LOG_PATH is {path:?}: {error}."),
                )
            })?;
            logs.with_ansi(false)
                .with_writer(Mutex::new(file))
                .try_init()
        }
        None => logs.with_ansi(false).with_writer(io::stderr).try_init(),
    };
    // Only a second call in one process can fail, and then the first one's log goes on.
    drop(started);
    Ok(())
}
