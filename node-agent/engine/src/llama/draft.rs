//! A small model that guesses what the large one will say. It has a sequence for every slot of the large one.
//!
//! Its guesses cost nothing but time when they are wrong, so every failure here only means that nothing is guessed.

use std::num::NonZeroU32;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use scheduler::Token;
use scheduler::common_prefix;

use super::card::number;
use crate::engine::DraftWish;
use crate::host;
use crate::spec::LoadError;
use crate::spec::LoadSpec;
use crate::spec::ModelCard;

/// Tokens that the draft model reads in one step to catch up with a prompt.
const CATCH_UP_MAX: usize = 128;
/// A guess less likely than this ends the draft.
const LIKELY_MIN: f32 = 0.5;
/// Tokens compared one by one to know that both models have the same vocabulary.
const COMPARED_MAX: i32 = 100_000;

/// Loads the draft model that `spec` names.
pub(super) fn load(
    spec: &LoadSpec,
    backend: &LlamaBackend,
    target: &LlamaModel,
    last_words: &dyn Fn() -> String,
) -> Result<Option<LlamaModel>, LoadError> {
    let Some(path) = &spec.draft_model else {
        return Ok(None);
    };
    let fail = |reason: String| LoadError::Model {
        path: path.display().to_string(),
        reason,
    };
    if !path.is_file() {
        return Err(fail("the draft model is not a file".to_owned()));
    }
    let params = LlamaModelParams::default()
        .with_n_gpu_layers(spec.gpu_layers)
        .with_use_mmap(spec.mmap);
    let model =
        LlamaModel::load_from_file(backend, path, &params).map_err(|_null| fail(last_words()))?;
    same_vocabulary(&model, target).map_err(fail)?;
    if model.is_recurrent() || model.is_hybrid() {
        return Err(fail(
            "a recurrent model cannot take guesses back, so it cannot draft".to_owned(),
        ));
    }
    Ok(Some(model))
}

/// Guesses are token numbers, so these must mean the same to both models.
fn same_vocabulary(draft: &LlamaModel, target: &LlamaModel) -> Result<(), String> {
    let (left, right) = (draft.n_vocab(), target.n_vocab());
    if left != right {
        return Err(format!(
            "the draft model has {left} tokens and the model {right}; both need the same vocabulary"
        ));
    }
    let (draft, target) = (draft.vocab(), target.vocab());
    for id in 0..left.min(COMPARED_MAX) {
        let token = LlamaToken(id);
        if draft.text(token) != target.text(token) {
            return Err(format!(
                "token {id} is another one in the draft model; both need the same vocabulary"
            ));
        }
    }
    Ok(())
}

/// The draft model at work.
pub(super) struct Drafter<'model> {
    context: LlamaContext<'model>,
    batch: LlamaBatch<'static>,
    batch_max: usize,
    n_ctx: usize,
    window: usize,
    /// What each sequence holds.
    cached: Vec<Vec<Token>>,
}

/// One answer being guessed.
struct Guess {
    /// Which wish it is for.
    wish: usize,
    /// The token that is computed next.
    next: Token,
    /// Index in the batch.
    output: i32,
}

