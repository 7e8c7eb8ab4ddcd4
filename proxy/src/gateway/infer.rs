//! A question for a model, the way of every request that costs something: read, choose, reserve, carry, settle. The figures of a
//! reservation are [`spend`]'s, the end of it is [`ending`]'s.

mod ending;
mod opinion;
mod spend;

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use config::tier::Tier;
use config::wire::wishes::{ContinueWith, Priority, Wishes};
use http::HeaderValue;
use policy::identity::Principal;
use policy::limit::Name;
use policy::refusal::Refusal;
use policy::route::{Ask, Route, Step, Target};
use policy::waiting::Guest;
use serde_json::Value;
use tokio::time::Instant;

use super::admission::{Admitted, Asking};
use super::body::Inference;
use super::dispatch::{Form, Job};
use super::exchange::{Exchange, Stop};
use super::operation::Surface;
use super::prefix::Conversation;
use super::relay::{Pass, Queueing, Relay};
use super::{Call, Gateway};
use spend::Demand;

/// One request, from its body to its settlement.
pub(super) struct Question<'a> {
    pub(super) call: &'a Call,
    pub(super) request: &'a Inference,
    /// The end user, where the body names one.
    pub(super) principal: &'a Principal,
    pub(super) demand: Demand,
    /// The `id` that the answer will carry, whoever gives it.
    pub(super) completion_id: String,
    /// For a request without one.
    pub(super) seed: u32,
    /// Another model may go on with its answer, from the text.
    pub(super) continues: ContinueWith,
    /// It stays at home: because it says so, or whoever asks must.
    pub(super) local_only: bool,
    /// Its class, as high as whoever asks may have.
    pub(super) priority: Priority,
    /// By what its conversation is known again.
    pub(super) conversation: Conversation,
}

/// What headers and body wish for; headers win.
fn wishes(call: &Call, request: &Inference) -> Result<Wishes, Refusal> {
    let value = |name: &'static str| call.headers.get(name).map(HeaderValue::as_bytes);
    Ok(Wishes::of_headers(value)?.or(request.wishes()))
}

impl Gateway {
    /// Answers a question for a model.
    pub(super) async fn infer(
        &self,
        call: &Call,
        principal: &Principal,
        surface: Surface,
        exchange: &mut Exchange<'_>,
    ) -> Result<(), Stop> {
        let rooms = &self.rooms;
        // Before the body: whoever may have few requests open may not fill the memory with many.
        let _open = rooms.admission.enter(principal, exchange)?;
        let request = rooms
            .reader
            .inference(exchange, &call.headers, surface)
            .await?;
        if request.unknown() > 0 {
            rooms.metrics.unknown_fields();
        }
        let principal = &self.acting(call, principal, &request, exchange).await?;
        let wish = rooms.dispatcher.fleet.wish(request.asked(), principal)?;
        let default = rooms.admission.max_tokens_default();
        let completion_id = request.new_answer_id();
        let subject = principal.subject();
        let prefixes = &self.figures.prefixes;
        let wishes = wishes(call, &request)?;
        let question = Question {
            conversation: prefixes.of(&request, &subject, &completion_id),
            call,
            request: &request,
            principal,
            demand: Demand::of(&request, exchange.record.bytes_in, default),
            completion_id,
            seed: rand::random(),
            continues: wishes.continue_with.unwrap_or_default(),
            local_only: wishes.local_only == Some(true) || rooms.admission.is_local_only(principal),
            priority: rooms
                .admission
                .priority(principal, wishes.priority.unwrap_or_default()),
        };
        let target = self.target(&question, wish).await;
        let mut route = self.route(&question, &target, Pass::default());
        // Where all are full or on their way, what the request may cost is reserved before it waits.
        let is_full = route.steps.is_empty() && route.is_worth_waiting();
        let past_all = Pass {
            past_queues: true,
            past_waits: true,
            ..Pass::default()
        };
        let mut planned = if is_full {
            self.route(&question, &target, past_all)
        } else {
            route.clone()
        };
        let admitted = self.admit(&question, &mut planned, exchange).await?;
        if !is_full {
            route.clone_from(&planned);
        }
        let routes = (&route, &planned, &target);
        let carried = self.carry((&question, routes), &admitted, exchange);
        let answered = Box::pin(carried).await;
        self.end(&question, admitted, (&answered, exchange));
        answered
    }

