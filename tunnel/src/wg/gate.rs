//! The gate before handshake cryptography: who may make us spend a Diffie-Hellman.
//!
//! Order of the checks, cheapest first:
//!
//! 1. a wide budget per source prefix, before any hash: nobody makes us compute MACs without end;
//! 2. the first MAC, which proves that the sender knows our public key (0.4 us);
//! 3. the second MAC, which proves the sender's address and port with a cookie of ours. Who has proven it answers to a budget of its
//!    own, in a table that forged sources cannot fill;
//! 4. everybody else answers to a narrow budget per prefix and to one for all together. Above either, or when handshakes pile up, the
//!    answer is a cookie: never silence, so that a flood with forged addresses keeps nobody out.
//!
//! boringtun's own limiter is one counter for everybody, so that a single flooder would put all peers into cookie mode, and its cookies
//! say nothing about the port. The key agreement itself (50 us) happens at the workbench.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::TunnResult;
use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;

use super::bench::{Claim, JOBS_MAX};
use super::budget::{Budget, Rate, Sources, WhenFull};
use super::message::INITIATION_BYTES;
use super::noise::Identity;
use crate::drops::DropReason;
use crate::keys::PrivateKey;
use crate::outbox::ROOM_MIN;
use crate::path::Path;

/// Sources remembered at once, per table; 4096 entries are about 150 KiB.
const SOURCES_MAX: usize = 4096;
/// Datagrams of one prefix that are looked at at all: 2,000 per second.
const LOOKS: Rate = Rate {
    interval: Duration::from_micros(500),
    burst: 4_096,
};
/// Handshakes one source may begin without a proof of its address: 50 per second.
const UNPROVEN: Rate = Rate {
    interval: Duration::from_millis(20),
    burst: 128,
};
/// With a proof: a whole company behind one address, or carrier NAT, may come back at once. 200 per second.
const PROVEN: Rate = Rate {
    interval: Duration::from_millis(5),
    burst: 1_024,
};
/// Cookies given out: 4,000 per second, about 1 % of a core.
const COOKIES: Rate = Rate {
    interval: Duration::from_micros(250),
    burst: 1_000,
};
/// With so many handshakes under way, newcomers prove their address first.
const BUSY: usize = 64;
/// The second MAC at the end of an initiation.
const MAC2_BYTES: usize = 16;

/// What to do with an initiation that did not fail.
#[derive(Debug)]
pub(crate) enum Admission {
    /// Find out who it is.
    Examine(Claim),
    /// Send these bytes back: the sender must prove its address.
    Prove(Vec<u8>),
}

/// The handshake gate of one private key.
pub(crate) struct Gate {
    identity: Arc<Identity>,
    /// Always under load, so that it asks everybody for a cookie.
    proof: RateLimiter,
    looks: Sources,
    unproven: Sources,
    proven: Sources,
    /// For all sources without a proof together.
    all: Option<Budget>,
    cookies: Budget,
}

impl Gate {
    pub(crate) fn new(private: &PrivateKey, per_second_max: u64, now: Instant) -> Self {
        let identity = Identity::new(private);
        Self {
            proof: RateLimiter::new(&identity.public, 0),
            identity,
            looks: Sources::new(SOURCES_MAX, LOOKS, WhenFull::Pass, now),
            unproven: Sources::new(SOURCES_MAX, UNPROVEN, WhenFull::Share, now),
            proven: Sources::new(SOURCES_MAX, PROVEN, WhenFull::Share, now),
            all: Rate::per_second(per_second_max).map(|rate| Budget::new(rate, now)),
            cookies: Budget::new(COOKIES, now),
        }
    }

