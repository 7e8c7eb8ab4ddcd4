//! Stories of moving a store: out of one kind, into the other, and back, nothing is lost; half a stream fills nothing.

use std::sync::Arc;

use config::ids::{NodeId, RequestId};
use config::settings::proxy::Plan;
use policy::limit::Elastic;
use serde_json::json;

use super::*;
use crate::store::contract::counting::{held, reservation, settlement, tokens};
use crate::store::contract::{api_key, minute, now_ms};
use crate::store::ledger::AuditAct;
use crate::store::redis::tests::RedisServer;
use crate::store::{BurstStage, Denied, Embedded, SecretHash};

fn user(id: &str) -> UserRecord {
    UserRecord {
        id: UserId::new(id),
        tenant: Tenant::default(),
        issuer: "https://issuer".into(),
        email: None,
        groups: vec!["family".into()],
        plan: Some("family".into()),
        overrides: Plan {
            text_per_day: Some(7),
            ..Plan::default()
        },
        disabled_unix: None,
        first_seen_unix: 1,
        last_seen_unix: 2,
    }
}

fn revoked_node() -> NodeRecord {
    NodeRecord {
        id: NodeId::new("node_1"),
        identity: "aWRlbnRpdHk=".into(),
        name: "den".into(),
        tiers: None,
        wireguard_key: None,
        agent_version: "0.1.0".into(),
        join_token: "t1".into(),
        created_unix: 1,
        registered_unix: None,
        last_seen_unix: None,
        revoked_unix: Some(3),
        draining: false,
        pending: false,
        approved_unix: None,
        unmanaged: None,
    }
}

async fn records_of_a_house(store: &dyn Store) {
    for name in ["pepper", "hub", "wireguard"] {
        store.secret(name).await.unwrap();
    }
    for id in ["aaaa", "bbbb"] {
        store.put_key(&api_key(id)).await.unwrap();
    }
    for number in 0..25 {
        store
            .create_user(&user(&format!("u{number}")))
            .await
            .unwrap();
    }
    store
        .deny(&Denial {
            whom: Denied::User(UserId::new("eve")),
            not_before_unix: Some(5),
            reason: "left".into(),
            created_unix: 1,
            expires_unix: None,
        })
        .await
        .unwrap();
    store
        .put_join_token(&JoinToken {
            id: "t1".into(),
            secret_hash: SecretHash::of(&[1; 32], "x"),
            name: "den".into(),
            uses_max: 2,
            tiers: None,
            created_unix: 1,
            expires_unix: 2,
            used_by: vec!["somebody".into()],
            approve: None,
        })
        .await
        .unwrap();
    store.put_node(&revoked_node()).await.unwrap();
    let burst = BurstRecord {
        name: "gpu".into(),
        start: "a1".into(),
        started_unix_ms: 1,
        stage: BurstStage::Ready,
    };
    store.swap_burst("gpu", None, Some(&burst)).await.unwrap();
    for target in ["a", "b", "c"] {
        let act = AuditAct {
            at_unix_ms: 1,
            actor: "uid:0".into(),
            from: "admin.sock".into(),
            request_id: RequestId::new("req_1"),
            action: "key.create".into(),
            target: target.into(),
            before: json!(null),
            after: json!({"name": "laptop"}),
        };
        store.note(&act).await.unwrap();
    }
}

/// Counters of every rule, one request that runs, and the books of those that ended.
async fn counts_of_a_house(store: &dyn Store) {
    let counters = [minute("u:m", 30), tokens("u:d", 1_000, 10), held("u:h", 5)];
    for spent in [40, 90] {
        let mut order = reservation(&counters);
        order.elastic = Elastic { want: 100, min: 1 };
        store.reserve(&order, now_ms()).await.unwrap();
        let mut settled = settlement(&order, &[1, spent, 0]);
        settled.entry = Some(entry(&format!("r{spent}"), spent));
        store.settle(&settled, now_ms()).await.unwrap();
    }
    let running = reservation(&counters);
    store.reserve(&running, now_ms()).await.unwrap();
}

fn entry(id: &str, tokens: u64) -> LedgerEntry {
    LedgerEntry {
        at_unix_ms: now_ms(),
        day: "2026-11-21".into(),
        tokens_in: tokens,
        ..LedgerEntry::new(id, RequestId::new("req_1"), UserId::new("ada"))
    }
}

async fn exported(store: &dyn Store) -> Vec<u8> {
    let mut bytes = Vec::new();
    let rows = export(store, &mut bytes).await.unwrap();
    assert_eq!(check(&mut bytes.as_slice()).unwrap(), rows);
    bytes
}

/// The rows, without an order.
fn rows(bytes: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(bytes).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let mut rows: Vec<String> = lines[1..lines.len() - 1]
        .iter()
        .map(|line| (*line).to_owned())
        .collect();
    rows.sort();
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_moves_to_redis_and_back_and_is_the_same() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = RedisServer::start().await;
    let first: Arc<dyn Store> = Arc::new(Embedded::open(from.path()).unwrap());
    records_of_a_house(&*first).await;
    counts_of_a_house(&*first).await;
    let before = exported(&*first).await;
    let redis = server.store().await;
    import(&*redis, &mut before.as_slice()).await.unwrap();
    let between = exported(&*redis).await;
    assert_eq!(rows(&between), rows(&before));
    let last: Arc<dyn Store> = Arc::new(Embedded::open(to.path()).unwrap());
    import(&*last, &mut between.as_slice()).await.unwrap();
    let after = exported(&*last).await;
    assert_eq!(rows(&after), rows(&before));
    // It is opened again, as after the command.
    drop(last);
    let last = Embedded::open(to.path()).unwrap();
    let (home, place) = (Tenant::default(), [held("u:h", 5)]);
    let seen = crate::store::Counting::look(&last, &home, &place, now_ms());
    assert_eq!(seen.await.unwrap().states()[0].remaining, 3);
}

#[tokio::test]
async fn a_stream_that_was_cut_or_changed_is_not_whole() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    records_of_a_house(&store).await;
    let bytes = exported(&store).await;
    for cut in [0, 1, bytes.len() / 2, bytes.len() - 1] {
        assert!(check(&mut &bytes[..cut]).is_err(), "{cut}");
    }
    let text = String::from_utf8(bytes).unwrap();
    let changed = text.replacen("\"admin\":false", "\"admin\":true ", 1);
    let error = check(&mut changed.as_bytes()).unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
    let newer = text.replacen("\"hearth_store\":1", "\"hearth_store\":9", 1);
    let error = check(&mut newer.as_bytes()).unwrap_err();
    assert!(error.to_string().contains("version 9"), "{error}");
}

#[tokio::test]
async fn a_store_that_holds_something_is_not_filled() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    records_of_a_house(&store).await;
    let bytes = exported(&store).await;
    let error = import(&store, &mut bytes.as_slice()).await.unwrap_err();
    assert!(
        matches!(error, TransferError::NotEmpty("secrets")),
        "{error}"
    );
}
