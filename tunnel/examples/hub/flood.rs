//! Streams while strangers begin handshakes by the thousand, each from another address.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tunnel::{PrivateKey, PublicKey, Stream, Tunnel};

use crate::figures::{Companion, PORT, address, cpu, hub, median, peer, print, source, until_up};

/// Addresses that the flood comes from.
const SOURCES: u32 = 10_000;
/// Different initiations, each with a valid first MAC.
const POOL: usize = 4_000;
const ROUND: Duration = Duration::from_secs(3);
const ROUNDS: usize = 5;

pub(crate) async fn run(per_second: u32) {
    let hub = hub("127.0.0.1:0".parse().expect("an address")).await;
    hub.set_peer(peer(1)).await.expect("a peer");
    let (at, key) = (hub.local_addr().to_string(), hub.public_key().to_string());
    let word = |word: &str| word.to_owned();
    let _node = Companion::start(&[word("nodes"), at.clone(), key.clone(), word("1")]);
    until_up(&hub, (1, 1), Duration::from_secs(20)).await;
    let (mut calm, mut flooded) = (Vec::new(), Vec::new());
    let (mut calm_cpu, mut flooded_cpu) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (speed, busy) = round(&hub).await;
        calm.push(speed);
        calm_cpu.push(busy);
        let arguments = [
            word("flooder"),
            at.clone(),
            key.clone(),
            per_second.to_string(),
        ];
        let flooder = Companion::start(&arguments);
        until_flooded(&hub).await;
        let (speed, busy) = round(&hub).await;
        flooded.push(speed);
        flooded_cpu.push(busy);
        drop(flooder);
    }
    let (calm, flooded) = (median(calm), median(flooded));
    let line = format!(
        "{{\"area\":\"hub-flood\",\"per_second\":{per_second},\"calm_mbit\":{calm:.0},\"flooded_mbit\":{flooded:.0},\"kept_percent\":{:.1},\
         \"calm_hub_core_percent\":{:.1},\"flooded_hub_core_percent\":{:.1},\"counters\":\"{:?}\"}}",
        flooded / calm * 100.0,
        median(calm_cpu) * 100.0,
        median(flooded_cpu) * 100.0,
        hub.counters(),
    );
    print(&line);
}

async fn until_flooded(hub: &Tunnel) {
    let count = || hub.counters().limited + hub.counters().unknown_peer;
    let before = count();
    while count() < before + 1_000 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Megabits per second to the node, and the share of a core that the hub took.
pub(crate) async fn round(hub: &Tunnel) -> (f64, f64) {
    let stream = hub.connect(address(1), PORT, Duration::from_secs(10)).await;
    push(stream.expect("a stream"), ROUND).await
}

pub(crate) async fn push(mut stream: Stream, time: Duration) -> (f64, f64) {
    let bytes = vec![b'x'; 256 * 1024];
    let (busy, began) = (cpu(), Instant::now());
    let mut sent = 0usize;
    while began.elapsed() < time {
        stream.write_all(&bytes).await.expect("room");
        sent += bytes.len();
    }
    // What is under way counts when it has arrived.
    stream.write_all(b"?").await.expect("room");
    stream.read_exact(&mut [0]).await.expect("an answer");
    let took = began.elapsed().as_secs_f64();
    let sent = f64::from(u32::try_from(sent / 1000).unwrap_or(u32::MAX)) * 8.0 / 1000.0;
    let busy = cpu().saturating_sub(busy).as_secs_f64();
    (sent / took, busy / took)
}

/// The flooder: valid first MACs, sources that never answer a cookie.
pub(crate) fn throw(hub: &str, hub_key: &str, per_second: u32) {
    let hub: SocketAddr = hub.parse().expect("an address");
    let hub_key: PublicKey = hub_key.parse().expect("a key");
    let sockets: Vec<UdpSocket> = (0..SOURCES)
        .filter_map(|number| UdpSocket::bind(source(100_000 + number)).ok())
        .collect();
    let pool: Vec<Vec<u8>> = (0..POOL).map(|_| initiation(hub_key)).collect();
    let began = Instant::now();
    let mut thrown = 0u32;
    loop {
        let due = began.elapsed().as_secs_f64() * f64::from(per_second);
        while f64::from(thrown) < due {
            let at = thrown as usize;
            sockets[at % sockets.len()]
                .send_to(&pool[at % pool.len()], hub)
                .ok();
            thrown += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn initiation(hub_key: PublicKey) -> Vec<u8> {
    let stranger = PrivateKey::generate().to_bytes().into();
    let mut tunn = Tunn::new(stranger, hub_key.to_bytes().into(), None, None, 1, None);
    let mut room = [0; 256];
    let TunnResult::WriteToNetwork(datagram) = tunn.format_handshake_initiation(&mut room, true)
    else {
        panic!("no initiation");
    };
    datagram.to_vec()
}
