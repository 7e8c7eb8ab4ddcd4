//! Which backends a request may go to at all, in groups: the wanted tier or model, then what may stand in for it. Looks at no load
//! and no breaker.

use config::tier::Tier;

use super::{Ask, Target};
use crate::registry::{Backend, Registry};

/// Backends that are tried before any of the next group.
pub(super) enum Group<'a> {
    Model(&'a str),
    Tier(Tier),
    Twin(Tier, &'a str),
}

impl Group<'_> {
    fn covers(&self, backend: &Backend<'_>) -> bool {
        match self {
            Self::Model(model) => backend.answers_to(model),
            Self::Tier(tier) => backend.tier.tier == *tier,
            Self::Twin(tier, file) => {
                let model = backend.tier.model.as_ref();
                let is_it = model.is_some_and(|model| model.file_sha256 == *file);
                backend.tier.tier == *tier && !file.is_empty() && is_it
            }
        }
    }
}

/// Which tiers and models are considered, in which order, and why.
pub(super) struct Order<'a> {
    pub(super) wanted: Option<Tier>,
    pub(super) reason: String,
    groups: Vec<Group<'a>>,
}

impl<'a> Order<'a> {
    /// The order for a request.
    pub(super) fn of(ask: &Ask<'a>, registry: &Registry) -> Self {
        // A tier that the principal may not use, or whose models are closed to it or cannot take the input, does not exist for
        // this request.
        let present = |tier: &Tier| {
            ask.principal.may_use_tier(*tier)
                && registry.of_tier(*tier).any(|backend| {
                    backend
                        .model_id()
                        .is_none_or(|model| ask.principal.may_use_model(model))
                        && (!ask.local_only || backend.is_local())
                        && ask.needs.met_by(backend.tier)
                })
        };
        match ask.target {
            Target::Model(model) => {
                let wanted = registry.tier_of_model(model);
                let mut groups = vec![Group::Model(model)];
                if ask.fallback {
                    groups.extend(downward(wanted).map(Group::Tier));
                }
                Self {
                    wanted,
                    reason: "model".to_owned(),
                    groups,
                }
            }
            Target::Tier(tier) => Self::of_tier(*tier, "requested", ask.fallback, present),
            Target::Twin { tier, file_sha256 } => Self {
                wanted: Some(*tier),
                reason: "twin".to_owned(),
                groups: vec![Group::Twin(*tier, file_sha256)],
            },
            Target::Auto(verdict) => {
                let reason = verdict.why();
                // Nobody asked for this tier by name, so another one is no detour from a wish, only from a guess.
                let mut order = Self::of_tier(verdict.tier, &reason, true, present);
                if !ask.fallback {
                    let first = order.groups.iter().position(|group| match group {
                        Group::Tier(tier) => present(tier),
                        Group::Model(_) | Group::Twin(..) => false,
                    });
                    order.groups.truncate(first.map_or(1, |index| index + 1));
                }
                order
            }
        }
    }

    /// How many groups there are.
    pub(super) fn len(&self) -> usize {
        self.groups.len()
    }

    /// Whether a backend is tried in this group: it is covered by it, and by none before it.
    pub(super) fn covers(&self, group: usize, backend: &Backend<'_>) -> bool {
        let mut groups = self.groups.iter();
        groups.position(|known| known.covers(backend)) == Some(group)
    }

    /// The backends of one group, by their reports the best first; each is in the first group that covers it.
    pub(super) fn backends<'r>(
        &self,
        group: usize,
        registry: &'r Registry,
    ) -> impl Iterator<Item = Backend<'r>> {
        let own = self.groups.get(group);
        let (named, tier) = match own {
            Some(Group::Model(model)) => (Some(registry.named(model)), None),
            Some(Group::Tier(tier) | Group::Twin(tier, _)) => (None, Some(registry.of_tier(*tier))),
            None => (None, None),
        };
        let named = named.into_iter().flatten();
        let all = named.chain(tier.into_iter().flatten());
        let earlier = self.groups.get(..group).unwrap_or_default();
        all.filter(move |backend| {
            own.is_some_and(|group| group.covers(backend))
                && !earlier.iter().any(|group| group.covers(backend))
        })
    }

    /// The tier and those below it. A tier that exists nowhere gives way to the nearest that does, even a stronger one.
    fn of_tier(
        wanted: Tier,
        reason: &str,
        fallback: bool,
        present: impl Fn(&Tier) -> bool,
    ) -> Self {
        if present(&wanted) || !fallback {
            let mut groups: Vec<_> = downward(Some(wanted)).map(Group::Tier).collect();
            if !fallback {
                groups.truncate(1);
            }
            return Self {
                wanted: Some(wanted),
                reason: reason.to_owned(),
                groups,
            };
        }
        let mut others: Vec<Tier> = Tier::ALL.into_iter().filter(&present).collect();
        // Nearest first; of two equally near, the cheaper.
        others.sort_by_key(|tier| (rank(*tier).abs_diff(rank(wanted)), rank(*tier)));
        let reason = others.first().map_or_else(
            || reason.to_owned(),
            |nearest| format!("{reason}; no {wanted} tier, nearest is {nearest}"),
        );
        // The wanted tier stays in the list, so that what is there but closed to the principal is reported as skipped.
        let groups = std::iter::once(wanted).chain(others).map(Group::Tier);
        Self {
            wanted: Some(wanted),
            reason,
            groups: groups.collect(),
        }
    }
}

fn downward(from: Option<Tier>) -> impl Iterator<Item = Tier> {
    std::iter::successors(from, |tier| tier.fallback())
}

const fn rank(tier: Tier) -> u8 {
    match tier {
        Tier::Fast => 0,
        Tier::Primary => 1,
        Tier::Heavy => 2,
    }
}
