//! Hears what other proxies changed. Redis pushes each change with a version; a look at the version every second notices what a
//! cut, lagging or absent channel lost, so that nothing stays unknown for longer than [`crate::store::changes::WATCHED`] while Redis answers. Reads no
//! record itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use redis::AsyncCommands;
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::link::Link;
use crate::store::changes::{BACKLOG, Change};

/// Between two looks at the version.
const LOOK_EVERY: Duration = Duration::from_millis(750);
/// Between two tries to subscribe.
const SUBSCRIBE_PAUSE: Duration = Duration::from_millis(500);

/// The channel of a deployment.
pub(super) fn channel(prefix: &str) -> String {
    format!("{{{prefix}}}:changes")
}

/// The key of the version of all records.
pub(super) fn version(prefix: &str) -> String {
    format!("{{{prefix}}}:version")
}

/// What was heard so far. Its tasks end when nobody holds it any more.
#[derive(Debug)]
pub(super) struct Watch {
    sender: broadcast::Sender<Change>,
    heard: Mutex<Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    /// The version up to which every change was passed on; `None`: nothing is known yet.
    version: Option<u64>,
    /// When that was last compared with the server's.
    compared_at: Option<Instant>,
}

impl Heard {
    /// A pushed change: what to pass on besides it.
    fn pushed(&mut self, version: u64) -> Option<Change> {
        let missed = self
            .version
            .is_none_or(|known| version > known.saturating_add(1));
        self.version = Some(self.version.unwrap_or(0).max(version));
        missed.then_some(Change::Everything)
    }

    /// The server's version, asked for at this time: what to pass on. Smaller than ours means that the server lost data.
    fn compared(&mut self, version: u64, asked_at: Instant) -> Option<Change> {
        let missed = self.version != Some(version);
        self.version = Some(version);
        self.compared_at = Some(asked_at);
        missed.then_some(Change::Everything)
    }
}

impl Watch {
    /// Starts to listen. Needs a tokio runtime.
    pub(super) fn start(link: &Arc<Link>, prefix: &str) -> Arc<Self> {
        let this = Arc::new(Self {
            sender: broadcast::Sender::new(BACKLOG),
            heard: Mutex::default(),
        });
        tokio::spawn(listen(
            Arc::downgrade(&this),
            Arc::downgrade(link),
            channel(prefix),
        ));
        tokio::spawn(compare(
            Arc::downgrade(&this),
            Arc::downgrade(link),
            version(prefix),
        ));
        this
    }

    pub(super) fn changes(&self) -> broadcast::Receiver<Change> {
        self.sender.subscribe()
    }

    pub(super) fn watched_until(&self) -> Option<Instant> {
        self.lock().compared_at
    }

    fn pass_on(&self, change: Change) {
        // Without listeners there is nobody to tell.
        drop(self.sender.send(change));
    }

    fn push(&self, message: &str) {
        let parsed = message.split_once(' ').and_then(|(version, change)| {
            Some((version.parse().ok()?, serde_json::from_str(change).ok()))
        });
        let Some((version, change)) = parsed else {
            tracing::warn!("Redis pushed something that is not ours");
            return self.pass_on(Change::Everything);
        };
        let missed = self.lock().pushed(version);
        if let Some(everything) = missed {
            self.pass_on(everything);
        }
        // What a later version of the program says is read as anything.
        self.pass_on(change.unwrap_or(Change::Everything));
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Subscribes, and again whenever the channel ends.
async fn listen(watch: Weak<Watch>, link: Weak<Link>, channel: String) {
    while let Some(link) = link.upgrade() {
        let subscribed = link.subscribe(&channel).await;
        drop(link);
        match subscribed {
            Ok(subscription) => {
                let mut messages = subscription.into_on_message();
                while let Some(message) = messages.next().await {
                    let Some(watch) = watch.upgrade() else {
                        return;
                    };
                    let text: Result<String, _> = message.get_payload();
                    watch.push(&text.unwrap_or_default());
                }
                tracing::debug!("the channel of changes ended; subscribing again");
            }
            Err(error) => tracing::debug!(%error, "no channel of changes; looking at the version"),
        }
        if watch.strong_count() == 0 {
            return;
        }
        tokio::time::sleep(SUBSCRIBE_PAUSE).await;
    }
}

/// Looks at the version, for ever.
async fn compare(watch: Weak<Watch>, link: Weak<Link>, key: String) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(link) = link.upgrade() else {
            return;
        };
        let asked_at = Instant::now();
        let found: Result<Option<u64>, _> = link
            .call(async |connection| connection.get(&key).await)
            .await;
        drop(link);
        let Some(watch) = watch.upgrade() else {
            return;
        };
        let Ok(version) = found else {
            continue;
        };
        let missed = watch.lock().compared(version.unwrap_or(0), asked_at);
        if let Some(everything) = missed {
            watch.pass_on(everything);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_in_the_versions_is_everything() {
        let mut heard = Heard::default();
        let now = Instant::now();
        assert_eq!(
            heard.pushed(7),
            Some(Change::Everything),
            "nothing was known"
        );
        assert_eq!(heard.pushed(8), None);
        assert_eq!(heard.compared(8, now), None);
        assert_eq!(heard.pushed(10), Some(Change::Everything), "9 was lost");
        assert_eq!(
            heard.compared(11, now),
            Some(Change::Everything),
            "11 was lost, or is on its way"
        );
        assert_eq!(heard.pushed(11), None, "it was on its way");
        assert_eq!(
            heard.compared(2, now),
            Some(Change::Everything),
            "Redis lost its data"
        );
    }
}
