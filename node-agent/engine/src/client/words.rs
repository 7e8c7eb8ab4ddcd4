//! The last words of a worker: what it wrote to standard error, so that a crash has a reason.
//!
//! The worker's own log lines go on to our log at debug level. Everything else stays here, because a C++ library may quote
//! a request when it complains, and requests must never reach a log.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use tokio::io::AsyncReadExt;
use tokio::process::ChildStderr;
use tokio::task::JoinHandle;

/// Starts the lines that the worker's logger writes; see `worker/log.rs`.
pub(crate) const LOG_MARK: &str = "hearth-worker: ";

const LINES_MAX: usize = 32;
const LINE_BYTES_MAX: usize = 400;

/// Words that only the death of a process writes.
const DYING_WORDS: [&str; 7] = [
    "GGML_ASSERT",
    "GGML_ABORT",
    "terminate called",
    "what():",
    "panicked at",
    "aborting",
    "overflowed its stack",
];

/// A few lines of standard error, shared by the task that reads it and the supervisor.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastWords {
    lines: Arc<Mutex<VecDeque<String>>>,
}

impl LastWords {
    /// Reads `stderr` to its end in a task of its own, so that the worker never waits for it.
    pub(crate) fn listen(&self, mut stderr: ChildStderr) -> JoinHandle<()> {
        let words = self.clone();
        tokio::spawn(async move {
            let mut chunk = vec![0; 4096];
            let mut line = Vec::new();
            while let Ok(read) = stderr.read(&mut chunk).await {
                if read == 0 {
                    break;
                }
                for byte in chunk.iter().take(read) {
                    if *byte == b'\n' {
                        words.hear(&line);
                        line.clear();
                    } else if line.len() < LINE_BYTES_MAX {
                        line.push(*byte);
                    }
                }
            }
            words.hear(&line);
        })
    }

    /// What the process said about its death, if it said anything.
    pub(crate) fn dying(&self) -> Option<String> {
        let lines = self.lock();
        let dying: Vec<&str> = lines.iter().map(String::as_str).collect();
        (!dying.is_empty()).then(|| dying.join("; "))
    }

    fn hear(&self, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        if let Some(ours) = line.strip_prefix(LOG_MARK) {
            tracing::debug!(target: "engine::worker", "{ours}");
        } else if DYING_WORDS.iter().any(|word| line.contains(word)) {
            let mut lines = self.lock();
            if lines.len() == LINES_MAX {
                lines.pop_front();
            }
            lines.push_back(line.into_owned());
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dying_words_are_kept() {
        let words = LastWords::default();
        words.hear(b"hearth-worker: loaded");
        words.hear(b"parse: error parsing grammar near 'my secret'");
        assert_eq!(words.dying(), None);

        words.hear(b"a.cpp:1: GGML_ASSERT(x) failed");
        assert_eq!(
            words.dying().as_deref(),
            Some("a.cpp:1: GGML_ASSERT(x) failed")
        );
    }
}
