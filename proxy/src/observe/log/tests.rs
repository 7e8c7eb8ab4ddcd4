//! What a line looks like, and what cannot get into one.

use std::io;
use std::sync::{Arc, Mutex};

use config::ids::RequestId;
use journal::Json;
use policy::usage::Usage;
use serde_json::Value;
use tracing_subscriber::fmt::MakeWriter;

use super::*;

/// A file in memory.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl io::Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Paper {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// The lines that `work` logs.
fn lines(work: impl FnOnce()) -> Vec<Value> {
    let paper = Paper::default();
    let subscriber = tracing_subscriber::fmt()
        .event_format(Json)
        .with_writer(paper.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, work);
    let written = paper.0.lock().unwrap().clone();
    String::from_utf8(written)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn record() -> AccessRecord {
    let mut record = AccessRecord::new(RequestId::new("req_1"), "chat_completions", "POST");
    record.status = 200;
    record.tier = Some(Tier::Primary);
    record.model = Some("tiny\n{\"level\":\"ERROR\"}\u{1b}[2J".into());
    record.usage = Some(Usage {
        prompt_tokens: 7,
        completion_tokens: 9,
        ..Usage::default()
    });
    record.attempts = vec![
        Attempt {
            tier: Tier::Heavy,
            node: Some("den".into()),
            outcome: "timeout".into(),
        },
        Attempt {
            tier: Tier::Primary,
            node: None,
            outcome: "ok".into(),
        },
    ];
    record
}

#[test]
fn a_request_is_one_flat_line() {
    let lines = lines(|| request(&record()));
    let [line] = lines.as_slice() else {
        panic!("{lines:?}");
    };
    let want = [
        ("level", Value::from("INFO")),
        ("msg", Value::from("request")),
        ("request_id", Value::from("req_1")),
        ("route", Value::from("chat_completions")),
        ("status", Value::from(200)),
        ("tier", Value::from("primary")),
        ("prompt_tokens", Value::from(7)),
        ("completion_tokens", Value::from(9)),
        ("attempts", Value::from("heavy@den:timeout,primary@-:ok")),
        ("stream", Value::from(false)),
    ];
    for (name, value) in want {
        assert_eq!(line[name], value, "{name}");
    }
    assert!(line.get("refusal").is_none(), "what is unknown is not said");
    let time = line["ts"].as_str().unwrap();
    assert!(time.ends_with('Z') && time.contains('T'), "{time}");
}

#[test]
fn a_stranger_cannot_forge_a_line() {
    let lines = lines(|| {
        request(&record());
        tracing::warn!(text = "a\r\n{\"level\":\"ERROR\"}", "b\nc");
    });
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|line| line["level"] != "ERROR"));
}

#[test]
fn health_checks_are_not_logged_at_info() {
    let mut record = record();
    record.route = "healthz";
    assert!(lines(|| request(&record)).is_empty());
}