    /// The end user, where the body names one and the key may.
    async fn acting(
        &self,
        call: &Call,
        principal: &Principal,
        request: &Inference,
        exchange: &mut Exchange<'_>,
    ) -> Result<Principal, Refusal> {
        let Some(end_user) = request.end_user() else {
            return Ok(principal.clone());
        };
        let now_unix = i64::try_from(call.unix_ms / 1_000).unwrap_or(i64::MAX);
        let authenticator = &self.rooms.authenticator;
        let acting = authenticator.acting_as(principal.clone(), end_user, now_unix);
        let principal = acting.await?;
        exchange.record.user = Some(principal.subject());
        Ok(principal)
    }

    fn route(&self, question: &Question<'_>, target: &Target, pass: Pass) -> Route {
        let dispatcher = &self.rooms.dispatcher;
        let mut needs = question.request.needs();
        needs.native |= pass.native;
        let ask = Ask {
            target,
            principal: question.principal,
            needs,
            fallback: dispatcher.rules.fallback && question.request.may_change_model(),
            local_only: question.local_only,
            patience: dispatcher.rules.wake.of(question.priority),
            past_queues: pass.past_queues,
            past_waits: pass.past_waits,
            prompt: question.conversation.prompt(),
        };
        dispatcher.fleet.plan(&ask, Instant::now().into_std())
    }

    /// Who can go on with an answer of this step: the same file in the same tier, the step itself last. Queues count for nothing: whoever
    /// is in the middle of an answer goes before all that has not begun.
    fn twins(&self, question: &Question<'_>, step: &Step) -> Route {
        let target = Target::Twin {
            tier: step.backend.tier,
            file_sha256: step.file_sha256.clone(),
        };
        let past_queues = Pass {
            past_queues: true,
            ..Pass::default()
        };
        let mut route = self.route(question, &target, past_queues);
        // Nobody who waits in the middle of an answer waits for a machine to wake up.
        route.steps.retain(|other| !other.cold);
        route
            .steps
            .sort_by_key(|other| other.backend == step.backend);
        route
    }

    /// Reserves what the question may spend. A tier whose own budget is used up is left out of the route; when it is the one that
    /// was wanted, the plan of the person says whether a smaller one answers instead.
    async fn admit(
        &self,
        question: &Question<'_>,
        route: &mut Route,
        exchange: &mut Exchange<'_>,
    ) -> Result<Admitted, Refusal> {
        loop {
            let refusal = match self.reserve(question, route, exchange).await {
                Ok(admitted) => return Ok(admitted),
                Err(refusal) => refusal,
            };
            let used_up = refusal.limit_name().filter(|name| name.tier.is_some());
            let detour = used_up.and_then(|name| self.without(question, route, name));
            let Some(detour) = detour else {
                self.rooms.admission.note(&refusal);
                return Err(refusal);
            };
            *route = detour;
        }
    }

    /// The route without the tier whose budget is used up; `None`: there is no other way.
    fn without(&self, question: &Question<'_>, route: &Route, used_up: Name) -> Option<Route> {
        let first = route.steps.first()?.backend.tier;
        let tier = used_up.tier?;
        let mut detour = if tier == first {
            let smaller = self.smaller(question, tier, used_up)?;
            let route_there = self.route(question, &Target::Tier(smaller), Pass::default());
            Route {
                wanted: route.wanted,
                wanted_model: route.wanted_model.clone(),
                reason: format!("{}; {used_up} is used up", route.reason),
                ..route_there
            }
        } else {
            route.clone()
        };
        detour.steps.retain(|step| step.backend.tier != tier);
        (!detour.steps.is_empty()).then_some(detour)
    }

    fn smaller(&self, question: &Question<'_>, tier: Tier, used_up: Name) -> Option<Tier> {
        if !question.request.may_change_model() {
            return None;
        }
        let admission = &self.rooms.admission;
        admission.downgrade(question.principal, tier, used_up)
    }

