//! The gate before handshake cryptography: who may make us spend a Diffie-Hellman.
//!
//! Order of the checks, cheapest and least forgeable first: the first MAC (proves the sender knows
//! our public key, 0.4 us), the source's own budget, the load limit with its cookie (proves the
//! source address), and only then the key agreement that reveals the sender (50 us).
//! boringtun's own limiter is one counter for everybody, so that a single flooder would put all
//! peers into cookie mode: the budget per source comes before it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, TunnResult};

use crate::drops::DropReason;
use crate::keys::{PrivateKey, PublicKey};
use crate::outbox::ROOM_MIN;

/// Sources remembered at once; 4096 entries are about 150 KiB.
const SOURCES_MAX: usize = 4096;
/// Handshakes one source may start at once: many nodes share an address behind carrier NAT.
const SOURCE_BURST: u32 = 128;
/// One more handshake of a source per this interval, 50 per second.
const SOURCE_INTERVAL: Duration = Duration::from_millis(20);
/// The table is swept at most this often, so that a flood cannot buy full scans.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// What to do with an initiation that did not fail.
#[derive(Debug)]
pub(crate) enum Admission {
    /// The sender claims this key and may go on to the full handshake.
    From(PublicKey),
    /// We are under load: send these bytes back, the sender must prove its address.
    Prove(Vec<u8>),
}

/// The handshake gate of one private key.
pub(crate) struct Gate {
    private: PrivateKey,
    public: x25519_dalek::PublicKey,
    /// Checks MACs and never limits; shared with every session, which insists on checking again.
    mac: Arc<RateLimiter>,
    /// Counts handshakes per second and demands cookies above the limit.
    load: RateLimiter,
    sources: Sources,
}

impl Gate {
    pub(crate) fn new(private: &PrivateKey, per_second_max: u64, now: Instant) -> Self {
        let public = x25519_dalek::PublicKey::from(private.secret());
        Self {
            private: private.clone(),
            mac: Arc::new(RateLimiter::new(&public, u64::MAX)),
            load: RateLimiter::new(&public, per_second_max),
            public,
            sources: Sources::new(SOURCES_MAX, now),
        }
    }

    /// The limiter to build sessions with.
    pub(crate) fn mac(&self) -> Arc<RateLimiter> {
        Arc::clone(&self.mac)
    }

    /// Decides about an initiation from `source`.
    pub(crate) fn admit(
        &mut self,
        source: SocketAddr,
        datagram: &[u8],
        now: Instant,
    ) -> Result<Admission, DropReason> {
        let mut reply = [0u8; ROOM_MIN];
        self.mac
            .verify_packet(Some(source.ip()), datagram, &mut reply)
            .map_err(|error| refusal(&error))?;
        if !self.sources.take(source.ip(), now) {
            return Err(DropReason::Limited);
        }
        let initiation = match self
            .load
            .verify_packet(Some(source.ip()), datagram, &mut reply)
        {
            Ok(Packet::HandshakeInit(initiation)) => initiation,
            Ok(
                Packet::HandshakeResponse(_) | Packet::PacketCookieReply(_) | Packet::PacketData(_),
            ) => return Err(DropReason::Malformed),
            Err(TunnResult::WriteToNetwork(cookie)) => {
                return Ok(Admission::Prove(cookie.to_vec()));
            }
            Err(other) => return Err(refusal(&other)),
        };
        parse_handshake_anon(self.private.secret(), &self.public, &initiation)
            .map(|half| Admission::From(PublicKey::from_bytes(half.peer_static_public)))
            .map_err(|_| DropReason::Unauthentic)
    }

    /// Starts a new second of the load limit, when one has passed.
    pub(crate) fn tick(&self) {
        self.load.reset_count();
    }
}

fn refusal(result: &TunnResult<'_>) -> DropReason {
    match result {
        TunnResult::Err(WireGuardError::InvalidMac) => DropReason::BadMac,
        TunnResult::Err(WireGuardError::UnderLoad) => DropReason::Limited,
        TunnResult::Err(_)
        | TunnResult::Done
        | TunnResult::WriteToNetwork(_)
        | TunnResult::WriteToTunnelV4(..)
        | TunnResult::WriteToTunnelV6(..) => DropReason::Malformed,
    }
}

