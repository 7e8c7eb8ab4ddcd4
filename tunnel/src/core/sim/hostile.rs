//! What somebody on the path may do with what he has seen: repeat it, delay it, send it from elsewhere.

use super::*;

const ELSEWHERE: ([u8; 4], u16) = ([198, 51, 100, 7], 666);

/// A simulation with a session and everything that was said since the beginning.
fn overheard(seed: u64) -> (Sim, Vec<(usize, Vec<u8>)>) {
    let mut sim = Sim::new(seed, CLEAR);
    sim.recorded = Some(Vec::new());
    let (near, far) = sim.connect();
    let bytes = bytes(20_000);
    assert!(sim.carry(&near, &far, &bytes) == bytes);
    sim.pass(Duration::from_secs(1));
    let recorded = sim.recorded.take().unwrap();
    (sim, recorded)
}

#[test]
fn everything_said_before_changes_nothing_when_it_is_said_again_from_elsewhere() {
    let (mut sim, recorded) = overheard(11);
    // The width of the path is looked after for 5 s behind the last large packet.
    sim.pass(Duration::from_secs(6));
    let kinds: Vec<u8> = recorded.iter().map(|(_, datagram)| datagram[0]).collect();
    assert!([1, 2, 4].iter().all(|kind| kinds.contains(kind)));
    let before = [sim.status(0), sim.status(1)];
    let now = sim.now;
    for (to, datagram) in &recorded {
        sim.cores[*to].handle_datagram(Path::Udp(ELSEWHERE.into()), datagram, now);
    }
    sim.pass(Duration::from_secs(2));
    for me in [0, 1] {
        let after = sim.status(me);
        assert_eq!(after.endpoint, before[me].endpoint);
        assert_eq!(after.rx_bytes, before[me].rx_bytes, "nothing was taken");
        let drops = sim.drops(me);
        assert!(drops.replayed > 0, "{drops:?}");
        assert_eq!(after.rejected.replayed, drops.replayed, "told of the peer");
    }
    let (near, far) = sim.connect_again();
    assert!(sim.carry(&near, &far, b"still") == b"still");
}

#[test]
fn an_old_initiation_does_not_move_a_restarted_hubs_idea_of_where_the_node_is() {
    let (mut sim, recorded) = overheard(12);
    sim.restart(1);
    let now = sim.now;
    let old = recorded.iter().filter(|(to, _)| *to == 1);
    for (_, datagram) in old.clone() {
        sim.cores[1].handle_datagram(Path::Udp(ELSEWHERE.into()), datagram, now);
    }
    assert_eq!(sim.status(1).endpoint, None);
    sim.until(Duration::from_secs(10), |sim| {
        let now = sim.now;
        sim.cores[0].force_handshake(OWN[1], now).unwrap();
        sim.status(1).since_heard.map(drop)
    });
    assert_eq!(sim.status(1).endpoint, Some(address(0)));
}

#[test]
fn a_cookie_from_elsewhere_does_not_move_the_endpoint() {
    let mut sim = Sim::new(13, CLEAR);
    let bounds = Bounds {
        handshakes_per_second_max: 0,
        ..Bounds::default()
    };
    sim.cores[1] = core_within(&bounds, 1, 13, sim.now);
    sim.recorded = Some(Vec::new());
    let cookie = sim.until(Duration::from_secs(2), |sim| {
        let recorded = sim.recorded.iter().flatten();
        recorded
            .clone()
            .find(|(_, datagram)| datagram[0] == 3)
            .cloned()
    });
    sim.wire.clear();
    let now = sim.now;
    sim.cores[0].handle_datagram(Path::Udp(ELSEWHERE.into()), &cookie.1, now);
    sim.pass(Duration::from_millis(500));
    assert_eq!(sim.status(0).endpoint, Some(address(1)));
    sim.until(Duration::from_secs(3), |sim| {
        sim.status(1).since_heard.map(drop)
    });
}

#[test]
fn the_replay_window_is_a_thousand_packets_and_beyond_it_packets_are_counted() {
    let mut sim = Sim::new(14, CLEAR);
    sim.connect();
    let mut late = Vec::new();
    while late.len() < 2_100 {
        sim.go_to(sim.now + Duration::from_millis(10));
        let now = sim.now;
        sim.cores[0].echo(OWN[1], now).unwrap();
        sim.cores[0].work(now);
        while let Some(batch) = sim.cores[0].poll_transmit() {
            let sent = batch.contents().chunks(batch.segment);
            late.extend(sent.filter(|one| one[0] == 4).map(<[u8]>::to_vec));
            sim.cores[0].recycle(batch);
        }
    }
    let now = sim.now;
    let mut refused = 0;
    for (age, datagram) in late.iter().rev().enumerate() {
        let before = sim.drops(1).replayed;
        sim.cores[1].handle_datagram(Path::Udp(address(0)), datagram, now);
        let is_refused = sim.drops(1).replayed > before;
        assert_eq!(is_refused, age >= 1_024, "{age} packets late");
        refused += u64::from(is_refused);
    }
    assert_eq!(sim.drops(1).replayed, refused);
    for datagram in &late {
        sim.cores[1].handle_datagram(Path::Udp(address(0)), datagram, now);
    }
    assert_eq!(
        sim.drops(1).replayed,
        refused + late.len() as u64,
        "all known"
    );
}

#[test]
fn no_packet_tells_its_length() {
    let (_, recorded) = overheard(15);
    let data = recorded.iter().filter(|(_, datagram)| datagram[0] == 4);
    for (_, datagram) in data {
        assert_eq!(datagram.len() % 16, 0, "head, counter, tag and padding");
    }
}

#[test]
fn a_peer_that_begins_handshakes_without_end_is_answered_fifty_times_a_second() {
    let (mut sim, _) = overheard(16);
    let mut answers = 0;
    for _ in 0..1_000 {
        sim.go_to(sim.now + Duration::from_millis(1));
        let now = sim.now;
        sim.cores[0].force_handshake(OWN[1], now).unwrap();
        for me in [0, 1] {
            sim.cores[me].work(now);
            while let Some(batch) = sim.cores[me].poll_transmit() {
                for datagram in batch.contents().chunks(batch.segment) {
                    answers += u32::from(datagram[0] == 2);
                    sim.cores[1 - me].handle_datagram(Path::Udp(address(me)), datagram, now);
                }
                sim.cores[me].recycle(batch);
            }
        }
    }
    assert!(
        (40..=60).contains(&answers),
        "{answers} answers in a second"
    );
    assert!(sim.status(1).rejected.limited > 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn whatever_becomes_of_datagrams_on_the_way_nothing_breaks(
        seed in any::<u32>(),
        changes in proptest::collection::vec((any::<usize>(), any::<usize>(), any::<u8>(), any::<u16>()), 1..200),
    ) {
        let (mut sim, recorded) = overheard(u64::from(seed));
        let now = sim.now;
        for (which, place, byte, cut) in changes {
            let (to, mut datagram) = recorded[which % recorded.len()].clone();
            let length = datagram.len();
            datagram[place % length] ^= byte;
            datagram.truncate(length.saturating_sub(usize::from(cut) % (length * 2)));
            sim.cores[to].handle_datagram(Path::Udp(ELSEWHERE.into()), &datagram, now);
        }
        prop_assert_eq!(sim.status(0).endpoint, Some(address(1)));
        prop_assert_eq!(sim.status(1).endpoint, Some(address(0)));
        let (near, far) = sim.connect_again();
        prop_assert!(sim.carry(&near, &far, b"still") == b"still");
    }
}
