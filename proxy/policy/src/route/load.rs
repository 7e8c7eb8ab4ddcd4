//! How busy a backend is and how long a request would wait there, from its reports and from what we sent it since.

use std::time::Duration;

use config::wire::node::{TierReport, TierState};

use super::warm::{Known, Prompt, predict, rendezvous};
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

/// Predictions that differ by less are as good as each other: what was measured varies more than that.
const NEAR_MIN: Duration = Duration::from_millis(100);
/// The same as a part of the shortest one.
const NEAR_PART: u32 = 4;
/// A backend that writes slower than the fastest by this factor is no equal of it.
const SLOWER: f64 = 1.5;

/// A backend that could take the request, with what it is compared by.
pub(super) struct Candidate {
    pub(super) step: Step,
    /// Until it is awake; zero: it is.
    pub(super) waking: Duration,
    probe: bool,
    busy: f64,
    service: Duration,
    talks: usize,
    rendezvous: u64,
}

impl Candidate {
    /// What a backend that was not skipped has to offer.
    pub(super) fn new(backend: &Backend<'_>, local: Local, prompt: Prompt<'_>) -> Self {
        let tier = backend.tier;
        let jobs = jobs(tier, local.in_flight);
        let slots = tier.slots.max(1);
        let service = service_time(tier);
        let ahead = jobs.saturating_add(1).saturating_sub(slots);
        let model = tier.model.as_ref();
        let waking = match tier.state {
            TierState::Sleeping if tier.wakes_in_ms > 0 => Duration::from_millis(tier.wakes_in_ms),
            TierState::Sleeping => WAKING,
            TierState::Ready | TierState::Loading | TierState::Down => Duration::ZERO,
        };
        let slot = service * ahead / slots;
        let known = Known {
            slot,
            waking,
            cached_tokens: local.cached_tokens,
            round_trip: local.round_trip,
        };
        let id = backend.id();
        Self {
            rendezvous: rendezvous(prompt.spread, &id),
            step: Step {
                backend: id,
                node_name: backend.node.name.clone(),
                model: model.map(|one| one.id.clone()).unwrap_or_default(),
                file_sha256: model.map(|one| one.file_sha256.clone()).unwrap_or_default(),
                n_ctx: model.map_or(0, |one| one.n_ctx),
                wait: waking.saturating_add(slot),
                cold: !waking.is_zero(),
                predicted: predict(tier, prompt.tokens, known),
            },
            waking,
            probe: local.phase == Phase::ProbeDue,
            busy: f64::from(jobs) / f64::from(slots),
            service,
            talks: local.talks,
        }
    }
}

/// A due probe first: it costs one request a detour, and without it the backend would stay out for as long as others are well. Then
/// those whose first token is about as near as the nearest: the warm ones, then the fast, those with a free slot, those with the
/// fewest conversations, the least busy. A conversation that begins here stays here, so while there is a free slot it goes by what a
/// node has taken on and not by who is idle at the moment. Then the others, the nearest first. Names make the order total.
pub(super) fn order(candidates: &mut [Candidate]) {
    let totals = candidates.iter().map(|one| one.step.predicted.total());
    let best = totals.min().unwrap_or_default();
    let near = best.saturating_add(NEAR_MIN.max(best / NEAR_PART));
    let fastest = candidates.iter().map(|one| one.service).min();
    let slow = fastest.unwrap_or_default().mul_f64(SLOWER);
    let far = |one: &Candidate| {
        let total = one.step.predicted.total();
        // Only whoever is far differs by how far.
        (total > near).then_some(total)
    };
    candidates.sort_by(|a, b| {
        b.probe
            .cmp(&a.probe)
            .then_with(|| far(a).cmp(&far(b)))
            .then_with(|| {
                b.step
                    .predicted
                    .cached_tokens
                    .cmp(&a.step.predicted.cached_tokens)
            })
            .then_with(|| (a.service > slow).cmp(&(b.service > slow)))
            .then_with(|| (a.busy >= 1.0).cmp(&(b.busy >= 1.0)))
            .then_with(|| a.talks.cmp(&b.talks))
            .then_with(|| a.busy.total_cmp(&b.busy))
            .then_with(|| a.rendezvous.cmp(&b.rendezvous))
            .then_with(|| a.step.backend.cmp(&b.step.backend))
    });
}
