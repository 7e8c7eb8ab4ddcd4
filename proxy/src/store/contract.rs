//! What every store must do, run against each of them.

pub(crate) mod counting;
mod seed;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use config::ids::{KeyId, NodeId, UserId};
use config::settings::proxy::Plan;
use config::tier::Tier;

use super::embedded::Embedded;
use super::redis::tests::RedisServer;
use super::{JoinToken, KeyRecord, NodeRecord, Redeemed, Redemption, SecretHash, Store};

pub(crate) use counting::{day, minute};

const PEPPER: [u8; 32] = [7; 32];

pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

pub(crate) fn api_key(id: &str) -> KeyRecord {
    let hash = SecretHash::of(&PEPPER, "secret");
    KeyRecord {
        name: "laptop".into(),
        tiers: Some(vec![Tier::Fast]),
        plan: Plan {
            text_per_day: Some(5),
            ..Plan::default()
        },
        expires_unix: Some(2_000),
        ..KeyRecord::plain(KeyId::new(id), hash, UserId::new("ada"), 100)
    }
}

fn join_token(id: &str, uses_max: u32) -> JoinToken {
    JoinToken {
        id: id.into(),
        secret_hash: SecretHash::of(&PEPPER, "secret"),
        name: "den".into(),
        uses_max,
        tiers: Some(vec![Tier::Fast, Tier::Heavy]),
        created_unix: 100,
        expires_unix: 1_000,
        used_by: Vec::new(),
        approve: None,
    }
}

fn redemption(id: &str, identity: &str) -> Redemption {
    Redemption {
        id: id.into(),
        secret_hash: SecretHash::of(&PEPPER, "secret"),
        identity: identity.into(),
    }
}

pub(crate) fn node(id: &str) -> NodeRecord {
    NodeRecord {
        id: NodeId::new(id),
        identity: "aWRlbnRpdHk=".into(),
        name: "den".into(),
        tiers: None,
        wireguard_key: None,
        agent_version: "0.1.0".into(),
        join_token: "t".into(),
        created_unix: 100,
        registered_unix: None,
        last_seen_unix: None,
        revoked_unix: None,
        draining: false,
        pending: false,
        approved_unix: None,
        unmanaged: None,
    }
}

pub(crate) fn limits() -> config::settings::proxy::Limits {
    let minute = config::settings::proxy::PerMinute {
        text: 30,
        media: 10,
        health: 120,
    };
    config::settings::proxy::Limits {
        guard_per_minute: 600,
        guard_burst: 120,
        per_ip: minute,
        per_user: minute,
        text_per_day: 100,
        media_per_day: 20,
        stored_bytes: 500_000_000,
        concurrent_per_user: 16,
        max_tokens_default: 2_048,
        table_max: 100_000,
        lease: std::time::Duration::from_mins(1),
        time_zone: config::settings::proxy::Zone::default(),
        everyone: Plan::default(),
        service: None,
        plans: std::collections::BTreeMap::new(),
        groups: std::collections::BTreeMap::new(),
        tenants: std::collections::BTreeMap::new(),
    }
}

/// Runs a check against a fresh store of each kind.
pub(crate) async fn each_store(check: impl AsyncFn(Arc<dyn Store>)) {
    let folder = tempfile::tempdir().unwrap();
    check(Arc::new(Embedded::open(folder.path()).unwrap())).await;
    let server = RedisServer::start().await;
    check(server.store().await).await;
}

#[tokio::test]
async fn keys_are_kept_found_and_listed_in_order() {
    each_store(async |store| {
        let missing = KeyId::new("missing");
        assert_eq!(store.key(&missing).await.unwrap(), None);
        for id in ["bbbb", "aaaa"] {
            store.put_key(&api_key(id)).await.unwrap();
        }
        assert_eq!(
            store.key(&KeyId::new("aaaa")).await.unwrap(),
            Some(api_key("aaaa"))
        );
        let all = store.keys().await.unwrap();
        assert_eq!(all, [api_key("aaaa"), api_key("bbbb")]);
    })
    .await;
}

