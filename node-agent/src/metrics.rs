//! The node's metrics: the only place where they are declared. All names start with `hearth_node_`; no label names a person.

use std::sync::Arc;
use std::time::Duration;

use config::settings::node::MetricsCompat;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::tiers::{Phase, TierRoom, Tiers};

mod compat;

use compat::Compat;

/// As OpenTelemetry's `gen_ai.server.time_to_first_token`.
const FIRST_TOKEN_BUCKETS: [f64; 16] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
const DURATION_BUCKETS: [f64; 14] = [
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OutcomeLabels {
    tier: &'static str,
    outcome: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct TierLabels {
    tier: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ResultLabels {
    result: &'static str,
}

/// What is counted while the node runs.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<OutcomeLabels, Counter>,
    first_token: Family<TierLabels, Histogram>,
    duration: Family<TierLabels, Histogram>,
    reports: Family<ResultLabels, Counter>,
    registrations: Family<ResultLabels, Counter>,
    connected: Gauge,
    compat: Compat,
}

impl Metrics {
    /// All metrics at zero; those of the tiers are read when asked for.
    pub fn new(tiers: Arc<Tiers>) -> Self {
        let mut registry = Registry::with_prefix("hearth_node");
        let requests = Family::default();
        let first_token = Family::new_with_constructor(first_token_histogram as fn() -> Histogram);
        let duration = Family::new_with_constructor(duration_histogram as fn() -> Histogram);
        let reports = Family::default();
        let registrations = Family::default();
        let connected = Gauge::default();
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "This program", version);
        registry.register("requests", "Requests by outcome", Family::clone(&requests));
        registry.register(
            "time_to_first_token_seconds",
            "From the request to its first token",
            Family::clone(&first_token),
        );
        registry.register(
            "request_duration_seconds",
            "From the request to its end",
            Family::clone(&duration),
        );
        registry.register("reports", "Reports to the proxy", Family::clone(&reports));
        registry.register(
            "registrations",
            "Registrations with the proxy",
            Family::clone(&registrations),
        );
        registry.register(
            "connected",
            "1 while the proxy answers reports",
            connected.clone(),
        );
        registry.register_collector(Box::new(TierCollector(tiers.clone())));
        Self {
            registry,
            requests,
            first_token,
            duration,
            reports,
            registrations,
            connected,
            compat: Compat::new(tiers),
        }
    }

    /// Shows the figures of the tiers under the names of other servers too.
    #[must_use]
    pub fn also_as(mut self, names: &[MetricsCompat]) -> Self {
        self.compat = self.compat.also_as(names);
        self
    }

    /// Counts a request that ended.
    pub fn request(&self, tier: &'static str, outcome: &str, took: Duration) {
        let labels = OutcomeLabels {
            tier,
            outcome: outcome.to_owned(),
        };
        self.requests.get_or_create(&labels).inc();
        let duration = self.duration.get_or_create(&TierLabels { tier });
        duration.observe(took.as_secs_f64());
        self.compat.request(tier, outcome, took);
    }

    /// Counts a first token.
    pub fn first_token(&self, tier: &'static str, took: Duration) {
        let histogram = self.first_token.get_or_create(&TierLabels { tier });
        histogram.observe(took.as_secs_f64());
        self.compat.first_token(tier, took);
    }

    /// Counts a report.
    pub fn report(&self, result: &'static str) {
        self.reports.get_or_create(&ResultLabels { result }).inc();
        self.connected.set(i64::from(result == "ok"));
    }

    /// Counts a registration.
    pub fn registration(&self, result: &'static str) {
        let labels = ResultLabels { result };
        self.registrations.get_or_create(&labels).inc();
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            tracing::error!(%error, "metrics could not be written");
        }
        self.compat.write(&mut text);
        text
    }
}

fn first_token_histogram() -> Histogram {
    Histogram::new(FIRST_TOKEN_BUCKETS)
}

