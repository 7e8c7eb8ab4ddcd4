//! Two cores and a bad wire, in invented time.
//!
//! smoltcp and our own timers follow the invented clock. boringtun's own timers read the real one and never come due in a test this
//! short, but in the crate `tunnel/clock`, where its clock is invented too: what happens in minutes is tested there.

#[cfg(mock_clock)]
mod clock;
mod hostile;
mod many;
mod quic;
mod replay;
#[cfg(mock_clock)]
mod steps;
mod traps;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use rand::Rng as _;

use super::*;
use crate::keys::{PresharedKey, PrivateKey};
use crate::netstack::backlog::Arrival;
use crate::netstack::conn::Conn;
use crate::peer::Peer;
use crate::settings::Bounds;

const OWN: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2),
];
const PORT: u16 = 8080;

/// What the wire does to datagrams, per mille.
#[derive(Clone, Copy, Debug)]
struct Weather {
    lose: u32,
    duplicate: u32,
    delay: u32,
}

struct Sim {
    cores: [Core; 2],
    now: Instant,
    wire: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    sent: u64,
    random: StdRng,
    weather: Weather,
    /// Everything that was sent, once somebody listens.
    recorded: Option<Vec<(usize, Vec<u8>)>>,
    /// How far ahead of the other the clock of each is that boringtun reads, and whose it reads now.
    #[cfg(mock_clock)]
    ahead: [Duration; 2],
    #[cfg(mock_clock)]
    inside: usize,
}

const CLEAR: Weather = Weather {
    lose: 0,
    duplicate: 0,
    delay: 0,
};
const OUTAGE: Weather = Weather {
    lose: 1000,
    ..CLEAR
};

fn key(me: usize) -> PrivateKey {
    PrivateKey::from_bytes([1 + u8::try_from(me).unwrap(); 32])
}

/// One side; the first knows where the second is, and begins the handshakes.
fn core(me: usize, seed: u64, now: Instant) -> Core {
    core_within(&Bounds::default(), me, seed, now)
}

fn core_within(bounds: &Bounds, me: usize, seed: u64, now: Instant) -> Core {
    core_knowing(true, bounds, me, (seed, now))
}

/// `quic`: whether it knows more than TCP.
fn core_knowing(quic: bool, bounds: &Bounds, me: usize, (seed, now): (u64, Instant)) -> Core {
    let settings = Settings {
        quic,
        bounds: Bounds {
            tcp_buffer_bytes: 65_536,
            ..bounds.clone()
        },
        ..Settings::new(address(me), key(me), OWN[me])
    };
    let seed = (seed + me as u64, now);
    let mut core = Core::new(settings, Windows::default(), None, Hands::Own, seed);
    core.set_segments_max(64);
    core.set_peer(peer(1 - me, me == 0), now).unwrap();
    core
}

fn peer(other: usize, initiates: bool) -> Peer {
    Peer {
        public_key: key(other).public_key(),
        preshared_key: Some(PresharedKey::from_bytes([3; 32])),
        address: OWN[other],
        endpoint: initiates.then(|| address(other)),
        keepalive: None,
        initiates,
    }
}

impl Sim {
    fn new(seed: u64, weather: Weather) -> Self {
        Self::with(seed, weather, true)
    }

    /// `quic`: whether the second core knows more than TCP.
    fn with(seed: u64, weather: Weather, quic: bool) -> Self {
        let now = Instant::now();
        Self {
            cores: [0, 1]
                .map(|me| core_knowing(quic || me == 0, &Bounds::default(), me, (seed, now))),
            now,
            wire: BTreeMap::new(),
            sent: 0,
            random: StdRng::seed_from_u64(seed),
            weather,
            recorded: None,
            #[cfg(mock_clock)]
            ahead: [Duration::ZERO; 2],
            #[cfg(mock_clock)]
            inside: 0,
        }
    }

    /// Starts one side anew: it knows its keys, its peer and where that was, if it is to begin the handshake.
    fn restart(&mut self, me: usize) {
        self.sent += 1;
        self.cores[me] = core(me, self.sent, self.now);
    }

    fn status(&self, me: usize) -> crate::peer::PeerStatus {
        let board = &self.cores[me].windows.board;
        board.read(OWN[1 - me], self.now).unwrap()
    }

    fn drops(&self, me: usize) -> crate::drops::Counters {
        self.cores[me].windows.drops.read()
    }

