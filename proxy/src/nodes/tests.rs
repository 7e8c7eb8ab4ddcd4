//! A node's whole life against a real tunnel over loopback UDP: enrol, register, report, serve, leave.

use std::convert::Infallible;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use config::settings::proxy::Routing;
use config::tier::Tier::{self, Fast, Heavy};
use config::token::{Token, TokenKind};
use config::wire::node::{
    EnrollReply, HUB_ADDRESS, Memory, ModelReport, NODE_PORT, REPORT_PORT, RegisterReply, Report,
    TierReport, TierState, VERSION, enroll_message, register_message,
};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use policy::router::Router;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::task::AbortOnDropHandle;
use tunnel::{Peer, PresharedKey, PrivateKey, Tunnel};

use super::endpoints::Endpoints;
use super::fleet::Fleet;
use super::members::Members;
use super::peers::{HubKeys, Peers, Rooms};
use super::register::{Desk, DeskSecrets, HubFacts, NodeReply};
use super::report::ReportDesk;
use super::upstream::{Answer, Fault, Upstream, Waits};
use crate::store::embedded::Embedded;
use crate::store::{JoinToken, SecretHash, Store};

const NOW_MS: u64 = 1_800_000_000_000;
const PEPPER: [u8; 32] = [9; 32];
const PATIENCE: Duration = Duration::from_secs(10);

/// The proxy's side.
struct Hub {
    tunnel: Tunnel,
    store: Arc<dyn Store>,
    peers: Arc<Peers>,
    desk: Desk,
    fleet: Arc<Fleet>,
    members: Arc<Members>,
    upstream: Upstream,
    _reports: AbortOnDropHandle<()>,
    _folder: TempDir,
}

impl Hub {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Embedded::open(folder.path()).unwrap());
        let key = PrivateKey::from_bytes([3; 32]);
        let settings = tunnel::Settings::new(([127, 0, 0, 1], 0).into(), key, HUB_ADDRESS);
        let tunnel = Tunnel::start(settings).await.unwrap();
        let upstream = Upstream::new(Arc::new(tunnel.clone()), 4);
        let fleet = Arc::new(Fleet::new(router()));
        let members = Arc::new(Members::default());
        let rooms = Rooms {
            upstream: upstream.clone(),
            fleet: Arc::clone(&fleet),
            members: Arc::clone(&members),
        };
        let public_key = tunnel.public_key().to_string();
        let hub = HubKeys {
            secret: [1; 32],
            public_key: public_key.clone(),
        };
        let peers = Arc::new(Peers::new(tunnel.clone(), Arc::clone(&store), rooms, hub));
        let facts = HubFacts {
            public_key,
            endpoint: tunnel.local_addr().to_string(),
            heartbeat: Duration::from_secs(5),
            nodes_max: 2,
        };
        let secrets = DeskSecrets {
            nonce: [2; 32],
            pepper: PEPPER,
        };
        let desk = Desk::new(Arc::clone(&store), Arc::clone(&peers), &secrets, facts);
        let reports = ReportDesk::new(Arc::clone(&members), Arc::clone(&fleet));
        let listener = tunnel.listen(REPORT_PORT).await.unwrap();
        let reports = tokio::spawn(Arc::new(reports).serve(listener));
        Self {
            tunnel,
            store,
            peers,
            desk,
            fleet,
            members,
            upstream,
            _reports: AbortOnDropHandle::new(reports),
            _folder: folder,
        }
    }

    /// A join token for one node, perhaps for some tiers only.
    async fn invite(&self, tiers: Option<Vec<Tier>>) -> Token {
        let token = Token::generate(TokenKind::Join);
        let record = JoinToken {
            id: token.id().to_owned(),
            secret_hash: SecretHash::of(&PEPPER, token.secret().expose()),
            name: "test".to_owned(),
            uses_max: 1,
            tiers,
            created_unix: 0,
            expires_unix: 1_900_000_000,
            used_by: Vec::new(),
        };
        self.store.put_join_token(&record).await.unwrap();
        token
    }

    fn nonce(&self) -> String {
        let reply: Value = serde_json::from_slice(&self.desk.nonce(NOW_MS).body).unwrap();
        reply["nonce"].as_str().unwrap().to_owned()
    }

    fn ready_tiers(&self) -> Vec<Tier> {
        self.fleet.with(|router| {
            let backends = router.registry().backends();
            backends.map(|backend| backend.tier.tier).collect()
        })
    }

    async fn ask(&self, node: Ipv6Addr) -> Result<Answer, Fault> {
        let request = Request::post("/v1/chat/completions").header("host", "node");
        let request = request.body(Full::new(Bytes::from_static(b"{}"))).unwrap();
        let waits = Waits {
            connect: PATIENCE,
            head: PATIENCE,
        };
        self.upstream.send(node, request, waits).await
    }
}

