//! What takes minutes, years or a night's sleep, in no time: boringtun's clock is invented here too.
//!
//! Only its monotonic clock is. The date of an initiation is the real date at which a session's state was made, plus what has passed on the
//! invented clock: a state that lives through ten invented years speaks from the future, and the next one, made today, is from the past.

use mock_instant::MockClock;

use super::*;

const YEAR: Duration = Duration::from_hours(365 * 24);
const ROUND_TRIP: Duration = Duration::from_millis(40);

/// Boots with another date, or wakes up: boringtun's clock counts sleep (`CLOCK_BOOTTIME`), ours does not (`CLOCK_MONOTONIC`).
fn leap(time: Duration) {
    MockClock::advance(time);
}

pub(super) fn has_session(sim: &Sim, me: usize) -> bool {
    sim.status(me).since_handshake.is_some()
}

/// Waits until both have heard each other in a session; says how long it took.
pub(super) fn until_up(sim: &mut Sim, limit: Duration) -> Duration {
    let began = sim.now;
    sim.until(limit, |sim| {
        let is_up = |me: usize| {
            let status = sim.status(me);
            status.since_handshake.is_some()
                && status.since_heard.is_some_and(|age| sim.now - age >= began)
        };
        (is_up(0) && is_up(1)).then_some(())
    });
    sim.now - began
}

pub(super) fn up(seed: u64) -> Sim {
    let mut sim = Sim::new(seed, CLEAR);
    until_up(&mut sim, Duration::from_secs(2));
    sim
}

pub(super) fn works(sim: &mut Sim) {
    let (near, far) = sim.connect();
    assert!(sim.carry(&near, &far, b"works") == b"works");
    sim.cores[1].listeners.clear();
}

/// The longest pause between two initiations on the wire.
fn longest_pause(sim: &mut Sim, time: Duration) -> Duration {
    let end = sim.now + time;
    let (mut last, mut longest) = (sim.now, Duration::ZERO);
    while sim.now < end {
        sim.recorded = Some(Vec::new());
        sim.step();
        if sim
            .recorded
            .iter()
            .flatten()
            .any(|(_, datagram)| datagram[0] == 1)
        {
            longest = longest.max(sim.now - last);
            last = sim.now;
        }
    }
    sim.recorded = None;
    longest.max(sim.now - last)
}

#[test]
fn a_hub_that_vanishes_for_ten_minutes_is_called_all_the_time_and_calls_when_it_is_back() {
    let mut sim = up(1);
    sim.weather = OUTAGE;
    // Nobody misses an idle session before it must be renewed.
    sim.pass(Duration::from_mins(3));
    let pause = longest_pause(&mut sim, Duration::from_mins(7));
    assert!(pause <= Duration::from_secs(31), "silent for {pause:?}");
    assert!(!has_session(&sim, 0));
    sim.weather = CLEAR;
    sim.cores[1] = core(1, 99, sim.now);
    let now = sim.now;
    let remembered = Peer {
        endpoint: Some(address(0)),
        initiates: true,
        ..peer(0, false)
    };
    sim.cores[1].set_peer(remembered, now).unwrap();
    let took = until_up(&mut sim, Duration::from_secs(31));
    assert!(took <= ROUND_TRIP * 2, "{took:?}");
    works(&mut sim);
}

#[test]
fn a_path_that_is_away_for_ten_minutes_is_back_within_the_longest_pause() {
    let mut sim = up(2);
    sim.weather = OUTAGE;
    sim.pass(Duration::from_mins(10));
    assert!(!has_session(&sim, 0) && !has_session(&sim, 1));
    sim.weather = CLEAR;
    let took = until_up(&mut sim, Duration::from_secs(31));
    assert!(took <= Duration::from_secs(31), "{took:?}");
    works(&mut sim);
}

#[test]
fn somebody_who_waits_is_not_kept_waiting_by_a_long_outage() {
    let mut sim = up(3);
    sim.weather = OUTAGE;
    sim.pass(Duration::from_mins(10));
    sim.weather = CLEAR;
    let now = sim.now;
    // What an owner of a tunnel does whose heartbeat fails.
    sim.cores[0].force_handshake(OWN[1], now).unwrap();
    let took = until_up(&mut sim, Duration::from_secs(2));
    assert!(took <= ROUND_TRIP * 2, "{took:?}");
}

#[test]
fn an_idle_session_is_renewed_for_hours_and_never_missing() {
    let mut sim = up(4);
    let end = sim.now + Duration::from_hours(2);
    let mut initiations = 0;
    while sim.now < end {
        sim.recorded = Some(Vec::new());
        sim.step();
        let recorded = sim.recorded.iter().flatten();
        initiations += recorded.filter(|(_, datagram)| datagram[0] == 1).count();
        assert!(has_session(&sim, 0) && has_session(&sim, 1));
    }
    assert!(
        (40..=50).contains(&initiations),
        "{initiations} in two hours"
    );
    works(&mut sim);
}

