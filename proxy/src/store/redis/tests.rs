//! What only Redis can do wrong, on real servers.

mod deployments;
mod faults;
mod histories;
mod leases;
mod servers;

use std::sync::Arc;
use std::time::Duration;

use config::settings::proxy::OnFailure;
use policy::gcra::Rate;
use policy::limit::{Decision, Elastic, Rule};
use policy::quota;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::store::contract::counting::{admit, counter, held, reservation, settlement, tenant};
use crate::store::contract::{day, minute, now_ms};
use crate::store::memory::{CounterTable, NoDisk};
use crate::store::{Records, Store};

use servers::until;
pub(crate) use servers::{RedisServer, settings};

/// Units left.
async fn left(store: &dyn Store, counter: &Counter) -> u64 {
    let mut counter = counter.clone();
    (counter.cost, counter.per_million) = (0, 0);
    let seen = store.look(&tenant(), &[counter], now_ms()).await.unwrap();
    seen.states()[0].remaining
}

#[tokio::test]
async fn a_flushed_script_is_loaded_again() {
    let server = RedisServer::start().await;
    let store = server.store().await;
    let counters = [minute("u:f", 2)];
    admit(&*store, &counters).await;
    server.command::<()>("SCRIPT FLUSH").await;
    let decision = admit(&*store, &counters).await;
    assert_eq!(decision.states()[0].remaining, 0);
}

#[tokio::test]
async fn a_foreign_value_under_a_key_is_an_error_and_no_panic() {
    let server = RedisServer::start().await;
    let store = server.store().await;
    for words in [
        "RPUSH hearth:c:{home}:u:list x",
        "SET hearth:c:{home}:u:text -5x",
        "SET {hearth}:keys no-hash",
        "HSET {hearth}:nodes n {}",
    ] {
        server.command::<redis::Value>(words).await;
    }
    for key in ["u:list", "u:text"] {
        let order = reservation(&[minute("u:fine", 1), minute(key, 1)]);
        let error = store.reserve(&order, now_ms()).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
        let settled = settlement(&order, &[1, 1]);
        let error = store.settle(&settled, now_ms()).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
    }
    assert!(matches!(store.keys().await, Err(StoreError::Corrupt(_))));
    assert!(matches!(store.nodes().await, Err(StoreError::Corrupt(_))));
    let fine = admit(&*store, &[minute("u:fine", 1)]).await;
    assert!(fine.is_admitted(), "the foreign key charged nothing else");
}

#[tokio::test]
async fn every_key_of_counting_has_an_end() {
    let server = RedisServer::start().await;
    let store = server.store().await;
    let counters = [minute("u:t", 30), day("u:t", 9, now_ms()), held("u:t", 5)];
    let order = reservation(&counters);
    store.reserve(&order, now_ms()).await.unwrap();
    admit(&*store, &counters).await;
    let settled = settlement(&order, &[1, 0, 0]);
    store.settle(&settled, now_ms()).await.unwrap();
    for (pattern, most_ms) in [
        ("hearth:c:*-min", 61_000),
        ("hearth:c:*-day:*", 90_000_000),
        ("hearth:r:*", 8 * 86_400_000),
    ] {
        let keys: Vec<String> = server.command(&format!("KEYS {pattern}")).await;
        assert!(!keys.is_empty() || pattern.ends_with("-min"), "{pattern}");
        for key in keys {
            let life_ms: i64 = server.command(&format!("PTTL {key}")).await;
            assert!(
                life_ms > 0 && life_ms <= most_ms,
                "{key} lives {life_ms} ms"
            );
        }
    }
}

#[tokio::test]
async fn nobody_who_writes_to_redis_alone_makes_a_key_or_reads_a_secret() {
    let server = RedisServer::start().await;
    let store = server.store().await;
    let key = crate::store::contract::api_key("aaaa");
    store.put_key(&key).await.unwrap();
    let pepper = store.secret("pepper").await.unwrap();
    let stored: Vec<String> = server.command("HVALS {hearth}:secrets").await;
    assert!(!stored.concat().contains(&hex::encode(pepper.expose())));
    let text: String = server.command("HGET {hearth}:keys aaaa").await;
    let plain = serde_json::to_string(&key).unwrap();
    for forged in [plain, text.replace("\"admin\":false", "\"admin\":true")] {
        let mut client = server.client().await.unwrap();
        let mut put = redis::cmd("HSET");
        put.arg("{hearth}:keys").arg("aaaa").arg(forged);
        put.exec_async(&mut client).await.unwrap();
        let read = store.key(&key.id).await;
        assert!(matches!(read, Err(StoreError::Corrupt(_))), "{read:?}");
    }
    // In another place it is no better.
    let mut client = server.client().await.unwrap();
    let mut put = redis::cmd("HSET");
    put.arg("{hearth}:keys").arg("bbbb").arg(text);
    put.exec_async(&mut client).await.unwrap();
    let other = config::ids::KeyId::new("bbbb");
    assert!(store.key(&other).await.is_err());
}