/// What counts as one source: a whole IPv6 /64 belongs to one customer.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Prefix {
    V4([u8; 4]),
    V6([u8; 8]),
    /// Everybody who found the table full.
    Rest,
}

impl Prefix {
    fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => {
                let mut head = [0; 8];
                head.copy_from_slice(&ip.octets()[..8]);
                Self::V6(head)
            }
        }
    }
}

/// A bounded table of token buckets, one per source prefix.
///
/// A bucket is the single instant at which it is full again (GCRA), so that a full bucket and an
/// absent one are the same thing and can be forgotten.
struct Sources {
    full_at: HashMap<Prefix, Instant>,
    max: usize,
    swept_at: Instant,
}

impl Sources {
    fn new(max: usize, now: Instant) -> Self {
        Self {
            full_at: HashMap::new(),
            max,
            swept_at: now,
        }
    }

    /// Takes one token of the source; false when it has none left.
    fn take(&mut self, ip: IpAddr, now: Instant) -> bool {
        let mut prefix = Prefix::of(ip);
        if !self.full_at.contains_key(&prefix) && self.full_at.len() >= self.max {
            self.sweep(now);
            if self.full_at.len() >= self.max {
                prefix = Prefix::Rest;
            }
        }
        let full_at = self.full_at.entry(prefix).or_insert(now);
        let next = (*full_at).max(now) + SOURCE_INTERVAL;
        if next.duration_since(now) > SOURCE_INTERVAL * SOURCE_BURST {
            return false;
        }
        *full_at = next;
        true
    }

    fn sweep(&mut self, now: Instant) {
        if now.duration_since(self.swept_at) >= SWEEP_INTERVAL {
            self.swept_at = now;
            self.full_at.retain(|_, full_at| *full_at > now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use proptest::prelude::*;

    use super::*;

    fn v4(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[test]
    fn a_source_gets_its_burst_and_then_its_rate() {
        let now = Instant::now();
        let mut sources = Sources::new(10, now);
        let burst = (0..1000).filter(|_| sources.take(v4(1), now)).count();
        assert_eq!(burst, SOURCE_BURST as usize);
        assert!(sources.take(v4(2), now), "another source is not affected");
        let later = now + SOURCE_INTERVAL * 3;
        assert_eq!((0..10).filter(|_| sources.take(v4(1), later)).count(), 3);
    }

    #[test]
    fn addresses_of_one_ipv6_network_share_a_budget() {
        let now = Instant::now();
        let mut sources = Sources::new(10, now);
        let taken = (0u16..1000)
            .map(|host| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, host)))
            .filter(|ip| sources.take(*ip, now))
            .count();
        assert_eq!(taken, SOURCE_BURST as usize);
    }

    #[test]
    fn a_flood_of_sources_neither_grows_the_table_nor_is_unlimited() {
        let now = Instant::now();
        let mut sources = Sources::new(100, now);
        let taken = (0..10_000).filter(|n| sources.take(v4(*n), now)).count();
        assert!(sources.full_at.len() <= 101, "bounded");
        assert_eq!(
            taken,
            100 + SOURCE_BURST as usize,
            "the rest share one budget"
        );
        let later = now + Duration::from_secs(10);
        assert!(sources.take(v4(20_000), later));
        assert!(sources.full_at.len() <= 2, "forgotten when full again");
    }

    proptest! {
        #[test]
        fn no_initiation_makes_the_gate_panic(body in proptest::collection::vec(any::<u8>(), 144)) {
            let now = Instant::now();
            let mut gate = Gate::new(&PrivateKey::from_bytes([3; 32]), 10, now);
            let mut datagram = vec![1, 0, 0, 0];
            datagram.extend_from_slice(&body);
            let verdict = gate.admit(SocketAddr::from(([1, 2, 3, 4], 5)), &datagram, now);
            prop_assert!(matches!(verdict, Err(DropReason::BadMac)));
        }
    }
}
