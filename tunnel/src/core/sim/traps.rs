//! What boringtun 0.7.1 leaves to its user, one story each. The stories that are told elsewhere:
//!
//! | | what boringtun does | story |
//! |---|---|---|
//! | 1 | is silent for ever 90 s after a handshake has failed | `clock::a_hub_that_vanishes_for_ten_minutes_is_called_all_the_time_and_calls_when_it_is_back` |
//! | 2 | does not miss the answer to a keepalive | here |
//! | 3 | counts the handshakes of all sources together | `wg::gate::tests::a_source_that_floods_puts_nobody_else_into_need_of_a_cookie` |
//! | 4 | binds a cookie to the address and not to the port | `wg::gate::tests::a_cookie_proves_address_and_port_and_nothing_else` |
//! | 5 | does not limit whoever has a cookie | `wg::gate::tests::one_real_address_with_a_cookie_has_a_budget_too` |
//! | 6 | remembers 1,024 packets | `replay::late_and_repeated_packets_are_taken_once_or_counted` |
//! | 7 | does not pad | `hostile::no_packet_tells_its_length` |
//! | 8 | repeats after exactly 5 s | `wg::retry::tests::nodes_that_lost_their_hub_together_come_back_one_by_one` |
//! | 9 | takes the index that it is given | here |
//! | 10 | dates a handshake by the clock at the state's making | `clock::a_node_that_boots_in_1970_after_it_has_spoken_from_2036_is_called_back` and `steps` |
//! | 11 | takes counters up to the last and overflows there | `replay::a_counter_at_its_end_is_refused_before_it_is_looked_at` |
//! | 12 | cannot change a pre-shared key | here |
//! | 13 | queues packets while there is no session | here |
//! | 14 | does not look at inner addresses | `tests/it/hostile.rs`: `whatever_is_no_tcp_to_a_port_of_ours_is_dropped_and_counted` |
//! | 15 | wants one owner a state | here |
//! | 16 | roams on any handshake, in its part `device` | here, and `hostile::an_old_initiation_does_not_move_a_restarted_hubs_idea_of_where_the_node_is` |

use std::collections::HashSet;

use super::many::{CROWD, of_crowd};
use super::*;
use crate::wg::noise::Identity;
use crate::wg::session::Session;

/// As the node's agent asks.
const HEARTBEAT: Duration = Duration::from_secs(3);

fn heard(sim: &Sim) -> Duration {
    sim.status(0).since_heard.unwrap_or(Duration::MAX)
}

#[test]
fn an_idle_node_that_misses_two_heartbeats_finds_the_hub_that_has_forgotten_it() {
    let mut sim = Sim::new(1, CLEAR);
    sim.connect();
    sim.pass(Duration::from_secs(10));
    sim.restart(1);
    let began = sim.now;
    let (mut misses, mut calls) = (0, 0);
    while sim.status(1).since_heard.is_none() {
        assert!(sim.now - began < Duration::from_secs(10), "never missed");
        let now = sim.now;
        sim.cores[0].echo(OWN[1], now).unwrap();
        sim.pass(HEARTBEAT);
        misses = if heard(&sim) >= HEARTBEAT {
            misses + 1
        } else {
            0
        };
        if misses >= 2 {
            let now = sim.now;
            sim.cores[0].force_handshake(OWN[1], now).unwrap();
            calls += 1;
            sim.pass(Duration::from_millis(100));
        }
    }
    assert_eq!(calls, 1, "the first call is answered");
    let (near, far) = sim.connect();
    assert!(sim.carry(&near, &far, b"back") == b"back");
}

