//! Turns the record of a request into metrics. Counts only; labels come from closed sets.

use std::time::Duration;

use policy::record::AccessRecord;

use crate::observe::metrics::Metrics;

/// Counts a request that has ended.
pub(super) fn count(record: &AccessRecord, metrics: &Metrics) {
    metrics.request(
        record.route,
        record.status,
        record.tier,
        Duration::from_millis(record.ms),
    );
    let Some(tier) = record.tier else { return };
    if let Some(ttft_ms) = record.ttft_ms {
        metrics.first_token(tier, Duration::from_millis(ttft_ms));
    }
    if let Some(queue_ms) = record.queue_ms {
        metrics.queue_wait(Duration::from_millis(queue_ms));
    }
    let Some(usage) = record.usage else { return };
    metrics.tokens(tier, usage.prompt_tokens, usage.completion_tokens);
    let after_first = u32::try_from(usage.completion_tokens)
        .unwrap_or(u32::MAX)
        .saturating_sub(1);
    if let Some(ttft_ms) = record.ttft_ms
        && after_first > 0
    {
        metrics.token_time(
            tier,
            Duration::from_millis(record.ms.saturating_sub(ttft_ms)) / after_first,
        );
    }
}
