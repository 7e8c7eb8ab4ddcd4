//! Wakes neighbours: the packet that a sleeping machine's network card waits for. Only the hub of the tunnel can ask for it, packets go to
//! this machine's own networks alone, and never more than a few a minute. What this machine says about its own sleep is here too.

mod networks;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use config::settings::node::Wake as Settings;
use config::wire::wake::{MACS_MAX, Mac, NETWORKS_MAX, SecureOn, WakeOrder, WakeReport, is_lan};
use tokio::net::UdpSocket;

pub use networks::Network;

/// Orders that are taken within a minute.
const ORDERS_MAX: usize = 12;
const MINUTE: Duration = Duration::from_mins(1);
/// A packet may be lost: each is sent so often.
const REPEATS: usize = 3;

/// Why no packet was sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotSent {
    /// The settings do not offer it.
    #[error("this node wakes no others: set wakes_others = true in [wake]")]
    Unwilling,
    /// Too many at once.
    #[error("too many machines were to be woken within a minute")]
    TooOften,
    /// No card, or too many.
    #[error("from 1 to {MACS_MAX} cards")]
    NoCard,
    /// The address lies in no network of this machine.
    #[error("the broadcast address lies in no network of this node")]
    Elsewhere,
    /// The system did not send it.
    #[error("the packet could not be sent")]
    Failed,
}

/// Sends packets, and says how this machine is woken.
#[derive(Debug, Default)]
pub struct Waker {
    settings: Settings,
    taken: Mutex<VecDeque<Instant>>,
}

impl Waker {
    /// As the settings say.
    pub const fn new(settings: Settings) -> Self {
        Self {
            settings,
            taken: Mutex::new(VecDeque::new()),
        }
    }

    /// What the proxy is told; `None`: nothing, because the settings say nothing.
    pub fn report(&self) -> Option<WakeReport> {
        let settings = &self.settings;
        if settings.macs.is_empty() && !settings.wakes_others {
            return None;
        }
        let networks = networks::own().into_iter().take(NETWORKS_MAX);
        Some(WakeReport {
            macs: settings.macs.clone(),
            broadcast: settings.broadcast,
            port: settings.port,
            secure_on: settings.secure_on,
            takes_secs: u32::try_from(settings.takes.as_secs()).unwrap_or(u32::MAX),
            wakes_others: settings.wakes_others,
            site: settings.site.clone(),
            networks: networks.map(|network| network.to_string()).collect(),
        })
    }

    /// Sends the packets of an order. Returns how many.
    pub async fn send(&self, order: &WakeOrder) -> Result<u32, NotSent> {
        if !self.settings.wakes_others {
            return Err(NotSent::Unwilling);
        }
        if order.macs.is_empty() || order.macs.len() > MACS_MAX {
            return Err(NotSent::NoCard);
        }
        let targets = targets(order.broadcast, &networks::own())?;
        self.take(Instant::now())?;
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await;
        let socket = socket.map_err(|_error| NotSent::Failed)?;
        socket
            .set_broadcast(true)
            .map_err(|_error| NotSent::Failed)?;
        let mut packets = 0;
        for mac in &order.macs {
            let packet = magic_packet(*mac, order.secure_on);
            for target in &targets {
                for _ in 0..REPEATS {
                    let to = SocketAddrV4::new(*target, order.port);
                    if socket.send_to(&packet, to).await.is_ok() {
                        packets += 1;
                    }
                }
            }
        }
        tracing::info!(node = %order.node_id, packets, "packets that wake a neighbour were sent");
        if packets == 0 {
            return Err(NotSent::Failed);
        }
        Ok(packets)
    }

    fn take(&self, now: Instant) -> Result<(), NotSent> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|at| now.saturating_duration_since(*at) < MINUTE);
        if taken.len() >= ORDERS_MAX {
            return Err(NotSent::TooOften);
        }
        taken.push_back(now);
        Ok(())
    }
}

