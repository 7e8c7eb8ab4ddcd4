//! Kernel TCP in a network namespace of our own, without root.
//!
//! A small helper process (this program again, see [`helper_main`]) enters a user and a network namespace that nobody else uses, makes a
//! TUN device there and hands its descriptor over; later it makes sockets there on request. This process reads packets from the TUN,
//! in super-segments of up to 64 KiB, encrypts them for their peers, and writes what peers send, merged again, back into it. Streams are
//! ordinary sockets of the kernel: its loss recovery, its buffers, its back-pressure.
//!
//! This room never touches the host's own network, and never decides who a packet may be from: the core has checked that.

mod conn;
mod entrance;
mod hello;
mod helper;
mod inbound;
#[cfg(test)]
mod offload;
mod outbound;
mod refusal;
mod registry;
mod route;
mod sum;
mod tun;
mod virtio;

pub(crate) use conn::KernelConn;
pub(crate) use entrance::{Entrance, Plan};
pub use helper::helper_main;
pub(crate) use inbound::{FRONT, Inbound, SLOT_BYTES};
pub(crate) use outbound::{PADDING_ROOM, cut_to, split};
pub(crate) use refusal::{REFUSAL_BYTES, refusal};
pub(crate) use registry::{Acceptor, Limits, Registry};
pub(crate) use tun::Tun;

/// The word after the program's name that makes it the helper.
pub(crate) const HELPER_WORD: &str = "__netns";
