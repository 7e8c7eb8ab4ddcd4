//! Every metric of the proxy, declared here and nowhere else. Label values come from closed sets of words, so a stranger
//! cannot make new series; never a user, a key or an address.

mod labels;
mod tunnel;
mod wakes;

use std::fmt;
use std::fmt::Display;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use config::tier::Tier;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use labels::{
    AttemptLabels, BuildLabels, FallbackLabels, PolicyLabel, ReasonLabel, RequestLabels, TierLabel,
    TokenLabels, UnitLabel, WarmLabels,
};
use tunnel::TunnelSeries;
use wakes::WakeSeries;

pub use tunnel::NodeFacts;

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds; those of the OpenTelemetry conventions for generative AI (contract A4.1).
const DURATION_BUCKETS: [f64; 14] = [
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];
const FIRST_TOKEN_BUCKETS: [f64; 16] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
const TOKEN_TIME_BUCKETS: [f64; 13] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
];
/// The tier label of requests that never reached a tier.
const NO_TIER: &str = "none";

type Histograms = Family<TierLabel, Histogram, fn() -> Histogram>;
type Seconds = Gauge<f64, AtomicU64>;

/// All metrics. Cheap to update from any thread.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    tokens: Family<TokenLabels, Counter>,
    in_flight: Gauge,
    connections: Gauge,
    queue_depth: Family<TierLabel, Gauge>,
    queue_wait: Histogram,
    request_duration: Histograms,
    answer_duration: Histograms,
    first_token: Histograms,
    token_time: Histograms,
    attempts: Family<AttemptLabels, Counter>,
    route_warm: Family<WarmLabels, Counter>,
    fallbacks: Family<FallbackLabels, Counter>,
    migrations: Family<TierLabel, Counter>,
    hedges: Family<AttemptLabels, Counter>,
    wakes: WakeSeries,
    nodes_lost: Counter,
    limit_rejections: Family<PolicyLabel, Counter>,
    auth_failures: Family<ReasonLabel, Counter>,
    unknown_fields: Counter,
    jwks_fetches: Family<ReasonLabel, Counter>,
    breaker_state: Family<TierLabel, Gauge>,
    store_errors: Family<ReasonLabel, Counter>,
    store_open_admissions: Counter,
    store_lease_units: Family<UnitLabel, Gauge<i64, AtomicI64>>,
    store_bills: Gauge<i64, AtomicI64>,
    certificate_expiry: Gauge<i64, AtomicI64>,
    nodes_ready: Gauge,
    tunnel: TunnelSeries,
    refresh: Refresh,
}

/// Sets the gauges that nobody sets on the way.
#[derive(Default)]
struct Refresh(OnceLock<Refresher>);

type Refresher = Box<dyn Fn(&Metrics) + Send + Sync>;

impl fmt::Debug for Refresh {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Refresh")
    }
}

/// The breaker of a tier, as the metric shows it: 0, 1 and 2.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BreakerGauge {
    /// Healthy.
    Closed,
    /// Tripped.
    Open,
    /// One probe is on its way.
    HalfOpen,
}

