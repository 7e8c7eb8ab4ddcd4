//! A question for a model, the way of every request that costs something: read, choose, reserve, carry, settle. The figures of a
//! reservation are [`spend`]'s, the end of it is [`ending`]'s.

mod ending;
mod spend;

use config::tier::Tier;
use policy::identity::Principal;
use policy::limit::Name;
use policy::refusal::Refusal;
use policy::route::{Ask, Route, Step, Target};
use policy::router::Wish;
use serde_json::Value;
use tokio::time::Instant;

use super::admission::{Admitted, Asking};
use super::body::Inference;
use super::dispatch::Job;
use super::exchange::{Exchange, Stop};
use super::operation::Surface;
use super::relay::Relay;
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
        let question = Question {
            call,
            request: &request,
            principal,
            demand: Demand::of(&request, exchange.record.bytes_in, default),
            completion_id: request.new_answer_id(),
            seed: rand::random(),
        };
        let mut route = self.choose(&question, wish);
        let admitted = self.admit(&question, &mut route, exchange).await?;
        let answered = self.carry(&question, (&route, &admitted), exchange).await;
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

    fn choose(&self, question: &Question<'_>, wish: Wish) -> Route {
        self.route(
            question,
            &match wish {
                Wish::Tier(tier) => Target::Tier(tier),
                Wish::Model(model) => Target::Model(model),
                Wish::Auto => Target::Auto(question.request.verdict(self.figures.thresholds)),
            },
        )
    }

    fn route(&self, question: &Question<'_>, target: &Target) -> Route {
        let dispatcher = &self.rooms.dispatcher;
        let ask = Ask {
            target,
            principal: question.principal,
            needs: question.request.needs(),
            fallback: dispatcher.rules.fallback && question.request.may_change_model(),
        };
        dispatcher.fleet.plan(&ask, Instant::now().into_std())
    }

    /// Who can go on with an answer of this step: the same file in the same tier, the step itself last.
    fn twins(&self, question: &Question<'_>, step: &Step) -> Route {
        let mut route = self.route(question, &Target::Model(step.model.clone()));
        let is_twin = |other: &Step| {
            other.backend.tier == step.backend.tier
                && other.file_sha256 == step.file_sha256
                && !step.file_sha256.is_empty()
        };
        route.steps.retain(is_twin);
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
            let route_there = self.route(question, &Target::Tier(smaller));
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
        question: &Question<'_>,
        (route, admitted): (&Route, &Admitted),
        exchange: &mut Exchange<'_>,
    ) -> Result<(), Stop> {
        let request = question.request;
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
            deadline: exchange.received_at + self.figures.request_timeout,
        };
        let twins = |step: &Step| self.twins(question, step);
        let relay = Relay {
            dispatcher: &self.rooms.dispatcher,
            job: &job,
            route,
            twins: &twins,
            prompt_bytes: request.prompt_bytes(),
            wants_usage: request.wants_usage(),
            cut_by: admitted.cut_by(),
        };
        if request.stream() {
            relay.stream(exchange).await
        } else {
            relay.whole(exchange).await
        }
    }
}

impl Question<'_> {
    /// What a node is sent.
    fn body(&self) -> Result<Vec<u8>, Refusal> {
        let mut body = self.request.node_body();
        // With a seed of its own another node can go on where this one stops.
        if self.request.is_resumable() && body.get("seed").is_none_or(Value::is_null) {
            body["seed"] = self.seed.into();
        }
        serde_json::to_vec(&body).map_err(|_| Refusal::Internal)
    }
}
