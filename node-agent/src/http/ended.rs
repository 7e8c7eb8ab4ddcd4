//! What requests that have ended used, for a short while: the proxy asks when an answer was cut off before it could say so itself. Bounded;
//! holds numbers alone.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use config::wire::chat::Usage;
use tokio::sync::Notify;
use tokio::time::timeout;

/// Requests remembered; the proxy asks within a second or two.
const KEPT: usize = 4_096;
/// How long a request that nobody waits for any more may take to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// Usage of requests by completion id.
#[derive(Debug, Default)]
pub(super) struct Ended {
    known: Mutex<Known>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Known {
    by_id: HashMap<String, Usage>,
    in_order: VecDeque<String>,
}

impl Ended {
    /// A request has ended.
    pub(super) fn note(&self, completion_id: &str, usage: Usage) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let id = completion_id.to_owned();
        if known.by_id.insert(id.clone(), usage).is_none() {
            known.in_order.push_back(id);
        }
        if known.in_order.len() > KEPT
            && let Some(oldest) = known.in_order.pop_front()
        {
            known.by_id.remove(&oldest);
        }
        drop(known);
        self.more.notify_waiters();
    }

    /// What a request used, once it has ended; `None`: nobody knows it.
    pub(super) async fn usage(&self, completion_id: &str) -> Option<Usage> {
        let told = async {
            loop {
                let more = self.more.notified();
                if let Some(usage) = self.known(completion_id) {
                    return usage;
                }
                more.await;
            }
        };
        timeout(PATIENCE, told).await.ok()
    }

    fn known(&self, completion_id: &str) -> Option<Usage> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.by_id.get(completion_id).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn whoever_asks_before_the_end_waits_for_it() {
        let ended = Arc::new(Ended::default());
        let asking = tokio::spawn({
            let ended = ended.clone();
            async move { ended.usage("chatcmpl-1").await }
        });
        tokio::task::yield_now().await;
        ended.note("chatcmpl-1", Usage::new(12, 3, 8));
        let usage = asking.await.expect("ends").expect("known");
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (12, 3));
    }

    #[tokio::test]
    async fn the_oldest_are_forgotten() {
        let ended = Ended::default();
        for index in 0..=KEPT {
            ended.note(&format!("chatcmpl-{index}"), Usage::new(1, 1, 0));
        }
        assert_eq!(ended.known("chatcmpl-0"), None);
        assert!(ended.known(&format!("chatcmpl-{KEPT}")).is_some());
        assert_eq!(ended.known.lock().expect("whole").in_order.len(), KEPT);
    }
}
