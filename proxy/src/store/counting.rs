//! The counting half of a store: what an admission reserves, what a settlement charges, what goes back. Knows no record.

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use config::ids::Tenant;
use policy::ledger::LedgerEntry;
use policy::limit::{Counter, Decision, Elastic};

use super::StoreError;

/// A settled id is remembered for this long, so that a settlement that was sent twice charges once.
pub const SETTLED_KEPT_MS: u64 = 15 * 60_000;

/// The name of one reservation: 16 random bytes, so no two proxies ever make the same.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ReservationId([u8; 16]);

impl ReservationId {
    /// A new one.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// One that is known.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for ReservationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ReservationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ReservationId {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, hex::FromHexError> {
        let mut bytes = [0_u8; 16];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

/// What a request wants to be charged before it runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reservation {
    /// Under which it is settled.
    pub id: ReservationId,
    /// The hash slot of all its keys: what stands in their braces.
    pub tenant: Tenant,
    /// All are charged or none. Different keys, at most 64.
    pub counters: Vec<Counter>,
    /// Tokens that may be granted in part.
    pub elastic: Elastic,
    /// Without a settlement or an extension all of it is given back after this. 0: the charge is final and not remembered.
    pub lease_ms: u64,
}

/// What a request was charged in the end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settlement {
    /// Of the reservation.
    pub id: ReservationId,
    /// Its hash slot.
    pub tenant: Tenant,
    /// As reserved; keys and rules count, costs do not.
    pub counters: Vec<Counter>,
    /// What each counter is charged in the end: 0 gives all back, more than was reserved is charged up.
    pub spent: Vec<u64>,
    /// For the books, written with the settlement: both or neither.
    pub entry: Option<LedgerEntry>,
}

/// A reservation whose id was settled before.
pub(super) fn given_up() -> StoreError {
    StoreError::Unavailable("the reservation was given up before it was made".into())
}

/// Counters, shared by every proxy of the store.
///
/// The embedded store counts with `now_unix_ms`; Redis counts with its own clock, so that many proxies agree.
#[async_trait]
pub trait Counting: Send + Sync {
    /// Charges all counters, or none when one of them refuses, as [`policy::quota`] says. What was charged is remembered under
    /// the id for `lease_ms`. An id that is held already is answered as admitted with what was granted then, and charges
    /// nothing; one that was settled within [`SETTLED_KEPT_MS`] is an error.
    async fn reserve(
        &self,
        reservation: &Reservation,
        now_unix_ms: u64,
    ) -> Result<Decision, StoreError>;

    /// Brings every counter from what was charged to what was spent, exactly once an id: a second settlement within
    /// [`SETTLED_KEPT_MS`] changes nothing. After the lease has passed, and for an id that is unknown, all that was spent is
    /// charged. Returns when the counters are as durable as the store makes them.
    async fn settle(&self, settlement: &Settlement, now_unix_ms: u64) -> Result<(), StoreError>;

    /// Requests that still run keep what they reserved for another `lease_ms` from now. Ids that are gone stay gone.
    async fn extend(
        &self,
        ids: &[(Tenant, ReservationId)],
        lease_ms: u64,
        now_unix_ms: u64,
    ) -> Result<(), StoreError>;

    /// What [`Counting::reserve`] would answer without elastic tokens; charges nothing and remembers nothing. With costs of 0
    /// it says where the counters stand.
    async fn look(
        &self,
        tenant: &Tenant,
        counters: &[Counter],
        now_unix_ms: u64,
    ) -> Result<Decision, StoreError>;

    /// Gives back `cost` of every held counter, such as stored bytes that were deleted; other counters stay. The caller does
    /// it once.
    async fn release(
        &self,
        tenant: &Tenant,
        counters: &[Counter],
        now_unix_ms: u64,
    ) -> Result<(), StoreError>;

    /// Answers if the store does.
    async fn ping(&self) -> Result<(), StoreError>;
}
