//! Many clients of several proxies at one number: what each was told fits one order, in which nobody is before an answer that came
//! before its question; and a proxy that is killed gives back what it had.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Instant;

use policy::limit::MILLION;

use super::*;

const LIMIT: u64 = 20_000;
/// Tells the child where Redis and its key are.
const CHILD: &str = "HEARTH_TEST_CHILD";

/// One admission as its client saw it.
#[derive(Clone, Copy, Debug)]
struct Event {
    begun: Instant,
    ended: Instant,
    charged: u64,
    remaining: u64,
}

fn budget(cost: u64) -> Counter {
    let mut counter = day("u:history", LIMIT, now_ms());
    (counter.cost, counter.per_million) = (cost, MILLION);
    counter
}

async fn client(store: Arc<dyn Store>, seed: u64) -> Vec<Event> {
    let mut events = Vec::new();
    for round in 0..40 {
        let mut order = reservation(&[budget((seed * 7 + round) % 19)]);
        order.elastic = Elastic {
            want: (seed * 13 + round * 5) % 97,
            min: 0,
        };
        order.lease_ms = 0;
        let begun = Instant::now();
        let decision = store.reserve(&order, now_ms()).await.unwrap();
        let ended = Instant::now();
        let charged = order.counters[0].charge(decision.granted());
        if decision.is_admitted() && charged > 0 {
            events.push(Event {
                begun,
                ended,
                charged,
                remaining: decision.states()[0].remaining,
            });
        }
    }
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_clients_of_three_proxies_were_told_fits_one_order() {
    let server = RedisServer::start().await;
    let mut proxies = Vec::new();
    for _ in 0..3 {
        proxies.push(server.store().await);
    }
    let clients: Vec<_> = (0..30)
        .map(|number| {
            let store = Arc::clone(&proxies[number % 3]);
            tokio::spawn(client(store, u64::try_from(number).unwrap()))
        })
        .collect();
    let mut events = Vec::new();
    for client in clients {
        events.extend(client.await.unwrap());
    }
    // The only order there can be: each charge took what it took from what the one before left.
    events.sort_by_key(|event| std::cmp::Reverse(event.remaining));
    let mut left = LIMIT;
    for event in &events {
        left -= event.charged;
        assert_eq!(event.remaining, left, "an update was lost");
    }
    // And it is one that the clients could have seen.
    let mut latest_begin = None;
    for event in &events {
        if let Some(begun) = latest_begin {
            assert!(event.ended >= begun, "it was answered before it was asked");
        }
        latest_begin = latest_begin.max(Some(event.begun));
    }
    assert_eq!(left, 0, "the budget was used up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_three_proxies_billed_is_never_above_the_limit() {
    let server = RedisServer::start().await;
    let mut proxies = Vec::new();
    for _ in 0..3 {
        proxies.push(server.store().await);
    }
    let clients: Vec<_> = (0_u64..30)
        .map(|number| {
            let store = Arc::clone(&proxies[usize::try_from(number).unwrap() % 3]);
            tokio::spawn(async move {
                let mut billed = 0;
                for round in 0..20 {
                    let seed = number * 31 + round * 17;
                    let mut order = reservation(&[budget(seed % 23), held("u:history", 25)]);
                    order.elastic = Elastic {
                        want: seed % 301,
                        min: 1.min(seed % 301),
                    };
                    let decision = store.reserve(&order, now_ms()).await.unwrap();
                    if !decision.is_admitted() {
                        continue;
                    }
                    tokio::task::yield_now().await;
                    let used = decision.granted() * (seed % 101) / 100;
                    let spent = if seed % 5 == 0 { 0 } else { seed % 23 + used };
                    let settled = settlement(&order, &[spent, 0]);
                    // Twice, as after a lost answer.
                    store.settle(&settled, now_ms()).await.unwrap();
                    store.settle(&settled, now_ms()).await.unwrap();
                    billed += spent;
                }
                billed
            })
        })
        .collect();
    let mut billed = 0;
    for client in clients {
        billed += client.await.unwrap();
    }
    assert!(billed <= LIMIT, "{billed}");
    assert_eq!(left(&*proxies[0], &budget(0)).await, LIMIT - billed);
    assert_eq!(left(&*proxies[1], &held("u:history", 25)).await, 25);
}

/// The other process of the test below; alone it does nothing.
#[tokio::test]
#[ignore = "is started by another test"]
async fn a_child_that_holds_places() {
    let Ok(place) = std::env::var(CHILD) else {
        return;
    };
    let (url, key) = place.split_once(' ').unwrap();
    let state = tempfile::tempdir().unwrap();
    let settings = RedisSettings {
        secret_key_file: Some(key.into()),
        ..settings(url)
    };
    let store = Redis::open(&settings, state.path(), Arc::new(Metrics::new()))
        .await
        .unwrap();
    let mut orders = Vec::new();
    loop {
        let mut order = reservation(&[held("u:child", 40)]);
        order.lease_ms = 1_000;
        if store.reserve(&order, now_ms()).await.unwrap().is_admitted() {
            orders.push((tenant(), order.id));
        }
        store.extend(&orders, 1_000, now_ms()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_proxy_that_is_killed_gives_back_what_it_had_when_its_lease_passes() {
    let server = RedisServer::start().await;
    let store = server.store().await;
    let place = format!("{} {}", server.url(), server.key_file().display());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture"])
        .arg("store::redis::tests::histories::a_child_that_holds_places")
        .env(CHILD, place)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let places = held("u:child", 40);
    until("the other process holds them all", async || {
        left(&*store, &places).await == 0
    })
    .await;
    // It extends: they stay beyond their first lease.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(left(&*store, &places).await, 0);
    child.kill().unwrap();
    child.wait().unwrap();
    let killed = Instant::now();
    until("they come back", async || {
        left(&*store, &places).await == 40
    })
    .await;
    assert!(killed.elapsed() < Duration::from_secs(5));
}

/// As the server saw it: what the proxy sent for one request is two commands, whatever the scripts did within.
#[tokio::test]
async fn an_admission_is_one_round_trip_and_a_settlement_is_another() {
    let server = RedisServer::start().await;
    let store = server.open(&server.redis_settings()).await;
    // The scripts are known and the books are open from here on.
    let counters = [minute("u:trip", 30), day("u:trip", 9, now_ms())];
    let mut ids = Vec::new();
    let mut monitor = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    for round in 0..2 {
        if round == 1 {
            monitor.write_all(b"MONITOR\r\n").unwrap();
            until("it listens", async || {
                let clients: String = server.command("CLIENT LIST").await;
                clients.contains("cmd=monitor")
            })
            .await;
        }
        let order = reservation(&counters);
        store.reserve(&order, now_ms()).await.unwrap();
        let mut settled = settlement(&order, &[1, 1]);
        settled.entry = Some(policy::ledger::LedgerEntry::new(
            order.id.to_string(),
            config::ids::RequestId::new("req_1"),
            config::ids::UserId::new("ada"),
        ));
        store.settle(&settled, now_ms()).await.unwrap();
        ids.push(order.id.to_string());
    }
    server.command::<redis::Value>("ECHO the-end").await;
    let mut sent = Vec::new();
    for line in BufReader::new(monitor).lines().map_while(Result::ok) {
        if line.contains("the-end") {
            break;
        }
        if line.contains(&ids[1]) && !line.contains("lua]") {
            sent.push(line);
        }
    }
    assert_eq!(sent.len(), 2, "{sent:#?}");
    assert!(sent.iter().all(|line| line.contains("\"EVALSHA\"")));
}
