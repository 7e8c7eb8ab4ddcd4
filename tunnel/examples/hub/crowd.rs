//! Many idle peers in one process, each a bare boringtun: a session, a keepalive every 20 s, a new session every 155 s.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use tokio::net::UdpSocket;
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
    let socket = UdpSocket::bind(source(*numbers.start()))
        .await
        .expect("a socket");
    socket.connect(hub).await.expect("a route");
    let first = *numbers.start();
    let mut ones: Vec<One> = numbers
        .map(|number| {
            let secret = x25519_dalek::StaticSecret::from(key(number).to_bytes());
            let public = x25519_dalek::PublicKey::from(&secret);
            let limiter = Some(Arc::new(RateLimiter::new(&public, u64::MAX)));
            let hub = hub_key.to_bytes().into();
            One {
                number: u64::from(number),
                tunn: Tunn::new(secret, hub, None, None, number, limiter),
                asked: None,
            }
        })
        .collect();
    let began = Instant::now();
    let mut ticks = tokio::time::interval(TICK);
    let mut room = [0u8; 2048];
    let mut out = [0u8; 2048];
    let mut second = None;
    loop {
        tokio::select! {
            Ok(length) = socket.recv(&mut room) => {
                let index = u32::from_le_bytes([room[8], room[9], room[10], room[11]]);
                let index = if room[0] == 2 { index } else { u32::from_le_bytes([room[4], room[5], room[6], room[7]]) };
                let Some(one) = ones.get_mut(((index >> 8) - first) as usize) else { continue };
                if let TunnResult::WriteToNetwork(reply) = one.tunn.decapsulate(None, &room[..length], &mut out) {
                    socket.send(reply).await.ok();
                }
            }
            _ = ticks.tick() => {
                let seconds = began.elapsed().as_secs();
                let fresh = second.replace(seconds) != Some(seconds);
                for one in &mut ones {
                    if let Some(datagram) = due(one, (seconds, fresh), &mut out) {
                        socket.send(datagram).await.ok();
                    }
                }
            }
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
