//! How busy a backend is and how long a request would wait there, from its reports and from what we sent it since.

use std::time::Duration;

use config::wire::node::{TierReport, TierState};

use super::{Local, SkipReason, Step};
use crate::breaker::Phase;
use crate::registry::Backend;

/// Decoding speed assumed for a backend that has not reported one yet.
const TOKENS_PER_SECOND: f64 = 20.0;
/// Tokens of a typical answer, to turn a queue into a time.
const ANSWER_TOKENS: f64 = 256.0;

/// Reading a model of some gigabytes back into memory; a warm neighbour is asked first.
const WAKING: Duration = Duration::from_secs(10);

/// Whether slots and queue are full.
pub(super) fn full(tier: &TierReport, in_flight: u32) -> Option<SkipReason> {
    let room = tier.slots.saturating_add(tier.queue_max);
    (jobs(tier, in_flight) >= room).then(|| SkipReason::QueueFull {
        wait: service_time(tier),
    })
}

/// Jobs at a backend: what it reported, or what we sent there since, whichever is more.
fn jobs(tier: &TierReport, in_flight: u32) -> u32 {
    tier.slots_busy
        .saturating_add(tier.queue_depth)
        .max(in_flight)
}

/// How long one slot takes for a typical answer while all slots work.
fn service_time(tier: &TierReport) -> Duration {
    let speed = if tier.tokens_per_second > 0.0 {
        tier.tokens_per_second
    } else {
        TOKENS_PER_SECOND
    };
    let seconds = ANSWER_TOKENS * f64::from(tier.slots.max(1)) / speed;
    Duration::from_secs_f64(seconds.clamp(0.0, 600.0))
}

/// A backend that could take the request, with what it is compared by.
pub(super) struct Candidate {
    pub(super) step: Step,
    probe: bool,
    busy: f64,
    service: Duration,
}

impl Candidate {
    /// What a backend that was not skipped has to offer.
    pub(super) fn new(backend: &Backend<'_>, local: Local) -> Self {
        let tier = backend.tier;
        let jobs = jobs(tier, local.in_flight);
        let slots = tier.slots.max(1);
        let service = service_time(tier);
        let ahead = jobs.saturating_add(1).saturating_sub(slots);
        let model = tier.model.as_ref();
        let waking = match tier.state {
            TierState::Sleeping => WAKING,
            TierState::Ready | TierState::Loading | TierState::Down => Duration::ZERO,
        };
        Self {
            step: Step {
                backend: backend.id(),
                node_name: backend.node.name.clone(),
                model: model.map(|one| one.id.clone()).unwrap_or_default(),
                file_sha256: model.map(|one| one.file_sha256.clone()).unwrap_or_default(),
                n_ctx: model.map_or(0, |one| one.n_ctx),
                wait: waking + service * ahead / slots,
            },
            probe: local.phase == Phase::ProbeDue,
            busy: f64::from(jobs) / f64::from(slots),
            service,
        }
    }

    /// A due probe first: it costs one request a detour, and without it the backend would stay out for as long as others are
    /// well. Then the shortest wait, the least busy, the fastest; the id makes the order total.
    pub(super) fn compare(a: &Self, b: &Self) -> std::cmp::Ordering {
        b.probe
            .cmp(&a.probe)
            .then_with(|| a.step.wait.cmp(&b.step.wait))
            .then_with(|| a.busy.total_cmp(&b.busy))
            .then_with(|| a.service.cmp(&b.service))
            .then_with(|| a.step.backend.cmp(&b.step.backend))
    }
}
