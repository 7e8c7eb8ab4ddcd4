//! Tiers that servers outside the tunnel run, or inside it without an agent: whatever speaks `OpenAI`'s API. Each stands in the registry like a node: what it can
//! do is reported by our own look at it, so that breaker, fallback, limits, metrics and the model list know no difference. Its key goes to
//! its own origin and nowhere else; no redirect is followed, and nothing that it says about itself reaches a client.

mod answer;
mod dial;
mod health;
mod hook;
mod lease;
mod question;
mod starter;
pub mod wakers;

use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use config::ids::NodeId;
use config::secret::Secret;
use config::settings::proxy::{Fields, MaxTokensField, Remote as Settings};
use config::settings::remote::RemoteUrl;
use config::wire::node::{Memory, ModelReport, Report, TierReport, TierState, Unmanaged, VERSION};
use http::{HeaderValue, Request};
use http_body_util::Full;
use policy::route::Step;
use tokio_rustls::TlsConnector;

use crate::gateway::dispatch::Job;
use crate::nodes::members::{Member, Place};
use crate::nodes::upstream::Answer;
use crate::store::{NodeRecord, Store};

pub use answer::Shape;
pub use dial::Roads;
pub use health::{Rooms, watch};
pub use starter::Starter;

/// Tokens of one request at a server that does not tell.
const N_CTX_UNKNOWN: u32 = 8_192;
/// Addresses that no tunnel has: discard-only (RFC 6666).
const ADDRESSES: Ipv6Addr = Ipv6Addr::new(0x0100, 0, 0, 0, 0, 0, 0, 0);

/// Why a server outside the tunnel cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The key holds something that no header may.
    #[error(
        "[[remote]] {0}: the key has characters that no header may have: check key or key_file"
    )]
    Key(String),
    /// The certificates cannot be read.
    #[error("[[remote]] {name}: {path}: {reason}")]
    Authorities {
        /// Which server.
        name: String,
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

/// A server of somebody else: outside the tunnel, or inside it without an agent.
pub struct Remote {
    id: NodeId,
    settings: Settings,
    address: Ipv6Addr,
    /// Base64 of its key, if it is in the tunnel.
    wireguard_key: Option<String>,
    authorization: Option<HeaderValue>,
    tls: Option<TlsConnector>,
    found: Mutex<Option<Found>>,
    starter: Option<Arc<Starter>>,
}

/// What the last look at it showed.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Found {
    /// Its own name for the model.
    model: String,
    n_ctx: Option<u32>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote")
            .field("name", &self.settings.name)
            .finish_non_exhaustive()
    }
}

impl Remote {
    /// All servers of the settings, each with an address of its own for the pool of connections.
    pub fn all(settings: &[Settings]) -> Result<Vec<Arc<Self>>, RemoteError> {
        let each = settings.iter().zip(1_u32..);
        each.map(|(settings, index)| Self::new(settings.clone(), index).map(Arc::new))
            .collect()
    }

    fn new(settings: Settings, index: u32) -> Result<Self, RemoteError> {
        let authorization = settings.key.as_ref().map(bearer).transpose();
        let authorization = authorization.map_err(|()| RemoteError::Key(settings.name.clone()))?;
        let starter = settings
            .burst
            .as_ref()
            .map(|burst| Arc::new(Starter::new(&settings.name, burst.clone())));
        Ok(Self {
            id: NodeId::new(settings.name.clone()),
            tls: dial::tls(&settings)?,
            address: Ipv6Addr::from_bits(ADDRESSES.to_bits() | u128::from(index)),
            wireguard_key: None,
            authorization,
            settings,
            found: Mutex::new(None),
            starter,
        })
    }

    /// A server behind a stock WireGuard peer.
    pub fn in_tunnel(record: &NodeRecord, server: &Unmanaged, address: Ipv6Addr) -> Self {
        Self {
            id: record.id.clone(),
            settings: in_tunnel_settings(&record.name, server),
            address,
            wireguard_key: record.wireguard_key.clone(),
            authorization: None,
            tls: None,
            found: Mutex::new(None),
            starter: None,
        }
    }

    /// Whether it is reached through the tunnel.
    pub const fn is_in_tunnel(&self) -> bool {
        self.wireguard_key.is_some()
    }

    /// What people call it; of a server of the settings also its id among the nodes.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Its id among the nodes.
    pub fn id(&self) -> NodeId {
        self.id.clone()
    }

    /// Whether prompts that go there stay at home.
    pub const fn is_local(&self) -> bool {
        self.settings.local
    }

    /// How long connecting to it may take.
    pub const fn connect_timeout(&self) -> Duration {
        self.settings.connect_timeout
    }

    /// What starts and stops it, if it sleeps until it is wanted.
    pub const fn starter(&self) -> Option<&Arc<Starter>> {
        self.starter.as_ref()
    }

    /// Its place in the table of nodes.
    pub fn member(self: &Arc<Self>) -> Member {
        Member {
            id: self.id(),
            name: self.settings.name.clone(),
            address: self.address,
            tiers: Some(vec![self.settings.tier]),
            wireguard_key: self.wireguard_key.clone().unwrap_or_default(),
            agent_token: Secret::new(String::new()),
            place: Place::Outside(Arc::clone(self)),
            draining: std::sync::atomic::AtomicBool::new(false),
        }
    }

