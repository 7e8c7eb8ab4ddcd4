//! What was said before is said again: every kind of message, in every order, at the last counters. Each is taken once or counted by its reason.

use std::collections::HashSet;

use super::*;
use crate::drops::Counters;

/// How many packets boringtun remembers.
const WINDOW: u64 = 1_024;
/// `REJECT_AFTER_MESSAGES` of the WireGuard paper, section 6.1.
const LAST: u64 = u64::MAX - (1 << 13) - 1;
const ELSEWHERE: ([u8; 4], u16) = ([198, 51, 100, 9], 999);

/// Two ends whose hub asks for a cookie first, and everything that was said: all four kinds.
fn talked(seed: u64) -> (Sim, Vec<(usize, Vec<u8>)>) {
    let mut sim = Sim::new(seed, CLEAR);
    let bounds = Bounds {
        handshakes_per_second_max: 0,
        ..Bounds::default()
    };
    sim.cores[1] = core_within(&bounds, 1, seed, sim.now);
    sim.recorded = Some(Vec::new());
    let (near, far) = sim.connect();
    assert!(sim.carry(&near, &far, b"once") == b"once");
    sim.pass(Duration::from_secs(7));
    let recorded = sim.recorded.take().unwrap();
    (sim, recorded)
}

/// What a datagram adds to the counts of whom it is for.
fn added(sim: &mut Sim, to: usize, datagram: &[u8]) -> Vec<(&'static str, u64)> {
    let (before, now) = (sim.drops(to).each(), sim.now);
    sim.cores[to].handle_datagram(Path::Udp(ELSEWHERE.into()), datagram, now);
    let after = sim.drops(to).each();
    let pairs = before.iter().zip(after);
    pairs
        .map(|(before, after)| (after.0, after.1 - before.1))
        .filter(|(_, more)| *more > 0)
        .collect()
}

#[test]
fn each_kind_of_message_that_is_said_again_is_counted_by_its_reason() {
    let (mut sim, recorded) = talked(21);
    let kinds: HashSet<u8> = recorded.iter().map(|(_, one)| one[0]).collect();
    assert_eq!(kinds, HashSet::from([1, 2, 3, 4]));
    let streams = sim.status(1).streams;
    for (to, datagram) in &recorded {
        let reasons = added(&mut sim, *to, datagram);
        let expected: &[&str] = match datagram[0] {
            // Without a cookie it is asked for one, with one for another address too.
            1 => &["limited"],
            2 => &["unknown_peer"],
            // A cookie for a handshake that is over.
            3 => &["unauthentic", "unknown_peer", "malformed"],
            _ => &["replayed"],
        };
        let is_counted = matches!(reasons[..], [(reason, 1)] if expected.contains(&reason));
        assert!(is_counted, "kind {} gave {reasons:?}", datagram[0]);
    }
    for me in [0, 1] {
        assert_eq!(sim.status(me).endpoint, Some(address(1 - me)));
    }
    assert_eq!(sim.status(1).streams, streams);
    let (near, far) = sim.connect_again();
    assert!(sim.carry(&near, &far, b"still") == b"still");
}

#[test]
fn whoever_repeats_an_initiation_to_a_restarted_hub_gets_one_answer_and_no_session() {
    let mut sim = Sim::new(22, CLEAR);
    sim.recorded = Some(Vec::new());
    let (near, far) = sim.connect();
    assert!(sim.carry(&near, &far, b"once") == b"once");
    let recorded = sim.recorded.take().unwrap();
    sim.restart(1);
    sim.wire.clear();
    let now = sim.now;
    let mut answers = 0;
    for _ in 0..50 {
        for (_, datagram) in recorded.iter().filter(|(to, _)| *to == 1) {
            sim.cores[1].handle_datagram(Path::Udp(ELSEWHERE.into()), datagram, now);
        }
        while let Some(batch) = sim.cores[1].poll_transmit() {
            for one in batch.contents().chunks(batch.segment) {
                answers += usize::from(one[0] == 2);
                assert!(one[0] != 4, "nothing is said under it");
            }
            sim.cores[1].recycle(batch);
        }
    }
    let drops = sim.drops(1);
    assert_eq!(answers, 1, "{drops:?}");
    assert!(drops.replayed >= 49, "{drops:?}");
    let status = sim.status(1);
    assert_eq!((status.endpoint, status.since_heard), (None, None));
    // The honest node is not kept out by it.
    sim.cores[0].force_handshake(OWN[1], now).unwrap();
    sim.until(Duration::from_secs(5), |sim| {
        sim.status(1).since_heard.map(drop)
    });
    let backlog = sim.cores[1].listen(PORT).unwrap();
    let (near, far) = sim.connect_to(&backlog);
    assert!(sim.carry(&near, &far, b"here") == b"here");
}

