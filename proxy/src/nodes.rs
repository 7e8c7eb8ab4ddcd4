//! Home nodes as the proxy sees them: how they get in, what they report, how requests reach them. Speaks HTTP inside the
//! tunnel and enrolment outside of it; never decides where a request goes.

pub mod derive;
pub mod endpoints;
pub mod fleet;
pub mod gossip;
pub mod hubs;
pub mod kept;
pub mod members;
pub mod nonce;
pub mod peers;
pub mod pulse;
pub mod register;
pub mod report;
pub mod unmanaged;
pub mod upstream;

#[cfg(test)]
pub(crate) mod tests;