    /// Who we are, for the sessions.
    pub(crate) fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Decides about an initiation from `source`. `under_way`: handshakes at the workbench.
    pub(crate) fn admit(
        &mut self,
        source: Path,
        datagram: &[u8],
        (under_way, now): (usize, Instant),
    ) -> Result<Admission, DropReason> {
        let claimed = source.source();
        let ip = claimed.ip();
        if !self.looks.take(ip, now) {
            return Err(DropReason::Limited);
        }
        let mut room = [0u8; ROOM_MIN];
        self.identity
            .mac
            .verify_packet(Some(ip), datagram, &mut room)
            .map_err(|error| refusal(&error))?;
        let bytes: [u8; INITIATION_BYTES] =
            datagram.try_into().map_err(|_| DropReason::Malformed)?;
        let claim = Claim { source, bytes };
        let is_proven = bytes[INITIATION_BYTES - MAC2_BYTES..] != [0; MAC2_BYTES]
            && self
                .proof
                .verify_packet(Some(bound(claimed)), datagram, &mut room)
                .is_ok();
        if is_proven {
            let is_admitted = under_way < JOBS_MAX && self.proven.take(ip, now);
            return is_admitted
                .then_some(Admission::Examine(claim))
                .ok_or(DropReason::Limited);
        }
        let is_admitted = under_way < BUSY
            && self.unproven.take(ip, now)
            && self.all.as_mut().is_some_and(|all| all.take(now));
        if is_admitted {
            return Ok(Admission::Examine(claim));
        }
        if !self.cookies.take(now) {
            return Err(DropReason::Limited);
        }
        match self
            .proof
            .verify_packet(Some(bound(claimed)), datagram, &mut room)
        {
            Err(TunnResult::WriteToNetwork(cookie)) => Ok(Admission::Prove(cookie.to_vec())),
            Err(other) => Err(refusal(&other)),
            Ok(_) => Err(DropReason::Limited),
        }
    }
}

/// What a cookie is bound to: boringtun hashes an address, so the port becomes part of one. An IPv6 customer owns the whole /64, hence
/// ports may fall together there.
fn bound(source: SocketAddr) -> IpAddr {
    let port = source.port();
    let octets = match source.ip() {
        IpAddr::V4(ip) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&ip.octets());
            octets[4..6].copy_from_slice(&port.to_be_bytes());
            octets
        }
        IpAddr::V6(ip) => {
            let mut octets = ip.octets();
            for (octet, byte) in octets[14..].iter_mut().zip(port.to_be_bytes()) {
                *octet ^= byte;
            }
            octets
        }
    };
    IpAddr::V6(Ipv6Addr::from(octets))
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

#[cfg(test)]
mod tests {
    use boringtun::noise::Tunn;
    use proptest::prelude::*;

    use super::*;

    fn gate(per_second_max: u64, now: Instant) -> Gate {
        Gate::new(&PrivateKey::from_bytes([3; 32]), per_second_max, now)
    }

    /// A stranger that knows the gate's public key.
    fn stranger(gate: &Gate, number: u8) -> Tunn {
        let secret = PrivateKey::from_bytes([number; 32]).secret().clone();
        Tunn::new(secret, gate.identity.public, None, None, 1, None)
    }

    fn initiation(tunn: &mut Tunn) -> Vec<u8> {
        let mut room = [0; 256];
        let TunnResult::WriteToNetwork(datagram) =
            tunn.format_handshake_initiation(&mut room, true)
        else {
            panic!("no initiation");
        };
        datagram.to_vec()
    }

    fn v4(number: u32, port: u16) -> Path {
        Path::Udp((std::net::Ipv4Addr::from(number), port).into())
    }

    fn is_examined(verdict: &Result<Admission, DropReason>) -> bool {
        matches!(verdict, Ok(Admission::Examine(_)))
    }

    fn prove(gate: &mut Gate, tunn: &mut Tunn, source: Path, now: Instant) {
        let first = initiation(tunn);
        let Ok(Admission::Prove(cookie)) = gate.admit(source, &first, (0, now)) else {
            panic!("no cookie");
        };
        assert!(cookie.len() <= first.len(), "no more out than in");
        assert!(matches!(
            tunn.decapsulate(None, &cookie, &mut [0; 256]),
            TunnResult::Done
        ));
    }

    #[test]
    fn a_cookie_proves_address_and_port_and_nothing_else() {
        let now = Instant::now();
        let homes = [
            (v4(7, 1000), v4(7, 1001)),
            (v4(7, 1000), v4(8, 1000)),
            (
                Path::Udp("[2001:db8::1]:9".parse().unwrap()),
                Path::Udp("[2001:db8::1]:10".parse().unwrap()),
            ),
        ];
        for (home, elsewhere) in homes {
            let mut gate = gate(0, now);
            let mut tunn = stranger(&gate, 9);
            prove(&mut gate, &mut tunn, home, now);
            let proven = initiation(&mut tunn);
            assert!(is_examined(&gate.admit(home, &proven, (0, now))));
            assert!(
                !is_examined(&gate.admit(elsewhere, &proven, (0, now))),
                "{elsewhere} with the cookie of {home}"
            );
        }
    }

