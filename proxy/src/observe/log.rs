//! Logs: JSON lines or text on standard error, and the one wide event per request. Prompts, answers, credentials and addresses
//! never come here; what strangers wrote is escaped, so nobody can forge a line.

use std::fmt::{self, Write as _};
use std::io::IsTerminal;

use config::ids::{KeyId, NodeId};
use config::settings::proxy::{Log, LogFormat};
use config::tier::Tier;
use config::wire::routing::Attempt;
use policy::identity::Subject;
use policy::record::AccessRecord;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// The target of request lines, to filter by: `RUST_LOG=hearth::request=off`.
const REQUEST: &str = "hearth::request";
/// The variable that overrides the settings.
const FILTER_VARIABLE: &str = "RUST_LOG";

/// What is not said unless it is asked for by name: complaints about each odd TLS handshake of a stranger, some with the
/// address. A stranger must not fill the log.
const QUIET: &str = "pingora_core::services::listening=off,rustls::msgs=error";

/// Why logs cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is no filter.
    #[error("the log filter {0:?} is wrong: {1}")]
    Filter(String, String),
    /// Somebody else logs already.
    #[error("logs were started before: {0}")]
    Started(String),
}

/// Starts logging for the whole process; records of the `log` crate come along. `RUST_LOG` wins over the settings.
pub fn init(settings: &Log) -> Result<(), LogError> {
    let filter = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| settings.filter.clone());
    let filter = EnvFilter::try_new(format!("{QUIET},{filter}"))
        .map_err(|error| LogError::Filter(filter.clone(), error.to_string()))?;
    let terminal = std::io::stderr().is_terminal();
    let json = match settings.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = if json {
        lines.event_format(Json).finish().try_init()
    } else {
        // https://no-color.org: any value but the empty one
        let color = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        lines.with_ansi(color).finish().try_init()
    };
    started.map_err(|error| LogError::Started(error.to_string()))
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

/// One JSON object a line: `ts`, `level`, `target`, `msg`, then the event's own fields.
struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let metadata = event.metadata();
        let mut line = Fields(Map::new());
        line.put("ts", time);
        line.put("level", metadata.level().as_str());
        line.put("target", metadata.target());
        line.put("msg", "");
        event.record(&mut line);
        line.adopt_log_record();
        let text = serde_json::to_string(&line.0).map_err(|_| fmt::Error)?;
        writeln!(writer, "{text}")
    }
}

struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, name: &str, value: impl Into<Value>) {
        let name = if name == "message" { "msg" } else { name };
        self.0.insert(name.to_owned(), value.into());
    }

    /// Records of the `log` crate arrive with their target and place as fields.
    fn adopt_log_record(&mut self) {
        if let Some(target) = self.0.remove("log.target") {
            self.0.insert("target".to_owned(), target);
        }
        for place in ["log.module_path", "log.file", "log.line"] {
            self.0.remove(place);
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field.name(), value.to_string());
    }
}

#[cfg(test)]
mod tests;
