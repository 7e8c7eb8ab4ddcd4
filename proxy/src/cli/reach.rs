//! Finds who can do an operation: the running proxy through its socket, or this process with the store itself.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use config::settings::proxy::{Settings, Store as StoreSettings};

use super::CliError;
use crate::admin::Operations;
use crate::admin::client::{AdminClient, ClientError};
use crate::front::tls::Certificates;
use crate::observe::metrics::Metrics;
use crate::store::{self, StoreError};

/// Who does it.
pub(super) enum Reach {
    /// The running proxy.
    Running(AdminClient),
    /// This process; no proxy runs here.
    Alone(Operations),
}

/// What an operation needs to know.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Need {
    /// Records alone.
    Records,
    /// The pin of the certificate too.
    Pin,
}

impl Reach {
    pub(super) async fn open(settings: &Settings, need: Need) -> Result<Self, CliError> {
        let state_dir = &settings.server.state_dir;
        match AdminClient::connect(state_dir).await {
            Ok(client) => return Ok(Self::Running(client)),
            Err(ClientError::NotRunning(_)) => {}
            Err(error) => return Err(error.into()),
        }
        if matches!(settings.store, StoreSettings::Embedded) {
            check_owner(state_dir)?;
        }
        let store = store::open(&settings.store, state_dir, Arc::new(Metrics::new())).await;
        let store = store.map_err(|error| match error {
            StoreError::InUse(file) => CliError::Failed(format!(
                "another process uses {file}, but no proxy answers at its admin socket: wait until it has started or stopped"
            )),
            StoreError::Unavailable(_) | StoreError::Overloaded | StoreError::Corrupt(_) => {
                error.into()
            }
        })?;
        let pin = match need {
            Need::Records => None,
            Need::Pin => Certificates::from_settings(&settings.tls, state_dir)
                .map_err(|error| CliError::Failed(error.to_string()))?
                .pin(),
        };
        let url = settings.server.public_url.clone();
        Ok(Self::Alone(Operations::new(store, url, pin, None)))
    }
}

/// Files made by the wrong user would keep the proxy from starting.
fn check_owner(state_dir: &Path) -> Result<(), CliError> {
    let owner = match std::fs::metadata(state_dir) {
        Ok(metadata) => metadata.uid(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let user = rustix::process::geteuid().as_raw();
    if owner == user {
        return Ok(());
    }
    Err(CliError::Failed(format!(
        "{} belongs to user id {owner} and this is user id {user}: run this as that user, or start the proxy first",
        state_dir.display()
    )))
}
