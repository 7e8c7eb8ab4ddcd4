//! How busy a backend is and how long a request would wait there, from its reports and from what we sent it since.

use std::time::{Duration, Instant};

use config::ids::BackendId;
use config::wire::node::{TierReport, TierState};

use super::warm::{Known, Predicted, Prompt, predict, rendezvous};
use super::{Local, SkipReason, Step};
use crate::breaker::Phase;
use crate::registry::Backend;

/// Decoding speed assumed for a backend that has not reported one yet.
const TOKENS_PER_SECOND: f64 = 20.0;
/// Tokens of a typical answer, to turn a queue into a time.
const ANSWER_TOKENS: f64 = 256.0;

/// Reading a model of some gigabytes back into memory, where its node does not say how long that takes; a warm neighbour is asked first.
const WAKING: Duration = Duration::from_secs(10);

/// A load that takes longer than its node thought is about to end, as far as anybody knows.
const OVERDUE: Duration = Duration::from_millis(250);

/// Until a backend answers whose model is being loaded; `None`: it is not, or nobody knows when.
pub(super) fn loads_in(backend: &Backend<'_>, now: Instant) -> Option<Duration> {
    let Backend { tier, node } = backend;
    let is_known = tier.model.is_some() && tier.wakes_in_ms > 0;
    (tier.state == TierState::Loading && is_known).then(|| {
        let since = now.saturating_duration_since(node.reported_at);
        let left = Duration::from_millis(tier.wakes_in_ms).saturating_sub(since);
        left.max(OVERDUE)
    })
}

/// Until a backend answers that was not left out; zero: it does.
pub(super) fn waking(backend: &Backend<'_>, now: Instant) -> Duration {
    let tier = backend.tier;
    match tier.state {
        TierState::Sleeping if tier.wakes_in_ms > 0 => Duration::from_millis(tier.wakes_in_ms),
        TierState::Sleeping => WAKING,
        TierState::Loading => loads_in(backend, now).unwrap_or(WAKING),
        TierState::Ready | TierState::Down => Duration::ZERO,
    }
}

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
const NEAR_MIN: Duration = Duration::from_millis(250);
/// The same as a part of the shortest one.
const NEAR_PART: u32 = 4;
/// A backend that writes slower than the fastest by this factor is no equal of it. One that was measured with all its slots at work makes
/// several times the tokens of its twin that had one answer to write, and is no faster a machine.
const SLOWER: f64 = 4.0;

/// A backend that could take the request, with what it is compared by.
pub(super) struct Candidate<'a> {
    backend: Backend<'a>,
    id: BackendId,
    /// Until it is awake; zero: it is.
    pub(super) waking: Duration,
    known: Known,
    pub(super) predicted: Predicted,
    probe: bool,
    busy: f64,
    /// How long it takes for an answer; `None`: nobody has seen it write.
    writes: Option<Duration>,
    talks: usize,
    rendezvous: u64,
}