    #[test]
    fn a_flood_from_ten_thousand_forged_sources_keeps_nobody_out() {
        let now = Instant::now();
        let mut gate = gate(250, now);
        let mut forger = stranger(&gate, 9);
        let forged = initiation(&mut forger);
        let mut examined = 0;
        for second in 0..3u32 {
            for number in 0..2_000 {
                let at = now + Duration::from_micros(u64::from(second * 2_000 + number) * 500);
                let source = v4(0x0a00_0000 + second * 5_000 + number * 3, 51_820);
                examined += usize::from(is_examined(&gate.admit(source, &forged, (0, at))));
            }
        }
        assert!(examined <= 250 * 4, "{examined} key agreements in 3 s");
        let at = now + Duration::from_secs(3);
        while is_examined(&gate.admit(v4(0x0c00_0001, 9), &forged, (0, at))) {}
        let mut honest = stranger(&gate, 10);
        let home = v4(0x0b00_0001, 40_000);
        prove(&mut gate, &mut honest, home, at);
        let proven = initiation(&mut honest);
        assert!(is_examined(&gate.admit(home, &proven, (0, at))));
    }

    #[test]
    fn a_source_that_floods_puts_nobody_else_into_need_of_a_cookie() {
        let now = Instant::now();
        let mut gate = gate(250, now);
        let mut flooder = stranger(&gate, 9);
        let flood = initiation(&mut flooder);
        let mut honest = stranger(&gate, 10);
        let mut examined = 0;
        for millisecond in 0..5_000u32 {
            let at = now + Duration::from_millis(u64::from(millisecond));
            examined += usize::from(is_examined(&gate.admit(v4(7, 1), &flood, (0, at))));
            if millisecond % 100 == 99 {
                let home = v4(0x0b00_0000 + millisecond, 40_000);
                let verdict = gate.admit(home, &initiation(&mut honest), (0, at));
                assert!(is_examined(&verdict), "{verdict:?} after {millisecond} ms");
            }
        }
        assert!(examined <= 128 + 50 * 5 + 1, "{examined} of the flood");
    }

    #[test]
    fn one_real_address_with_a_cookie_has_a_budget_too() {
        let now = Instant::now();
        let mut gate = gate(0, now);
        let mut tunn = stranger(&gate, 9);
        let home = v4(7, 1000);
        prove(&mut gate, &mut tunn, home, now);
        let proven = initiation(&mut tunn);
        let examined = (0..3_000).filter(|_| is_examined(&gate.admit(home, &proven, (0, now))));
        assert_eq!(examined.count(), PROVEN.burst as usize);
    }

    #[test]
    fn before_any_hash_a_prefix_has_a_budget() {
        let now = Instant::now();
        let mut gate = gate(250, now);
        let mut garbage = [7; INITIATION_BYTES];
        garbage[..4].copy_from_slice(&[1, 0, 0, 0]);
        let verdicts: Vec<_> = (0..6_000)
            .filter_map(|_| gate.admit(v4(7, 1), &garbage, (0, now)).err())
            .collect();
        let hashed = verdicts.iter().filter(|one| **one == DropReason::BadMac);
        assert_eq!(hashed.count(), LOOKS.burst as usize);
        assert_eq!(verdicts.last(), Some(&DropReason::Limited));
    }

    #[test]
    fn while_handshakes_pile_up_only_proven_sources_get_in() {
        let now = Instant::now();
        let mut gate = gate(250, now);
        let mut tunn = stranger(&gate, 9);
        let first = initiation(&mut tunn);
        let verdict = gate.admit(v4(1, 1), &first, (BUSY, now));
        assert!(matches!(verdict, Ok(Admission::Prove(_))));
    }

    proptest! {
        #[test]
        fn no_initiation_makes_the_gate_panic(body in proptest::collection::vec(any::<u8>(), 144)) {
            let now = Instant::now();
            let mut gate = gate(10, now);
            let mut datagram = vec![1, 0, 0, 0];
            datagram.extend_from_slice(&body);
            let verdict = gate.admit(v4(0x0102_0304, 5), &datagram, (0, now));
            prop_assert!(matches!(verdict, Err(DropReason::BadMac)));
        }
    }
}
