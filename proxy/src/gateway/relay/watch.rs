//! Finds out early that a silent node is gone: whoever says nothing within a stream is asked whether it still lives. A node that is
//! only slow answers, and is left in peace. Sends nothing to the client.

use std::future::{Future, pending};
use std::pin::Pin;
use std::time::Duration;

use config::ids::NodeId;
use tokio::time::{Instant, sleep_until};

use crate::gateway::dispatch::Inquiry;

/// Watches the node of one stream.
pub(super) struct Watch {
    inquiry: Inquiry,
    node: NodeId,
    /// Silence before it is asked; `None`: it never is.
    after: Option<Duration>,
    next: Instant,
    /// A question under way; kept here, because waiting for it may be interrupted.
    asked: Option<Pin<Box<dyn Future<Output = bool> + Send>>>,
}

impl Watch {
    /// Begins to watch now. A zero time: never asks.
    pub(super) fn new(inquiry: Inquiry, node: NodeId, after: Option<Duration>) -> Self {
        let after = after.filter(|after| !after.is_zero());
        Self {
            inquiry,
            node,
            after,
            next: Instant::now() + after.unwrap_or_default(),
            asked: None,
        }
    }

    /// The node said something.
    pub(super) fn heard(&mut self) {
        self.asked = None;
        self.next = Instant::now() + self.after.unwrap_or_default();
    }

    /// Returns when the node no longer answers. Safe to cancel.
    pub(super) async fn lost(&mut self) {
        if self.after.is_none() {
            return pending().await;
        }
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
            self.heard();
        }
    }
}
