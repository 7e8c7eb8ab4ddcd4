//! Floor 4: the harness of the end-to-end stories. Starts the real programs; fakes nothing that can be run.

pub mod client;
pub mod fake;
pub mod issuer;
pub mod node;
pub mod process;
pub mod proxy;
pub mod redis;
pub mod shaper;
pub mod wait;
