//! A running edge, a toy handler that says what it saw, and clients that can be as rude as a socket allows.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use config::settings::proxy::{Server, Tls};
use http::{HeaderMap, HeaderValue, StatusCode};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OnceCell, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tunnel::Tunnel;

use crate::front::lifecycle::{Drained, Phase};
use crate::front::sink::{BodyError, ClientSink};
use crate::front::tls::Certificates;
use crate::front::{Answer, Front, FrontError, FrontSettings, Handler};
use crate::gateway::Call;
use crate::nodes::peers::Ride;

/// Far more than anything here takes; a test that waits this long has failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What the toy handler noticed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Seen {
    Called(String),
    Body(Result<usize, BodyError>),
    Gone,
    Ended,
    TurnedAway(&'static str),
}

struct Toy {
    seen: mpsc::Sender<Seen>,
    tunnel: OnceCell<Tunnel>,
}

impl Toy {
    fn saw(&self, seen: Seen) {
        self.seen.try_send(seen).expect("tests look at few events");
    }

    async fn stream(&self, sink: &mut dyn ClientSink, chunks: usize) {
        if sink.head(StatusCode::OK, HeaderMap::new()).await.is_err() {
            return self.saw(Seen::Gone);
        }
        for number in 0..chunks {
            let event = Bytes::from(format!("data: {number}\n\n"));
            let sent = tokio::select! {
                sent = sink.chunk(event) => sent.is_ok(),
                () = tokio::time::sleep(PATIENCE) => false,
            };
            let left = timeout(Duration::from_millis(20), sink.gone())
                .await
                .is_ok();
            if !sent || left {
                return self.saw(Seen::Gone);
            }
        }
        match sink.end().await {
            Ok(()) => self.saw(Seen::Ended),
            Err(_) => self.saw(Seen::Gone),
        }
    }
}

#[async_trait]
impl Handler for Toy {
    async fn handle(&self, call: Call, sink: &mut dyn ClientSink) {
        self.saw(Seen::Called(call.path.clone()));
        match call.path.as_str() {
            "/echo" => {
                let mut bytes = Vec::new();
                let read = loop {
                    match sink.body().await {
                        Ok(Some(piece)) => bytes.extend_from_slice(&piece),
                        Ok(None) => break Ok(bytes.len()),
                        Err(error) => break Err(error),
                    }
                };
                let status = if read.is_ok() {
                    StatusCode::OK
                } else {
                    StatusCode::BAD_REQUEST
                };
                self.saw(Seen::Body(read));
                let _left = reply(sink, status, Bytes::from(bytes)).await;
            }
            "/ip" => {
                let _left = reply(sink, StatusCode::OK, Bytes::from(call.ip.to_string())).await;
            }
            "/headers" => {
                let names: Vec<&str> = call.headers.keys().map(http::HeaderName::as_str).collect();
                let _left = reply(sink, StatusCode::OK, Bytes::from(names.join(","))).await;
            }
            "/refuse" => {
                let _left = reply(sink, StatusCode::UNAUTHORIZED, Bytes::from_static(b"no")).await;
            }
            "/short" => self.stream(sink, 10).await,
            "/forever" => self.stream(sink, usize::MAX).await,
            "/silent" => {
                sink.gone().await;
                self.saw(Seen::Gone);
            }
            "/flood" => {
                let piece = Bytes::from(vec![b'x'; 64 * 1024]);
                let mut open = sink.head(StatusCode::OK, HeaderMap::new()).await;
                while open.is_ok() {
                    open = sink.chunk(piece.clone()).await;
                }
                self.saw(Seen::Gone);
            }
            "/cut" => {
                let _open = sink.head(StatusCode::OK, HeaderMap::new()).await;
                let _open = sink.chunk(Bytes::from_static(b"half")).await;
            }
            "/nothing" => {}
            _ => {
                let _left = reply(sink, StatusCode::OK, Bytes::from_static(b"hello")).await;
            }
        }
    }

    /// Anybody who says please.
    async fn carry(&self, call: Call) -> Result<Ride, Answer> {
        let is_polite = call.headers.get("authorization").is_some();
        self.saw(Seen::Called(call.path));
        if !is_polite {
            return Err((
                StatusCode::FORBIDDEN,
                HeaderMap::new(),
                Bytes::from_static(b"no"),
            ));
        }
        let started = self.tunnel.get_or_init(|| async {
            let address = "fd48::1".parse().unwrap();
            let bind = "127.0.0.1:0".parse().unwrap();
            let settings = tunnel::Settings::new(bind, tunnel::PrivateKey::generate(), address);
            Tunnel::start(settings).await.unwrap()
        });
        Ok(Ride {
            carrier: started.await.accept_carrier(call.ip).unwrap(),
            end: CancellationToken::new(),
        })
    }

    fn turned_away(&self, _address: IpAddr, reason: &'static str) {
        self.saw(Seen::TurnedAway(reason));
    }
}

async fn reply(
    sink: &mut dyn ClientSink,
    status: StatusCode,
    body: Bytes,
) -> Result<(), crate::front::sink::ClientGone> {
    let mut headers = HeaderMap::new();
    headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    sink.head(status, headers).await?;
    sink.chunk(body).await?;
    sink.end().await
}

