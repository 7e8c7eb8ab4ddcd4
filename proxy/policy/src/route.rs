//! Where a request may go, in which order, and why not elsewhere. A route is a plan: taking a step is the router's business.

mod load;
mod order;
pub mod warm;

use std::time::{Duration, Instant};

use config::ids::BackendId;
use config::tier::Tier;
use config::wire::chat::{Content, Part};
use config::wire::node::{TierReport, TierState};
use config::wire::valid::ValidChat;

use crate::breaker::Phase;
use crate::classify::Verdict;
use crate::identity::Principal;
use crate::refusal::Refusal;
use crate::registry::{Backend, Registry};
use load::{Candidate, full, loads_in, waking};
use order::Order;
pub use warm::Predicted;
pub use warm::Prompt;

/// Backends of one tier that are tried before the next tier is: a request is not a tour through a large house.
const STEPS_PER_GROUP_MAX: usize = 4;
/// Backends of a group that are looked at before it is asked whether they are enough, and before fewer are.
const LOOK_MIN: usize = 32;
const LOOK_MAX: usize = 128;
/// Retry hint when no breaker says when: a node that comes back reports within seconds.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Retry hints for full queues stay within these.
const BUSY_MIN: Duration = Duration::from_secs(1);
const BUSY_MAX: Duration = Duration::from_secs(5);

/// What a request is after.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// A tier by name.
    Tier(Tier),
    /// A model by id.
    Model(String),
    /// What the classifier thinks.
    Auto(Verdict),
    /// This very file in this tier, under whatever name: it goes on with what another one began.
    Twin {
        /// The tier.
        tier: Tier,
        /// SHA-256 of the file, as hex; an empty one is nobody's.
        file_sha256: String,
    },
}

/// What kind of model can answer. The words are those of a node's report.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Craft {
    /// It makes text.
    #[default]
    Text,
    /// It makes vectors.
    Embedding,
    /// It ranks documents.
    Rerank,
    /// Any: its tokenizer is asked, not the model.
    Any,
}

/// What a request has besides text, so that the model must take it, and what it wants.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Needs {
    /// Pictures.
    pub image: bool,
    /// Sound.
    pub audio: bool,
    /// What is wanted.
    pub craft: Craft,
    /// Only a node of ours can do it: it is not in `OpenAI`'s API.
    pub native: bool,
}

impl Needs {
    /// What a chat request has.
    pub fn of(chat: &ValidChat) -> Self {
        let mut needs = Self::default();
        for message in &chat.messages {
            let Some(Content::Parts(parts)) = &message.content else {
                continue;
            };
            for part in parts {
                match part {
                    Part::Text { .. } => {}
                    Part::ImageUrl { .. } => needs.image = true,
                    Part::InputAudio { .. } => needs.audio = true,
                }
            }
        }
        needs
    }

    /// Whether the tier's model takes all of it. A tier that has not loaded its model may.
    fn met_by(self, tier: &TierReport) -> bool {
        let Some(model) = &tier.model else {
            return true;
        };
        let takes = |kind: &str| model.modalities.iter().any(|known| known == kind);
        let apt = match self.craft {
            Craft::Text => !takes("embedding") && !takes("rerank"),
            Craft::Embedding => takes("embedding"),
            Craft::Rerank => takes("rerank"),
            Craft::Any => true,
        };
        apt && (!self.image || takes("image")) && (!self.audio || takes("audio"))
    }
}

/// What a route is planned for.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// What is wanted.
    pub target: &'a Target,
    /// Who asks: some tiers and models may be closed to them.
    pub principal: &'a Principal,
    /// What the model must take besides text.
    pub needs: Needs,
    /// Whether another tier may answer.
    pub fallback: bool,
    /// Full queues are no reason to leave a backend out.
    pub past_queues: bool,
    /// Nor is it that it will take requests in a moment: a probe is under way, or the worker that broke is being replaced.
    pub past_waits: bool,
    /// Only tiers at home may answer.
    pub local_only: bool,
    /// How long it waits for a tier that sleeps while another one is warm.
    pub patience: Duration,
    /// What is to be read before the first token.
    pub prompt: Prompt<'a>,
}

/// One entry of a route.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Where.
    pub backend: BackendId,
    /// The node's name, for `_routing`.
    pub node_name: String,
    /// The model there.
    pub model: String,
    /// Hash of its file; empty when nobody knows it.
    pub file_sha256: String,
    /// Tokens a request may use there.
    pub n_ctx: u32,
    /// It sleeps, and has to be woken first.
    pub cold: bool,
    /// How long the request would wait for a slot.
    pub wait: Duration,
    /// How long it probably takes to its first token.
    pub predicted: Predicted,
}