    /// Goes on for so long.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    /// Lets both cores work, moves what they send onto the wire, and goes on to what comes next.
    fn step(&mut self) {
        for me in [0, 1] {
            #[cfg(mock_clock)]
            self.enter(me);
            self.cores[me].handle_ring();
            self.cores[me].handle_timeout(self.now);
            self.cores[me].work(self.now);
            while let Some(batch) = self.cores[me].poll_transmit() {
                for datagram in batch.contents().chunks(batch.segment) {
                    self.put(1 - me, datagram);
                }
                self.cores[me].recycle(batch);
            }
        }
        if self.cores.iter().any(Core::has_work) {
            return;
        }
        let timers = self.cores.iter().filter_map(Core::poll_timeout);
        let arrival = self.wire.keys().map(|(at, _)| *at);
        let latest = self.now + Duration::from_secs(1);
        let next = timers.chain(arrival.take(1)).min().unwrap_or(latest);
        self.go_to(self.now.max(next.min(latest)));
        while let Some(first) = self.wire.first_entry()
            && first.key().0 <= self.now
        {
            let (to, datagram) = first.remove();
            let from = Path::Udp(address(1 - to));
            #[cfg(mock_clock)]
            self.enter(to);
            self.cores[to].handle_datagram(from, &datagram, self.now);
        }
        for me in [0, 1] {
            #[cfg(mock_clock)]
            self.enter(me);
            self.cores[me].handle_timeout(self.now);
        }
    }

    fn go_to(&mut self, now: Instant) {
        #[cfg(mock_clock)]
        mock_instant::MockClock::advance(now.duration_since(self.now));
        self.now = now;
    }

    fn put(&mut self, to: usize, datagram: &[u8]) {
        if let Some(recorded) = &mut self.recorded {
            recorded.push((to, datagram.to_vec()));
        }
        if self.happens(self.weather.lose) {
            return;
        }
        let copies = 1 + usize::from(self.happens(self.weather.duplicate));
        for _ in 0..copies {
            let late = if self.happens(self.weather.delay) {
                35
            } else {
                0
            };
            let at = self.now + Duration::from_millis(20 + late);
            self.sent += 1;
            self.wire.insert((at, self.sent), (to, datagram.to_vec()));
        }
    }

    fn happens(&mut self, per_mille: u32) -> bool {
        self.random.random_range(0..1000) < per_mille
    }

    /// Lets both ends find out how wide the path is.
    fn settle(&mut self) {
        let end = self.now + Duration::from_secs(1);
        while self.now < end {
            self.step();
        }
    }

    /// Steps until `ready` gives something.
    fn until<T>(&mut self, limit: Duration, mut ready: impl FnMut(&mut Self) -> Option<T>) -> T {
        let end = self.now + limit;
        loop {
            if let Some(value) = ready(self) {
                return value;
            }
            assert!(self.now < end, "nothing came of it within {limit:?}");
            self.step();
        }
    }

    /// Makes a connection from the first core to the second.
    fn connect(&mut self) -> (Arc<Conn>, Arc<Conn>) {
        let backlog = self.cores[1].listen(PORT).unwrap();
        self.connect_to(&backlog)
    }

    /// Makes one more, to a listener that is there.
    fn connect_again(&mut self) -> (Arc<Conn>, Arc<Conn>) {
        let backlog = Arc::clone(&self.cores[1].listeners[&PORT]);
        self.connect_to(&backlog)
    }

    fn connect_to(&mut self, backlog: &Backlog) -> (Arc<Conn>, Arc<Conn>) {
        let now = self.now;
        let near = self.cores[0].connect(OWN[1], PORT, now).unwrap();
        let limit = Duration::from_mins(2);
        let far = self.until(limit, |_| match backlog.poll_next(&context()) {
            Poll::Ready(Some(Arrival::Stack(far))) => Some(far),
            Poll::Ready(Some(Arrival::Quic(_)) | None) => None,
            Poll::Pending => None,
        });
        self.until(limit, |_| {
            near.poll_connected(&context()).is_ready().then_some(())
        });
        (near, far)
    }

