//! A provider plugin in Rust: any [`Provider`](gobs_provider::Provider), served over stdin and
//! stdout. Here it is the dummy: `gobs-provider-dummy ROOT RUNTIME_ROOT AGENT [ARGUMENT...]`.

use std::ffi::OsString;
use std::sync::Arc;

use gobs_provider::pipe::serve;
use gobs_provider_dummy::{Dummy, DummyHost};

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let mut path = || {
        arguments
            .next()
            .unwrap_or_else(|| OsString::from("."))
            .into()
    };
    let provider = Dummy::new(DummyHost {
        root: path(),
        runtime_root: path(),
        agent: arguments.collect(),
    });
    serve(Arc::new(provider), tokio::io::stdin(), tokio::io::stdout()).await
}
