//! What a request waits for before its first byte, shared between the tries that know it and the stream that shows it: one cell, written by
//! one, read by the other. Sends nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use config::wire::progress::Progress as Word;
use policy::waking::Waking;

/// What is known now.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    doing: Arc<Mutex<Option<Doing>>>,
}

/// What the request waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Doing {
    /// A machine or a server that slept starts.
    Waking(Waking),
    /// What a node says, or the waiting room.
    Node(Word),
}

impl Progress {
    /// From now on it waits for this.
    pub fn tell(&self, doing: Doing) {
        *self.cell() = Some(doing);
    }

    /// It waits for nothing that anybody knows.
    pub fn clear(&self) {
        *self.cell() = None;
    }

    /// What it waits for.
    pub fn now(&self) -> Option<Doing> {
        *self.cell()
    }

    /// The words after `: keep-alive`: `load 40` while something starts, `queue 3` and `prefill 1200/4096` where a node says so.
    pub fn words(&self, now: Instant) -> Option<String> {
        match self.now()? {
            Doing::Waking(waking) => Some(format!("load {}", waking.percent(now))),
            Doing::Node(word) => Some(word.to_string()),
        }
    }

    fn cell(&self) -> MutexGuard<'_, Option<Doing>> {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_start_is_told_in_percent() {
        let progress = Progress::default();
        let now = Instant::now();
        assert_eq!(progress.words(now), None);
        progress.tell(Doing::Waking(Waking {
            since: now,
            expected: Duration::from_secs(50),
        }));
        let later = now + Duration::from_secs(20);
        assert_eq!(progress.words(later).as_deref(), Some("load 40"));
        progress.clear();
        assert_eq!(progress.words(later), None);
    }
}
