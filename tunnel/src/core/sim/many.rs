//! Many peers at one core, and many keys with one peer.

use super::*;

pub(super) const CROWD: u16 = 1_000;

pub(super) fn of_crowd(number: u16) -> Peer {
    let mut secret = [9; 32];
    secret[8..10].copy_from_slice(&number.to_le_bytes());
    Peer {
        public_key: PrivateKey::from_bytes(secret).public_key(),
        preshared_key: None,
        address: Ipv6Addr::new(0xfd00, 0, 0, 0, 1, 0, 0, number),
        endpoint: Some(SocketAddr::from(([203, 0, 113, 1], 1 + number))),
        keepalive: None,
        initiates: true,
    }
}

/// Everything that the core sends now, by destination.
fn sent(core: &mut Core) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    while let Some(batch) = core.poll_transmit() {
        let to = batch.destination.source();
        all.extend(std::iter::repeat_n(to, batch.count()));
        core.recycle(batch);
    }
    all
}

/// Everybody whose time has come gets it, as in the driver: what is sent at once fits into the buffers that are kept.
fn looked_at(core: &mut Core, now: Instant) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    loop {
        core.handle_timeout(now);
        let some = sent(core);
        assert!(some.len() <= 32, "{} datagrams in one round", some.len());
        all.extend(some);
        if !core.has_work() {
            return all;
        }
    }
}

#[test]
fn a_restarted_hub_calls_a_thousand_nodes_one_after_the_other_and_leaves_none_out() {
    let began = Instant::now();
    let mut core = core(1, 1, began);
    for number in 0..CROWD {
        core.set_peer(of_crowd(number), began).unwrap();
    }
    let mut called: Vec<_> = sent(&mut core);
    assert!(called.len() <= 250, "{} at once", called.len());
    let mut now = began;
    // The first has not been called twice before the last is called once.
    while now < began + Duration::from_millis(1_200) && called.len() < usize::from(CROWD) {
        now = core.poll_timeout().unwrap();
        let more = looked_at(&mut core, now);
        assert!(more.len() <= 260, "{} in a quarter second", more.len());
        called.extend(more);
    }
    called.sort();
    called.dedup();
    assert!(
        called.len() >= usize::from(CROWD) * 9 / 10,
        "{}",
        called.len()
    );
    while now < began + Duration::from_secs(4) {
        now = core.poll_timeout().unwrap();
        called.extend(looked_at(&mut core, now));
    }
    called.sort();
    called.dedup();
    assert_eq!(called.len(), usize::from(CROWD));
}

#[test]
fn peers_that_only_wait_are_looked_at_every_fifteen_seconds() {
    let began = Instant::now();
    let mut core = core(1, 2, began);
    for number in 0..CROWD {
        let waiting = Peer {
            endpoint: None,
            initiates: false,
            ..of_crowd(number)
        };
        core.set_peer(waiting, began).unwrap();
    }
    let mut wakes = 0;
    let mut now = began;
    while now < began + Duration::from_mins(1) {
        now = core.poll_timeout().unwrap();
        assert!(looked_at(&mut core, now).is_empty());
        wakes += 1;
    }
    assert!(wakes <= 6, "woken {wakes} times in a minute");
}

#[test]
fn keys_change_under_a_stream_of_tokens_and_no_token_waits() {
    let mut sim = Sim::new(3, CLEAR);
    let (near, far) = sim.connect();
    let mut buffer = [0; 64];
    for round in 0..200u8 {
        if round.is_multiple_of(10) {
            let now = sim.now;
            let fresh = PrivateKey::from_bytes([100 + round / 10; 32]);
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
        }
        for (from, to) in [(&near, &far), (&far, &near)] {
            let began = sim.now;
            let wrote = from.poll_write(&context(), &[IoSlice::new(b"token")]);
            assert!(matches!(wrote, Poll::Ready(Ok(5))));
            sim.until(Duration::from_secs(1), |_| {
                to.poll_read(&context(), &mut buffer)
                    .is_ready()
                    .then_some(())
            });
            let took = sim.now - began;
            assert!(
                took <= Duration::from_millis(50),
                "{took:?} in round {round}"
            );
        }
    }
    let drops = sim.drops(1);
    assert_eq!(drops.unauthentic + drops.bad_mac, 0, "{drops:?}");
}

#[test]
fn what_was_counted_goes_on_when_keys_change_and_when_a_peer_comes_again() {
    let mut sim = Sim::new(4, CLEAR);
    let (near, far) = sim.connect();
    let bytes = bytes(50_000);
    assert!(sim.carry(&near, &far, &bytes) == bytes);
    let counted = |sim: &Sim| {
        let status = sim.status(1);
        [status.rx_bytes, status.tx_bytes]
    };
    sim.pass(Duration::from_secs(1));
    let first = counted(&sim);
    assert!(first[0] > 50_000 && first[1] > 0, "{first:?}");
    let now = sim.now;
    let psk = Some(PresharedKey::from_bytes([77; 32]));
    let other = Peer {
        preshared_key: psk,
        ..peer(0, false)
    };
    sim.cores[1].set_peer(other, now).unwrap();
    // Resets of what was cut are counted too.
    let second = counted(&sim);
    assert!(second[0] == first[0] && second[1] >= first[1], "other keys");
    assert!(sim.cores[1].remove_peer(OWN[0], now));
    sim.cores[1].set_peer(peer(0, false), now).unwrap();
    let third = counted(&sim);
    assert!(
        third[0] == second[0] && third[1] >= second[1],
        "gone and back"
    );
    let (near, far) = sim.connect_again();
    assert!(sim.carry(&near, &far, &bytes) == bytes);
    sim.pass(Duration::from_secs(1));
    assert!(counted(&sim)[0] > first[0] + 50_000);
}

#[test]
fn the_share_of_echoes_that_never_come_back_is_the_loss() {
    let mut sim = Sim::new(5, CLEAR);
    sim.connect();
    assert_eq!(sim.status(0).loss_per_mille, None);
    for lose in [0, 200] {
        sim.weather.lose = lose;
        for _ in 0..64 {
            let now = sim.now;
            sim.cores[0].echo(OWN[1], now).unwrap();
            sim.pass(Duration::from_millis(100));
        }
        let loss = sim.status(0).loss_per_mille.unwrap();
        // Lost there or back: 36 % of the echoes.
        let expected = if lose == 0 { 0..=0 } else { 150..=600 };
        assert!(expected.contains(&loss), "{loss} per mille at {lose}");
    }
}
