//! One answer in the making: from logits to a token, from tokens to text, from text to events.
//!
//! It knows nothing of slots, queues or other answers.

use std::time::Duration;
use std::time::Instant;

use scheduler::JobTimes;
use scheduler::TextAssembler;
use scheduler::Token;

use super::media::PromptMedia;
use super::stopwatch::Stopwatch;
use crate::engine::Engine;
use crate::protocol::PIECES_WINDOW;
use crate::sampling::Sampler;
use crate::sampling::logprobs;
use crate::sampling::logprobs::Scored;
use crate::sampling::logprobs::Scores;
use crate::spec::Event;
use crate::spec::Finish;
use crate::spec::GenerateSpec;
use crate::spec::LogprobEntry;
use crate::spec::Refusal;
use crate::spec::Timings;
use crate::spec::TokenLogprob;
use crate::spec::Usage;

/// Processor time that one step of a grammar may cost: some can be followed in twice as many ways after every token. A whole vocabulary
/// takes 13 ms at worst. Time on the clock says nothing: others may have the processors, and a machine may stand still.
const GRAMMAR_STEP_MAX: Duration = Duration::from_secs(1);

/// What an answer keeps while its job waits and works.
pub(super) struct Answer {
    sampler: Sampler,
    text: TextAssembler,
    tokens_max: u32,
    prompt_tokens: u32,
    cached_tokens: u32,
    made: u32,
    /// Made since the last piece.
    unsent: Vec<i32>,
    /// The next token, if it was chosen already.
    ahead: Option<Chosen>,
    logprobs: Option<u8>,
    /// With the place in the text where each token begins.
    unsent_logprobs: Vec<(usize, TokenLogprob)>,
    render_special: bool,
    /// The pictures and sounds of the prompt.
    pub(super) media: PromptMedia,
    /// Whether the cache is kept for the next prompt.
    pub(super) cache_prompt: bool,
    /// Pieces that the reader still has room for.
    credit: u32,
    times: Option<JobTimes>,
    /// Text of resumed tokens.
    told: Vec<String>,
}

/// A token and what is told about it.
struct Chosen {
    token: Option<Token>,
    scores: Option<Scores>,
    /// Processor time.
    took: Duration,
}

/// What choosing the next token of an answer needs, and nothing that must stay in its thread.
pub(super) struct Choice<'answer> {
    sampler: &'answer mut Sampler,
    logprobs: Option<u8>,
    chosen: &'answer mut Option<Chosen>,
}

impl Choice<'_> {
    /// Chooses the next token.
    pub(super) fn make(self, logits: &[f32]) {
        *self.chosen = Some(choose(self.sampler, self.logprobs, logits));
    }
}

fn choose(sampler: &mut Sampler, logprobs: Option<u8>, logits: &[f32]) -> Chosen {
    let watch = Stopwatch::begin();
    let token = sampler.choose(logits);
    let scores = logprobs
        .zip(token)
        .map(|(count, token)| logprobs::score(logits, token, count));
    Chosen {
        token,
        scores,
        took: watch.took(),
    }
}

/// How an answer goes on.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Next {
    /// With this token.
    Token(Token),
    /// Not at all: it is complete.
    End(Finish),
    /// Not at all: something is wrong.
    Refuse(Refusal),
}

impl Answer {
    /// Prepares the answer to a prompt of `prompt_tokens` tokens.
    pub(super) fn new(
        spec: &GenerateSpec,
        sampler: Sampler,
        prompt_tokens: usize,
        tokens_max: u32,
    ) -> Self {
        Self {
            sampler,
            text: TextAssembler::new(spec.stop.iter().cloned()),
            tokens_max,
            prompt_tokens: u32::try_from(prompt_tokens).unwrap_or(u32::MAX),
            cached_tokens: 0,
            made: 0,
            unsent: Vec::new(),
            ahead: None,
            logprobs: spec.logprobs,
            unsent_logprobs: Vec::new(),
            render_special: spec.render_special,
            media: PromptMedia::default(),
            cache_prompt: spec.cache_prompt,
            credit: PIECES_WINDOW,
            times: None,
            told: Vec::new(),
        }
    }

