//! A machine that sleeps, in invented time: it is woken once, its progress is true, and whoever needs a slow tier waits for that one.

use std::net::Ipv6Addr;

use async_trait::async_trait;
use config::secret::Secret;
use config::tier::Tier;
use config::wire::node::Report;
use serde_json::json;
use tokio::task::JoinHandle;

use super::*;
use crate::nodes::members::Place;
use crate::nodes::upstream::{Dial, Wire};
use crate::store::{Embedded, NodeRecord, Records as _};

const NODE: &str = "node_0000000000000001";

/// Nobody is reached.
struct Nowhere;

#[async_trait]
impl Dial for Nowhere {
    async fn dial(&self, _: Ipv6Addr, _: Duration) -> std::io::Result<Box<dyn Wire>> {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

fn member() -> Member {
    Member {
        id: NodeId::new(NODE),
        name: "attic".to_owned(),
        address: Ipv6Addr::LOCALHOST,
        tiers: None,
        wireguard_key: String::new(),
        agent_token: Secret::new(String::new()),
        place: Place::Tunnel,
        draining: std::sync::atomic::AtomicBool::new(false),
    }
}

fn report(seq: u64, fast: &str, heavy: &str) -> Report {
    let tier = |tier: &str, state: &str| {
        let model = json!({"id": tier, "aliases": [], "file_sha256": "", "size_bytes": 1, "n_ctx": 512, "n_ctx_train": 512,
            "parameters": 1, "quantization": "Q8_0", "architecture": "llama", "modalities": []});
        let model = if state == "loading" {
            json!(null)
        } else {
            model
        };
        json!({"tier": tier, "state": state, "reason": null, "model": model, "slots": 1, "slots_busy": 0, "queue_depth": 0,
            "queue_max": 8, "tokens_per_second": 1.0, "prompt_tokens_per_second": 1.0})
    };
    let report = json!({
        "version": 1, "node_id": NODE, "seq": seq, "draining": false,
        "memory": {"total_bytes": 0, "available_bytes": 0},
        "tiers": [tier("fast", fast), tier("heavy", heavy)],
        "wake": {"macs": ["3c:7c:3f:12:34:56"], "takes_secs": 30},
    });
    serde_json::from_value(report).unwrap()
}

struct Home {
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    wakers: Arc<Wakers>,
    seq: u64,
}

impl Home {
    /// A machine with two tiers, awake.
    fn new() -> Self {
        let router = Router::new(&crate::nodes::tests::routing(), Duration::from_secs(15), 10);
        let (fleet, members) = (Arc::new(Fleet::new(router)), Arc::new(Members::default()));
        members.insert(Arc::new(member()));
        let metrics = Arc::new(Metrics::new());
        let wakers = Wakers::new(
            (Arc::clone(&fleet), members),
            (Upstream::new(Arc::new(Nowhere), 1), Arc::clone(&metrics)),
            Box::new(|_| None),
        );
        let mut home = Self {
            fleet,
            metrics,
            wakers: Arc::new(wakers),
            seq: 0,
        };
        home.says("ready", "ready");
        home
    }

    fn says(&mut self, fast: &str, heavy: &str) {
        self.seq += 1;
        let report = report(self.seq, fast, heavy);
        self.fleet.report(&member(), report, now()).unwrap();
    }

    fn falls_asleep(&self) {
        self.fleet.lost(&NodeId::new(NODE), now());
    }

    /// Somebody who needs a tier, and what is shown to them.
    fn waits(&self, tier: Tier) -> (JoinHandle<Result<(), StillAsleep>>, Progress) {
        let progress = Progress::default();
        let (wakers, shown) = (Arc::clone(&self.wakers), progress.clone());
        let until = Instant::now() + Duration::from_mins(10);
        let backend = BackendId {
            node: NodeId::new(NODE),
            tier,
        };
        let waiting = tokio::spawn(async move { wakers.awake(&backend, until, &shown).await });
        (waiting, progress)
    }

    fn woken(&self, outcome: &str) -> Option<u32> {
        let text = self.metrics.render();
        let name = format!("act=\"packet\",outcome=\"{outcome}\"}} ");
        let line = text.lines().find(|line| line.contains(&name))?;
        line.rsplit(' ').next()?.parse().ok()
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

async fn secs(secs: u64) {
    sleep(Duration::from_secs(secs)).await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_is_woken_once_and_whoever_needs_its_slow_tier_waits_for_that() {
    let mut home = Home::new();
    let (at_once, _) = home.waits(Tier::Heavy);
    assert_eq!(at_once.await.unwrap(), Ok(()), "it is awake");
    home.falls_asleep();
    let (heavy, shown) = home.waits(Tier::Heavy);
    let (fast, _) = home.waits(Tier::Fast);
    secs(12).await;
    home.says("ready", "loading");
    secs(1).await;
    assert_eq!(fast.await.unwrap(), Ok(()));
    assert!(!heavy.is_finished(), "another tier is no answer");
    for (passes, wanted) in [(2, "load 50"), (9, "load 80")] {
        secs(passes).await;
        assert_eq!(shown.words(now()).as_deref(), Some(wanted));
        home.says("ready", "loading");
    }
    let (later, _) = home.waits(Tier::Heavy);
    secs(2).await;
    assert!(!heavy.is_finished() && !later.is_finished());
    home.says("ready", "ready");
    assert_eq!(heavy.await.unwrap(), Ok(()));
    assert_eq!(later.await.unwrap(), Ok(()));
    assert_eq!(home.woken("ok"), Some(1), "one machine, woken once");

    home.falls_asleep();
    let (again, shown) = home.waits(Tier::Heavy);
    secs(13).await;
    assert_eq!(shown.words(now()).as_deref(), Some("load 50"), "as it took");
    home.says("ready", "ready");
    assert_eq!(again.await.unwrap(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_falls_asleep_again_while_it_loads_is_woken_again() {
    let mut home = Home::new();
    home.falls_asleep();
    let (heavy, _) = home.waits(Tier::Heavy);
    secs(5).await;
    home.says("ready", "loading");
    secs(1).await;
    home.falls_asleep();
    secs(5).await;
    home.says("ready", "loading");
    secs(1).await;
    home.says("ready", "ready");
    assert_eq!(heavy.await.unwrap(), Ok(()));
    assert_eq!(home.woken("ok"), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_tier_that_does_not_come_up_is_not_waited_for_without_end() {
    let mut home = Home::new();
    home.falls_asleep();
    let (heavy, _) = home.waits(Tier::Heavy);
    secs(5).await;
    home.says("ready", "down");
    secs(5).await;
    assert!(!heavy.is_finished(), "it may be up in a moment");
    let began = Instant::now();
    assert_eq!(heavy.await.unwrap(), Err(StillAsleep::Failed));
    assert!(began.elapsed() < Duration::from_secs(90));
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_does_not_wake_up_is_left_alone() {
    let home = Home::new();
    home.falls_asleep();
    let (heavy, _) = home.waits(Tier::Heavy);
    assert_eq!(heavy.await.unwrap(), Err(StillAsleep::Failed));
    assert_eq!(home.woken("failed"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn machines_that_were_taken_out_of_the_house_are_forgotten() {
    let home = Home::new();
    home.falls_asleep();
    let (fast, _) = home.waits(Tier::Fast);
    assert_eq!(fast.await.unwrap(), Err(StillAsleep::Failed));
    assert_eq!(home.wakers.machines().tiers.len(), 1);
    home.fleet.forget(&NodeId::new(NODE));
    home.wakers.members.remove(&NodeId::new(NODE));
    home.wakers.prune(&mut home.wakers.machines());
    assert!(home.wakers.machines().tiers.is_empty());
}

/// After a crash nobody is in the tunnel, and whoever sleeps does not come by itself.
#[tokio::test]
async fn whoever_slept_before_a_crash_is_recalled_from_the_store_and_stays_drained() {
    let folder = tempfile::tempdir().unwrap();
    let memory = Memory::new(folder.path());
    let file = folder.path().join("sleepers.json");
    let asleep = serde_json::to_vec(&[report(7, "sleeping", "sleeping")]).unwrap();
    crate::nodes::kept::write(&file, &asleep).unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let mut record: NodeRecord = crate::store::contract::node(NODE);
    record.draining = true;
    store.put_node(&record).await.unwrap();
    let router = Router::new(&crate::nodes::tests::routing(), Duration::from_secs(15), 10);
    let fleet = Fleet::new(router);
    memory.recall(&fleet, &store).await;
    let stands = |fleet: &Fleet| {
        fleet.with(|router| {
            let node = router.registry().node(&NodeId::new(NODE)).unwrap();
            (node.asleep.is_some(), node.draining)
        })
    };
    assert_eq!(stands(&fleet), (true, true), "it is not to be woken");
    fleet.hold(&NodeId::new(NODE), false);
    assert_eq!(stands(&fleet), (true, false));
}
