//! Floor 1: every decision the proxy makes, as plain values.
//!
//! Time is an argument, named `now` and last; nothing here reads a clock, a file, a socket or the environment, and nothing
//! waits. The shell asks, gets an answer, and acts. What a decision needs to know arrives as an argument; what it found
//! comes back as a value: a [`refusal::Refusal`] when we say no, a [`route::Route`] when there is somewhere to go.
//!
//! Words: a *principal* is who asks; a *refusal* is our no, a *fault* is a backend that failed; a *rate limit* is a short
//! window, a *quota* a day or a month; a *route* is an ordered plan of *steps*, an *attempt* is one try at one of them.

pub mod breaker;
pub mod calendar;
pub mod claims;
pub mod classify;
pub mod gcra;
pub mod hedge;
pub mod identity;
pub mod ledger;
pub mod limit;
pub mod open;
pub mod plan;
pub mod quota;
pub mod record;
pub mod refusal;
pub mod registry;
pub mod route;
pub mod router;
#[cfg(test)]
mod testing;
pub mod usage;
pub mod waiting;
pub mod waking;
