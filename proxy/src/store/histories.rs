//! Is every store one ledger? Several clients reserve, settle, extend, release and look at once, under few ids and few counters;
//! what each was told must fit one order of the acts in which no act stands before one that had ended when it began, and in which
//! each answer is what policy's own arithmetic says. The search is that of Wing and Gong, with Lowe's memory of what was tried.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use policy::limit::{Counter, Decision, Elastic, MILLION, Rule};
use policy::quota::{self, Charge, CounterMap};

use super::contract::counting::{day, held, reservation, settlement, tenant};
use super::contract::now_ms;
use super::embedded::Embedded;
use super::redis::tests::RedisServer;
use super::{Reservation, ReservationId, Store, StoreError};

/// Tokens of the day that all clients share.
const LIMIT: u64 = 300;
/// Requests at once.
const PLACES: u64 = 3;
/// Bytes that lie stored.
const BYTES: u64 = 1_000;
const CLIENTS: usize = 4;
const ACTS_EACH: usize = 8;
/// Reservations over which the clients quarrel.
const IDS: usize = 6;

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
enum Act {
    Reserve { slot: usize },
    Settle { slot: usize, spent: u64 },
    Extend { slot: usize },
    Keep { bytes: u64 },
    Release { bytes: u64 },
    Look,
}

/// What it was told.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Told {
    Admitted { granted: u64, left: Vec<u64> },
    Refused { left: Vec<u64> },
    GivenUp,
    Done,
}

#[derive(Clone, Debug)]
struct Event {
    act: Act,
    told: Told,
    begun: Instant,
    ended: Instant,
}

/// The counters of one history, and the reservations that its clients may make.
#[derive(Debug)]
struct Scene {
    orders: Vec<Reservation>,
    bytes: Counter,
    now_ms: u64,
}

impl Scene {
    fn new(run: usize, seed: u64) -> Self {
        let now_ms = now_ms();
        let orders = (0..IDS).map(|slot| {
            let slot = u64::try_from(slot).unwrap();
            let mut budget = day(&format!("u:history:{run}"), LIMIT, now_ms);
            (budget.cost, budget.per_million) = ((seed >> slot) % 40, MILLION);
            let mut order = reservation(&[budget, held(&format!("u:history:{run}:held"), PLACES)]);
            let want = (seed >> (2 * slot)) % 120;
            order.elastic = Elastic {
                want,
                min: want.min(1),
            };
            order
        });
        Self {
            orders: orders.collect(),
            bytes: held(&format!("u:history:{run}:bytes"), BYTES),
            now_ms,
        }
    }

    /// Bytes that somebody stores; final.
    fn keeping(&self, bytes: u64) -> Reservation {
        let mut order = reservation(std::slice::from_ref(&self.bytes));
        order.counters[0].cost = bytes;
        order.lease_ms = 0;
        order
    }

    /// Every counter, at no cost.
    fn all(&self) -> Vec<Counter> {
        let mut all = self.orders[0].counters.clone();
        all.push(self.bytes.clone());
        for counter in &mut all {
            (counter.cost, counter.per_million) = (0, 0);
        }
        all
    }
}

fn told(decision: Result<Decision, StoreError>) -> Told {
    let left = |decision: &Decision| decision.states().iter().map(|one| one.remaining).collect();
    match decision {
        Ok(decision) if decision.is_admitted() => Told::Admitted {
            granted: decision.granted(),
            left: left(&decision),
        },
        Ok(decision) => Told::Refused {
            left: left(&decision),
        },
        Err(StoreError::Unavailable(text)) if text.contains("given up") => Told::GivenUp,
        Err(error) => panic!("{error}"),
    }
}

/// One order of acts on one piece of paper.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
struct Paper {
    numbers: BTreeMap<Arc<str>, u64>,
    /// What was granted and charged.
    open: BTreeMap<ReservationIdBytes, (u64, Vec<(u64, u64)>)>,
    settled: BTreeSet<ReservationIdBytes>,
}

type ReservationIdBytes = [u8; 16];

impl CounterMap for Paper {
    type Error = Infallible;

    fn load(&mut self, key: &str) -> Result<Option<u64>, Infallible> {
        Ok(self.numbers.get(key).copied())
    }

    fn save(&mut self, key: &Arc<str>, value: u64, expires_at_ms: u64) -> Result<(), Infallible> {
        if expires_at_ms == 0 {
            self.numbers.remove(key);
        } else {
            self.numbers.insert(Arc::clone(key), value);
        }
        Ok(())
    }
}

