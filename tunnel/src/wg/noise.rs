//! Where one session's boringtun state is: not made yet, here, or away at the workbench.
//!
//! Making it takes two key agreements and 11 KB, so a peer that has never spoken has none. While there is no session, a handshake is
//! answered on another thread, and the state goes there and comes back. It is never copied.

use std::sync::Arc;

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};

use super::PeerId;
use super::message::INITIATION_BYTES;
use super::verdict::reason;
use crate::drops::DropReason;
use crate::keys::{PresharedKey, PrivateKey, PublicKey};
use crate::outbox::ROOM_MIN;

/// Who we are to all peers.
pub(crate) struct Identity {
    pub(crate) private: PrivateKey,
    pub(crate) public: x25519_dalek::PublicKey,
    /// Checks MACs and never limits: every `Tunn` insists on checking again what the gate has checked.
    pub(crate) mac: Arc<RateLimiter>,
}

impl Identity {
    pub(crate) fn new(private: &PrivateKey) -> Arc<Self> {
        let public = x25519_dalek::PublicKey::from(private.secret());
        Arc::new(Self {
            private: private.clone(),
            mac: Arc::new(RateLimiter::new(&public, u64::MAX)),
            public,
        })
    }
}

/// What a `Tunn` is made of.
pub(crate) struct Recipe {
    pub(crate) identity: Arc<Identity>,
    pub(crate) key: PublicKey,
    pub(crate) psk: Option<PresharedKey>,
    pub(crate) id: PeerId,
}

impl Recipe {
    fn make(&self) -> Box<Tunn> {
        Box::new(Tunn::new(
            self.identity.private.secret().clone(),
            x25519_dalek::PublicKey::from(self.key.to_bytes()),
            self.psk.as_ref().map(PresharedKey::to_bytes),
            None,
            self.id.index(),
            Some(Arc::clone(&self.identity.mac)),
        ))
    }
}

/// One session's boringtun state.
pub(crate) enum Noise {
    /// Nobody has needed it yet.
    Cold,
    Here(Box<Tunn>),
    /// At the workbench: for as long as it takes to answer a handshake.
    Away,
}

impl Noise {
    /// The state, if it is here.
    pub(crate) fn get(&self) -> Option<&Tunn> {
        match self {
            Self::Here(tunn) => Some(tunn),
            Self::Cold | Self::Away => None,
        }
    }

    /// The state, if it is here.
    pub(crate) fn get_mut(&mut self) -> Option<&mut Tunn> {
        match self {
            Self::Here(tunn) => Some(tunn),
            Self::Cold | Self::Away => None,
        }
    }

    /// The state, made now if need be; `None` while it is away.
    pub(crate) fn make(&mut self, recipe: &Recipe) -> Option<&mut Tunn> {
        if matches!(self, Self::Cold) {
            *self = Self::Here(recipe.make());
        }
        self.get_mut()
    }

    /// Gives the state away for a while; `None` when it is away already.
    pub(crate) fn lend(&mut self, recipe: impl FnOnce() -> Recipe) -> Option<Loan> {
        match std::mem::replace(self, Self::Away) {
            Self::Cold => Some(Loan::ToMake(Box::new(recipe()))),
            Self::Here(tunn) => Some(Loan::Made(tunn)),
            Self::Away => None,
        }
    }
}

/// A state on its way to the workbench.
pub(crate) enum Loan {
    ToMake(Box<Recipe>),
    Made(Box<Tunn>),
}

/// A state on its way back, with the answer.
pub(crate) struct Returned {
    pub(crate) tunn: Box<Tunn>,
    pub(crate) reply: Result<Reply, DropReason>,
}

/// A handshake message of ours.
pub(crate) struct Reply {
    bytes: [u8; ROOM_MIN],
    length: usize,
}

impl Reply {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl Loan {
    /// Answers an initiation: three key agreements.
    pub(crate) fn respond(self, initiation: &[u8; INITIATION_BYTES]) -> Returned {
        let mut tunn = match self {
            Self::ToMake(recipe) => recipe.make(),
            Self::Made(tunn) => tunn,
        };
        let mut bytes = [0; ROOM_MIN];
        let reply = match tunn.decapsulate(None, initiation, &mut bytes) {
            TunnResult::WriteToNetwork(reply) => Ok(reply.len()),
            TunnResult::Err(error) => Err(reason(&error)),
            TunnResult::Done
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => Err(DropReason::Malformed),
        };
        Returned {
            tunn,
            reply: reply.map(|length| Reply { bytes, length }),
        }
    }
}
