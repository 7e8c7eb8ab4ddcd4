//! The counting half of a store: what an admission charges and what goes back. Knows no record.

use async_trait::async_trait;
use policy::limit::{Counter, Decision};

use super::StoreError;

/// Counters, shared by every proxy of the store.
#[async_trait]
pub trait Counting: Send + Sync {
    /// Charges all counters, or none when one of them is used up. The embedded store counts with `now_unix_ms`;
    /// Redis counts with its own clock, so that many proxies agree.
    async fn admit(&self, counters: &[Counter], now_unix_ms: u64) -> Result<Decision, StoreError>;

    /// Takes back what an admission charged, never below zero; for requests that failed through no fault of the caller.
    async fn give_back(&self, counters: &[Counter], now_unix_ms: u64) -> Result<(), StoreError>;

    /// Answers if the store does.
    async fn ping(&self) -> Result<(), StoreError>;
}