    /// The request in its words; `None`: it has no such operation.
    pub fn question(&self, job: &Job) -> Option<Request<Full<Bytes>>> {
        question::question(self, job)
    }

    /// Its answer in our words.
    pub fn answered(&self, answer: Answer, (job, step): (&Job, &Step)) -> Answer {
        if let Some(starter) = &self.starter {
            starter.used();
        }
        answer::ours(answer, (self.name(), job, step))
    }

    /// The model's name there.
    fn model(&self) -> String {
        let named = self.settings.model.clone();
        let found = || self.found().map(|found| found.model);
        named.or_else(found).unwrap_or_default()
    }

    /// The model's name for our clients.
    fn model_id(&self) -> String {
        let named = self.settings.model_id.clone();
        named.unwrap_or_else(|| self.model())
    }

    fn found(&self) -> Option<Found> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.clone()
    }

    fn see(&self, found: Found) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
    }

    /// A report as a node would make it.
    fn report(&self, (state, reason): (TierState, Option<String>), seq: u64) -> Report {
        let is_known = self.settings.model.is_some()
            || self.settings.model_id.is_some()
            || self.found().is_some();
        let wakes_in = self.starter.as_ref().map(|starter| starter.wait());
        let wakes_in = wakes_in.filter(|_| state == TierState::Sleeping);
        Report {
            version: VERSION,
            node_id: self.id(),
            seq,
            draining: false,
            memory: Memory::default(),
            tiers: vec![TierReport {
                tier: self.settings.tier,
                state,
                reason,
                model: (is_known && state.answers()).then(|| self.model_report()),
                slots: self.settings.slots,
                slots_busy: 0,
                queue_depth: 0,
                queue_max: self.settings.queue_max,
                tokens_per_second: 0.0,
                prompt_tokens_per_second: 0.0,
                elsewhere: !self.settings.local,
                prefixes: Vec::new(),
                wakes_in_ms: wakes_in.map_or(0, |wait| {
                    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1)
                }),
            }],
            wake: None,
            back_end: None,
        }
    }

    /// Tokens of one request there, prompt and answer together.
    fn n_ctx(&self) -> u32 {
        let told = self.found().and_then(|found| found.n_ctx);
        self.settings.context.or(told).unwrap_or(N_CTX_UNKNOWN)
    }

    fn model_report(&self) -> ModelReport {
        let told = self.found().and_then(|found| found.n_ctx);
        let n_ctx = self.n_ctx();
        ModelReport {
            id: self.model_id(),
            aliases: Vec::new(),
            // Nobody knows its file, so nobody goes on with its answers token for token.
            file_sha256: String::new(),
            size_bytes: 0,
            n_ctx,
            n_ctx_train: told.unwrap_or(n_ctx),
            parameters: 0,
            quantization: String::new(),
            architecture: String::new(),
            modalities: self.settings.modalities.clone(),
        }
    }
}

/// Says which servers somebody started that these settings do not name: they cost money, and this proxy cannot stop them.
pub async fn tell_strays(store: Arc<dyn Store>, remotes: Vec<Arc<Remote>>) {
    let bursts = match store.bursts().await {
        Ok(bursts) => bursts,
        Err(error) => return tracing::debug!(%error, "nobody knows which servers run"),
    };
    let can_stop = |name: &str| {
        let mut named = remotes.iter().filter(|remote| remote.name() == name);
        named.any(|remote| {
            let starter = remote.starter();
            starter.is_some_and(|starter| starter.burst().stop.is_some())
        })
    };
    for burst in bursts.iter().filter(|burst| !can_stop(&burst.name)) {
        tracing::error!(
            remote = burst.name,
            "a server was started, and is not known to be stopped, that no [[remote]] of these settings can stop: unless another proxy does, it costs money until you stop it"
        );
    }
}

/// As a server of the settings would have them that says nothing more.
fn in_tunnel_settings(name: &str, server: &Unmanaged) -> Settings {
    Settings {
        name: name.to_owned(),
        tier: server.tier,
        url: RemoteUrl {
            tls: false,
            // It is dialled by its address in the tunnel; servers at home refuse other names, as a guard against pages of other sites.
            host: "localhost".to_owned(),
            port: server.port,
            path: "/v1".to_owned(),
        },
        plain_http: false,
        key: None,
        model: server.model.clone(),
        model_id: None,
        context: None,
        slots: 4,
        queue_max: 16,
        modalities: Vec::new(),
        local: true,
        fields: Fields::default(),
        max_tokens_field: MaxTokensField::default(),
        ca_file: None,
        connect_timeout: Duration::from_secs(5),
        health_every: Duration::from_secs(5),
        health_timeout: Duration::from_secs(5),
        price: None,
        burst: None,
    }
}

fn bearer(key: &Secret<String>) -> Result<HeaderValue, ()> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose())).map_err(|_| ())?;
    value.set_sensitive(true);
    Ok(value)
}
