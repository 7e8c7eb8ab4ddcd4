//! Many idle peers in one process, each a bare boringtun: a session, a keepalive every 20 s, a new session every 155 s.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tunnel::PublicKey;

use crate::figures::{key, source};

/// Peers behind one source address.
const SHARE: u32 = 32;
const KEEPALIVE: u64 = 20;
const RENEWAL: u64 = 155;
const TICK: Duration = Duration::from_millis(500);
/// Peers that come a second: this is about rest, not about the rush to it.
const ARRIVALS: u64 = 600;
/// What WireGuard waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

struct One {
    number: u64,
    tunn: Tunn,
    socket: Arc<UdpSocket>,
    asked: Option<Instant>,
}

pub(crate) async fn run(hub: &str, hub_key: &str, count: u32) {
    let hub: SocketAddr = hub.parse().expect("an address");
    let hub_key: PublicKey = hub_key.parse().expect("a key");
    let mut groups = Vec::new();
    for first in (1..=count).step_by(SHARE as usize) {
        let last = (first + SHARE - 1).min(count);
        groups.push(tokio::spawn(group(hub, hub_key, first..=last)));
    }
    for group in groups {
        group.await.expect("a group");
    }
}

async fn group(hub: SocketAddr, hub_key: PublicKey, numbers: std::ops::RangeInclusive<u32>) {
    let home = source(*numbers.start());
    let (sender, mut received) = mpsc::channel(64);
    let mut ones = Vec::new();
    for number in numbers {
        ones.push(one(home, (hub, hub_key), number).await);
    }
    for (place, one) in ones.iter().enumerate() {
        tokio::spawn(listen(Arc::clone(&one.socket), place, sender.clone()));
    }
    let began = Instant::now();
    let mut ticks = tokio::time::interval(TICK);
    let mut out = [0u8; 2048];
    let mut second = None;
    loop {
        tokio::select! {
            Some((place, datagram)) = received.recv() => {
                let one: &mut One = &mut ones[place];
                if let TunnResult::WriteToNetwork(reply) = one.tunn.decapsulate(None, &datagram, &mut out) {
                    one.socket.send(reply).await.ok();
                }
            }
            _ = ticks.tick() => {
                let seconds = began.elapsed().as_secs();
                let fresh = second.replace(seconds) != Some(seconds);
                for one in &mut ones {
                    let socket = Arc::clone(&one.socket);
                    if let Some(datagram) = due(one, (seconds, fresh), &mut out) {
                        socket.send(datagram).await.ok();
                    }
                }
            }
        }
    }
}

async fn one(home: SocketAddr, (hub, hub_key): (SocketAddr, PublicKey), number: u32) -> One {
    let socket = UdpSocket::bind(home).await.expect("a socket");
    socket.connect(hub).await.expect("a route");
    let secret = x25519_dalek::StaticSecret::from(key(number).to_bytes());
    let public = x25519_dalek::PublicKey::from(&secret);
    let limiter = Some(Arc::new(RateLimiter::new(&public, u64::MAX)));
    let hub = hub_key.to_bytes().into();
    One {
        number: u64::from(number),
        tunn: Tunn::new(secret, hub, None, None, number, limiter),
        socket: Arc::new(socket),
        asked: None,
    }
}

async fn listen(socket: Arc<UdpSocket>, place: usize, sender: mpsc::Sender<(usize, Vec<u8>)>) {
    let mut room = [0u8; 2048];
    while let Ok(length) = socket.recv(&mut room).await {
        let datagram = room[..length].to_vec();
        if sender.send((place, datagram)).await.is_err() {
            return;
        }
    }
}

/// What one peer has to say now.
fn due<'a>(one: &mut One, (seconds, fresh): (u64, bool), out: &'a mut [u8]) -> Option<&'a [u8]> {
    let mut scratch = [0u8; 256];
    let _ = one.tunn.update_timers(&mut scratch);
    let turn = |period: u64| fresh && seconds % period == one.number % period;
    let result = if one.tunn.time_since_last_handshake().is_none() {
        let is_early = seconds < one.number / ARRIVALS;
        if is_early || one.asked.is_some_and(|at| at.elapsed() < PATIENCE) {
            return None;
        }
        one.asked = Some(Instant::now());
        one.tunn.format_handshake_initiation(out, true)
    } else if turn(RENEWAL) {
        one.tunn.format_handshake_initiation(out, true)
    } else if turn(KEEPALIVE) {
        one.tunn.encapsulate(&[], out)
    } else {
        return None;
    };
    match result {
        TunnResult::WriteToNetwork(datagram) => Some(datagram),
        TunnResult::Done
        | TunnResult::Err(_)
        | TunnResult::WriteToTunnelV4(..)
        | TunnResult::WriteToTunnelV6(..) => None,
    }
}
