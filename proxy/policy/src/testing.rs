//! What the tests of this crate share: a first moment, and reports of invented nodes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use config::ids::{BackendId, NodeId};
use config::settings::proxy::{Hedge, Limits, PerMinute, Plan, Routing, WakePatience};
use config::tier::Tier;
use config::wire::node::{Memory, ModelReport, Report, TierReport, TierState, VERSION};

/// The first moment of a test. Every later one is counted from it.
pub(crate) fn start() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant cannot be made otherwise; only differences matter"
    )]
    Instant::now()
}

pub(crate) fn routing() -> Routing {
    Routing {
        auto_models: vec!["auto".to_owned()],
        heavy_from: 0.66,
        fast_to: 0.33,
        breaker_failures: 3,
        breaker_window: Duration::from_secs(30),
        breaker_open: Duration::from_secs(30),
        breaker_probe: Duration::from_mins(1),
        connect_timeout: Duration::from_secs(3),
        first_byte_timeout: Duration::from_mins(2),
        idle_timeout: Duration::from_mins(1),
        silence: Duration::from_millis(250),
        silence_patience: Duration::from_millis(500),
        stall_after: Duration::from_secs(2),
        migration_patience: Duration::from_secs(10),
        commit_after: Duration::from_secs(3),
        keepalive: Duration::from_secs(15),
        fallback: true,
        pool_max: 32,
        queue_max: 64,
        queue_wait: Duration::ZERO,
        wake: WakePatience::default(),
        hedge: Hedge::default(),
        classifier: config::settings::classifier::Classifier::default(),
    }
}

/// The defaults of `[limits]`.
pub(crate) fn limits() -> Limits {
    let per_minute = PerMinute {
        text: 30,
        media: 10,
        health: 120,
    };
    Limits {
        guard_per_minute: 600,
        guard_burst: 120,
        per_ip: per_minute,
        per_user: per_minute,
        text_per_day: 100,
        media_per_day: 20,
        stored_bytes: 500_000_000,
        concurrent_per_user: 16,
        max_tokens_default: 2_048,
        table_max: 1_000,
        lease: Duration::from_mins(1),
        time_zone: config::settings::proxy::Zone::default(),
        everyone: Plan::default(),
        service: None,
        plans: BTreeMap::new(),
        groups: BTreeMap::new(),
        tenants: BTreeMap::new(),
    }
}

pub(crate) fn node_id(name: &str) -> NodeId {
    NodeId::new(format!("node_{name}"))
}

pub(crate) fn backend(name: &str, tier: Tier) -> BackendId {
    BackendId {
        node: node_id(name),
        tier,
    }
}

/// A ready, idle tier with four slots whose model is called `tiny-<tier>`.
pub(crate) fn tier(tier: Tier) -> TierReport {
    TierReport {
        tier,
        state: TierState::Ready,
        reason: None,
        model: Some(ModelReport {
            id: format!("tiny-{tier}"),
            aliases: Vec::new(),
            file_sha256: String::new(),
            size_bytes: 1,
            n_ctx: 4_096,
            n_ctx_train: 8_192,
            parameters: 1,
            quantization: "Q8_0".to_owned(),
            architecture: "llama".to_owned(),
            modalities: Vec::new(),
        }),
        slots: 4,
        slots_busy: 0,
        queue_depth: 0,
        queue_max: 64,
        tokens_per_second: 40.0,
        prompt_tokens_per_second: 400.0,
        elsewhere: false,
        wakes_in_ms: 0,
        prefixes: Vec::new(),
    }
}

pub(crate) fn report(name: &str, seq: u64, tiers: Vec<TierReport>) -> Report {
    Report {
        version: VERSION,
        node_id: node_id(name),
        seq,
        draining: false,
        memory: Memory::default(),
        tiers,
        wake: None,
        back_end: None,
    }
}
