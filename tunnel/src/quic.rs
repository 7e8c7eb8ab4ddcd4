//! Streams between two ends of ours, where one of them has no kernel to do TCP for it: QUIC (quinn-proto, without I/O and without its own
//! cryptography) in UDP packets inside the session. Stock WireGuard peers know nothing of it and get TCP.
//!
//! # Why
//! Measured on the link emulator (`examples/wire.rs`, `examples/link.rs`): 100 Mbit/s, 40 ms, a queue of 500 KB; bulk in Mbit/s at 0, 0.1 and 1 %
//! of random loss, the p99 of 8 KiB requests at 1 %; then the one-way delay p50 of a token stream beside a bulk transfer that saturates 20 Mbit/s
//! with the same queue (200 ms deep); then bulk with a queue of 50 KB, 4 ms. One run each, two cores shared with other work.
//!
//! | | 0 | 0.1 % | 1 % | request p99 | token p50 | short queue |
//! |---|---|---|---|---|---|---|
//! | smoltcp as it is | 10 | 6 | 0.5 | 1087 ms | 94 ms | |
//! | smoltcp with a retransmission timeout of 200 ms and partial acknowledgements (a prototype) | 48 | 10 | 2 | 333 ms | | |
//! | QUIC with quinn's BBR | 69 | 67 | 65 | 100 ms | 211 ms | 37 |
//! | QUIC with our pace (`pace.rs`) | 78 | 76 | 72 | 97 ms | 38 ms | 45 |
//! | the kernel's TCP (`netns`: CUBIC for requests, BBR for bulk) | 87 | 87 | 84 | 148 ms | 65 ms | 80 |
//!
//! So QUIC is what a host without a namespace needs: the kernel's TCP moves more, and QUIC answers sooner on a link that loses something. Our own
//! pace wins over BBR where tokens and bulk share an uplink. On a clean LAN smoltcp moves a gigabyte with a third less work; no home has such a
//! link to its proxy.
//!
//! # How
//! - Each end says a word in UDP when a session begins: that it knows this room, who does its TCP, and a number that changes when it has forgotten
//!   its connections, so that streams of a restarted peer end at once. A peer that says nothing within 300 ms of its first session is
//!   a stock one. Two ends whose kernels both do TCP go on with that.
//! - A connection a direction of dialling, made by the first stream, closed a minute after the last. Idle, a peer costs a few hundred bytes.
//! - Windows: a stream's is [four buffers of TCP](crate::Bounds::tcp_buffer_bytes), at most 1 MiB: quinn-proto gives up a connection
//!   whose stream has more than 1,024 pieces behind a gap. A connection's own is so wide that a stalled stream never stops another.
//! - Below an overlay of 1,248 bytes QUIC does not fit, and TCP it is.

mod carrier;
mod conn;
mod engine;
mod pace;
mod plain;
mod road;
mod setup;
mod side;
mod word;

pub(crate) use conn::QuicConn;
pub(crate) use setup::Setup;
pub(crate) use side::{Quic, Way, WayReply};
pub(crate) use word::is_ours;
