//! What management commands say and hear: the JSON of the admin socket and of `--output json`. Only a fresh key or join link
//! carries a secret, once.

use config::ids::{KeyId, NodeId, UserId};
use config::settings::proxy::Plan;
use config::tier::Tier;
use policy::identity::Scope;
use serde::{Deserialize, Serialize};

use crate::store::{KeyRecord, NodeRecord};

/// A key that is wanted.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KeyOrder {
    /// What people call it: 1 to 64 characters.
    pub name: String,
    /// Whose it is; default the name. Keys of one owner share their limits.
    #[serde(default)]
    pub owner: Option<String>,
    /// An administrator's key.
    #[serde(default)]
    pub admin: bool,
    /// What it may do; empty: ask and list models.
    #[serde(default)]
    pub scopes: Vec<Scope>,
    /// Tiers it may use; `None`: all.
    #[serde(default)]
    pub tiers: Option<Vec<Tier>>,
    /// Models it may use; `None`: all.
    #[serde(default)]
    pub models: Option<Vec<String>>,
    /// Figures that replace the defaults.
    #[serde(default)]
    pub plan: Plan,
    /// Life in seconds; `None`: for ever.
    #[serde(default)]
    pub expires_secs: Option<u64>,
}

/// A key as lists show it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct KeyView {
    /// The public ten characters.
    pub id: KeyId,
    /// What people call it.
    pub name: String,
    /// Whose it is.
    pub owner: UserId,
    /// An administrator's key.
    pub admin: bool,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Tiers it may use; `None`: all.
    pub tiers: Option<Vec<Tier>>,
    /// Models it may use; `None`: all.
    pub models: Option<Vec<String>>,
    /// Figures that replace the defaults.
    pub plan: Plan,
    /// Unix seconds.
    pub created_unix: i64,
    /// Unix seconds; `None`: never.
    pub expires_unix: Option<i64>,
    /// Unix seconds, coarse.
    pub last_used_unix: Option<i64>,
    /// Unix seconds.
    pub revoked_unix: Option<i64>,
}

impl From<KeyRecord> for KeyView {
    fn from(key: KeyRecord) -> Self {
        Self {
            id: key.id,
            name: key.name,
            owner: key.owner,
            admin: key.admin,
            scopes: key.scopes,
            tiers: key.tiers,
            models: key.models,
            plan: key.plan,
            created_unix: key.created_unix,
            expires_unix: key.expires_unix,
            last_used_unix: key.last_used_unix,
            revoked_unix: key.revoked_unix,
        }
    }
}

/// A fresh key. The secret is nowhere else.
#[derive(Clone, Deserialize, Serialize)]
pub struct KeyMade {
    /// The whole key, to be shown once.
    pub key: String,
    /// What the list will show.
    pub record: KeyView,
}

/// A join link that is wanted.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct InviteOrder {
    /// What people call it; at most 64 characters.
    #[serde(default)]
    pub name: String,
    /// Nodes that may join with it; `None`: one.
    #[serde(default)]
    pub uses: Option<u32>,
    /// Life in seconds; `None`: 15 minutes.
    #[serde(default)]
    pub expires_secs: Option<u64>,
    /// Tiers those nodes may serve; `None`: all.
    #[serde(default)]
    pub tiers: Option<Vec<Tier>>,
}

/// A fresh join link. The secret in it is nowhere else.
#[derive(Clone, Deserialize, Serialize)]
pub struct Invite {
    /// The whole link, for `hearth-node join`.
    pub link: String,
    /// The token alone.
    pub token: String,
    /// The token's public ten characters.
    pub id: String,
    /// Nodes that may join with it.
    pub uses: u32,
    /// Unix seconds.
    pub expires_unix: i64,
}

/// A node as lists show it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NodeView {
    /// Its name for ever.
    pub id: NodeId,
    /// What people call the machine.
    pub name: String,
    /// Tiers it may serve; `None`: all.
    pub tiers: Option<Vec<Tier>>,
    /// As the last registration told.
    pub agent_version: String,
    /// Unix seconds.
    pub created_unix: i64,
    /// Unix seconds of the last registration.
    pub registered_unix: Option<i64>,
    /// Unix seconds, coarse.
    pub last_seen_unix: Option<i64>,
    /// Unix seconds.
    pub revoked_unix: Option<i64>,
    /// How it is now; `None`: this proxy has no report of it, or no proxy runs.
    pub now: Option<NodeNow>,
}

/// A node as its last report told.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NodeNow {
    /// Which.
    pub id: NodeId,
    /// Seconds since the last report.
    pub seen_secs_ago: u64,
    /// One for each tier, as `fast ready tiny-fast 1/4`.
    pub tiers: Vec<String>,
}

impl From<NodeRecord> for NodeView {
    fn from(node: NodeRecord) -> Self {
        Self {
            id: node.id,
            name: node.name,
            tiers: node.tiers,
            agent_version: node.agent_version,
            created_unix: node.created_unix,
            registered_unix: node.registered_unix,
            last_seen_unix: node.last_seen_unix,
            revoked_unix: node.revoked_unix,
            now: None,
        }
    }
}

/// The proxy at a glance.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Status {
    /// Of this program.
    pub version: String,
    /// Seconds since the proxy started; `None`: no proxy runs.
    pub uptime_secs: Option<u64>,
    /// `ok`, or what is wrong with the store.
    pub store: String,
    /// Checks that fail; empty: ready.
    pub failing: Vec<String>,
    /// Keys that are neither revoked nor expired.
    pub keys: usize,
    /// Nodes that are not revoked.
    pub nodes: usize,
    /// Nodes with a fresh report.
    pub nodes_online: usize,
}

/// Why it did not work: RFC 9457.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Problem {
    /// Always `about:blank`: the status says it all.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The status.
    pub status: u16,
    /// What to do.
    pub detail: String,
}
