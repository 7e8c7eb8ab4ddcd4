//! Paths that carry less than Ethernet, and lose what is larger without a word.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tunnel::Tunnel;

use crate::relay::Relay;
use crate::support::{
    HUB, PATIENCE, echo, exchange, hub, is_kernels, node, node_address, pattern, soon, tell, until,
};

/// IPv4 and UDP headers in front of the relay's payload.
const HEADERS: usize = 28;

/// A hub and a node on a path of `width` bytes.
async fn house(width: usize) -> (Tunnel, Tunnel, Relay) {
    let hub = hub().await;
    tokio::spawn(echo(hub.listen(9000).await.unwrap()));
    let relay = Relay::start(hub.local_addr(), 0, 1).await;
    relay.set_width(width - HEADERS);
    let node = node(&hub, 1, relay.address).await;
    (hub, node, relay)
}

fn mtu(node: &Tunnel) -> usize {
    node.peer_status(HUB).map_or(0, |status| status.mtu)
}

#[tokio::test]
async fn each_path_is_used_as_wide_as_it_is() {
    for (width, expected) in [
        (1_500, 1_440),
        (1_492, 1_408),
        (1_420, 1_360),
        (1_280, 1_200),
    ] {
        let (hub, node, _relay) = house(width).await;
        until("both ends to know the path", || {
            let at_hub = hub.peer_status(node_address(1)).map(|status| status.mtu);
            mtu(&node) == expected && at_hub == Some(expected)
        })
        .await;
        let stream = node.connect(HUB, 9000, PATIENCE).await.unwrap();
        let bytes = pattern(400_000, width as u64);
        assert!(soon("bulk", exchange(stream, bytes.clone())).await.unwrap() == bytes);
    }
}

/// Sends and reads back for ever, and says how long the longest pause was until `narrowed` and after.
#[tokio::test]
async fn a_path_that_narrows_in_a_transfer_is_healed() {
    let (_hub, node, relay) = house(1_500).await;
    until("the path to be known", || mtu(&node) == 1_440).await;
    let stream = node.connect(HUB, 9000, PATIENCE).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let writing = tokio::spawn(async move {
        let chunk = pattern(60_000, 3);
        while writer.write_all(&chunk).await.is_ok() {}
    });
    let mut buffer = vec![0; 65_536];
    // The goal is 3 s, and the figure is told; a busy machine may take a little longer. smoltcp's own repeats come after 1, 2, 4, 8 and 16 s,
    // whenever the path was healed.
    let is_smoltcp = !is_kernels(&node) && !crate::QUIC;
    let allowed = Duration::from_secs(if is_smoltcp { 35 } else { 6 });
    // Datagrams larger than this vanish.
    for (width, expected) in [(1_400, 1_360), (1_360, 1_280), (1_280, 1_200)] {
        relay.set_width(width);
        let began = Instant::now();
        let mut longest = Duration::ZERO;
        let mut last = began;
        let mut healed = None;
        // What was under way arrives for a moment; a stream that flows on after the path is known has not stalled.
        while healed.is_none_or(|at: Instant| at.elapsed() < Duration::from_millis(500)) {
            let read = tokio::time::timeout(allowed, reader.read(&mut buffer)).await;
            assert!(read.expect("no stall").expect("a stream that lives") > 0);
            longest = longest.max(last.elapsed());
            last = Instant::now();
            assert!(began.elapsed() < allowed, "{} on {width}", mtu(&node));
            if healed.is_none() && mtu(&node) <= expected {
                healed = Some(last);
            }
        }
        // A busy machine answers late, which looks like a narrower path for a while.
        assert!(mtu(&node) <= expected, "{} on {width}", mtu(&node));
        tell(&format!(
            "narrowed to {width}: longest pause {longest:?}, now {}",
            mtu(&node)
        ));
    }
    writing.abort();
}
