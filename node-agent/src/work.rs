//! Counts requests under way and closes the door when the node goes down. Knows nothing of HTTP.

use tokio::sync::watch;

/// Requests under way, shared by all connections.
#[derive(Clone, Debug)]
pub struct Work {
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    running: usize,
    draining: bool,
    /// The proxy sends nothing for now; the node stays.
    resting: bool,
}

/// Counts as work until dropped.
#[derive(Debug)]
pub struct InFlight {
    state: watch::Sender<State>,
}

impl Default for Work {
    fn default() -> Self {
        Self {
            state: watch::channel(State::default()).0,
        }
    }
}

impl Work {
    /// Begins a request; `None` once the node is going down.
    pub fn enter(&self) -> Option<InFlight> {
        let entered = self.state.send_if_modified(|state| {
            let open = !state.draining && !state.resting;
            if open {
                state.running += 1;
            }
            open
        });
        entered.then(|| InFlight {
            state: self.state.clone(),
        })
    }

    /// Lets nobody in from now on.
    pub fn drain(&self) {
        self.state.send_modify(|state| state.draining = true);
    }

    /// Lets nobody in for now, or lets them in again; what runs goes on. True if that is new.
    pub fn rest(&self, resting: bool) -> bool {
        let mut changed = false;
        self.state.send_modify(|state| {
            changed = state.resting != resting;
            state.resting = resting;
        });
        changed
    }

    /// Whether the node is going down.
    pub fn is_draining(&self) -> bool {
        self.state.borrow().draining
    }

    /// How many requests are under way.
    pub fn running(&self) -> usize {
        self.state.borrow().running
    }

    /// Resolves when the door is closed and the last request has ended.
    pub async fn idle(&self) {
        let mut state = self.state.subscribe();
        // The sender lives as long as `self`.
        let _closed = state
            .wait_for(|state| state.draining && state.running == 0)
            .await;
    }

    /// Resolves when the door is closed.
    pub async fn draining(&self) {
        let mut state = self.state.subscribe();
        let _closed = state.wait_for(|state| state.draining).await;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.state
            .send_modify(|state| state.running = state.running.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_rests_lets_nobody_in_and_what_runs_goes_on() {
        let work = Work::default();
        let running = work.enter().expect("open");
        assert!(work.rest(true) && !work.rest(true), "once");
        assert!(work.enter().is_none() && !work.is_draining());
        assert_eq!(work.running(), 1);
        assert!(work.rest(false));
        assert!(work.enter().is_some(), "open again");
        drop(running);
    }

    #[tokio::test]
    async fn idle_waits_for_the_last_request_and_nobody_enters_after_the_drain() {
        let work = Work::default();
        let first = work.enter().expect("open");
        work.drain();
        assert!(work.enter().is_none());
        let waiting = tokio::spawn({
            let work = work.clone();
            async move { work.idle().await }
        });
        assert_eq!(work.running(), 1);
        drop(first);
        waiting.await.expect("resolves");
    }
}
