//! What only the kernel's TCP can be asked.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tunnel::{Backend, Error, PrivateKey, Tunnel};

use crate::relay::Relay;
use crate::support::{HUB, PATIENCE, echo, hub, node, pair, pattern, ping, settings, soon, until};

#[tokio::test]
async fn a_program_that_is_no_helper_leaves_auto_with_the_embedded_back_end() {
    let mut settings = settings(PrivateKey::generate(), HUB);
    settings.helper = Some("/bin/false".into());
    settings.backend = Backend::Auto;
    let tunnel = soon("a tunnel", Tunnel::start(settings.clone()))
        .await
        .unwrap();
    assert_eq!(tunnel.backend(), Backend::Embedded);
    settings.backend = Backend::Netns;
    let refused = soon("a refusal", Tunnel::start(settings))
        .await
        .unwrap_err();
    assert!(matches!(refused, Error::Backend(_)), "{refused}");
}

#[tokio::test]
async fn both_back_ends_understand_each_other() {
    let hub = hub().await;
    tokio::spawn(echo(hub.listen(9000).await.unwrap()));
    for (number, quic) in [(7, true), (8, false)] {
        let address = crate::support::node_address(number);
        let mut settings = settings(PrivateKey::generate(), address);
        settings.backend = Backend::Embedded;
        settings.quic = quic;
        let node = Tunnel::start(settings).await.unwrap();
        hub.set_peer(crate::support::node_as_peer(&node, None))
            .await
            .unwrap();
        node.set_peer(crate::support::hub_as_peer(&hub, hub.local_addr(), None))
            .await
            .unwrap();
        tokio::spawn(echo(node.listen(8080).await.unwrap()));
        let bytes = pattern(3_000_000, 5);
        for (from, to, port) in [(&node, HUB, 9000), (&hub, address, 8080)] {
            let stream = from.connect(to, port, PATIENCE).await.unwrap();
            let back = soon("the echo", crate::support::exchange(stream, bytes.clone())).await;
            assert!(back.unwrap() == bytes, "bytes differ");
        }
    }
}

#[tokio::test]
async fn a_reader_that_stalls_stops_its_writer_and_nobody_else() {
    let (hub, node) = pair().await;
    let listener = node.listen(8080).await.unwrap();
    let mut stalled = hub.connect(node.address(), 8080, PATIENCE).await.unwrap();
    let (_unread, _) = soon("the stalled stream", listener.accept()).await.unwrap();
    let piece = vec![1; 64 * 1024];
    let mut taken = 0;
    while let Ok(wrote) =
        tokio::time::timeout(Duration::from_millis(400), stalled.write(&piece)).await
    {
        taken += wrote.unwrap();
        assert!(
            taken < 64 << 20,
            "a reader that reads nothing took {taken} bytes"
        );
    }
    tokio::spawn(echo(listener));
    let mut other = hub.connect(node.address(), 8080, PATIENCE).await.unwrap();
    soon("an answer beside it", ping(&mut other)).await.unwrap();
}

#[tokio::test]
async fn nothing_of_the_namespace_outlives_the_tunnel() {
    let (hub, node) = pair().await;
    let helpers = || helpers_of(std::process::id()).len();
    let before = helpers();
    if hub.backend() == Backend::Embedded {
        return;
    }
    assert!(before >= 2, "two tunnels with {before} helpers");
    node.shutdown().await;
    hub.shutdown().await;
    drop((hub, node));
    until("the helpers to be gone", || helpers() + 2 <= before).await;
}

#[tokio::test]
async fn a_connection_that_is_cut_ends_with_an_error_on_both_sides() {
    let (hub, node) = pair().await;
    let listener = node.listen(8080).await.unwrap();
    let mut client = hub.connect(node.address(), 8080, PATIENCE).await.unwrap();
    let (mut server, _) = soon("a stream", listener.accept()).await.unwrap();
    client.write_all(b"x").await.unwrap();
    assert_eq!(soon("a byte", server.read_u8()).await.unwrap(), b'x');
    hub.remove_peer(node.address()).await.unwrap();
    assert!(soon("our end", client.read_u8()).await.is_err());
    assert!(soon("their end", server.read_u8()).await.is_err());
    let node = node_again(&hub).await;
    drop(node);
}

async fn node_again(hub: &Tunnel) -> Tunnel {
    let node = node(hub, 3, hub.local_addr()).await;
    until("a session", || {
        crate::support::has_session(hub, node.address())
    })
    .await;
    node
}

/// Children of a process that are helpers.
fn helpers_of(parent: u32) -> Vec<String> {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let is_ours = |path: &Path| {
        let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
        let parent = format!("PPid:\t{parent}");
        let name = std::fs::read_to_string(path.join("cmdline")).unwrap_or_default();
        status.lines().any(|line| line == parent) && name.contains("__netns")
    };
    processes
        .filter_map(Result::ok)
        .filter(|entry| is_ours(&entry.path()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

#[tokio::test]
async fn a_helper_that_is_killed_is_replaced_and_streams_go_on() {
    let (hub, node) = pair().await;
    if hub.backend() == Backend::Embedded || node.backend() == Backend::Embedded {
        return;
    }
    tokio::spawn(echo(node.listen(8080).await.unwrap()));
    let mut before = hub.connect(node.address(), 8080, PATIENCE).await.unwrap();
    soon("an answer", ping(&mut before)).await.unwrap();
    for helper in helpers_of(std::process::id()) {
        let killed = std::process::Command::new("kill")
            .args(["-9", &helper])
            .status();
        assert!(killed.unwrap().success());
    }
    let mut more = Vec::new();
    // More than were made ahead.
    for _ in 0..40 {
        more.push(hub.connect(node.address(), 8080, PATIENCE).await.unwrap());
    }
    for stream in more.iter_mut().chain([&mut before]) {
        soon("an answer", ping(stream)).await.unwrap();
    }
    assert!(node.listen(8081).await.is_ok());
}

/// The kernel's own least is 200 ms, of which a chat's short requests feel each.
#[tokio::test]
async fn what_is_lost_last_is_repeated_before_anybody_notices() {
    const TRIES: usize = 8;
    const LONG: Duration = Duration::from_millis(150);
    let hub = hub().await;
    let relay = Relay::start(hub.local_addr(), 0, 1).await;
    let node = node(&hub, 1, relay.address).await;
    until("a session", || {
        crate::support::has_session(&hub, node.address())
    })
    .await;
    let is_tunable = Path::new("/proc/sys/net/ipv4/tcp_rto_min_us").exists();
    if hub.backend() == Backend::Embedded || !is_tunable {
        return;
    }
    tokio::spawn(echo(node.listen(8080).await.unwrap()));
    let mut stream = hub.connect(node.address(), 8080, PATIENCE).await.unwrap();
    let mut quickest = Duration::MAX;
    for _ in 0..TRIES {
        soon("an answer", ping(&mut stream)).await.unwrap();
        let before = relay.lost();
        relay.set_cut(true);
        let began = Instant::now();
        let asking = ping(&mut stream);
        let clearing = async {
            until("a loss", || relay.lost() > before).await;
            relay.set_cut(false);
        };
        let (answered, ()) = soon("a repeated request", async {
            tokio::join!(asking, clearing)
        })
        .await;
        answered.unwrap();
        quickest = quickest.min(began.elapsed());
    }
    assert!(quickest < LONG, "the quickest of {TRIES} took {quickest:?}");
}
