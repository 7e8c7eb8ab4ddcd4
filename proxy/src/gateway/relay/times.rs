//! Where the time of an answer went: what the proxy measured itself, and what the node says of its own part. Whatever nobody accounts
//! for was on the way.

use std::time::Duration;

use config::wire::routing::Timing;
use serde_json::Value;
use tokio::time::Instant;

/// What is known of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// When the request came.
    received_at: Instant,
    /// When the node that answered was asked.
    asked_at: Instant,
    /// Time in the waiting room.
    waited: Duration,
    /// What nodes that were lost wrote, and how long it took.
    before: Duration,
}

impl Times {
    pub(super) const fn new(received_at: Instant, asked_at: Instant, waited: Duration) -> Self {
        Self {
            received_at,
            asked_at,
            waited,
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
        let asked = millis(self.asked_at.saturating_duration_since(self.received_at));
        let all = millis(now.saturating_duration_since(self.received_at));
        let (queue, prefill) = (said("queue_ms"), said("prompt_ms"));
        let decode = said("predicted_ms") + millis(self.before);
        let edge = (asked - waited).max(0.0);
        let known = edge + waited + queue + prefill + decode;
        Timing {
            edge_ms: rounded(edge),
            tunnel_ms: rounded((all - known).max(0.0)),
            queue_ms: rounded(waited + queue),
            prefill_ms: rounded(prefill),
            decode_ms: rounded(decode),
        }
    }
}

/// The parts by name, for `server-timing`.
pub(super) const fn parts(timing: &Timing) -> [(&'static str, f64); 5] {
    [
        ("edge", timing.edge_ms),
        ("tunnel", timing.tunnel_ms),
        ("queue", timing.queue_ms),
        ("prefill", timing.prefill_ms),
        ("decode", timing.decode_ms),
    ]
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
        let times = Times::new(start, at(130), Duration::from_millis(100));
        let said = json!({"queue_ms": 20.0, "prompt_ms": 200.04, "predicted_ms": 500.0});
        let timing = times.split(Some(&said), at(900));
        let expected = [
            ("edge", 30.0),
            ("tunnel", 50.0),
            ("queue", 120.0),
            ("prefill", 200.0),
            ("decode", 500.0),
        ];
        assert_eq!(parts(&timing), expected);
        let silent = times.split(None, at(900));
        assert_eq!((silent.tunnel_ms, silent.decode_ms), (770.0, 0.0));
        let liar = times.split(
            Some(&json!({"prompt_ms": -5.0, "predicted_ms": 1e9})),
            at(900),
        );
        assert_eq!((liar.prefill_ms, liar.tunnel_ms), (0.0, 0.0));
    }
}
