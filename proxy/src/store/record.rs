//! What the store keeps about keys, people, denials, join tokens and nodes. Holds hashes, never secrets.

use std::sync::Arc;

use config::ids::{KeyId, NodeId, Tenant, UserId};
use config::settings::proxy::Plan;
use config::tier::Tier;
use config::wire::node::Unmanaged;
use policy::identity::{Scope, Subject};
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
    /// The secret before the last rotation, while it is still good.
    #[serde(default)]
    pub previous: Option<PreviousSecret>,
    /// When the current secret was made, Unix seconds; 0: with the key.
    #[serde(default)]
    pub secret_unix: i64,
    /// `hearth_ak_` instead of `hearth_sk_`.
    pub admin: bool,
    /// What people call it.
    pub name: String,
    /// Whose it is; limits count per owner.
    pub owner: UserId,
    /// Whose house it belongs to.
    #[serde(default)]
    pub tenant: Tenant,
    /// Groups of the owner that requests with this key count for.
    #[serde(default)]
    pub groups: Vec<Arc<str>>,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Tiers it may use; `None`: all.
    pub tiers: Option<Vec<Tier>>,
    /// Models it may use; `None`: all.
    pub models: Option<Vec<String>>,
    /// Figures that replace the owner's defaults.
    pub plan: Plan,
    /// Figures of the key itself, counted besides the owner's.
    #[serde(default)]
    pub limits: Option<Plan>,
    /// Whether it may name end users, who are then counted instead of the owner.
    #[serde(default)]
    pub act_as: bool,
    /// What it asks never leaves the tiers at home.
    #[serde(default)]
    pub local_only: bool,
    /// Unix seconds.
    pub created_unix: i64,
    /// Unix seconds; `None`: never.
    pub expires_unix: Option<i64>,
    /// Unix seconds, to the minute.
    pub last_used_unix: Option<i64>,
    /// Unix seconds; `None`: still good.
    pub revoked_unix: Option<i64>,
}

/// A secret that was replaced and has some time left, so that a rotation interrupts nobody.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct PreviousSecret {
    /// What the old secret must hash to.
    pub secret_hash: SecretHash,
    /// Refused from here on, Unix seconds.
    pub until_unix: i64,
    /// When it was made, Unix seconds.
    pub secret_unix: i64,
}

impl KeyRecord {
    /// A client key without restrictions, limits or an end; the rest is said with `..`.
    pub fn plain(id: KeyId, secret_hash: SecretHash, owner: UserId, created_unix: i64) -> Self {
        Self {
            id,
            secret_hash,
            previous: None,
            secret_unix: created_unix,
            admin: false,
            name: String::new(),
            owner,
            tenant: Tenant::default(),
            groups: Vec::new(),
            scopes: Scope::CLIENT.to_vec(),
            tiers: None,
            models: None,
            plan: Plan::default(),
            limits: None,
            act_as: false,
            local_only: false,
            created_unix,
            expires_unix: None,
            last_used_unix: None,
            revoked_unix: None,
        }
    }

    /// When the secret that was shown was made; `None` when the hash is of no secret that is good now.
    pub fn secret_made(&self, shown: &SecretHash, now_unix: i64) -> Option<i64> {
        // Both are compared whatever the first one says: the time tells nothing.
        let current = self.secret_hash.matches(shown);
        let previous = self.previous.as_ref().filter(|previous| {
            let is_same = previous.secret_hash.matches(shown);
            is_same && now_unix < previous.until_unix
        });
        if current {
            return Some(self.secret_unix.max(self.created_unix));
        }
        previous.map(|previous| previous.secret_unix.max(self.created_unix))
    }
}

/// A person who came through an issuer, or who owns keys.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct UserRecord {
    /// `issuer|name`, or as an administrator named the owner of a key.
    pub id: UserId,
    /// Whose house the person belongs to.
    pub tenant: Tenant,
    /// The issuer; empty for owners of keys.
    pub issuer: String,
    /// The hashed e-mail address, so that an administrator who knows the address finds the person.
    pub email: Option<Subject>,
    /// Groups at the last sign-in that was noted.
    pub groups: Vec<Arc<str>>,
    /// The plan that an administrator chose; `None`: the issuer's, or the defaults.
    pub plan: Option<String>,
    /// Figures that an administrator set for this person; they win over every plan.
    pub overrides: Plan,
    /// Unix seconds; `None`: welcome.
    pub disabled_unix: Option<i64>,
    /// Unix seconds.
    pub first_seen_unix: i64,
    /// Unix seconds, to the hour.
    pub last_seen_unix: i64,
}

