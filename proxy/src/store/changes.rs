//! What one proxy changed and the others must hear of: revoked keys, denials, people, nodes. Embedded, this is a channel of the
//! process; with Redis, a channel of the server and a version beside it, so that what the channel lost is noticed within
//! [`WATCHED`]. Carries names, never records: whoever hears of a change reads again.

use std::time::Duration;

use async_trait::async_trait;
use config::ids::{BackendId, KeyId, NodeId, UserId};
use config::wire::node::HubPlace;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::StoreError;

/// How old the last proof that nothing was missed may be. Revocations must count on every proxy within 2 s.
pub const WATCHED: Duration = Duration::from_millis(1_500);
/// Changes that wait for a slow listener; who missed some is told [`Change::Everything`] by its own lag.
pub(super) const BACKLOG: usize = 1_024;

/// What to read again.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// An API key.
    Key(KeyId),
    /// A person.
    User(UserId),
    /// The deny list.
    Denials,
    /// A node.
    Node(NodeId),
    /// The breaker of a backend opened or closed at one proxy. Not a record: whoever misses it finds out by itself.
    Breaker {
        /// Whose.
        backend: BackendId,
        /// Counts up with every opening and closing.
        term: u64,
        /// How long it stays open from now on; `None`: it is closed.
        open_ms: Option<u64>,
    },
    /// A proxy of the house says that it lives, or that it leaves. Not a record: it is said again every few seconds.
    Hub {
        /// Where it takes registrations.
        place: HubPlace,
        /// It goes away.
        leaving: bool,
    },
    /// Anything: changes were missed.
    Everything,
}

/// Tells every proxy of the store what the others changed.
#[async_trait]
pub trait Changes: Send + Sync {
    /// Changes from now on, those of this proxy included.
    fn changes(&self) -> broadcast::Receiver<Change>;

    /// Tells all proxies. The calls that change records do this themselves.
    async fn publish(&self, change: &Change) -> Result<(), StoreError>;

    /// Until when it is proven that this proxy was told of every change; `None`: nothing is proven yet.
    fn watched_until(&self) -> Option<tokio::time::Instant>;
}

/// The next change; what was missed is [`Change::Everything`]. `None` when the store is gone.
pub async fn next(changes: &mut broadcast::Receiver<Change>) -> Option<Change> {
    match changes.recv().await {
        Ok(change) => Some(change),
        Err(broadcast::error::RecvError::Lagged(_)) => Some(Change::Everything),
        Err(broadcast::error::RecvError::Closed) => None,
    }
}
