//! What every store must do with counters, run against each of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use config::ids::{Tenant, UserId};
use config::settings::proxy::{Plan, Zone};
use policy::calendar::Today;
use policy::gcra::Rate;
use policy::limit::{Counter, Decision, Elastic, MILLION, Measure, Name, Rule, Span};

use super::{each_store, now_ms};
use crate::store::{Reservation, ReservationId, Settlement, Store, StoreError};

/// A lease that no test outlives.
pub(crate) const LONG_MS: u64 = 60_000;

pub(crate) fn tenant() -> Tenant {
    Tenant::default()
}

pub(crate) fn counter(key: &str, measure: Measure, rule: Rule) -> Counter {
    Counter {
        key: format!("{{home}}:{key}").into(),
        name: Name::user(measure),
        unit: measure.unit(),
        rule,
        cost: 1,
        per_million: 0,
    }
}

pub(crate) fn minute(key: &str, limit: u64) -> Counter {
    let rate = Rate {
        limit,
        period_ms: 60_000,
    };
    counter(key, Measure::TextMinute, Rule::Gcra(rate))
}

pub(crate) fn day(subject: &str, limit: u64, now_ms: u64) -> Counter {
    let today = Today::at(Zone::default(), now_ms).day;
    let key = format!("{subject}:text-day:{}", today.label);
    counter(
        &key,
        Measure::TextDay,
        Rule::Window(today.window(limit, Span::Day)),
    )
}

pub(crate) fn held(key: &str, limit: u64) -> Counter {
    counter(key, Measure::Concurrent, Rule::Held { limit })
}

/// A day of tokens: the prompt is fixed, the answer is granted.
pub(crate) fn tokens(subject: &str, limit: u64, prompt: u64) -> Counter {
    let mut counter = day(subject, limit, now_ms());
    counter.cost = prompt;
    counter.per_million = MILLION;
    counter
}

pub(crate) fn reservation(counters: &[Counter]) -> Reservation {
    Reservation {
        id: ReservationId::random(),
        tenant: tenant(),
        counters: counters.to_vec(),
        elastic: Elastic::default(),
        lease_ms: LONG_MS,
    }
}

pub(crate) fn settlement(reservation: &Reservation, spent: &[u64]) -> Settlement {
    Settlement {
        id: reservation.id,
        tenant: reservation.tenant.clone(),
        counters: reservation.counters.clone(),
        spent: spent.to_vec(),
        entry: None,
    }
}

/// Reserves and forgets the id.
pub(crate) async fn admit(store: &dyn Store, counters: &[Counter]) -> Decision {
    store
        .reserve(&reservation(counters), now_ms())
        .await
        .unwrap()
}

async fn look(store: &dyn Store, counter: &Counter) -> u64 {
    let mut counter = counter.clone();
    (counter.cost, counter.per_million) = (0, 0);
    let seen = store.look(&tenant(), &[counter], now_ms()).await.unwrap();
    assert!(seen.is_admitted());
    seen.states()[0].remaining
}

