//! A small proxy: HTTPS enrolment, a hub, and the report service. It keeps what it was told, so that tests can look.

use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use config::ids::NodeId;
use config::token::{Token, TokenKind};
use config::wire::error::ErrorBody;
use config::wire::node::{
    EnrollReply, EnrollRequest, HUB_ADDRESS, Hub, HubPlace, NonceReply, REPORT_PORT, RegisterReply,
    RegisterRequest, Report, ReportReply, enroll_message, register_message,
};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use ring::digest::{SHA256, digest};
use ring::signature::{ED25519, UnparsedPublicKey};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tunnel::{Peer, PresharedKey, PrivateKey, Settings, Tunnel};

use crate::support::{Client, PATIENCE, TOKEN};

const PSK: [u8; 32] = [7; 32];
pub(crate) const NODE: &str = "node_0011223344556677";
pub(crate) const NODE_ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 1, 2, 3, 4);

pub(crate) struct FakeProxy {
    pub(crate) address: SocketAddr,
    pub(crate) pin: String,
    pub(crate) token: Token,
    state: Arc<State>,
    server: tokio::task::JoinHandle<()>,
}

struct State {
    hub_key: PrivateKey,
    hub: Mutex<Option<Tunnel>>,
    hub_address: Mutex<SocketAddr>,
    /// Who registered last while no hub ran: the next hub knows it from the start.
    waiting: Mutex<Option<Peer>>,
    /// Who registered last.
    last: Mutex<Option<Peer>>,
    /// The proxies of the house.
    hubs: Mutex<Vec<HubPlace>>,
    told: watch::Sender<Told>,
    orders: Mutex<Orders>,
}

/// What the proxy was told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) identity: Option<String>,
    pub(crate) wireguard_keys: Vec<String>,
    pub(crate) reports: Vec<Report>,
    /// Requests over HTTPS that were left without an answer, or told to come back.
    pub(crate) put_off: usize,
}

/// What the proxy is to do.
#[derive(Clone, Copy, Debug, Default)]
struct Orders {
    refuse: Option<&'static str>,
    stranger: bool,
    https: Https,
    draining: bool,
    /// Reports get no answer.
    mute: bool,
    /// 0: one second.
    heartbeat_secs: u64,
    /// Which proxy it says that it is.
    proxy: &'static str,
}

/// How the proxy answers nodes outside the tunnel.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Https {
    #[default]
    Well,
    /// Never.
    Stalled,
    /// Its store is away.
    Away,
}

impl Drop for FakeProxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl FakeProxy {
    pub(crate) async fn start() -> Self {
        // Another test of this process may have done it already.
        drop(rustls::crypto::ring::default_provider().install_default());
        let made =
            rcgen::generate_simple_self_signed(vec!["hearth".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let spki = rustls::server::ParsedCertificate::try_from(made.cert.der())
            .expect("a certificate")
            .subject_public_key_info();
        let hash = digest(&SHA256, spki.as_ref());
        let pin = format!("sha256-{}", URL_SAFE_NO_PAD.encode(hash.as_ref()));
        let tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a server");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State {
            hub_key: PrivateKey::generate(),
            hub: Mutex::default(),
            hub_address: Mutex::new("127.0.0.1:0".parse().expect("an address")),
            waiting: Mutex::default(),
            last: Mutex::default(),
            hubs: Mutex::default(),
            told: watch::Sender::default(),
            orders: Mutex::default(),
        });
        state.start_hub().await;
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let server = tokio::spawn(serve_https(listener, acceptor, state.clone()));
        Self {
            address,
            pin,
            token: Token::generate(TokenKind::Join),
            state,
            server,
        }
    }

    pub(crate) fn link(&self) -> String {
        self.link_with(&self.pin)
    }

    pub(crate) fn link_with(&self, pin: &str) -> String {
        format!("https://{}/join#{}&pin={pin}", self.address, self.token)
    }

    /// Refuses enrolment and registration with this code.
    pub(crate) fn refuse(&self, code: Option<&'static str>) {
        self.state.orders.lock().expect("unpoisoned").refuse = code;
    }

    /// Answers reports as if the node had never registered, until it registers.
    pub(crate) fn forget_registration(&self) {
        self.state.orders.lock().expect("unpoisoned").stranger = true;
    }

    /// From now on HTTPS is like this.
    pub(crate) fn https(&self, https: Https) {
        self.state.orders.lock().expect("unpoisoned").https = https;
    }

    /// From now on nobody listens for HTTPS.
    pub(crate) fn stop_https(&self) {
        self.server.abort();
    }

    /// Tells every report that the proxy is going away, and that one a minute is enough.
    pub(crate) fn drain(&self) {
        let mut orders = self.state.orders.lock().expect("unpoisoned");
        (orders.draining, orders.heartbeat_secs) = (true, 60);
    }

    /// From now on no report is answered; the tunnel goes on.
    pub(crate) fn mute_reports(&self) {
        self.state.orders.lock().expect("unpoisoned").mute = true;
    }

