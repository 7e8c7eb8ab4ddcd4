//! Who asks, once that is proven: principals, their scopes, and the hashed names under which they are counted. Proves nothing
//! itself and never sees a credential.

use std::fmt;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

pub use config::ids::Tenant;
use config::ids::{KeyId, UserId};
use config::settings::proxy::Plan;
use config::tier::Tier;
use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;

/// Begins the user ids of named end users. No issuer's user id begins so, because an issuer is a URL.
pub const ACT_AS: &str = "act:";

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
    /// The person, or the owner of the key, or the end user whom a trusted front end names.
    pub user: UserId,
    /// Whose house the person belongs to.
    pub tenant: Tenant,
    /// Groups of the person, as the issuer or the key names them; sorted, each once, at most [`GROUPS_MAX`].
    pub groups: Vec<Arc<str>>,
    /// The API key, if one was shown.
    pub key: Option<KeyId>,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Only these tiers; `None` = all.
    pub tiers: Option<Vec<Tier>>,
    /// Only these model ids; `None` = all.
    pub models: Option<Vec<String>>,
    /// Name of the person's plan in the settings; `None` = the defaults.
    pub plan_name: Option<Arc<str>>,
    /// Figures of the plan, or of the key instead of a plan.
    pub plan: Plan,
    /// Figures that an administrator set for this person; they win over the plan's.
    pub overrides: Plan,
    /// Figures of the key itself, counted besides the person's; `None` = the key has no limits of its own.
    pub key_plan: Option<Plan>,
    /// What it asks never leaves the tiers at home; its plans may say so too.
    pub local_only: bool,
    /// Whether the key may name end users (`x-hearth-user`, `user`, `safety_identifier`).
    pub may_act_as: bool,
    /// The key's owner, while `user` is an end user that a trusted front end named.
    pub acts_for: Option<UserId>,
    /// An administrator passes every scope check.
    pub admin: bool,
}

/// Groups of one person at most.
pub const GROUPS_MAX: usize = 64;
/// Characters of a group's name.
pub const GROUP_CHARS_MAX: usize = 128;
/// Characters of an end user's name.
pub const END_USER_CHARS_MAX: usize = 256;

impl Principal {
    /// A signed-in person with the client scopes and no restrictions.
    pub fn person(user: UserId, plan: Plan) -> Self {
        Self {
            user,
            tenant: Tenant::default(),
            groups: Vec::new(),
            key: None,
            scopes: Scope::CLIENT.to_vec(),
            tiers: None,
            models: None,
            plan_name: None,
            plan,
            overrides: Plan::default(),
            key_plan: None,
            local_only: false,
            may_act_as: false,
            acts_for: None,
            admin: false,
        }
    }

    /// Whose house the person belongs to: the hash slot of everything counted for this request.
    pub const fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// The end user whom a trusted front end names, counted as a person of his own under the key's budget. Two owners
    /// cannot name the same end user, and nobody can name a person who signs in.
    pub fn acting_as(mut self, end_user: &str) -> Result<Self, Refusal> {
        if !self.may_act_as {
            return Ok(self);
        }
        let end_user = end_user.trim();
        let chars = end_user.chars().count();
        if chars == 0 || chars > END_USER_CHARS_MAX || end_user.chars().any(char::is_control) {
            return Err(Refusal::BadRequest {
                code: "invalid_value".into(),
                param: Some("user".to_owned()),
                message: format!(
                    "the end user has {chars} characters: from 1 to {END_USER_CHARS_MAX}, without control characters"
                ),
            });
        }
        let owner = self.acts_for.take().unwrap_or_else(|| self.user.clone());
        let house = hash16(owner.as_str().as_bytes());
        self.user = UserId::new(format!("{ACT_AS}{house}:{end_user}"));
        self.acts_for = Some(owner);
        Ok(self)
    }

    /// Whether the client's address counts for limits. Behind a trusted front end it is the front end's.
    pub const fn counts_address(&self) -> bool {
        self.acts_for.is_none()
    }

    /// The name of the key for counters.
    pub fn key_subject(&self) -> Option<Subject> {
        self.key.as_ref().map(Subject::of_key)
    }

    /// The names of the person's groups for counters, in order.
    pub fn group_subjects(&self) -> Vec<Subject> {
        self.groups
            .iter()
            .map(|group| Subject::of_group(group))
            .collect()
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
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
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

    /// The name of an API key.
    pub fn of_key(key: &KeyId) -> Self {
        Self(format!("k:{}", hash16(key.as_str().as_bytes())))
    }

    /// The name of a group; groups of two tenants are told apart by the tenant before it.
    pub fn of_group(group: &str) -> Self {
        Self(format!("g:{}", hash16(group.as_bytes())))
    }

    /// The name of an e-mail address, whatever its case: an administrator can look for it, a reader of the store sees none.
    pub fn of_email(email: &str) -> Self {
        Self(format!(
            "e:{}",
            hash16(email.trim().to_lowercase().as_bytes())
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