fn duration_histogram() -> Histogram {
    Histogram::new(DURATION_BUCKETS)
}

/// Reads the tiers at the moment they are asked for.
#[derive(Debug)]
struct TierCollector(Arc<Tiers>);

/// A gauge of a tier: name, help, value.
type TierGauge = (&'static str, &'static str, fn(&TierRoom) -> f64);
/// A counter of a tier.
type TierCounter = (&'static str, &'static str, fn(&TierRoom) -> u64);

const GAUGES: [TierGauge; 9] = [
    ("tier_ready", "1 if the tier answers", |room| {
        f64::from(u8::from(matches!(room.phase(), Phase::Ready(_))))
    }),
    ("slots", "Requests decoded at once", |room| {
        f64::from(room.settings().slots)
    }),
    ("slots_busy", "Slots at work", |room| {
        f64::from(room.stats().slots_busy)
    }),
    ("queue_depth", "Requests that wait for a slot", |room| {
        f64::from(room.stats().queue_depth)
    }),
    ("tokens_per_second", "Tokens made, recent rate", |room| {
        room.stats().tokens_per_second
    }),
    (
        "prompt_tokens_per_second",
        "Prompt tokens read, recent rate",
        |room| room.stats().prompt_tokens_per_second,
    ),
    ("kv_tokens", "Tokens in the KV cache", |room| {
        precise(room.stats().kv_tokens)
    }),
    (
        "kv_tokens_max",
        "Tokens that fit into the KV cache",
        |room| precise(room.stats().kv_tokens_max),
    ),
    (
        "prompt_cache_bytes",
        "Host memory of prompts that may come again",
        |room| precise(room.stats().prompt_cache_bytes),
    ),
];

const COUNTERS: [TierCounter; 8] = [
    (
        "worker_starts",
        "Starts of the worker process",
        TierRoom::starts,
    ),
    (
        "prompt_tokens",
        "Prompt tokens read since the worker's start",
        |room| room.stats().prompt_tokens_total,
    ),
    (
        "cached_tokens",
        "Prompt tokens found in the KV cache since the worker's start",
        |room| room.stats().cached_tokens_total,
    ),
    (
        "completion_tokens",
        "Tokens made since the worker's start",
        |room| room.stats().completion_tokens_total,
    ),
    (
        "prompt_hits",
        "Prompts of which something was reused",
        |room| room.stats().prompt_hits_total,
    ),
    (
        "prompt_moves",
        "Those of them that came from another slot or from host memory",
        |room| room.stats().prompt_moves_total,
    ),
    (
        "drafted_tokens",
        "Tokens guessed ahead since the worker's start",
        |room| room.stats().drafted_tokens_total,
    ),
    ("accepted_tokens", "Those of them that were right", |room| {
        room.stats().accepted_tokens_total
    }),
];

impl Collector for TierCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (name, help, value) in GAUGES {
            let gauge = ConstGauge::<f64>::new(0.0);
            let mut metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            for room in self.0.rooms() {
                let labels = labels(room);
                ConstGauge::new(value(room)).encode(metric.encode_family(&labels)?)?;
            }
        }
        let reading = self.0.power();
        for (name, help, value) in [
            ("watts", "What the machine draws", reading.watts),
            ("celsius", "Its hottest sensor", reading.celsius),
        ] {
            if let Some(value) = value {
                let gauge = ConstGauge::new(value);
                let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
                gauge.encode(metric)?;
            }
        }
        for (name, help, value) in COUNTERS {
            let counter = ConstCounter::<u64>::new(0);
            let mut metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            for room in self.0.rooms() {
                let labels = labels(room);
                ConstCounter::new(value(room)).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn labels(room: &TierRoom) -> TierLabels {
    TierLabels {
        tier: room.tier().as_str(),
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "token counts are far below 2^52"
)]
const fn precise(count: u64) -> f64 {
    count as f64
}
