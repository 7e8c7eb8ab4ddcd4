//! TCP over IPv6 for one peer, on smoltcp.
//!
//! smoltcp searches its sockets one by one for every packet. Here every connection has a socket set
//! of its own, found by its port pair, so that a packet costs the same with one stream or a thousand.
//! A peer has one smoltcp interface. This room never touches keys or the UDP socket.

pub(crate) mod backlog;
pub(crate) mod clock;
pub(crate) mod conn;
pub(crate) mod doorbell;
mod entry;
pub(crate) mod link;
pub(crate) mod ports;
pub(crate) mod segment;
pub(crate) mod stack;
