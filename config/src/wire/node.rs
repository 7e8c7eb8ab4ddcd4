//! What a node and a proxy say to each other: enrolment and registration over HTTPS, reports through the tunnel. Types only.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;
use crate::tier::Tier;
use crate::wire::wake::WakeReport;

/// Version of these messages; a proxy refuses another one with `version_unsupported`.
pub const VERSION: u32 = 1;
/// The hub's address inside the tunnel.
pub const HUB_ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 0, 0, 0, 1);
/// The member of a node's request with the beginning of its answer: `{"tokens": [1, 2, 3]}`.
pub const RESUME: &str = "_resume";
/// The member of a node's request with the text that another model has said already: `{"text": "..."}`. Whoever gets it goes on from there.
pub const CONTINUE: &str = "_continue";
/// The links of a request's conversation, 16 hex digits each, oldest first, with commas between them; at most [`LINKS_MAX`].
pub const PREFIX: &str = "x-hearth-prefix";
/// Links in one request.
pub const LINKS_MAX: usize = 32;
/// Links in one tier's report.
pub const PREFIXES_MAX: usize = 256;
/// Path on the node under which the usage of a request that has ended is found by its completion id.
pub const REQUESTS_PATH: &str = "/requests/";
/// The port of the node's HTTP server inside the tunnel.
pub const NODE_PORT: u16 = 8080;
/// The port of the hub's report service inside the tunnel.
pub const REPORT_PORT: u16 = 9000;

/// Answer to `POST /v1/nodes/nonce`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NonceReply {
    /// To be signed within its life.
    pub nonce: String,
    /// Life in seconds.
    pub expires_secs: u64,
    /// The proxy's clock, Unix milliseconds.
    #[serde(default)]
    pub server_time_ms: u64,
}

/// `POST /v1/nodes/enroll`: a join token against a place in the house.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EnrollRequest {
    /// [`VERSION`].
    pub version: u32,
    /// `hearth_nj_…`.
    pub token: String,
    /// Base64 of the 32 bytes of the Ed25519 identity key.
    pub identity: String,
    /// What people call the machine: 1 to 64 characters.
    pub name: String,
    /// From [`NonceReply`].
    pub nonce: String,
    /// Base64 of the Ed25519 signature over [`enroll_message`].
    pub signature: String,
}

/// Answer to an accepted [`EnrollRequest`], status 201.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct EnrollReply {
    /// The node's name for ever.
    pub node_id: NodeId,
    /// False: an administrator must approve it first, `hearth-proxy node approve`.
    #[serde(default = "yes")]
    pub approved: bool,
}

const fn yes() -> bool {
    true
}

/// `POST /v1/nodes/register`: a fresh WireGuard key for a known identity.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// [`VERSION`].
    pub version: u32,
    /// From [`EnrollReply`].
    pub node_id: NodeId,
    /// Base64 of the node's present WireGuard public key.
    pub wireguard_key: String,
    /// Random, 32 hex digits, the same as long as the agent runs: another key of the same start goes on with the same streams.
    pub start: String,
    /// Base64 of an ML-KEM-768 encapsulation key of this registration alone (FIPS 203).
    pub kem_key: String,
    /// From [`NonceReply`].
    pub nonce: String,
    /// Base64 of the Ed25519 signature over [`register_message`].
    pub signature: String,
    /// For the list of nodes.
    pub agent_version: String,
    /// There is no agent: somebody else's server stands behind a stock WireGuard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmanaged: Option<Unmanaged>,
}

/// A node without an agent: any server that speaks `OpenAI`'s API, inside the tunnel by a stock WireGuard. The proxy looks at it by itself.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Unmanaged {
    /// The tier it serves.
    pub tier: Tier,
    /// The port on which it listens, on its address inside the tunnel.
    pub port: u16,
    /// Its name for the model; `None`: the first that it lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// Answer to an accepted [`RegisterRequest`]: all a node needs to dial in. Carries secrets: never log it.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
