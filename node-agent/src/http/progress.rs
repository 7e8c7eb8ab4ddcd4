//! How far a request is, from whoever knows it to whoever writes it down: the newest word alone, never more than one a second.

use std::sync::Arc;
use std::time::Duration;

use config::wire::progress::Progress;
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep_until};

use crate::tiers::TierRoom;

/// People read no faster, and a hop across a thin line is spared.
const EVERY: Duration = Duration::from_secs(1);

/// Tells it.
#[derive(Clone, Debug)]
pub(super) struct Teller(watch::Sender<Option<Progress>>);

/// Hears it.
#[derive(Debug)]
pub(super) struct Listener {
    known: watch::Receiver<Option<Progress>>,
    not_before: Instant,
}

/// Both ends.
pub(super) fn channel() -> (Teller, Listener) {
    let (teller, known) = watch::channel(None);
    let not_before = Instant::now();
    (Teller(teller), Listener { known, not_before })
}

impl Teller {
    /// Tells how far it is.
    pub(super) fn tell(&self, progress: Progress) {
        self.0.send_if_modified(|known| {
            let is_new = *known != Some(progress);
            *known = Some(progress);
            is_new
        });
    }

    /// Tells what an engine says about a choice; whether it said anything of the kind.
    pub(super) fn hear(&self, event: &engine::Event) -> bool {
        let engine::Event::Progress(progress) = event else {
            return false;
        };
        self.tell(match *progress {
            engine::Progress::Queue { ahead } => Progress::Queue(ahead),
            engine::Progress::Prefill { done, total } => Progress::Prefill(done, total),
        });
        true
    }

    /// Does something, and tells meanwhile how far the model is that is loaded for it.
    pub(super) async fn while_loading<T>(
        &self,
        room: &Arc<TierRoom>,
        doing: impl Future<Output = T>,
    ) -> T {
        let mut ticks = interval(EVERY);
        tokio::pin!(doing);
        loop {
            tokio::select! {
                done = &mut doing => return done,
                _tick = ticks.tick() => {
                    if let Some(percent) = room.load_percent() {
                        self.tell(Progress::Load(percent));
                    }
                }
            }
        }
    }
}

impl Listener {
    /// The next word that is new. Safe to cancel.
    pub(super) async fn next(&mut self) -> Progress {
        loop {
            sleep_until(self.not_before).await;
            if self.known.changed().await.is_err() {
                return std::future::pending().await;
            }
            if let Some(progress) = *self.known.borrow_and_update() {
                self.not_before = Instant::now() + EVERY;
                return progress;
            }
        }
    }
}