#[tokio::test]
async fn records_and_secrets_from_before_there_were_seals_are_sealed_once() {
    let server = RedisServer::start().await;
    let key = crate::store::contract::api_key("aaaa");
    let mut client = server.client().await.unwrap();
    let mut old = redis::cmd("HSET");
    old.arg("{hearth}:keys").arg("aaaa");
    old.arg(serde_json::to_string(&key).unwrap());
    old.exec_async(&mut client).await.unwrap();
    let secret = hex::encode([9; 32]);
    server
        .command::<u8>(&format!("HSET {{hearth}}:secrets pepper {secret}"))
        .await;
    let (one, two) = (server.store().await, server.store().await);
    for store in [&one, &two] {
        assert_eq!(store.key(&key.id).await.unwrap().as_ref(), Some(&key));
        assert!(*store.secret("pepper").await.unwrap().expose() == [9; 32]);
    }
    let stored: Vec<String> = server.command("HVALS {hearth}:secrets").await;
    assert!(!stored.contains(&secret));
    let mut stranger = server.redis_settings();
    stranger.secret_key_file = None;
    let error = server
        .open(&stranger)
        .await
        .secret("pepper")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("needs the same key"), "{error}");
}

#[tokio::test]
async fn a_redis_that_lost_everything_gets_the_secrets_back() {
    let server = RedisServer::start().await;
    let (one, two) = (server.store().await, server.store().await);
    let pepper = one.secret("pepper").await.unwrap();
    server.command::<()>("FLUSHALL").await;
    assert!(one.secret("pepper").await.unwrap() == pepper);
    assert!(two.secret("pepper").await.unwrap() == pepper);
}

/// One act at some time after the one before.
#[derive(Clone, Debug)]
struct Act {
    after_ms: u64,
    counter: usize,
    cost: u64,
    want: u64,
    /// Settles the reservation before with so many per cent of what it was charged.
    settles: Option<u64>,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let settles = prop::option::weighted(0.4, 0_u64..150);
    let act = (0_u64..40_000, 0_usize..5, 0_u64..4, 0_u64..20, settles);
    let act = act.prop_map(|(after_ms, counter, cost, want, settles)| Act {
        after_ms,
        counter,
        cost,
        want,
        settles,
    });
    prop::collection::vec(act, 1..40)
}

fn charged(act: &Act, run: usize, now_ms: u64) -> Vec<Counter> {
    let mut first = minute(&format!("{run}:m"), 70);
    (first.cost, first.per_million) = (act.cost, 1_500_000);
    let mut second = match act.counter {
        0 => day(&format!("{run}:d"), 110, now_ms),
        1 => minute(&format!("{run}:zero"), 0),
        2 => minute(&format!("{run}:other"), 31),
        3 => held(&format!("{run}:held"), 9),
        _ => minute(&format!("{run}:odd"), 1),
    };
    if act.counter == 4 {
        let (limit, period_ms) = (13, 7_001);
        second.rule = Rule::Gcra(Rate { limit, period_ms });
    }
    second.cost = act.cost;
    if act.counter == 0 {
        second.per_million = 333_333;
    }
    vec![first, second]
}

#[test]
fn redis_decides_and_settles_as_policy_does_for_any_sequence() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(RedisServer::start());
    let store = runtime.block_on(server.open(&server.redis_settings()));
    let mut runner = TestRunner::new(Config {
        cases: 40,
        failure_persistence: None,
        ..Config::default()
    });
    let run = std::cell::Cell::new(0);
    let compared = runner.run(&acts(), |acts| {
        run.set(run.get() + 1);
        let mut table = CounterTable::alone(1_000);
        // From today on, so that Redis, which drops by its own clock, drops nothing that still counts.
        let mut now_ms = now_ms();
        let mut last: Option<(Reservation, Decision)> = None;
        for act in acts {
            now_ms += act.after_ms;
            let now_us = Some(now_ms * 1_000);
            if let (Some(share), Some((order, decision))) = (act.settles, last.take()) {
                let spent = order.counters.iter();
                let spent: Vec<u64> = spent
                    .map(|one| one.charge(decision.granted()) * share / 100)
                    .collect();
                let settled = settlement(&order, &spent);
                table.settle(&settled, now_ms, &NoDisk).unwrap();
                let bill = Bill::of(&settled);
                runtime
                    .block_on(store.counters.settle(&bill, now_us))
                    .unwrap();
                continue;
            }
            let mut order = reservation(&charged(&act, run.get(), now_ms));
            order.elastic = Elastic {
                want: act.want,
                min: act.want.min(1),
            };
            // The end of a lease is the same in both; see the contract.
            order.lease_ms = 86_400_000 * 30;
            let ours = table.reserve(&order, now_ms, &NoDisk).unwrap();
            let theirs = runtime
                .block_on(store.counters.reserve(&order, now_us))
                .unwrap();
            prop_assert_eq!(&ours, &theirs);
            if ours.is_admitted() {
                last = Some((order, ours));
            }
        }
        Ok(())
    });
    compared.unwrap();
}

/// Quotients of numbers near 2^53 are whole in Lua too.
#[tokio::test]
async fn large_budgets_are_counted_to_the_unit() {
    let server = RedisServer::start().await;
    let store = server.open(&server.redis_settings()).await;
    let limit = 9_007_199_254_740_990;
    let mut order = reservation(&[counter(
        "u:large",
        policy::limit::Measure::Concurrent,
        Rule::Held { limit },
    )]);
    order.counters[0].cost = limit - 7;
    (order.counters[0].per_million, order.elastic.want) = (899_999_999, 10_000_000);
    order.elastic.min = 0;
    let decision = store.reserve(&order, now_ms()).await.unwrap();
    assert_eq!(decision.granted(), 0);
    order.id = ReservationId::random();
    order.counters[0].cost = 3;
    order.counters[0].per_million = 1_000_000;
    let decision = store.reserve(&order, now_ms()).await.unwrap();
    assert_eq!((decision.granted(), decision.states()[0].remaining), (4, 0));
    let small = quota::room(Rule::Held { limit }, Some(limit), 0);
    assert_eq!(small, 0);
}
