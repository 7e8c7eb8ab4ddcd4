//! Streams between two ends of ours, where one of them has no kernel to do TCP for it: QUIC in UDP in the session.

mod carrier;
mod conn;
mod pace;
mod plain;
mod setup;
mod side;
mod word;

pub(crate) use conn::QuicConn;
pub(crate) use setup::Setup;
pub(crate) use side::{Quic, Way, WayReply};
pub(crate) use word::is_ours;