fn router() -> Router {
    let routing = Routing {
        auto_models: Vec::new(),
        heavy_from: 0.66,
        fast_to: 0.33,
        breaker_failures: 3,
        breaker_window: PATIENCE,
        breaker_open: PATIENCE,
        breaker_probe: PATIENCE,
        connect_timeout: PATIENCE,
        first_byte_timeout: PATIENCE,
        idle_timeout: PATIENCE,
        stall_after: PATIENCE,
        migration_patience: PATIENCE,
        commit_after: PATIENCE,
        keepalive: PATIENCE,
        fallback: true,
        pool_max: 4,
    };
    Router::new(&routing, Duration::from_secs(15), 10)
}

/// The node's side.
struct Home {
    identity: Ed25519KeyPair,
    wireguard: PrivateKey,
}

impl Home {
    fn new(seed: u8) -> Self {
        Self {
            identity: Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap(),
            wireguard: PrivateKey::generate(),
        }
    }

    fn identity(&self) -> String {
        STANDARD.encode(self.identity.public_key().as_ref())
    }

    fn sign(&self, message: &[u8]) -> String {
        STANDARD.encode(self.identity.sign(message).as_ref())
    }

    async fn enroll(&self, hub: &Hub, token: &Token) -> NodeReply {
        let nonce = hub.nonce();
        let signature = self.sign(&enroll_message(token.id(), &self.identity(), &nonce));
        let request = json!({
            "version": VERSION, "token": token.reveal().expose(), "identity": self.identity(),
            "name": "attic", "nonce": nonce, "signature": signature,
        });
        hub.desk
            .enroll(request.to_string().as_bytes(), NOW_MS)
            .await
    }

    async fn register(&self, hub: &Hub, node_id: &str) -> NodeReply {
        let (nonce, key) = (hub.nonce(), self.wireguard.public_key().to_string());
        let id = config::ids::NodeId::new(node_id);
        let signature = self.sign(&register_message(&id, &key, &nonce));
        let request = json!({
            "version": VERSION, "node_id": node_id, "wireguard_key": key,
            "nonce": nonce, "signature": signature, "agent_version": "0.1.0",
        });
        hub.desk
            .register(request.to_string().as_bytes(), NOW_MS)
            .await
    }

    /// Enrols and registers.
    async fn join(&self, hub: &Hub, token: &Token) -> (String, RegisterReply) {
        let enrolled = self.enroll(hub, token).await;
        assert_eq!(enrolled.status, StatusCode::CREATED, "{enrolled:?}");
        let reply: EnrollReply = serde_json::from_slice(&enrolled.body).unwrap();
        let id = reply.node_id.as_str().to_owned();
        let registered = self.register(hub, &id).await;
        assert_eq!(registered.status, StatusCode::OK, "{registered:?}");
        (id, serde_json::from_slice(&registered.body).unwrap())
    }