impl Paper {
    fn act(&mut self, scene: &Scene, act: Act) -> Told {
        match act {
            Act::Reserve { slot } => self.reserve(&scene.orders[slot], scene.now_ms),
            Act::Settle { slot, spent } => self.settle(&scene.orders[slot], spent, scene.now_ms),
            Act::Extend { .. } => Told::Done,
            Act::Keep { bytes } => self.reserve(&scene.keeping(bytes), scene.now_ms),
            Act::Release { bytes } => {
                let charge = Charge {
                    units: bytes,
                    charged_to_us: 0,
                };
                self.correct(&scene.bytes, Some(charge), 0, scene.now_ms);
                Told::Done
            }
            Act::Look => {
                let all = scene.all();
                let left = self.left(&all, scene.now_ms);
                Told::Admitted { granted: 0, left }
            }
        }
    }

    fn left(&self, counters: &[Counter], now_ms: u64) -> Vec<u64> {
        let stored = |counter: &Counter| self.numbers.get(&counter.key).copied();
        counters
            .iter()
            .map(|counter| quota::state(counter, stored(counter), now_ms * 1_000).remaining)
            .collect()
    }

    fn reserve(&mut self, order: &Reservation, now_ms: u64) -> Told {
        let id = *order.id.as_bytes();
        if let Some((granted, _)) = self.open.get(&id) {
            let (granted, left) = (*granted, self.left(&order.counters, now_ms));
            return Told::Admitted { granted, left };
        }
        if self.settled.contains(&id) {
            return Told::GivenUp;
        }
        let Ok((decision, charges)) =
            quota::apply(self, &order.counters, order.elastic, now_ms * 1_000);
        if decision.is_admitted() && order.lease_ms > 0 {
            let charges = charges.iter().map(|one| (one.units, one.charged_to_us));
            self.open
                .insert(id, (decision.granted(), charges.collect()));
        }
        told(Ok(decision))
    }

    fn settle(&mut self, order: &Reservation, spent: u64, now_ms: u64) -> Told {
        let id = *order.id.as_bytes();
        if !self.settled.insert(id) {
            return Told::Done;
        }
        let open = self.open.remove(&id);
        for (index, (counter, spent)) in order.counters.iter().zip([spent, 0]).enumerate() {
            let charge = open.as_ref().map(|(_, charges)| Charge {
                units: charges[index].0,
                charged_to_us: charges[index].1,
            });
            self.correct(counter, charge, spent, now_ms);
        }
        Told::Done
    }

    fn correct(&mut self, counter: &Counter, charge: Option<Charge>, spent: u64, now_ms: u64) {
        let place = (&counter.key, counter.rule);
        let Ok(()) = quota::settle(self, place, charge, spent, now_ms * 1_000);
    }
}

/// Whether some order fits.
fn fits(scene: &Scene, history: &[Event]) -> bool {
    let mut tried = HashSet::new();
    let mut ways = vec![(0_u64, Paper::default())];
    let all = (1_u64 << history.len()) - 1;
    while let Some((done, paper)) = ways.pop() {
        if done == all {
            return true;
        }
        let waits = |at: usize| done & (1 << at) == 0;
        let open = history.iter().enumerate().filter(|(at, _)| waits(*at));
        let first_end = open.clone().map(|(_, event)| event.ended).min();
        for (at, event) in open {
            if first_end.is_some_and(|ended| ended < event.begun) {
                continue;
            }
            let mut paper = paper.clone();
            if paper.act(scene, event.act) != event.told {
                continue;
            }
            let way = (done | (1 << at), paper);
            if tried.insert(way.clone()) {
                ways.push(way);
            }
        }
    }
    false
}

/// One client: what it may spend is what it was granted, as of a real request.
async fn client(store: Arc<dyn Store>, scene: Arc<Scene>, mut seed: u64) -> Vec<Event> {
    let mut granted: [Option<u64>; IDS] = [None; IDS];
    let mut events = Vec::new();
    for _ in 0..ACTS_EACH {
        // A linear congruence: the same seed makes the same acts.
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let dice = seed >> 33;
        let slot = usize::try_from(dice / 16).unwrap() % IDS;
        let most =
            granted[slot].map_or(0, |granted| scene.orders[slot].counters[0].charge(granted));
        let spent = most * (dice % 101) / 100;
        let act = match dice % 16 {
            0..=6 => Act::Reserve { slot },
            7..=10 => Act::Settle { slot, spent },
            11 => Act::Extend { slot },
            12 => Act::Keep { bytes: dice % 400 },
            13 => Act::Release { bytes: dice % 400 },
            _ => Act::Look,
        };
        let begun = Instant::now();
        let told = perform(&*store, &scene, act).await;
        let ended = Instant::now();
        if let (Act::Reserve { slot }, Told::Admitted { granted: some, .. }) = (act, &told) {
            granted[slot] = Some(*some);
        }
        events.push(Event {
            act,
            told,
            begun,
            ended,
        });
    }
    events
}

