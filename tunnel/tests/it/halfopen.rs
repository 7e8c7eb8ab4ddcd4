//! A node that loses its power while streams are pooled, and clients that read nothing.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tunnel::{Stream, Tunnel};

use crate::relay::Relay;
use crate::support::{
    PATIENCE, echo, exchange, has_session, hub, is_kernels, node, node_address, pair, pattern,
    ping, soon, tell, until,
};

const POOLED: usize = 200;
/// As a proxy does that has work at a node: it asks after so long a silence, and gives the node up after that.
const ASK_AFTER: Duration = Duration::from_millis(250);
const GONE_AFTER: Duration = Duration::from_millis(1_500);
/// Streams whose readers sleep.
const STALLED: usize = 8;

/// Watches a node as long as it is heard; cuts its streams when it is not.
async fn watch(hub: Tunnel, number: u16) {
    let address = node_address(number);
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let Some(status) = hub.peer_status(address) else {
            return;
        };
        let silence = status.since_heard.unwrap_or_default();
        if silence >= GONE_AFTER {
            hub.remove_peer(address).await.expect("the hub is there");
            return;
        }
        if silence >= ASK_AFTER {
            hub.echo(address).await.ok();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_streams_to_a_node_without_power_end_within_seconds_and_nobody_outwaits_his_deadline()
 {
    let hub = hub().await;
    let relay = Relay::start(hub.local_addr(), 0, 1).await;
    let node = node(&hub, 1, relay.address).await;
    let address = node.address();
    until("a session", || has_session(&hub, address)).await;
    tokio::spawn(echo(node.listen(8080).await.unwrap()));
    let mut pool: Vec<Stream> = Vec::new();
    for _ in 0..POOLED {
        let mut stream = hub.connect(address, 8080, PATIENCE).await.unwrap();
        ping(&mut stream).await.unwrap();
        pool.push(stream);
    }

    relay.set_cut(true);
    let began = Instant::now();
    let watching = tokio::spawn(watch(hub.clone(), 1));
    let mut ends = JoinSet::new();
    for (number, mut stream) in pool.into_iter().enumerate() {
        ends.spawn(async move {
            // Some have a request under way, the others wait in the pool.
            if number % 2 == 0 {
                stream.write_all(b"ping").await.ok();
            }
            stream.read_u8().await
        });
    }
    // A request that comes now waits as long as it said, or until the node is given up.
    let deadline = Duration::from_millis(700);
    let refused = hub.connect(address, 8080, deadline).await;
    assert!(refused.is_err(), "nobody is there");
    let took = began.elapsed();
    assert!(took < deadline + Duration::from_millis(500), "{took:?}");
    while let Some(end) = soon("the streams' ends", ends.join_next()).await {
        assert!(end.unwrap().is_err(), "an error and not an end");
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    tell(&format!("{POOLED} streams ended {took:?} after the power"));
    watching.await.unwrap();
    let unknown = hub.connect(address, 8080, PATIENCE).await;
    assert!(unknown.is_err(), "and at once from then on");
    assert_eq!(hub.streams_now(address).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_read_nothing_hold_their_buffers_and_slow_nobody() {
    let (hub, node) = pair().await;
    let listener = node.listen(8080).await.unwrap();
    // The kernel's buffers grow, to 4 MiB each.
    let buffer = if is_kernels(&hub) { 4 << 20 } else { 512 << 10 };
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        let client = hub.connect(node.address(), 8080, PATIENCE).await.unwrap();
        let (server, _) = soon("a stream", listener.accept()).await.unwrap();
        stalled.push((client, server));
    }
    let before = resident();
    let piece = pattern(64 << 10, 13);
    let mut writers = JoinSet::new();
    for (mut client, server) in stalled {
        let piece = piece.clone();
        writers.spawn(async move {
            let mut taken = 0;
            let pause = Duration::from_millis(700);
            while let Ok(wrote) = tokio::time::timeout(pause, client.write(&piece)).await {
                taken += wrote.unwrap();
            }
            (taken, client, server)
        });
    }
    let mut kept = Vec::new();
    while let Some(done) = soon("the writers to be stuck", writers.join_next()).await {
        let (taken, client, server) = done.unwrap();
        assert!(taken <= 2 * buffer, "{taken} bytes into two buffers");
        kept.push((client, server));
    }
    let grown = resident().saturating_sub(before);
    let allowed = STALLED * 2 * buffer + (32 << 20);
    assert!(grown <= allowed as u64, "{grown} bytes of memory");

    tokio::spawn(echo(listener));
    let other = hub.connect(node.address(), 8080, PATIENCE).await.unwrap();
    let bytes = pattern(2_000_000, 14);
    let began = Instant::now();
    let back = soon("the other's bytes", exchange(other, bytes.clone())).await;
    assert!(back.unwrap() == bytes);
    let took = began.elapsed();
    tell(&format!(
        "{STALLED} stalled: memory grew by {grown} bytes, 2 MB there and back took {took:?}"
    ));
    drop(kept);
}

/// Resident memory in bytes; zero where nobody tells.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}
