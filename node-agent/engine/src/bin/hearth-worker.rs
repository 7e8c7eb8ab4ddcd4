//! A worker process and nothing else, for the tests of this crate. The shipped program has the same behind a subcommand.

use std::process::ExitCode;

fn main() -> ExitCode {
    engine::worker::run()
}