#[test]
fn indices_are_random_and_tell_neither_how_many_peers_there_are_nor_who_is_who() {
    let began = Instant::now();
    let mut core = core(1, 9, began);
    for number in 0..CROWD {
        core.set_peer(of_crowd(number), began).unwrap();
    }
    let ids: Vec<u32> = (0..CROWD)
        .map(|number| core.by_address[&of_crowd(number).address].index())
        .collect();
    let distinct: HashSet<u32> = ids.iter().copied().collect();
    assert_eq!(distinct.len(), ids.len());
    assert!(ids.iter().all(|id| *id < 1 << 24), "24 bits");
    for part in 0..16 {
        let here = ids.iter().filter(|id| **id >> 20 == part).count();
        assert!((25..=110).contains(&here), "{here} of 1000 in part {part}");
    }
    let rises = ids.windows(2).filter(|pair| pair[0] < pair[1]).count();
    assert!((400..=600).contains(&rises), "{rises} of 999 rise");

    // The same peer has another one next time, and the wire shows no other.
    let mut again = super::core(1, 10, began);
    again.set_peer(of_crowd(0), began).unwrap();
    let id = again.by_address[&of_crowd(0).address];
    assert_ne!(id.index(), ids[0]);
    let mut senders = Vec::new();
    while let Some(batch) = again.poll_transmit() {
        let initiations = batch.contents().chunks(batch.segment);
        senders.extend(initiations.map(|one| u32::from_le_bytes(one[4..8].try_into().unwrap())));
        again.recycle(batch);
    }
    assert_eq!(senders.len(), 1);
    assert_eq!(PeerId::of_receiver(senders[0]), id);
}

#[test]
fn another_preshared_key_is_another_state_and_what_was_said_under_the_first_is_unknown() {
    let mut sim = Sim::new(2, CLEAR);
    sim.recorded = Some(Vec::new());
    let (near, far) = sim.connect();
    assert!(sim.carry(&near, &far, b"under the first key") == b"under the first key");
    let said = sim.recorded.take().unwrap();
    let first = [0, 1].map(|me: usize| sim.cores[me].by_address[&OWN[1 - me]]);
    let now = sim.now;
    let psk = Some(PresharedKey::from_bytes([200; 32]));
    for me in [0, 1] {
        let other = Peer {
            preshared_key: psk.clone(),
            ..peer(1 - me, me == 0)
        };
        sim.cores[me].set_peer(other, now).unwrap();
        assert_ne!(sim.cores[me].by_address[&OWN[1 - me]], first[me]);
    }
    sim.until(Duration::from_secs(5), |sim| {
        let is_up = |me: usize| sim.status(me).since_heard.is_some();
        (is_up(0) && is_up(1)).then_some(())
    });
    let (before, now) = (sim.drops(1), sim.now);
    let data = said.iter().filter(|(to, one)| *to == 1 && one[0] == 4);
    let mut count = 0;
    for (_, datagram) in data {
        sim.cores[1].handle_datagram(Path::Udp(address(0)), datagram, now);
        count += 1;
    }
    assert!(count > 0);
    assert_eq!(sim.drops(1).unknown_peer, before.unknown_peer + count);
    let (near, far) = sim.connect_again();
    assert!(sim.carry(&near, &far, b"under the second") == b"under the second");
}

#[test]
fn no_word_about_a_peer_tells_its_preshared_key() {
    let one = peer(1, true);
    let told = format!("{one:?} {one:#?}");
    let secret = one.preshared_key.unwrap().to_bytes();
    let decimal = format!("{secret:?}");
    assert!(!told.contains(decimal.trim_matches(['[', ']'])), "{told}");
    assert!(!told.contains("0303"), "{told}");
    assert!(!told.contains("AwMD"), "{told}");
    assert!(told.contains("***"), "{told}");
}

