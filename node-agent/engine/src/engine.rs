//! The seam between the decode loop and whatever computes tokens: one step, not a whole answer.
//!
//! Two rooms live behind it: [`crate::llama`] and [`crate::scripted`]. The loop must work with either and name neither.

use scheduler::BatchPlan;
use scheduler::KvState;
use scheduler::SlotId;
use scheduler::Token;

use crate::spec::Grammar;
use crate::spec::ModelCard;

/// A loaded model with one KV sequence per slot.
pub(crate) trait Engine {
    /// What the model says about itself.
    fn card(&self) -> &ModelCard;

    /// The most tokens in one plan.
    fn batch_max(&self) -> usize;

    /// Turns text into tokens.
    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<Token>;

    /// Appends a token's bytes; control tokens have none unless `special`. Unknown tokens have none either.
    fn append_piece(&self, token: Token, special: bool, into: &mut Vec<u8>);

    /// The tokens that end an answer.
    fn end_tokens(&self) -> &[Token];

    /// What the cache of a slot holds, which has `len` tokens.
    fn kv_state(&self, slot: SlotId, len: usize) -> KvState;

    /// Cuts the cache of a slot to its first `len` tokens; if that fails, the cache is empty and the answer is `false`.
    fn keep_prefix(&mut self, slot: SlotId, len: usize) -> bool;

    /// Computes a plan.
    fn decode(&mut self, plan: &BatchPlan) -> Result<(), EngineFault>;

    /// The logits of the token at `index` in the plan computed last; `None` if they were not asked for.
    fn logits(&self, index: usize) -> Option<&[f32]>;

    /// Compiles a grammar that has passed [`crate::grammar::check`].
    fn constraint(&self, grammar: &Grammar) -> Result<Box<dyn Constraint>, String>;
}

/// A grammar and how far an answer has come in it.
pub(crate) trait Constraint {
    /// Removes the candidates that the grammar does not allow next.
    fn retain_allowed(&mut self, candidates: &mut Vec<Candidate>);

    /// Goes on by one token, which must have been allowed and must not end the answer.
    fn accept(&mut self, token: Token) -> Result<(), String>;
}

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) token: Token,
    pub(crate) logit: f32,
}

/// A step that could not be computed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct EngineFault {
    /// What happened.
    pub(crate) reason: String,
    /// Whether the caches of slots outside the plan can still be trusted.
    pub(crate) caches_intact: bool,
}