async fn perform(store: &dyn Store, scene: &Scene, act: Act) -> Told {
    match act {
        Act::Reserve { slot } => told(store.reserve(&scene.orders[slot], now_ms()).await),
        Act::Settle { slot, spent } => {
            let settled = settlement(&scene.orders[slot], &[spent, 0]);
            store.settle(&settled, now_ms()).await.unwrap();
            Told::Done
        }
        Act::Extend { slot } => {
            let ids = [(tenant(), scene.orders[slot].id)];
            store.extend(&ids, 60_000, now_ms()).await.unwrap();
            Told::Done
        }
        Act::Keep { bytes } => told(store.reserve(&scene.keeping(bytes), now_ms()).await),
        Act::Release { bytes } => {
            let mut counter = scene.bytes.clone();
            counter.cost = bytes;
            store
                .release(&tenant(), &[counter], now_ms())
                .await
                .unwrap();
            Told::Done
        }
        Act::Look => told(store.look(&tenant(), &scene.all(), now_ms()).await),
    }
}

/// Runs and checks so many histories; the proxies share one store.
async fn check(proxies: &[Arc<dyn Store>], histories: usize) {
    for run in 0..histories {
        let seed = rand::random();
        let scene = Arc::new(Scene::new(run, seed));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let store = Arc::clone(&proxies[number % proxies.len()]);
                let seed = seed ^ (u64::try_from(number).unwrap() << 40);
                tokio::spawn(client(store, Arc::clone(&scene), seed))
            })
            .collect();
        let mut history = Vec::new();
        for client in clients {
            history.extend(client.await.unwrap());
        }
        history.extend(finish(&*proxies[0], &scene).await);
        assert!(fits(&scene, &history), "seed {seed}: {history:#?}");
        billed_is_within_the_limit(&*proxies[0], &scene).await;
    }
}

/// What still runs ends and spends nothing; then somebody looks.
async fn finish(store: &dyn Store, scene: &Scene) -> Vec<Event> {
    let ends = (0..IDS).map(|slot| Act::Settle { slot, spent: 0 });
    let mut events = Vec::new();
    for act in ends.chain([Act::Look]) {
        let begun = Instant::now();
        let told = perform(store, scene, act).await;
        let ended = Instant::now();
        events.push(Event {
            act,
            told,
            begun,
            ended,
        });
    }
    events
}

/// Nobody spent more than was granted: what is used now is what was billed.
async fn billed_is_within_the_limit(store: &dyn Store, scene: &Scene) {
    let mut all = scene.all();
    // Under a limit ten times as high, a debt would be seen.
    if let Rule::Window(window) = &mut all[0].rule {
        window.limit = 10 * LIMIT;
    }
    let seen = store.look(&tenant(), &all, now_ms()).await.unwrap();
    let left: Vec<u64> = seen.states().iter().map(|one| one.remaining).collect();
    let billed = 10 * LIMIT - left[0];
    assert!(billed <= LIMIT, "{billed} of {LIMIT} were billed");
    assert_eq!(left[1], PLACES, "a place was lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_clients_of_the_embedded_store_were_told_fits_one_order_of_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Embedded::open(folder.path()).unwrap());
    check(&[store], 12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_clients_of_three_proxies_were_told_fits_one_order_of_the_reference() {
    let server = RedisServer::start().await;
    let proxies = [
        server.store().await,
        server.store().await,
        server.store().await,
    ];
    check(&proxies, 60).await;
}

/// The check is one that can fail: a charge that nobody made, and an answer from before its question.
#[tokio::test]
async fn a_history_with_a_lost_update_or_an_old_answer_fits_no_order() {
    let scene = Scene::new(0, u64::MAX);
    let clock = Instant::now();
    let at = |ms| clock + std::time::Duration::from_millis(ms);
    let mut paper = Paper::default();
    let mut history = Vec::new();
    for (number, act) in [
        Act::Reserve { slot: 0 },
        Act::Look,
        Act::Reserve { slot: 1 },
    ]
    .into_iter()
    .enumerate()
    {
        let begun = u64::try_from(number).unwrap() * 10;
        history.push(Event {
            act,
            told: paper.act(&scene, act),
            begun: at(begun),
            ended: at(begun + 5),
        });
    }
    assert!(fits(&scene, &history));
    let mut stale = history.clone();
    stale[1].told = Paper::default().act(&scene, Act::Look);
    assert!(!fits(&scene, &stale), "the look came after the charge");
    stale[1].begun = at(0);
    assert!(fits(&scene, &stale), "now it may have come before");
    let mut lost = history;
    lost[2].told = Paper::default().act(&scene, Act::Reserve { slot: 1 });
    assert!(!fits(&scene, &lost), "the second charge forgot the first");
    assert_ne!(scene.orders[0].id, ReservationId::random());
}
