//! The hub's clock is put forward or back by an hour, with an idle node and with one that streams; and a thousand sessions that are renewed
//! together. In invented time, boringtun's too.
//!
//! boringtun reads the date once, when a session's state is made, and counts on from there by the monotonic clock. A date that is changed under
//! a running hub is therefore read by nobody until a state is made anew: with other keys, or by a restart. That is what is told here. A clock
//! that leaps is more: everything ages by an hour at once.

use boringtun::noise::{Tunn, TunnResult};
use mock_instant::MockClock;

use super::clock::{has_session, until_up, up, works};
use super::many::CROWD;
use super::*;

const HOUR: Duration = Duration::from_hours(1);
const ROUND_TRIP: Duration = Duration::from_millis(40);

impl Sim {
    /// Whatever is done next is done by this side, by its own clock.
    pub(super) fn enter(&mut self, me: usize) {
        let common = MockClock::time().saturating_sub(self.ahead[self.inside]);
        MockClock::set_time(common + self.ahead[me]);
        self.inside = me;
    }

    /// Only the hub's clock leaps.
    fn leap_of_hub(&mut self, time: Duration) {
        self.enter(0);
        self.ahead[1] += time;
    }
}

fn calling() -> Peer {
    Peer {
        endpoint: Some(address(0)),
        initiates: true,
        ..peer(0, false)
    }
}

/// The hub starts anew, remembers the node, and has its state made; its first call is lost.
fn restart_hub(sim: &mut Sim) {
    sim.weather = OUTAGE;
    sim.restart(1);
    sim.enter(1);
    let now = sim.now;
    sim.cores[1].set_peer(calling(), now).unwrap();
    sim.step();
    sim.weather = CLEAR;
}

/// The hub starts with a clock that is an hour ahead, and everybody knows each other again.
fn restart_hub_ahead(sim: &mut Sim) {
    restart_hub(sim);
    sim.leap_of_hub(HOUR);
    let took = until_up(sim, Duration::from_secs(5));
    assert!(took <= Duration::from_secs(2), "{took:?}");
    let now = sim.now;
    sim.enter(1);
    sim.cores[1].force_handshake(OWN[0], now).unwrap();
    sim.pass(Duration::from_secs(1));
}

/// Tokens from the hub to the node, and the longest that one took.
fn tokens(sim: &mut Sim, (from, to): (&Conn, &Conn), count: u32) -> Duration {
    let mut longest = Duration::ZERO;
    let mut buffer = [0; 64];
    for _ in 0..count {
        let began = sim.now;
        let sent = from.poll_write(&context(), &[IoSlice::new(b"token")]);
        assert!(matches!(sent, Poll::Ready(Ok(5))), "{sent:?}");
        sim.until(Duration::from_secs(30), |_| {
            to.poll_read(&context(), &mut buffer)
                .is_ready()
                .then_some(())
        });
        longest = longest.max(sim.now - began);
        sim.pass(Duration::from_millis(50));
    }
    longest
}

#[test]
fn a_hub_that_comes_back_an_hour_ahead_and_later_at_the_right_time_finds_its_idle_node() {
    let mut sim = up(31);
    restart_hub_ahead(&mut sim);
    works(&mut sim);
    sim.pass(Duration::from_mins(20));
    assert!(has_session(&sim, 0) && has_session(&sim, 1), "it renews");
    works(&mut sim);
    assert_eq!(sim.drops(0).replayed, 0, "nothing looked old");

    // The clock has been set right meanwhile: an hour back.
    restart_hub(&mut sim);
    let took = until_up(&mut sim, Duration::from_secs(5));
    assert!(took <= Duration::from_secs(2), "{took:?}");
    assert!(sim.drops(0).replayed > 0, "the hub's call looked old");
    works(&mut sim);
    sim.pass(Duration::from_mins(20));
    assert!(has_session(&sim, 0) && has_session(&sim, 1), "it renews");
    works(&mut sim);
}

#[test]
fn a_node_that_streams_notices_a_hub_that_comes_back_an_hour_ahead_or_back_and_dials_again() {
    let mut sim = up(32);
    for is_ahead in [true, false] {
        let (near, far) = sim.connect();
        assert!(tokens(&mut sim, (&near, &far), 10) <= ROUND_TRIP);
        sim.cores[1].listeners.clear();
        let began = sim.now;
        if is_ahead {
            restart_hub_ahead(&mut sim);
        } else {
            restart_hub(&mut sim);
            until_up(&mut sim, Duration::from_secs(5));
            assert!(sim.drops(0).replayed > 0, "the hub's call looked old");
        }
        // Nobody leaves the stream hanging: the hub knows nothing of it.
        let _taken = near.poll_write(&context(), &[IoSlice::new(b"more")]);
        sim.until(Duration::from_secs(5), |_| {
            let read = near.poll_read(&context(), &mut [0; 8]);
            matches!(read, Poll::Ready(Err(_))).then_some(())
        });
        let (near, far) = sim.connect();
        assert!(tokens(&mut sim, (&near, &far), 10) <= ROUND_TRIP);
        sim.cores[1].listeners.clear();
        let took = sim.now - began;
        assert!(took <= Duration::from_secs(6), "{took:?}");
    }
}