/// Why a backend is not in the route.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum SkipReason {
    /// The principal may not use it.
    NotAllowed,
    /// Its node stopped reporting.
    Silent,
    /// Its node takes no new work.
    Draining,
    /// The model is being loaded, and nobody knows which or how long that takes.
    Loading,
    /// The model is being loaded again, and its breaker waits for that.
    Reloading {
        /// Until it will probably answer.
        ready_in: Duration,
    },
    /// The worker is down.
    Down,
    /// Its breaker is open.
    BreakerOpen {
        /// Until a probe may go.
        reopens_in: Duration,
    },
    /// Its breaker waits for a probe.
    Probing {
        /// Until the probe counts as lost.
        lost_in: Duration,
    },
    /// Its queue is full.
    QueueFull {
        /// Until there is probably room.
        wait: Duration,
    },
    /// The model does not take the request's pictures or sound.
    NoModality,
    /// It is not at home, and the request must stay there.
    NotLocal,
}

impl SkipReason {
    /// The label in metrics, logs and `_routing`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotAllowed => "not_allowed",
            Self::Silent => "silent",
            Self::Draining => "draining",
            Self::Loading | Self::Reloading { .. } => "loading",
            Self::Down => "down",
            Self::BreakerOpen { .. } => "breaker_open",
            Self::Probing { .. } => "probing",
            Self::QueueFull { .. } => "queue_full",
            Self::NoModality => "no_modality",
            Self::NotLocal => "not_local",
        }
    }

    /// Whether it will be over in a moment, by itself.
    pub const fn is_passing(self) -> bool {
        match self {
            Self::Loading
            | Self::Reloading { .. }
            | Self::Probing { .. }
            | Self::QueueFull { .. } => true,
            Self::NotAllowed
            | Self::Silent
            | Self::Draining
            | Self::Down
            | Self::BreakerOpen { .. }
            | Self::NoModality
            | Self::NotLocal => false,
        }
    }
}

/// The plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The tier that was wanted, before anything was found missing.
    pub wanted: Option<Tier>,
    /// The model that was asked for by id.
    pub wanted_model: Option<String>,
    /// Why: `requested`, `model`, or the classifier's reasons; with a note when the wanted tier does not exist.
    pub reason: String,
    /// Where to try, in order; no backend twice.
    pub steps: Vec<Step>,
    /// Backends that were considered and left out. One that would only have been tried after several others is in neither list.
    pub skipped: Vec<(BackendId, SkipReason)>,
}

impl Route {
    /// What to answer when there is no step, or none could be begun.
    pub fn refusal(&self) -> Refusal {
        let reasons = || self.skipped.iter().map(|(_, reason)| *reason);
        let blind = |reason| matches!(reason, SkipReason::NoModality | SkipReason::NotAllowed);
        let all_blind = !self.skipped.is_empty() && reasons().all(blind);
        if all_blind && reasons().any(|reason| reason == SkipReason::NoModality) {
            return Refusal::BadRequest {
                code: "unsupported_parameter".into(),
                param: Some("messages".to_owned()),
                message: "no model here takes this kind of input or makes this kind of answer: send text only, or see in /v1/models what each does".to_owned(),
            };
        }
        let full = reasons().filter_map(|reason| match reason {
            SkipReason::QueueFull { wait } => Some(wait),
            SkipReason::NotAllowed
            | SkipReason::Silent
            | SkipReason::Draining
            | SkipReason::Loading
            | SkipReason::Reloading { .. }
            | SkipReason::Down
            | SkipReason::BreakerOpen { .. }
            | SkipReason::Probing { .. }
            | SkipReason::NoModality
            | SkipReason::NotLocal => None,
        });
        if let Some(wait) = full.min() {
            return Refusal::QueueFull {
                retry_after: wait.clamp(BUSY_MIN, BUSY_MAX),
            };
        }
        Refusal::NoTierAvailable {
            wanted: self.wanted,
            local_only: self.stays_home(),
            retry_after: self.retry_after(),
        }
    }

    /// Whether somebody was left out because the request must stay at home.
    pub fn stays_home(&self) -> bool {
        let mut reasons = self.skipped.iter().map(|(_, reason)| *reason);
        reasons.any(|reason| reason == SkipReason::NotLocal)
    }

    /// Whether somebody was left out who will take requests in a moment.
    pub fn is_worth_waiting(&self) -> bool {
        let mut reasons = self.skipped.iter().map(|(_, reason)| *reason);
        reasons.any(SkipReason::is_passing)
    }

    /// When a model that is being loaded again will probably answer, at the earliest; `None`: none is.
    pub fn ready_in(&self) -> Option<Duration> {
        let waits = self.skipped.iter().filter_map(|(_, reason)| match reason {
            SkipReason::Reloading { ready_in } => Some(*ready_in),
            SkipReason::NotAllowed
            | SkipReason::Silent
            | SkipReason::Draining
            | SkipReason::Loading
            | SkipReason::Down
            | SkipReason::BreakerOpen { .. }
            | SkipReason::Probing { .. }
            | SkipReason::QueueFull { .. }
            | SkipReason::NoModality
            | SkipReason::NotLocal => None,
        });
        waits.min()
    }

