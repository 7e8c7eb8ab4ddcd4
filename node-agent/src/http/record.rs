//! One request's line in the log and its place in the metrics, written when it ends, however it ends. Holds no text of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use config::tier::Tier;
use config::wire::chat::Usage;
use engine::{Aborted, Event};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};

use super::call::Call;
use super::ended::Ended;
use crate::metrics::Metrics;
use crate::reply::Refused;

/// How long the engine may take to say what an answer used that was cut off; it says so after its next step.
const SETTLED_MAX: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Record {
    /// Until it is written.
    line: Option<Box<Line>>,
    unsettled: Arc<Unsettled>,
}

/// Answers that were cut off before they could say what they used.
#[derive(Debug, Default)]
pub(super) struct Unsettled(Mutex<Vec<(usize, Cut)>>);

/// The end of an answer that nobody was told.
#[derive(Debug)]
pub(super) enum Cut {
    /// The engine will say what it used.
    Aborted(Aborted),
    /// What it used.
    Used(engine::Usage),
}

#[derive(Debug)]
struct Line {
    metrics: Arc<Metrics>,
    ended: Arc<Ended>,
    /// The proxy's name for the answer.
    completion_id: Option<String>,
    tier: Tier,
    surface: &'static str,
    request_id: String,
    began: Instant,
    took: Duration,
    first_token_ms: Option<u128>,
    prompt_tokens: u64,
    cached_tokens: u64,
    /// Answers to one prompt, which counts once for all of them.
    choices: usize,
    /// Of each choice: as they come, piece by piece, and in the end as the engine counts, because the end token has no piece.
    completion_tokens: Vec<u64>,
    /// Another server answers, and counts.
    counted_elsewhere: bool,
    /// `abandoned` until something else is known: the other side left.
    outcome: String,
}

impl Unsettled {
    /// Notes an answer that was cut off.
    pub(super) fn note(&self, choice: usize, cut: Cut) {
        self.lock().push((choice, cut));
    }

    fn take(&self) -> Vec<(usize, Cut)> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(usize, Cut)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    pub(super) fn begin(
        call: &Call,
        surface: &'static str,
        (metrics, ended): (&Arc<Metrics>, &Arc<Ended>),
    ) -> Self {
        let line = Line {
            metrics: metrics.clone(),
            ended: ended.clone(),
            completion_id: call.given_id().map(ToOwned::to_owned),
            tier: call.tier,
            surface,
            request_id: call.request_id.clone(),
            began: call.began,
            took: Duration::ZERO,
            first_token_ms: None,
            prompt_tokens: 0,
            cached_tokens: 0,
            choices: 1,
            completion_tokens: Vec::new(),
            counted_elsewhere: false,
            outcome: "abandoned".to_owned(),
        };
        Self {
            line: Some(Box::new(line)),
            unsettled: Arc::default(),
        }
    }

    /// Where answers that are cut off are noted.
    pub(super) fn unsettled(&self) -> Arc<Unsettled> {
        self.unsettled.clone()
    }

    /// So many answers are given to each prompt.
    pub(super) fn choices(&mut self, choices: usize) {
        self.change(|line| line.choices = choices.max(1));
    }

    pub(super) fn see(&mut self, choice: usize, event: &Event) {
        self.change(|line| line.see(choice, event));
    }

    /// Another server answers: what it counts is not known here.
    pub(super) fn counted_elsewhere(&mut self) {
        self.change(|line| line.counted_elsewhere = true);
    }

    /// Ends with a refusal, which it hands back.
    pub(super) fn refuse(mut self, refused: Refused) -> Refused {
        self.change(|line| line.outcome = refused.label());
        refused
    }

    /// Counts tokens that were read for something else than an answer.
    pub(super) fn read(&mut self, tokens: u64) {
        self.change(|line| line.prompt_tokens = tokens);
    }

    pub(super) fn complete(&mut self) {
        self.change(|line| "ok".clone_into(&mut line.outcome));
    }

    fn change(&mut self, change: impl FnOnce(&mut Line)) {
        if let Some(line) = &mut self.line {
            change(line);
        }
    }
}

impl Line {
    fn see(&mut self, choice: usize, event: &Event) {
        match event {
            Event::Started {
                prompt_tokens,
                cached_tokens,
                ..
            } => {
                if choice.is_multiple_of(self.choices) {
                    self.prompt_tokens += u64::from(*prompt_tokens);
                    self.cached_tokens += u64::from(*cached_tokens);
                }
            }
            Event::Piece { tokens, .. } => {
                *self.of(choice) += u64::from(*tokens);
                if self.first_token_ms.is_none() {
                    let took = self.began.elapsed();
                    self.first_token_ms = Some(took.as_millis());
                    self.metrics.first_token(self.tier.as_str(), took);
                }
            }
            Event::Progress(_) => {}
            Event::Refused(refusal) => {
                refusal.as_str().clone_into(&mut self.outcome);
                log_fault(self.tier, &self.request_id, refusal);
            }
            Event::Done { usage, .. } => self.used(choice, *usage),
        }
    }

    fn used(&mut self, choice: usize, usage: engine::Usage) {
        *self.of(choice) = u64::from(usage.completion_tokens);
    }

    fn of(&mut self, choice: usize) -> &mut u64 {
        if self.completion_tokens.len() <= choice {
            self.completion_tokens.resize(choice + 1, 0);
        }
        &mut self.completion_tokens[choice]
    }

    /// Waits for the engine's count of what was cut off.
    async fn settle(&mut self, cuts: Vec<(usize, Cut)>) {
        let by = Instant::now() + SETTLED_MAX;
        for (choice, cut) in cuts {
            let used = match cut {
                Cut::Used(usage) => Some(usage),
                Cut::Aborted(aborted) => timeout_at(by, aborted.usage()).await.ok().flatten(),
            };
            if let Some(usage) = used {
                self.used(choice, usage);
            }
        }
    }

    fn write(&self) {
        let completion_tokens: u64 = self.completion_tokens.iter().sum();
        if let (Some(id), false) = (&self.completion_id, self.counted_elsewhere) {
            let usage = Usage::new(self.prompt_tokens, completion_tokens, self.cached_tokens);
            self.ended.note(id, usage);
        }
        self.metrics
            .request(self.tier.as_str(), &self.outcome, self.took);
        tracing::info!(
            tier = %self.tier,
            surface = self.surface,
            request_id = self.request_id,
            outcome = self.outcome,
            ms = self.took.as_millis(),
            ttft_ms = self.first_token_ms,
            prompt_tokens = self.prompt_tokens,
            cached_tokens = self.cached_tokens,
            completion_tokens,
            "request"
        );
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Some(mut line) = self.line.take() else {
            return;
        };
        line.took = line.began.elapsed();
        let cuts = self.unsettled.take();
        match Handle::try_current() {
            Ok(runtime) if !cuts.is_empty() => {
                // Ends within its deadline, and the agent's own end waits for no log line.
                runtime.spawn(async move {
                    line.settle(cuts).await;
                    line.write();
                });
            }
            Ok(_) | Err(_) => line.write(),
        }
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
