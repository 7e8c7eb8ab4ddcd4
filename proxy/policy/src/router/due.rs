//! Which breakers wait for a probe, and since when: found without looking at any other. Knows no reason and decides nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use config::ids::BackendId;
use config::tier::Tier;

use crate::breaker::Phase;

/// Backends whose breakers are not closed, by when they let a probe through.
#[derive(Debug, Default)]
pub(super) struct Due {
    when: HashMap<BackendId, Instant>,
    by_time: BTreeMap<Tier, BTreeSet<(Instant, BackendId)>>,
}

impl Due {
    /// How a breaker stands now.
    pub(super) fn note(&mut self, backend: &BackendId, phase: Phase, now: Instant) {
        let at = match phase {
            Phase::Closed => return self.forget(backend),
            Phase::Open { until } => until,
            Phase::Probing { lost_at } => lost_at,
            Phase::ProbeDue => {
                // Whoever waits goes on waiting from when it began.
                let since = self.when.get(backend).copied();
                since.map_or(now, |since| since.min(now))
            }
        };
        self.forget(backend);
        self.when.insert(backend.clone(), at);
        let tier = self.by_time.entry(backend.tier).or_default();
        tier.insert((at, backend.clone()));
    }

    /// Nothing is to be found out about it.
    pub(super) fn forget(&mut self, backend: &BackendId) {
        if let Some(at) = self.when.remove(backend)
            && let Some(tier) = self.by_time.get_mut(&backend.tier)
        {
            tier.remove(&(at, backend.clone()));
        }
    }

    /// Forgets those that are not to be kept.
    pub(super) fn retain(&mut self, keep: impl Fn(&BackendId) -> bool) {
        let gone = self.when.keys().filter(|backend| !keep(backend));
        let gone: Vec<BackendId> = gone.cloned().collect();
        for backend in &gone {
            self.forget(backend);
        }
    }

    /// Those that a probe may be sent to now, whoever waits longest first in each tier.
    pub(super) fn now(&self, now: Instant) -> impl Iterator<Item = &BackendId> {
        let tiers = self.by_time.values();
        tiers.flat_map(move |tier| {
            let due = tier.iter().take_while(move |(at, _)| *at <= now);
            due.map(|(_, backend)| backend)
        })
    }
}