/// Where the packets go: the address of the order if it lies in a network of ours, or the broadcast address of each of these.
fn targets(asked: Option<Ipv4Addr>, own: &[Network]) -> Result<Vec<Ipv4Addr>, NotSent> {
    let Some(asked) = asked else {
        let all: Vec<Ipv4Addr> = own.iter().map(Network::broadcast).collect();
        return if all.is_empty() {
            Err(NotSent::Elsewhere)
        } else {
            Ok(all)
        };
    };
    let is_ours = asked.is_loopback()
        || asked.is_broadcast()
        || own.iter().any(|network| network.contains(asked));
    (is_lan(asked) && is_ours)
        .then(|| vec![asked])
        .ok_or(NotSent::Elsewhere)
}

/// Six bytes of ones, the card's address sixteen times, and the password if it wants one (AMD's Magic Packet, publication 20213).
pub fn magic_packet(mac: Mac, password: Option<SecureOn>) -> Vec<u8> {
    let mut packet = vec![0xff; 6];
    for _ in 0..16 {
        packet.extend_from_slice(&mac.bytes());
    }
    if let Some(password) = password {
        packet.extend_from_slice(&password.bytes());
    }
    packet
}

#[cfg(test)]
mod tests {
    use config::ids::NodeId;

    use super::*;

    fn mac() -> Mac {
        "3c:7c:3f:12:34:56".parse().unwrap()
    }

    fn order(broadcast: Option<Ipv4Addr>, port: u16) -> WakeOrder {
        WakeOrder {
            node_id: NodeId::new("node_sleeper"),
            macs: vec![mac()],
            broadcast,
            port,
            secure_on: Some("01:02:03:04:05:06".parse().unwrap()),
        }
    }

    fn willing() -> Waker {
        Waker::new(Settings {
            wakes_others: true,
            ..Settings::default()
        })
    }

    #[test]
    fn the_packet_is_what_cards_wait_for() {
        let plain = magic_packet(mac(), None);
        assert_eq!(plain.len(), 102);
        assert_eq!(plain[..6], [0xff; 6]);
        assert!(plain[6..].chunks(6).all(|part| part == mac().bytes()));
        let secured = magic_packet(mac(), Some("01:02:03:04:05:06".parse().unwrap()));
        assert_eq!(secured.len(), 108);
        assert_eq!(secured[102..], [1, 2, 3, 4, 5, 6]);
    }

    #[tokio::test]
    async fn a_sleeper_gets_the_packet() {
        let sleeper = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = sleeper.local_addr().unwrap().port();
        let sent = willing()
            .send(&order(Some(Ipv4Addr::LOCALHOST), port))
            .await;
        assert_eq!(sent, Ok(3));
        let mut bytes = [0; 200];
        let received = tokio::time::timeout(Duration::from_secs(5), sleeper.recv(&mut bytes));
        let length = received.await.expect("a packet comes").unwrap();
        assert_eq!(
            bytes[..length],
            magic_packet(mac(), Some("01:02:03:04:05:06".parse().unwrap()))
        );
    }

    #[tokio::test]
    async fn packets_never_leave_the_networks_of_this_machine() {
        let waker = willing();
        for address in [[8, 8, 8, 8], [192, 0, 2, 255], [224, 0, 0, 1]] {
            let sent = waker.send(&order(Some(address.into()), 9)).await;
            assert_eq!(sent, Err(NotSent::Elsewhere), "{address:?}");
        }
        let own = [Network::new([192, 168, 7, 0].into(), 24)];
        assert_eq!(
            targets(Some([192, 168, 8, 255].into()), &own),
            Err(NotSent::Elsewhere)
        );
        assert_eq!(
            targets(None, &own),
            Ok(vec![Ipv4Addr::new(192, 168, 7, 255)])
        );
        assert_eq!(targets(None, &[]), Err(NotSent::Elsewhere));
    }

    #[tokio::test]
    async fn whoever_did_not_offer_it_wakes_nobody() {
        let waker = Waker::default();
        let sent = waker.send(&order(Some(Ipv4Addr::LOCALHOST), 9)).await;
        assert_eq!(sent, Err(NotSent::Unwilling));
        assert_eq!(waker.report(), None);
    }

    #[test]
    fn orders_are_bounded() {
        let waker = willing();
        let now = Instant::now();
        for _ in 0..ORDERS_MAX {
            assert_eq!(waker.take(now), Ok(()));
        }
        assert_eq!(waker.take(now), Err(NotSent::TooOften));
        assert_eq!(waker.take(now + MINUTE), Ok(()));
    }
}