pub struct RegisterReply {
    /// The node's address inside the tunnel.
    pub address: Ipv6Addr,
    /// Which proxy this is, as in [`HubPlace::proxy`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub proxy: String,
    /// Whom to dial.
    pub hub: Hub,
    /// Base64 of the secret of this pair of WireGuard keys; with the shared secret of `kem_ciphertext` it makes the pre-shared key.
    pub preshared_key: String,
    /// Base64 of the ML-KEM-768 ciphertext for the request's `kem_key`.
    pub kem_ciphertext: String,
    /// Bearer token for both directions inside the tunnel.
    pub agent_token: String,
    /// Port of the report service on the hub.
    pub report_port: u16,
    /// Time between reports.
    pub heartbeat_secs: u64,
    /// The proxy's clock, Unix milliseconds.
    pub server_time_ms: u64,
    /// All proxies of the house that live now, this one included if it knows its own address: the node registers at each.
    #[serde(default)]
    pub hubs: Vec<HubPlace>,
}

/// Where a proxy of the house takes registrations.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct HubPlace {
    /// `https://host[:port]`.
    pub url: String,
    /// Which proxy it is, whatever it is called: drawn anew with every start. Empty: it does not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub proxy: String,
    /// `sha256-...` of its key, if its certificate is self-signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<String>,
}

/// The proxy's end of the tunnel.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Hub {
    /// Base64 of the WireGuard public key.
    pub public_key: String,
    /// `host:port`, or `:port` on the host that the node dialled.
    pub endpoint: String,
    /// Address inside the tunnel.
    pub address: Ipv6Addr,
}

/// The bytes that an enrolling node signs.
pub fn enroll_message(token_id: &str, identity: &str, nonce: &str) -> Vec<u8> {
    ["hearth-enroll-v1", token_id, identity, nonce]
        .join("\0")
        .into_bytes()
}

/// The bytes that a registering node signs.
pub fn register_message(request: &RegisterRequest) -> Vec<u8> {
    let mut words = vec![
        "hearth-register-v1".to_owned(),
        request.node_id.to_string(),
        request.wireguard_key.clone(),
        request.start.clone(),
        request.kem_key.clone(),
        request.nonce.clone(),
    ];
    if let Some(server) = &request.unmanaged {
        let model = server.model.as_deref().unwrap_or_default();
        words.push(format!("unmanaged {} {} {model}", server.tier, server.port));
    }
    words.join("\0").into_bytes()
}

/// `GET /v1/nodes/carrier`: an upgrade to WebSocket, whose binary messages are datagrams of the tunnel. For nodes whose network lets no UDP
/// through; they show a [`CarrierProof`] as `Authorization`.
pub const CARRIER_PATH: &str = "/v1/nodes/carrier";

/// The scheme of a [`CarrierProof`] in `Authorization`.
const CARRIER_SCHEME: &str = "Hearth-Node";

/// Proof that a carrier is opened by a node: nothing in it is of use after a minute.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CarrierProof {
    /// Which node.
    pub node_id: NodeId,
    /// From [`NonceReply`].
    pub nonce: String,
    /// Base64 of the Ed25519 signature over [`carrier_message`].
    pub signature: String,
}

impl CarrierProof {
    /// The value of `Authorization`.
    pub fn to_header(&self) -> String {
        format!(
            "{CARRIER_SCHEME} {},{},{}",
            self.node_id.as_str(),
            self.nonce,
            self.signature
        )
    }

    /// Reads the value of `Authorization`.
    pub fn parse(value: &str) -> Option<Self> {
        let (scheme, proof) = value.split_once(' ')?;
        let mut parts = proof.split(',');
        let (node_id, nonce, signature) = (parts.next()?, parts.next()?, parts.next()?);
        let is_whole = scheme.eq_ignore_ascii_case(CARRIER_SCHEME) && parts.next().is_none();
        (is_whole && !node_id.is_empty()).then(|| Self {
            node_id: NodeId::new(node_id),
            nonce: nonce.to_owned(),
            signature: signature.to_owned(),
        })
    }
}

/// The bytes that a node signs which opens a carrier.
pub fn carrier_message(node_id: &NodeId, nonce: &str) -> Vec<u8> {
    ["hearth-carrier-v1", node_id.as_str(), nonce]
        .join("\0")
        .into_bytes()
}

