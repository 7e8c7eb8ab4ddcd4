//! hearth-node. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        return ExitCode::FAILURE;
    }
    node_agent::cli::main()
}
