//! A real redis-server for tests, and what only Redis can do wrong.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use config::ids::KeyId;
use policy::gcra::Rate;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use redis::aio::MultiplexedConnection;
use tempfile::TempDir;

use super::*;
use crate::store::contract::{day, minute, now_ms};
use crate::store::{Records, Store};

/// A redis-server of its own, gone with the value.
pub(crate) struct RedisServer {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl RedisServer {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let child = Self::spawn(port, &folder);
        let server = Self {
            child,
            port,
            folder,
        };
        server.wait().await;
        server
    }

    fn spawn(port: u16, folder: &TempDir) -> Child {
        Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--port", &port.to_string()])
            .arg("--dir")
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("these tests need redis-server on the PATH (Debian: apt install redis-server)")
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) async fn restart(&mut self) {
        self.child = Self::spawn(self.port, &self.folder);
        self.wait().await;
    }

    async fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Ok(mut connection) = self.client().await
                && connection.ping::<()>().await.is_ok()
            {
                return;
            }
            assert!(Instant::now() < deadline, "redis-server does not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn client(&self) -> Result<MultiplexedConnection, redis::RedisError> {
        redis::Client::open(self.url())?
            .get_multiplexed_async_connection()
            .await
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    pub(crate) fn settings(&self, on_failure: OnFailure) -> StoreSettings {
        StoreSettings::Redis {
            url: Secret::new(self.url()),
            prefix: "hearth".into(),
            timeout: Duration::from_secs(2),
            on_failure,
        }
    }

    async fn open(&self, on_failure: OnFailure) -> Redis {
        let settings = self.settings(on_failure);
        Redis::open(&settings, Arc::new(Metrics::new()))
            .await
            .unwrap()
    }

    /// Nobody may publish or subscribe any more, and whoever did is cut.
    pub(crate) async fn cut_channels(&self) {
        let mut client = self.client().await.unwrap();
        for command in [
            "ACL SETUSER default resetchannels",
            "CLIENT KILL TYPE pubsub",
        ] {
            let mut words = command.split(' ');
            let mut cut = redis::cmd(words.next().unwrap());
            words.for_each(|word| {
                cut.arg(word);
            });
            cut.exec_async(&mut client).await.unwrap();
        }
    }

    pub(crate) async fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.open(OnFailure::Closed).await)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

async fn until(what: &str, fact: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !fact().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn it_recovers_by_itself_after_redis_was_killed() {
    let mut server = RedisServer::start().await;
    let store = server.store().await;
    let counters = [minute("u:k", 30)];
    store.admit(&counters, now_ms()).await.unwrap();
    server.kill();
    let refused = store.admit(&counters, now_ms()).await;
    assert!(
        matches!(refused, Err(StoreError::Unavailable(_))),
        "{refused:?}"
    );
    server.restart().await;
    until("admissions after the restart", async || {
        store.admit(&counters, now_ms()).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn it_starts_before_redis_and_fails_within_its_deadline() {
    let mut server = RedisServer::start().await;
    server.kill();
    let started = Instant::now();
    let store = server.store().await;
    for _ in 0..10 {
        assert!(store.admit(&[minute("u:s", 3)], now_ms()).await.is_err());
    }
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "the breaker of the link does not open"
    );
    server.restart().await;
    until("admissions after the start", async || {
        store.admit(&[minute("u:s", 3)], now_ms()).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_flushed_script_is_loaded_again() {
    let server = RedisServer::start().await;
    let store = server.store().await;
    let counters = [minute("u:f", 2)];
    store.admit(&counters, now_ms()).await.unwrap();
    let mut client = server.client().await.unwrap();
    redis::cmd("SCRIPT")
        .arg("FLUSH")
        .exec_async(&mut client)
        .await
        .unwrap();
    let decision = store.admit(&counters, now_ms()).await.unwrap();
    assert_eq!(decision.states()[0].remaining, 0);
}

#[tokio::test]
async fn a_foreign_value_under_a_key_is_an_error_and_no_panic() {
    let server = RedisServer::start().await;
    let store = server.store().await;
    let mut client = server.client().await.unwrap();
    let _: () = client.rpush("hearth:c:u:list", "x").await.unwrap();
    let _: () = client.set("hearth:c:u:text", "-5x").await.unwrap();
    let _: () = client.set("{hearth}:keys", "no hash").await.unwrap();
    let _: () = client.hset("{hearth}:nodes", "n", "{}").await.unwrap();
    for key in ["u:list", "u:text"] {
        let counters = [minute("u:fine", 1), minute(key, 1)];
        let error = store.admit(&counters, now_ms()).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
        let error = store.give_back(&counters, now_ms()).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
    }
    assert!(matches!(store.keys().await, Err(StoreError::Corrupt(_))));
    assert!(matches!(store.nodes().await, Err(StoreError::Corrupt(_))));
    let fine = store.admit(&[minute("u:fine", 1)], now_ms()).await.unwrap();
    assert!(
        matches!(fine, Decision::Admitted { .. }),
        "the foreign key charged nothing else"
    );
}

#[tokio::test]
async fn every_counter_has_an_end() {
    let server = RedisServer::start().await;
    let store = server.store().await;
    let now = now_ms();
    let counters = [minute("u:t", 30), day("u:t", 9, now)];
    store.admit(&counters, now).await.unwrap();
    store.admit(&counters, now).await.unwrap();
    store.give_back(&counters, now).await.unwrap();
    let mut client = server.client().await.unwrap();
    let keys: Vec<String> = client.keys("hearth:c:*").await.unwrap();
    assert_eq!(keys.len(), 2);
    for key in keys {
        let life_ms: i64 = client.pttl(&key).await.unwrap();
        assert!(
            life_ms > 0 && life_ms <= 90_000_000,
            "{key} lives {life_ms} ms"
        );
    }
}

#[tokio::test]
async fn open_on_failure_counts_alone_and_never_beyond_the_limit() {
    let mut server = RedisServer::start().await;
    let store = server.open(OnFailure::Open).await;
    server.kill();
    let mut granted = 0;
    for _ in 0..20 {
        let decision = store.admit(&[minute("u:o", 3)], now_ms()).await.unwrap();
        granted += u32::from(matches!(decision, Decision::Admitted { .. }));
    }
    assert_eq!(granted, 3);
    assert!(
        store.key(&KeyId::new("k")).await.is_err(),
        "keys are never assumed"
    );
    let metrics = store.metrics.render();
    assert!(
        metrics.contains("hearth_store_open_admissions_total 20"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_paused_redis_costs_no_more_than_the_timeout() {
    let server = RedisServer::start().await;
    let mut settings = server.settings(OnFailure::Closed);
    if let StoreSettings::Redis { timeout, .. } = &mut settings {
        *timeout = Duration::from_millis(200);
    }
    let store = Redis::open(&settings, Arc::new(Metrics::new()))
        .await
        .unwrap();
    let mut client = server.client().await.unwrap();
    let pause = redis::cmd("CLIENT")
        .arg("PAUSE")
        .arg(3_000)
        .arg("ALL")
        .to_owned();
    pause.exec_async(&mut client).await.unwrap();
    let started = Instant::now();
    assert!(store.admit(&[minute("u:p", 3)], now_ms()).await.is_err());
    assert!(started.elapsed() < Duration::from_secs(2));
    until("answers after the pause", async || {
        store.admit(&[minute("u:p", 30)], now_ms()).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_lost_everything_gets_the_secrets_back() {
    let server = RedisServer::start().await;
    let (one, two) = (server.store().await, server.store().await);
    let pepper = one.secret("pepper").await.unwrap();
    let mut client = server.client().await.unwrap();
    redis::cmd("FLUSHALL")
        .exec_async(&mut client)
        .await
        .unwrap();
    assert!(one.secret("pepper").await.unwrap() == pepper);
    assert!(two.secret("pepper").await.unwrap() == pepper);
}

#[tokio::test]
async fn a_redis_that_cannot_write_refuses_everybody_until_it_can() {
    let server = RedisServer::start().await;
    let store = server.store().await;
    let counters = [minute("u:w", 2), minute("i:w", 2)];
    let mut client = server.client().await.unwrap();
    let [full, roomy] = ["1", "0"].map(|bytes| {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("maxmemory").arg(bytes);
        command
    });
    let [replica, master] = [("127.0.0.1", "1"), ("NO", "ONE")].map(|(host, port)| {
        let mut command = redis::cmd("REPLICAOF");
        command.arg(host).arg(port);
        command
    });
    for (worse, better) in [(full, roomy), (replica, master)] {
        worse.exec_async(&mut client).await.unwrap();
        let refused = store.admit(&counters, now_ms()).await;
        assert!(
            matches!(refused, Err(StoreError::Unavailable(_))),
            "{refused:?}"
        );
        better.exec_async(&mut client).await.unwrap();
        until("answers again", async || store.ping().await.is_ok()).await;
        let decision = store.admit(&counters, now_ms()).await.unwrap();
        assert!(
            matches!(decision, Decision::Admitted { .. }),
            "what was refused was charged"
        );
    }
}

/// One admission or return at some time after the one before.
#[derive(Clone, Debug)]
struct Act {
    after_ms: u64,
    counter: usize,
    cost: u32,
    give_back: bool,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = (
        0_u64..40_000,
        0_usize..4,
        1_u32..4,
        prop::bool::weighted(0.2),
    )
        .prop_map(|(after_ms, counter, cost, give_back)| Act {
            after_ms,
            counter,
            cost,
            give_back,
        });
    prop::collection::vec(act, 1..40)
}

fn charged(act: &Act, run: usize, now_ms: u64) -> Vec<Counter> {
    let rate = |limit, period_ms| Rule::Gcra(Rate { limit, period_ms });
    let mut first = minute(&format!("{run}:m"), 7);
    first.cost = act.cost;
    let mut second = match act.counter {
        0 => day(&format!("{run}:d"), 11, now_ms),
        1 => minute(&format!("{run}:zero"), 0),
        2 => minute(&format!("{run}:other"), 31),
        _ => minute(&format!("{run}:odd"), 1),
    };
    if act.counter == 3 {
        second.rule = rate(13, 7_001);
    }
    second.cost = act.cost;
    vec![first, second]
}

#[test]
fn redis_decides_as_policy_does_for_any_sequence() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(RedisServer::start());
    let store = runtime.block_on(server.open(OnFailure::Closed));
    let mut runner = TestRunner::new(Config {
        cases: 40,
        failure_persistence: None,
        ..Config::default()
    });
    let run = std::cell::Cell::new(0);
    let compared = runner.run(&acts(), |acts| {
        run.set(run.get() + 1);
        let mut table = CounterTable::default();
        // From today on, so that Redis, which drops by its own clock, drops nothing that still counts.
        let mut now_ms = now_ms();
        for act in acts {
            now_ms += act.after_ms;
            let counters = charged(&act, run.get(), now_ms);
            if act.give_back {
                table.give_back(&counters);
                runtime
                    .block_on(store.take_back(&counters, Some(now_ms * 1_000)))
                    .unwrap();
                continue;
            }
            let ours = table.admit(&counters, now_ms).unwrap();
            let theirs = runtime
                .block_on(store.decide(&counters, Some(now_ms * 1_000)))
                .unwrap();
            prop_assert_eq!(ours, theirs);
        }
        Ok(())
    });
    compared.unwrap();
}
