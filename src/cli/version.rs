//! `gobs version`

use super::{Context, Outcome, exit};

/// Shows the version
#[derive(Debug, clap::Args)]
pub(super) struct Version {
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

impl Version {
    pub(super) fn run(&self, context: &mut Context) -> Outcome {
        let version = env!("CARGO_PKG_VERSION");
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        context.terminal.out(&if self.json {
            let json = serde_json::json!({
                "format_version": "1.0",
                "gobs_version": version,
                "platform": format!("{os}_{arch}"),
            });
            format!("{json:#}\n")
        } else {
            format!("gobs {version}\non {os}_{arch}\n")
        });
        Ok(exit::DONE)
    }
}
