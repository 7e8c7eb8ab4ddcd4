//! Logs of both programs: JSON lines or text on standard error, the same schema on the server and at home. Knows no event and
//! no secret; what strangers wrote is escaped, so nobody can forge a line.

use std::fmt;
use std::io::IsTerminal;

use config::settings::proxy::{Log, LogFormat};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// The variable that overrides the settings.
const FILTER_VARIABLE: &str = "RUST_LOG";

/// Why logs cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is no filter.
    #[error("the log filter {0:?} is wrong: {1}; for example info or info,tunnel=debug")]
    Filter(String, String),
    /// Somebody else logs already.
    #[error("logs were started before: {0}")]
    Started(String),
}

/// Starts logging for the whole process; records of the `log` crate come along. `RUST_LOG` wins over the settings; `quiet` is a
/// filter for what is not said unless it is asked for by name.
pub fn init(settings: &Log, quiet: &str) -> Result<(), LogError> {
    let filter = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| settings.filter.clone());
    let filter = EnvFilter::try_new(format!("{quiet},{filter}"))
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

/// One JSON object a line: `ts`, `level`, `target`, `msg`, then the event's own fields; numbers are numbers.
#[derive(Clone, Copy, Debug)]
pub struct Json;

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

    /// `Duration::as_millis` counts in these; a JSON number does not.
    fn record_u128(&mut self, field: &Field, value: u128) {
        self.put(field.name(), u64::try_from(value).unwrap_or(u64::MAX));
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
