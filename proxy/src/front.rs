//! The public edge: listeners, TLS, the strict gate, and the sink through which answers leave. The only room that names
//! Pingora. Decides nothing about who may ask what: that is the gateway's.
//!
//! Pingora's listening service runs on the caller's own tokio runtime, without Pingora's `Server`: the tunnel must share
//! the runtime with HTTP (another thread costs a third of the requests per second), and draining is ours (`lifecycle`).

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use config::settings::proxy::{Cidr, Server, Tls};
use http::{HeaderMap, StatusCode};
use pingora::listeners::tls::TlsSettings;
use pingora::listeners::{L4BufferSettings, ListenerConfig, Listeners, TcpSocketOptions};
use pingora::protocols::TcpKeepalive;
use pingora::server::{Fds, ListenFds};
use pingora::services::Service as _;
use pingora::services::listening::Service;
use thiserror::Error;
use tokio::sync::watch;
use tracing::info;

use crate::gateway::Call;
use crate::nodes::peers::Ride;
use connections::{Connections, Door};
use cors::Cors;
use decoration::House;
use edge::Edge;
use guard::Guard;
use lifecycle::{Census, Drained, Phase, reached};
use sink::ClientSink;
use tls::{CertificateError, Certificates};

pub mod client_address;
mod connections;
mod cors;
mod decoration;
mod edge;
pub mod gate;
mod guard;
pub mod handover;
mod head;
pub mod lifecycle;
mod plain;
mod proxy_protocol;
mod session;
pub mod sink;
pub mod tls;

/// Pingora's own 64 KiB a connection would be 600 MiB at the default cap; TLS has a buffer of its own behind this one.
const READ_BUFFER_BYTES: usize = 1024;
/// One segment, as Pingora has it: the records of one SSE event leave with one system call.
const WRITE_BUFFER_BYTES: usize = 1460;

/// A whole answer.
pub type Answer = (StatusCode, HeaderMap, Bytes);

/// Who answers what came through the gate.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers one request. An answer that is begun and not ended is cut, one that is never begun becomes a 500.
    async fn handle(&self, call: Call, sink: &mut dyn ClientSink);

    /// Decides about a request whose connection shall become a carrier of the tunnel's datagrams; otherwise its answer.
    async fn carry(&self, call: Call) -> Result<Ride, Answer>;

    /// A request was refused before it became a call; `reason` is a label from a closed set.
    fn turned_away(&self, address: IpAddr, reason: &'static str);
}

/// What the edge needs to know.
#[derive(Clone, Debug)]
pub struct FrontSettings {
    /// `[server]`
    pub server: Server,
    /// `[tls]`
    pub tls: Tls,
    /// `limits.guard_per_minute`
    pub guard_per_minute: u32,
    /// `limits.guard_burst`
    pub guard_burst: u32,
    /// `limits.table_max`
    pub table_max: usize,
}

/// Why the edge cannot start.
#[derive(Debug, Error)]
pub enum FrontError {
    /// A listener is taken or not allowed.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// No certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Pingora refuses its settings.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// What all connections share.
struct Shared {
    handler: Arc<dyn Handler>,
    house: Arc<House>,
    guard: Guard,
    /// Requests in progress, per client: HTTP/2 puts many on one connection.
    requests: Arc<Connections>,
    census: Arc<Census>,
    phase: watch::Receiver<Phase>,
    trusted_proxies: Vec<Cidr>,
    loopback_listeners: Vec<SocketAddr>,
    /// Names that loopback listeners answer to.
    hosts: Vec<String>,
    head_timeout: Duration,
    body_timeout: Duration,
    keepalive_timeout: Duration,
    write_timeout: Duration,
}

impl Shared {
    fn is_draining(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }
}

/// Requests in progress for each connection that an address may have. A request whose client takes no answer holds 26 KiB until
/// the write timeout (measured), and HTTP/2 would allow a hundred of them on each connection.
const REQUESTS_PER_CONNECTION: usize = 4;

/// The edge, bound and ready to run.
pub struct Front {
    shared: Arc<Shared>,
    sockets: Vec<(SocketAddr, TcpListener)>,
    certificates: Arc<Certificates>,
    door: Door,
    grace: Duration,
}

impl Front {
    /// Binds the listeners and loads the certificate; serves nobody yet.
    pub fn new(
        settings: FrontSettings,
        handler: Arc<dyn Handler>,
        phase: watch::Receiver<Phase>,
    ) -> Result<Self, FrontError> {
        Self::inheriting(settings, Vec::new(), handler, phase)
    }

