//! The one wide event per request. Prompts, answers, credentials and addresses never come here; `journal` writes the lines.

use std::fmt::Write as _;

use config::ids::{KeyId, NodeId};
use config::settings::proxy::Log;
use config::tier::Tier;
use config::wire::routing::Attempt;
use journal::LogError;
use policy::identity::Subject;
use policy::record::AccessRecord;

/// The target of request lines, to filter by: `RUST_LOG=hearth::request=off`.
const REQUEST: &str = "hearth::request";

/// What is not said unless it is asked for by name: complaints about each odd TLS handshake of a stranger, some with the
/// address. A stranger must not fill the log.
const QUIET: &str = "pingora_core::services::listening=off,rustls::msgs=error";

/// Starts logging for the whole process.
pub fn init(settings: &Log) -> Result<(), LogError> {
    journal::init(settings, QUIET)
}

/// The one event of a request. Health and readiness checks are for debugging only.
pub fn request(record: &AccessRecord) {
    if matches!(record.route, "healthz" | "readyz") {
        tracing::debug!(target: REQUEST, route = record.route, status = record.status, ms = record.ms, "request");
        return;
    }
    let usage = record.usage.as_ref();
    tracing::info!(
        target: REQUEST,
        request_id = record.request_id.as_str(),
        trace_id = record.trace_id,
        route = record.route,
        method = record.method,
        status = record.status,
        outcome = record.outcome.as_str(),
        refusal = record.refusal,
        tier = record.tier.map(Tier::as_str),
        model = record.model,
        node = record.node.as_ref().map(NodeId::as_str),
        ms = record.ms,
        ttft_ms = record.ttft_ms,
        queue_ms = record.queue_ms,
        prompt_tokens = usage.map(|usage| usage.prompt_tokens),
        completion_tokens = usage.map(|usage| usage.completion_tokens),
        cached_tokens = usage.map(|usage| usage.cached_tokens),
        tokens_estimated = usage.map(|usage| usage.estimated),
        key = record.key.as_ref().map(KeyId::as_str),
        user = record.user.as_ref().map(Subject::as_str),
        attempts = attempts(&record.attempts),
        fallback = record.fallback,
        bytes_in = record.bytes_in,
        bytes_out = record.bytes_out,
        stream = record.stream,
        retry_count = record.retry_count,
        "request"
    );
}

/// `heavy@den:timeout,primary@den:ok`; nothing for a request that tried no backend.
fn attempts(attempts: &[Attempt]) -> Option<String> {
    if attempts.is_empty() {
        return None;
    }
    let mut text = String::new();
    for attempt in attempts {
        if !text.is_empty() {
            text.push(',');
        }
        let node = attempt.node.as_deref().unwrap_or("-");
        // Writing to a String cannot fail.
        let _written = write!(text, "{}@{node}:{}", attempt.tier, attempt.outcome);
    }
    Some(text)
}

#[cfg(test)]
mod tests;