    /// Dials in with what registration returned, and serves every request with 200.
    async fn dial(&self, reply: &RegisterReply) -> Tunnel {
        let bind = ([127, 0, 0, 1], 0).into();
        let key = PrivateKey::from_bytes(self.wireguard.to_bytes());
        let tunnel = Tunnel::start(tunnel::Settings::new(bind, key, reply.address))
            .await
            .unwrap();
        let peer = Peer {
            public_key: reply.hub.public_key.parse().unwrap(),
            preshared_key: Some(PresharedKey::from_base64(&reply.preshared_key).unwrap()),
            address: reply.hub.address,
            endpoint: Some(reply.hub.endpoint.parse().unwrap()),
            keepalive: Some(Duration::from_secs(1)),
            initiates: true,
        };
        tunnel.set_peer(peer).await.unwrap();
        let listener = tunnel.listen(NODE_PORT).await.unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(|_| async {
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"{}"))))
                });
                let io = TokioIo::new(stream);
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(io, service),
                );
            }
        });
        tunnel
    }
}

/// Posts a report and returns the status.
async fn report(tunnel: &Tunnel, token: &str, report: &Report) -> StatusCode {
    let stream = tunnel
        .connect(HUB_ADDRESS, REPORT_PORT, PATIENCE)
        .await
        .unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::post("/v1/report")
        .header("host", "hub")
        .header("authorization", format!("Bearer {token}"))
        .body(Full::new(Bytes::from(serde_json::to_vec(report).unwrap())));
    sender
        .send_request(request.unwrap())
        .await
        .unwrap()
        .status()
}

fn ready(node_id: &str, seq: u64, tiers: &[Tier]) -> Report {
    let tier = |tier: &Tier| TierReport {
        tier: *tier,
        state: TierState::Ready,
        reason: None,
        model: Some(ModelReport {
            id: format!("tiny-{tier}"),
            aliases: Vec::new(),
            file_sha256: String::new(),
            size_bytes: 1,
            n_ctx: 512,
            n_ctx_train: 512,
            parameters: 1,
            quantization: "Q8_0".to_owned(),
            architecture: "llama".to_owned(),
            modalities: Vec::new(),
        }),
        slots: 1,
        slots_busy: 0,
        queue_depth: 0,
        queue_max: 1,
        tokens_per_second: 1.0,
        prompt_tokens_per_second: 1.0,
    };
    Report {
        version: VERSION,
        node_id: config::ids::NodeId::new(node_id),
        seq,
        draining: false,
        memory: Memory::default(),
        tiers: tiers.iter().map(tier).collect(),
    }
}

