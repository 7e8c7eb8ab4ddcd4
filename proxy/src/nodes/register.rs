//! Enrolment and registration over HTTPS: a join token becomes an identity, an identity gets a place in the tunnel.
//! Everything here comes from strangers. Never logs a token, a key that was derived, or a body.

mod rejection;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use config::ids::NodeId;
use config::token::{Token, TokenKind};
use config::wire::error::ErrorBody;
use config::wire::node::{
    CarrierProof, EnrollReply, EnrollRequest, Hub, NonceReply, REPORT_PORT, RegisterReply,
    RegisterRequest, VERSION, carrier_message, enroll_message, register_message,
};
use http::StatusCode;
use ring::signature::{ED25519, UnparsedPublicKey};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::rejection::Rejection;
use super::derive::{self, IDENTITY_BYTES};
use super::hubs::Hubs;
use super::nonce::{LIFE, Nonces};
use super::peers::{Arrival, Peers, Ride};
use super::unmanaged;
use crate::store::records::change_node;
use crate::store::{NodeRecord, Redeemed, Redemption, SecretHash, Store};

/// Requests of nodes are a few hundred bytes.
pub const BODY_MAX: u64 = 8 * 1024;
/// Characters in the name of a machine.
const NAME_MAX: usize = 64;
/// Characters in the version of an agent.
const VERSION_MAX: usize = 64;

/// Hex digits that name a start of an agent.
const START_DIGITS: usize = 32;

/// What a node's request gets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeReply {
    /// The status.
    pub status: StatusCode,
    /// JSON.
    pub body: Bytes,
    /// The code of the refusal, if it is one.
    pub refusal: Option<&'static str>,
}

/// What the desk tells nodes about this proxy.
#[derive(Clone, Debug)]
pub struct HubFacts {
    /// Base64 of the hub's WireGuard public key.
    pub public_key: String,
    /// `host:port`, or `:port` on the host that the node dialled.
    pub endpoint: String,
    /// Time between reports.
    pub heartbeat: Duration,
    /// Nodes at most.
    pub nodes_max: usize,
    /// An administrator approves every node, whatever its token says.
    pub approves_all: bool,
    /// Nodes may bring their datagrams over HTTPS.
    pub carriers: bool,
    /// A node that was not seen for this long must be approved again.
    pub unseen_max: Duration,
    /// The proxies of the house.
    pub hubs: Arc<Hubs>,
}

/// Where nodes ask to be let in.
pub struct Desk {
    store: Arc<dyn Store>,
    peers: Arc<Peers>,
    nonces: Nonces,
    pepper: [u8; 32],
    facts: HubFacts,
}

/// Secrets of the desk; the same for all proxies of one store.
pub struct DeskSecrets {
    /// Under which nonces are tagged.
    pub nonce: [u8; 32],
    /// Under which join tokens are hashed.
    pub pepper: [u8; 32],
}

impl Desk {
    /// A desk that looks nodes up in the store and lets them into the tunnel.
    pub fn new(
        store: Arc<dyn Store>,
        peers: Arc<Peers>,
        secrets: &DeskSecrets,
        facts: HubFacts,
    ) -> Self {
        let DeskSecrets { nonce, pepper } = *secrets;
        Self {
            store,
            peers,
            nonces: Nonces::new(&nonce),
            pepper,
            facts,
        }
    }

    /// `POST /v1/nodes/nonce`
    pub fn nonce(&self, now_ms: u64) -> NodeReply {
        let reply = NonceReply {
            nonce: self.nonces.issue(now_ms),
            expires_secs: LIFE.as_secs(),
            server_time_ms: now_ms,
        };
        reply_with(StatusCode::OK, &reply)
    }

    /// `POST /v1/nodes/enroll`
    pub async fn enroll(&self, body: &[u8], now_ms: u64) -> NodeReply {
        match self.try_enroll(body, now_ms).await {
            Ok(reply) => reply_with(StatusCode::CREATED, &reply),
            Err(rejection) => reject("enrol", &rejection),
        }
    }

    /// `POST /v1/nodes/register`
    pub async fn register(&self, body: &[u8], now_ms: u64) -> NodeReply {
        match self.try_register(body, now_ms).await {
            Ok(reply) => reply_with(StatusCode::OK, &reply),
            Err(rejection) => reject("register", &rejection),
        }
    }

