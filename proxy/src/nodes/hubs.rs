//! Which proxies of the house live: each says so through the store every few seconds and is believed for a while, so that nodes can hold a
//! tunnel to more than one. Never a record, never a secret; a proxy that machines elsewhere cannot dial says nothing (see [`name`]).

pub mod name;

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
#[derive(Debug)]
pub struct Hubs {
    own: Mutex<Own>,
    /// By address, with the pin and when it was heard.
    others: Mutex<BTreeMap<HubPlace, Instant>>,
}

/// What this proxy says of itself.
#[derive(Debug)]
struct Own {
    /// Which one it is, whatever it is called.
    proxy: String,
    /// Where it takes registrations, if others may be told.
    place: Option<HubPlace>,
}

impl Default for Hubs {
    fn default() -> Self {
        let proxy = format!("{:032x}", rand::random::<u128>());
        Self {
            own: Mutex::new(Own { proxy, place: None }),
            others: Mutex::default(),
        }
    }
}

impl Hubs {
    /// Which proxy this is: nodes make one line to it, however many names it has.
    pub fn proxy(&self) -> String {
        lock(&self.own).proxy.clone()
    }

    /// Goes on as the process before: nodes that were taken over with their sessions know it so.
    pub fn go_on_as(&self, proxy: String) {
        let mut own = lock(&self.own);
        if let Some(place) = &mut own.place {
            place.proxy.clone_from(&proxy);
        }
        own.proxy = proxy;
    }

    /// From now on this proxy is known under this address, with this pin.
    pub fn be(&self, url: String, pin: Option<String>) {
        let mut own = lock(&self.own);
        let proxy = own.proxy.clone();
        own.place = Some(HubPlace { url, proxy, pin });
    }

    /// From now on this proxy does not name itself.
    pub fn leave(&self) {
        lock(&self.own).place = None;
    }

    /// What another proxy said, or this one to itself.
    pub fn hear(&self, place: HubPlace, leaving: bool, now: Instant) {
        if place.proxy == lock(&self.own).proxy {
            return;
        }
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
        let own = lock(&self.own).place.clone();
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
        let Some(place) = lock(&self.own).place.clone() else {
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
            proxy: String::new(),
            pin: None,
        }
    }

    #[tokio::test]
    async fn a_proxy_is_believed_for_a_while_and_leaves_at_once() {
        let hubs = Hubs::default();
        let now = Instant::now();
        hubs.be("https://a".to_owned(), None);
        hubs.hear(place("https://a"), false, now);
        hubs.hear(place("https://b"), false, now);
        let urls = |at: Instant| -> Vec<String> {
            hubs.list(at).into_iter().map(|place| place.url).collect()
        };
        assert_eq!(urls(now), ["https://a", "https://b"]);
        assert_eq!(urls(now + LEASE), ["https://a"], "silent for too long");
        hubs.hear(place("https://b"), true, now);
        assert_eq!(urls(now), ["https://a"], "left");
        hubs.leave();
        assert!(
            urls(now).len() <= 1,
            "a proxy that leaves does not name itself as its own"
        );
    }

    #[tokio::test]
    async fn a_proxy_knows_its_own_words_by_what_it_is_not_by_what_it_is_called() {
        let (hubs, another) = (Hubs::default(), Hubs::default());
        assert_ne!(hubs.proxy(), another.proxy(), "drawn anew for each");
        let now = Instant::now();
        hubs.be("https://a".to_owned(), None);
        let own = hubs.list(now);
        assert_eq!(own[0].proxy, hubs.proxy());
        hubs.leave();
        hubs.hear(own[0].clone(), false, now);
        assert_eq!(hubs.list(now), [], "said before it left, heard after");
        let other = HubPlace {
            proxy: another.proxy(),
            ..place("https://a")
        };
        hubs.hear(other.clone(), false, now);
        assert_eq!(hubs.list(now), [other], "somebody else has that name now");

        another.be("https://b".to_owned(), None);
        another.go_on_as(hubs.proxy());
        assert_eq!(another.list(now)[0].proxy, hubs.proxy(), "taken over");
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