    /// How old the hub's session with its node is.
    pub(crate) fn session_age(&self) -> Option<Duration> {
        let status = self.state.tunnel().peer_status(NODE_ADDRESS);
        status.and_then(|status| status.since_handshake)
    }

    /// Says which proxy it is, and which ones the house has.
    pub(crate) fn tell_of(&self, proxy: &'static str, hubs: Vec<HubPlace>) {
        self.state.orders.lock().expect("unpoisoned").proxy = proxy;
        *self.state.hubs.lock().expect("unpoisoned") = hubs;
    }

    /// Where it takes registrations, under this name of its machine.
    pub(crate) fn place(&self, host: &str, proxy: &str) -> HubPlace {
        HubPlace {
            url: format!("https://{host}:{}", self.address.port()),
            proxy: proxy.to_owned(),
            pin: Some(self.pin.clone()),
        }
    }

    /// Knows a node that joined another proxy of the house.
    pub(crate) fn know(&self, identity: String) {
        let told = &self.state.told;
        told.send_modify(|told| told.identity = Some(identity));
    }

    pub(crate) fn told(&self) -> Told {
        self.state.told.borrow().clone()
    }

    /// Waits until the proxy was told something.
    pub(crate) async fn wait_for(&self, what: &str, fact: impl FnMut(&Told) -> bool) -> Told {
        let mut told = self.state.told.subscribe();
        let reached = timeout(PATIENCE, told.wait_for(fact)).await;
        match reached {
            Ok(Ok(told)) => told.clone(),
            Ok(Err(_)) | Err(_) => panic!("not told: {what}; {:?}", self.told()),
        }
    }

    /// Kills the hub and starts it again on the same port with the same key, as a restart of the proxy does.
    pub(crate) async fn restart_hub(&self) {
        self.stop_hub().await;
        self.start_hub().await;
    }

    /// As [`Self::restart_hub`], but the keys of its node are still there; only the session is lost.
    pub(crate) async fn restart_hub_with_its_node(&self) {
        self.stop_hub().await;
        let last = self.state.last.lock().expect("unpoisoned").clone();
        *self.state.waiting.lock().expect("unpoisoned") = last;
        self.start_hub().await;
    }

    pub(crate) async fn stop_hub(&self) {
        let hub = self.state.hub.lock().expect("unpoisoned").take();
        hub.expect("runs").shutdown().await;
    }

    /// The hub knows nobody but who registered while it was down: the keys of its nodes were in its memory.
    pub(crate) async fn start_hub(&self) {
        self.state.start_hub().await;
    }

    /// A connection to the node's HTTP server, through the tunnel.
    pub(crate) async fn dial(&self) -> Client {
        let stream = self.connect(8080).await;
        Client::over(stream.expect("connects")).await
    }

    /// A connection to a port of the node.
    pub(crate) async fn connect(&self, port: u16) -> Result<tunnel::Stream, tunnel::Error> {
        let hub = self.state.tunnel();
        hub.connect(NODE_ADDRESS, port, PATIENCE).await
    }
}

impl State {
    fn tunnel(&self) -> Tunnel {
        self.hub.lock().expect("unpoisoned").clone().expect("runs")
    }