/// `POST /v1/report` inside the tunnel, every few seconds and on every change.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// Who reports; must agree with the tunnel's address.
    pub node_id: NodeId,
    /// Counts up within one start of the node; an older one is dropped.
    pub seq: u64,
    /// The node takes no new work.
    pub draining: bool,
    /// The machine's memory.
    pub memory: Memory,
    /// One entry a configured tier.
    pub tiers: Vec<TierReport>,
    /// How it is woken when it sleeps, and whether it wakes others; a node whose settings say nothing of it reports nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake: Option<WakeReport>,
    /// Who does TCP at its end of the tunnel; a node that is older does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back_end: Option<BackEnd>,
}

/// Who does TCP at one end of the tunnel.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackEnd {
    /// The kernel, in a network namespace of the program's own.
    Netns,
    /// The program itself.
    Embedded,
    /// Something that this program is too old to know.
    #[serde(other)]
    Other,
}

impl BackEnd {
    /// Its name in the settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Netns => "netns",
            Self::Embedded => "embedded",
            Self::Other => "other",
        }
    }

    /// What it is, in words for people.
    pub const fn explained(self) -> &'static str {
        match self {
            Self::Netns => "netns (TCP by the kernel)",
            Self::Embedded => "embedded (TCP and QUIC in the program)",
            Self::Other => "other (this program is older than that end)",
        }
    }
}

/// Memory of the machine, in bytes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Memory {
    /// Installed.
    pub total_bytes: u64,
    /// Free or reclaimable now.
    pub available_bytes: u64,
}

/// One tier of a node, now.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TierReport {
    /// Which.
    pub tier: Tier,
    /// Whether it can answer.
    pub state: TierState,
    /// Why not, if it cannot.
    pub reason: Option<String>,
    /// What it serves, or will serve once it is loaded.
    pub model: Option<ModelReport>,
    /// Sequences it decodes at once.
    pub slots: u32,
    /// Of these, in use.
    pub slots_busy: u32,
    /// Jobs waiting for a slot.
    pub queue_depth: u32,
    /// Jobs that may wait.
    pub queue_max: u32,
    /// Decoding speed lately, all slots together; 0 when unknown.
    pub tokens_per_second: f64,
    /// Prompt processing speed lately; 0 when unknown.
    pub prompt_tokens_per_second: f64,
    /// Prompts of this tier leave the house: another server answers, and it is not at home.
    #[serde(default)]
    pub elsewhere: bool,
    /// How long a tier takes until it answers that sleeps or is being loaded, milliseconds; 0 when nobody knows.
    #[serde(default)]
    pub wakes_in_ms: u64,
    /// Links of the conversations that lie in its caches, 16 hex digits each, newest last; at most [`PREFIXES_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<String>,
}

/// Whether a tier can answer.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TierState {
    /// The worker is starting.
    Loading,
    /// Answers.
    Ready,
    /// Its model is not in memory; the first request loads it and waits.
    Sleeping,
    /// Crashed or refused; the agent tries again.
    Down,
}

impl TierState {
    /// Whether a request gets an answer, at once or after the model is loaded.
    pub const fn answers(self) -> bool {
        matches!(self, Self::Ready | Self::Sleeping)
    }

    /// The word in reports, logs and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Sleeping => "sleeping",
            Self::Down => "down",
        }
    }
}

/// The model behind a tier.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ModelReport {
    /// The id clients use, e.g. `tiny-fast`.
    pub id: String,
    /// Other names that clients may use for it, e.g. `gemma4:e2b`; a node that is older than they are reports none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// SHA-256 of the file, hex; empty while it is being computed.
    pub file_sha256: String,
    /// Size of the file.
    pub size_bytes: u64,
    /// Tokens a request may use, prompt and answer together.
    pub n_ctx: u32,
    /// Tokens the model was trained for.
    pub n_ctx_train: u32,
    /// Weights.
    pub parameters: u64,
    /// As `Q8_0`.
    pub quantization: String,
    /// As `llama`.
    pub architecture: String,
    /// Input kinds besides text: `image`, `audio`.
    pub modalities: Vec<String>,
}

/// Answer to a [`Report`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ReportReply {
    /// The proxy's clock, Unix milliseconds.
    pub server_time_ms: u64,
    /// The proxy is going away: finish nothing new through it.
    pub draining: bool,
    /// Somebody said that this node gets no new work, until it is said otherwise.
    #[serde(default)]
    pub drain: bool,
    /// All proxies of the house that live now, as in [`RegisterReply`].
    #[serde(default)]
    pub hubs: Vec<HubPlace>,
}
