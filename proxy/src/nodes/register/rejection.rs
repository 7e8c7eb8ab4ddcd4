//! Why a node is refused: a code for its agent, a status, and a line for the person who reads its log.

use config::ids::NodeId;
use config::wire::node::VERSION;
use http::StatusCode;

use crate::nodes::peers::AdmitError;
use crate::store::StoreError;

/// Why a node may not in.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Rejection {
    #[error("{0}")]
    Invalid(String),
    #[error("this proxy speaks version {VERSION} of the node protocol: update the older side")]
    Version,
    #[error("the nonce is older than 60 s or not from this proxy: ask for a new one")]
    Nonce,
    #[error("the signature does not match the identity key")]
    Signature,
    #[error("the join token is malformed: copy it again, whole")]
    TokenMalformed,
    #[error("the join token is unknown: create one with `hearth-proxy node invite`")]
    TokenUnknown,
    #[error("the join token has expired: create one with `hearth-proxy node invite`")]
    TokenExpired,
    #[error("the join token was used: create one with `hearth-proxy node invite`")]
    TokenUsed,
    #[error("no node of this id is known here: enrol it with a join token")]
    Unknown,
    #[error("this node was revoked by an administrator")]
    Revoked,
    #[error("this node waits for approval: hearth-proxy node approve {0}")]
    Pending(NodeId),
    #[error("another node or this proxy uses this WireGuard key")]
    KeyTaken,
    #[error(
        "this proxy has all the nodes it may have: raise tunnel.nodes_max, or revoke one that is gone with `hearth-proxy node revoke`"
    )]
    Full,
    #[error("the proxy cannot reach its store: try again shortly")]
    Store,
    #[error("the tunnel does not take this node now: try again shortly")]
    Tunnel,
    #[error("this node is not in the tunnel: register first")]
    NotRegistered,
    #[error("the Authorization header holds no proof of a node")]
    NoProof,
    #[error("this proxy takes no carriers: set tunnel.carrier = true, or open its UDP port")]
    NoCarriers,
    #[error("a carrier is an upgrade to WebSocket over HTTP/1.1")]
    Upgrade,
}

impl Rejection {
    pub(super) const fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid_value",
            Self::Version => "version_unsupported",
            Self::Nonce => "nonce_expired",
            Self::Signature => "signature_invalid",
            Self::TokenMalformed => "join_token_malformed",
            Self::TokenUnknown => "join_token_unknown",
            Self::TokenExpired => "join_token_expired",
            Self::TokenUsed => "join_token_used",
            Self::Unknown => "node_unknown",
            Self::Revoked => "node_revoked",
            Self::Pending(_) => "node_pending",
            Self::KeyTaken => "wireguard_key_taken",
            Self::Full => "nodes_max_reached",
            Self::Store => "store_away",
            Self::Tunnel => "tunnel_away",
            Self::NotRegistered => "node_not_registered",
            Self::NoProof => "carrier_proof_missing",
            Self::NoCarriers => "carrier_off",
            Self::Upgrade => "carrier_upgrade_required",
        }
    }

    pub(super) const fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) | Self::Version => StatusCode::BAD_REQUEST,
            Self::Store | Self::Tunnel => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoProof => StatusCode::UNAUTHORIZED,
            Self::NoCarriers => StatusCode::NOT_FOUND,
            Self::Upgrade => StatusCode::UPGRADE_REQUIRED,
            Self::NotRegistered => StatusCode::CONFLICT,
            Self::Nonce
            | Self::Signature
            | Self::TokenMalformed
            | Self::TokenUnknown
            | Self::TokenExpired => StatusCode::FORBIDDEN,
            Self::TokenUsed
            | Self::Unknown
            | Self::Revoked
            | Self::Pending(_)
            | Self::KeyTaken
            | Self::Full => StatusCode::FORBIDDEN,
        }
    }
}

impl From<StoreError> for Rejection {
    fn from(error: StoreError) -> Self {
        tracing::warn!(%error, "a node could not be looked up");
        Self::Store
    }
}

impl From<AdmitError> for Rejection {
    fn from(error: AdmitError) -> Self {
        match error {
            AdmitError::Revoked => Self::Revoked,
            AdmitError::Store(_) => Self::Store,
            AdmitError::Record | AdmitError::Tunnel(_) => Self::Tunnel,
        }
    }
}
