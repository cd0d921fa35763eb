//! The Linode provider as a plugin of its own, for the tests of what goes through the pipe:
//! `LINODE_TOKEN`, `LINODE_URL` and `LINODE_CLOCK_SCALE` say what gobs would.

use std::sync::Arc;

use gobs_provider::pipe::serve;
use gobs_provider_linode::{Linode, LinodeHost};

#[tokio::main]
async fn main() -> std::io::Result<()> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a plugin has nobody who reads it for it"
    )]
    let variable = |name| std::env::var(name).ok();
    let scale = variable("LINODE_CLOCK_SCALE").and_then(|it| it.parse().ok());
    let provider = Linode::new(LinodeHost {
        token: variable("LINODE_TOKEN").map(Into::into),
        url: variable("LINODE_URL"),
        allow_commands: false,
        clock_scale: scale.unwrap_or(1),
        project: "p".into(),
    });
    serve(Arc::new(provider), tokio::io::stdin(), tokio::io::stdout()).await
}
