//! Who asks, once that is proven: principals, their scopes, and the hashed names under which they are counted. Proves nothing
//! itself and never sees a credential.

use std::fmt;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use config::ids::{KeyId, UserId};
use config::settings::proxy::Plan;
use config::tier::Tier;
use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;

/// What a principal may do.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Ask models.
    Inference,
    /// List models and read health.
    Models,
    /// Read `/metrics` on the public listener.
    Metrics,
    /// Everything, including keys and nodes.
    Admin,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 4] = [Self::Inference, Self::Models, Self::Metrics, Self::Admin];
    /// What a client key or a signed-in person gets when nothing else is said.
    pub const CLIENT: [Self; 2] = [Self::Inference, Self::Models];

    /// The name on the command line, in the store and in `WWW-Authenticate`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inference => "inference",
            Self::Models => "models",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text named no scope.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a scope is inference, models, metrics or admin")]
pub struct UnknownScope;

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or(UnknownScope)
    }
}

/// Who asks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Principal {
    /// The person, or the owner of the key.
    pub user: UserId,
    /// The API key, if one was shown.
    pub key: Option<KeyId>,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Only these tiers; `None` = all.
    pub tiers: Option<Vec<Tier>>,
    /// Only these model ids; `None` = all.
    pub models: Option<Vec<String>>,
    /// Figures that replace the defaults.
    pub plan: Plan,
    /// An administrator passes every scope check.
    pub admin: bool,
}

impl Principal {
    /// A signed-in person with the client scopes and no restrictions.
    pub fn person(user: UserId, plan: Plan) -> Self {
        Self {
            user,
            key: None,
            scopes: Scope::CLIENT.to_vec(),
            tiers: None,
            models: None,
            plan,
            admin: false,
        }
    }

    /// Whether the principal has the scope.
    pub fn may(&self, scope: Scope) -> bool {
        self.admin || self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }

    /// Refuses unless the principal has the scope.
    pub fn require(&self, scope: Scope) -> Result<(), Refusal> {
        if self.may(scope) {
            return Ok(());
        }
        Err(Refusal::MissingScope { scope })
    }

    /// Whether the principal may use the tier.
    pub fn may_use_tier(&self, tier: Tier) -> bool {
        self.tiers
            .as_ref()
            .is_none_or(|allowed| allowed.contains(&tier))
    }

    /// Whether the principal may use the model with this id.
    pub fn may_use_model(&self, model: &str) -> bool {
        self.models
            .as_ref()
            .is_none_or(|allowed| allowed.iter().any(|known| known == model))
    }

    /// The hashed name for counters and logs.
    pub fn subject(&self) -> Subject {
        Subject::of_user(&self.user)
    }
}

/// A hashed name: safe in a key, a log line and a header, of fixed length, and the same in every process.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Subject(String);

impl Subject {
    /// The name of a user: 16 hex digits, so a user id of any length or alphabet fits.
    pub fn of_user(user: &UserId) -> Self {
        Self(format!("u:{}", hash16(user.as_str().as_bytes())))
    }

    /// The name of an address. IPv6 counts as its /64 (one customer holds at least that), IPv4 in IPv6 as IPv4.
    pub fn of_ip(ip: IpAddr) -> Self {
        Self(format!(
            "i:{}",
            hash16(network_of(ip).to_string().as_bytes())
        ))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The address that stands for everyone who shares it: an IPv4 address, or the first address of an IPv6 /64.
pub fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

/// The first 16 hex digits of SHA-256.
fn hash16(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let mut text = String::with_capacity(16);
    for byte in digest.as_ref().iter().take(8) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests;
