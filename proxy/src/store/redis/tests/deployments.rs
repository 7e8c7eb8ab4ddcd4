//! The ways to reach a Redis: each does what the contract says, and a failover is followed.

use std::time::Instant;

use super::servers::{Cluster, Papers, Sentinels, command, free_port};
use super::*;

/// Counts, keeps records, hears changes.
async fn works(store: &dyn Store) {
    let order = reservation(&[minute("u:w", 3), held("u:w", 3)]);
    assert!(store.reserve(&order, now_ms()).await.unwrap().is_admitted());
    let settled = settlement(&order, &[1, 0]);
    store.settle(&settled, now_ms()).await.unwrap();
    assert_eq!(left(store, &held("u:w", 3)).await, 3);
    let mut key = crate::store::contract::api_key("aaaa");
    key.name = now_ms().to_string();
    let mut changes = store.changes();
    let secret = store.secret("pepper").await.unwrap();
    assert!(secret == store.secret("pepper").await.unwrap());
    store.put_key(&key).await.unwrap();
    let wanted = crate::store::Change::Key(key.id.clone());
    let heard = async {
        loop {
            let change = crate::store::changes::next(&mut changes).await.unwrap();
            if [&wanted, &crate::store::Change::Everything].contains(&&change) {
                return;
            }
        }
    };
    let heard = tokio::time::timeout(Duration::from_secs(10), heard).await;
    assert!(heard.is_ok(), "a change is told");
    assert_eq!(store.key(&key.id).await.unwrap(), Some(key));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_keeps_every_tenant_in_its_slot() {
    let cluster = Cluster::start().await;
    let store = cluster.nodes[0].open(&cluster.settings()).await;
    works(&store).await;
    let mut homes = 0;
    for name in ["ada", "bob", "eve", "dan", "fay", "gus"] {
        let tenant = Tenant::new(name);
        let mut order = reservation(&[minute("u:c", 3), day("u:c", 5, now_ms())]);
        for counter in &mut order.counters {
            counter.key = counter.key.replace("{home}", &format!("{{{name}}}")).into();
        }
        order.tenant = tenant;
        assert!(store.reserve(&order, now_ms()).await.unwrap().is_admitted());
        let mut settled = settlement(&order, &[1, 0]);
        settled.entry = None;
        store.settle(&settled, now_ms()).await.unwrap();
        store
            .extend(&[(order.tenant.clone(), order.id)], 1_000, now_ms())
            .await
            .unwrap();
    }
    for node in &cluster.nodes {
        let keys: Vec<String> = node.command("KEYS hearth:c:*").await;
        homes += usize::from(!keys.is_empty());
    }
    assert!(homes >= 2, "all lie on one node");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_primary_is_found_by_the_sentinels() {
    let mut house = Sentinels::start().await;
    let mut settings = house.settings();
    settings.timeout = Duration::from_millis(200);
    let store = house.primary.open(&settings).await;
    works(&store).await;
    let day = day("u:failover", 100, now_ms());
    for _ in 0..10 {
        assert!(
            admit(&store, std::slice::from_ref(&day))
                .await
                .is_admitted()
        );
    }
    until("the replica has all", async || {
        let held: i64 = house.primary.command("DBSIZE").await;
        let seen: i64 = house.replica.command("DBSIZE").await;
        let sent: redis::InfoDict = house.primary.command("INFO replication").await;
        let replica: String = sent.get("slave0").unwrap_or_default();
        let offset: String = sent.get("master_repl_offset").unwrap_or_default();
        held == seen && replica.contains(&format!("offset={offset}"))
    })
    .await;
    house.primary.kill();
    let killed = Instant::now();
    until("admissions at the new primary", async || {
        let order = reservation(std::slice::from_ref(&day));
        store.reserve(&order, now_ms()).await.is_ok()
    })
    .await;
    assert!(killed.elapsed() < Duration::from_secs(15));
    assert_eq!(left(&store, &day).await, 89, "what the old one knew counts");
    // The old one comes back as a replica; nobody writes to it.
    house.primary.restart().await;
    works(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_becomes_a_replica_is_left_at_once() {
    let house = Sentinels::start().await;
    let store = house.primary.open(&house.settings()).await;
    works(&store).await;
    let mut sentinel = redis::Client::open(format!(
        "redis://{}/",
        match &house.settings().servers {
            config::settings::proxy::Servers::Sentinels { addresses, .. } => addresses[0].clone(),
            config::settings::proxy::Servers::One(_)
            | config::settings::proxy::Servers::Cluster(_) => unreachable!(),
        }
    ))
    .unwrap()
    .get_multiplexed_async_connection()
    .await
    .unwrap();
    let failover = command("SENTINEL failover house");
    until("a failover begins", async || {
        let mut sentinel = sentinel.clone();
        failover.exec_async(&mut sentinel).await.is_ok()
    })
    .await;
    command("PING").exec_async(&mut sentinel).await.unwrap();
    until("the replica is the primary", async || {
        let role = house.replica.try_command::<Vec<redis::Value>>("ROLE").await;
        let primary = redis::Value::BulkString(b"master".to_vec());
        role.is_ok_and(|role| role.first() == Some(&primary))
    })
    .await;
    until("admissions at the new primary", async || {
        let order = reservation(&[held("u:switched", 100_000)]);
        drop(store.reserve(&order, now_ms()).await);
        let keys = "KEYS hearth:c:*switched*";
        let keys = house.replica.try_command::<Vec<String>>(keys).await;
        keys.is_ok_and(|keys| keys.len() == 1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_certificates_of_both_and_a_user_with_a_password() {
    // The first of several tests of the process installs it.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let papers = Papers::new();
    let port = free_port();
    let args = papers.server_args(port);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let server = RedisServer::start_with(&args).await;
    server
        .command::<()>("ACL SETUSER hearth on >correct-horse ~hearth:* ~{hearth}:* &{hearth}:* +@all -@dangerous +info")
        .await;
    let mut settings = RedisSettings {
        tls: papers.tls(),
        ..server.redis_settings()
    };
    settings.servers =
        config::settings::proxy::Servers::One(Secret::new(format!("rediss://localhost:{port}/")));
    settings.login.username = Some("hearth".into());
    settings.login.password = Some(Secret::new("correct-horse".into()));
    works(&server.open(&settings).await).await;
    // Neither a wrong password, nor an authority that nobody knows, nor no certificate.
    let mut wrong = settings.clone();
    wrong.login.password = Some(Secret::new("wrong".into()));
    let mut unknown = settings.clone();
    let strangers = Papers::new();
    unknown.tls.ca_file = Some(strangers.path("ca.pem"));
    let mut anonymous = settings.clone();
    anonymous.tls.client = None;
    for settings in [wrong, unknown, anonymous] {
        let error = server.open(&settings).await.ping().await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
        assert!(!error.to_string().contains("wrong"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reservation_that_no_replica_holds_does_not_count_if_that_is_wanted() {
    let server = RedisServer::start().await;
    let mut settings = server.redis_settings();
    settings.wait_replicas = 1;
    settings.timeout = Duration::from_millis(300);
    let store = server.open(&settings).await;
    let order = reservation(&[held("u:wait", 5)]);
    let refused = store.reserve(&order, now_ms()).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))));
    until("it went back", async || {
        left(&store, &held("u:wait", 5)).await == 5
    })
    .await;
    let port = server.port.to_string();
    let _replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]).await;
    until("the replica holds it", async || {
        let order = reservation(&[held("u:wait", 5)]);
        store.reserve(&order, now_ms()).await.is_ok()
    })
    .await;
}
