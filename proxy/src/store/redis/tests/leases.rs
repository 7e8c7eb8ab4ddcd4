//! Redis away in lease mode: a share, no more; written down, charged later, once; also when the proxy is started again.

use std::path::Path;

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
    let all = crate::store::ledger::RecordQuery::of(tenant());
    let books = crate::store::Ledger::records(&store, &all).await.unwrap();
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