/// Whom a denial is about.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Denied {
    /// A person.
    User(UserId),
    /// An API key.
    Key(KeyId),
    /// Everybody of a tenant.
    Tenant(Tenant),
}

impl Denied {
    /// The text under which it is stored and listed.
    pub fn text(&self) -> String {
        match self {
            Self::User(id) => format!("user:{id}"),
            Self::Key(id) => format!("key:{id}"),
            Self::Tenant(id) => format!("tenant:{id}"),
        }
    }
}

/// Whom we no longer let in, whatever their issuer says.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Denial {
    /// Whom.
    pub whom: Denied,
    /// Only credentials made before this are refused, Unix seconds: whoever signs in again enters. `None`: all are.
    pub not_before_unix: Option<i64>,
    /// For administrators.
    pub reason: String,
    /// Unix seconds.
    pub created_unix: i64,
    /// Unix seconds; `None`: until it is taken back.
    pub expires_unix: Option<i64>,
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
    /// Whether an administrator approves each node; `None`: if it is good for several.
    #[serde(default)]
    pub approve: Option<bool>,
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
        /// An administrator approves the node before it comes in.
        approve: bool,
    },
    /// This identity had taken its use before; nothing was taken now.
    Again {
        /// Tiers that the node may serve; `None`: all.
        tiers: Option<Vec<Tier>>,
        /// An administrator approves the node before it comes in.
        approve: bool,
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
    /// It gets no new work until it is told otherwise; what runs there finishes.
    #[serde(default)]
    pub draining: bool,
    /// An administrator must approve it before it comes in.
    #[serde(default)]
    pub pending: bool,
    /// Unix seconds of the last approval by an administrator.
    #[serde(default)]
    pub approved_unix: Option<i64>,
    /// There is no agent: the server behind a stock WireGuard peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmanaged: Option<Unmanaged>,
}

impl JoinToken {
    /// Takes a use for an identity, if there is one to take. One rule for both stores.
    pub(super) fn redeem(&mut self, redemption: &Redemption, now_unix: i64) -> Redeemed {
        if !self.secret_hash.matches(&redemption.secret_hash) {
            return Redeemed::Unknown;
        }
        let tiers = self.tiers.clone();
        let approve = self.approve.unwrap_or(self.uses_max > 1);
        if self.used_by.contains(&redemption.identity) {
            return Redeemed::Again { tiers, approve };
        }
        if now_unix >= self.expires_unix {
            return Redeemed::Expired;
        }
        if self.used_by.len() >= usize::try_from(self.uses_max).unwrap_or(usize::MAX) {
            return Redeemed::UsedUp;
        }
        self.used_by.push(redemption.identity.clone());
        Redeemed::Now { tiers, approve }
    }
}

/// A server outside that was started and is not known to be stopped: somebody pays for it. Written before it is started, removed after it
/// was stopped, so that whatever happens in between, some proxy stops it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct BurstRecord {
    /// The name of its `[[remote]]`.
    pub name: String,
    /// Of this start alone, in hex.
    pub start: String,
    /// When it was started, Unix milliseconds.
    pub started_unix_ms: u64,
    /// How far it is.
    pub stage: BurstStage,
}

/// How far a server is that was started.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BurstStage {
    /// It has not answered yet.
    Starting,
    /// It answered.
    Ready,
    /// It was told to stop, and has not been seen to.
    Stopping {
        /// Since when, Unix milliseconds.
        since_unix_ms: u64,
        /// The last try, Unix milliseconds.
        tried_unix_ms: u64,
        /// Tries that did not work.
        failures: u32,
        /// It may be on its way down, whatever it answers; `false`: the last try certainly did nothing.
        going: bool,
    },
}

impl BurstRecord {
    /// A start of now.
    pub fn new(name: &str, now_unix_ms: u64) -> Self {
        Self {
            name: name.to_owned(),
            start: format!("{:016x}", rand::random::<u64>()),
            started_unix_ms: now_unix_ms,
            stage: BurstStage::Starting,
        }
    }

    /// The same start, so far.
    #[must_use]
    pub fn at(&self, stage: BurstStage) -> Self {
        Self {
            stage,
            ..self.clone()
        }
    }

    /// Whether it was told to stop.
    pub const fn is_stopping(&self) -> bool {
        matches!(self.stage, BurstStage::Stopping { .. })
    }

    /// Tries to stop it that did not work.
    pub const fn stop_failures(&self) -> u32 {
        match self.stage {
            BurstStage::Stopping { failures, .. } => failures,
            BurstStage::Starting | BurstStage::Ready => 0,
        }
    }
}