impl Metrics {
    /// Registers everything: ours under `hearth_`, the rest under the names of the `OpenTelemetry` conventions.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            tokens: Family::default(),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
            queue_depth: Family::default(),
            queue_wait: durations(),
            request_duration: Histograms::new_with_constructor(durations),
            answer_duration: Histograms::new_with_constructor(durations),
            first_token: Histograms::new_with_constructor(first_tokens),
            token_time: Histograms::new_with_constructor(token_times),
            attempts: Family::default(),
            route_warm: Family::default(),
            fallbacks: Family::default(),
            migrations: Family::default(),
            hedges: Family::default(),
            wakes: WakeSeries::default(),
            nodes_lost: Counter::default(),
            limit_rejections: Family::default(),
            auth_failures: Family::default(),
            unknown_fields: Counter::default(),
            jwks_fetches: Family::default(),
            breaker_state: Family::default(),
            store_errors: Family::default(),
            store_open_admissions: Counter::default(),
            store_lease_units: Family::default(),
            store_bills: Gauge::default(),
            certificate_expiry: Gauge::default(),
            nodes_ready: Gauge::default(),
            tunnel: TunnelSeries::default(),
            refresh: Refresh::default(),
        };
        metrics.register_requests();
        metrics.register_rooms();
        metrics.register_houses();
        metrics.register_conventions();
        metrics.begin();
        metrics
    }

    fn register_requests(&mut self) {
        let registry = self.registry.sub_registry_with_prefix("hearth");
        registry.register("requests", "Requests answered", self.requests.clone());
        registry.register("tokens", "Tokens read and generated", self.tokens.clone());
        registry.register(
            "inflight",
            "Requests being answered",
            self.in_flight.clone(),
        );
        registry.register(
            "connections",
            "Open client connections",
            self.connections.clone(),
        );
        registry.register(
            "queue_depth",
            "Jobs waiting on the nodes of a tier",
            self.queue_depth.clone(),
        );
        registry.register_with_unit(
            "queue_wait",
            "Time that requests waited for a slot",
            Unit::Seconds,
            self.queue_wait.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "Time from the head of a request to the end of its answer",
            Unit::Seconds,
            self.request_duration.clone(),
        );
        registry.register(
            "attempts",
            "Tries at a backend, by how they ended",
            self.attempts.clone(),
        );
        registry.register(
            "route_warm",
            "Later turns of conversations, by whether they went where the last one was read",
            self.route_warm.clone(),
        );
        registry.register(
            "fallbacks",
            "Answers from another tier than the chosen one",
            self.fallbacks.clone(),
        );
    }

    fn register_rooms(&mut self) {
        let registry = self.registry.sub_registry_with_prefix("hearth");
        registry.register(
            "migrations",
            "Answers that another node went on with after the one that began them was lost",
            self.migrations.clone(),
        );
        registry.register(
            "hedges",
            "Requests for which a second backend was asked, by whether it was the faster one",
            self.hedges.clone(),
        );
        registry.register(
            "nodes_lost",
            "Nodes with requests under way that gave no sign of life",
            self.nodes_lost.clone(),
        );
        registry.register(
            "limit_rejections",
            "Requests refused by a limit or quota",
            self.limit_rejections.clone(),
        );
        registry.register(
            "auth_failures",
            "Requests whose credential was refused",
            self.auth_failures.clone(),
        );
        registry.register(
            "unknown_fields",
            "Requests with fields that Hearth does not know",
            self.unknown_fields.clone(),
        );
        registry.register(
            "jwks_fetches",
            "Fetches of an issuer's keys, by how they ended",
            self.jwks_fetches.clone(),
        );
        registry.register(
            "breaker_state",
            "Worst breaker of a tier: 0 closed, 1 open, 2 half open",
            self.breaker_state.clone(),
        );
        registry.register(
            "store_errors",
            "Calls that the store did not answer",
            self.store_errors.clone(),
        );
        registry.register(
            "store_open_admissions",
            "Admissions counted by this proxy alone while the store was away",
            self.store_open_admissions.clone(),
        );
        registry.register(
            "store_lease_units",
            "What this proxy may admit while the store is away, all shares together: the bound of over-admission",
            self.store_lease_units.clone(),
        );
        registry.register(
            "store_bills",
            "Settlements in the journal that the store has not charged yet",
            self.store_bills.clone(),
        );
    }

    fn register_houses(&mut self) {
        let registry = self.registry.sub_registry_with_prefix("hearth");
        registry.register(
            "cert_expiry_timestamp_seconds",
            "When the certificate ends, Unix time",
            self.certificate_expiry.clone(),
        );
        registry.register(
            "nodes_ready",
            "Nodes that can answer",
            self.nodes_ready.clone(),
        );
        self.tunnel.register(registry);
        self.wakes.register(registry);
        let build = Info::new(BuildLabels {
            version: env!("CARGO_PKG_VERSION"),
        });
        registry.register("build", "Version of this proxy", build);
    }

    /// Starts the series of all tiers at zero, so that their first event is a rise and not a birth.
    fn begin(&self) {
        for tier in Tier::ALL {
            self.tokens(tier, 0, 0);
            self.breaker(tier, BreakerGauge::Closed);
            let label = TierLabel {
                tier: tier.as_str(),
            };
            for histograms in [&self.answer_duration, &self.first_token, &self.token_time] {
                drop(histograms.get_or_create(&label));
            }
        }
    }

    /// Contract A4.1, written as Prometheus writes names.
    fn register_conventions(&mut self) {
        let registry = self.registry.sub_registry_with_prefix("gen_ai_server");
        registry.register_with_unit(
            "request_duration",
            "Time from the head of a request to the end of a model's answer",
            Unit::Seconds,
            self.answer_duration.clone(),
        );
        registry.register_with_unit(
            "time_to_first_token",
            "Time from the head of a request to its first token",
            Unit::Seconds,
            self.first_token.clone(),
        );
        registry.register_with_unit(
            "time_per_output_token",
            "Mean time between two tokens of one answer",
            Unit::Seconds,
            self.token_time.clone(),
        );
    }

    /// One request was answered. `route` is a word of the router, never the path that a client sent.
    pub fn request(&self, route: &'static str, code: u16, tier: Option<Tier>, took: Duration) {
        let label = TierLabel {
            tier: tier.map_or(NO_TIER, Tier::as_str),
        };
        let labels = RequestLabels {
            route,
            code,
            tier: label.tier,
        };
        self.requests.get_or_create(&labels).inc();
        let seconds = took.as_secs_f64();
        self.request_duration.get_or_create(&label).observe(seconds);
        if tier.is_some() {
            self.answer_duration.get_or_create(&label).observe(seconds);
        }
    }

    /// Tokens of one answer.
    pub fn tokens(&self, tier: Tier, prompt: u64, completion: u64) {
        for (direction, count) in [("input", prompt), ("output", completion)] {
            let labels = TokenLabels {
                direction,
                tier: tier.as_str(),
            };
            self.tokens.get_or_create(&labels).inc_by(count);
        }
    }

    /// A request entered; the guard counts it out again.
    pub fn enter(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// Open client connections, handshakes included.
    pub fn connections(&self, open: usize) {
        self.connections.set(gauge_value(open));
    }

    /// Jobs waiting on all nodes of a tier.
    pub fn queue_depth(&self, tier: Tier, jobs: u32) {
        let label = TierLabel {
            tier: tier.as_str(),
        };
        self.queue_depth.get_or_create(&label).set(jobs.into());
    }

    /// Time that one request waited for a slot on its node.
    pub fn queue_wait(&self, wait: Duration) {
        self.queue_wait.observe(wait.as_secs_f64());
    }

    /// Time to the first token of one answer.
    pub fn first_token(&self, tier: Tier, took: Duration) {
        let label = TierLabel {
            tier: tier.as_str(),
        };
        self.first_token
            .get_or_create(&label)
            .observe(took.as_secs_f64());
    }

    /// Mean time between two tokens of one answer.
    pub fn token_time(&self, tier: Tier, took: Duration) {
        let label = TierLabel {
            tier: tier.as_str(),
        };
        self.token_time
            .get_or_create(&label)
            .observe(took.as_secs_f64());
    }

    /// One try at one backend ended.
    pub fn attempt(&self, tier: Tier, outcome: &'static str) {
        let labels = AttemptLabels {
            tier: tier.as_str(),
            outcome,
        };
        self.attempts.get_or_create(&labels).inc();
    }

    /// A later turn of a conversation goes where it is warm, or not.
    pub fn routed(&self, tier: Tier, result: &'static str) {
        let labels = WarmLabels {
            tier: tier.as_str(),
            result,
        };
        self.route_warm.get_or_create(&labels).inc();
    }

    /// Another tier answered than the one chosen.
    pub fn fallback(&self, from: Tier, to: Tier) {
        let labels = FallbackLabels {
            from: from.as_str(),
            to: to.as_str(),
        };
        self.fallbacks.get_or_create(&labels).inc();
    }

    /// A second backend was asked besides a slow one: `won` or `lost`.
    pub fn hedge(&self, tier: Tier, outcome: &'static str) {
        let tier = tier.as_str();
        let labels = AttemptLabels { tier, outcome };
        self.hedges.get_or_create(&labels).inc();
    }

    /// Another node went on with an answer of this tier.
    pub fn migrated(&self, tier: Tier) {
        let tier = tier.as_str();
        self.migrations.get_or_create(&TierLabel { tier }).inc();
    }

    /// A node with requests under way gave no sign of life.
    pub fn node_lost(&self) {
        self.nodes_lost.inc();
    }

    /// A limit or quota refused; `policy` is its name in the headers, e.g. `text-min`.
    pub fn limit_rejection(&self, policy: impl Display) {
        self.limit_rejections
            .get_or_create(&PolicyLabel {
                policy: policy.to_string(),
            })
            .inc();
    }

    /// A credential was refused.
    pub fn auth_failure(&self, reason: &'static str) {
        self.auth_failures
            .get_or_create(&ReasonLabel { reason })
            .inc();
    }

    /// A request held fields that Hearth does not know (accepted and ignored).
    pub fn unknown_fields(&self) {
        self.unknown_fields.inc();
    }

    /// An issuer's keys were fetched.
    pub fn jwks_fetch(&self, outcome: &'static str) {
        self.jwks_fetches
            .get_or_create(&ReasonLabel { reason: outcome })
            .inc();
    }

    /// The worst breaker of a tier.
    pub fn breaker(&self, tier: Tier, state: BreakerGauge) {
        let label = TierLabel {
            tier: tier.as_str(),
        };
        let value = match state {
            BreakerGauge::Closed => 0,
            BreakerGauge::Open => 1,
            BreakerGauge::HalfOpen => 2,
        };
        self.breaker_state.get_or_create(&label).set(value);
    }

    /// The store did not answer.
    pub fn store_error(&self, reason: &'static str) {
        self.store_errors
            .get_or_create(&ReasonLabel { reason })
            .inc();
    }

    /// The store was away and this proxy counted alone.
    pub fn store_open_admission(&self) {
        self.store_open_admissions.inc();
    }

    /// The sum of all shares of a unit.
    pub fn store_lease_units(&self, unit: &'static str) -> Gauge<i64, AtomicI64> {
        self.store_lease_units
            .get_or_create(&UnitLabel { unit })
            .clone()
    }

    /// So many settlements wait in the journal.
    pub fn store_bills(&self, waiting: usize) {
        self.store_bills
            .set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    /// When the certificate in use ends.
    pub fn certificate_expiry(&self, unix: i64) {
        self.certificate_expiry.set(unix);
    }

    /// Nodes with at least one tier that can answer.
    pub fn nodes_ready(&self, nodes: usize) {
        self.nodes_ready.set(gauge_value(nodes));
    }

    /// What is called before each rendering, to set the gauges that nobody sets on the way. The first one stays.
    pub fn refresh_with(&self, refresh: impl Fn(&Self) + Send + Sync + 'static) {
        if self.refresh.0.set(Box::new(refresh)).is_err() {
            tracing::debug!("the gauges are refreshed already");
        }
    }

    /// All metrics as `OpenMetrics` text.
    pub fn render(&self) -> String {
        if let Some(refresh) = self.refresh.0.get() {
            refresh(self);
        }
        let mut text = String::new();
        // Writing to a String cannot fail; an encoder bug must not take the listener down.
        if let Err(error) = encode(&mut text, &self.registry) {
            tracing::error!(%error, "metrics cannot be written");
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Counts one thing for as long as it lives.
#[derive(Debug)]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn gauge_value(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn durations() -> Histogram {
    Histogram::new(DURATION_BUCKETS)
}

fn first_tokens() -> Histogram {
    Histogram::new(FIRST_TOKEN_BUCKETS)
}

fn token_times() -> Histogram {
    Histogram::new(TOKEN_TIME_BUCKETS)
}

#[cfg(test)]
mod tests;
