use std::time::Duration;

use config::ids::NodeId;
use config::tier::Tier;
use config::wire::node::Report;
use policy::breaker::Phase;
use policy::router::{Outcome, Router};
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::observe::metrics::Metrics;
use crate::store::Redis;
use crate::store::redis::tests::{RedisServer, settings};

const NODE: &str = "node_0000000000000001";

fn backend() -> BackendId {
    BackendId {
        node: NodeId::new(NODE),
        tier: Tier::Fast,
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// A fleet that knows the node.
fn fleet(open: Duration) -> Arc<Fleet> {
    let routing = config::settings::proxy::Routing {
        breaker_open: open,
        ..crate::nodes::tests::routing()
    };
    let mut router = Router::new(&routing, Duration::from_mins(1), 10);
    let report: Report = serde_json::from_value(json!({
        "version": 1, "node_id": NODE, "seq": 1, "draining": false,
        "memory": {"total_bytes": 0, "available_bytes": 0},
        "tiers": [{
            "tier": "fast", "state": "ready", "reason": null, "model": {"id": "tiny", "aliases": [], "file_sha256": "", "size_bytes": 1, "n_ctx": 512, "n_ctx_train": 512,
                "parameters": 1, "quantization": "Q8_0", "architecture": "llama", "modalities": ["text"]}, "slots": 4, "slots_busy": 0,
            "queue_depth": 0, "queue_max": 8, "tokens_per_second": 1.0, "prompt_tokens_per_second": 1.0,
        }],
    }))
    .unwrap();
    router.report("den", report, now()).unwrap();
    Arc::new(Fleet::new(router))
}

/// One proxy of a store: its fleet, and the task that hears the others.
struct Proxy {
    fleet: Arc<Fleet>,
    _listens: AbortOnDropHandle<()>,
    _folder: tempfile::TempDir,
}

impl Proxy {
    async fn of(redis: &RedisServer, open: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::new());
        let store = Redis::open(&settings(&redis.url()), folder.path(), metrics).await;
        let store: Arc<dyn Store> = Arc::new(store.unwrap());
        let fleet = fleet(open);
        let listener = share(&fleet, &store);
        Self {
            fleet,
            _listens: AbortOnDropHandle::new(tokio::spawn(listener.run())),
            _folder: folder,
        }
    }

    fn phase(&self) -> Phase {
        self.fleet.with(|router| router.phase(&backend(), now()))
    }

    async fn until(&self, what: &str, fact: impl Fn(Phase) -> bool) {
        let found = timeout(Duration::from_secs(10), async {
            while !fact(self.phase()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(found.await.is_ok(), "{what}: {:?}", self.phase());
    }

    async fn fail(&self) {
        let attempt = self
            .fleet
            .begin(&backend(), now())
            .await
            .expect("it may be tried");
        attempt.settle(Outcome::ConnectFailed, now());
    }
}

fn is_open(phase: Phase) -> bool {
    matches!(phase, Phase::Open { .. } | Phase::ProbeDue)
}

#[tokio::test]
async fn what_one_proxy_finds_out_the_other_one_knows_and_only_one_of_them_probes() {
    let redis = RedisServer::start().await;
    let open = Duration::from_millis(300);
    let (one, other) = tokio::join!(Proxy::of(&redis, open), Proxy::of(&redis, open));
    // The other one listens as soon as it hears anything at all.
    other
        .until("the news arrives", |phase| {
            let tripped = one.fleet.with(|router| router.phase(&backend(), now()));
            if tripped == Phase::Closed {
                let fleet = Arc::clone(&one.fleet);
                fleet.trip(&backend(), now());
            } else if tripped == Phase::ProbeDue {
                one.fleet.trip(&backend(), now());
            }
            is_open(phase)
        })
        .await;
    one.until("its time is over", |phase| phase == Phase::ProbeDue)
        .await;
    other
        .until("there too", |phase| phase == Phase::ProbeDue)
        .await;

    let backend = backend();
    let probes = tokio::join!(
        one.fleet.begin(&backend, now()),
        other.fleet.begin(&backend, now()),
    );
    let probe = match probes {
        (Some(probe), None) | (None, Some(probe)) => probe,
        (Some(_), Some(_)) => panic!("two probes"),
        (None, None) => panic!("no probe"),
    };
    assert!(probe.is_probe());
    probe.settle(Outcome::Ok, now());
    one.until("it is closed", |phase| phase == Phase::Closed)
        .await;
    other
        .until("everywhere", |phase| phase == Phase::Closed)
        .await;
}

#[tokio::test]
async fn while_the_store_is_away_every_proxy_goes_on_by_itself() {
    let mut redis = RedisServer::start().await;
    let open = Duration::from_millis(50);
    let one = Proxy::of(&redis, open).await;
    redis.kill();
    for _ in 0..3 {
        one.fail().await;
    }
    assert!(is_open(one.phase()));
    one.until("its time is over", |phase| phase == Phase::ProbeDue)
        .await;
    let begun = Instant::now();
    let probe = one
        .fleet
        .begin(&backend(), now())
        .await
        .expect("it probes alone");
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    probe.settle(Outcome::Ok, now());
    assert_eq!(one.phase(), Phase::Closed);
}