    /// When a breaker of a skipped backend lets a probe through, at the earliest.
    pub fn retry_after(&self) -> Duration {
        let waits = self.skipped.iter().filter_map(|(_, reason)| match reason {
            SkipReason::BreakerOpen { reopens_in } => Some(*reopens_in),
            SkipReason::Probing { lost_in } => Some((*lost_in).min(RETRY_AFTER)),
            SkipReason::Reloading { ready_in } => Some(*ready_in),
            SkipReason::NotAllowed
            | SkipReason::Silent
            | SkipReason::Draining
            | SkipReason::Loading
            | SkipReason::Down
            | SkipReason::QueueFull { .. }
            | SkipReason::NoModality
            | SkipReason::NotLocal => None,
        });
        waits.min().unwrap_or(RETRY_AFTER)
    }

    /// The detour of an answer from this step, as `heavy->primary`; `None` when it is what was wanted.
    pub fn detour(&self, step: &Step) -> Option<String> {
        if let Some(model) = &self.wanted_model {
            return (*model != step.model).then(|| format!("{model}->{}", step.model));
        }
        let wanted = self.wanted?;
        let answered = step.backend.tier;
        (wanted != answered).then(|| format!("{wanted}->{answered}"))
    }
}

/// What the router knows of a backend besides its reports.
#[derive(Clone, Copy, Debug)]
pub struct Local {
    /// Attempts of ours that are under way there.
    pub in_flight: u32,
    /// Its breaker.
    pub phase: Phase,
    /// Tokens of the prompt that are probably cached there.
    pub cached_tokens: u32,
    /// The way there and back; `None`: nobody has measured it.
    pub round_trip: Option<Duration>,
    /// Conversations that it has lately.
    pub talks: usize,
}

/// Who is looked at before the others of a group.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ahead<'a> {
    /// They hold the beginning of the conversation.
    pub warm: &'a [BackendId],
    /// Their breakers wait for a probe, whoever did so longest first.
    pub due: &'a [BackendId],
}

/// Whether looking at more backends of the group is pointless: they come by their reports, the best first. That several could begin
/// at once settles it; where none could, a few times as many are looked at.
fn is_enough(seen: usize, candidates: &[Candidate<'_>]) -> bool {
    let at_once = candidates.iter().filter(|one| one.is_free());
    let wanted = if seen < LOOK_MAX {
        at_once.count()
    } else {
        candidates.len()
    };
    seen.is_multiple_of(LOOK_MIN) && wanted >= STEPS_PER_GROUP_MAX
}

/// The backends of one group, as far as they were looked at.
struct Look<'a, L> {
    ask: &'a Ask<'a>,
    registry: &'a Registry,
    local: L,
    now: Instant,
    candidates: Vec<Candidate<'a>>,
    skipped: Vec<(BackendId, SkipReason)>,
    /// Those that came ahead of the others.
    ahead: Vec<BackendId>,
}

impl<'a, L: Fn(&BackendId) -> Local> Look<'a, L> {
    fn at(&mut self, backend: Backend<'a>) {
        let id = backend.id();
        let ours = (self.local)(&id);
        let silent = self.registry.is_silent(backend.node, self.now);
        if let Some(reason) = skip(&backend, self.ask, silent, ours, self.now) {
            self.skipped.push((id, reason));
        } else {
            let waking = waking(&backend, self.now);
            let candidate = Candidate::new((backend, id), (ours, waking), self.ask.prompt);
            self.candidates.push(candidate);
        }
    }

    fn at_known(&mut self, id: &BackendId, backend: Backend<'a>) {
        if !self.ahead.contains(id) {
            self.ahead.push(id.clone());
            self.at(backend);
        }
    }

    /// Those that came ahead, then the others until there are enough.
    fn around(&mut self, order: &Order<'_>, group: usize, ahead: Ahead<'_>) {
        let covered = |id: &&BackendId| {
            let backend = self.registry.backend(id);
            backend.filter(|backend| order.covers(group, backend))
        };
        let named = |ids: &[BackendId]| -> Vec<(BackendId, Backend<'a>)> {
            let found = ids
                .iter()
                .filter_map(|id| Some((id.clone(), covered(&id)?)));
            found.collect()
        };
        let (warm, due) = (named(ahead.warm), named(ahead.due));
        for (id, backend) in warm {
            self.at_known(&id, backend);
        }
        // One of them is enough, and each that cannot be asked for another reason makes room for the next.
        for (id, backend) in due.into_iter().take(LOOK_MAX) {
            if self.candidates.iter().any(Candidate::is_probe) {
                break;
            }
            self.at_known(&id, backend);
        }
        let known = std::mem::take(&mut self.ahead);
        let is_known = |backend: &Backend<'_>| {
            let mut known = known.iter();
            known.any(|id| id.node == backend.node.id && id.tier == backend.tier.tier)
        };
        let others = order.backends(group, self.registry);
        let others = others.filter(|backend| !is_known(backend));
        for (seen, backend) in others.enumerate() {
            if seen >= LOOK_MIN && is_enough(seen, &self.candidates) {
                break;
            }
            self.at(backend);
        }
    }
}

