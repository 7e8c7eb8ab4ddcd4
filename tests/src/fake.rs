//! A backend for fault injection and benchmarks: joins through the real enrolment and the real tunnel, but answers what it is told to.
//! The same answers can be had over plain TCP, so that another proxy can stand beside Hearth in one measurement.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use config::wire::node::{
    EnrollReply, EnrollRequest, Memory, ModelReport, NODE_PORT, NonceReply, RegisterReply,
    RegisterRequest, Report, TierReport, TierState, VERSION, enroll_message, register_message,
};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tunnel::{Peer, PrivateKey, Settings, Tunnel};

/// Makes the answer to one request's body.
pub type Answer = Arc<dyn Fn(Bytes) -> Response<Full<Bytes>> + Send + Sync>;

/// Failures of the harness are for a person to read.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A node that joined; leaves when dropped.
pub struct FakeNode {
    tunnel: Tunnel,
}

impl FakeNode {
    /// Joins by a link and serves the tier's requests with `answer`; reports every second until the tunnel is gone.
    pub async fn join(
        link: &str,
        certificate_pem: &str,
        model: ModelReport,
        answer: Answer,
    ) -> Result<Self, Failure> {
        let (url, fragment) = link.split_once("/join#").ok_or("not a join link")?;
        let token = fragment.split('&').next().unwrap_or_default();
        let api = Api::new(url, certificate_pem)?;
        let identity =
            Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| "no identity key")?;
        let identity =
            Ed25519KeyPair::from_pkcs8(identity.as_ref()).map_err(|_| "no identity key")?;
        let node_id = api.enroll(token, &identity).await?.node_id;
        let wireguard = PrivateKey::generate();
        let asking = tunnel::kem::Asking::new();
        let reply = api
            .register(&node_id, (&wireguard, &asking), &identity)
            .await?;
        let node_key = wireguard.public_key();

        let tunnel = Tunnel::start(Settings::new(
            "127.0.0.1:0".parse()?,
            wireguard,
            reply.address,
        ))
        .await?;
        let of_pair: [u8; 32] = STANDARD
            .decode(&reply.preshared_key)?
            .try_into()
            .map_err(|_| "a key of another length")?;
        let endpoint = if reply.hub.endpoint.starts_with(':') {
            format!("127.0.0.1{}", reply.hub.endpoint)
        } else {
            reply.hub.endpoint.clone()
        };
        let ciphertext = STANDARD.decode(&reply.kem_ciphertext)?;
        let shared = asking.open(&ciphertext).ok_or("no ciphertext")?;
        let hub_key = reply.hub.public_key.parse()?;
        let hub = Peer {
            public_key: hub_key,
            preshared_key: Some(shared.preshared_key(&of_pair, node_key, hub_key)),
            address: reply.hub.address,
            endpoint: Some(endpoint.parse()?),
            keepalive: Some(Duration::from_secs(15)),
            initiates: true,
        };
        tunnel.set_peer(hub).await?;
        let listener = tunnel.listen(NODE_PORT).await?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&answer)));
            }
        });
        let report = Report {
            version: VERSION,
            node_id,
            seq: 0,
            draining: false,
            memory: Memory::default(),
            tiers: vec![tier(model)],
            wake: None,
            back_end: None,
        };
        tokio::spawn(keep_reporting(tunnel.clone(), reply, report));
        Ok(Self { tunnel })
    }

    /// Leaves the tunnel.
    pub async fn leave(self) {
        self.tunnel.shutdown().await;
    }
}

fn tier(model: ModelReport) -> TierReport {
    TierReport {
        tier: config::tier::Tier::Fast,
        state: TierState::Ready,
        reason: None,
        model: Some(model),
        slots: 1024,
        slots_busy: 0,
        queue_depth: 0,
        queue_max: 1024,
        tokens_per_second: 1000.0,
        prompt_tokens_per_second: 10_000.0,
        elsewhere: false,
        wakes_in_ms: 0,
        prefixes: Vec::new(),
    }
}

/// Serves HTTP/1.1 on any stream until the other end leaves.
pub async fn serve(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, answer: Answer) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = Arc::clone(&answer);
        async move {
            let body = request
                .into_body()
                .collect()
                .await
                .map(http_body_util::Collected::to_bytes)
                .unwrap_or_default();
            Ok::<_, Infallible>(answer(body))
        }
    });
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await
        .ok();
}

async fn keep_reporting(tunnel: Tunnel, reply: RegisterReply, mut report: Report) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    loop {
        every.tick().await;
        report.seq += 1;
        if send_report(&tunnel, &reply, &report).await.is_err()
            && tunnel.peer_status(reply.hub.address).is_none()
        {
            return;
        }
    }
}

async fn send_report(
    tunnel: &Tunnel,
    reply: &RegisterReply,
    report: &Report,
) -> Result<(), Failure> {
    let stream = tunnel
        .connect(reply.hub.address, reply.report_port, Duration::from_secs(5))
        .await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::post("/v1/report")
        .header("host", "hub")
        .header("authorization", format!("Bearer {}", reply.agent_token))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(report)?)))?;
    let answer =
        tokio::time::timeout(Duration::from_secs(5), sender.send_request(request)).await??;
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(format!("report refused with {}", answer.status()).into())
    }
}

struct Api {
    http: reqwest::Client,
    url: String,
}

impl Api {
    fn new(url: &str, certificate_pem: &str) -> Result<Self, Failure> {
        let certificate = reqwest::Certificate::from_pem(certificate_pem.as_bytes())?;
        let http = reqwest::Client::builder()
            .tls_certs_only([certificate])
            .timeout(Duration::from_secs(20))
            .build()?;
        Ok(Self {
            http,
            url: url.to_owned(),
        })
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let answer = self
            .http
            .post(format!("{}/v1/nodes/{path}", self.url))
            .json(body)
            .send()
            .await?;
        if !answer.status().is_success() {
            return Err(format!("{path}: {} {}", answer.status(), answer.text().await?).into());
        }
        Ok(answer.json().await?)
    }

    async fn enroll(&self, token: &str, identity: &Ed25519KeyPair) -> Result<EnrollReply, Failure> {
        let nonce: NonceReply = self.post("nonce", &serde_json::json!({})).await?;
        let token_id = token.split('_').nth(2).ok_or("not a join token")?;
        let public = STANDARD.encode(identity.public_key());
        let signature =
            STANDARD.encode(identity.sign(&enroll_message(token_id, &public, &nonce.nonce)));
        let request = EnrollRequest {
            version: VERSION,
            token: token.to_owned(),
            identity: public,
            name: "fake".to_owned(),
            nonce: nonce.nonce,
            signature,
        };
        self.post("enroll", &request).await
    }

    async fn register(
        &self,
        node_id: &config::ids::NodeId,
        (key, asking): (&PrivateKey, &tunnel::kem::Asking),
        identity: &Ed25519KeyPair,
    ) -> Result<RegisterReply, Failure> {
        let nonce: NonceReply = self.post("nonce", &serde_json::json!({})).await?;
        let mut request = RegisterRequest {
            version: VERSION,
            node_id: node_id.clone(),
            wireguard_key: key.public_key().to_string(),
            start: format!("{:032x}", rand::random::<u128>()),
            kem_key: STANDARD.encode(asking.public()),
            nonce: nonce.nonce,
            signature: String::new(),
            agent_version: "fake".to_owned(),
            unmanaged: None,
        };
        request.signature = STANDARD.encode(identity.sign(&register_message(&request)));
        self.post("register", &request).await
    }
}
