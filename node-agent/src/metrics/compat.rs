//! The figures of the tiers under the names that llama-server and vLLM have for them, so that ready dashboards show them. Off unless the
//! settings ask for it. Names with colons are outside of the custom of `OpenMetrics`, so they are written here and not registered.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use config::settings::node::MetricsCompat;

use super::precise;
use crate::tiers::{TierRoom, Tiers};

/// The end of the text that `OpenMetrics` demands.
const END: &str = "# EOF\n";
/// vLLM's for seconds.
const BUCKETS: [f64; 12] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

#[derive(Debug)]
pub(super) struct Compat {
    tiers: Arc<Tiers>,
    names: Vec<MetricsCompat>,
    seen: Mutex<BTreeMap<&'static str, Seen>>,
}

/// What requests of one tier took.
#[derive(Debug, Default)]
struct Seen {
    first: Times,
    whole: Times,
    ended: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Default)]
struct Times {
    buckets: [u64; BUCKETS.len()],
    sum: f64,
    count: u64,
}

/// Name, kind, help, value.
type Figure = (
    &'static str,
    &'static str,
    &'static str,
    fn(&TierRoom) -> f64,
);

const LLAMACPP: [Figure; 13] = [
    (
        "prompt_tokens_total",
        "counter",
        "Prompt tokens read",
        |room| precise(room.stats().prompt_tokens_total),
    ),
    ("prompt_seconds_total", "counter", "Time for them", |room| {
        seconds(
            room.stats().prompt_tokens_total,
            room.stats().prompt_tokens_per_second,
        )
    }),
    (
        "prompt_tokens_seconds",
        "gauge",
        "Prompt tokens per second",
        |room| room.stats().prompt_tokens_per_second,
    ),
    ("tokens_predicted_total", "counter", "Tokens made", |room| {
        precise(room.stats().completion_tokens_total)
    }),
    (
        "tokens_predicted_seconds_total",
        "counter",
        "Time for them",
        |room| {
            seconds(
                room.stats().completion_tokens_total,
                room.stats().tokens_per_second,
            )
        },
    ),
    (
        "predicted_tokens_seconds",
        "gauge",
        "Tokens per second",
        |room| room.stats().tokens_per_second,
    ),
    ("requests_processing", "gauge", "Requests at work", |room| {
        f64::from(room.stats().slots_busy)
    }),
    ("requests_deferred", "gauge", "Requests that wait", |room| {
        f64::from(room.stats().queue_depth)
    }),
    (
        "n_tokens_max",
        "gauge",
        "Tokens that fit into the cache",
        |room| precise(room.stats().kv_tokens_max),
    ),
    (
        "n_busy_slots_per_decode",
        "gauge",
        "Slots at work",
        |room| f64::from(room.stats().slots_busy),
    ),
    (
        "kv_cache_usage_ratio",
        "gauge",
        "Part of the cache in use",
        used,
    ),
    (
        "spec_decode_num_draft_tokens_total",
        "counter",
        "Tokens guessed ahead",
        |room| precise(room.stats().drafted_tokens_total),
    ),
    (
        "spec_decode_num_accepted_tokens_total",
        "counter",
        "Those of them that were right",
        |room| precise(room.stats().accepted_tokens_total),
    ),
];

const VLLM: [Figure; 7] = [
    (
        "num_requests_running",
        "gauge",
        "Requests at work",
        |room| f64::from(room.stats().slots_busy),
    ),
    (
        "num_requests_waiting",
        "gauge",
        "Requests that wait",
        |room| f64::from(room.stats().queue_depth),
    ),
    (
        "kv_cache_usage_perc",
        "gauge",
        "Part of the cache in use, 1 is all",
        used,
    ),
    (
        "prefix_cache_queries",
        "counter",
        "Prompt tokens looked up",
        |room| {
            let stats = room.stats();
            precise(stats.prompt_tokens_total + stats.cached_tokens_total)
        },
    ),
    (
        "prefix_cache_hits",
        "counter",
        "Prompt tokens found",
        |room| precise(room.stats().cached_tokens_total),
    ),
    (
        "prompt_tokens_total",
        "counter",
        "Prompt tokens read",
        |room| precise(room.stats().prompt_tokens_total),
    ),
    (
        "generation_tokens_total",
        "counter",
        "Tokens made",
        |room| precise(room.stats().completion_tokens_total),
    ),
];

impl Compat {
    pub(super) const fn new(tiers: Arc<Tiers>) -> Self {
        Self {
            tiers,
            names: Vec::new(),
            seen: Mutex::new(BTreeMap::new()),
        }
    }

