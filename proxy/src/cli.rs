//! The command line besides `serve`: what an operator types becomes one operation, on the running proxy or on its store, and the
//! result becomes a table or JSON. Decides nothing about keys or nodes: [`crate::admin::Operations`] does.

mod args;
mod books;
mod doctor;
mod keys;
mod nodes;
mod people;
mod print;
mod reach;
mod route;
mod store;
mod tools;

use std::path::Path;

use config::settings::load;
use config::settings::problem::Problems;
use config::settings::proxy::Settings;

use crate::admin::AdminError;
use crate::admin::client::ClientError;
use crate::store::StoreError;

pub use args::{Cli, Command};
use args::{ConfigCommand, Output, PlanCommand, StoreCommand};
use reach::Reach;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// All problems of the settings.
    #[error("{0}")]
    Settings(Problems),
    /// An operation was refused.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The running proxy refused or did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An address does not answer.
    #[error(transparent)]
    Http(#[from] reqwest::Error),
    /// Nothing can be read or written here.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Anything else, in words.
    #[error("{0}")]
    Failed(String),
}

/// The settings of a file and the environment, or all problems in them.
pub fn settings(file: Option<&Path>) -> Result<Settings, CliError> {
    load::proxy(file).map_err(CliError::Settings)
}

/// Runs a command other than `serve`.
pub fn run(cli: Cli) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(dispatch(cli))
}

async fn dispatch(cli: Cli) -> Result<(), CliError> {
    let output = if cli.json { Output::Json } else { cli.output };
    if let Some(done) = without_operations(&cli, output).await {
        return done;
    }
    let reach = &mut Reach::open(&cli).await?;
    match cli.command {
        Command::Key(command) => keys::run(reach, command, output).await,
        Command::Node(command) => nodes::run(reach, command, output).await,
        Command::User(command) => people::run(reach, command, output).await,
        Command::Plan(PlanCommand::List) => keys::list_plans(reach, output).await,
        Command::Store(StoreCommand::Backup { file }) => books::backup(reach, &file, output).await,
        Command::Usage(ask) => books::usage(reach, ask, output).await,
        Command::Audit(command) => books::audit(reach, command, output).await,
        Command::Status => tools::status(reach, output).await,
        Command::Serve { .. }
        | Command::Doctor
        | Command::Config(_)
        | Command::Route(_)
        | Command::Health { .. }
        | Command::Completions { .. }
        | Command::Store(StoreCommand::Export { .. } | StoreCommand::Import { .. }) => Ok(()),
    }
}

/// Runs a command that is no operation of [`crate::admin::Operations`]. `None`: it is one.
async fn without_operations(cli: &Cli, output: Output) -> Option<Result<(), CliError>> {
    let file = cli.config.as_deref();
    let done = match &cli.command {
        Command::Serve { .. } => Err(CliError::Failed("serve is started by main".into())),
        Command::Config(ConfigCommand::Check { file: named }) => {
            tools::check_settings(named.as_deref().or(file))
        }
        Command::Route(command) => route::run(file, command, output).await,
        Command::Health { url: Some(url) } => tools::health_of_url(url, cli.insecure).await,
        Command::Health { url: None } => match settings(file) {
            Ok(settings) => tools::health(&settings).await,
            Err(error) => Err(error),
        },
        Command::Doctor => doctor::run(file, output).await,
        Command::Completions { shell } => tools::completions(*shell),
        Command::Store(StoreCommand::Export { file: to }) => store::export(file, to, output).await,
        Command::Store(StoreCommand::Import { file: from }) => {
            store::import(file, from, output).await
        }
        Command::Key(_)
        | Command::Node(_)
        | Command::User(_)
        | Command::Plan(_)
        | Command::Store(StoreCommand::Backup { .. })
        | Command::Usage(_)
        | Command::Audit(_)
        | Command::Status => return None,
    };
    Some(done)
}
