//! Management: keys, people, nodes, usage, the audit log. [`Api`] answers `/admin/v1` for the public listener (with an
//! administrator's key), for the running proxy's Unix socket, and for the command line when no proxy runs. Who may ask is decided
//! before; here nothing is trusted but the form of what is asked.

pub mod api;
pub mod client;
pub(crate) mod connection;
pub mod explain;
mod operations;
pub mod routes;
mod schema;
pub mod server;
pub mod words;

pub use api::{Answer, Api, ApiFacts, Asked};
pub use operations::{AdminError, Live, Operations};
pub(crate) use operations::{COME_BACK, LookAtTunnel};

/// The socket's name inside the state directory.
pub const SOCKET_NAME: &str = "admin.sock";

#[cfg(test)]
mod tests;