fn code(reply: &NodeReply) -> String {
    let body: Value = serde_json::from_slice(&reply.body).unwrap();
    body["error"]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_reports_serves_and_is_thrown_out() {
    let hub = Hub::start().await;
    let home = Home::new(1);
    let token = hub.invite(None).await;
    let (id, reply) = home.join(&hub, &token).await;
    let tunnel = home.dial(&reply).await;

    assert_eq!(
        report(&tunnel, &reply.agent_token, &ready(&id, 1, &[Fast, Heavy])).await,
        StatusCode::OK
    );
    assert_eq!(hub.ready_tiers(), [Fast, Heavy]);

    let mut answer = hub.ask(reply.address).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.body.collect(100).await.unwrap(), b"{}");
    assert_eq!(
        hub.upstream.idle(reply.address),
        1,
        "the connection waits for the next request"
    );

    let node = config::ids::NodeId::new(id.as_str());
    hub.store.revoke_node(&node, 1_800_000_000).await.unwrap();
    hub.peers.sync().await.unwrap();
    assert!(hub.members.member(&node).is_none() && hub.ready_tiers().is_empty());
    assert!(
        hub.ask(reply.address).await.is_err(),
        "no way to it any more"
    );
    assert_eq!(code(&home.register(&hub, &id).await), "node_revoked");
    assert_eq!(code(&home.enroll(&hub, &token).await), "node_revoked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_speaks_for_itself_only() {
    let hub = Hub::start().await;
    let (home, other) = (Home::new(1), Home::new(2));
    let (id, reply) = home.join(&hub, &hub.invite(Some(vec![Fast])).await).await;
    let (other_id, _) = other.join(&hub, &hub.invite(None).await).await;
    let tunnel = home.dial(&reply).await;
    let token = &reply.agent_token;

    assert_eq!(
        report(&tunnel, "wrong", &ready(&id, 1, &[Fast])).await,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(
        report(&tunnel, token, &ready(&other_id, 1, &[Fast])).await,
        StatusCode::FORBIDDEN
    );
    assert!(hub.ready_tiers().is_empty());
    assert_eq!(
        report(&tunnel, token, &ready(&id, 1, &[Fast, Heavy])).await,
        StatusCode::OK
    );
    assert_eq!(hub.ready_tiers(), [Fast], "it was not invited for more");
    assert_eq!(
        report(&tunnel, token, &ready(&id, 1, &[Fast])).await,
        StatusCode::CONFLICT,
        "an old one again"
    );

    let thief = Home {
        identity: Ed25519KeyPair::from_seed_unchecked(&[2; 32]).unwrap(),
        wireguard: PrivateKey::from_bytes(home.wireguard.to_bytes()),
    };
    assert_eq!(
        code(&thief.register(&hub, &other_id).await),
        "wireguard_key_taken"
    );
    let mirror = Home {
        identity: Ed25519KeyPair::from_seed_unchecked(&[2; 32]).unwrap(),
        wireguard: PrivateKey::from_bytes([3; 32]),
    };
    assert_eq!(
        code(&mirror.register(&hub, &other_id).await),
        "wireguard_key_taken",
        "the hub's own key"
    );
    assert_eq!(code(&other.register(&hub, &id).await), "signature_invalid");
    assert_eq!(
        code(&other.register(&hub, "node_nobody").await),
        "node_unknown"
    );
}

#[tokio::test]
async fn a_join_token_lets_one_identity_in_however_often_it_asks() {
    let hub = Hub::start().await;
    let token = hub.invite(None).await;
    let home = Home::new(1);
    let first = home.enroll(&hub, &token).await;
    assert_eq!(
        (first.status, home.enroll(&hub, &token).await),
        (StatusCode::CREATED, first.clone())
    );
    assert_eq!(
        code(&Home::new(2).enroll(&hub, &token).await),
        "join_token_used"
    );
    let unknown = Token::generate(TokenKind::Join);
    assert_eq!(
        code(&Home::new(2).enroll(&hub, &unknown).await),
        "join_token_unknown"
    );
    let wrong_kind = Token::generate(TokenKind::Client);
    assert_eq!(
        code(&Home::new(2).enroll(&hub, &wrong_kind).await),
        "join_token_malformed"
    );
    let late = hub.invite(None).await;
    let reply = {
        let home = Home::new(2);
        let nonce = hub.nonce();
        let signature = home.sign(&enroll_message(late.id(), &home.identity(), &nonce));
        let request = json!({
            "version": VERSION, "token": late.reveal().expose(), "identity": home.identity(),
            "name": "attic", "nonce": nonce, "signature": signature,
        });
        hub.desk
            .enroll(request.to_string().as_bytes(), NOW_MS + 61_000)
            .await
    };
    assert_eq!(code(&reply), "nonce_expired");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_the_hub_knows_its_nodes_without_registration() {
    let hub = Hub::start().await;
    let home = Home::new(1);
    let (id, reply) = home.join(&hub, &hub.invite(None).await).await;
    let rooms = Rooms {
        upstream: hub.upstream.clone(),
        fleet: Arc::clone(&hub.fleet),
        members: Arc::default(),
    };
    let members = Arc::clone(&rooms.members);
    let keys = HubKeys {
        secret: [1; 32],
        public_key: hub.tunnel.public_key().to_string(),
    };
    let again = Peers::new(hub.tunnel.clone(), Arc::clone(&hub.store), rooms, keys);
    again.sync().await.unwrap();

    let member = members.at(reply.address).unwrap();
    assert_eq!(
        member.agent_token.expose(),
        &reply.agent_token,
        "derived, not stored"
    );
    let tunnel = home.dial(&reply).await;
    assert_eq!(
        report(&tunnel, &reply.agent_token, &ready(&id, 1, &[Fast])).await,
        StatusCode::OK
    );
}

/// The hub's side of the tunnel again, as a new process would build it: same key, same port, same store and file.
async fn restarted(
    hub: &Hub,
    bind: std::net::SocketAddr,
    file: &std::path::Path,
) -> (Tunnel, Peers) {
    let key = PrivateKey::from_bytes([3; 32]);
    let tunnel = Tunnel::start(tunnel::Settings::new(bind, key, HUB_ADDRESS))
        .await
        .unwrap();
    let rooms = Rooms {
        upstream: Upstream::new(Arc::new(tunnel.clone()), 4),
        fleet: Arc::clone(&hub.fleet),
        members: Arc::default(),
    };
    let keys = HubKeys {
        secret: [1; 32],
        public_key: tunnel.public_key().to_string(),
    };
    let peers = Peers::new(tunnel.clone(), Arc::clone(&hub.store), rooms, keys);
    let peers = peers.remembering(Endpoints::open(file.to_owned()));
    (tunnel, peers)
}

async fn in_session(tunnel: &Tunnel, address: Ipv6Addr) {
    let give_up = Instant::now() + PATIENCE;
    while tunnel
        .peer_status(address)
        .is_none_or(|status| status.since_handshake.is_none() || status.since_heard.is_none())
    {
        assert!(Instant::now() < give_up, "waited in vain for a session");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_hub_calls_an_idle_node_that_says_nothing() {
    let hub = Hub::start().await;
    let home = Home::new(1);
    let (_, reply) = home.join(&hub, &hub.invite(None).await).await;
    let bind = hub.tunnel.local_addr();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("endpoints.json");
    hub.tunnel.shutdown().await;
    let (first, peers) = restarted(&hub, bind, &file).await;
    peers.sync().await.unwrap();
    // The node has no reason to speak: no report, no stream, and a session younger than its rekey.
    let _node = home.dial(&reply).await;
    in_session(&first, reply.address).await;
    peers.sync().await.unwrap();
    first.shutdown().await;

    let began = Instant::now();
    let (second, peers) = restarted(&hub, bind, &file).await;
    peers.sync().await.unwrap();
    in_session(&second, reply.address).await;
    let took = began.elapsed();
    assert!(took <= Duration::from_millis(1500), "took {took:?}");
    let sent = second.counters();
    assert_eq!(sent.bad_mac + sent.unauthentic, 0, "{sent:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_falls_silent_is_out_and_its_requests_end() {
    let hub = Hub::start().await;
    let home = Home::new(1);
    let (id, reply) = home.join(&hub, &hub.invite(None).await).await;
    let tunnel = home.dial(&reply).await;
    report(&tunnel, &reply.agent_token, &ready(&id, 1, &[Fast])).await;
    let silent = hub.fleet.expire(Instant::now() + Duration::from_secs(16));
    assert_eq!(silent.len(), 1);
    assert!(hub.ready_tiers().is_empty());

    let mut answer = hub.ask(reply.address).await.unwrap();
    hub.upstream.cut(reply.address);
    let rest = answer.body.collect(100).await;
    assert!(
        matches!(rest, Err(Fault::Lost) | Ok(_)),
        "it ends at once: {rest:?}"
    );
    assert_eq!(hub.upstream.idle(reply.address), 0);
}
