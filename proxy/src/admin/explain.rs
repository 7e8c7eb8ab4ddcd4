//! The route that a request would take now, told without sending one. Reads the fleet; begins no attempt and sees no prompt: what the
//! classifier made of it comes in as a tier.

use std::time::{Duration, Instant};

use config::ids::UserId;
use config::settings::proxy::{Plan, Routing};
use config::tier::Tier;
use config::wire::wishes::Priority;
use policy::classify::{Category, Verdict};
use policy::identity::Principal;
use policy::refusal::Refusal;
use policy::route::{Ask, Needs, Predicted, Prompt, Route, SkipReason, Step, Target};
use policy::router::Wish;
use serde::{Deserialize, Serialize};

use crate::nodes::fleet::Fleet;

/// What the request is after.
#[derive(Clone, Debug, Default)]
pub struct RouteAsk {
    /// A tier by name.
    pub tier: Option<Tier>,
    /// A model's name, as in a request; `auto` or nothing leaves it to the classifier.
    pub model: Option<String>,
    /// What the classifier says.
    pub class: Option<Tier>,
    /// It must stay at home.
    pub local_only: bool,
    /// Tokens of its prompt, estimated; nobody holds anything of it.
    pub prompt_tokens: u32,
}

/// The route.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct RouteView {
    /// The tier that is wanted.
    pub wanted: Option<Tier>,
    /// Why.
    pub reason: String,
    /// Where it would be tried, in order.
    pub steps: Vec<StepView>,
    /// Who was left out.
    pub skipped: Vec<SkipView>,
}

/// One place that would be tried.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct StepView {
    /// The node's name.
    pub node: String,
    /// Its tier.
    pub tier: Tier,
    /// The model there.
    pub model: String,
    /// How long the request would wait for a slot and until it is awake, milliseconds.
    pub wait_ms: u64,
    /// It sleeps or is being loaded.
    #[serde(default)]
    pub cold: bool,
    /// The predicted time to the first token.
    #[serde(default)]
    pub predicted: PredictedView,
}

/// A predicted time to the first token, and its parts, milliseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct PredictedView {
    /// All of it.
    pub total_ms: u64,
    /// Waiting for a slot.
    pub slot_ms: u64,
    /// Reading what of the prompt is not cached.
    pub prefill_ms: u64,
    /// To the node and back.
    pub round_trip_ms: u64,
    /// Until it is awake, or its model is loaded.
    pub waking_ms: u64,
    /// Tokens of the prompt, estimated.
    pub prompt_tokens: u32,
    /// Of these, those that are probably cached there.
    pub cached_tokens: u32,
}

impl From<Predicted> for PredictedView {
    fn from(predicted: Predicted) -> Self {
        Self {
            total_ms: millis(predicted.total()),
            slot_ms: millis(predicted.slot),
            prefill_ms: millis(predicted.prefill),
            round_trip_ms: millis(predicted.round_trip),
            waking_ms: millis(predicted.waking),
            prompt_tokens: predicted.prompt_tokens,
            cached_tokens: predicted.cached_tokens,
        }
    }
}

/// One place that was left out.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SkipView {
    /// The node's id.
    pub node: String,
    /// Its tier.
    pub tier: Tier,
    /// Why: `breaker_open`, `queue_full`, ...
    pub reason: String,
    /// When that changes, milliseconds, as far as anybody knows.
    pub for_ms: Option<u64>,
}

impl From<&Step> for StepView {
    fn from(step: &Step) -> Self {
        Self {
            node: step.node_name.clone(),
            tier: step.backend.tier,
            model: step.model.clone(),
            wait_ms: millis(step.wait),
            cold: step.cold,
            predicted: step.predicted.into(),
        }
    }
}

impl From<&Route> for RouteView {
    fn from(route: &Route) -> Self {
        let skipped = route.skipped.iter().map(|(backend, reason)| SkipView {
            node: backend.node.to_string(),
            tier: backend.tier,
            reason: reason.as_str().to_owned(),
            for_ms: lasts(*reason).map(millis),
        });
        Self {
            wanted: route.wanted,
            reason: route.reason.clone(),
            steps: route.steps.iter().map(StepView::from).collect(),
            skipped: skipped.collect(),
        }
    }
}

const fn lasts(reason: SkipReason) -> Option<Duration> {
    match reason {
        SkipReason::BreakerOpen { reopens_in } => Some(reopens_in),
        SkipReason::Probing { lost_in } => Some(lost_in),
        SkipReason::QueueFull { wait } => Some(wait),
        SkipReason::Reloading { ready_in } => Some(ready_in),
        SkipReason::NotAllowed
        | SkipReason::Silent
        | SkipReason::Draining
        | SkipReason::Loading
        | SkipReason::Down
        | SkipReason::NoModality
        | SkipReason::NotLocal => None,
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The route of somebody who may use everything.
///
/// # Errors
/// The model is unknown.
pub fn route(fleet: &Fleet, routing: &Routing, asked: &RouteAsk) -> Result<RouteView, Refusal> {
    let principal = Principal::person(UserId::new("operator"), Plan::default());
    let wish = fleet.wish((asked.model.as_deref(), asked.tier), &principal)?;
    let target = match wish {
        Wish::Tier(tier) => Target::Tier(tier),
        Wish::Model(model) => Target::Model(model),
        Wish::Auto => Target::Auto(Verdict {
            tier: asked.class.unwrap_or(Tier::Primary),
            category: Category::SimpleQuestion,
            score: 0.0,
            reasons: Vec::new(),
        }),
    };
    let ask = Ask {
        target: &target,
        principal: &principal,
        needs: Needs::default(),
        fallback: routing.fallback,
        past_queues: false,
        past_waits: false,
        local_only: asked.local_only,
        patience: routing.wake.of(Priority::default()),
        prompt: Prompt {
            tokens: asked.prompt_tokens,
            ..Prompt::default()
        },
    };
    Ok(RouteView::from(&fleet.plan(&ask, Instant::now())))
}
