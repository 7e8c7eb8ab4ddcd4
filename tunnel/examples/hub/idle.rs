//! What idle peers cost.

use std::time::{Duration, Instant};

use crate::figures::{Companion, cpu, hub, peer, print, resident, until_up};

pub(crate) async fn run(count: u32, seconds: u32) {
    let peers: Vec<_> = (1..=count).map(peer).collect();
    let before = resident();
    let began = Instant::now();
    let hub = hub("127.0.0.1:0".parse().expect("an address")).await;
    for peer in peers {
        hub.set_peer(peer).await.expect("a peer");
    }
    let start = began.elapsed();
    let known = resident().saturating_sub(before) / u64::from(count);

    let arguments = [
        "crowd".to_owned(),
        hub.local_addr().to_string(),
        hub.public_key().to_string(),
        count.to_string(),
    ];
    let crowd = Companion::start(&arguments);
    let busy = cpu();
    let all_up = until_up(&hub, (count, count), Duration::from_mins(2)).await;
    let handshakes = cpu().saturating_sub(busy);
    // What the arrival of all at once has left to do.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let live = resident().saturating_sub(before) / u64::from(count);
    let (from, at) = (cpu(), Instant::now());
    tokio::time::sleep(Duration::from_secs(u64::from(seconds))).await;
    let share = cpu().saturating_sub(from).as_secs_f64() / at.elapsed().as_secs_f64();
    drop(crowd);
    let line = format!(
        "{{\"area\":\"hub-idle\",\"peers\":{count},\"start_s\":{:.2},\"bytes_per_known_peer\":{known},\"bytes_per_live_peer\":{live},\
         \"all_up_s\":{:.2},\"cpu_ms_per_handshake\":{:.3},\"idle_core_percent\":{:.2}}}",
        start.as_secs_f64(),
        all_up.as_secs_f64(),
        handshakes.as_secs_f64() * 1000.0 / f64::from(count),
        share * 100.0,
    );
    print(&line);
}