    /// One try. What the prompt counts is estimated from above, and that is believed as long as it does not matter: when the limits
    /// have no room for it, the model's own tokenizer is asked.
    async fn reserve(
        &self,
        question: &Question<'_>,
        route: &Route,
        exchange: &mut Exchange<'_>,
    ) -> Result<Admitted, Refusal> {
        let rooms = &self.rooms;
        let asking = Asking {
            principal: question.principal,
            ip: question.call.ip,
            kind: question.request.kind(),
            now_unix_ms: question.call.unix_ms,
        };
        let estimated = question.demand.whole(route, &rooms.prices);
        match rooms.admission.reserve(asking, estimated, exchange).await {
            Err(refusal) if question.demand.is_elastic(&refusal) => {}
            decided => return decided,
        }
        let counted = match route.steps.first() {
            Some(step) if question.request.has_tokenizer() => {
                let body = question.body()?;
                let path = question.request.node_path();
                rooms.dispatcher.count(step, path, body).await
            }
            Some(_) | None => None,
        };
        let exact = question.demand.counted(estimated, counted);
        rooms.admission.reserve(asking, exact, exchange).await
    }

    async fn carry(
        &self,
        (question, (route, planned, target)): (&Question<'_>, (&Route, &Route, &Target)),
        admitted: &Admitted,
        exchange: &mut Exchange<'_>,
    ) -> Result<(), Stop> {
        let request = question.request;
        let priority = question.priority;
        let job = Job {
            request_id: question.call.request_id.clone(),
            path: request.node_path(),
            answer_key: request.answer_key(),
            completion_id: question.completion_id.clone(),
            principal: question.principal.subject(),
            body: question.body()?.into(),
            max_tokens: question.demand.each(admitted.granted()),
            created_unix: question.call.unix_ms / 1_000,
            resumable: request.is_resumable(),
            form: request.form(),
            chain: Arc::clone(&question.conversation.chain),
            priority,
            deadline: exchange.received_at + self.figures.request_timeout,
        };
        let twins = |step: &Step| self.twins(question, step);
        // What was reserved covers these tiers and no others.
        let tiers: Vec<Tier> = planned.steps.iter().map(|step| step.backend.tier).collect();
        let again = |pass: Pass| {
            let mut route = self.route(question, target, pass);
            route
                .steps
                .retain(|step| tiers.contains(&step.backend.tier));
            // Nor does it wait for others.
            route
                .skipped
                .retain(|(backend, reason)| !reason.is_passing() || tiers.contains(&backend.tier));
            route
        };
        let guest = Guest {
            subject: question.principal.subject(),
            priority,
            cost: question.demand.tokens(),
            want: question.want(target),
        };
        let relay = Relay {
            dispatcher: &self.rooms.dispatcher,
            job: &job,
            route,
            twins: &twins,
            prompt_bytes: request.prompt_bytes(),
            wants_usage: request.wants_usage(),
            cut_by: admitted.cut_by(),
            queueing: Queueing {
                again: &again,
                guest,
            },
            by_text: question.continues == ContinueWith::Text && request.is_plain_text(),
        };
        if request.stream() {
            Box::pin(relay.stream(exchange)).await
        } else {
            Box::pin(relay.whole(exchange)).await
        }
    }
}

impl Question<'_> {
    /// The same for all that can go to the same places.
    fn want(&self, target: &Target) -> u64 {
        let principal = self.principal;
        let mut hash = DefaultHasher::new();
        format!("{target:?} {:?}", self.request.needs()).hash(&mut hash);
        (&principal.tiers, &principal.models).hash(&mut hash);
        self.local_only.hash(&mut hash);
        hash.finish()
    }

    /// What a node is sent.
    fn body(&self) -> Result<Vec<u8>, Refusal> {
        let mut body = self.request.node_body();
        // With a seed of its own another node can go on where this one stops.
        if self.request.is_resumable() && body.get("seed").is_none_or(Value::is_null) {
            body["seed"] = self.seed.into();
        }
        if self.request.form() == Form::Gathered {
            body["stream"] = true.into();
            body["stream_options"] = serde_json::json!({"include_usage": true});
        }
        serde_json::to_vec(&body).map_err(|_| Refusal::Internal)
    }
}
