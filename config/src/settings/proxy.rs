//! Settings of hearth-proxy, resolved: every string has become a type and every cross-field rule holds.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use super::classifier::Classifier;
pub use super::plan::{Plan, Price, Prices, WhenUsedUp, Zone};
pub use super::remote::{Burst, Fields, Hook, Hours, MaxTokensField, Remote, RemoteUrl};
pub use super::store::{Login, OnFailure, Redis, RedisTls, Servers, Store};
use crate::ids::Tenant;
use crate::tier::Tier;
pub use crate::units::Cidr;
use crate::wire::wishes::Priority;

/// The whole file. Each room receives only its section.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `[server]`
    pub server: Server,
    /// `[tls]`
    pub tls: Tls,
    /// `[tunnel]`
    pub tunnel: Tunnel,
    /// `[auth]`
    pub auth: Auth,
    /// `[limits]`
    pub limits: Limits,
    /// `[prices]`
    pub prices: Prices,
    /// `[usage]`
    pub usage: Usage,
    /// `[store]`
    pub store: Store,
    /// `[routing]`
    pub routing: Routing,
    /// `[[remote]]`, each name once.
    pub remotes: Vec<Remote>,
    /// `[log]`
    pub log: Log,
}

/// Where the proxy listens and how long it waits.
#[derive(Clone, Debug)]
pub struct Server {
    /// Public HTTPS listeners. Default `0.0.0.0:8443`.
    pub listen: Vec<SocketAddr>,
    /// Metrics without a credential; loopback only. Default `127.0.0.1:9464`; `None` = off.
    pub admin_listen: Option<SocketAddr>,
    /// Keys, the embedded store, the admin socket. Default `/var/lib/hearth-proxy`.
    pub state_dir: PathBuf,
    /// How people reach this proxy, without a trailing slash: `https://llm.example.org`. Default: from the first listener.
    pub public_url: String,
    /// Origins allowed by CORS besides our own.
    pub cors_origins: Vec<String>,
    /// CIDRs whose `X-Forwarded-For`/`Forwarded` is believed.
    pub trusted_proxies: Vec<Cidr>,
    /// CIDRs whose connections begin with a PROXY protocol header (v1 or v2); nobody else's may.
    pub proxy_protocol: Vec<Cidr>,
    /// SIGTERM: running streams have this long to finish. Default 30 s.
    pub grace: Duration,
    /// A request head must be complete within this. Default 10 s.
    pub head_timeout: Duration,
    /// A request body must be complete within this. Default 30 s.
    pub body_timeout: Duration,
    /// An idle kept-alive connection is closed after this. Default 60 s.
    pub keepalive_timeout: Duration,
    /// A client that takes no bytes for this long is cut. Default 30 s.
    pub write_timeout: Duration,
    /// The whole of one request. Default 600 s.
    pub request_timeout: Duration,
    /// JSON body, bytes. Default 4 MiB; media requests (base64 parts) `media_body_max`.
    pub body_max: u64,
    /// Body of a request with media parts, bytes. Default 32 MiB.
    pub media_body_max: u64,
    /// Open connections in all. Default 10,000.
    pub connections_max: usize,
    /// Open connections of one address (IPv6: one /64). Default 256.
    pub connections_per_ip_max: usize,
    /// Worker threads of the HTTP service. Default: number of cores.
    pub threads: usize,
}

/// Where the certificate comes from.
#[derive(Clone, Debug)]
pub enum Tls {
    /// PEM files, watched and swapped while running.
    Files {
        /// Chain, leaf first.
        cert_file: PathBuf,
        /// Private key.
        key_file: PathBuf,
    },
    /// Made once and kept in the state directory; nodes pin it.
    SelfSigned {
        /// Names and addresses in the certificate.
        names: Vec<String>,
    },
}

/// The hub.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// UDP listener. Default `0.0.0.0:51820`.
    pub listen: SocketAddr,
    /// `host:port` that nodes dial; `None`: the host they used for HTTPS with our UDP port.
    pub endpoint: Option<String>,
    /// Time between reports. Default 5 s.
    pub heartbeat: Duration,
    /// A node silent for this long leaves routing. Default 15 s.
    pub silent_after: Duration,
    /// Nodes at most. Default 1,000.
    pub nodes_max: usize,
    /// Who does TCP inside the tunnel. Default auto.
    pub backend: Backend,
    /// Which nodes come in by their join token alone. Default auto.
    pub approve: Approve,
    /// A node that nobody has seen for so many days must be approved again. Default 90.
    pub unseen_days: u32,
    /// Nodes whose network lets no UDP through may bring their datagrams over HTTPS. Default true.
    pub carrier: bool,
    /// Largest packet inside the tunnel, in bytes; what the path to each node carries is measured up to it. Default 1440, 1200 to 1500.
    pub mtu_max: usize,
}

