//! The `gobs` program.

fn main() -> std::process::ExitCode {
    gobs::cli::run()
}