    /// The answer has a slot, whose cache held the first `cached` tokens of the prompt.
    pub(super) fn start(&mut self, cached: usize, times: JobTimes) -> Event {
        let cached = u32::try_from(cached).unwrap_or(u32::MAX);
        self.cached_tokens = cached.min(self.prompt_tokens);
        self.times = Some(times);
        Event::Started {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            queue_ms: u64::try_from(times.queued().as_millis()).unwrap_or(u64::MAX),
            told: std::mem::take(&mut self.told),
        }
    }

    /// Goes over the beginning of this answer, which was made elsewhere; says which tokens are to be read after the prompt.
    pub(super) fn replay(
        &mut self,
        tokens: &[i32],
        engine: &dyn Engine,
    ) -> Result<Vec<Token>, String> {
        if tokens.is_empty() {
            return Ok(Vec::new());
        }
        let complete = || "the answer is complete already".to_owned();
        if u32::try_from(tokens.len()).map_or(true, |made| made >= self.tokens_max) {
            return Err(complete());
        }
        if !self.sampler.can_resume() {
            return Err(
                "mirostat goes by how likely every earlier token was, which is not known any more"
                    .to_owned(),
            );
        }
        let n_vocab = engine.card().n_vocab;
        let mut begun = Vec::with_capacity(tokens.len());
        for id in tokens {
            let token = Token(*id);
            if u32::try_from(*id).map_or(true, |id| id >= n_vocab) {
                return Err(format!("token {id} is not below {n_vocab}"));
            }
            if engine.end_tokens().contains(&token) {
                return Err(complete());
            }
            let mut bytes = Vec::new();
            engine.append_piece(token, self.render_special, &mut bytes);
            self.sampler.accept(token, &bytes)?;
            // Told already, but for what is held back.
            self.told.push(self.text.push(&bytes));
            if self.text.is_stopped() {
                return Err(complete());
            }
            self.made += 1;
            begun.push(token);
        }
        Ok(begun)
    }

