//! Which proxies of the house live: each says so through the store every few seconds and is believed for a while, so that nodes can hold a
//! tunnel to more than one. Never a record, never a secret; a proxy that cannot be dialled under a name of its own says nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use config::wire::node::HubPlace;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::store::Store;
use crate::store::changes::{self, Change};

/// Pause between two words of a proxy.
const SAY_EVERY: Duration = Duration::from_secs(3);
/// A proxy that was silent for this long is gone: three words may be lost.
const LEASE: Duration = Duration::from_secs(12);
/// Proxies of one house; who comes when there are so many is not told to nodes.
const HUBS_MAX: usize = 64;

/// The proxies of the house, as this one knows them.
#[derive(Debug, Default)]
pub struct Hubs {
    own: Mutex<Option<HubPlace>>,
    /// By address, with the pin and when it was heard.
    others: Mutex<BTreeMap<HubPlace, Instant>>,
}

impl Hubs {
    /// From now on this proxy is known under this place; `None`: it leaves.
    pub fn be(&self, place: Option<HubPlace>) {
        *lock(&self.own) = place;
    }

    /// What another proxy said, or this one to itself.
    pub fn hear(&self, place: HubPlace, leaving: bool, now: Instant) {
        let mut others = lock(&self.others);
        others.retain(|known, heard| {
            let is_same = known.url == place.url;
            !is_same && now.duration_since(*heard) < LEASE
        });
        if !leaving && others.len() < HUBS_MAX {
            others.insert(place, now);
        }
    }

    /// All that live, this one first if it may be named.
    pub fn list(&self, now: Instant) -> Vec<HubPlace> {
        let own = lock(&self.own).clone();
        let others = lock(&self.others);
        let is_other = |place: &&HubPlace| own.as_ref().is_none_or(|own| own.url != place.url);
        let alive = others
            .iter()
            .filter(|(_, heard)| now.duration_since(**heard) < LEASE)
            .map(|(place, _)| place);
        let others: Vec<HubPlace> = alive.filter(is_other).cloned().collect();
        own.into_iter().chain(others).collect()
    }

    /// Tells the other proxies once how this one stands.
    pub async fn say(&self, store: &dyn Store, leaving: bool) {
        let Some(place) = lock(&self.own).clone() else {
            return;
        };
        let word = Change::Hub { place, leaving };
        // It is said again soon, or nobody needs it any more.
        if let Ok(Err(error)) = tokio::time::timeout(SAY_EVERY, store.publish(&word)).await {
            tracing::debug!(%error, "the other proxies do not hear of this one");
        }
    }

    /// Says that this proxy lives and hears the others. Runs for ever.
    pub async fn keep(self: Arc<Self>, store: Arc<dyn Store>) {
        let mut changes = store.changes();
        let mut again = interval(SAY_EVERY);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = again.tick() => self.say(&*store, false).await,
                change = changes::next(&mut changes) => match change {
                    Some(Change::Hub { place, leaving }) => {
                        self.hear(place, leaving, Instant::now());
                    }
                    Some(
                        Change::Key(_)
                        | Change::User(_)
                        | Change::Denials
                        | Change::Node(_)
                        | Change::Breaker { .. }
                        | Change::Everything,
                    ) => {}
                    None => return,
                },
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str) -> HubPlace {
        HubPlace {
            url: url.to_owned(),
            pin: None,
        }
    }

    #[tokio::test]
    async fn a_proxy_is_believed_for_a_while_and_leaves_at_once() {
        let hubs = Hubs::default();
        let now = Instant::now();
        hubs.be(Some(place("https://a")));
        hubs.hear(place("https://a"), false, now);
        hubs.hear(place("https://b"), false, now);
        let urls = |at: Instant| -> Vec<String> {
            hubs.list(at).into_iter().map(|place| place.url).collect()
        };
        assert_eq!(urls(now), ["https://a", "https://b"]);
        assert_eq!(urls(now + LEASE), ["https://a"], "silent for too long");
        hubs.hear(place("https://b"), true, now);
        assert_eq!(urls(now), ["https://a"], "left");
        hubs.be(None);
        assert!(
            urls(now).len() <= 1,
            "a proxy that leaves does not name itself as its own"
        );
    }

    #[tokio::test]
    async fn the_table_is_bounded() {
        let hubs = Hubs::default();
        let now = Instant::now();
        for number in 0..1_000 {
            hubs.hear(place(&format!("https://{number}")), false, now);
        }
        assert_eq!(hubs.list(now).len(), HUBS_MAX);
    }
}