impl<'a> Candidate<'a> {
    /// What a backend that was not skipped has to offer.
    pub(super) fn new(
        (backend, id): (Backend<'a>, BackendId),
        (local, waking): (Local, Duration),
        prompt: Prompt<'_>,
    ) -> Self {
        let tier = backend.tier;
        let jobs = jobs(tier, local.in_flight);
        let slots = tier.slots.max(1);
        let service = service_time(tier);
        let ahead = jobs.saturating_add(1).saturating_sub(slots);
        let known = Known {
            slot: service * ahead / slots,
            waking,
            cached_tokens: local.cached_tokens,
            round_trip: local.round_trip,
            prompt_tokens_per_second: None,
        };
        Self {
            rendezvous: rendezvous(prompt.spread, &id),
            backend,
            id,
            waking,
            known,
            predicted: Predicted::default(),
            probe: local.phase == Phase::ProbeDue,
            busy: f64::from(jobs) / f64::from(slots),
            writes: (tier.tokens_per_second > 0.0).then_some(service),
            talks: local.talks,
        }
    }

    /// Whether it would begin at once.
    pub(super) const fn is_free(&self) -> bool {
        self.known.slot.is_zero() && self.waking.is_zero()
    }

    /// Whether the attempt would decide over its breaker.
    pub(super) const fn is_probe(&self) -> bool {
        self.probe
    }

    /// As a part of the route.
    pub(super) fn step(self) -> Step {
        let model = self.backend.tier.model.as_ref();
        Step {
            node_name: self.backend.node.name.clone(),
            model: model.map(|one| one.id.clone()).unwrap_or_default(),
            file_sha256: model.map(|one| one.file_sha256.clone()).unwrap_or_default(),
            n_ctx: model.map_or(0, |one| one.n_ctx),
            wait: self.waking.saturating_add(self.known.slot),
            cold: !self.waking.is_zero(),
            predicted: self.predicted,
            backend: self.id,
        }
    }

    /// What it serves, and how fast it was seen to read; `None`: nobody has seen it read.
    fn reads(&self) -> (Option<&'a str>, Option<f64>) {
        let tier = self.backend.tier;
        let model = tier.model.as_ref().map(|model| model.id.as_str());
        let speed = tier.prompt_tokens_per_second;
        (model, (speed > 0.0 && speed.is_finite()).then_some(speed))
    }
}

/// Predicts the time to the first token of each. One that nobody has seen read is believed as fast as the fastest with its model: it
/// would otherwise stay unseen, and whoever was asked first would be asked always.
pub(super) fn foresee(candidates: &mut [Candidate<'_>], prompt: Prompt<'_>) {
    let mut seen: Vec<(Option<&str>, f64)> = Vec::new();
    let mut unseen = false;
    for (model, speed) in candidates.iter().map(Candidate::reads) {
        let Some(speed) = speed else {
            unseen = true;
            continue;
        };
        match seen.iter_mut().find(|(known, _)| *known == model) {
            Some((_, fastest)) => *fastest = fastest.max(speed),
            None => seen.push((model, speed)),
        }
    }
    for one in candidates.iter_mut() {
        if unseen && let (model, None) = one.reads() {
            let twin = seen.iter().find(|(known, _)| *known == model);
            one.known.prompt_tokens_per_second = twin.map(|(_, fastest)| *fastest);
        }
        one.predicted = predict(one.backend.tier, prompt.tokens, one.known);
    }
}

/// One due probe first: it costs one request a detour, and without it the backend would stay out for as long as others are well. Then
/// those whose first token is about as near as the nearest: the warm ones, then the fast, those with a free slot, those with the
/// fewest conversations, the least busy. A conversation that begins here stays here, so while there is a free slot it goes by what a
/// node has taken on and not by who is idle at the moment. Then the others, the nearest first, and last the other due probes: nobody
/// is led from one doubtful backend to the next. Names make the order total.
pub(super) fn order(candidates: &mut [Candidate<'_>]) {
    let well = || candidates.iter().filter(|one| !one.probe);
    let totals = well().map(|one| one.predicted.total());
    let best = totals.min().unwrap_or_default();
    let near = best.saturating_add(NEAR_MIN.max(best / NEAR_PART));
    let fastest = well().filter_map(|one| one.writes).min();
    let slow = fastest.unwrap_or_default().mul_f64(SLOWER);
    let is_slow = |one: &Candidate<'_>| one.writes.is_some_and(|writes| writes > slow);
    let far = |one: &Candidate<'_>| {
        let total = one.predicted.total();
        // Only whoever is far differs by how far.
        (total > near).then_some(total)
    };
    candidates.sort_unstable_by(|a, b| {
        let warmth = |one: &Candidate<'_>| std::cmp::Reverse(one.predicted.cached_tokens);
        a.probe
            .cmp(&b.probe)
            .then_with(|| far(a).cmp(&far(b)))
            .then_with(|| warmth(a).cmp(&warmth(b)))
            .then_with(|| is_slow(a).cmp(&is_slow(b)))
            .then_with(|| (a.busy >= 1.0).cmp(&(b.busy >= 1.0)))
            .then_with(|| a.talks.cmp(&b.talks))
            .then_with(|| a.busy.total_cmp(&b.busy))
            .then_with(|| a.rendezvous.cmp(&b.rendezvous))
            .then_with(|| a.id.cmp(&b.id))
    });
    if let Some(first) = candidates.iter().position(|one| one.probe)
        && let Some(ahead) = candidates.get_mut(..=first)
    {
        ahead.rotate_right(1);
    }
}
