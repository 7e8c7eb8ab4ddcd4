//! Streams through two real tunnels over loopback UDP.

use std::time::{Duration, Instant};

use crate::support::{
    HUB, PATIENCE, echo, exchange, hub_with, is_kernels, node_with, pair, pattern, ping, soon,
    until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tunnel::{Bounds, Error};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn megabytes_arrive_intact_in_both_directions() {
    let (hub, node) = pair().await;
    tokio::spawn(echo(node.listen(8080).await.unwrap()));
    tokio::spawn(echo(hub.listen(9000).await.unwrap()));
    let to_node = hub.connect(node.address(), 8080, PATIENCE).await.unwrap();
    let to_hub = node.connect(HUB, 9000, PATIENCE).await.unwrap();
    let (down, up) = (pattern(6_000_000, 1), pattern(5_000_000, 2));
    let (one, two) = tokio::join!(
        soon("the first echo", exchange(to_node, down.clone())),
        soon("the second echo", exchange(to_hub, up.clone())),
    );
    assert!(one.unwrap() == down, "what the node sent back differs");
    assert!(two.unwrap() == up, "what the hub sent back differs");
}

#[tokio::test]
async fn two_hundred_streams_run_at_once() {
    let (hub, node) = pair().await;
    tokio::spawn(echo(node.listen(8080).await.unwrap()));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..200u64 {
        let hub = hub.clone();
        let address = node.address();
        tasks.spawn(async move {
            let stream = hub.connect(address, 8080, PATIENCE).await.unwrap();
            let bytes = pattern(20_000 + usize::try_from(number).unwrap(), number);
            assert!(exchange(stream, bytes.clone()).await.unwrap() == bytes);
        });
    }
    soon("all streams", async {
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    })
    .await;
    until("the streams to be forgotten", || {
        hub.peer_status(node.address()).unwrap().streams == 0
    })
    .await;
}

#[tokio::test]
async fn six_hundred_streams_stay_open_with_one_peer() {
    let (hub, node) = pair().await;
    tokio::spawn(echo(node.listen(8080).await.unwrap()));
    let mut streams = Vec::new();
    for _ in 0..600 {
        streams.push(hub.connect(node.address(), 8080, PATIENCE).await.unwrap());
    }
    for stream in &mut streams {
        soon("an answer", ping(stream)).await.unwrap();
    }
}

#[tokio::test]
async fn a_dial_to_a_port_nobody_listens_on_is_refused() {
    let (hub, node) = pair().await;
    let refused = hub.connect(node.address(), 81, PATIENCE).await.unwrap_err();
    assert!(
        matches!(refused, Error::Refused { port: 81, .. }),
        "{refused}"
    );
}

#[tokio::test]
async fn each_side_can_finish_on_its_own() {
    let (hub, node) = pair().await;
    let listener = node.listen(8080).await.unwrap();
    let mut client = hub.connect(node.address(), 8080, PATIENCE).await.unwrap();
    let (mut server, from) = soon("a connection", listener.accept()).await.unwrap();
    assert_eq!(*from.ip(), HUB);

    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut asked = Vec::new();
    soon("the question", server.read_to_end(&mut asked))
        .await
        .unwrap();
    assert_eq!(asked, b"question");

    let answer = pattern(300_000, 3);
    let writing = tokio::spawn({
        let answer = answer.clone();
        async move {
            server.write_all(&answer).await.unwrap();
            server.shutdown().await.unwrap();
        }
    });
    let mut got = Vec::new();
    soon("the answer", client.read_to_end(&mut got))
        .await
        .unwrap();
    writing.await.unwrap();
    assert!(got == answer, "the half-closed stream lost bytes");
}

#[tokio::test]
async fn what_was_written_before_a_shutdown_survives_the_drop() {
    let (hub, node) = pair().await;
    let listener = node.listen(8080).await.unwrap();
    let mut client = hub.connect(node.address(), 8080, PATIENCE).await.unwrap();
    let (mut server, _) = soon("a connection", listener.accept()).await.unwrap();
    let bytes = pattern(200_000, 4);
    client.write_all(&bytes).await.unwrap();
    client.shutdown().await.unwrap();
    drop(client);
    let mut got = Vec::new();
    soon("the bytes", server.read_to_end(&mut got))
        .await
        .unwrap();
    assert!(got == bytes, "a drop after shutdown lost bytes");
}

#[tokio::test]
async fn a_dropped_stream_is_noticed_within_100_ms() {
    let (hub, node) = pair().await;
    let listener = node.listen(8080).await.unwrap();
    let mut client = hub.connect(node.address(), 8080, PATIENCE).await.unwrap();
    let (mut server, _) = soon("a connection", listener.accept()).await.unwrap();
    client.write_all(b"x").await.unwrap();
    server.read_exact(&mut [0; 1]).await.unwrap();
    let dropped_at = Instant::now();
    drop(client);
    let ended = soon("the end", server.read(&mut [0; 1])).await;
    assert!(ended.is_err(), "a drop is a reset, not an end: {ended:?}");
    let took = dropped_at.elapsed();
    assert!(took < Duration::from_millis(100), "took {took:?}");
}

#[tokio::test]
async fn a_stalled_reader_stops_the_writer_within_the_two_buffers() {
    let (hub, node) = pair().await;
    let listener = node.listen(8080).await.unwrap();
    let mut client = hub.connect(node.address(), 8080, PATIENCE).await.unwrap();
    let (mut server, _) = soon("a connection", listener.accept()).await.unwrap();
    // The kernel's buffers grow, to 4 MiB each.
    let buffer = if is_kernels(&hub) {
        4 << 20
    } else if crate::QUIC {
        512 * 1024
    } else {
        256 * 1024
    };
    let bytes = pattern(buffer * 16, 5);
    let mut sent = 0;
    // The writer is stuck when it makes no progress although it has had ample time.
    while let Ok(wrote) =
        tokio::time::timeout(Duration::from_millis(500), client.write(&bytes[sent..])).await
    {
        sent += wrote.unwrap();
    }
    assert!(sent >= 256 * 1024, "one buffer at least, was {sent}");
    assert!(sent <= 2 * buffer, "more than the two buffers: {sent}");

    let rest = bytes.clone();
    let writing = tokio::spawn(async move {
        client.write_all(&rest[sent..]).await.unwrap();
        client.shutdown().await.unwrap();
    });
    let mut got = Vec::new();
    soon("the rest", server.read_to_end(&mut got))
        .await
        .unwrap();
    writing.await.unwrap();
    assert!(got == bytes, "the stall lost bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_stream_does_not_slow_the_others() {
    let (hub, node) = pair().await;
    tokio::spawn(echo(node.listen(8080).await.unwrap()));
    let mut stalled = hub.connect(node.address(), 8080, PATIENCE).await.unwrap();
    let bytes = pattern(
        if is_kernels(&hub) {
            40_000_000
        } else {
            4_000_000
        },
        6,
    );
    // The echo comes back and nobody reads it.
    let stall = tokio::time::timeout(Duration::from_millis(300), stalled.write_all(&bytes));
    assert!(stall.await.is_err(), "four buffers hold less than this");
    let bytes = pattern(2_000_000, 6);
    let other = hub.connect(node.address(), 8080, PATIENCE).await.unwrap();
    let back = soon("the other stream", exchange(other, bytes.clone())).await;
    assert!(back.unwrap() == bytes);
}

#[tokio::test]
async fn thousands_of_dials_in_a_row_find_fresh_ports() {
    // Small buffers: the test is about ports, and zeroing memory would take most of its time.
    let bounds = Bounds {
        tcp_buffer_bytes: 4096,
        ..Bounds::default()
    };
    let hub = hub_with(bounds.clone()).await;
    let node = node_with(&hub, 1, hub.local_addr(), bounds).await;
    let listener = node.listen(8080).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"x").await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    // More than a peer may have at once: those that are over must make room.
    let times = if is_kernels(&hub) || crate::QUIC {
        3_000
    } else {
        6_000
    };
    let slowest = dial_often(&hub, node.address(), times).await;
    assert!(slowest < Duration::from_secs(1), "a dial took {slowest:?}");
}

async fn dial_often(hub: &tunnel::Tunnel, to: std::net::Ipv6Addr, times: u32) -> Duration {
    let mut slowest = Duration::ZERO;
    for _ in 0..times {
        let began = Instant::now();
        let mut stream = hub.connect(to, 8080, PATIENCE).await.unwrap();
        let mut back = Vec::new();
        soon("the greeting", stream.read_to_end(&mut back))
            .await
            .unwrap();
        assert_eq!(back, b"x");
        slowest = slowest.max(began.elapsed());
    }
    slowest
}

#[tokio::test]
async fn a_full_backlog_neither_grows_nor_blocks_later_connections() {
    let bounds = Bounds {
        backlog_max: 4,
        ..Bounds::default()
    };
    let hub = hub_with(Bounds::default()).await;
    let node = node_with(&hub, 1, hub.local_addr(), bounds).await;
    let listener = node.listen(8080).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let hub = hub.clone();
        let to = node.address();
        tasks.spawn(async move { hub.connect(to, 8080, PATIENCE).await.map(drop) });
    }
    // The kernel counts in its own namespace.
    if !is_kernels(&node) {
        until("the backlog to be full", || {
            node.counters().backlog_full > 0
        })
        .await;
    }
    let accepting = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(stream);
        }
    });
    while let Some(done) = soon("all dials", tasks.join_next()).await {
        done.unwrap().unwrap();
    }
    accepting.abort();
}
