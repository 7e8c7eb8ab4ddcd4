//! What two drivers would carry more than one: the peers of one hub against the same peers shared by two, which are then as independent
//! as shards can ever be.

use std::net::SocketAddr;
use std::time::Duration;

use tunnel::Tunnel;

use crate::figures::{Companion, PORT, address, cpu, hub, median, peer, print};
use crate::flood::push;

const ROUND: Duration = Duration::from_secs(3);
const ROUNDS: usize = 3;

pub(crate) async fn run(count: u32) {
    let (mut one, mut two) = (Vec::new(), Vec::new());
    let mut per_gigabyte = Vec::new();
    for _ in 0..ROUNDS {
        let (speed, cost) = carry(1, count).await;
        one.push(speed);
        per_gigabyte.push(cost);
        two.push(carry(2, count).await.0);
    }
    let (one, two) = (median(one), median(two));
    let line = format!(
        "{{\"area\":\"hub-shards\",\"peers\":{count},\"cores\":{},\"one_driver_mbit\":{one:.0},\"two_drivers_mbit\":{two:.0},\
         \"gain\":{:.2},\"hub_cpu_s_per_gb\":{:.2}}}",
        std::thread::available_parallelism().map_or(0, usize::from),
        two / one,
        median(per_gigabyte),
    );
    print(&line);
}

/// Megabits per second of all streams together, and CPU-seconds of the hubs per gigabyte.
async fn carry(hubs: u32, count: u32) -> (f64, f64) {
    let share = count / hubs;
    let mut members = Vec::new();
    for number in 0..hubs {
        members.push(member(number * share, share).await);
    }
    let busy = cpu();
    let mut streams = Vec::new();
    for (number, (hub, _nodes)) in (0..hubs).zip(&members) {
        for node in number * share + 1..=(number + 1) * share {
            let stream = hub.connect(address(node), PORT, Duration::from_secs(10));
            streams.push(tokio::spawn(push(stream.await.expect("a stream"), ROUND)));
        }
    }
    let mut total = 0.0;
    for stream in streams {
        total += stream.await.expect("a stream").0;
    }
    let gigabytes = total / 8_000.0 * ROUND.as_secs_f64();
    (total, cpu().saturating_sub(busy).as_secs_f64() / gigabytes)
}

/// A hub with its share of the nodes.
async fn member(first: u32, share: u32) -> (Tunnel, Companion) {
    let bind: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let hub = hub(bind).await;
    for number in first + 1..=first + share {
        hub.set_peer(peer(number)).await.expect("a peer");
    }
    let nodes = Companion::start(&[
        "nodes".to_owned(),
        hub.local_addr().to_string(),
        hub.public_key().to_string(),
        share.to_string(),
        first.to_string(),
    ]);
    while (first + 1..=first + share).any(|number| !crate::figures::is_up(&hub, address(number))) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (hub, nodes)
}
