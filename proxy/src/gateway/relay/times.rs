//! Where the time of an answer went: what the proxy measured itself, and what the node says of its own part. Whatever nobody accounts
//! for was on the way.

use std::time::Duration;

use config::wire::routing::Timing;
use serde_json::Value;
use tokio::time::Instant;

use crate::gateway::dispatch::Told;

/// Whoever waited less for a model had it ready: a look at what is awake takes no longer.
const COLD_MS: f64 = 1.0;

/// What is known of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// When the request came.
    received_at: Instant,
    /// When the node that answered was asked.
    asked_at: Instant,
    /// Time in the waiting room.
    waited: Duration,
    /// Time until what slept was awake, or what was being loaded answered.
    woke: Duration,
    /// What nodes that were lost wrote, and how long it took.
    before: Duration,
}

impl Times {
    pub(super) const fn new(
        (received_at, asked_at): (Instant, Instant),
        waited: Duration,
        woke: Duration,
    ) -> Self {
        Self {
            received_at,
            asked_at,
            waited,
            woke,
            before: Duration::ZERO,
        }
    }

    /// The answer goes on elsewhere: what was written until now took so long.
    pub(super) fn went_on(&mut self, wrote: Duration) {
        self.before += wrote;
    }

    /// The split, with what the node says of its part in `timings`.
    pub(super) fn split(&self, timings: Option<&Value>, now: Instant) -> Timing {
        let said = |name: &str| {
            let ms = timings.and_then(|timings| timings.get(name)?.as_f64());
            ms.filter(|ms| ms.is_finite() && *ms >= 0.0).unwrap_or(0.0)
        };
        let waited = millis(self.waited);
        let all = millis(now.saturating_duration_since(self.received_at));
        let (queue, prefill) = (said("queue_ms"), said("prompt_ms"));
        let decode = said("predicted_ms") + millis(self.before);
        let wake = millis(self.woke) + said("load_ms");
        let edge = self.edge();
        let known = edge + wake + waited + queue + prefill + decode;
        Timing {
            edge_ms: rounded(edge),
            wake_ms: rounded(wake),
            cold: wake >= COLD_MS,
            tunnel_ms: rounded((all - known).max(0.0)),
            queue_ms: rounded(waited + queue),
            prefill_ms: rounded(prefill),
            decode_ms: rounded(decode),
        }
    }

    /// In the proxy, but not waiting.
    fn edge(&self) -> f64 {
        let asked = millis(self.asked_at.saturating_duration_since(self.received_at));
        (asked - millis(self.waited) - millis(self.woke)).max(0.0)
    }

    /// What is known when the first token comes, with what the node said in its head: all of it where the node told of its prompt.
    pub(super) fn early(&self, told: Told, now: Instant) -> Vec<(&'static str, f64)> {
        let (edge, waited) = (self.edge(), millis(self.waited));
        let wake = millis(self.woke) + told.load.unwrap_or_default();
        let queue = waited + told.queue.unwrap_or_default();
        let mut parts = vec![("edge", edge)];
        if wake >= COLD_MS {
            parts.push(("wake", wake));
        }
        if told.queue.is_some() || waited > 0.0 {
            parts.push(("queue", queue));
        }
        if let Some(prefill) = told.prefill {
            let all = millis(now.saturating_duration_since(self.received_at));
            let tunnel = (all - edge - wake - queue - prefill).max(0.0);
            parts.extend([("tunnel", tunnel), ("prefill", prefill)]);
        }
        parts
    }
}

/// The parts by name, for `server-timing`; waking only where there was any.
pub(super) fn parts(timing: &Timing) -> impl Iterator<Item = (&'static str, f64)> {
    let wake = timing.cold.then_some(("wake", timing.wake_ms));
    let others = [
        ("tunnel", timing.tunnel_ms),
        ("queue", timing.queue_ms),
        ("prefill", timing.prefill_ms),
        ("decode", timing.decode_ms),
    ];
    let edge = std::iter::once(("edge", timing.edge_ms));
    edge.chain(wake).chain(others)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A tenth of a millisecond is as exact as clocks of two machines allow.
fn rounded(ms: f64) -> f64 {
    (ms * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_parts_are_the_whole() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let waited = Duration::from_millis(100);
        let times = Times::new((start, at(130)), waited, Duration::ZERO);
        let said = json!({"queue_ms": 20.0, "prompt_ms": 200.04, "predicted_ms": 500.0});
        let timing = times.split(Some(&said), at(900));
        let expected = [
            ("edge", 30.0),
            ("tunnel", 50.0),
            ("queue", 120.0),
            ("prefill", 200.0),
            ("decode", 500.0),
        ];
        assert_eq!(parts(&timing).collect::<Vec<_>>(), expected);
        assert!(!timing.cold);
        let silent = times.split(None, at(900));
        assert_eq!((silent.tunnel_ms, silent.decode_ms), (770.0, 0.0));
        let liar = times.split(
            Some(&json!({"prompt_ms": -5.0, "predicted_ms": 1e9})),
            at(900),
        );
        assert_eq!((liar.prefill_ms, liar.tunnel_ms), (0.0, 0.0));
    }

    #[tokio::test(start_paused = true)]
    async fn waking_and_loading_are_parts_of_their_own() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let woke = Duration::from_secs(2);
        let times = Times::new((start, at(2_010)), Duration::ZERO, woke);
        let said = json!({"load_ms": 3_000.0, "prompt_ms": 80.0, "predicted_ms": 500.0});
        let timing = times.split(Some(&said), at(5_610));
        assert!(timing.cold);
        let expected = [
            ("edge", 10.0),
            ("wake", 5_000.0),
            ("tunnel", 20.0),
            ("queue", 0.0),
            ("prefill", 80.0),
            ("decode", 500.0),
        ];
        assert_eq!(parts(&timing).collect::<Vec<_>>(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_first_token_the_split_is_known_as_far_as_the_node_told_it() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let times = Times::new((start, at(10)), Duration::ZERO, Duration::ZERO);
        let mut told = Told::default();
        assert_eq!(times.early(told, at(150)), [("edge", 10.0)]);
        told.queue = Some(7.0);
        assert_eq!(times.early(told, at(150)), [("edge", 10.0), ("queue", 7.0)]);
        told.prefill = Some(100.0);
        told.load = Some(20.0);
        assert_eq!(
            times.early(told, at(150)),
            [
                ("edge", 10.0),
                ("wake", 20.0),
                ("queue", 7.0),
                ("tunnel", 13.0),
                ("prefill", 100.0)
            ]
        );
    }
}
