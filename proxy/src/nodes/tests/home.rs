//! The node's side of the tests: enrols, registers, dials in, reports and serves.

use std::convert::Infallible;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use config::tier::Tier;
use config::token::Token;
use config::wire::node::{
    EnrollReply, HUB_ADDRESS, Memory, ModelReport, NODE_PORT, REPORT_PORT, RegisterReply,
    RegisterRequest, Report, ReportReply, TierReport, TierState, Unmanaged, VERSION,
    enroll_message, register_message,
};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use tunnel::kem::Asking;
use tunnel::{Peer, PrivateKey, Tunnel};

use super::hub::{Hub, NOW_MS, PATIENCE};
use crate::nodes::register::{Desk, NodeReply};

/// The node's side.
pub(super) struct Home {
    pub(super) identity: Ed25519KeyPair,
    pub(super) wireguard: PrivateKey,
    pub(super) start: String,
    pub(super) asking: Asking,
    /// It has no agent.
    pub(super) unmanaged: Option<Unmanaged>,
}

impl Home {
    pub(super) fn new(seed: u8) -> Self {
        Self {
            identity: Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap(),
            wireguard: PrivateKey::generate(),
            start: format!("{:032x}", rand::random::<u128>()),
            asking: Asking::new(),
            unmanaged: None,
        }
    }

    pub(super) fn identity(&self) -> String {
        STANDARD.encode(self.identity.public_key().as_ref())
    }

    pub(super) fn sign(&self, message: &[u8]) -> String {
        STANDARD.encode(self.identity.sign(message).as_ref())
    }

    pub(super) async fn enroll(&self, hub: &Hub, token: &Token) -> NodeReply {
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

    pub(super) async fn register(&self, hub: &Hub, node_id: &str) -> NodeReply {
        self.register_at(&hub.desk, &hub.nonce(), node_id).await
    }

    pub(super) async fn register_at(&self, desk: &Desk, nonce: &str, node_id: &str) -> NodeReply {
        let mut request = RegisterRequest {
            version: VERSION,
            node_id: config::ids::NodeId::new(node_id),
            wireguard_key: self.wireguard.public_key().to_string(),
            start: self.start.clone(),
            kem_key: STANDARD.encode(self.asking.public()),
            nonce: nonce.to_owned(),
            signature: String::new(),
            agent_version: "0.1.0".to_owned(),
            unmanaged: self.unmanaged.clone(),
        };
        request.signature = self.sign(&register_message(&request));
        let body = serde_json::to_vec(&request).unwrap();
        desk.register(&body, NOW_MS).await
    }

    /// Enrols and registers.
    pub(super) async fn join(&self, hub: &Hub, token: &Token) -> (String, RegisterReply) {
        let enrolled = self.enroll(hub, token).await;
        assert_eq!(enrolled.status, StatusCode::CREATED, "{enrolled:?}");
        let reply: EnrollReply = serde_json::from_slice(&enrolled.body).unwrap();
        let id = reply.node_id.as_str().to_owned();
        let registered = self.register(hub, &id).await;
        assert_eq!(registered.status, StatusCode::OK, "{registered:?}");
        (id, serde_json::from_slice(&registered.body).unwrap())
    }

    /// The hub as this node knows it after a registration.
    pub(super) fn peer(&self, reply: &RegisterReply) -> Peer {
        let decoded = |text: &str| STANDARD.decode(text).unwrap();
        let shared = self.asking.open(&decoded(&reply.kem_ciphertext)).unwrap();
        let of_pair = decoded(&reply.preshared_key).try_into().unwrap();
        let hub_key = reply.hub.public_key.parse().unwrap();
        let node_key = self.wireguard.public_key();
        Peer {
            public_key: hub_key,
            preshared_key: Some(shared.preshared_key(&of_pair, node_key, hub_key)),
            address: reply.hub.address,
            endpoint: Some(reply.hub.endpoint.parse().unwrap()),
            keepalive: Some(Duration::from_secs(1)),
            initiates: true,
        }
    }

    /// Dials in with what registration returned, and serves every request with 200.
    pub(super) async fn dial(&self, reply: &RegisterReply) -> Tunnel {
        let bind = ([127, 0, 0, 1], 0).into();
        let key = PrivateKey::from_bytes(self.wireguard.to_bytes());
        let tunnel = Tunnel::start(tunnel::Settings::new(bind, key, reply.address))
            .await
            .unwrap();
        let peer = self.peer(reply);
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
pub(super) async fn report(tunnel: &Tunnel, token: &str, report: &Report) -> StatusCode {
    post(tunnel, token, report).await.0
}

/// Posts a report and returns what is said to it.
pub(super) async fn told(tunnel: &Tunnel, token: &str, report: &Report) -> ReportReply {
    let (status, body) = post(tunnel, token, report).await;
    assert_eq!(status, StatusCode::OK);
    serde_json::from_slice(&body).unwrap()
}

async fn post(tunnel: &Tunnel, token: &str, report: &Report) -> (StatusCode, Bytes) {
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
    let answer = sender.send_request(request.unwrap()).await.unwrap();
    let status = answer.status();
    (
        status,
        answer.into_body().collect().await.unwrap().to_bytes(),
    )
}

pub(super) fn ready(node_id: &str, seq: u64, tiers: &[Tier]) -> Report {
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
        elsewhere: false,
        wakes_in_ms: 0,
        prefixes: Vec::new(),
    };
    Report {
        version: VERSION,
        node_id: config::ids::NodeId::new(node_id),
        seq,
        draining: false,
        memory: Memory::default(),
        tiers: tiers.iter().map(tier).collect(),
        wake: None,
        back_end: None,
    }
}

pub(super) fn code(reply: &NodeReply) -> String {
    let body: Value = serde_json::from_slice(&reply.body).unwrap();
    body["error"]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}