impl<'model> Drafter<'model> {
    pub(super) fn new(
        model: &'model LlamaModel,
        backend: &LlamaBackend,
        spec: &LoadSpec,
        target: &ModelCard,
    ) -> Result<Self, String> {
        let slots = usize::from(target.slots);
        let n_ctx = target.n_ctx.min(model.n_ctx_train().max(1));
        let batch_max = CATCH_UP_MAX.max(slots);
        let n_batch = u32::try_from(batch_max).unwrap_or(u32::MAX);
        let threads = spec
            .threads
            .unwrap_or_else(|| host::threads_for(model.size()));
        let threads = i32::from(threads.min(target.threads));
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(
                n_ctx.saturating_mul(u32::from(target.slots)),
            ))
            .with_n_seq_max(u32::from(target.slots))
            .with_n_batch(n_batch)
            .with_n_ubatch(n_batch)
            .with_n_threads(threads)
            .with_n_threads_batch(threads)
            .with_offload_kqv(spec.gpu_layers > 0)
            .with_no_perf(true);
        let context = model
            .new_context(backend, params)
            .map_err(|_null| "no context for it".to_owned())?;
        let architecture = model
            .meta_val_str("general.architecture")
            .unwrap_or_default();
        let window = number(model, &architecture, "attention.sliding_window").unwrap_or(0);
        Ok(Self {
            context,
            batch: LlamaBatch::new(batch_max, 1),
            batch_max,
            n_ctx: usize::try_from(n_ctx).unwrap_or(1),
            window: usize::try_from(window).unwrap_or(0),
            cached: vec![Vec::new(); slots],
        })
    }

    /// Fills the guesses of all wishes, together and one token at a time.
    pub(super) fn draft(&mut self, wishes: &mut [DraftWish<'_>]) {
        let mut guesses = self.catch_up(wishes);
        while !guesses.is_empty() {
            guesses.retain_mut(|guess| {
                let likely = likeliest(self.context.get_logits_ith(guess.output));
                let (Some(token), Some(wish)) = (likely, wishes.get_mut(guess.wish)) else {
                    return false;
                };
                wish.guessed.push(token);
                guess.next = token;
                wish.guessed.len() < wish.most
            });
            if !self.go_on(wishes, &mut guesses) {
                return;
            }
        }
    }

    /// Reads what the slots have that the draft model does not know yet; gives those for which it knows all.
    fn catch_up(&mut self, wishes: &[DraftWish<'_>]) -> Vec<Guess> {
        self.batch.clear();
        let mut left = self.batch_max;
        let mut guesses = Vec::new();
        let mut read: Vec<(usize, Vec<Token>)> = Vec::new();
        for (number, wish) in wishes.iter().enumerate() {
            let slot = usize::from(wish.slot.0);
            let wanted = wish.tokens.len() + wish.most;
            let Some(kept) = self
                .rewind(slot, wish.tokens)
                .filter(|_kept| wanted < self.n_ctx)
            else {
                continue;
            };
            let Some(missing) = wish.tokens.get(kept..) else {
                continue;
            };
            let now = missing.len().min(left);
            let Some(part) = missing.get(..now).filter(|part| !part.is_empty()) else {
                continue;
            };
            for (token, position) in part.iter().zip(kept..) {
                let last = position + 1 == wish.tokens.len();
                if !self.add(slot, *token, position, last) {
                    return Vec::new();
                }
            }
            left -= now;
            if now == missing.len() {
                guesses.push(Guess {
                    wish: number,
                    next: Token(0),
                    output: self.batch.n_tokens() - 1,
                });
            }
            read.push((slot, part.to_vec()));
        }
        if read.is_empty() || !self.decode() {
            return Vec::new();
        }
        for (slot, part) in read {
            if let Some(cached) = self.cached.get_mut(slot) {
                cached.extend(part);
            }
        }
        guesses
    }

    /// Cuts a sequence to what it has in common with `tokens`, but for the last one, whose logits are needed.
    fn rewind(&mut self, slot: usize, tokens: &[Token]) -> Option<usize> {
        let cached = self.cached.get_mut(slot)?;
        let mut kept = common_prefix(cached, tokens).min(tokens.len().saturating_sub(1));
        let back = cached.len() - kept;
        // A sliding window has forgotten what is further back.
        if self.window > 0 && back > 0 && cached.len() > self.window && back > CATCH_UP_MAX / 2 {
            kept = 0;
        }
        if back > 0 {
            let sequence = i32::try_from(slot).ok()?;
            let from = u32::try_from(kept).ok()?;
            if kept == 0
                || self
                    .context
                    .kv_cache_seq_rm(sequence, Some(from), None)
                    .is_err()
            {
                let _all = self.context.kv_cache_seq_rm(sequence, None, None);
                kept = 0;
            }
            cached.truncate(kept);
        }
        Some(kept)
    }

    /// Computes the guesses made last; `false` if there is nothing to go on with.
    fn go_on(&mut self, wishes: &[DraftWish<'_>], guesses: &mut [Guess]) -> bool {
        self.batch.clear();
        for guess in &mut *guesses {
            let Some(wish) = wishes.get(guess.wish) else {
                return false;
            };
            let slot = usize::from(wish.slot.0);
            let position = self.cached.get(slot).map_or(0, Vec::len);
            guess.output = self.batch.n_tokens();
            if !self.add(slot, guess.next, position, true) {
                return false;
            }
        }
        if guesses.is_empty() || !self.decode() {
            return false;
        }
        for guess in guesses {
            let slot = wishes.get(guess.wish).map(|wish| usize::from(wish.slot.0));
            if let Some(cached) = slot.and_then(|slot| self.cached.get_mut(slot)) {
                cached.push(guess.next);
            }
        }
        true
    }

    fn add(&mut self, slot: usize, token: Token, position: usize, output: bool) -> bool {
        let place = (i32::try_from(slot), i32::try_from(position));
        let (Ok(sequence), Ok(position)) = place else {
            return false;
        };
        let added = self
            .batch
            .add(LlamaToken(token.0), position, &[sequence], output);
        added.is_ok()
    }

    fn decode(&mut self) -> bool {
        let decoded = self.context.decode(&mut self.batch);
        if let Err(error) = &decoded {
            tracing::warn!(%error, "the draft model failed; it starts again");
            self.context.clear_kv_cache();
            self.cached.iter_mut().for_each(Vec::clear);
        }
        decoded.is_ok()
    }
}

/// The best token, if it is rather likely.
fn likeliest(logits: &[f32]) -> Option<Token> {
    let mut best = (0_i32, f32::NEG_INFINITY);
    for (id, logit) in (0..).zip(logits) {
        if *logit > best.1 {
            best = (id, *logit);
        }
    }
    let sum: f32 = logits.iter().map(|logit| (logit - best.1).exp()).sum();
    (1.0 / sum >= LIKELY_MIN).then_some(Token(best.0))
}
