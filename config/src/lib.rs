//! Floor 0: the words both sides of Hearth speak, and their settings.
//!
//! Everything here is data and the way it is read and written: tiers and ids, credentials, units, the messages on the wire
//! ([`wire`]), and what an operator can set ([`settings`]). Reading is where mistakes are found: a type that came out of this floor
//! needs no second check. Imports nothing of ours; no network, no clock, and no file except the settings themselves.

pub mod checkup;
pub mod fingerprint;
pub mod ids;
pub mod secret;
pub mod settings;
pub mod tier;
pub mod token;
pub mod units;
pub mod wire;
pub mod zone;