    async fn try_enroll(&self, body: &[u8], now_ms: u64) -> Result<EnrollReply, Rejection> {
        let request: EnrollRequest = parse(body)?;
        let (id, token) = self.check_enrollment(&request, now_ms)?;
        let known = self.store.node(&id).await?;
        if known
            .as_ref()
            .is_some_and(|node| node.revoked_unix.is_some())
        {
            return Err(Rejection::Revoked);
        }
        if known.is_none() {
            self.check_room().await?;
        }
        let redemption = Redemption {
            id: token.id().to_owned(),
            secret_hash: SecretHash::of(&self.pepper, token.secret().expose()),
            identity: request.identity.clone(),
        };
        let now_unix = unix_seconds(now_ms);
        let (tiers, approve) = match self.store.redeem_join_token(&redemption, now_unix).await? {
            // What was decided about it since then stays as it is.
            Redeemed::Again { .. } if known.is_some() => {
                let approved = known.is_some_and(|known| !known.pending);
                return Ok(EnrollReply {
                    node_id: id,
                    approved,
                });
            }
            Redeemed::Now { tiers, approve } | Redeemed::Again { tiers, approve } => {
                (tiers, approve)
            }
            Redeemed::Unknown => return Err(Rejection::TokenUnknown),
            Redeemed::Expired => return Err(Rejection::TokenExpired),
            Redeemed::UsedUp => return Err(Rejection::TokenUsed),
        };
        let approve = approve || self.facts.approves_all;
        // A node that is in already does not lose its place by a link that would have others wait.
        let pending = known
            .as_ref()
            .map_or(approve, |known| known.pending && approve);
        let record = NodeRecord {
            identity: request.identity,
            name: request.name,
            tiers,
            join_token: token.id().to_owned(),
            pending,
            ..stranger(&id, now_unix)
        };
        tracing::info!(node = %id, name = record.name, pending, "a node enrols");
        self.enrolled(record, known.is_some()).await?;
        Ok(EnrollReply {
            node_id: id,
            approved: !pending,
        })
    }

    /// Whether one more node may be in. The store keeps revoked ones for ever; they take nobody's place.
    async fn check_room(&self) -> Result<(), Rejection> {
        let nodes = self.store.nodes().await?.into_iter();
        let may_be_in = nodes.filter(|node| node.revoked_unix.is_none()).count();
        if may_be_in >= self.facts.nodes_max {
            return Err(Rejection::Full);
        }
        Ok(())
    }

    /// Writes what an enrolment brought; all that was said of a node before, by whomever, stays.
    async fn enrolled(&self, record: NodeRecord, is_known: bool) -> Result<(), Rejection> {
        if !is_known {
            return Ok(self.store.put_node(&record).await?);
        }
        let written = change_node(&*self.store, &record.id, |known| {
            known.identity.clone_from(&record.identity);
            known.name.clone_from(&record.name);
            known.tiers.clone_from(&record.tiers);
            known.join_token.clone_from(&record.join_token);
            known.pending = record.pending;
        });
        written.await?.map(drop).ok_or(Rejection::Unknown)
    }

    /// Whom an enrolment is for and the token it brings, before the store is asked.
    fn check_enrollment(
        &self,
        request: &EnrollRequest,
        now_ms: u64,
    ) -> Result<(NodeId, Token), Rejection> {
        if request.version != VERSION {
            return Err(Rejection::Version);
        }
        let identity = identity(&request.identity)?;
        check_text("name", &request.name, NAME_MAX)?;
        let token: Token = request
            .token
            .parse()
            .map_err(|_| Rejection::TokenMalformed)?;
        if token.kind() != TokenKind::Join {
            return Err(Rejection::TokenMalformed);
        }
        let message = enroll_message(token.id(), &request.identity, &request.nonce);
        self.check_signed(
            &identity,
            &message,
            &request.signature,
            (&request.nonce, now_ms),
        )?;
        Ok((derive::node_id(&identity), token))
    }