#[tokio::test]
async fn a_revoked_key_stays_revoked_with_the_first_date() {
    each_store(async |store| {
        let id = KeyId::new("aaaa");
        assert_eq!(store.revoke_key(&id, 5).await.unwrap(), None);
        store.put_key(&api_key("aaaa")).await.unwrap();
        store.touch_key(&id, 450).await.unwrap();
        store.touch_key(&id, 400).await.unwrap();
        for now in [500, 600] {
            let revoked = store.revoke_key(&id, now).await.unwrap().unwrap();
            assert_eq!(revoked.revoked_unix, Some(500));
            assert_eq!(revoked.last_used_unix, Some(450));
        }
    })
    .await;
}

#[tokio::test]
async fn a_join_token_is_good_once_and_idempotent_for_who_used_it() {
    each_store(async |store| {
        store.put_join_token(&join_token("t1", 1)).await.unwrap();
        let tiers = Some(vec![Tier::Fast, Tier::Heavy]);
        let now = Redeemed::Now {
            tiers: tiers.clone(),
            approve: false,
        };
        let again = Redeemed::Again {
            tiers,
            approve: false,
        };
        let mut wrong = redemption("t1", "ada");
        wrong.secret_hash = SecretHash::of(&PEPPER, "guess");
        let cases = [
            (redemption("t0", "ada"), 200, Redeemed::Unknown),
            (wrong, 200, Redeemed::Unknown),
            (redemption("t1", "ada"), 1_000, Redeemed::Expired),
            (redemption("t1", "ada"), 999, now),
            (redemption("t1", "bob"), 999, Redeemed::UsedUp),
            (redemption("t1", "ada"), 999, again.clone()),
            (redemption("t1", "ada"), 5_000, again),
        ];
        for (redemption, now, want) in cases {
            assert_eq!(
                store.redeem_join_token(&redemption, now).await.unwrap(),
                want
            );
        }
        assert_eq!(store.join_tokens().await.unwrap()[0].used_by, ["ada"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_redemptions_take_exactly_the_uses_there_are() {
    each_store(async |store| {
        store.put_join_token(&join_token("t", 3)).await.unwrap();
        let tasks: Vec<_> = (0..12)
            .map(|number| {
                let store = Arc::clone(&store);
                let redemption = redemption("t", &format!("node {}", number % 6));
                tokio::spawn(async move { store.redeem_join_token(&redemption, 200).await })
            })
            .collect();
        let mut taken = 0;
        for task in tasks {
            let redeemed = task.await.unwrap().unwrap();
            taken += u32::from(matches!(redeemed, Redeemed::Now { .. }));
        }
        assert_eq!(taken, 3);
        assert_eq!(store.join_tokens().await.unwrap()[0].used_by.len(), 3);
    })
    .await;
}

#[tokio::test]
async fn a_revoked_node_stays_revoked_when_it_is_put_again() {
    each_store(async |store| {
        let id = NodeId::new("node_1");
        assert_eq!(store.revoke_node(&id, 5).await.unwrap(), None);
        store.put_node(&node("node_1")).await.unwrap();
        store.put_node(&node("node_0")).await.unwrap();
        let ids: Vec<_> = store
            .nodes()
            .await
            .unwrap()
            .into_iter()
            .map(|node| node.id)
            .collect();
        assert_eq!(ids, [NodeId::new("node_0"), NodeId::new("node_1")]);
        store.revoke_node(&id, 700).await.unwrap();
        let mut registering = node("node_1");
        registering.wireguard_key = Some("key".into());
        store.put_node(&registering).await.unwrap();
        let kept = store.node(&id).await.unwrap().unwrap();
        assert_eq!(kept.revoked_unix, Some(700));
        assert_eq!(kept.wireguard_key.as_deref(), Some("key"));
    })
    .await;
}

#[tokio::test]
async fn secrets_are_random_and_stay() {
    each_store(async |store| {
        let first = store.secret("pepper").await.unwrap();
        let other = store.secret("hub").await.unwrap();
        assert!(first == store.secret("pepper").await.unwrap());
        assert!(first != other && *first.expose() != [0; 32]);
        store.ping().await.unwrap();
    })
    .await;
}
