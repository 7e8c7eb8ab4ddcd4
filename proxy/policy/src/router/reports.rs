//! What a report says between its lines: that a tier has another model, that it was loaded anew, and how fast it has lately been. Takes no
//! report itself.

use std::time::Instant;

use config::ids::BackendId;
use config::wire::node::{Report, TierReport, TierState};

use super::Router;
use crate::registry::Change;

impl Router {
    /// A tier is as fast at reading as it was seen to be lately, not as it was with its last prompt.
    pub(super) fn remember_speeds(
        &mut self,
        report: &mut Report,
        swapped: &[BackendId],
        now: Instant,
    ) {
        // Of a node that is not known yet nothing is kept: it may be refused.
        if self.registry.node(&report.node_id).is_none() {
            return;
        }
        for tier in &mut report.tiers {
            let backend = BackendId {
                node: report.node_id.clone(),
                tier: tier.tier,
            };
            if !swapped.contains(&backend) {
                let says = tier.prompt_tokens_per_second;
                tier.prompt_tokens_per_second = self.warmth.reads(&backend, says, now);
            }
        }
    }

    /// The tiers that a report says have another model than before: nothing of what was read is in its caches.
    pub(super) fn swapped(&self, report: &Report) -> Vec<BackendId> {
        let other = |backend: &BackendId, tier: &TierReport| {
            let before = self.registry.backend(backend)?.tier.model.as_ref()?;
            let after = tier.model.as_ref()?;
            let hashes = (&before.file_sha256, &after.file_sha256);
            // A hash is empty while it is computed.
            let is_known = !hashes.0.is_empty() && !hashes.1.is_empty();
            Some(before.id != after.id || (is_known && hashes.0 != hashes.1))
        };
        let tiers = report.tiers.iter().map(|tier| {
            let backend = BackendId {
                node: report.node_id.clone(),
                tier: tier.tier,
            };
            (other(&backend, tier) == Some(true)).then_some(backend)
        });
        tiers.flatten().collect()
    }

    /// What the breaker of a tier saw was another worker, if the tier was loaded since: it may probe at once.
    pub(super) fn heed_loaded(&mut self, changes: &[Change], now: Instant) {
        for change in changes {
            if let Change::Backend {
                backend,
                from: Some(TierState::Loading | TierState::Down | TierState::Sleeping),
                to: Some(TierState::Ready),
            } = change
                && let Some(breaker) = self.breakers.get_mut(backend)
            {
                breaker.restarted(now);
                self.due.note(backend, breaker.phase(now), now);
            }
        }
    }
}