/// A running edge.
pub(super) struct Edge {
    pub(super) address: SocketAddr,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) certificates: Arc<Certificates>,
    pub(super) seen: mpsc::Receiver<Seen>,
    pub(super) running: JoinHandle<Result<Drained, FrontError>>,
    pub(super) folder: tempfile::TempDir,
    certificate: CertificateDer<'static>,
}

pub(super) fn settings() -> FrontSettings {
    let seconds = Duration::from_secs;
    let server = Server {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        admin_listen: None,
        state_dir: PathBuf::new(),
        public_url: "https://llm.example.org".to_owned(),
        cors_origins: vec!["https://app.example.org".to_owned()],
        trusted_proxies: Vec::new(),
        proxy_protocol: Vec::new(),
        grace: seconds(5),
        head_timeout: seconds(2),
        body_timeout: seconds(2),
        keepalive_timeout: seconds(5),
        write_timeout: seconds(2),
        request_timeout: seconds(60),
        body_max: 1 << 20,
        media_body_max: 1 << 20,
        connections_max: 1000,
        connections_per_ip_max: 500,
        threads: 2,
    };
    let tls = Tls::SelfSigned {
        names: vec!["localhost".to_owned()],
    };
    FrontSettings {
        server,
        tls,
        guard_per_minute: 60_000,
        guard_burst: 10_000,
        table_max: 100,
    }
}

/// An edge with the usual settings.
pub(super) fn edge() -> Edge {
    edge_with(|_| ())
}

/// An edge with settings of the test's own.
pub(super) fn edge_with(change: impl FnOnce(&mut FrontSettings)) -> Edge {
    drop(rustls::crypto::ring::default_provider().install_default());
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings();
    settings.server.state_dir = folder.path().to_owned();
    change(&mut settings);
    let (phase, watching) = watch::channel(Phase::Serving);
    let (sender, seen) = mpsc::channel(1000);
    let toy = Toy {
        seen: sender,
        tunnel: OnceCell::new(),
    };
    let front = Front::new(settings, Arc::new(toy), watching).unwrap();
    let certificates = Arc::clone(front.certificates());
    Edge {
        address: front.addresses()[0],
        phase,
        certificate: certificates.leaf(),
        certificates,
        seen,
        running: tokio::spawn(front.run()),
        folder,
    }
}

impl Edge {
    /// The next thing the handler saw.
    pub(super) async fn next(&mut self) -> Seen {
        timeout(PATIENCE, self.seen.recv())
            .await
            .expect("the handler should have seen something")
            .unwrap()
    }

    /// Waits until the handler saw exactly this.
    pub(super) async fn until(&mut self, wanted: Seen) {
        while self.next().await != wanted {}
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }

    pub(super) fn client(&self, http2: bool) -> reqwest::Client {
        let certificate = reqwest::Certificate::from_der(&self.certificate).unwrap();
        let builder = reqwest::Client::builder()
            .tls_certs_only([certificate])
            .timeout(PATIENCE);
        let builder = if http2 {
            builder.http2_prior_knowledge()
        } else {
            builder.http1_only()
        };
        builder.build().unwrap()
    }

    /// A TLS connection that speaks HTTP/1 byte by byte.
    pub(super) async fn socket(&self) -> Socket {
        self.socket_for("http/1.1").await
    }

    /// A TLS connection that agreed on `protocol` and may then say anything.
    pub(super) async fn socket_for(&self, protocol: &str) -> Socket {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        self.handshake(tcp, protocol).await
    }

    /// A TLS connection that begins with other bytes.
    pub(super) async fn socket_after(&self, before: &[u8]) -> Socket {
        let mut tcp = TcpStream::connect(self.address).await.unwrap();
        tcp.write_all(before).await.unwrap();
        self.handshake(tcp, "http/1.1").await
    }

    async fn handshake(&self, tcp: TcpStream, protocol: &str) -> Socket {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let mut config = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
            .unwrap();
        Socket { stream }
    }
}

/// See [`Edge::socket`].
pub(super) struct Socket {
    stream: TlsStream<TcpStream>,
}

impl Socket {
    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Sends, not caring whether the other side still listens.
    pub(super) async fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok() && self.stream.flush().await.is_ok()
    }

    /// Everything until the edge closes.
    pub(super) async fn read_to_close(&mut self) -> String {
        let mut all = Vec::new();
        let read = timeout(PATIENCE, self.stream.read_to_end(&mut all)).await;
        let _reset_counts_as_closed = read.expect("the edge should have closed the connection");
        String::from_utf8_lossy(&all).into_owned()
    }

    /// The next bytes, so many.
    pub(super) async fn read_exactly(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let read = timeout(PATIENCE, self.stream.read_exact(&mut bytes)).await;
        read.expect("the bytes never came").unwrap();
        bytes
    }

    /// What has come once `end` is in it.
    pub(super) async fn read_until(&mut self, end: &str) -> String {
        let mut all = Vec::new();
        let read = async {
            while !String::from_utf8_lossy(&all).contains(end) {
                let mut piece = [0; 4096];
                let count = self.stream.read(&mut piece).await.unwrap();
                assert!(
                    count > 0,
                    "closed after {:?}",
                    String::from_utf8_lossy(&all)
                );
                all.extend_from_slice(&piece[..count]);
            }
        };
        timeout(PATIENCE, read)
            .await
            .unwrap_or_else(|_| panic!("`{end}` never came"));
        String::from_utf8_lossy(&all).into_owned()
    }
}