    async fn try_register(&self, body: &[u8], now_ms: u64) -> Result<RegisterReply, Rejection> {
        let request: RegisterRequest = parse(body)?;
        if request.version != VERSION {
            return Err(Rejection::Version);
        }
        check_text("agent_version", &request.agent_version, VERSION_MAX)?;
        let wireguard_key: tunnel::PublicKey = request.wireguard_key.parse().map_err(|_| {
            Rejection::Invalid("wireguard_key is not the base64 of 32 bytes".to_owned())
        })?;
        let mut record = self
            .store
            .node(&request.node_id)
            .await?
            .ok_or(Rejection::Unknown)?;
        if record.revoked_unix.is_some() {
            return Err(Rejection::Revoked);
        }
        let identity = identity(&record.identity)?;
        check_start(&request.start)?;
        let message = register_message(&request);
        self.check_signed(
            &identity,
            &message,
            &request.signature,
            (&request.nonce, now_ms),
        )?;
        self.check_approved(&mut record, now_ms).await?;
        check_agent(&request, &record)?;
        let kem_key = STANDARD.decode(&request.kem_key).ok();
        let exchange = kem_key.and_then(|key| tunnel::kem::answer(&key));
        let (ciphertext, shared) = exchange.ok_or_else(|| {
            Rejection::Invalid("kem_key is not the base64 of an ML-KEM-768 key".to_owned())
        })?;
        // Otherwise a node could take over another one's sessions, or name us as our own peer.
        let key = wireguard_key.to_string();
        if key == self.facts.public_key || self.peers.uses_key(&key, &record.id) {
            return Err(Rejection::KeyTaken);
        }

        record = self
            .registered(&record.id, (&request, &key), now_ms)
            .await?;
        let arrival = Arrival {
            start: request.start,
            shared,
        };
        let admitted = self.peers.admit(&record, arrival).await.map_err(|error| {
            tracing::warn!(node = %record.id, %error, "a node was not taken into the tunnel");
            Rejection::from(error)
        })?;
        tracing::info!(node = %record.id, name = record.name, version = record.agent_version, "a node registered");
        let hub = Hub {
            public_key: self.facts.public_key.clone(),
            endpoint: self.facts.endpoint.clone(),
            address: config::wire::node::HUB_ADDRESS,
        };
        Ok(RegisterReply {
            address: admitted.member.address,
            proxy: self.facts.hubs.proxy(),
            hub,
            preshared_key: STANDARD.encode(admitted.pair_secret),
            kem_ciphertext: STANDARD.encode(ciphertext),
            agent_token: admitted.member.agent_token.expose().clone(),
            report_port: REPORT_PORT,
            heartbeat_secs: self.facts.heartbeat.as_secs(),
            server_time_ms: now_ms,
            hubs: self.facts.hubs.list(tokio::time::Instant::now()),
        })
    }

    /// Writes a registration down; all that others have said of the node stays.
    async fn registered(
        &self,
        id: &NodeId,
        (request, key): (&RegisterRequest, &str),
        now_ms: u64,
    ) -> Result<NodeRecord, Rejection> {
        let written = change_node(&*self.store, id, |record| {
            record.unmanaged.clone_from(&request.unmanaged);
            record.wireguard_key = Some(key.to_owned());
            record.agent_version = match &request.unmanaged {
                Some(_server) => "unmanaged".to_owned(),
                None => request.agent_version.clone(),
            };
            record.registered_unix = Some(unix_seconds(now_ms));
        });
        let record = written.await?.ok_or(Rejection::Unknown)?;
        if record.revoked_unix.is_some() {
            return Err(Rejection::Revoked);
        }
        Ok(record)
    }

    /// Whether the node may come in; one that nobody saw for too long waits from now on.
    async fn check_approved(&self, record: &mut NodeRecord, now_ms: u64) -> Result<(), Rejection> {
        let seen = [
            record.last_seen_unix,
            record.registered_unix,
            record.approved_unix,
            Some(record.created_unix),
        ];
        let seen = seen.into_iter().flatten().max().unwrap_or_default();
        let unseen = unix_seconds(now_ms).saturating_sub(seen);
        let unseen_max = i64::try_from(self.facts.unseen_max.as_secs()).unwrap_or(i64::MAX);
        if !record.pending && unseen > unseen_max {
            tracing::warn!(node = %record.id, name = record.name, days = unseen / 86_400, "a node that was away for long waits for approval");
            let written = change_node(&*self.store, &record.id, |record| record.pending = true);
            *record = written.await?.ok_or(Rejection::Unknown)?;
        }
        if record.pending {
            return Err(Rejection::Pending(record.id.clone()));
        }
        Ok(())
    }

    /// `GET /v1/nodes/carrier` with an upgrade: a carrier for the node that shows who it is, in place of the one that it had. What comes
    /// through it is believed no more than what comes by UDP.
    pub async fn carry(
        &self,
        proof: Option<&str>,
        (from, now_ms): (IpAddr, u64),
    ) -> Result<Ride, NodeReply> {
        let opened = self.try_carry(proof, (from, now_ms)).await;
        opened.map_err(|rejection| reject("carry", &rejection))
    }

    /// `GET /v1/nodes/carrier` without an upgrade.
    pub fn carry_plainly(&self) -> NodeReply {
        let rejection = if self.facts.carriers {
            Rejection::Upgrade
        } else {
            Rejection::NoCarriers
        };
        reject("carry", &rejection)
    }