#[test]
fn a_counter_at_its_end_is_refused_before_it_is_looked_at() {
    let (mut sim, recorded) = talked(23);
    let data = recorded.iter().find(|(to, one)| *to == 1 && one[0] == 4);
    let mut forged = data.unwrap().1.clone();
    for (counter, reason) in [
        (u64::MAX, "counter_exhausted"),
        (u64::MAX - 1, "counter_exhausted"),
        (u64::MAX - WINDOW, "counter_exhausted"),
        (LAST, "counter_exhausted"),
        (LAST - 1, "unauthentic"),
        (LAST - WINDOW - 1, "unauthentic"),
        (1 << 63, "unauthentic"),
    ] {
        forged[8..16].copy_from_slice(&counter.to_le_bytes());
        assert_eq!(added(&mut sim, 1, &forged), [(reason, 1)], "{counter}");
    }
    let (near, far) = sim.connect_again();
    assert!(sim.carry(&near, &far, b"still") == b"still");
    assert_eq!(sim.drops(1).replayed, 0, "forged counters moved no window");
}

/// Packets from the first core to the second, each of the same size, all of them on their way.
fn under_way(sim: &mut Sim, count: usize) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while all.len() < count {
        sim.go_to(sim.now + Duration::from_millis(10));
        let now = sim.now;
        sim.cores[0].echo(OWN[1], now).unwrap();
        while let Some(batch) = sim.cores[0].poll_transmit() {
            let sent = batch.contents().chunks(batch.segment);
            all.extend(sent.filter(|one| one[0] == 4).map(<[u8]>::to_vec));
            sim.cores[0].recycle(batch);
        }
    }
    all
}

/// Whether a replay window takes a packet, as RFC 6479 has it.
#[derive(Default)]
struct Window {
    seen: HashSet<u64>,
    next: u64,
}

impl Window {
    fn takes(&mut self, counter: u64) -> bool {
        let is_taken = counter + WINDOW >= self.next && self.seen.insert(counter);
        self.next = self.next.max(counter + 1);
        is_taken
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn late_and_repeated_packets_are_taken_once_or_counted(
        seed in any::<u64>(),
        late in prop_oneof![Just(0usize), 1usize..100, 900usize..1_100, 1_100usize..2_000, Just(2_000)],
        twice in 0u32..300,
    ) {
        let mut sim = Sim::new(24, CLEAR);
        sim.connect();
        sim.settle();
        let packets = under_way(&mut sim, 2_500);
        let mut random = StdRng::seed_from_u64(seed);
        let mut order: Vec<(usize, usize)> = Vec::new();
        for number in 0..packets.len() {
            order.push((number + random.random_range(0..=late), number));
            if random.random_range(0..1_000) < twice {
                order.push((number + random.random_range(0..=late), number));
            }
        }
        order.sort_unstable();
        let (before, now) = (sim.drops(1), sim.now);
        let mut window = Window::default();
        let counter = |one: &[u8]| u64::from_le_bytes(one[8..16].try_into().unwrap());
        // What came before is known too.
        window.next = packets.iter().map(|one| counter(one)).min().unwrap();
        let mut refused = 0;
        for (_, number) in &order {
            let datagram = &packets[*number];
            let expected = !window.takes(counter(datagram));
            let replayed = sim.drops(1).replayed;
            sim.cores[1].handle_datagram(Path::Udp(address(0)), datagram, now);
            prop_assert_eq!(sim.drops(1).replayed > replayed, expected, "number {}", number);
            refused += u64::from(expected);
            while let Some(batch) = sim.cores[1].poll_transmit() {
                sim.cores[1].recycle(batch);
            }
        }
        let after = Counters { replayed: before.replayed + refused, ..before };
        prop_assert_eq!(sim.drops(1), after, "no other reason");
        if late < 1_000 && twice == 0 {
            prop_assert_eq!(refused, 0);
        }
    }
}