    /// Lets the next token be chosen before [`Answer::advance`], in another thread.
    pub(super) fn choice(&mut self) -> Choice<'_> {
        Choice {
            sampler: &mut self.sampler,
            logprobs: self.logprobs,
            chosen: &mut self.ahead,
        }
    }

    /// Chooses the next token. The piece, if there is one, is to be sent before the end.
    pub(super) fn advance(
        &mut self,
        logits: &[f32],
        engine: &dyn Engine,
        now: Instant,
    ) -> (Option<Event>, Next) {
        let chosen = self.ahead.take();
        let chosen = chosen.unwrap_or_else(|| choose(&mut self.sampler, self.logprobs, logits));
        let Some(token) = chosen.token else {
            if self.sampler.may_run_dry() {
                return self.end(Finish::Stop);
            }
            return fault("the model computed no usable logits");
        };
        self.made += 1;
        self.unsent.push(token.0);
        if let Some(times) = &mut self.times {
            times.token(now);
        }
        if engine.end_tokens().contains(&token) {
            return self.end(Finish::Stop);
        }
        let mut bytes = Vec::new();
        engine.append_piece(token, self.render_special, &mut bytes);
        let watch = Stopwatch::begin();
        if let Err(reason) = self.sampler.accept(token, &bytes) {
            return fault(reason);
        }
        let is_exploding = chosen.took + watch.took() > GRAMMAR_STEP_MAX;
        if self.sampler.is_constrained() && is_exploding {
            let reason = "following it takes too long".to_owned();
            return (None, Next::Refuse(Refusal::BadGrammar { reason }));
        }
        let place = self.text.position();
        if let Some(scores) = chosen.scores {
            self.unsent_logprobs.push((place, describe(scores, engine)));
        }
        let text = self.text.push(&bytes);
        if self.text.is_stopped() {
            return (
                self.piece(text, Some(Finish::StopString)),
                Next::End(Finish::StopString),
            );
        }
        if self.made >= self.tokens_max {
            let rest = self.text.finish();
            return (
                self.piece(text + &rest, Some(Finish::Length)),
                Next::End(Finish::Length),
            );
        }
        (self.piece(text, None), Next::Token(token))
    }

    /// Ends the answer with what was held back.
    pub(super) fn end(&mut self, finish: Finish) -> (Option<Event>, Next) {
        let rest = self.text.finish();
        (self.piece(rest, Some(finish)), Next::End(finish))
    }

    /// The last event of a complete answer.
    pub(super) fn done(&self, finish: Finish, now: Instant) -> Event {
        let millis = |duration: Duration| duration.as_secs_f64() * 1_000.0;
        let timings = self.times.map(|times| Timings {
            queue_ms: millis(times.queued()),
            prompt_ms: millis(times.prompt(now)),
            predicted_ms: millis(times.predicted()),
        });
        Event::Done {
            finish,
            usage: self.usage(),
            timings: timings.unwrap_or_default(),
        }
    }

    /// What it used so far.
    pub(super) fn usage(&self) -> Usage {
        let (image_tokens, audio_tokens) = self.media.tokens();
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.made,
            cached_tokens: self.cached_tokens,
            image_tokens,
            audio_tokens,
        }
    }

    /// Tokens in it, resumed ones and the end token included.
    pub(super) fn made(&self) -> u32 {
        self.made
    }

    /// Whether any token was made.
    pub(super) fn has_begun(&self) -> bool {
        self.made > 0
    }

    /// The reader took some pieces.
    pub(super) fn add_credit(&mut self, pieces: u32) {
        self.credit = self.credit.saturating_add(pieces).min(PIECES_WINDOW);
    }

    /// Whether the reader has no room, so that no more tokens should be made.
    pub(super) fn must_pause(&self) -> bool {
        self.credit == 0
    }

    fn piece(&mut self, text: String, finish: Option<Finish>) -> Option<Event> {
        let sent = self.text.emitted();
        let due = match finish {
            // A token that begins in what was held back goes with its text.
            None | Some(Finish::StopString) => self
                .unsent_logprobs
                .iter()
                .take_while(|(place, _)| *place < sent)
                .count(),
            Some(Finish::Stop | Finish::Length | Finish::Deadline) => self.unsent_logprobs.len(),
        };
        let logprobs: Vec<TokenLogprob> = self
            .unsent_logprobs
            .drain(..due)
            .map(|(_place, logprob)| logprob)
            .collect();
        if text.is_empty() && logprobs.is_empty() {
            return None;
        }
        self.credit = self.credit.saturating_sub(1);
        let mut ids = match finish {
            // A token whose log-probability is held back is told later.
            None if self.logprobs.is_some() => self.unsent.drain(..due).collect(),
            Some(_) | None => std::mem::take(&mut self.unsent),
        };
        let tokens = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        if finish.is_some() {
            // With these the answer is complete: nobody could go on from here.
            ids.clear();
        }
        Some(Event::Piece {
            text,
            tokens,
            ids,
            logprobs,
        })
    }
}

fn fault(reason: impl Into<String>) -> (Option<Event>, Next) {
    let reason = reason.into();
    (None, Next::Refuse(Refusal::EngineFault { reason }))
}

fn describe((chosen, best): Scores, engine: &dyn Engine) -> TokenLogprob {
    let entry = |scored: Scored| {
        let mut bytes = Vec::new();
        engine.append_piece(scored.token, true, &mut bytes);
        LogprobEntry {
            token: scored.token.0,
            bytes,
            logprob: scored.logprob,
        }
    };
    TokenLogprob {
        chosen: entry(chosen),
        top: best.into_iter().map(entry).collect(),
    }
}