#[test]
fn a_stream_lives_on_when_the_hubs_clock_leaps_an_hour_and_when_keys_are_dated_by_it() {
    let mut sim = up(33);
    let (near, far) = sim.connect();
    assert!(tokens(&mut sim, (&far, &near), 20) <= ROUND_TRIP);
    sim.leap_of_hub(HOUR);
    let longest = tokens(&mut sim, (&far, &near), 40);
    assert!(
        longest <= Duration::from_secs(5),
        "{longest:?} after the leap"
    );
    assert!(
        tokens(&mut sim, (&near, &far), 20) <= ROUND_TRIP * 2,
        "healed"
    );
    // Fresh keys while the clocks differ by an hour.
    for round in 0..3u8 {
        let now = sim.now;
        let fresh = PrivateKey::from_bytes([120 + round; 32]);
        let node = Peer {
            public_key: fresh.public_key(),
            ..peer(0, false)
        };
        sim.enter(1);
        sim.cores[1].renew_peer(node, None, now).unwrap();
        sim.enter(0);
        sim.cores[0]
            .renew_peer(peer(1, true), Some(fresh), now)
            .unwrap();
        let longest = tokens(&mut sim, (&far, &near), 20);
        assert!(
            longest <= Duration::from_millis(60),
            "{longest:?} in {round}"
        );
    }
    let drops = [sim.drops(0).replayed, sim.drops(1).replayed];
    assert_eq!(drops, [0, 0], "no date is compared with another's");
}

#[test]
fn keys_that_change_every_five_seconds_for_ten_minutes_make_no_token_wait() {
    let mut sim = up(34);
    let (near, far) = sim.connect();
    for round in 0..120u8 {
        let now = sim.now;
        let fresh = PrivateKey::from_bytes([100 + round; 32]);
        let psk = Some(PresharedKey::from_bytes([round; 32]));
        let node = Peer {
            public_key: fresh.public_key(),
            preshared_key: psk.clone(),
            ..peer(0, false)
        };
        let hub = Peer {
            preshared_key: psk,
            ..peer(1, true)
        };
        sim.cores[1].renew_peer(node, None, now).unwrap();
        sim.cores[0].renew_peer(hub, Some(fresh), now).unwrap();
        let down = tokens(&mut sim, (&far, &near), 25);
        let up = tokens(&mut sim, (&near, &far), 25);
        assert!(down.max(up) <= Duration::from_millis(50), "round {round}");
    }
    for me in [0, 1] {
        let drops = sim.drops(me);
        assert_eq!(drops.unauthentic + drops.bad_mac, 0, "{drops:?}");
        let core = &sim.cores[me];
        assert!(core.aliases.len() <= 2, "what is old is forgotten");
        assert_eq!(core.members.len(), 1);
    }
    assert!(sim.cores[1].by_key.len() <= 3);
}

/// A thousand nodes, each a bare boringtun, at the hub's other end.
struct Crowd {
    tunns: Vec<Tunn>,
    now: Instant,
    tended_at: Instant,
    /// Initiations of the hub, by the millisecond.
    calls: BTreeMap<u128, usize>,
    began: Instant,
}

impl Crowd {
    fn source(number: usize) -> Path {
        let [_, _, high, low] = u32::try_from(number).unwrap().to_be_bytes();
        Path::Udp(([203, 0, high, low], 51_820).into())
    }

    fn key(number: usize) -> PrivateKey {
        let mut secret = [11; 32];
        secret[8..16].copy_from_slice(&(number as u64).to_le_bytes());
        PrivateKey::from_bytes(secret)
    }

    fn peer(number: usize) -> Peer {
        let low = u16::try_from(number).unwrap();
        Peer {
            public_key: Self::key(number).public_key(),
            preshared_key: None,
            address: Ipv6Addr::new(0xfd00, 0, 0, 0, 2, 0, 0, low),
            endpoint: Some(Self::source(number).source()),
            keepalive: Some(Duration::from_secs(20)),
            initiates: true,
        }
    }

    fn new(hub: &PrivateKey, now: Instant) -> Self {
        let tunn = |number| {
            let (own, peer) = (
                Self::key(number),
                x25519_dalek::PublicKey::from(hub.secret()),
            );
            let limiter = boringtun::noise::rate_limiter::RateLimiter::new(
                &x25519_dalek::PublicKey::from(own.secret()),
                u64::MAX,
            );
            let index = u32::try_from(number).unwrap();
            let secret = own.secret().clone();
            Tunn::new(secret, peer, None, None, index, Some(Arc::new(limiter)))
        };
        Self {
            tunns: (0..usize::from(CROWD)).map(tunn).collect(),
            now,
            tended_at: now,
            calls: BTreeMap::new(),
            began: now,
        }
    }