    async fn try_carry(
        &self,
        proof: Option<&str>,
        (from, now_ms): (IpAddr, u64),
    ) -> Result<Ride, Rejection> {
        if !self.facts.carriers {
            return Err(Rejection::NoCarriers);
        }
        let proof = proof
            .and_then(CarrierProof::parse)
            .ok_or(Rejection::NoProof)?;
        // A nonce costs a hash, the store a round trip.
        if !self.nonces.is_valid(&proof.nonce, now_ms) {
            return Err(Rejection::Nonce);
        }
        let record = self
            .store
            .node(&proof.node_id)
            .await?
            .ok_or(Rejection::Unknown)?;
        if record.revoked_unix.is_some() {
            return Err(Rejection::Revoked);
        }
        let identity = identity(&record.identity)?;
        let message = carrier_message(&record.id, &proof.nonce);
        self.check_signed(
            &identity,
            &message,
            &proof.signature,
            (&proof.nonce, now_ms),
        )?;
        self.peers
            .carry(&record.id, from)
            .ok_or(Rejection::NotRegistered)
    }

    /// The nonce is checked first: it costs a hash, the signature a hundred times that.
    fn check_signed(
        &self,
        identity: &[u8; IDENTITY_BYTES],
        message: &[u8],
        signature: &str,
        (nonce, now_ms): (&str, u64),
    ) -> Result<(), Rejection> {
        if !self.nonces.is_valid(nonce, now_ms) {
            return Err(Rejection::Nonce);
        }
        let signature = STANDARD
            .decode(signature)
            .map_err(|_| Rejection::Signature)?;
        UnparsedPublicKey::new(&ED25519, identity)
            .verify(message, &signature)
            .map_err(|_| Rejection::Signature)
    }
}

/// A node of which nothing is known yet.
fn stranger(id: &NodeId, now_unix: i64) -> NodeRecord {
    NodeRecord {
        id: id.clone(),
        identity: String::new(),
        name: String::new(),
        tiers: None,
        wireguard_key: None,
        agent_version: String::new(),
        join_token: String::new(),
        created_unix: now_unix,
        registered_unix: None,
        last_seen_unix: None,
        revoked_unix: None,
        draining: false,
        pending: false,
        approved_unix: None,
        unmanaged: None,
    }
}

/// Whether the node has an agent, which it cannot change, or a server that may be here.
fn check_agent(request: &RegisterRequest, record: &NodeRecord) -> Result<(), Rejection> {
    let is_known = record.registered_unix.is_some();
    if is_known && record.unmanaged.is_some() != request.unmanaged.is_some() {
        let message = "a node is registered with an agent or without one: join anew with a fresh link to change that";
        return Err(Rejection::Invalid(message.to_owned()));
    }
    let server = request.unmanaged.as_ref();
    server.map_or(Ok(()), |server| {
        unmanaged::check(server, record).map_err(Rejection::Invalid)
    })
}

fn check_start(text: &str) -> Result<(), Rejection> {
    let is_hex = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
    if text.len() == START_DIGITS && text.bytes().all(is_hex) {
        return Ok(());
    }
    let message = format!("start has {START_DIGITS} hex digits");
    Err(Rejection::Invalid(message))
}

fn identity(text: &str) -> Result<[u8; IDENTITY_BYTES], Rejection> {
    STANDARD
        .decode(text)
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| Rejection::Invalid("identity is not the base64 of 32 bytes".to_owned()))
}

/// Names end up in logs, headers and terminals.
fn check_text(field: &str, text: &str, chars_max: usize) -> Result<(), Rejection> {
    let chars = text.chars().count();
    if chars == 0 || chars > chars_max || text.chars().any(char::is_control) {
        let message = format!("{field} has 1 to {chars_max} characters and no control characters");
        return Err(Rejection::Invalid(message));
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Rejection> {
    // serde's message names fields and positions, never values of ours.
    serde_json::from_slice(body)
        .map_err(|error| Rejection::Invalid(format!("the body is not what is expected: {error}")))
}

fn unix_seconds(now_ms: u64) -> i64 {
    i64::try_from(now_ms / 1_000).unwrap_or(i64::MAX)
}

fn reply_with(status: StatusCode, reply: &impl Serialize) -> NodeReply {
    let body = serde_json::to_vec(reply).unwrap_or_default();
    NodeReply {
        status,
        body: body.into(),
        refusal: None,
    }
}

fn reject(what: &'static str, rejection: &Rejection) -> NodeReply {
    tracing::info!(what, code = rejection.code(), "a node was refused");
    let body = ErrorBody::new(
        "invalid_request_error",
        rejection.code(),
        rejection.to_string(),
    );
    NodeReply {
        status: rejection.status(),
        body: body.to_bytes().into(),
        refusal: Some(rejection.code()),
    }
}