/// Who does TCP inside the tunnel.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Backend {
    /// The kernel where this host lets us, otherwise we.
    #[default]
    Auto,
    /// The kernel, in a network namespace of our own.
    Netns,
    /// We.
    Embedded,
}

/// Which nodes come in by their join token alone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Approve {
    /// Those of links for one machine; of links for several, and of links made with `--approve`, an administrator approves each.
    Auto,
    /// None: an administrator approves each.
    Manual,
}

/// Who may enter.
#[derive(Clone, Debug)]
pub struct Auth {
    /// `api-key` is read as a credential too, as Azure's clients send it. Default false.
    pub azure_header: bool,
    /// How long keys and accounts that were looked up are believed while the store is away. Default 30 s, 0 to 1 h.
    pub stale: Duration,
    /// JWT issuers.
    pub issuers: Vec<Issuer>,
}

/// One issuer of JWTs.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// `iss`, byte for byte.
    pub issuer: String,
    /// Other spellings of `iss` that the provider uses.
    pub aliases: Vec<String>,
    /// Whose house the people of this issuer belong to. Default `home`.
    pub tenant: Tenant,
    /// Accepted `aud`; a token must carry one of them.
    pub audiences: Vec<String>,
    /// Algorithms allowed: `RS256`, `ES256`, `EdDSA`, ...
    pub algorithms: Vec<String>,
    /// Where the keys are.
    pub keys: IssuerKeys,
    /// Claim that names the user. Default `sub`. This and the claims below: a member's name, or a path with dots.
    pub user_claim: String,
    /// Claim that lists the user's groups, as an array or one text.
    pub groups_claim: Option<String>,
    /// Claim that names the user's plan of `[limits.plans]`.
    pub plan_claim: Option<String>,
    /// Claim that makes an administrator.
    pub admin_claim: Option<String>,
    /// Values of `admin_claim` that do; empty: `true` alone.
    pub admin_values: Vec<String>,
    /// Claims that must have one of the values.
    pub require: Vec<(String, Vec<String>)>,
    /// The Firebase rules on top (string `aud`, `auth_time`, sub of at most 128 characters).
    pub firebase: bool,
    /// Clock skew allowed. Default 30 s, at most 60 s.
    pub leeway: Duration,
    /// Only verified e-mail addresses.
    pub email_verified: bool,
    /// Only these e-mail addresses or `@domains`; empty = all.
    pub allow: Vec<String>,
    /// Oldest accepted `iat` etc. need no setting; tokens longer than 8 KiB are refused.
    pub plan: Option<String>,
}

/// Where an issuer's keys come from.
#[derive(Clone, Debug)]
pub enum IssuerKeys {
    /// `<issuer>/.well-known/openid-configuration`, then its `jwks_uri`.
    Discovery,
    /// A JWK set by URL; https, or http on loopback.
    Url(String),
    /// A JWK set in a file, read again when it changes.
    File(PathBuf),
}

/// How much.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Requests of any kind per address and minute before any crypto. Default 600, burst 120.
    pub guard_per_minute: u32,
    /// Burst of the guard.
    pub guard_burst: u32,
    /// Per address, per minute.
    pub per_ip: PerMinute,
    /// Per user, per minute.
    pub per_user: PerMinute,
    /// Per user and day: text requests. Default 100.
    pub text_per_day: u32,
    /// Per user and day: media requests. Default 20.
    pub media_per_day: u32,
    /// Open requests of one user. Default 16.
    pub concurrent_per_user: u32,
    /// Tokens generated when the request sets no maximum. Default 2,048.
    pub max_tokens_default: u32,
    /// Addresses and users kept in memory at most. Default 100,000.
    pub table_max: usize,
    /// Bytes of media that one user may store. Default 500 MB.
    pub stored_bytes: u64,
    /// A proxy that died gives back what its requests had reserved after this. Default 60 s.
    pub lease: Duration,
    /// Where days and months begin, unless a plan says otherwise. Default UTC.
    pub time_zone: Zone,
    /// Figures of everybody, below those of their plan.
    pub everyone: Plan,
    /// Budgets of all people together.
    pub service: Option<Plan>,
    /// Named plans that override the figures for keys, people and issuers.
    pub plans: BTreeMap<String, Plan>,
    /// Budgets of all members of a group together, by the group's name.
    pub groups: BTreeMap<String, Plan>,
    /// Budgets of all people of a tenant together, by the tenant's name.
    pub tenants: BTreeMap<String, Plan>,
}

/// Short windows, requests a minute.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PerMinute {
    /// Default 30.
    pub text: u32,
    /// Default 10.
    pub media: u32,
    /// Health and lists. Default 120.
    pub health: u32,
}

