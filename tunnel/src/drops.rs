//! Counts packets the tunnel threw away, by reason. Numbers only: no address, no content.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(usize)]
pub(crate) enum DropReason {
    Malformed,
    UnknownPeer,
    Limited,
    BadMac,
    Unauthentic,
    Replayed,
    CounterExhausted,
    ForeignSource,
    ForeignDestination,
    NotTcp,
    ClosedPort,
    TooManyStreams,
    BacklogFull,
    CarrierFull,
}

const REASONS: usize = DropReason::CarrierFull as usize + 1;

/// The live counters, shared by the core and whoever reads them.
#[derive(Debug, Default)]
pub(crate) struct Drops([AtomicU64; REASONS]);

impl Drops {
    pub(crate) fn count(&self, reason: DropReason) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Counters {
        let of = |reason: DropReason| self.0[reason as usize].load(Ordering::Relaxed);
        Counters {
            malformed: of(DropReason::Malformed),
            unknown_peer: of(DropReason::UnknownPeer),
            limited: of(DropReason::Limited),
            bad_mac: of(DropReason::BadMac),
            unauthentic: of(DropReason::Unauthentic),
            replayed: of(DropReason::Replayed),
            counter_exhausted: of(DropReason::CounterExhausted),
            foreign_source: of(DropReason::ForeignSource),
            foreign_destination: of(DropReason::ForeignDestination),
            not_tcp: of(DropReason::NotTcp),
            closed_port: of(DropReason::ClosedPort),
            too_many_streams: of(DropReason::TooManyStreams),
            backlog_full: of(DropReason::BacklogFull),
            carrier_full: of(DropReason::CarrierFull),
        }
    }
}

/// Packets dropped since the tunnel started, by reason.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Counters {
    /// Not a WireGuard message.
    pub malformed: u64,
    /// For a receiver index or from a key nobody here has.
    pub unknown_peer: u64,
    /// Handshakes over the limit of their source, or answered with a cookie.
    pub limited: u64,
    /// Handshakes made without knowing our public key.
    pub bad_mac: u64,
    /// Failed authentication: wrong key, wrong pre-shared key, or forged.
    pub unauthentic: u64,
    /// Packets or handshakes seen before.
    pub replayed: u64,
    /// Data messages whose counter is at its end.
    pub counter_exhausted: u64,
    /// Overlay packets whose source is not the peer's address.
    pub foreign_source: u64,
    /// Overlay packets for another address than ours; peers never reach each other through us.
    pub foreign_destination: u64,
    /// Overlay packets that are not plain TCP over IPv6 (fragments and extension headers included).
    pub not_tcp: u64,
    /// Attempts to connect to a port that nobody here listens on; they are refused.
    pub closed_port: u64,
    /// Connection attempts over the peer's stream maximum.
    pub too_many_streams: u64,
    /// Connection attempts over a listener's backlog.
    pub backlog_full: u64,
    /// Datagrams for a carrier whose stream takes no more.
    pub carrier_full: u64,
}

impl Counters {
    /// Each by its name.
    pub const fn each(&self) -> [(&'static str, u64); 14] {
        [
            ("malformed", self.malformed),
            ("unknown_peer", self.unknown_peer),
            ("limited", self.limited),
            ("bad_mac", self.bad_mac),
            ("unauthentic", self.unauthentic),
            ("replayed", self.replayed),
            ("counter_exhausted", self.counter_exhausted),
            ("foreign_source", self.foreign_source),
            ("foreign_destination", self.foreign_destination),
            ("not_tcp", self.not_tcp),
            ("closed_port", self.closed_port),
            ("too_many_streams", self.too_many_streams),
            ("backlog_full", self.backlog_full),
            ("carrier_full", self.carrier_full),
        ]
    }
}