    /// Moves bytes over the connection and returns what arrived.
    fn carry(&mut self, from: &Conn, to: &Conn, bytes: &[u8]) -> Vec<u8> {
        let mut sent = 0;
        let mut got = Vec::new();
        let mut buffer = [0; 4096];
        self.until(Duration::from_mins(30), |_| {
            while sent < bytes.len()
                && let Poll::Ready(taken) =
                    from.poll_write(&context(), &[IoSlice::new(&bytes[sent..])])
            {
                sent += taken.unwrap();
                if sent == bytes.len() {
                    from.finish().unwrap();
                }
            }
            while let Poll::Ready(taken) = to.poll_read(&context(), &mut buffer) {
                match taken.unwrap() {
                    0 => return Some(()),
                    len => got.extend_from_slice(&buffer[..len]),
                }
            }
            None
        });
        got
    }
}

fn address(core: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 1000 + u16::try_from(core).unwrap()))
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| u8::try_from(n * 7 % 251).unwrap())
        .collect()
}

#[test]
fn on_a_clear_path_a_transfer_takes_a_few_round_trips() {
    let mut sim = Sim::new(1, CLEAR);
    let (near, far) = sim.connect();
    let began = sim.now;
    let bytes = bytes(500_000);
    assert!(sim.carry(&near, &far, &bytes) == bytes);
    let took = sim.now - began;
    assert!(took < Duration::from_secs(2), "took {took:?}");
    let drops = sim.cores[1].windows.drops.read();
    assert_eq!(drops, crate::drops::Counters::default());
}

#[test]
fn cores_at_rest_have_nothing_to_do_but_their_ticks() {
    let mut sim = Sim::new(2, CLEAR);
    let (near, far) = sim.connect();
    sim.carry(&near, &far, b"once");
    sim.settle();
    let before = (sim.sent, sim.now);
    while sim.now < before.1 + Duration::from_secs(15) {
        sim.step();
    }
    let chatter = sim.sent - before.0;
    assert!(chatter < 10, "{chatter} datagrams in 15 idle seconds");
}

#[test]
fn a_connection_dialled_long_into_an_outage_waits_for_the_session() {
    let mut sim = Sim::new(3, OUTAGE);
    let back_at = sim.now + SESSIONLESS_MAX * 3;
    while sim.now < back_at {
        sim.step();
    }
    let now = sim.now;
    let conn = sim.cores[0].connect(OWN[1], PORT, now).unwrap();
    while sim.now < now + Duration::from_secs(5) {
        sim.step();
        assert!(
            conn.poll_connected(&context()).is_pending(),
            "the dialler decides when to give up"
        );
    }
    sim.weather.lose = 0;
    let backlog = sim.cores[1].listen(PORT).unwrap();
    sim.until(Duration::from_secs(31), |_| {
        conn.poll_connected(&context()).is_ready().then_some(())
    });
    assert!(!backlog.is_closed());
}

#[test]
fn an_echo_is_answered_and_measures_the_way_there_and_back() {
    let mut sim = Sim::new(4, CLEAR);
    sim.connect();
    sim.settle();
    let status = |sim: &Sim| sim.cores[0].windows.board.read(OWN[1], sim.now).unwrap();
    assert_eq!(status(&sim).round_trip, None);
    let now = sim.now;
    sim.cores[0].echo(OWN[1], now).unwrap();
    let round_trip = sim.until(Duration::from_secs(1), |sim| status(sim).round_trip);
    assert_eq!(round_trip, Duration::from_millis(40));
    assert_eq!(
        status(&sim).since_heard,
        Some(Duration::ZERO),
        "the board is told at once"
    );
    for core in &sim.cores {
        assert_eq!(core.windows.drops.read(), crate::drops::Counters::default());
    }
}

#[test]
fn however_many_ask_the_wire_sees_few_echoes() {
    let mut sim = Sim::new(5, CLEAR);
    sim.connect();
    sim.settle();
    let (before, now) = (sim.sent, sim.now);
    for _ in 0..1_000 {
        sim.cores[0].echo(OWN[1], now).unwrap();
    }
    while sim.now < now + Duration::from_millis(100) {
        sim.step();
    }
    assert!(sim.sent - before <= 2, "{} datagrams", sim.sent - before);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn bytes_survive_any_weather_in_both_directions(
        seed in any::<u32>(),
        lose in 0u32..80,
        duplicate in 0u32..100,
        delay in 0u32..200,
        len in 1usize..60_000,
    ) {
        let weather = Weather { lose, duplicate, delay };
        let mut sim = Sim::new(u64::from(seed), weather);
        let (near, far) = sim.connect();
        let bytes = bytes(len);
        prop_assert!(sim.carry(&near, &far, &bytes) == bytes);
        prop_assert!(sim.carry(&far, &near, &bytes) == bytes);
    }
}
