//! From the proxy's answer to a tunnel: keys parsed, the endpoint resolved. And the pauses between tries. Starts nothing itself.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use config::secret::Secret;
use config::wire::node::RegisterReply;
use rand::Rng;
use tokio::net::lookup_host;
use tokio::time::timeout;
use tunnel::kem::Shared;
use tunnel::{Peer, PublicKey};

const RESOLVE_MAX: Duration = Duration::from_secs(5);
/// Below the 30 s after which the tightest NATs forget a UDP mapping.
const KEEPALIVE: Duration = Duration::from_secs(15);
const HEARTBEAT_MIN: u64 = 1;
const HEARTBEAT_MAX: u64 = 60;

/// A place in the proxy's tunnel.
#[derive(Clone, Debug)]
pub struct Place {
    /// Our address inside.
    pub address: Ipv6Addr,
    /// The hub.
    pub hub: Peer,
    /// For both directions inside.
    pub agent_token: Secret<String>,
    /// The hub's report service.
    pub report_port: u16,
    /// Time between reports.
    pub heartbeat: Duration,
}

/// Why the proxy's answer leads nowhere.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PlaceError {
    /// A field makes no sense.
    #[error("the proxy sent a useless {0}")]
    Field(&'static str),
    /// The name of the hub has no address that our socket can reach.
    #[error("the tunnel endpoint {endpoint} cannot be resolved: {reason}")]
    Resolve {
        /// Its name.
        endpoint: String,
        /// Why.
        reason: String,
    },
}

impl Place {
    /// Reads an answer to the registration of `node_key`, with what its exchange gave. `host` is the one that was dialled; `bind` is our UDP address; `turn` chooses among several addresses of a name, a
    /// different one on each try.
    pub async fn from_reply(
        reply: RegisterReply,
        (shared, node_key): (&Shared, PublicKey),
        host: &str,
        bind: SocketAddr,
        turn: usize,
    ) -> Result<Self, PlaceError> {
        let public_key: PublicKey = reply
            .hub
            .public_key
            .parse()
            .map_err(|_error| PlaceError::Field("hub key"))?;
        let of_pair = STANDARD.decode(&reply.preshared_key).ok();
        let of_pair: [u8; 32] = of_pair
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(PlaceError::Field("pre-shared key"))?;
        let preshared_key = shared.preshared_key(&of_pair, node_key, public_key);
        if reply.agent_token.len() < 16
            || !reply
                .agent_token
                .bytes()
                .all(|byte| byte.is_ascii_graphic())
        {
            return Err(PlaceError::Field("agent token"));
        }
        let endpoint = full_endpoint(&reply.hub.endpoint, host);
        let address = resolve(&endpoint, bind, turn).await?;
        Ok(Self {
            address: reply.address,
            hub: Peer {
                public_key,
                preshared_key: Some(preshared_key),
                address: reply.hub.address,
                endpoint: Some(address),
                keepalive: Some(KEEPALIVE),
                initiates: true,
            },
            agent_token: Secret::new(reply.agent_token),
            report_port: reply.report_port,
            heartbeat: Duration::from_secs(
                reply.heartbeat_secs.clamp(HEARTBEAT_MIN, HEARTBEAT_MAX),
            ),
        })
    }
}

/// `:port` means the host that we dialled.
pub(crate) fn full_endpoint(endpoint: &str, host: &str) -> String {
    if endpoint.starts_with(':') {
        format!("{host}{endpoint}")
    } else {
        endpoint.to_owned()
    }
}

async fn resolve(endpoint: &str, bind: SocketAddr, turn: usize) -> Result<SocketAddr, PlaceError> {
    let failed = |reason: String| PlaceError::Resolve {
        endpoint: endpoint.to_owned(),
        reason,
    };
    let found = timeout(RESOLVE_MAX, lookup_host(endpoint))
        .await
        .map_err(|_elapsed| failed("no answer in time".to_owned()))?
        .map_err(|error| failed(error.to_string()))?;
    let found: Vec<SocketAddr> = found.collect();
    choose(&found, bind, turn).ok_or_else(|| failed(unreachable(&found, bind)))
}

/// A socket bound to an IPv4 address reaches no IPv6 address, and one bound to an IPv6 address of its own no IPv4 address.
fn choose(found: &[SocketAddr], bind: SocketAddr, turn: usize) -> Option<SocketAddr> {
    let is_for_both = bind.is_ipv6() && bind.ip().is_unspecified();
    let is_reachable = |address: &SocketAddr| is_for_both || address.is_ipv4() == bind.is_ipv4();
    let reachable: Vec<SocketAddr> = found.iter().copied().filter(is_reachable).collect();
    let place = turn.checked_rem(reachable.len())?;
    reachable.get(place).copied()
}

/// Why none of these addresses is of use.
fn unreachable(found: &[SocketAddr], bind: SocketAddr) -> String {
    let Some(first) = found.first() else {
        return "the name has neither an IPv4 nor an IPv6 address: check it in the DNS".to_owned();
    };
    let family = |is_ipv4: bool| if is_ipv4 { "IPv4" } else { "IPv6" };
    format!(
        "it has {} addresses alone, and node.bind = \"{bind}\" reaches only {}; set node.bind to \"[::]:{}\", which reaches both",
        family(first.is_ipv4()),
        family(bind.is_ipv4()),
        bind.port()
    )
}

