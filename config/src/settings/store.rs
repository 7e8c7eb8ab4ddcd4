//! Where counters, keys and nodes live, as read from `[store]`. Connects to nothing.

use std::path::PathBuf;
use std::time::Duration;

use crate::secret::Secret;

/// Where counters, keys and nodes live.
#[derive(Clone, Debug)]
pub enum Store {
    /// redb in the state directory.
    Embedded,
    /// Redis, shared by many proxies.
    Redis(Box<Redis>),
}

/// One Redis deployment, and what happens while it is away.
#[derive(Clone, Debug)]
pub struct Redis {
    /// Where it is.
    pub servers: Servers,
    /// How to log in to its data servers; wins over what a URL says.
    pub login: Login,
    /// How its certificates are checked.
    pub tls: RedisTls,
    /// Prefix of every key. Default `hearth`.
    pub prefix: String,
    /// Longest wait for one answer. Default 50 ms.
    pub timeout: Duration,
    /// Calls in a row without an answer in time after which no request waits for Redis any more until a probe is answered.
    /// Default 3.
    pub breaker_failures: u32,
    /// Replicas that must hold a reservation before it counts. Default 0; not on a cluster.
    pub wait_replicas: u32,
    /// What admission does while Redis is away. Default `lease`.
    pub on_failure: OnFailure,
    /// The share of every limit that this proxy may admit on its own, per cent. Default 2.
    pub lease_percent: u32,
    /// Limits of subjects with such a share at most. Default 100,000.
    pub leases_max: usize,
    /// 32 bytes in hex under which secrets and records lie in Redis; `None`: a key of this proxy alone, made in the state
    /// directory.
    pub secret_key_file: Option<PathBuf>,
}

/// Where Redis is.
#[derive(Clone, Debug)]
pub enum Servers {
    /// One server: `redis://` or `rediss://`.
    One(Secret<String>),
    /// Sentinels that know the primary.
    Sentinels {
        /// `host:port`.
        addresses: Vec<String>,
        /// The name of the primary.
        master: String,
        /// How to log in to the sentinels.
        login: Login,
    },
    /// Some nodes of a cluster, `host:port`; the others are learned from them.
    Cluster(Vec<String>),
}

/// An ACL user.
#[derive(Clone, Debug, Default)]
pub struct Login {
    /// `None`: `default`.
    pub username: Option<String>,
    /// `None`: no login.
    pub password: Option<Secret<String>>,
}

/// TLS to Redis.
#[derive(Clone, Debug, Default)]
pub struct RedisTls {
    /// For sentinels and clusters; a URL says it with `rediss://`.
    pub on: bool,
    /// PEM of the authorities that are believed; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM of our own certificate and key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// What admission does while the store is away.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OnFailure {
    /// 503.
    Closed,
    /// Admission goes on and counts in this proxy alone, so each proxy allows the whole limit; a metric counts how often.
    /// Nothing else opens: an API key unknown to this proxy still cannot be checked.
    Open,
    /// Subjects that were here lately may spend a small share of their limits, journalled and charged later; others get 503.
    /// The default. A metric says how much all shares of this proxy are.
    Lease,
}