#[test]
fn a_session_in_use_is_renewed_within_two_minutes_and_no_byte_waits() {
    let mut sim = up(5);
    let (near, far) = sim.connect();
    let ends = sim.now + Duration::from_mins(10);
    let mut buffer = [0; 64];
    let mut ages = Vec::new();
    while sim.now < ends {
        let sent = near.poll_write(&context(), &[IoSlice::new(b"token")]);
        assert!(matches!(sent, Poll::Ready(Ok(5))));
        let began = sim.now;
        sim.until(Duration::from_secs(1), |_| {
            far.poll_read(&context(), &mut buffer)
                .is_ready()
                .then_some(())
        });
        assert!(sim.now - began <= Duration::from_millis(60));
        ages.push(sim.status(0).since_handshake.unwrap());
        sim.pass(Duration::from_millis(500));
    }
    let oldest = ages.into_iter().max().unwrap();
    assert!(oldest <= Duration::from_secs(120), "{oldest:?}");
}

#[test]
fn a_node_that_boots_in_1970_after_it_has_spoken_from_2036_is_called_back() {
    let mut sim = up(6);
    // The clock of a machine without a battery: first years ahead of what it is after the next start.
    leap(YEAR * 10);
    sim.pass(Duration::from_secs(10));
    assert!(has_session(&sim, 0) && has_session(&sim, 1));
    sim.restart(0);
    let took = until_up(&mut sim, Duration::from_secs(5));
    assert!(took <= ROUND_TRIP * 3, "{took:?}");
    assert!(sim.drops(1).replayed > 0, "its own initiation looked old");
    works(&mut sim);
    sim.pass(Duration::from_mins(20));
    assert!(has_session(&sim, 0) && has_session(&sim, 1), "and renews");
    works(&mut sim);
}

#[test]
fn a_hub_that_restarts_an_hour_in_the_past_calls_and_is_called_back() {
    let mut sim = up(7);
    let now = sim.now;
    let calling = Peer {
        endpoint: Some(address(0)),
        initiates: true,
        ..peer(0, false)
    };
    sim.cores[1].set_peer(calling.clone(), now).unwrap();
    leap(Duration::from_hours(1));
    sim.pass(Duration::from_secs(10));
    let now = sim.now;
    sim.cores[1].force_handshake(OWN[0], now).unwrap();
    sim.pass(Duration::from_secs(1));
    sim.restart(1);
    let now = sim.now;
    sim.cores[1].set_peer(calling, now).unwrap();
    let took = until_up(&mut sim, Duration::from_secs(5));
    assert!(took <= ROUND_TRIP * 3, "{took:?}");
    assert!(sim.drops(0).replayed > 0, "the hub's call looked old");
    works(&mut sim);
}

#[test]
fn a_node_from_2035_whose_clock_is_set_right_notices_nothing() {
    let mut sim = Sim::new(8, CLEAR);
    leap(YEAR * 9);
    until_up(&mut sim, Duration::from_secs(5));
    sim.pass(Duration::from_mins(10));
    assert!(has_session(&sim, 0) && has_session(&sim, 1));
    works(&mut sim);
}

#[test]
fn a_call_repeated_by_a_stranger_costs_a_call_a_second_and_moves_nothing() {
    let mut sim = Sim::new(9, CLEAR);
    sim.recorded = Some(Vec::new());
    until_up(&mut sim, Duration::from_secs(2));
    let recorded = sim.recorded.take().unwrap();
    let (_, old) = recorded
        .iter()
        .find(|(_, datagram)| datagram[0] == 1)
        .unwrap();
    leap(Duration::from_secs(5));
    sim.pass(Duration::from_secs(5));
    let elsewhere = Path::Udp(([198, 51, 100, 7], 666).into());
    let mut calls = 0;
    for _ in 0..1_000 {
        sim.go_to(sim.now + Duration::from_millis(10));
        let now = sim.now;
        sim.cores[1].handle_datagram(elsewhere, old, now);
        while let Some(batch) = sim.cores[1].poll_transmit() {
            let is_call = batch.contents()[0] == 1;
            calls += usize::from(is_call && batch.destination == elsewhere) * batch.count();
            sim.cores[1].recycle(batch);
        }
    }
    assert!((9..=11).contains(&calls), "{calls} calls in ten seconds");
    assert_eq!(sim.status(1).endpoint, Some(address(0)));
}

#[test]
fn after_a_nights_sleep_the_node_is_back_within_seconds() {
    for asleep in [Duration::from_mins(10), Duration::from_hours(9)] {
        let mut sim = up(10);
        leap(asleep);
        let took = until_up(&mut sim, Duration::from_secs(10));
        assert!(took <= Duration::from_secs(5), "{took:?} after {asleep:?}");
        works(&mut sim);
    }
}

#[test]
fn a_stream_lives_through_a_nap() {
    let mut sim = up(11);
    let (near, far) = sim.connect();
    leap(Duration::from_mins(10));
    assert!(sim.carry(&near, &far, b"after the nap") == b"after the nap");
}
