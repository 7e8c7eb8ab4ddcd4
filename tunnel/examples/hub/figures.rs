//! Numbers of this process, and the peers that every part agrees on.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tunnel::{Bounds, Peer, PrivateKey, Settings, Tunnel};

pub(crate) const HUB: Ipv6Addr = Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 0, 0, 0, 1);
pub(crate) const PORT: u16 = 8080;

/// A child process that ends with its parent's interest in it.
pub(crate) struct Companion(pub(crate) Child);

impl Companion {
    pub(crate) fn start(arguments: &[String]) -> Self {
        let program = std::env::current_exe().expect("our own path");
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::inherit())
            .spawn()
            .expect("a child");
        Self(child)
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The key of the peer with this number, zero being the hub.
pub(crate) fn key(number: u32) -> PrivateKey {
    let mut bytes = [0x5a; 32];
    bytes[4..8].copy_from_slice(&number.to_le_bytes());
    PrivateKey::from_bytes(bytes)
}

pub(crate) fn address(number: u32) -> Ipv6Addr {
    let bytes = number.to_be_bytes();
    let high = u16::from_be_bytes([bytes[0], bytes[1]]);
    let low = u16::from_be_bytes([bytes[2], bytes[3]]);
    Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 1, 0, high, low)
}

/// One of the many addresses of the loopback interface, so that sources differ.
pub(crate) fn source(number: u32) -> SocketAddr {
    let ip = Ipv4Addr::from(0x7f01_0000 + number % 0x00fe_0000);
    SocketAddr::from((ip, 0))
}

pub(crate) async fn hub(bind: SocketAddr) -> Tunnel {
    let mut settings = Settings::new(bind, key(0), HUB);
    settings.bounds = Bounds {
        peers_max: 100_000,
        ..Bounds::default()
    };
    Tunnel::start(settings).await.expect("a hub")
}

pub(crate) fn peer(number: u32) -> Peer {
    Peer {
        public_key: key(number).public_key(),
        preshared_key: None,
        address: address(number),
        endpoint: None,
        keepalive: None,
        initiates: false,
    }
}

pub(crate) fn is_up(tunnel: &Tunnel, peer: Ipv6Addr) -> bool {
    tunnel
        .peer_status(peer)
        .is_some_and(|status| status.since_handshake.is_some() && status.since_heard.is_some())
}

/// How many of the peers with numbers 1 to `count` have a session.
pub(crate) fn up(hub: &Tunnel, count: u32) -> u32 {
    let ups = (1..=count).filter(|number| is_up(hub, address(*number)));
    u32::try_from(ups.count()).unwrap_or(u32::MAX)
}

/// Waits until so many have a session; says how long it took.
pub(crate) async fn until_up(
    hub: &Tunnel,
    (want, count): (u32, u32),
    patience: Duration,
) -> Duration {
    let began = Instant::now();
    loop {
        let have = up(hub, count);
        if have >= want {
            return began.elapsed();
        }
        assert!(
            began.elapsed() < patience,
            "{have} of {want} after {patience:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Resident memory in bytes.
pub(crate) fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().nth(1))
        .and_then(|word| word.parse().ok())
        .unwrap_or(0);
    kib * 1024
}

/// Processor time so far, of threads that have ended too, in steps of 10 ms.
pub(crate) fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks = stat.rsplit(')').next().map_or(0, |rest| {
        let times = rest.split_whitespace().skip(11).take(2);
        times.filter_map(|word| word.parse::<u64>().ok()).sum()
    });
    Duration::from_millis(ticks * 10)
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[expect(
    clippy::print_stdout,
    reason = "the figures are what the example is for"
)]
pub(crate) fn print(line: &str) {
    println!("{line}");
}
