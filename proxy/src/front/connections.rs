//! Counts open connections, in total and per address, from the accepted socket on: a handshake that never ends counts too.
//! The count hangs on the socket itself and leaves with it, so no way of closing can forget it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use config::settings::proxy::Cidr;
use pingora::listeners::{ConnectionFilter, PreTlsProcess};
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{GetProxyDigest, GetSocketDigest, Peek};
use pingora::{Error, ErrorType};

use super::client_address::{Subnet, is_within};
use super::{plain, proxy_protocol};

/// Who is connected, and how often.
#[derive(Debug)]
pub(crate) struct Connections {
    max: usize,
    per_address_max: usize,
    first_byte: Duration,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    by_subnet: HashMap<Subnet, usize>,
}

impl Connections {
    /// `first_byte` is how long a fresh connection may stay silent.
    pub(crate) fn new(max: usize, per_address_max: usize, first_byte: Duration) -> Arc<Self> {
        Arc::new(Self {
            max,
            per_address_max,
            first_byte,
            open: Mutex::default(),
        })
    }

    /// Open now.
    pub(crate) fn open(&self) -> usize {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .total
    }

    fn has_room(&self, address: IpAddr) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let own = open
            .by_subnet
            .get(&Subnet::of(address))
            .copied()
            .unwrap_or(0);
        open.total < self.max && own < self.per_address_max
    }

    /// A place in the total alone, for a connection whose client is not known yet.
    fn wait(self: &Arc<Self>) -> Option<Waiting> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.total >= self.max {
            return None;
        }
        open.total += 1;
        Some(Waiting(Arc::clone(self)))
    }

    /// A seat for as long as it is kept; `None` when all of the address or of the house are taken.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Seat> {
        let subnet = Subnet::of(address);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.total >= self.max {
            return None;
        }
        let own = open.by_subnet.entry(subnet).or_insert(0);
        if *own >= self.per_address_max {
            return None;
        }
        *own += 1;
        open.total += 1;
        Some(Seat {
            connections: Arc::clone(self),
            subnet,
        })
    }
}

/// One connection that waits for its PROXY protocol header.
#[derive(Debug)]
struct Waiting(Arc<Connections>);

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.total = open.total.saturating_sub(1);
    }
}

/// One counted connection, dropped with its socket; or one counted request.
#[derive(Debug)]
pub(crate) struct Seat {
    connections: Arc<Connections>,
    subnet: Subnet,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self
            .connections
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        open.total = open.total.saturating_sub(1);
        if let Entry::Occupied(mut own) = open.by_subnet.entry(self.subnet) {
            if *own.get() > 1 {
                *own.get_mut() -= 1;
            } else {
                own.remove();
            }
        }
    }
}

/// Both hooks of the listener: a quick look before anything is spawned, then the seat itself.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    pub(crate) connections: Arc<Connections>,
    /// Ranges whose connections begin with a PROXY protocol header.
    pub(crate) balancers: Arc<[Cidr]>,
}

/// What hangs on a socket for as long as it lives.
pub(crate) struct Entrance {
    _seat: Seat,
    /// Whose connection it is: the socket's peer, or whom the load balancer named.
    pub(crate) client: IpAddr,
}

#[async_trait]
impl ConnectionFilter for Door {
    async fn should_accept(&self, address: Option<&SocketAddr>) -> bool {
        address.is_none_or(|address| {
            let ip = address.ip().to_canonical();
            if is_within(ip, &self.balancers) {
                return self.connections.open() < self.connections.max;
            }
            self.connections.has_room(ip)
        })
    }
}

#[async_trait]
impl PreTlsProcess for Door {
    async fn process(&self, stream: &mut L4Stream) -> pingora::Result<()> {
        let peer = stream
            .get_socket_digest()
            .and_then(|digest| Some(*digest.peer_addr()?.as_inet()?));
        let Some(peer) = peer else {
            return Error::e_explain(ErrorType::AcceptError, "the peer has no address");
        };
        let client = self.client(stream, peer.ip().to_canonical()).await?;
        let Some(seat) = self.connections.enter(client) else {
            return Error::e_explain(ErrorType::AcceptError, "too many connections");
        };
        // the one place on a socket where something of ours can live as long as the socket itself
        let status = pingora::http::ResponseHeader::build(200, None)?;
        let entrance = Entrance {
            _seat: seat,
            client,
        };
        stream.set_proxy_digest(ProxyDigest::new(Box::new(status), Some(Box::new(entrance))));
        let mut first = [0; 1];
        let patience = self.connections.first_byte;
        match tokio::time::timeout(patience, stream.try_peek(&mut first)).await {
            Ok(Ok(_)) if plain::is_tls(first[0]) => Ok(()),
            Ok(Ok(_)) => {
                plain::turn_away(stream).await;
                Error::e_explain(ErrorType::TLSHandshakeFailure, "plain HTTP")
            }
            Ok(Err(_)) | Err(_) => {
                Error::e_explain(ErrorType::ConnectionClosed, "silent connection")
            }
        }
    }
}

impl Door {
    /// Whose connection it is. From the ranges of load balancers a header must come first; from anywhere else none is looked
    /// for, and one that is there is no TLS.
    async fn client(&self, stream: &mut L4Stream, peer: IpAddr) -> pingora::Result<IpAddr> {
        if !is_within(peer, &self.balancers) {
            return Ok(peer);
        }
        // Load balancers have no share of their own, so what waits for their headers is counted here.
        let Some(_waiting) = self.connections.wait() else {
            return Error::e_explain(ErrorType::AcceptError, "too many connections");
        };
        let header = proxy_protocol::read(stream);
        match tokio::time::timeout(self.connections.first_byte, header).await {
            Ok(Ok(named)) => Ok(named.map_or(peer, |named| named.ip().to_canonical())),
            Ok(Err(error)) => {
                tracing::warn!(%peer, %error, "a load balancer's connection was closed");
                Error::e_explain(ErrorType::AcceptError, "no good PROXY protocol header")
            }
            Err(_) => Error::e_explain(ErrorType::AcceptError, "a slow PROXY protocol header"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_counted_by_address_and_come_back() {
        let connections = Connections::new(3, 2, Duration::from_secs(1));
        let (ada, bob) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let first = connections.enter(ada).expect("room");
        let _second = connections.enter(ada).expect("room for a second");
        assert!(
            connections.enter(ada).is_none() && !connections.has_room(ada),
            "two of one address"
        );
        let _third = connections.enter(bob).expect("another address");
        assert!(connections.enter(bob).is_none(), "three in total");
        drop(first);
        assert_eq!(connections.open(), 2);
        assert!(connections.has_room(ada) && connections.enter(ada).is_some());
    }
}
