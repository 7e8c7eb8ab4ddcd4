//! Redis killed, paused, read-only, out of memory, slow: bounded waits, no wrong answer, recovery without anybody's help.

use std::time::Instant;

use super::servers::SlowLine;
use super::*;

async fn reserve(store: &dyn Store, counters: &[Counter]) -> Result<Decision, StoreError> {
    store.reserve(&reservation(counters), now_ms()).await
}

#[tokio::test]
async fn it_recovers_by_itself_after_redis_was_killed() {
    let mut server = RedisServer::start().await;
    let store = server.store().await;
    let counters = [minute("u:k", 30)];
    admit(&*store, &counters).await;
    server.kill();
    let refused = reserve(&*store, &counters).await;
    assert!(
        matches!(refused, Err(StoreError::Unavailable(_))),
        "{refused:?}"
    );
    server.restart().await;
    until("admissions after the restart", async || {
        reserve(&*store, &counters).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn it_starts_before_redis_and_no_request_waits_for_it() {
    let mut server = RedisServer::start().await;
    server.kill();
    let store = server.store().await;
    let started = Instant::now();
    for _ in 0..1_000 {
        assert!(reserve(&*store, &[minute("u:s", 3)]).await.is_err());
    }
    assert!(started.elapsed() < Duration::from_secs(1), "they waited");
    server.restart().await;
    until("admissions after the start", async || {
        reserve(&*store, &[minute("u:s", 3)]).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_paused_redis_costs_three_timeouts_and_then_nobody_waits() {
    let server = RedisServer::start().await;
    let mut settings = server.redis_settings();
    settings.timeout = Duration::from_millis(50);
    let store = server.open(&settings).await;
    server.signal("-STOP");
    let mut waits = Vec::new();
    for _ in 0..200 {
        let started = Instant::now();
        assert!(reserve(&store, &[minute("u:p", 3)]).await.is_err());
        waits.push(started.elapsed());
    }
    // One of the three may have been somebody else's, such as the look at the version.
    let waited = waits
        .iter()
        .filter(|wait| **wait >= Duration::from_millis(45))
        .count();
    assert!((1..=3).contains(&waited), "{waited} waited");
    let longest = waits.iter().max().unwrap();
    assert!(*longest < Duration::from_millis(500), "{longest:?}");
    server.signal("-CONT");
    until("answers after the pause", async || {
        reserve(&store, &[minute("u:p", 30)]).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_slowed_to_200_ms_delays_nobody_for_longer_than_the_timeout() {
    let server = RedisServer::start().await;
    let line = SlowLine::to(server.port).await;
    let mut settings = server.redis_settings();
    settings.servers = config::settings::proxy::Servers::One(Secret::new(format!(
        "redis://127.0.0.1:{}/",
        line.port
    )));
    settings.timeout = Duration::from_millis(50);
    let store = Arc::new(server.open(&settings).await);
    let day = day("u:slow", 1_000_000, now_ms());
    until("it answers", async || {
        reserve(&*store, std::slice::from_ref(&day)).await.is_ok()
    })
    .await;
    line.delay(Duration::from_millis(200));
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let (store, day) = (Arc::clone(&store), day.clone());
            tokio::spawn(async move {
                let mut waits = Vec::new();
                for _ in 0..100 {
                    let started = Instant::now();
                    let refused = reserve(&*store, std::slice::from_ref(&day)).await;
                    assert!(refused.is_err(), "answered within 50 ms");
                    waits.push(started.elapsed());
                }
                waits
            })
        })
        .collect();
    let mut waits = Vec::new();
    for client in clients {
        waits.extend(client.await.unwrap());
    }
    waits.sort();
    // The first of every client may wait; no more.
    let late = waits
        .iter()
        .filter(|wait| **wait > Duration::from_millis(5))
        .count();
    assert!(late <= 40, "{late} of {} waited", waits.len());
    let longest = waits.last().unwrap();
    assert!(*longest < Duration::from_millis(250), "{longest:?}");
    line.delay(Duration::ZERO);
    until("answers when it is fast again", async || {
        reserve(&*store, std::slice::from_ref(&day)).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_cannot_write_refuses_everybody_until_it_can() {
    let server = RedisServer::start().await;
    let store = server.store().await;
    let counters = [minute("u:w", 2), minute("i:w", 2)];
    for (worse, better) in [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    ] {
        server.command::<()>(worse).await;
        let refused = reserve(&*store, &counters).await;
        assert!(
            matches!(refused, Err(StoreError::Unavailable(_))),
            "{refused:?}"
        );
        server.command::<()>(better).await;
        until("answers again", async || store.ping().await.is_ok()).await;
        let decision = admit(&*store, &counters).await;
        assert!(decision.is_admitted(), "what was refused was charged");
    }
}

#[tokio::test]
async fn open_on_failure_counts_alone_and_never_beyond_the_limit() {
    let mut server = RedisServer::start().await;
    let mut settings = server.redis_settings();
    settings.on_failure = OnFailure::Open;
    let (store, metrics) = server.open_measured(&settings).await;
    server.kill();
    let mut granted = 0;
    for _ in 0..20 {
        let decision = reserve(&store, &[minute("u:o", 3)]).await.unwrap();
        granted += u32::from(decision.is_admitted());
    }
    assert_eq!(granted, 3);
    let key = config::ids::KeyId::new("k");
    assert!(store.key(&key).await.is_err(), "keys are never assumed");
    let metrics = metrics.render();
    assert!(
        metrics.contains("hearth_store_open_admissions_total 20"),
        "{metrics}"
    );
}

/// Clients of three proxies at one limit, one of which is gone in the middle: what was admitted is exactly the limit, and what the
/// lost proxy had reserved comes back with its lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_proxies_admit_exactly_the_limit_and_a_lost_one_gives_back() {
    const LIMIT: u64 = 120;
    let server = RedisServer::start().await;
    let proxies = [
        server.store().await,
        server.store().await,
        server.store().await,
    ];
    let clients: Vec<_> = (0..300)
        .map(|number| {
            let store = Arc::clone(&proxies[number % 3]);
            tokio::spawn(async move {
                let mut order = reservation(&[held("u:three", LIMIT)]);
                order.lease_ms = if number % 3 == 0 { 1_500 } else { 60_000 };
                let decision = store.reserve(&order, now_ms()).await.unwrap();
                decision.is_admitted().then_some((number, order))
            })
        })
        .collect();
    let mut admitted = Vec::new();
    for client in clients {
        admitted.extend(client.await.unwrap());
    }
    assert_eq!(admitted.len(), 120);
    let lost = admitted.iter().filter(|(number, _)| number % 3 == 0);
    let lost = u64::try_from(lost.count()).unwrap();
    // The first proxy is gone: nobody settles or extends what it had.
    drop(proxies[0].clone());
    let place = held("u:three", LIMIT);
    until("the lost proxy's places are free", async || {
        left(&*proxies[1], &place).await == lost
    })
    .await;
    for (number, order) in &admitted {
        if number % 3 != 0 {
            let settled = settlement(order, &[0]);
            proxies[2].settle(&settled, now_ms()).await.unwrap();
        }
    }
    assert_eq!(left(&*proxies[1], &place).await, LIMIT);
}

/// The sweeper gives back also where no request comes by any more.
#[tokio::test]
async fn what_a_lost_proxy_reserved_is_swept_where_nobody_comes_by() {
    let server = RedisServer::start().await;
    let store = server.store().await;
    let mut order = reservation(&[held("u:swept", 5)]);
    order.lease_ms = 100;
    store.reserve(&order, now_ms()).await.unwrap();
    until("the sweeper came", async || {
        let open: Vec<String> = server.command("KEYS hearth:r:*").await;
        let counters: Vec<String> = server.command("KEYS hearth:c:*").await;
        open.is_empty() && counters.is_empty()
    })
    .await;
}