/// Waits for a fact that time brings.
async fn until(mut fact: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !fact().await {
        assert!(Instant::now() < deadline, "it never came");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_limit_admits_exactly_its_units_and_names_the_one_that_refused() {
    each_store(async |store| {
        let counters = [minute("u:a:text-min", 3), day("u:a", 100, now_ms())];
        for left in [2, 1, 0] {
            let decision = admit(&*store, &counters).await;
            assert!(decision.is_admitted());
            assert_eq!(decision.states()[0].remaining, left);
            assert_eq!(decision.states()[1].remaining, 97 + left);
        }
        let Decision::Refused {
            refused,
            retry_after,
            states,
            ..
        } = admit(&*store, &counters).await
        else {
            panic!("the fourth of three was admitted");
        };
        assert_eq!((refused, states[0].remaining), (0, 0));
        let wait = retry_after.expect("waiting helps");
        assert!(wait <= Duration::from_secs(20) && wait > Duration::from_secs(15));
        assert_eq!(states[1].remaining, 97, "a refusal charges nothing");
    })
    .await;
}

#[tokio::test]
async fn a_refusal_of_one_counter_charges_none_of_the_others() {
    each_store(async |store| {
        let (full, other, place) = (
            minute("u:full", 1),
            minute("u:other", 2),
            held("u:place", 9),
        );
        assert!(
            admit(&*store, std::slice::from_ref(&full))
                .await
                .is_admitted()
        );
        for _ in 0..5 {
            let all = [other.clone(), place.clone(), full.clone()];
            assert!(!admit(&*store, &all).await.is_admitted());
        }
        assert_eq!(look(&*store, &other).await, 2);
        assert_eq!(look(&*store, &place).await, 9);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_parallel_admissions_admit_exactly_the_limit() {
    each_store(async |store| {
        let now = now_ms();
        let tasks: Vec<_> = (0..1_000)
            .map(|_| {
                let store = Arc::clone(&store);
                let counters = [day("u:crowd", 137, now), minute("i:crowd", 100_000)];
                tokio::spawn(async move { admit(&*store, &counters).await })
            })
            .collect();
        let mut granted = 0;
        for task in tasks {
            granted += u32::from(task.await.unwrap().is_admitted());
        }
        assert_eq!(granted, 137);
    })
    .await;
}

#[tokio::test]
async fn a_new_day_is_a_new_budget() {
    each_store(async |store| {
        let today = now_ms();
        let tomorrow = today + 86_400_000;
        for (now, want) in [
            (today, true),
            (today, false),
            (tomorrow, true),
            (tomorrow, false),
        ] {
            let decision = admit(&*store, &[day("u:d", 1, now)]).await;
            assert_eq!(decision.is_admitted(), want);
        }
    })
    .await;
}

#[tokio::test]
async fn who_may_spend_37_more_is_granted_37_and_the_next_one_nothing() {
    each_store(async |store| {
        let (user, group) = (tokens("u:t", 1_000, 463), tokens("g:t", 500, 463));
        let mut first = reservation(&[user.clone(), group.clone()]);
        first.elastic = Elastic {
            want: 2_048,
            min: 1,
        };
        let decision = store.reserve(&first, now_ms()).await.unwrap();
        assert_eq!(decision.granted(), 37, "the group's 500 bound it");
        assert_eq!(
            look(&*store, &user).await,
            500,
            "all are charged for what was granted"
        );
        let mut second = reservation(&[tokens("u:t", 1_000, 0), tokens("g:t", 500, 0)]);
        second.elastic = Elastic { want: 10, min: 1 };
        let refused = store.reserve(&second, now_ms()).await.unwrap();
        let Decision::Refused { refused, room, .. } = refused else {
            panic!("nothing is left");
        };
        assert_eq!((refused, room), (1, 0));
        // 20 of the 37 were not needed.
        store
            .settle(&settlement(&first, &[480, 480]), now_ms())
            .await
            .unwrap();
        assert_eq!(
            store.reserve(&second, now_ms()).await.unwrap().granted(),
            10
        );
        assert_eq!(look(&*store, &group).await, 10);
    })
    .await;
}

#[tokio::test]
async fn money_bounds_tokens_by_their_price() {
    each_store(async |store| {
        let mut money = tokens("u:m", 1_000, 5);
        money.per_million = 2_500_000;
        let mut order = reservation(&[money.clone()]);
        order.elastic = Elastic { want: 500, min: 1 };
        assert_eq!(
            store.reserve(&order, now_ms()).await.unwrap().granted(),
            398
        );
        assert_eq!(look(&*store, &money).await, 0);
    })
    .await;
}

#[tokio::test]
async fn what_is_above_the_limit_itself_never_fits() {
    each_store(async |store| {
        let mut counter = minute("u:n", 100);
        counter.cost = 101;
        let Decision::Refused { retry_after, .. } = admit(&*store, &[counter.clone()]).await else {
            panic!("101 of 100");
        };
        assert_eq!(retry_after, None);
        counter.cost = 100;
        assert!(admit(&*store, &[counter]).await.is_admitted());
    })
    .await;
}

#[tokio::test]
async fn a_settlement_refunds_exactly_once_and_never_more() {
    each_store(async |store| {
        let counters = [
            minute("u:g", 2),
            day("u:g", 2, now_ms()),
            held("u:g:held", 2),
        ];
        let first = reservation(&counters);
        assert!(store.reserve(&first, now_ms()).await.unwrap().is_admitted());
        assert!(admit(&*store, &counters).await.is_admitted());
        assert!(!admit(&*store, &counters).await.is_admitted());
        for _ in 0..3 {
            store
                .settle(&settlement(&first, &[0, 0, 0]), now_ms())
                .await
                .unwrap();
        }
        assert!(
            admit(&*store, &counters).await.is_admitted(),
            "one came back"
        );
        assert!(
            !admit(&*store, &counters).await.is_admitted(),
            "and only one"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_settlements_of_one_id_charge_once() {
    each_store(async |store| {
        let counter = tokens("u:once", 1_000, 100);
        let order = reservation(std::slice::from_ref(&counter));
        store.reserve(&order, now_ms()).await.unwrap();
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let (store, settlement) = (Arc::clone(&store), settlement(&order, &[140]));
                tokio::spawn(async move { store.settle(&settlement, now_ms()).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert_eq!(look(&*store, &counter).await, 860);
    })
    .await;
}

#[tokio::test]
async fn what_was_spent_above_the_reservation_is_charged_even_above_the_limit() {
    each_store(async |store| {
        let counter = tokens("u:up", 100, 60);
        let order = reservation(std::slice::from_ref(&counter));
        store.reserve(&order, now_ms()).await.unwrap();
        store
            .settle(&settlement(&order, &[130]), now_ms())
            .await
            .unwrap();
        assert_eq!(look(&*store, &counter).await, 0);
        assert!(
            !admit(&*store, &[tokens("u:up", 131, 2)])
                .await
                .is_admitted(),
            "130 are charged"
        );
        assert!(
            admit(&*store, &[tokens("u:up", 131, 1)])
                .await
                .is_admitted()
        );
    })
    .await;
}

#[tokio::test]
async fn a_lease_that_passes_gives_everything_back() {
    each_store(async |store| {
        let counters = [tokens("u:l", 10, 10), held("u:l:held", 1)];
        let mut order = reservation(&counters);
        order.lease_ms = 300;
        assert!(store.reserve(&order, now_ms()).await.unwrap().is_admitted());
        assert!(!admit(&*store, &counters).await.is_admitted());
        until(async || admit(&*store, &counters).await.is_admitted()).await;
        // The late settlement is charged all the same, and once.
        for _ in 0..2 {
            store
                .settle(&settlement(&order, &[7, 0]), now_ms())
                .await
                .unwrap();
        }
        assert_eq!(look(&*store, &counters[0]).await, 0);
        assert!(
            !admit(&*store, &[tokens("u:l", 17, 1)]).await.is_admitted(),
            "10 + 7"
        );
        assert!(admit(&*store, &[tokens("u:l", 18, 1)]).await.is_admitted());
    })
    .await;
}

#[tokio::test]
async fn an_extended_lease_holds_and_one_that_is_gone_stays_gone() {
    each_store(async |store| {
        let counter = held("u:x:held", 1);
        let mut order = reservation(std::slice::from_ref(&counter));
        order.lease_ms = 400;
        store.reserve(&order, now_ms()).await.unwrap();
        let ids = [(tenant(), order.id), (tenant(), ReservationId::random())];
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(900) {
            store.extend(&ids, 400, now_ms()).await.unwrap();
            assert_eq!(look(&*store, &counter).await, 0, "it is held");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        until(async || look(&*store, &counter).await == 1).await;
        store.extend(&ids, LONG_MS, now_ms()).await.unwrap();
        assert_eq!(look(&*store, &counter).await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_reservation_that_is_sent_twice_is_charged_once() {
    each_store(async |store| {
        let counter = tokens("u:twice", 100, 10);
        let mut order = reservation(std::slice::from_ref(&counter));
        order.elastic = Elastic { want: 20, min: 1 };
        for _ in 0..3 {
            let decision = store.reserve(&order, now_ms()).await.unwrap();
            assert_eq!(decision.granted(), 20);
        }
        assert_eq!(look(&*store, &counter).await, 70);
    })
    .await;
}

#[tokio::test]
async fn without_a_lease_a_charge_is_final() {
    each_store(async |store| {
        let counter = tokens("u:final", 100, 10);
        let mut order = reservation(std::slice::from_ref(&counter));
        order.lease_ms = 0;
        assert!(store.reserve(&order, now_ms()).await.unwrap().is_admitted());
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(look(&*store, &counter).await, 90);
    })
    .await;
}

#[tokio::test]
async fn an_unknown_id_is_charged_what_was_spent() {
    each_store(async |store| {
        let counter = tokens("u:unknown", 100, 10);
        let order = reservation(std::slice::from_ref(&counter));
        store
            .settle(&settlement(&order, &[30]), now_ms())
            .await
            .unwrap();
        assert_eq!(look(&*store, &counter).await, 70);
    })
    .await;
}

#[tokio::test]
async fn a_look_charges_nothing_and_answers_as_an_admission_would() {
    each_store(async |store| {
        let counters = [minute("u:see", 1), held("u:see:held", 1)];
        for _ in 0..3 {
            let seen = store.look(&tenant(), &counters, now_ms()).await.unwrap();
            assert!(seen.is_admitted());
        }
        assert!(admit(&*store, &counters).await.is_admitted());
        let seen = store.look(&tenant(), &counters, now_ms()).await.unwrap();
        assert!(!seen.is_admitted());
        assert_eq!(look(&*store, &counters[0]).await, 0);
    })
    .await;
}

#[tokio::test]
async fn stored_bytes_are_held_until_they_are_released() {
    each_store(async |store| {
        let mut counter = counter("u:bytes", Measure::StoredBytes, Rule::Held { limit: 500 });
        counter.cost = 400;
        let order = reservation(std::slice::from_ref(&counter));
        store.reserve(&order, now_ms()).await.unwrap();
        store
            .settle(&settlement(&order, &[400]), now_ms())
            .await
            .unwrap();
        assert!(
            !admit(&*store, std::slice::from_ref(&counter))
                .await
                .is_admitted()
        );
        store
            .release(&tenant(), std::slice::from_ref(&counter), now_ms())
            .await
            .unwrap();
        assert_eq!(look(&*store, &counter).await, 500);
        store
            .release(&tenant(), std::slice::from_ref(&counter), now_ms())
            .await
            .unwrap();
        assert_eq!(look(&*store, &counter).await, 500, "never below nothing");
    })
    .await;
}

#[tokio::test]
async fn no_counters_are_always_admitted() {
    each_store(async |store| {
        let order = reservation(&[]);
        assert!(store.reserve(&order, now_ms()).await.unwrap().is_admitted());
        store
            .settle(&settlement(&order, &[]), now_ms())
            .await
            .unwrap();
        store.extend(&[], LONG_MS, now_ms()).await.unwrap();
        assert!(
            store
                .look(&tenant(), &[], now_ms())
                .await
                .unwrap()
                .is_admitted()
        );
        store.release(&tenant(), &[], now_ms()).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn policy_counters_fit_the_store() {
    each_store(async |store| {
        let user = UserId::new("https://issuer|na:me*\r\n\"{}");
        let mut principal = policy::identity::Principal::person(user, Plan::default());
        principal.groups = vec!["fam{ily}".into()];
        let mut limits = super::limits();
        let plan = Plan {
            tokens_per_month: Some(100_000),
            concurrent: Some(100),
            ..Plan::default()
        };
        limits.groups.insert("fam{ily}".to_owned(), plan);
        limits.service = Some(plan);
        let now = now_ms();
        let calendar = policy::calendar::Calendar::new(&limits, now);
        let asking = policy::plan::Asking {
            principal: &principal,
            ip: std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
            kind: policy::limit::Kind::Text,
            spend: policy::plan::Spend::default(),
            limits: &limits,
            calendar: &calendar,
            now_unix_ms: now,
        };
        let counters = policy::plan::counters(&asking);
        let mut order = reservation(&counters);
        order.tenant = policy::plan::slot(principal.tenant(), &limits);
        let mut granted = 0;
        for _ in 0..40 {
            order.id = ReservationId::random();
            let decision = store.reserve(&order, now).await.unwrap();
            granted += u32::from(decision.is_admitted());
        }
        assert_eq!(granted, 30);
    })
    .await;
}

/// Clients that reserve, run, abort and settle at once: what was billed never exceeds the limit, all places come back, and what
/// is left is exactly what was not billed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sum_of_what_was_billed_never_exceeds_the_limit_for_any_interleaving() {
    const LIMIT: u64 = 20_000;
    each_store(async |store| {
        let clients: Vec<_> = (0..50_u64)
            .map(|client| {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    let mut billed = 0;
                    for round in 0..12_u64 {
                        billed += one_request(&*store, client * 31 + round * 17, LIMIT)
                            .await
                            .unwrap();
                    }
                    billed
                })
            })
            .collect();
        let mut billed = 0;
        for client in clients {
            billed += client.await.unwrap();
        }
        assert!(billed <= LIMIT, "{billed} of {LIMIT}");
        assert_eq!(
            look(&*store, &tokens("u:sum", LIMIT, 0)).await,
            LIMIT - billed
        );
        assert_eq!(look(&*store, &held("u:sum:held", 40)).await, 40);
    })
    .await;
}

async fn one_request(store: &dyn Store, seed: u64, limit: u64) -> Result<u64, StoreError> {
    let mut order = reservation(&[tokens("u:sum", limit, seed % 23), held("u:sum:held", 40)]);
    order.elastic = Elastic {
        want: seed % 301,
        min: 1.min(seed % 301),
    };
    let decision = store.reserve(&order, now_ms()).await?;
    if !decision.is_admitted() {
        return Ok(0);
    }
    tokio::task::yield_now().await;
    let spent = match seed % 4 {
        0 => 0,
        1 => seed % 23,
        _ => seed % 23 + decision.granted() * (seed % 101) / 100,
    };
    store
        .settle(&settlement(&order, &[spent, 0]), now_ms())
        .await?;
    Ok(spent)
}
