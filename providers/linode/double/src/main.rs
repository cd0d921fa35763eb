//! `gobs-linode-double`: the double as a process, for anybody's tests.

use std::process::ExitCode;

use gobs_linode_double::{Double, Guest, Options};

const HELP: &str = "\
Usage: gobs-linode-double [--port N] [--admin-port N] [--scale N] [--seed N] [--token TEXT]...
                          [--guest COMMAND [--guest-dir DIR]]

A local double of the Linode API. It prints its addresses as one line of JSON and runs until it
is interrupted. --scale says how much faster its clock runs (1000); --token adds a token for
everything, or TEXT=SCOPES (double). --guest runs a shell command inside each instance while it
runs, with GUEST_METADATA_URL, GUEST_DIR (its disk, below DIR), GUEST_ID and GUEST_LABEL set.

The admin's address takes faults (POST and DELETE /faults), time (POST /clock {\"advance_s\": 60}),
an outage (POST /down {\"virtual_s\": 60}), limits, tokens, the grants of a restricted user
(PUT /grants), and changes that nobody asked the API for (PUT and DELETE /instances/ID);
GET /instances and /stats show what is there.";

#[tokio::main]
async fn main() -> ExitCode {
    let options = match options(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => return say(HELP),
        Err(why) => return fail(&format!("{why}\n\n{HELP}")),
    };
    let double = match Double::start(options) {
        Ok(double) => double,
        Err(error) => return fail(&format!("cannot listen: {error}")),
    };
    let addresses = serde_json::json!({
        "url": double.url(), "admin_url": double.admin_url(), "seed": double.seed(),
    });
    say(&addresses.to_string());
    match tokio::signal::ctrl_c().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("cannot wait for an interrupt: {error}")),
    }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let mut options = Options::default();
    let mut tokens = std::collections::BTreeMap::new();
    let (mut guest, mut directory) = (None, std::path::PathBuf::from("linodes"));
    while let Some(name) = arguments.next() {
        if matches!(name.as_str(), "-h" | "--help") {
            return Ok(None);
        }
        let value = arguments
            .next()
            .ok_or_else(|| format!("{name} needs a value"))?;
        let wrong = || format!("{name} cannot be {value:?}");
        match name.as_str() {
            "--port" => options.port = value.parse().map_err(|_| wrong())?,
            "--admin-port" => options.admin_port = value.parse().map_err(|_| wrong())?,
            "--scale" => options.scale = value.parse().map_err(|_| wrong())?,
            "--seed" => options.seed = Some(value.parse().map_err(|_| wrong())?),
            "--guest" => guest = Some(value),
            "--guest-dir" => directory = value.into(),
            "--token" => {
                let (token, scopes) = value.split_once('=').unwrap_or((&value, "*"));
                tokens.insert(token.to_owned(), scopes.to_owned());
            }
            _ => return Err(format!("there is no option {name:?}")),
        }
    }
    options.guest = guest.map(|command| Guest {
        command,
        directory: std::path::absolute(&directory).unwrap_or(directory),
    });
    if !tokens.is_empty() {
        options.tokens = tokens;
    }
    Ok(Some(options))
}

fn say(text: &str) -> ExitCode {
    use std::io::Write as _;
    // Nobody listens any more: there is nothing else to say it to.
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn fail(text: &str) -> ExitCode {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "error: {text}");
    ExitCode::FAILURE
}
