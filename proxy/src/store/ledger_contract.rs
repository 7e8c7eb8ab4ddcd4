//! What every store must do with the books, run against each of them.

use std::collections::BTreeMap;

use config::ids::{KeyId, NodeId, RequestId, Tenant, UserId};
use config::tier::Tier;
use policy::ledger::{Aspect, LedgerEntry, SumKey, Totals, pair};
use serde_json::{Value, json};

use super::Store;
use super::contract::{each_store, now_ms};
use super::ledger::{AuditAct, AuditRecord, Breakdown, Keep, RecordQuery};

const DAY: &str = "2026-11-21";

fn entry(number: u64, user: &str, model: &str) -> LedgerEntry {
    LedgerEntry {
        at_unix_ms: now_ms() - 60_000 + number,
        day: DAY.into(),
        key: Some(KeyId::new("k1")),
        tier: Some(Tier::Fast),
        model: Some(model.into()),
        node: Some(NodeId::new("den")),
        tokens_in: 10,
        tokens_out: 5,
        micros: 3,
        ms: 7,
        ..LedgerEntry::new(
            format!("{number:032}"),
            RequestId::new("req_1"),
            UserId::new(user),
        )
    }
}

fn sum_of(period: &str, aspect: Aspect, value: &str) -> SumKey {
    SumKey {
        tenant: Tenant::default(),
        period: period.into(),
        aspect,
        value: value.into(),
    }
}

async fn requests(store: &dyn Store, keys: &[SumKey]) -> Vec<u64> {
    let sums = store.sums(keys).await.unwrap();
    sums.iter().map(|sum| sum.requests).collect()
}

fn act(target: &str) -> AuditAct {
    AuditAct {
        at_unix_ms: 1,
        actor: "uid:0".into(),
        from: "admin.sock".into(),
        request_id: RequestId::new("req_1"),
        action: "key.create".into(),
        target: target.into(),
        before: Value::Null,
        after: json!({"name": "Zoë's \"laptop\"\n", "limits": {"text_per_day": 9_007_199_254_740_991_u64}}),
    }
}