#[test]
fn nothing_is_kept_for_a_peer_without_a_session_but_what_is_still_wanted_when_it_comes() {
    let mut sim = Sim::new(3, OUTAGE);
    sim.recorded = Some(Vec::new());
    let mut conns = Vec::new();
    for _ in 0..100 {
        let now = sim.now;
        conns.push(sim.cores[0].connect(OWN[1], PORT, now).unwrap());
        // Without a session nobody is asked.
        sim.cores[0].echo(OWN[1], now).unwrap();
        sim.pass(Duration::from_millis(100));
    }
    let waits = sim.recorded.take().unwrap();
    assert!(
        waits.iter().all(|(_, datagram)| datagram[0] == 1),
        "only calls"
    );
    // Nobody wants ninety of them any more.
    for conn in conns.drain(..90) {
        conn.abandon();
    }
    sim.pass(Duration::from_secs(1));
    let backlog = sim.cores[1].listen(PORT).unwrap();
    sim.weather = CLEAR;
    sim.recorded = Some(Vec::new());
    sim.until(Duration::from_secs(31), |sim| {
        sim.status(1).since_heard.map(drop)
    });
    let came = sim.now;
    sim.until(Duration::from_secs(5), |_| {
        let all = |conn: &Arc<Conn>| conn.poll_connected(&context()).is_ready();
        conns.iter().all(all).then_some(())
    });
    let took = sim.now - came;
    assert!(took <= Duration::from_millis(200), "{took:?}");
    let said = sim.recorded.take().unwrap();
    let towards = said.iter().filter(|(to, one)| *to == 1 && one[0] == 4);
    // The questions and their answers, and what measures the path; boringtun would have kept 256.
    let count = towards.count();
    assert!(count <= 150, "{count} packets for ten connections");
    assert_eq!(sim.cores[1].streams(OWN[0]), 10, "and no more than ten");
    drop(backlog);
}

#[test]
fn a_state_that_is_at_the_workbench_holds_nobody_up_and_comes_back() {
    let mut sim = Sim::new(4, CLEAR);
    sim.recorded = Some(Vec::new());
    sim.connect();
    let said = sim.recorded.take().unwrap();
    let (_, first) = said.iter().find(|(_, one)| one[0] == 1).unwrap();
    let initiation: [u8; 148] = first.as_slice().try_into().unwrap();
    let response = said.iter().find(|(_, one)| one[0] == 2).unwrap();

    // As it happens at a hub that has restarted, step by step.
    let now = sim.now;
    let identity = Identity::new(&key(1));
    let id = PeerId::from_random(0x0123_4500);
    let mut session = Session::new(id, peer(0, false), &identity, now);
    let mut outbox = Outbox::new();
    let loan = session.lend(now).unwrap();
    assert!(session.lend(now).is_none(), "there is one");
    let mut room = vec![0; 2_048];
    let datagram = Datagram {
        message: Message::Data(id),
        source: Path::Udp(address(0)),
        bytes: &response.1,
    };
    let opened = session.open(&datagram, &mut room, &mut outbox, now);
    assert!(matches!(opened, Err(DropReason::UnknownPeer)));
    session.seal(&mut room, 64, &mut outbox, now);
    session.tick(true, 0.5, &mut outbox, now);
    assert!(outbox.pop().is_none(), "nothing to say without it");
    let returned = loan.respond(&initiation);
    session
        .take_back(returned, Path::Udp(address(0)), (&mut outbox, now))
        .unwrap();
    let answer = outbox.pop().unwrap();
    assert_eq!(answer.contents()[0], 2);
    assert!(session.lend(now).is_some(), "it is back");
}

#[test]
fn the_part_of_boringtun_that_roams_by_itself_is_not_built() {
    let manifest = include_str!("../../../../Cargo.toml");
    let line = manifest
        .lines()
        .find(|line| line.starts_with("boringtun = { version"))
        .unwrap();
    assert!(line.contains("default-features = false"), "{line}");
    assert!(!line.contains("device"), "{line}");
    let lock = include_str!("../../../../Cargo.lock");
    let mut packages = lock.split("[[package]]");
    let one = packages
        .find(|one| one.contains("name = \"boringtun\""))
        .unwrap();
    // Its devices are made with these.
    for part in ["\"socket2\"", "\"thiserror\""] {
        assert!(!one.contains(part), "{part} in {one}");
    }
}