/// Plans a route. Whoever is `ahead` is looked at in any case. `local` says what we know of each backend ourselves.
pub fn plan(
    ask: &Ask<'_>,
    registry: &Registry,
    (ahead, local): (Ahead<'_>, impl Fn(&BackendId) -> Local),
    now: Instant,
) -> Route {
    let order = Order::of(ask, registry);
    let mut look = Look {
        ask,
        registry,
        local,
        now,
        candidates: Vec::new(),
        skipped: Vec::new(),
        ahead: Vec::new(),
    };
    let (mut steps, mut asleep) = (Vec::new(), Vec::new());
    for group in 0..order.len() {
        look.around(&order, group, ahead);
        let mut candidates = std::mem::take(&mut look.candidates);
        load::foresee(&mut candidates, ask.prompt);
        // What would take longer to wake up than the request waits comes after everything that is warm, in whatever tier.
        let is_late = |candidate: &mut Candidate<'_>| candidate.waking > ask.patience;
        asleep.extend(candidates.extract_if(.., is_late));
        load::order(&mut candidates);
        let best = candidates.into_iter().take(STEPS_PER_GROUP_MAX);
        steps.extend(best.map(Candidate::step));
    }
    let mut skipped = look.skipped;
    if ask.local_only {
        // Tiers that are only elsewhere are in no group: they are named all the same, so that the answer says why there is none.
        let away = registry.backends().filter(|backend| !backend.is_local());
        for id in away.map(|backend| backend.id()) {
            if !skipped.iter().any(|(known, _)| *known == id) {
                skipped.push((id, SkipReason::NotLocal));
            }
        }
    }
    let last = asleep.into_iter().take(STEPS_PER_GROUP_MAX);
    steps.extend(last.map(Candidate::step));
    Route {
        wanted: order.wanted,
        wanted_model: match ask.target {
            Target::Model(model) => Some(model.clone()),
            Target::Tier(_) | Target::Auto(_) | Target::Twin { .. } => None,
        },
        reason: order.reason,
        steps,
        skipped,
    }
}

fn skip(
    backend: &Backend<'_>,
    ask: &Ask<'_>,
    silent: bool,
    local: Local,
    now: Instant,
) -> Option<SkipReason> {
    let tier = backend.tier;
    let model_allowed = backend
        .model_id()
        .is_none_or(|model| ask.principal.may_use_model(model));
    if !model_allowed || !ask.principal.may_use_tier(tier.tier) {
        return Some(SkipReason::NotAllowed);
    }
    if ask.local_only && !backend.is_local() {
        return Some(SkipReason::NotLocal);
    }
    if silent {
        return Some(SkipReason::Silent);
    }
    let loads_in = loads_in(backend, now);
    let readiness = match (tier.state, &tier.model) {
        (TierState::Down, _) => Some(SkipReason::Down),
        (TierState::Ready | TierState::Sleeping, None) => Some(SkipReason::Loading),
        (TierState::Loading, _) if loads_in.is_none() => Some(SkipReason::Loading),
        (TierState::Ready | TierState::Sleeping | TierState::Loading, _) => {
            (!ask.needs.met_by(tier) || (ask.needs.native && backend.node.foreign))
                .then_some(SkipReason::NoModality)
        }
    };
    let blocked = || match loads_in {
        // What the breaker saw was the worker before; the next one begins with a probe, which is not for whoever would wait longest.
        Some(ready_in) if local.phase != Phase::Closed => Some(SkipReason::Reloading { ready_in }),
        Some(_) | None => blocked(local.phase, now),
    };
    readiness
        .or_else(|| backend.node.draining.then_some(SkipReason::Draining))
        .or_else(|| blocked().filter(|reason| !(ask.past_waits && reason.is_passing())))
        .or_else(|| full(tier, local.in_flight).filter(|_full| !ask.past_queues))
}

fn blocked(phase: Phase, now: Instant) -> Option<SkipReason> {
    match phase {
        Phase::Closed | Phase::ProbeDue => None,
        Phase::Open { until } => Some(SkipReason::BreakerOpen {
            reopens_in: until.saturating_duration_since(now),
        }),
        Phase::Probing { lost_at } => Some(SkipReason::Probing {
            lost_in: lost_at.saturating_duration_since(now),
        }),
    }
}
