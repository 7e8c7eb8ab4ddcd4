//! One request's line in the log and its place in the metrics, written when it ends, however it ends. Holds no text of it.

use std::sync::Arc;

use config::tier::Tier;
use config::wire::chat::Usage;
use engine::Event;
use tokio::time::Instant;

use super::call::Call;
use super::ended::Ended;
use crate::metrics::Metrics;
use crate::reply::Refused;

#[derive(Debug)]
pub(super) struct Record {
    metrics: Arc<Metrics>,
    ended: Arc<Ended>,
    /// The proxy's name for the answer.
    completion_id: Option<String>,
    tier: Tier,
    surface: &'static str,
    request_id: String,
    began: Instant,
    first_token_ms: Option<u128>,
    prompt_tokens: u64,
    cached_tokens: u64,
    /// Of each choice: as they come, piece by piece, and in the end as the engine counts, because the end token has no piece.
    completion_tokens: Vec<u64>,
    /// Another server answers, and counts.
    counted_elsewhere: bool,
    /// `abandoned` until something else is known: the other side left.
    outcome: String,
}

impl Record {
    pub(super) fn begin(
        call: &Call,
        surface: &'static str,
        (metrics, ended): (&Arc<Metrics>, &Arc<Ended>),
    ) -> Self {
        Self {
            metrics: metrics.clone(),
            ended: ended.clone(),
            completion_id: call.given_id().map(ToOwned::to_owned),
            tier: call.tier,
            surface,
            request_id: call.request_id.clone(),
            began: call.began,
            first_token_ms: None,
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: Vec::new(),
            counted_elsewhere: false,
            outcome: "abandoned".to_owned(),
        }
    }

    pub(super) fn see(&mut self, choice: usize, event: &Event) {
        match event {
            Event::Started {
                prompt_tokens,
                cached_tokens,
                ..
            } => {
                self.prompt_tokens += u64::from(*prompt_tokens);
                self.cached_tokens += u64::from(*cached_tokens);
            }
            Event::Piece { tokens, .. } => {
                *self.of(choice) += u64::from(*tokens);
                if self.first_token_ms.is_none() {
                    let took = self.began.elapsed();
                    self.first_token_ms = Some(took.as_millis());
                    self.metrics.first_token(self.tier.as_str(), took);
                }
            }
            Event::Refused(refusal) => {
                refusal.as_str().clone_into(&mut self.outcome);
                log_fault(self.tier, &self.request_id, refusal);
            }
            Event::Done { usage, .. } => {
                *self.of(choice) = u64::from(usage.completion_tokens);
            }
        }
    }

    fn of(&mut self, choice: usize) -> &mut u64 {
        if self.completion_tokens.len() <= choice {
            self.completion_tokens.resize(choice + 1, 0);
        }
        &mut self.completion_tokens[choice]
    }

    /// Another server answers: what it counts is not known here.
    pub(super) const fn counted_elsewhere(&mut self) {
        self.counted_elsewhere = true;
    }

    /// Ends with a refusal, which it hands back.
    pub(super) fn refuse(mut self, refused: Refused) -> Refused {
        self.outcome = refused.label();
        refused
    }

    /// Counts tokens that were read for something else than an answer.
    pub(super) const fn read(&mut self, tokens: u64) {
        self.prompt_tokens = tokens;
    }

    pub(super) fn complete(&mut self) {
        "ok".clone_into(&mut self.outcome);
    }
}

/// What the caller is not told.
fn log_fault(tier: Tier, request_id: &str, refusal: &engine::Refusal) {
    match refusal {
        engine::Refusal::EngineFault { reason } | engine::Refusal::WorkerGone { reason } => {
            tracing::warn!(%tier, request_id, %reason, kind = refusal.as_str(), "the engine failed a request");
        }
        engine::Refusal::ContextLengthExceeded { .. }
        | engine::Refusal::QueueFull { .. }
        | engine::Refusal::DeadlineExceeded
        | engine::Refusal::BadGrammar { .. }
        | engine::Refusal::Invalid { .. } => {}
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        let completion_tokens: u64 = self.completion_tokens.iter().sum();
        if let (Some(id), false) = (&self.completion_id, self.counted_elsewhere) {
            let usage = Usage::new(self.prompt_tokens, completion_tokens, self.cached_tokens);
            self.ended.note(id, usage);
        }
        self.metrics
            .request(self.tier.as_str(), &self.outcome, took);
        tracing::info!(
            tier = %self.tier,
            surface = self.surface,
            request_id = self.request_id,
            outcome = self.outcome,
            ms = took.as_millis(),
            ttft_ms = self.first_token_ms,
            prompt_tokens = self.prompt_tokens,
            cached_tokens = self.cached_tokens,
            completion_tokens,
            "request"
        );
    }
}
