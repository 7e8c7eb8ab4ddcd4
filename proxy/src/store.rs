//! What must outlive a request: counters, keys, join tokens, nodes and our own secrets. One trait, two stores with one
//! contract. Never decides whether a request may pass: the arithmetic is policy's, the words are the gateway's.

pub mod changes;
#[cfg(test)]
pub(crate) mod contract;
pub mod counting;
pub mod embedded;
#[cfg(test)]
mod histories;
mod journal;
mod lease;
pub mod ledger;
#[cfg(test)]
mod ledger_contract;
mod local;
mod memory;
mod record;
pub mod records;
#[cfg(test)]
mod records_contract;
pub mod redis;
pub mod transfer;

use std::path::Path;
use std::sync::Arc;

use config::settings::proxy::Store as StoreSettings;

use crate::observe::metrics::Metrics;

pub use self::changes::{Change, Changes};
pub use self::counting::{Counting, Reservation, ReservationId, Settlement};
pub use self::embedded::Embedded;
pub use self::ledger::Ledger;
pub use self::records::Records;
pub use self::redis::Redis;
pub use self::transfer::Transfer;
pub use local::local_secret;
pub(crate) use local::private_folder;
pub use record::{
    BurstRecord, BurstStage, Denial, Denied, JoinToken, KeyRecord, NodeRecord, PreviousSecret,
    Redeemed, Redemption, SecretHash, UserRecord,
};

/// The name of the secret under which credentials are hashed; see [`Records::secret`].
pub const PEPPER: &str = "pepper";

/// What the rooms of the proxy share: counters, records and the news of them, and the books, in one place.
pub trait Store: Counting + Records + Changes + Ledger + Transfer {}

impl<S: Counting + Records + Changes + Ledger + Transfer> Store for S {}

/// Why the store did not answer. None of these is the caller's fault.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum StoreError {
    /// No connection, no answer in time, or the server cannot take writes now.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// More work waits than the store's queue holds.
    #[error("the store is overloaded")]
    Overloaded,
    /// Something else wrote under our keys, or the file is damaged.
    #[error("the store holds something that is not ours: {0}")]
    Corrupt(String),
    /// Another process has the file open.
    #[error("another process uses {0}")]
    InUse(String),
}

impl StoreError {
    /// The word in metrics and logs.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Overloaded => "overloaded",
            Self::Corrupt(_) => "corrupt",
            Self::InUse(_) => "in_use",
        }
    }
}

/// Opens the store that the settings name, for so many addresses and users in memory. Redis need not answer yet: it is dialled again until it does.
pub async fn open(
    settings: &StoreSettings,
    (state_dir, subjects_max): (&Path, usize),
    metrics: Arc<Metrics>,
) -> Result<Arc<dyn Store>, StoreError> {
    match settings {
        StoreSettings::Embedded => Ok(Arc::new(Embedded::open_for(state_dir, subjects_max)?)),
        StoreSettings::Redis(settings) => {
            Ok(Arc::new(Redis::open(settings, state_dir, metrics).await?))
        }
    }
}