    /// The same with listeners of another process, wherever the settings name their addresses.
    pub fn inheriting(
        settings: FrontSettings,
        mut inherited: Vec<TcpListener>,
        handler: Arc<dyn Handler>,
        phase: watch::Receiver<Phase>,
    ) -> Result<Self, FrontError> {
        let server = settings.server;
        let certificates = Certificates::from_settings(&settings.tls, &server.state_dir)?;
        let sockets = server
            .listen
            .iter()
            .map(|address| match inherited_at(&mut inherited, *address) {
                Some(listener) => Ok(listener),
                None => bind(address),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let loopback = |address: &SocketAddr| address.ip().to_canonical().is_loopback();
        let shared = Shared {
            handler,
            house: Arc::new(House {
                cors: Cors::new(&server.public_url, &server.cors_origins),
                strict_transport: certificates.is_from_authority(),
            }),
            guard: Guard::new(
                settings.guard_per_minute,
                settings.guard_burst,
                settings.table_max,
            ),
            requests: Connections::new(
                server
                    .connections_max
                    .saturating_mul(REQUESTS_PER_CONNECTION),
                server
                    .connections_per_ip_max
                    .saturating_mul(REQUESTS_PER_CONNECTION),
                server.head_timeout,
            ),
            census: Arc::default(),
            phase,
            hosts: known_hosts(&server.public_url, &settings.tls),
            loopback_listeners: sockets
                .iter()
                .map(|socket| socket.0)
                .filter(loopback)
                .collect(),
            trusted_proxies: server.trusted_proxies,
            head_timeout: server.head_timeout,
            body_timeout: server.body_timeout,
            keepalive_timeout: server.keepalive_timeout,
            write_timeout: server.write_timeout,
        };
        Ok(Self {
            door: Door {
                connections: Connections::new(
                    server.connections_max,
                    server.connections_per_ip_max,
                    server.head_timeout,
                ),
                balancers: server.proxy_protocol.into(),
            },
            shared: Arc::new(shared),
            sockets,
            certificates,
            grace: server.grace,
        })
    }

    /// Where it really listens: port 0 has become a port.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().map(|socket| socket.0).collect()
    }

    /// The same sockets once more, for whoever takes over.
    pub fn listeners_again(&self) -> std::io::Result<Vec<TcpListener>> {
        let sockets = self.sockets.iter();
        sockets.map(|(_, socket)| socket.try_clone()).collect()
    }

    /// The certificate in use, for reloading and for join links.
    pub fn certificates(&self) -> &Arc<Certificates> {
        &self.certificates
    }

    /// Counts open connections, for the metrics; outlives the front.
    pub fn open_connections(&self) -> impl Fn() -> usize + Send + Sync + 'static {
        let connections = Arc::clone(&self.door.connections);
        move || connections.open()
    }

    /// Serves until the phase leaves [`Phase::Serving`], then drains. Runs on the current tokio runtime.
    pub async fn run(self) -> Result<Drained, FrontError> {
        let mut phase = self.shared.phase.clone();
        let mut stopping = phase.clone();
        let (accepting, stop_accepting) = watch::channel(false);
        let mut fds = Fds::new();
        let mut service = Service::with_listeners(
            "edge".to_owned(),
            self.listeners()?,
            Edge {
                shared: Arc::clone(&self.shared),
            },
        );
        for (address, socket) in self.sockets {
            info!(%address, "listening");
            fds.add(address.to_string(), socket.into_raw_fd());
        }
        let fds: ListenFds = Arc::new(fds.into());
        let watch = tokio::spawn(self.certificates.watch());
        let drain = async {
            reached(&mut phase, Phase::Draining).await;
            info!("draining");
            accepting.send_replace(true);
            self.shared.census.drain(self.grace).await
        };
        let serve =
            async { tokio::join!(service.start_service(Some(fds), stop_accepting, 1), drain).1 };
        let drained = tokio::select! {
            drained = serve => drained,
            () = reached(&mut stopping, Phase::Stopping) => self.shared.census.close().await,
        };
        watch.abort();
        info!(cut = drained.cut, "edge stopped");
        Ok(drained)
    }

    fn listeners(&self) -> Result<Listeners, FrontError> {
        let mut listeners = Listeners::new();
        listeners.set_connection_filter(Arc::new(self.door.clone()));
        listeners.set_pre_tls_callback(Arc::new(self.door.clone()));
        for (address, _) in &self.sockets {
            let mut tls = TlsSettings::intermediate("", "")
                .map_err(|error| FrontError::Tls(error.to_string()))?;
            tls.set_cert_resolver(Arc::<Certificates>::clone(&self.certificates));
            tls.enable_h2();
            let mut options = TcpSocketOptions::default();
            options.tcp_keepalive = Some(TcpKeepalive {
                idle: Duration::from_secs(30),
                interval: Duration::from_secs(10),
                count: 3,
                // a phone that lost its network acknowledges nothing: give its slot back
                #[cfg(target_os = "linux")]
                user_timeout: Duration::from_mins(1),
            });
            listeners.add_listener(
                ListenerConfig::tcp(address.to_string())
                    .tcp_socket_options(options)
                    .l4_buffer(L4BufferSettings::new(READ_BUFFER_BYTES, WRITE_BUFFER_BYTES))
                    .tls(tls),
            );
        }
        Ok(listeners)
    }
}

/// An inherited listener for this address; port 0 takes any port of its host.
fn inherited_at(
    inherited: &mut Vec<TcpListener>,
    wanted: SocketAddr,
) -> Option<(SocketAddr, TcpListener)> {
    let index = inherited.iter().position(|listener| {
        let address = listener.local_addr().ok();
        address.is_some_and(|address| {
            address == wanted || (wanted.port() == 0 && address.ip() == wanted.ip())
        })
    })?;
    let listener = inherited.remove(index);
    Some((listener.local_addr().ok()?, listener))
}

fn bind(address: &SocketAddr) -> Result<(SocketAddr, TcpListener), FrontError> {
    let listen = || {
        let socket = TcpListener::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok((socket.local_addr()?, socket))
    };
    listen().map_err(|source| FrontError::Listen {
        address: *address,
        source,
    })
}

/// Localhost, the public name and the names in our own certificate.
fn known_hosts(public_url: &str, tls: &Tls) -> Vec<String> {
    let mut hosts: Vec<String> = ["localhost", "127.0.0.1", "[::1]"]
        .map(str::to_owned)
        .into();
    let public = public_url.parse::<http::Uri>().ok();
    hosts.extend(public.as_ref().and_then(http::Uri::host).map(str::to_owned));
    if let Tls::SelfSigned { names } = tls {
        hosts.extend(
            names
                .iter()
                .map(|name| match name.parse::<std::net::Ipv6Addr>() {
                    Ok(address) => format!("[{address}]"),
                    Err(_) => name.clone(),
                }),
        );
    }
    hosts
}

#[cfg(test)]
mod tests;
