//! The worker's log: lines on standard error for the agent, and the last complaints for the reason of a failed load.

use std::collections::VecDeque;
use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use tracing::Event;
use tracing::Level;
use tracing::Metadata;
use tracing::Subscriber;
use tracing::field::Field;
use tracing::field::Visit;
use tracing::level_filters::LevelFilter;
use tracing::span;

use crate::client::LOG_MARK;

const COMPLAINTS_MAX: usize = 6;
const LINE_CHARS_MAX: usize = 400;

/// A handle on the log.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    complaints: Arc<Mutex<VecDeque<String>>>,
}

impl Log {
    /// Makes this the log of the process.
    pub(super) fn install() -> Self {
        let log = Self::default();
        if tracing::subscriber::set_global_default(ToStderr { log: log.clone() }).is_err() {
            tracing::debug!("the worker runs inside a program with a log of its own");
        }
        log
    }

    /// The last warnings and errors, most of which come from llama.cpp.
    #[cfg_attr(
        not(feature = "llama"),
        expect(dead_code, reason = "only a real model has something to say")
    )]
    pub(super) fn last_words(&self) -> String {
        let complaints = self
            .complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if complaints.is_empty() {
            return "llama.cpp gave no reason".to_owned();
        }
        complaints.iter().cloned().collect::<Vec<_>>().join("; ")
    }

    fn note(&self, level: Level, line: &str) {
        if level <= Level::WARN {
            let mut complaints = self
                .complaints
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if complaints.len() == COMPLAINTS_MAX {
                complaints.pop_front();
            }
            complaints.push_back(line.to_owned());
        }
        // The agent may be gone; there is nobody else to tell.
        let _lost = writeln!(io::stderr().lock(), "{LOG_MARK}{level} {line}");
    }
}

struct ToStderr {
    log: Log,
}

impl Subscriber for ToStderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO && metadata.is_event()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn new_span(&self, _span: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}

    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let text: String = line.0.trim().chars().take(LINE_CHARS_MAX).collect();
        if !text.is_empty() {
            self.log.note(*event.metadata().level(), &text);
        }
    }

    fn enter(&self, _span: &span::Id) {}

    fn exit(&self, _span: &span::Id) {}
}

/// The message of an event with its fields behind it.
#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let written = match field.name() {
            "message" => write!(self.0, "{value:?} "),
            "module" => Ok(()),
            name => write!(self.0, "{name}={value:?} "),
        };
        // Writing to a String cannot fail.
        debug_assert!(written.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_complaints_are_kept() {
        let log = Log::default();
        let subscriber = ToStderr { log: log.clone() };
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("loading");
            for number in 0..10 {
                tracing::error!(number, "bad magic");
            }
        });

        let words = log.complaints.lock().expect("not poisoned");
        assert_eq!(words.len(), COMPLAINTS_MAX);
        assert_eq!(words.back().map(String::as_str), Some("bad magic number=9"));
    }
}
