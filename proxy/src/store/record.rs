//! What the store keeps about keys, join tokens and nodes. Holds hashes, never secrets.

use config::ids::{KeyId, NodeId, UserId};
use config::settings::proxy::Plan;
use config::tier::Tier;
use policy::identity::Scope;
use ring::hmac;
use serde::{Deserialize, Serialize};

/// HMAC-SHA-256 of a credential's secret under the proxy's pepper. A secret has 178 bits, so no slow hash is needed
/// (contract A3.4).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct SecretHash(String);

impl SecretHash {
    /// Hashes a secret.
    pub fn of(pepper: &[u8; 32], secret: &str) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, pepper);
        Self(hex::encode(hmac::sign(&key, secret.as_bytes())))
    }

    /// Compares in constant time.
    pub fn matches(&self, other: &Self) -> bool {
        subtle::ConstantTimeEq::ct_eq(self.0.as_bytes(), other.0.as_bytes()).into()
    }
}

/// An API key.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct KeyRecord {
    /// The public ten characters.
    pub id: KeyId,
    /// What the secret must hash to.
    pub secret_hash: SecretHash,
    /// `hearth_ak_` instead of `hearth_sk_`.
    pub admin: bool,
    /// What people call it.
    pub name: String,
    /// Whose it is; limits count per owner.
    pub owner: UserId,
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
    /// Unix seconds, to the minute.
    pub last_used_unix: Option<i64>,
    /// Unix seconds; `None`: still good.
    pub revoked_unix: Option<i64>,
}

/// A token that lets nodes enrol.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct JoinToken {
    /// The public ten characters.
    pub id: String,
    /// What the secret must hash to.
    pub secret_hash: SecretHash,
    /// What people call it.
    pub name: String,
    /// Nodes that may enrol with it.
    pub uses_max: u32,
    /// Tiers that those nodes may serve; `None`: all.
    pub tiers: Option<Vec<Tier>>,
    /// Unix seconds.
    pub created_unix: i64,
    /// Unix seconds.
    pub expires_unix: i64,
    /// Identities (base64) that used it.
    pub used_by: Vec<String>,
}

/// A try to use a join token.
#[derive(Clone, Debug)]
pub struct Redemption {
    /// The token's public ten characters.
    pub id: String,
    /// The hash of the secret that was shown.
    pub secret_hash: SecretHash,
    /// Base64 of the Ed25519 identity key.
    pub identity: String,
}

/// How a try ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Redeemed {
    /// A use was taken.
    Now {
        /// Tiers that the node may serve; `None`: all.
        tiers: Option<Vec<Tier>>,
    },
    /// This identity had taken its use before; nothing was taken now.
    Again {
        /// Tiers that the node may serve; `None`: all.
        tiers: Option<Vec<Tier>>,
    },
    /// No such token, or the secret is wrong.
    Unknown,
    /// Its time is over.
    Expired,
    /// All its uses are taken.
    UsedUp,
}

/// A home machine that enrolled.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NodeRecord {
    /// `node_` and 16 hex digits.
    pub id: NodeId,
    /// Base64 of the Ed25519 identity key.
    pub identity: String,
    /// What people call the machine.
    pub name: String,
    /// Tiers it may serve; `None`: all.
    pub tiers: Option<Vec<Tier>>,
    /// Base64 of the WireGuard key of its last registration; `None` before the first.
    pub wireguard_key: Option<String>,
    /// As the last registration told.
    pub agent_version: String,
    /// The join token it came with.
    pub join_token: String,
    /// Unix seconds.
    pub created_unix: i64,
    /// Unix seconds of the last registration.
    pub registered_unix: Option<i64>,
    /// Unix seconds, coarse.
    pub last_seen_unix: Option<i64>,
    /// Unix seconds; `None`: still welcome.
    pub revoked_unix: Option<i64>,
}

impl JoinToken {
    /// Takes a use for an identity, if there is one to take. One rule for both stores.
    pub(super) fn redeem(&mut self, redemption: &Redemption, now_unix: i64) -> Redeemed {
        if !self.secret_hash.matches(&redemption.secret_hash) {
            return Redeemed::Unknown;
        }
        let tiers = self.tiers.clone();
        if self.used_by.contains(&redemption.identity) {
            return Redeemed::Again { tiers };
        }
        if now_unix >= self.expires_unix {
            return Redeemed::Expired;
        }
        if self.used_by.len() >= usize::try_from(self.uses_max).unwrap_or(usize::MAX) {
            return Redeemed::UsedUp;
        }
        self.used_by.push(redemption.identity.clone());
        Redeemed::Now { tiers }
    }
}