/// How long the books are kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Usage {
    /// Sums of days and months. Default 400 days.
    pub retention: Duration,
    /// Requests one by one. Default 90 days.
    pub records_retention: Duration,
}

/// Where to.
#[derive(Clone, Debug)]
pub struct Routing {
    /// `model` names that mean "let the classifier decide". Default `auto`.
    pub auto_models: Vec<String>,
    /// Classifier score from which a request is heavy. Default 0.66.
    pub heavy_from: f64,
    /// Classifier score up to which a request is fast. Default 0.33.
    pub fast_to: f64,
    /// Failures within `breaker_window` that open a breaker. Default 3.
    pub breaker_failures: u32,
    /// Default 30 s.
    pub breaker_window: Duration,
    /// Default 30 s.
    pub breaker_open: Duration,
    /// A half-open probe is lost after this. Default 60 s.
    pub breaker_probe: Duration,
    /// Connecting to a node. Default 3 s.
    pub connect_timeout: Duration,
    /// Head of the node's answer. Default 120 s.
    pub first_byte_timeout: Duration,
    /// Silence within a stream. Default 60 s.
    pub idle_timeout: Duration,
    /// Silence of a node with requests under way after which it is asked for a sign of life inside the tunnel; zero: never.
    /// Default 250 ms.
    pub silence: Duration,
    /// So long a sign of life is waited for before the node counts as gone; where the way is far, half of it and three round trips.
    /// Default 500 ms.
    pub silence_patience: Duration,
    /// Silence within a stream after which its node is asked whether it still serves, and after which another goes on if there is
    /// one and this one writes twenty times as slowly as before; zero: never. Default 2 s.
    pub stall_after: Duration,
    /// So long somebody is looked for who goes on with an answer that broke off; zero: nobody is. Default 10 s.
    pub migration_patience: Duration,
    /// A status line may wait this long for the first token before comments start. Default 3 s.
    pub commit_after: Duration,
    /// Time between SSE comments. Default 15 s.
    pub keepalive: Duration,
    /// Fallback to a smaller tier. Default true.
    pub fallback: bool,
    /// Idle connections kept per node. Default 128.
    pub pool_max: usize,
    /// Requests that wait for each tier while all of its nodes are full. Default 64; 0: none.
    pub queue_max: usize,
    /// So long each of them waits at most; zero: none waits. Default 60 s.
    pub queue_wait: Duration,
    /// How long a request waits for a tier that sleeps while another one is warm.
    pub wake: WakePatience,
    /// Asking a second backend when the first is slower than usual.
    pub hedge: Hedge,
    /// `[routing.classifier]`
    pub classifier: Classifier,
}

/// `[routing.hedge]`: when a backend is slower to its first token than 95 of 100 times before, another one is asked too; the first with
/// content answers, the other is cancelled.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hedge {
    /// Default false: it costs work.
    pub enabled: bool,
    /// Of a hundred requests of the last minute, so many are asked twice at most. Default 5.
    pub budget_percent: u32,
    /// So often a backend must have answered before it is known what is slow for it. Default 50.
    pub min_samples: u32,
    /// Default: fast alone.
    pub tiers: Vec<Tier>,
    /// Longer prompts are never asked twice. Default 2048.
    pub prompt_tokens_max: u32,
}

impl Default for Hedge {
    fn default() -> Self {
        Self {
            enabled: false,
            budget_percent: 5,
            min_samples: 50,
            tiers: vec![Tier::Fast],
            prompt_tokens_max: 2_048,
        }
    }
}

/// How long a request of each class waits for a machine or a tier to wake up before it goes to a warm one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WakePatience {
    /// Somebody looks at the screen. Default 10 s.
    pub interactive: Duration,
    /// Default 60 s.
    pub normal: Duration,
    /// Default 600 s.
    pub batch: Duration,
}

impl Default for WakePatience {
    fn default() -> Self {
        Self {
            interactive: Duration::from_secs(10),
            normal: Duration::from_mins(1),
            batch: Duration::from_mins(10),
        }
    }
}

impl WakePatience {
    /// Of this class.
    pub const fn of(&self, priority: Priority) -> Duration {
        match priority {
            Priority::Interactive => self.interactive,
            Priority::Normal => self.normal,
            Priority::Batch => self.batch,
        }
    }
}

/// How logs look.
#[derive(Clone, Debug)]
pub struct Log {
    /// `RUST_LOG` syntax. Default `info`.
    pub filter: String,
    /// JSON lines, or text on a terminal.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// JSON lines.
    Json,
    /// Text.
    Text,
}

/// The tier that a model name stands for, if it names one.
pub fn tier_of_model(model: &str) -> Option<Tier> {
    model.parse().ok()
}