    /// Carries everything that the hub says to whom it is for, and the answers back, at once.
    fn carry(&mut self, hub: &mut Core) {
        while let Some(batch) = hub.poll_transmit() {
            let SocketAddr::V4(to) = batch.destination.source() else {
                panic!("a node is somewhere");
            };
            let [_, _, high, low] = to.ip().octets();
            let number = usize::from(u16::from_be_bytes([high, low]));
            for datagram in batch.contents().chunks(batch.segment) {
                let at = (self.now - self.began).as_millis();
                *self.calls.entry(at).or_default() += usize::from(datagram[0] == 1);
                let mut room = [0; 2_048];
                let answer = self.tunns[number].decapsulate(None, datagram, &mut room);
                if let TunnResult::WriteToNetwork(answer) = answer {
                    let from = Self::source(number);
                    hub.handle_datagram(from, answer, self.now);
                }
            }
            hub.recycle(batch);
        }
    }

    fn pass(&mut self, hub: &mut Core, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.carry(hub);
            let latest = self.now + Duration::from_secs(1);
            let next = hub.poll_timeout().unwrap_or(latest).min(latest);
            let next = next.max(self.now);
            MockClock::advance(next - self.now);
            self.now = next;
            hub.handle_timeout(next);
            while hub.has_work() {
                self.carry(hub);
                hub.handle_timeout(next);
                hub.work(next);
            }
            if next >= self.tended_at + Duration::from_secs(1) {
                self.tended_at = next;
                self.tend(hub);
            }
        }
        self.carry(hub);
    }

    /// The nodes' own timers: what they were sent they acknowledge after a while.
    fn tend(&mut self, hub: &mut Core) {
        for (number, tunn) in self.tunns.iter_mut().enumerate() {
            let mut room = [0; 256];
            if let TunnResult::WriteToNetwork(said) = tunn.update_timers(&mut room) {
                hub.handle_datagram(Self::source(number), said, self.now);
            }
        }
    }

    fn without(&self, hub: &Core) -> usize {
        let has = |number: &usize| {
            let address = Self::peer(*number).address;
            let status = hub.windows.board.read(address, self.now);
            status.is_some_and(|status| status.since_handshake.is_some())
        };
        (0..self.tunns.len()).filter(|one| !has(one)).count()
    }

    /// The most calls in so many milliseconds.
    fn most(&self, window: u128) -> usize {
        let starts = self.calls.keys();
        let in_window = |start: &u128| self.calls.range(*start..*start + window).map(|one| one.1);
        starts
            .map(|start| in_window(start).sum())
            .max()
            .unwrap_or_default()
    }
}

#[test]
fn a_thousand_sessions_that_were_made_together_are_renewed_in_their_turn_and_none_is_missed() {
    let began = Instant::now();
    let mut hub = core(1, 41, began);
    let mut crowd = Crowd::new(&key(1), began);
    for number in 0..usize::from(CROWD) {
        hub.set_peer(Crowd::peer(number), began).unwrap();
    }
    crowd.pass(&mut hub, Duration::from_secs(3));
    assert_eq!(crowd.without(&hub), 0, "all of them are there");
    let first: usize = crowd.calls.values().sum();
    assert!(first <= usize::from(CROWD) + 50, "{first} calls");

    // All are as old as each other, and all must be renewed before 180 s.
    for _ in 0..3 {
        crowd.calls.clear();
        let mut renewed = 0;
        for _ in 0..170 {
            crowd.pass(&mut hub, Duration::from_secs(1));
            assert_eq!(crowd.without(&hub), 0, "a session was missing");
            renewed = crowd.calls.values().sum();
        }
        assert!(
            renewed >= usize::from(CROWD),
            "{renewed} of {CROWD} renewed"
        );
        assert!(renewed <= usize::from(CROWD) * 3 / 2, "{renewed} calls");
        let most = crowd.most(1_000);
        assert!(most <= usize::from(CROWD) / 5, "{most} within a second");
    }

    // Both sides have lost everything at the same moment.
    crowd.calls.clear();
    crowd.tunns = Crowd::new(&key(1), began).tunns;
    let now = crowd.now;
    for number in 0..usize::from(CROWD) {
        let peer = Crowd::peer(number);
        hub.remove_peer(peer.address, now);
        hub.set_peer(peer, now).unwrap();
    }
    crowd.pass(&mut hub, Duration::from_secs(2));
    assert_eq!(crowd.without(&hub), 0, "all are back");
    assert!(crowd.most(100) <= 360, "{} at once", crowd.most(100));
}