/// Pauses that double from 1 s to 30 s, each shortened by up to half at random, so that nodes do not come back in step.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: Self::MIN }
    }
}

impl Backoff {
    const MIN: Duration = Duration::from_secs(1);
    const MAX: Duration = Duration::from_secs(30);

    /// The pause before the next try.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next.mul_f64(rand::rng().random_range(0.5..=1.0));
        self.next = (self.next * 2).min(Self::MAX);
        pause
    }

    /// Starts again with short pauses.
    pub const fn reset(&mut self) {
        self.next = Self::MIN;
    }
}

#[cfg(test)]
mod tests {
    use config::wire::node::{HUB_ADDRESS, Hub};

    use super::*;

    fn reply(endpoint: &str) -> RegisterReply {
        RegisterReply {
            address: "fd48:6561:7274::2".parse().expect("an address"),
            proxy: String::new(),
            hub: Hub {
                public_key: STANDARD.encode([7; 32]),
                endpoint: endpoint.to_owned(),
                address: HUB_ADDRESS,
            },
            preshared_key: STANDARD.encode([9; 32]),
            kem_ciphertext: String::new(),
            hubs: Vec::new(),
            agent_token: "0123456789abcdef".to_owned(),
            report_port: 9000,
            heartbeat_secs: 5,
            server_time_ms: 0,
        }
    }

    async fn place(reply: RegisterReply) -> Result<Place, PlaceError> {
        let bind = "0.0.0.0:0".parse().expect("an address");
        let asking = tunnel::kem::Asking::new();
        let (_, shared) = tunnel::kem::answer(asking.public()).expect("a key");
        let key = PublicKey::from_bytes([5; 32]);
        Place::from_reply(reply, (&shared, key), "127.0.0.1", bind, 3).await
    }

    #[tokio::test]
    async fn an_endpoint_without_host_is_on_the_host_that_was_dialled() {
        let place = place(reply(":51820")).await.expect("a place");
        assert_eq!(place.hub.endpoint, "127.0.0.1:51820".parse().ok());
        assert_eq!(place.heartbeat, Duration::from_secs(5));
    }

    #[tokio::test]
    async fn useless_answers_are_named() {
        let mut bad_key = reply(":1");
        bad_key.hub.public_key = "short".to_owned();
        assert_eq!(
            place(bad_key).await.err(),
            Some(PlaceError::Field("hub key"))
        );
        let mut bad_token = reply(":1");
        bad_token.agent_token = "line\r\nbreak and more".to_owned();
        assert_eq!(
            place(bad_token).await.err(),
            Some(PlaceError::Field("agent token"))
        );
        let ipv6 = place(reply("[::1]:1")).await;
        assert!(
            matches!(ipv6, Err(PlaceError::Resolve { .. })),
            "an IPv4 socket cannot reach it"
        );
    }

    #[test]
    fn the_first_address_comes_first_and_the_next_turn_takes_the_next_one() {
        let [six, four]: [SocketAddr; 2] =
            ["[2001:db8::1]:1", "192.0.2.1:1"].map(|text| text.parse().expect("an address"));
        let both: SocketAddr = "[::]:0".parse().expect("an address");
        for (turn, want) in [(0, six), (1, four), (2, six)] {
            assert_eq!(choose(&[six, four], both, turn), Some(want));
        }
        let only_four: SocketAddr = "0.0.0.0:0".parse().expect("an address");
        assert_eq!(choose(&[six, four], only_four, 0), Some(four));
        let only_six: SocketAddr = "[2001:db8::9]:0".parse().expect("an address");
        assert_eq!(choose(&[four, six], only_six, 0), Some(six));
    }

    #[test]
    fn an_endpoint_out_of_reach_is_told_with_the_families_that_it_has() {
        let at = |text: &str| -> SocketAddr { text.parse().expect("an address") };
        let six = unreachable(&[at("[2001:db8::1]:1")], at("0.0.0.0:4500"));
        assert!(six.contains("IPv6 addresses alone"), "{six}");
        assert!(six.contains("set node.bind to \"[::]:4500\""), "{six}");
        let four = unreachable(&[at("192.0.2.1:1")], at("[2001:db8::9]:0"));
        assert!(four.contains("IPv4 addresses alone"), "{four}");
        let none = unreachable(&[], at("[::]:0"));
        assert!(!none.contains("node.bind"), "it is right already: {none}");
        assert!(none.contains("neither an IPv4 nor an IPv6"), "{none}");
    }

    #[test]
    fn pauses_grow_to_half_a_minute_and_vary() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..9).map(|_try| backoff.pause()).collect();
        assert!(
            pauses
                .iter()
                .all(|pause| *pause >= Backoff::MIN / 2 && *pause <= Backoff::MAX)
        );
        assert!(pauses.last().is_some_and(|last| *last >= Backoff::MAX / 2));
        backoff.reset();
        assert!(backoff.pause() <= Backoff::MIN);
    }
}
