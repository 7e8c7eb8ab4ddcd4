//! Where log lines go: standard error, as JSON lines or as text for people.

use std::io::{self, IsTerminal};

use config::settings::proxy::{Log, LogFormat};
use tracing_subscriber::EnvFilter;

/// Starts logging. A second call changes nothing.
pub fn init(log: &Log) {
    let filter = EnvFilter::try_new(&log.filter).unwrap_or_else(|_error| EnvFilter::new("info"));
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !io::stderr().is_terminal(),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let started = if json {
        builder.json().flatten_event(true).try_init()
    } else {
        let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        builder.with_ansi(colours).try_init()
    };
    // Tests may have started it already.
    drop(started);
}
