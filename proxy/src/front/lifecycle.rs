//! How the edge ends: stop accepting, close what is idle, wait for what runs, but not for ever. Pingora would sleep its
//! whole grace period; here the last answer ends the wait. Also the signals that start it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// After the last answer, connections have this long to say goodbye (HTTP/2's final frames) before they are dropped.
const FAREWELL: Duration = Duration::from_secs(1);
/// Answers that the grace was too short for have this long to say that they end, and to be charged.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// How far the proxy is on its way out.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Phase {
    /// Accepting and answering.
    #[default]
    Serving,
    /// Not accepting; what runs may finish within the grace.
    Draining,
    /// Cutting everything now.
    Stopping,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Drained {
    /// Requests that were still running when the grace was over: their clients were told.
    pub cut: usize,
}

/// Counts what is running, and wakes the drain when it may be over.
#[derive(Debug, Default)]
pub(crate) struct Census {
    requests: AtomicUsize,
    connections: AtomicUsize,
    changed: Notify,
    closing: CancellationToken,
}

/// What a [`Tally`] counts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Counted {
    Request,
    Connection,
}

/// One counted thing, until it is dropped.
#[derive(Debug)]
pub(crate) struct Tally {
    census: Arc<Census>,
    counted: Counted,
}

impl Census {
    pub(crate) fn count(self: &Arc<Self>, counted: Counted) -> Tally {
        self.counter(counted).fetch_add(1, Ordering::AcqRel);
        Tally {
            census: Arc::clone(self),
            counted,
        }
    }

    fn counter(&self, counted: Counted) -> &AtomicUsize {
        match counted {
            Counted::Request => &self.requests,
            Counted::Connection => &self.connections,
        }
    }

    pub(crate) fn running(&self, counted: Counted) -> usize {
        self.counter(counted).load(Ordering::Acquire)
    }

    async fn until_none(&self, counted: Counted) {
        while self.running(counted) > 0 {
            self.changed.notified().await;
        }
    }

    /// Waits for the requests within the grace, then shortly for the connections.
    pub(crate) async fn drain(&self, grace: Duration) -> Drained {
        let finished = timeout_at(Instant::now() + grace, self.until_none(Counted::Request)).await;
        let drained = match finished {
            Ok(()) => Drained::default(),
            Err(_late) => self.close().await,
        };
        let farewell = timeout_at(
            Instant::now() + FAREWELL,
            self.until_none(Counted::Connection),
        );
        drop(farewell.await);
        drained
    }

    /// Ends every answer that runs, each with its last words.
    pub(crate) async fn close(&self) -> Drained {
        let cut = self.running(Counted::Request);
        self.closing.cancel();
        let said = timeout_at(
            Instant::now() + LAST_WORDS,
            self.until_none(Counted::Request),
        );
        drop(said.await);
        Drained { cut }
    }

    /// Resolves when nobody's answer is waited for any more.
    pub(crate) async fn closed(&self) {
        self.closing.cancelled().await;
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        if self
            .census
            .counter(self.counted)
            .fetch_sub(1, Ordering::AcqRel)
            == 1
        {
            self.census.changed.notify_one();
        }
    }
}

/// The process's signals. SIGHUP must be ours: unhandled it would end the process.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Takes over SIGTERM, SIGINT and SIGHUP.
    pub fn install() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Moves `phase` on as signals come: SIGTERM drains, a second one or SIGINT stops now, SIGHUP calls `reload`.
    /// Returns once everything has to stop now.
    pub async fn follow(mut self, phase: &watch::Sender<Phase>, reload: impl Fn()) {
        while *phase.borrow() < Phase::Stopping {
            tokio::select! {
                _ = self.terminate.recv() => {
                    phase.send_modify(|phase| {
                        *phase = match phase {
                            Phase::Serving => Phase::Draining,
                            Phase::Draining | Phase::Stopping => Phase::Stopping,
                        };
                    });
                }
                _ = self.interrupt.recv() => phase.send_modify(|phase| *phase = Phase::Stopping),
                _ = self.hangup.recv() => reload(),
            }
        }
    }
}

/// Resolves when `phase` has reached `at_least`, or when nobody can move it any more.
pub(crate) async fn reached(phase: &mut watch::Receiver<Phase>, at_least: Phase) {
    let seen = phase.wait_for(|phase| *phase >= at_least).await;
    drop(seen);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal_myself(name: &str) {
        let own = std::process::id().to_string();
        let sent = std::process::Command::new("kill")
            .args(["-s", name, &own])
            .status();
        assert!(sent.is_ok_and(|status| status.success()));
    }

    #[tokio::test]
    async fn signals_reload_then_drain_then_stop() {
        let signals = Signals::install().unwrap();
        let (phase, mut seen) = watch::channel(Phase::Serving);
        let (reloads, mut reloaded) = tokio::sync::mpsc::channel(10);
        let follow = tokio::spawn(async move {
            signals
                .follow(&phase, || assert!(reloads.try_send(()).is_ok()))
                .await;
        });
        signal_myself("HUP");
        reloaded
            .recv()
            .await
            .expect("SIGHUP reloads and does not end the process");
        assert_eq!(*seen.borrow(), Phase::Serving);
        signal_myself("TERM");
        reached(&mut seen, Phase::Draining).await;
        assert_eq!(*seen.borrow(), Phase::Draining);
        signal_myself("TERM");
        reached(&mut seen, Phase::Stopping).await;
        follow.await.expect("nothing is left to follow");
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_request_ends_the_wait() {
        let census = Arc::new(Census::default());
        let request = census.count(Counted::Request);
        let begun = Instant::now();
        let end = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            drop(request);
        };
        let (drained, ()) = tokio::join!(census.drain(Duration::from_secs(30)), end);
        assert_eq!((drained.cut, begun.elapsed()), (0, Duration::from_secs(5)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_grace_ends_the_wait_for_a_request_that_does_not() {
        let census = Arc::new(Census::default());
        let _request = census.count(Counted::Request);
        let _connection = census.count(Counted::Connection);
        let begun = Instant::now();
        let grace = Duration::from_secs(30);
        let drained = census.drain(grace).await;
        let all = grace + LAST_WORDS + FAREWELL;
        assert_eq!((drained.cut, begun.elapsed()), (1, all));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_outlasts_the_grace_is_told_and_has_its_last_words() {
        let census = Arc::new(Census::default());
        let request = census.count(Counted::Request);
        let begun = Instant::now();
        let says = async {
            census.closed().await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            drop(request);
        };
        let (drained, ()) = tokio::join!(census.drain(Duration::from_secs(30)), says);
        let all = Duration::from_millis(30_200);
        assert_eq!((drained.cut, begun.elapsed()), (1, all));
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_costs_a_moment_only() {
        let census = Arc::new(Census::default());
        let _connection = census.count(Counted::Connection);
        let begun = Instant::now();
        assert_eq!(census.drain(Duration::from_secs(30)).await.cut, 0);
        assert_eq!(begun.elapsed(), FAREWELL);
    }
}
