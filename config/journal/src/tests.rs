//! What a line looks like, and what cannot get into one.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use super::*;

/// A file in memory.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl io::Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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

#[test]
fn a_line_is_flat_and_its_numbers_are_numbers() {
    let lines = lines(|| {
        tracing::info!(
            ms = Duration::from_millis(21).as_millis(),
            tokens = 7,
            rate = 2.5,
            tier = %"heavy",
            node = Option::<&str>::None,
            stream = true,
            "request"
        );
    });
    let [line] = lines.as_slice() else {
        panic!("{lines:?}");
    };
    let want = [
        ("level", Value::from("INFO")),
        ("target", Value::from("journal::tests")),
        ("msg", Value::from("request")),
        ("ms", Value::from(21)),
        ("tokens", Value::from(7)),
        ("rate", Value::from(2.5)),
        ("tier", Value::from("heavy")),
        ("stream", Value::from(true)),
    ];
    for (name, value) in &want {
        assert_eq!(line[name], *value, "{name}");
    }
    let fields = line.as_object().unwrap().len();
    assert_eq!(fields, want.len() + 1, "what is unknown is not said");
    let time = line["ts"].as_str().unwrap();
    assert!(time.ends_with('Z') && time.contains('T'), "{time}");
}

#[test]
fn a_stranger_cannot_forge_a_line() {
    let lines = lines(|| {
        tracing::warn!(text = "a\r\n{\"level\":\"ERROR\"}\u{1b}[2J", "b\nc");
    });
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["level"], "WARN");
}

#[test]
fn filters_are_checked() {
    let settings = Log {
        filter: "hearth=nonsense=x".into(),
        format: LogFormat::Json,
    };
    assert!(matches!(
        init(&settings, "a=off"),
        Err(LogError::Filter(..))
    ));
}
