//! All nodes come back at once after the hub's restart.

use std::io::Write as _;
use std::time::{Duration, Instant};

use tunnel::{Peer, Tunnel};

use crate::figures::{Companion, address, hub, peer, print, up};

const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) async fn run(count: u32) {
    let bind = "127.0.0.1:0".parse().expect("an address");
    let first = hub(bind).await;
    for number in 1..=count {
        first.set_peer(peer(number)).await.expect("a peer");
    }
    let bind = first.local_addr();
    let arguments = [
        "nodes".to_owned(),
        bind.to_string(),
        first.public_key().to_string(),
        count.to_string(),
    ];
    let mut nodes = Companion::start(&arguments);
    let came = wait(&first, count, Instant::now()).await;
    let remembered: Vec<Peer> = (1..=count)
        .map(|number| Peer {
            endpoint: first
                .peer_status(address(number))
                .and_then(|status| status.endpoint),
            initiates: true,
            ..peer(number)
        })
        .collect();
    first.shutdown().await;
    drop(first);

    // The hub remembers where everybody was, and calls them.
    let began = Instant::now();
    let second = hub(bind).await;
    let mut told = tokio::task::JoinSet::new();
    for peer in remembered {
        let second = second.clone();
        told.spawn(async move { second.set_peer(peer).await.expect("a peer") });
    }
    told.join_all().await;
    let called = wait(&second, count, began).await;
    second.shutdown().await;
    drop(second);

    // The hub knows nothing but the keys, and everybody calls at once.
    let third = hub(bind).await;
    for number in 1..=count {
        third.set_peer(peer(number)).await.expect("a peer");
    }
    let began = Instant::now();
    let stdin = nodes.0.stdin.as_mut().expect("a pipe");
    stdin.write_all(b"all\n").expect("a line");
    let calling = wait(&third, count, began).await;
    drop(nodes);
    let line = format!(
        "{{\"area\":\"hub-storm\",\"nodes\":{count},\"first_join\":{},\"hub_calls\":{},\"nodes_call\":{},\"counters\":\"{:?}\"}}",
        text(came),
        text(called),
        text(calling),
        third.counters(),
    );
    print(&line);
}

fn text([half, most, all]: [Duration; 3]) -> String {
    format!(
        "{{\"p50_s\":{:.2},\"p99_s\":{:.2},\"all_s\":{:.2}}}",
        half.as_secs_f64(),
        most.as_secs_f64(),
        all.as_secs_f64()
    )
}

/// When half, 99 % and all had a session.
async fn wait(hub: &Tunnel, count: u32, began: Instant) -> [Duration; 3] {
    let marks = [count / 2, count - count / 100, count];
    let mut at = [None; 3];
    while at[2].is_none() {
        let have = up(hub, count);
        for (mark, at) in marks.iter().zip(&mut at) {
            if have >= *mark {
                at.get_or_insert(began.elapsed());
            }
        }
        assert!(began.elapsed() < PATIENCE, "{have} of {count}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    at.map(Option::unwrap_or_default)
}
