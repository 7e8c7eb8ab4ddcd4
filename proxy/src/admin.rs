//! Management: keys, nodes, status. [`Operations`] does the work, for the running proxy's Unix socket and for the command line
//! when no proxy runs. Nothing here is reachable from the network.

pub mod client;
pub(crate) mod connection;
mod operations;
pub mod server;
pub mod words;

pub use operations::{AdminError, Live, Operations};

/// The socket's name inside the state directory.
pub const SOCKET_NAME: &str = "admin.sock";

#[cfg(test)]
mod tests;
