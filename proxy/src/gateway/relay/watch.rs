//! Finds out early that nothing more will come of a node: whoever says nothing within a stream is asked whether it still lives, and an
//! answer that stands still although its node lives is left where somebody else can go on with it. A node that is only slow is left in
//! peace. Sends nothing to the client.

use std::future::{Future, pending};
use std::pin::Pin;
use std::time::Duration;

use config::ids::NodeId;
use tokio::time::{Instant, sleep_until};

use crate::gateway::dispatch::Inquiry;

/// An answer stands still when the next piece takes so many times as long as its pieces took before.
const PAUSES: u32 = 20;
/// Before so many pieces nobody knows how fast an answer is.
const PIECES_MIN: u32 = 4;
/// What is a standstill then.
const STANDSTILL: Duration = Duration::from_secs(2);

/// Watches the node of one stream.
pub(super) struct Watch {
    inquiry: Inquiry,
    node: NodeId,
    /// Silence before it is asked; `None`: it never is.
    after: Option<Duration>,
    pace: Pace,
    heard_at: Instant,
    next: Instant,
    /// A question under way; kept here, because waiting for it may be interrupted.
    asked: Option<Pin<Box<dyn Future<Output = bool> + Send>>>,
}

impl Watch {
    /// Begins to watch now. A zero time: never asks.
    pub(super) fn new(inquiry: Inquiry, node: NodeId, after: Option<Duration>) -> Self {
        let after = after.filter(|after| !after.is_zero());
        let now = Instant::now();
        Self {
            inquiry,
            node,
            after,
            pace: Pace::default(),
            heard_at: now,
            next: now + after.unwrap_or_default(),
            asked: None,
        }
    }

    /// The node said something.
    pub(super) fn heard(&mut self) {
        let now = Instant::now();
        self.pace.heard(now - self.heard_at);
        self.heard_at = now;
        self.asked = None;
        self.next = now + self.after.unwrap_or_default();
    }

    /// Returns when nothing more is to be hoped for: the node is gone, or its answer stands still and it may be left, which is asked
    /// whenever it matters, because somebody who could go on may come later. Safe to cancel.
    pub(super) async fn lost(&mut self, may_leave: impl Fn() -> bool) {
        let Some(after) = self.after else {
            return pending().await;
        };
        loop {
            if self.asked.is_none() {
                sleep_until(self.next).await;
            }
            let asked = self.asked.get_or_insert_with(|| {
                let (inquiry, node) = (self.inquiry.clone(), self.node.clone());
                Box::pin(async move { inquiry.is_alive(&node).await })
            });
            if !asked.await {
                return;
            }
            self.asked = None;
            let now = Instant::now();
            let stands_at = self.heard_at + self.pace.patience(after);
            if now >= stands_at && may_leave() {
                return;
            }
            self.next = now + after;
            if stands_at > now {
                self.next = self.next.min(stands_at);
            }
        }
    }
}

/// How fast an answer comes.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    /// Between two pieces, lately.
    pause: Duration,
    pieces: u32,
}

impl Pace {
    fn heard(&mut self, pause: Duration) {
        self.pause = if self.pieces == 0 {
            pause
        } else {
            (self.pause * 7 + pause) / 8
        };
        self.pieces = self.pieces.saturating_add(1);
    }

    /// From here on it stands still.
    fn patience(&self, after: Duration) -> Duration {
        let slow = if self.pieces < PIECES_MIN {
            STANDSTILL
        } else {
            self.pause * PAUSES
        };
        after.max(slow)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AFTER: Duration = Duration::from_secs(2);

    #[test]
    fn a_slow_answer_is_given_twenty_of_its_own_pauses() {
        let mut pace = Pace::default();
        assert_eq!(pace.patience(Duration::ZERO), STANDSTILL);
        for _ in 0..PIECES_MIN {
            pace.heard(Duration::from_secs(1));
        }
        assert_eq!(pace.patience(AFTER), Duration::from_secs(20));
    }

    #[test]
    fn a_fast_one_stands_still_after_the_setting() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.heard(Duration::from_millis(20));
        }
        assert_eq!(pace.patience(AFTER), AFTER);
    }

    proptest! {
        #[test]
        fn an_even_answer_never_stands_still(pause_ms in 1u64..60_000, pieces in 4u32..50) {
            let pause = Duration::from_millis(pause_ms);
            let mut pace = Pace::default();
            for _ in 0..pieces {
                pace.heard(pause);
            }
            prop_assert!(pace.patience(Duration::ZERO) >= pause * 19);
        }
    }
}
