//! The command line besides `serve`: what an operator types becomes one operation, on the running proxy or on its store, and the
//! result becomes a table or JSON. Decides nothing about keys or nodes: [`crate::admin::Operations`] does.

mod args;
mod keys;
mod nodes;
mod print;
mod reach;
mod tools;

use std::path::Path;

use config::settings::load;
use config::settings::problem::Problems;
use config::settings::proxy::Settings;

use crate::admin::AdminError;
use crate::admin::client::ClientError;
use crate::store::StoreError;

pub use args::{Cli, Command};
use args::{ConfigCommand, KeyCommand, NodeCommand, RouteCommand};

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
    let file = cli.config.as_deref();
    match cli.command {
        Command::Serve => Err(CliError::Failed("serve is started by main".into())),
        Command::Config(ConfigCommand::Check { file: named }) => {
            tools::check_settings(named.as_deref().or(file))
        }
        Command::Key(command) => {
            let settings = settings(file)?;
            match command {
                KeyCommand::Create(wanted) => keys::create(&settings, wanted, cli.output).await,
                KeyCommand::List => keys::list(&settings, cli.output).await,
                KeyCommand::Revoke { key } => keys::revoke(&settings, &key, cli.output).await,
            }
        }
        Command::Node(command) => {
            let settings = settings(file)?;
            match command {
                NodeCommand::Invite(wanted) => nodes::invite(&settings, wanted, cli.output).await,
                NodeCommand::List => nodes::list(&settings, cli.output).await,
                NodeCommand::Revoke { node } => nodes::revoke(&settings, &node, cli.output).await,
            }
        }
        Command::Route(RouteCommand::Explain { text }) => {
            tools::explain(&settings(file)?, &text, cli.output)
        }
        Command::Status => tools::status(&settings(file)?, cli.output).await,
        Command::Health { url, insecure } => match url {
            Some(url) => tools::health_of_url(&url, insecure).await,
            None => tools::health(&settings(file)?).await,
        },
    }
}
