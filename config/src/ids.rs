//! Names of things, each with its own type so that no two can be swapped. Makes no ids itself.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::tier::Tier;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes the text as it is; whoever makes an id checks it first.
            pub fn new(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }

            /// The text of the id.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// One request, as in `x-request-id`: `req_` and 32 hex digits, or the client's own id.
    RequestId
);
text_id!(
    /// A home machine: `node_` and 16 hex digits of the SHA-256 of its identity key.
    NodeId
);
text_id!(
    /// A person, as the identity provider names them: `issuer|sub`, or a key's owner.
    UserId
);
text_id!(
    /// An API key: its public ten characters, never its secret.
    KeyId
);
text_id!(
    /// An organisation, a family: 1 to 32 small letters, digits and `-`. Everything of one tenant is counted in one place.
    Tenant
);

/// The tenant of whatever names none.
const HOME: &str = "home";
/// Characters of a tenant's name.
const TENANT_CHARS_MAX: usize = 32;

/// The text cannot name a tenant.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a tenant is 1 to 32 small letters, digits and -")]
pub struct NoTenant;

impl Default for Tenant {
    fn default() -> Self {
        Self::new(HOME)
    }
}

impl FromStr for Tenant {
    type Err = NoTenant;

    fn from_str(text: &str) -> Result<Self, NoTenant> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if (1..=TENANT_CHARS_MAX).contains(&text.len()) && text.chars().all(plain) {
            return Ok(Self::new(text));
        }
        Err(NoTenant)
    }
}

/// One tier on one node: what a request can be sent to.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct BackendId {
    /// The machine.
    pub node: NodeId,
    /// The tier on it.
    pub tier: Tier,
}

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.tier)
    }
}
