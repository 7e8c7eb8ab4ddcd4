//! Redis away in lease mode: a share, no more; written down, charged later, once; also when the proxy is started again.

use std::path::Path;
use std::time::Instant;

use super::servers::SlowLine;

use super::*;
use crate::store::ReservationId;

fn lease(server: &RedisServer) -> RedisSettings {
    RedisSettings {
        on_failure: OnFailure::Lease,
        lease_percent: 10,
        timeout: Duration::from_millis(500),
        ..server.redis_settings()
    }
}

async fn open(settings: &RedisSettings, state: &Path) -> (Redis, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let store = Redis::open(settings, state, Arc::clone(&metrics))
        .await
        .unwrap();
    (store, metrics)
}

/// The tasks of the run before may hold its journal for a moment.
async fn open_again(settings: &RedisSettings, state: &Path) -> Redis {
    for _ in 0..200 {
        match Redis::open(settings, state, Arc::new(Metrics::new())).await {
            Ok(store) => return store,
            Err(StoreError::InUse(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the journal is never free");
}

/// Reserves with the day's budget, and tells the order if it was admitted.
async fn enter(store: &Redis, counter: &Counter) -> Result<Option<Reservation>, StoreError> {
    let order = reservation(std::slice::from_ref(counter));
    let decision = store.reserve(&order, now_ms()).await?;
    Ok(decision.is_admitted().then_some(order))
}

/// Units left, as Redis says.
async fn charged(store: &Redis, counter: &Counter) -> Option<u64> {
    let mut counter = counter.clone();
    counter.cost = 0;
    let seen = store.counters.look(&tenant(), &[counter], None).await;
    seen.ok().map(|seen| seen.states()[0].remaining)
}

async fn away(store: &Redis) {
    until("Redis is away", async || store.ping().await.is_err()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_here_spends_a_share_and_all_of_it_is_charged_when_redis_is_back() {
    let mut server =
        RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let state = tempfile::tempdir().unwrap();
    let (store, metrics) = open(&lease(&server), state.path()).await;
    let day = day("u:ada", 100, now_ms());
    let running = enter(&store, &day).await.unwrap().unwrap();
    assert!(
        metrics
            .render()
            .contains("hearth_store_lease_units{unit=\"requests\"} 10"),
        "{}",
        metrics.render()
    );
    server.kill();
    away(&store).await;
    let mut admitted = Vec::new();
    let mut refusal = None;
    for _ in 0..30 {
        match enter(&store, &day).await {
            Ok(order) => admitted.extend(order),
            Err(error) => refusal = Some(error),
        }
    }
    assert_eq!(admitted.len(), 10, "a tenth of 100");
    let text = refusal.unwrap().to_string();
    assert!(
        text.contains("share of the caller's limits is spent"),
        "{text}"
    );
    let stranger = crate::store::contract::day("u:eve", 100, now_ms());
    let text = enter(&store, &stranger).await.unwrap_err().to_string();
    assert!(text.contains("holds no share"), "{text}");
    // One of before, seven of now; three were not served; each is told twice.
    for _ in 0..2 {
        store
            .settle(&settlement(&running, &[1]), now_ms())
            .await
            .unwrap();
        for (number, order) in admitted.iter().enumerate() {
            let spent = u64::from(number < 7);
            let mut settled = settlement(order, &[spent]);
            settled.entry = Some(policy::ledger::LedgerEntry {
                at_unix_ms: now_ms(),
                ..policy::ledger::LedgerEntry::new(
                    order.id.to_string(),
                    config::ids::RequestId::new("req_1"),
                    config::ids::UserId::new("ada"),
                )
            });
            store.settle(&settled, now_ms()).await.unwrap();
        }
    }
    server.restart().await;
    until("all is charged", async || {
        charged(&store, &day).await == Some(92)
    })
    .await;
    until("the journal is empty", async || {
        metrics.render().contains("hearth_store_bills 0")
            && std::fs::metadata(state.path().join("redis-journal"))
                .unwrap()
                .len()
                == 0
    })
    .await;
    assert_eq!(left(&store, &day).await, 92, "1 + 7 of 100");
    assert_in_the_books(&store, &admitted).await;
}

async fn assert_in_the_books(store: &Redis, admitted: &[Reservation]) {
    let all = crate::store::ledger::RecordQuery::of(tenant());
    let books = crate::store::Ledger::records(store, &all).await.unwrap();
    let mut written: Vec<String> = books.entries.into_iter().map(|entry| entry.id).collect();
    let mut wanted: Vec<String> = admitted.iter().map(|order| order.id.to_string()).collect();
    written.sort();
    wanted.sort();
    assert_eq!(written, wanted, "every entry is in the books, once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_starts_again_without_redis_goes_on_with_what_was_left() {
    let mut server =
        RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let state = tempfile::tempdir().unwrap();
    let settings = lease(&server);
    let (store, _) = open(&settings, state.path()).await;
    let day = day("u:ada", 100, now_ms());
    enter(&store, &day).await.unwrap().unwrap();
    server.kill();
    away(&store).await;
    let served = enter(&store, &day).await.unwrap().unwrap();
    store
        .settle(&settlement(&served, &[1]), now_ms())
        .await
        .unwrap();
    for _ in 0..3 {
        enter(&store, &day).await.unwrap().unwrap();
    }
    drop(store);
    let store = open_again(&settings, state.path()).await;
    let mut granted = 0;
    for _ in 0..20 {
        granted += u32::from(matches!(enter(&store, &day).await, Ok(Some(_))));
    }
    assert_eq!(granted, 6, "4 of 10 were spent before");
    server.restart().await;
    // Of those that ran, one ended and is charged; the others went with their proxy.
    until("what ended is charged", async || {
        charged(&store, &day).await == Some(98)
    })
    .await;
}

/// Three proxies at one budget, Redis away in the middle: never more than the limit and the shares.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_admission_is_at_most_the_sum_of_the_shares() {
    const LIMIT: u64 = 200;
    let mut server =
        RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let settings = lease(&server);
    let mut proxies = Vec::new();
    for _ in 0..3 {
        let state = tempfile::tempdir().unwrap();
        let (store, metrics) = open(&settings, state.path()).await;
        proxies.push((Arc::new(store), metrics, state));
    }
    let day = day("u:bound", LIMIT, now_ms());
    let mut billed = 0;
    for (store, ..) in &proxies {
        billed += serve(store, &day, 50).await;
    }
    assert_eq!(billed, 150);
    let bound: u64 = proxies.iter().map(|(_, metrics, _)| shares(metrics)).sum();
    assert_eq!(bound, 60, "three tenths");
    server.kill();
    for (store, ..) in &proxies {
        away(store).await;
        let spent = serve(store, &day, 100).await;
        assert_eq!(spent, 20);
        billed += spent;
    }
    server.restart().await;
    for (store, ..) in &proxies {
        until("it is back", async || store.ping().await.is_ok()).await;
    }
    until("all journals are empty", async || {
        proxies
            .iter()
            .all(|(_, metrics, _)| metrics.render().contains("hearth_store_bills 0"))
    })
    .await;
    for (store, ..) in &proxies {
        billed += serve(store, &day, 100).await;
    }
    assert!(billed <= LIMIT + bound, "{billed}");
    let left = charged(&proxies[0].0, &day).await;
    assert_eq!(left, Some(LIMIT.saturating_sub(billed)));
}

async fn serve(store: &Redis, counter: &Counter, requests: u32) -> u64 {
    let mut billed = 0;
    for _ in 0..requests {
        if let Ok(Some(order)) = enter(store, counter).await {
            store
                .settle(&settlement(&order, &[1]), now_ms())
                .await
                .unwrap();
            billed += 1;
        }
    }
    billed
}

fn shares(metrics: &Metrics) -> u64 {
    metrics
        .render()
        .lines()
        .find_map(|line| line.strip_prefix("hearth_store_lease_units{unit=\"requests\"} "))
        .unwrap()
        .parse()
        .unwrap()
}

#[tokio::test]
async fn a_settlement_that_redis_had_charged_is_not_charged_again() {
    let server = RedisServer::start().await;
    let store = server.open(&lease(&server)).await;
    let day = day("u:again", 100, now_ms());
    let order = enter(&store, &day).await.unwrap().unwrap();
    let settled = settlement(&order, &[5]);
    store.settle(&settled, now_ms()).await.unwrap();
    // As if the answer had been lost.
    store.away.owe(&settled).await.unwrap();
    until("it was sent again", async || store.away.journal_is_empty()).await;
    assert_eq!(left(&store, &day).await, 95);
    assert_ne!(order.id, ReservationId::random());
}

/// What happens to Redis.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Killed,
    Paused,
    ReadOnly,
    OutOfMemory,
    Slow,
}

impl Fault {
    async fn strike(self, server: &mut RedisServer, line: &SlowLine) {
        match self {
            Self::Killed => server.kill(),
            Self::Paused => server.signal("-STOP"),
            Self::ReadOnly => server.command::<()>("REPLICAOF 127.0.0.1 1").await,
            Self::OutOfMemory => server.command::<()>("CONFIG SET maxmemory 1").await,
            Self::Slow => line.delay(Duration::from_millis(200)),
        }
    }

    async fn pass(self, server: &mut RedisServer, line: &SlowLine) {
        match self {
            Self::Killed => server.restart().await,
            Self::Paused => server.signal("-CONT"),
            Self::ReadOnly => server.command::<()>("REPLICAOF NO ONE").await,
            Self::OutOfMemory => server.command::<()>("CONFIG SET maxmemory 0").await,
            Self::Slow => line.delay(Duration::ZERO),
        }
    }
}

/// One client under way: how long each admission took, and how many were served and billed.
async fn press(store: Arc<Redis>, day: Counter) -> (Vec<Duration>, u64) {
    let (mut waits, mut billed) = (Vec::new(), 0);
    for _ in 0..150 {
        let mut order = reservation(std::slice::from_ref(&day));
        order.lease_ms = 1_000;
        let begun = Instant::now();
        let decision = store.reserve(&order, now_ms()).await;
        waits.push(begun.elapsed());
        if decision.is_ok_and(|decision| decision.is_admitted()) {
            let settled = settlement(&order, &[1]);
            store.settle(&settled, now_ms()).await.unwrap();
            billed += 1;
        }
    }
    (waits, billed)
}

/// At the 99th percentile nobody waits longer than the timeout, and what a busy machine needs to notice it.
fn assert_bounded(fault: Fault, mut waits: Vec<Duration>, timeout: Duration) {
    waits.sort();
    let p99 = waits[waits.len() * 99 / 100];
    assert!(
        p99 < timeout + Duration::from_millis(50),
        "{fault:?}: {p99:?}"
    );
}

/// One request that costs nothing in the end.
async fn comes_and_goes(store: &Redis, day: &Counter) -> bool {
    let Ok(Some(order)) = enter(store, day).await else {
        return false;
    };
    let settled = store.settle(&settlement(&order, &[0]), now_ms()).await;
    settled.is_ok()
}

/// What eight clients waited, and what was billed to them.
async fn pressed(store: &Arc<Redis>, day: &Counter) -> (Vec<Duration>, u64) {
    let clients: Vec<_> = (0..8)
        .map(|_| tokio::spawn(press(Arc::clone(store), day.clone())))
        .collect();
    let (mut waits, mut billed) = (Vec::new(), 0);
    for client in clients {
        let (some, units) = client.await.unwrap();
        waits.extend(some);
        billed += units;
    }
    (waits, billed)
}

/// Eight clients through one fault: none waits for long; no more is served than the gauge says; and when the fault has passed, Redis has charged exactly what was billed, and nothing waits.
async fn weather(fault: Fault) {
    const LIMIT: u64 = 1_000;
    const TIMEOUT: Duration = Duration::from_millis(100);
    let mut server =
        RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let line = SlowLine::to(server.port).await;
    let mut settings = lease(&server);
    settings.timeout = TIMEOUT;
    if matches!(fault, Fault::Slow) {
        let url = format!("redis://127.0.0.1:{}/", line.port);
        settings.servers = config::settings::proxy::Servers::One(Secret::new(url));
    }
    let state = tempfile::tempdir().unwrap();
    let (store, metrics) = open(&settings, state.path()).await;
    let store = Arc::new(store);
    let day = day("u:weather", LIMIT, now_ms());
    until("it learns its share", async || {
        comes_and_goes(&store, &day).await && shares(&metrics) == 100
    })
    .await;
    let before = charged(&store, &day).await.unwrap();
    fault.strike(&mut server, &line).await;
    let (waits, billed) = pressed(&store, &day).await;
    assert_bounded(fault, waits, TIMEOUT);
    assert!(
        (1..=100).contains(&billed),
        "{fault:?}: {billed} of a share of 100"
    );
    fault.pass(&mut server, &line).await;
    learned(&store, &day, (&metrics, before - billed)).await;
}

/// Redis has charged all of it, once, and nothing waits.
async fn learned(store: &Redis, day: &Counter, (metrics, left): (&Metrics, u64)) {
    until("all is charged, once", async || {
        charged(store, day).await == Some(left)
    })
    .await;
    until("the journal is empty", async || {
        metrics.render().contains("hearth_store_bills 0")
    })
    .await;
    assert_eq!(charged(store, day).await, Some(left));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_under_load_redis_delays_nobody_and_learns_all_that_was_spent() {
    weather(Fault::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_under_load_redis_delays_nobody_and_learns_all_that_was_spent() {
    weather(Fault::Paused).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_under_load_redis_delays_nobody_and_learns_all_that_was_spent() {
    weather(Fault::ReadOnly).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn out_of_memory_under_load_redis_delays_nobody_and_learns_all_that_was_spent() {
    weather(Fault::OutOfMemory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_under_load_redis_delays_nobody_and_learns_all_that_was_spent() {
    weather(Fault::Slow).await;
}