    pub(super) fn also_as(mut self, names: &[MetricsCompat]) -> Self {
        self.names = names.to_vec();
        self
    }

    pub(super) fn first_token(&self, tier: &'static str, took: Duration) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.entry(tier).or_default().first.observe(took);
    }

    pub(super) fn request(&self, tier: &'static str, outcome: &str, took: Duration) {
        // A closed list: outcomes of refusals are many.
        let reason = match outcome {
            "ok" => "stop",
            "abandoned" => "abort",
            _refused => "error",
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen.entry(tier).or_default();
        seen.whole.observe(took);
        *seen.ended.entry(reason).or_default() += 1;
    }

    /// Appends the figures, ahead of the text's end mark.
    pub(super) fn write(&self, text: &mut String) {
        if self.names.is_empty() {
            return;
        }
        let ended = text.ends_with(END);
        if ended {
            text.truncate(text.len() - END.len());
        }
        // Writing to a string cannot fail.
        let _written = self.write_all(text);
        if ended {
            text.push_str(END);
        }
    }

    fn write_all(&self, text: &mut String) -> std::fmt::Result {
        if self.names.contains(&MetricsCompat::Llamacpp) {
            self.write_figures("llamacpp", &LLAMACPP, text)?;
        }
        if self.names.contains(&MetricsCompat::Vllm) {
            self.write_figures("vllm", &VLLM, text)?;
            self.write_seen(text)?;
        }
        Ok(())
    }

    fn write_figures(
        &self,
        server: &str,
        figures: &[Figure],
        text: &mut String,
    ) -> std::fmt::Result {
        for (name, kind, help, value) in figures {
            writeln!(text, "# HELP {server}:{name} {help}")?;
            writeln!(text, "# TYPE {server}:{name} {kind}")?;
            for room in self.tiers.rooms() {
                let model = escaped(&room.settings().model_id);
                let value = value(room);
                writeln!(text, "{server}:{name}{{model_name=\"{model}\"}} {value}")?;
            }
        }
        Ok(())
    }

    fn write_seen(&self, text: &mut String) -> std::fmt::Result {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let rooms: Vec<(String, &Seen)> = self
            .tiers
            .rooms()
            .iter()
            .filter_map(|room| {
                let seen = seen.get(room.tier().as_str())?;
                Some((escaped(&room.settings().model_id), seen))
            })
            .collect();
        writeln!(text, "# TYPE vllm:request_success_total counter")?;
        for (model, seen) in &rooms {
            for (reason, count) in &seen.ended {
                writeln!(
                    text,
                    "vllm:request_success_total{{model_name=\"{model}\",finished_reason=\"{reason}\"}} {count}"
                )?;
            }
        }
        for (name, times) in [
            (
                "time_to_first_token_seconds",
                (|seen| &seen.first) as fn(&Seen) -> &Times,
            ),
            ("e2e_request_latency_seconds", |seen| &seen.whole),
        ] {
            writeln!(text, "# TYPE vllm:{name} histogram")?;
            for (model, seen) in &rooms {
                times(seen).write(name, model, text)?;
            }
        }
        Ok(())
    }
}

impl Times {
    fn observe(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        for (bucket, bound) in self.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(took <= bound);
        }
        self.sum += took;
        self.count += 1;
    }

    fn write(&self, name: &str, model: &str, text: &mut String) -> std::fmt::Result {
        let label = format!("model_name=\"{model}\"");
        for (count, bound) in self.buckets.iter().zip(BUCKETS) {
            writeln!(text, "vllm:{name}_bucket{{{label},le=\"{bound}\"}} {count}")?;
        }
        writeln!(
            text,
            "vllm:{name}_bucket{{{label},le=\"+Inf\"}} {}",
            self.count
        )?;
        writeln!(text, "vllm:{name}_sum{{{label}}} {}", self.sum)?;
        writeln!(text, "vllm:{name}_count{{{label}}} {}", self.count)
    }
}

fn used(room: &TierRoom) -> f64 {
    let stats = room.stats();
    precise(stats.kv_tokens) / precise(stats.kv_tokens_max.max(1))
}

/// The worker tells tokens and their recent rate; the time follows from both.
fn seconds(tokens: u64, rate: f64) -> f64 {
    if rate > 0.0 {
        precise(tokens) / rate
    } else {
        0.0
    }
}

fn escaped(label: &str) -> String {
    label
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
