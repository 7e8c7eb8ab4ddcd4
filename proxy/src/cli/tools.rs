//! `config check`, `status`, `health`.

use std::path::Path;
use std::time::Duration;

use clap::CommandFactory as _;
use config::settings::proxy::{Settings, Store};

use super::CliError;
use super::args::{Cli, Output};
use super::print;
use super::reach::Reach;
use crate::admin::client::AdminClient;
use crate::admin::words::{BurstView, Status};
use crate::nodes::hubs::name;

/// Time for a health check.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn check_settings(file: Option<&Path>) -> Result<(), CliError> {
    let settings = super::settings(file)?;
    let listen: Vec<String> = settings
        .server
        .listen
        .iter()
        .map(ToString::to_string)
        .collect();
    let store = match &settings.store {
        Store::Embedded => "embedded",
        Store::Redis { .. } => "Redis",
    };
    print::line(&format!(
        "{}: fine; listens on {}, {} issuers, {store} store",
        file.map_or_else(
            || "the defaults".to_owned(),
            |file| file.display().to_string()
        ),
        listen.join(", "),
        settings.auth.issuers.len(),
    ))?;
    name::warning(&settings.server).map_or(Ok(()), |warning| {
        print::line(&format!("warning: {warning}"))
    })
}

pub(super) async fn status(reach: &mut Reach, output: Output) -> Result<(), CliError> {
    let status: Status = reach.get("/admin/v1/status").await?;
    if output == Output::Json {
        return print::json(&status);
    }
    let runs = match status.uptime_secs {
        Some(secs) => format!("up {}", uptime(secs)),
        None => "does not run".to_owned(),
    };
    let ready = match (status.uptime_secs, status.failing.as_slice()) {
        (None, _) => "no".to_owned(),
        (Some(_), []) => "yes".to_owned(),
        (Some(_), failing) => format!("no: {}", failing.join(", ")),
    };
    print::line(&format!(
        "proxy  {} {runs}\nready  {ready}\nstore  {}\nkeys   {}\nnodes  {} ({} online)",
        status.version, status.store, status.keys, status.nodes, status.nodes_online
    ))?;
    status
        .bursts
        .iter()
        .try_for_each(|burst| print::line(&paid(burst)))
}

/// A server that costs money: since when, and whether it cannot be stopped.
fn paid(burst: &BurstView) -> String {
    let since = uptime(burst.running_secs);
    let (name, stage) = (&burst.name, &burst.stage);
    match burst.stop_failures {
        0 => format!("burst  {name} {stage}, started {since} ago"),
        failures => format!(
            "burst  {name} COSTS MONEY: started {since} ago, and could not be stopped ({failures} tries): look into the log, or stop it yourself"
        ),
    }
}

/// `3d 4h`, `4h 5m`, `5m 6s`: the two largest units.
fn uptime(secs: u64) -> String {
    let (days, hours, minutes) = (secs / 86_400, secs / 3_600 % 24, secs / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{secs}s"),
        (0, 0, _) => format!("{minutes}m {}s", secs % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        (_, _, _) => format!("{days}d {hours}h"),
    }
}

/// Completions for a shell.
pub(super) fn completions(shell: clap_complete::Shell) -> Result<(), CliError> {
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "hearth-proxy", &mut bytes);
    print::raw(&String::from_utf8_lossy(&bytes))
}

/// A proxy that answers at its socket lives.
pub(super) async fn health(settings: &Settings) -> Result<(), CliError> {
    let ask = async {
        let mut proxy = AdminClient::connect(&settings.server.state_dir).await?;
        proxy.get::<Status>("/admin/v1/status").await
    };
    let status = tokio::time::timeout(HEALTH_TIMEOUT, ask)
        .await
        .map_err(|_| {
            CliError::Failed(format!(
                "the proxy did not answer within {} s; look into its log",
                HEALTH_TIMEOUT.as_secs()
            ))
        })??;
    print::line(&format!("ok {}", status.version))
}

pub(super) async fn health_of_url(url: &str, insecure: bool) -> Result<(), CliError> {
    let client = reqwest::Client::builder()
        .timeout(HEALTH_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .tls_danger_accept_invalid_certs(insecure)
        .build()?;
    let status = client.get(url).send().await?.status();
    if status == reqwest::StatusCode::OK {
        return print::line("ok");
    }
    Err(CliError::Failed(format!("{url} answered {status}")))
}