#[tokio::test]
async fn entries_are_read_in_their_order_page_by_page_and_filtered() {
    each_store(async |store| {
        let other = LedgerEntry {
            tenant: "villa".parse().unwrap(),
            ..entry(9, "ada", "tiny")
        };
        let entries = [
            entry(1, "ada", "tiny"),
            entry(2, "bob|na:me*", "large"),
            entry(3, "ada", "large"),
        ];
        store.append(&entries).await.unwrap();
        store.append(std::slice::from_ref(&other)).await.unwrap();
        let all = RecordQuery::of(Tenant::default());
        assert_eq!(store.records(&all).await.unwrap().entries, entries);
        let villa = RecordQuery::of("villa".parse().unwrap());
        assert_eq!(store.records(&villa).await.unwrap().entries, [other]);

        let mut query = RecordQuery {
            limit: 1,
            ..all.clone()
        };
        let mut read = Vec::new();
        loop {
            let page = store.records(&query).await.unwrap();
            assert!(page.entries.len() <= 1);
            read.extend(page.entries);
            query.after = page.next;
            if query.after.is_none() {
                break;
            }
        }
        assert_eq!(read, entries, "no entry twice, none left out");

        let foreign = RecordQuery {
            after: Some("no cursor of ours".into()),
            ..all
        };
        assert!(store.records(&foreign).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn entries_are_found_by_what_is_asked_for() {
    each_store(async |store| {
        let entries = [
            entry(1, "ada", "tiny"),
            entry(2, "bob|na:me*", "large"),
            entry(3, "ada", "large"),
        ];
        store.append(&entries).await.unwrap();
        let all = RecordQuery::of(Tenant::default());
        let only = |query: RecordQuery| {
            let store = &store;
            async move {
                let page = store.records(&query).await.unwrap();
                let numbers = page.entries.iter().map(|entry| entry.id.parse().unwrap());
                numbers.collect::<Vec<u64>>()
            }
        };
        let bob = RecordQuery {
            user: Some(UserId::new("bob|na:me*")),
            ..all.clone()
        };
        assert_eq!(only(bob).await, [2]);
        let large = RecordQuery {
            user: Some(UserId::new("ada")),
            model: Some("large".into()),
            tier: Some(Tier::Fast),
            key: Some(KeyId::new("k1")),
            node: Some(NodeId::new("den")),
            ..all.clone()
        };
        assert_eq!(only(large).await, [3]);
        let heavy = RecordQuery {
            tier: Some(Tier::Heavy),
            ..all.clone()
        };
        assert_eq!(only(heavy).await, [0_u64; 0]);
        let between = RecordQuery {
            from_ms: entries[1].at_unix_ms,
            to_ms: entries[2].at_unix_ms,
            ..all
        };
        assert_eq!(only(between).await, [2]);
    })
    .await;
}

#[tokio::test]
async fn a_sum_holds_every_entry_once_however_often_it_is_added_up() {
    each_store(async |store| {
        let entries: Vec<LedgerEntry> = (0..1_203)
            .map(|number| entry(number, if number % 3 == 0 { "bob" } else { "ada" }, "tiny"))
            .collect();
        store.append(&entries).await.unwrap();
        // Four proxies add up at once; each entry must count once.
        let folds = (0..4).map(|_| store.fold());
        for folded in futures_util::future::join_all(folds).await {
            folded.unwrap();
        }
        store.fold().await.unwrap();
        let keys = [
            sum_of(DAY, Aspect::All, ""),
            sum_of("2026-11", Aspect::All, ""),
            sum_of(DAY, Aspect::User, "ada"),
            sum_of(DAY, Aspect::User, "bob"),
            sum_of(DAY, Aspect::UserModel, &pair("ada", "tiny")),
            sum_of(DAY, Aspect::KeyModel, &pair("k1", "tiny")),
            sum_of(DAY, Aspect::Tier, "fast"),
            sum_of(DAY, Aspect::Node, "den"),
            sum_of("2026-11-20", Aspect::All, ""),
        ];
        let expected = [1_203, 1_203, 802, 401, 802, 1_203, 1_203, 1_203, 0];
        assert_eq!(requests(&*store, &keys).await, expected);
        let sum = store.sums(&keys[..1]).await.unwrap()[0];
        assert_eq!(
            (sum.tokens_in, sum.tokens_out, sum.micros, sum.ms),
            (12_030, 6_015, 3_609, 8_421)
        );
        assert_eq!(store.fold().await.unwrap(), 0, "nothing is left to add up");
    })
    .await;
}

#[tokio::test]
async fn a_breakdown_lists_values_of_one_tenant_period_and_aspect() {
    each_store(async |store| {
        let odd = "a*b?[c]\\-^d";
        let entries = [
            entry(1, odd, "tiny"),
            entry(2, "axbyc-d", "tiny"),
            entry(3, odd, "large"),
            LedgerEntry {
                tenant: "villa".parse().unwrap(),
                ..entry(4, "eve", "tiny")
            },
        ];
        store.append(&entries).await.unwrap();
        store.fold().await.unwrap();
        let of = |aspect, first: Option<&str>| Breakdown {
            tenant: Tenant::default(),
            period: DAY.into(),
            aspect,
            first: first.map(str::to_owned),
            limit: 100,
        };
        let listed = async |of: Breakdown| -> BTreeMap<String, u64> {
            let rows = store.breakdown(&of).await.unwrap();
            rows.into_iter()
                .map(|(value, sum): (String, Totals)| (value, sum.requests))
                .collect()
        };
        let people = listed(of(Aspect::User, None)).await;
        let expected = [(odd.to_owned(), 2), ("axbyc-d".to_owned(), 1)];
        assert_eq!(people, BTreeMap::from(expected));
        let models = listed(of(Aspect::UserModel, Some(odd))).await;
        let expected = [(pair(odd, "large"), 1), (pair(odd, "tiny"), 1)];
        assert_eq!(models, BTreeMap::from(expected));
        let first = listed(Breakdown {
            limit: 1,
            ..of(Aspect::User, None)
        });
        assert_eq!(first.await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn who_is_forgotten_is_in_no_entry_and_no_sum_and_the_whole_stays() {
    each_store(async |store| {
        let theirs = LedgerEntry {
            acts_for: Some(UserId::new("ada")),
            ..entry(3, "guest", "tiny")
        };
        let entries = [
            entry(1, "ada", "tiny"),
            entry(2, "adam", "tiny"),
            theirs,
            LedgerEntry {
                tenant: "villa".parse().unwrap(),
                ..entry(4, "ada", "tiny")
            },
        ];
        store.append(&entries).await.unwrap();
        let (home, ada) = (Tenant::default(), UserId::new("ada"));
        // Two entries; of a day and of its month, the person's sum and the one with the model.
        assert_eq!(store.forget_usage(&home, &ada).await.unwrap(), 2 + 4);
        store.fold().await.unwrap();
        let left = store.records(&RecordQuery::of(home.clone())).await.unwrap();
        assert_eq!(left.entries, entries[1..2]);
        let keys = [
            sum_of(DAY, Aspect::All, ""),
            sum_of(DAY, Aspect::User, "ada"),
            sum_of("2026-11", Aspect::User, "ada"),
            sum_of(DAY, Aspect::UserModel, &pair("ada", "tiny")),
            sum_of(DAY, Aspect::User, "adam"),
            SumKey {
                tenant: "villa".parse().unwrap(),
                ..sum_of(DAY, Aspect::User, "ada")
            },
        ];
        assert_eq!(requests(&*store, &keys).await, [3, 0, 0, 0, 1, 1]);
        assert_eq!(store.forget_usage(&home, &ada).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn old_sums_go_and_those_of_the_kept_month_stay() {
    each_store(async |store| {
        let on = |number: u64, day: &str| LedgerEntry {
            day: day.into(),
            ..entry(number, "ada", "tiny")
        };
        let entries = [
            on(1, "2025-09-30"),
            on(2, "2025-10-16"),
            on(3, "2025-10-17"),
        ];
        store.append(&entries).await.unwrap();
        let keep = Keep {
            records_from_ms: 0,
            sums_from_day: "2025-10-17".into(),
        };
        assert!(store.prune(&keep).await.unwrap() > 0);
        assert_eq!(store.prune(&keep).await.unwrap(), 0, "nothing old is left");
        let keys = [
            "2025-09",
            "2025-09-30",
            "2025-10-16",
            "2025-10",
            "2025-10-17",
        ]
        .map(|period| sum_of(period, Aspect::All, ""));
        assert_eq!(requests(&*store, &keys).await, [0, 0, 0, 2, 1]);
        let left = store.records(&RecordQuery::of(Tenant::default())).await;
        assert_eq!(left.unwrap().entries.len(), 3, "entries have their own age");
    })
    .await;
}

#[tokio::test]
async fn the_audit_log_is_one_chain_whoever_writes_and_is_read_in_pages() {
    each_store(async |store| {
        assert_eq!(store.last_audit().await.unwrap(), None);
        // Eight administrators at once: every act has its own number and follows the one before.
        let acts: Vec<AuditAct> = (0..8).map(|number| act(&number.to_string())).collect();
        let notes = acts.iter().map(|act| store.note(act));
        for noted in futures_util::future::join_all(notes).await {
            noted.unwrap();
        }
        let mut lines: Vec<AuditRecord> = Vec::new();
        loop {
            let after = lines.last().map_or(0, |last| last.seq);
            let page = store.audit(after, 3).await.unwrap();
            if page.is_empty() {
                break;
            }
            lines.extend(page);
        }
        assert_eq!(lines.len(), 8);
        for (at, line) in lines.iter().enumerate() {
            assert_eq!(line.seq, at as u64 + 1);
            assert!(line.follows(at.checked_sub(1).and_then(|before| lines.get(before))));
            assert_eq!(line.act.after, acts[0].after, "what was written is read");
        }
        assert_eq!(store.last_audit().await.unwrap().as_ref(), lines.last());
        assert_eq!(store.audit(8, 10).await.unwrap(), []);
        assert_eq!(store.audit(0, 0).await.unwrap(), []);
    })
    .await;
}
