//! hearth-proxy: reads the command line, runs one command, turns its end into an exit code. Does nothing itself.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use proxy::cli::{Cli, CliError, Command};

/// Something failed.
const FAILED: u8 = 1;
/// The settings or the command line are wrong (`EX_USAGE` of sysexits.h).
const MISUSED: u8 = 64;

fn main() -> ExitCode {
    // Before anything else: the tunnel's helper must not have threads.
    if let Some(done) = tunnel::netns::helper_main() {
        return done;
    }
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        return report(&anyhow::anyhow!(
            "another crypto provider was installed before"
        ));
    }
    match Cli::try_parse() {
        Ok(cli) => run(cli).map_or_else(|error| report(&error), |()| ExitCode::SUCCESS),
        Err(error) => misused(&error),
    }
}

/// Help was asked for, or the command line is wrong.
fn misused(error: &clap::Error) -> ExitCode {
    // Nowhere left to say that nothing can be said.
    let _shown = error.print();
    if error.use_stderr() {
        ExitCode::from(MISUSED)
    } else {
        ExitCode::SUCCESS
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let Command::Serve { upgrade } = cli.command else {
        return Ok(proxy::cli::run(cli)?);
    };
    let file = cli.config;
    let settings = proxy::cli::settings(file.as_deref())?;
    proxy::observe::log::init(&settings.log)?;
    let reload = || match proxy::cli::settings(file.as_deref()) {
        Ok(settings) => Some(settings),
        Err(error) => {
            tracing::error!(%error, "the new settings are wrong, the old ones stay");
            None
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.server.threads)
        .enable_all()
        .build()
        .context("the runtime cannot start")?;
    let drained = runtime
        .block_on(proxy::app::serve(settings, upgrade, reload))
        .context("the proxy cannot run")?;
    tracing::info!(cut = drained.cut, "stopped");
    Ok(())
}

fn report(error: &anyhow::Error) -> ExitCode {
    use std::io::Write as _;
    // Nobody reads standard error: then nobody can be told either.
    let _told = writeln!(std::io::stderr(), "{error:#}");
    match error.downcast_ref::<CliError>() {
        Some(CliError::Settings(_)) => ExitCode::from(MISUSED),
        _ => ExitCode::from(FAILED),
    }
}
