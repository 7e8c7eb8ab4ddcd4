//! hearth-node. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: the tunnel's helper must not have threads.
    if let Some(done) = tunnel::netns::helper_main() {
        return done;
    }
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        return ExitCode::FAILURE;
    }
    node_agent::cli::main()
}
