//! What every store must do with keys, people and denials, and what its listeners must hear; run against each of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use config::ids::{KeyId, NodeId, Tenant, UserId};
use config::settings::proxy::Plan;
use policy::identity::Subject;

use super::changes::{Change, next};
use super::contract::{api_key, each_store, node};
use super::records::change_node;
use super::redis::tests::RedisServer;
use super::{BurstRecord, BurstStage, Denial, Denied, NodeRecord, Store, UserRecord};

pub(crate) fn person(id: &str) -> UserRecord {
    UserRecord {
        id: UserId::new(id),
        tenant: Tenant::default(),
        issuer: "https://issuer.example".into(),
        email: Some(Subject::of_email("ada@example.org")),
        groups: vec!["family".into()],
        plan: None,
        overrides: Plan::default(),
        disabled_unix: None,
        first_seen_unix: 100,
        last_seen_unix: 100,
    }
}

fn denial(whom: Denied) -> Denial {
    Denial {
        whom,
        not_before_unix: Some(500),
        reason: "lost phone".into(),
        created_unix: 501,
        expires_unix: None,
    }
}

#[tokio::test]
async fn a_person_is_made_once_changed_by_who_read_last_and_listed_in_pages() {
    each_store(async |store| {
        for id in ["c", "a", "b", "issuer|na:me*\r\n\"{}"] {
            store.create_user(&person(id)).await.unwrap();
        }
        let mut other = person("a");
        other.first_seen_unix = 999;
        let known = store.create_user(&other).await.unwrap();
        assert_eq!(known.first_seen_unix, 100, "the first one stays");

        let after = UserRecord {
            plan: Some("family".into()),
            disabled_unix: Some(7),
            ..known.clone()
        };
        assert!(store.swap_user(&known, &after).await.unwrap());
        assert!(
            !store.swap_user(&known, &after).await.unwrap(),
            "read before the change"
        );
        store.touch_user(&known.id, 4_000).await.unwrap();
        let touched = store.user(&known.id).await.unwrap().unwrap();
        assert_eq!((touched.last_seen_unix, touched.plan), (4_000, after.plan));

        let first = store.users(None, 2).await.unwrap();
        let ids = |page: &[UserRecord]| {
            page.iter()
                .map(|user| user.id.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(ids(&first), ["a", "b"]);
        let rest = store.users(Some(&first[1].id), 10).await.unwrap();
        assert_eq!(rest.len(), 2);
        assert_eq!(rest[0].id.as_str(), "c");

        assert!(store.remove_user(&UserId::new("a")).await.unwrap());
        assert!(!store.remove_user(&UserId::new("a")).await.unwrap());
        assert_eq!(store.user(&UserId::new("a")).await.unwrap(), None);
        assert_eq!(store.users(None, 10).await.unwrap().len(), 3);
        assert!(
            !store
                .swap_user(&touched_like("a"), &touched_like("a"))
                .await
                .unwrap()
        );
    })
    .await;
}

fn touched_like(id: &str) -> UserRecord {
    person(id)
}

#[tokio::test]
async fn a_denial_stands_until_it_is_taken_back() {
    each_store(async |store| {
        let whom = [
            Denied::User(UserId::new("ada")),
            Denied::Key(KeyId::new("k")),
            Denied::Tenant(Tenant::default()),
        ];
        for one in &whom {
            store.deny(&denial(one.clone())).await.unwrap();
        }
        let again = Denial {
            not_before_unix: None,
            ..denial(whom[0].clone())
        };
        store.deny(&again).await.unwrap();
        let listed = store.denials().await.unwrap();
        assert_eq!(listed.len(), 3);
        assert!(listed.contains(&again), "the newer one replaces the older");
        assert!(store.undeny(&whom[0]).await.unwrap());
        assert!(!store.undeny(&whom[0]).await.unwrap());
        assert_eq!(store.denials().await.unwrap().len(), 2);
    })
    .await;
}

#[tokio::test]
async fn of_two_changes_of_a_key_the_later_reader_wins() {
    each_store(async |store| {
        let key = api_key("aaaa");
        store.put_key(&key).await.unwrap();
        let mut after = key.clone();
        after.act_as = true;
        assert!(store.swap_key(&key, &after).await.unwrap());
        assert!(!store.swap_key(&key, &after).await.unwrap());
        assert!(
            !store
                .swap_key(&api_key("none"), &api_key("none"))
                .await
                .unwrap()
        );
        assert_eq!(store.key(&key.id).await.unwrap(), Some(after));
    })
    .await;
}

/// What a proxy notes of a node and what an administrator says of it meet in one record.
#[tokio::test]
async fn of_many_writers_of_a_node_none_undoes_what_another_said() {
    each_store(async |store| {
        let id = NodeId::new("node_00000000000000aa");
        store.put_node(&node(id.as_str())).await.unwrap();
        let read = store.node(&id).await.unwrap().unwrap();
        let drained = change_node(&*store, &id, |node| node.draining = true);
        assert!(drained.await.unwrap().unwrap().draining);
        let stale = NodeRecord {
            agent_version: "2".to_owned(),
            ..read.clone()
        };
        assert!(
            !store.swap_node(&read, &stale).await.unwrap(),
            "read before it was drained"
        );
        store.touch_node(&id, 4_000).await.unwrap();
        store.touch_node(&id, 3_000).await.unwrap();
        let now = store.node(&id).await.unwrap().unwrap();
        assert_eq!((now.draining, now.last_seen_unix), (true, Some(4_000)));

        // Everybody at once, over and over: each one's last word stands.
        let rounds = 20;
        let drains = async {
            for round in 0..rounds {
                let changed = change_node(&*store, &id, |node| node.draining = round % 2 == 0);
                changed.await.unwrap();
            }
        };
        let registers = async {
            for round in 0..rounds {
                let changed = change_node(&*store, &id, |node| {
                    node.registered_unix = Some(round);
                });
                changed.await.unwrap();
            }
        };
        let touches = async {
            for round in 0..rounds {
                store.touch_node(&id, 5_000 + round).await.unwrap();
            }
        };
        tokio::join!(drains, registers, touches);
        let now = store.node(&id).await.unwrap().unwrap();
        assert!(!now.draining, "the last word was no");
        assert_eq!(now.registered_unix, Some(rounds - 1));
        assert_eq!(now.last_seen_unix, Some(5_000 + rounds - 1));
        store.touch_node(&NodeId::new("none"), 1).await.unwrap();
        assert_eq!(store.node(&NodeId::new("none")).await.unwrap(), None);
        let nobody = change_node(&*store, &NodeId::new("none"), |_| {}).await;
        assert_eq!(nobody.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn a_server_that_was_started_is_noted_once_until_whoever_read_it_last_removes_it() {
    each_store(async |store| {
        let started = |start: &str| BurstRecord {
            name: "gpu".to_owned(),
            start: start.to_owned(),
            started_unix_ms: 1_000,
            stage: BurstStage::Starting,
        };
        let (first, second) = (started("a1"), started("b2"));
        assert_eq!(store.burst("gpu").await.unwrap(), None);
        let swap = async |before: Option<&BurstRecord>, after: Option<&BurstRecord>| {
            store.swap_burst("gpu", before, after).await.unwrap()
        };
        assert!(!swap(Some(&first), Some(&second)).await, "there is none");
        assert!(swap(None, Some(&first)).await);
        assert!(!swap(None, Some(&second)).await, "there is one");
        let stopping = BurstRecord {
            stage: BurstStage::Stopping {
                since_unix_ms: 2_000,
                tried_unix_ms: 3_000,
                failures: 2,
                going: true,
            },
            ..first.clone()
        };
        assert!(swap(Some(&first), Some(&stopping)).await);
        assert!(!swap(Some(&first), None).await, "read before the change");
        let other = BurstRecord {
            name: "another".to_owned(),
            ..second.clone()
        };
        let put = store.swap_burst("another", None, Some(&other));
        assert!(put.await.unwrap());
        assert_eq!(
            store.bursts().await.unwrap(),
            [other, stopping.clone()],
            "by name"
        );
        assert!(swap(Some(&stopping), None).await);
        assert!(!swap(Some(&stopping), None).await, "it is gone");
        assert_eq!(store.burst("gpu").await.unwrap(), None);
        assert_eq!(store.bursts().await.unwrap().len(), 1);
    })
    .await;
}

async fn hears(changes: &mut tokio::sync::broadcast::Receiver<Change>, wanted: &Change) {
    let heard = async { while next(changes).await.expect("a living store") != *wanted {} };
    let heard = tokio::time::timeout(Duration::from_secs(5), heard).await;
    assert!(heard.is_ok(), "{wanted:?} was never heard");
}

#[tokio::test]
async fn listeners_hear_of_every_change_that_counts() {
    each_store(async |store| {
        let mut changes = store.changes();
        let (key, user) = (api_key("aaaa"), person("ada"));
        store.put_key(&key).await.unwrap();
        hears(&mut changes, &Change::Key(key.id.clone())).await;
        store.revoke_key(&key.id, 5).await.unwrap();
        hears(&mut changes, &Change::Key(key.id.clone())).await;
        store.create_user(&user).await.unwrap();
        hears(&mut changes, &Change::User(user.id.clone())).await;
        store
            .deny(&denial(Denied::Key(key.id.clone())))
            .await
            .unwrap();
        hears(&mut changes, &Change::Denials).await;
        store.publish(&Change::Everything).await.unwrap();
        hears(&mut changes, &Change::Everything).await;
        while !changes.is_empty() {
            let _earlier = next(&mut changes).await;
        }
        store.touch_key(&key.id, 60).await.unwrap();
        store.touch_user(&user.id, 60).await.unwrap();
        store
            .touch_node(&NodeId::new("node_00000000000000aa"), 60)
            .await
            .unwrap();
        assert!(changes.is_empty(), "a visit is no news");
    })
    .await;
}

/// A store that listens on the channel by now.
async fn listening(server: &RedisServer) -> Arc<dyn Store> {
    let store = server.store().await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while store.watched_until().is_none() {
        assert!(Instant::now() < deadline, "the store never compares");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    store
}

#[tokio::test]
async fn a_change_reaches_another_proxy_within_two_seconds_also_while_the_channel_is_cut() {
    let server = RedisServer::start().await;
    let (here, there) = (listening(&server).await, listening(&server).await);
    let mut slowest = Duration::ZERO;
    for round in 0..4 {
        if round >= 2 {
            // No proxy may subscribe any more: the version alone tells.
            server.cut_channels().await;
        }
        let mut changes = there.changes();
        let told = Instant::now();
        here.put_key(&api_key("aaaa")).await.unwrap();
        here.revoke_key(&KeyId::new("aaaa"), round).await.unwrap();
        let heard = async {
            loop {
                let change = next(&mut changes).await.expect("a living store");
                let seen = there.key(&KeyId::new("aaaa")).await.unwrap();
                let all = seen.is_some_and(|key| key.revoked_unix == Some(round));
                if all && matches!(change, Change::Key(_) | Change::Everything) {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(2), heard)
            .await
            .unwrap_or_else(|_| panic!("round {round}: not within two seconds"));
        slowest = slowest.max(told.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
}