    async fn start_hub(self: &Arc<Self>) {
        let bind = *self.hub_address.lock().expect("unpoisoned");
        let hub = Tunnel::start(Settings::new(bind, self.hub_key.clone(), HUB_ADDRESS))
            .await
            .expect("a tunnel");
        *self.hub_address.lock().expect("unpoisoned") = hub.local_addr();
        let listener = hub.listen(REPORT_PORT).await.expect("listens");
        let waiting = self.waiting.lock().expect("unpoisoned").take();
        if let Some(peer) = waiting {
            hub.set_peer(peer).await.expect("a peer");
        }
        *self.hub.lock().expect("unpoisoned") = Some(hub);
        let state = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _from)) = listener.accept().await {
                tokio::spawn(serve(stream, state.clone()));
            }
        });
    }

    async fn add_peer(&self, key: &str, preshared_key: PresharedKey) {
        let peer = Peer {
            public_key: key.parse().expect("a key"),
            preshared_key: Some(preshared_key),
            address: NODE_ADDRESS,
            endpoint: None,
            keepalive: None,
            initiates: false,
        };
        *self.last.lock().expect("unpoisoned") = Some(peer.clone());
        let hub = self.hub.lock().expect("unpoisoned").clone();
        match hub {
            Some(hub) => hub.set_peer(peer).await.expect("a peer"),
            None => *self.waiting.lock().expect("unpoisoned") = Some(peer),
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let authorised = request
            .headers()
            .get("authorization")
            .is_some_and(|value| *value == format!("Bearer {TOKEN}"));
        let body = request
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        let orders = *self.orders.lock().expect("unpoisoned");
        if path != "/v1/report" && orders.https != Https::Well {
            self.told.send_modify(|told| told.put_off += 1);
            if orders.https == Https::Stalled {
                std::future::pending::<()>().await;
            }
            let body = ErrorBody::new("server_error", "store_away", "the store is away");
            return json(StatusCode::SERVICE_UNAVAILABLE, &body);
        }
        match (path.as_str(), orders.refuse) {
            ("/v1/nodes/nonce", _) => json(
                StatusCode::OK,
                &NonceReply {
                    nonce: "nonce-1".to_owned(),
                    expires_secs: 60,
                    server_time_ms: 0,
                },
            ),
            ("/v1/nodes/enroll" | "/v1/nodes/register", Some(code)) => json(
                StatusCode::FORBIDDEN,
                &ErrorBody::new("permission_error", code, "no"),
            ),
            ("/v1/nodes/enroll", None) => self.enrol(&body),
            ("/v1/nodes/register", None) => self.register(&body).await,
            ("/v1/report", _) if orders.stranger || !authorised => {
                json(StatusCode::UNAUTHORIZED, &serde_json::json!({}))
            }
            ("/v1/report", _) if orders.mute => std::future::pending().await,
            ("/v1/report", _) => {
                let report: Report = serde_json::from_slice(&body).expect("a report");
                self.told.send_modify(|told| told.reports.push(report));
                json(
                    StatusCode::OK,
                    &ReportReply {
                        server_time_ms: 0,
                        draining: orders.draining,
                        drain: false,
                        hubs: self.hubs(),
                    },
                )
            }
            _ => json(StatusCode::NOT_FOUND, &serde_json::json!({})),
        }
    }

    fn hubs(&self) -> Vec<HubPlace> {
        self.hubs.lock().expect("unpoisoned").clone()
    }

    fn enrol(&self, body: &[u8]) -> Response<Full<Bytes>> {
        let request: EnrollRequest = serde_json::from_slice(body).expect("an enrolment");
        let token = Token::parse(&request.token).expect("a token");
        let message = enroll_message(token.id(), &request.identity, &request.nonce);
        verify(&request.identity, &message, &request.signature);
        self.told
            .send_modify(|told| told.identity = Some(request.identity));
        json(
            StatusCode::CREATED,
            &EnrollReply {
                node_id: NodeId::new(NODE),
                approved: true,
            },
        )
    }

    async fn register(&self, body: &[u8]) -> Response<Full<Bytes>> {
        let request: RegisterRequest = serde_json::from_slice(body).expect("a registration");
        let identity = self.told.borrow().identity.clone().expect("enrolled");
        let message = register_message(&request);
        verify(&identity, &message, &request.signature);
        let orders = {
            let mut orders = self.orders.lock().expect("unpoisoned");
            orders.stranger = false;
            *orders
        };
        let kem_key = STANDARD.decode(&request.kem_key).expect("base64");
        let (ciphertext, shared) = tunnel::kem::answer(&kem_key).expect("a key");
        let node_key = request.wireguard_key.parse().expect("a key");
        let preshared_key = shared.preshared_key(&PSK, node_key, self.hub_key.public_key());
        self.add_peer(&request.wireguard_key, preshared_key).await;
        self.told
            .send_modify(|told| told.wireguard_keys.push(request.wireguard_key));
        let port = self.hub_address.lock().expect("unpoisoned").port();
        json(
            StatusCode::OK,
            &RegisterReply {
                address: NODE_ADDRESS,
                proxy: orders.proxy.to_owned(),
                hub: Hub {
                    public_key: self.hub_key.public_key().to_string(),
                    endpoint: format!(":{port}"),
                    address: HUB_ADDRESS,
                },
                preshared_key: STANDARD.encode(PSK),
                kem_ciphertext: STANDARD.encode(ciphertext),
                hubs: self.hubs(),
                agent_token: TOKEN.to_owned(),
                report_port: REPORT_PORT,
                heartbeat_secs: orders.heartbeat_secs.max(1),
                server_time_ms: 0,
            },
        )
    }
}

fn verify(identity: &str, message: &[u8], signature: &str) {
    let decode = |text: &str| STANDARD.decode(text).expect("base64");
    UnparsedPublicKey::new(&ED25519, decode(identity))
        .verify(message, &decode(signature))
        .expect("a right signature");
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Response<Full<Bytes>> {
    let bytes = serde_json::to_vec(value).expect("JSON");
    let mut response = Response::new(Full::new(bytes.into()));
    *response.status_mut() = status;
    response
}

async fn serve_https(listener: TcpListener, acceptor: TlsAcceptor, state: Arc<State>) {
    while let Ok((stream, _from)) = listener.accept().await {
        let acceptor = acceptor.clone();
        let state = state.clone();
        tokio::spawn(async move {
            // A client that does not like our certificate leaves during the handshake.
            if let Ok(Ok(stream)) = timeout(Duration::from_secs(5), acceptor.accept(stream)).await {
                serve(stream, state).await;
            }
        });
    }
}

async fn serve<S>(stream: S, state: Arc<State>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(state.answer(request).await) }
    });
    // The node may leave at any time.
    drop(
        http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await,
    );
}
