//! The seam between the decode loop and whatever computes tokens: one step, not a whole answer.
//!
//! Two rooms live behind it: [`crate::llama`] and [`crate::scripted`]. The loop must work with either and name neither.

use std::any::Any;
use std::fmt;
use std::fmt::Debug;
use std::fmt::Formatter;
use std::path::Path;

use scheduler::BatchPlan;
use scheduler::KvState;
use scheduler::SlotId;
use scheduler::Token;

use crate::media::Media;
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

    /// The token that stands before every text, if the model wants one.
    fn begin_token(&self) -> Option<Token>;

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

    /// Tokens that all slots together can hold.
    fn kv_tokens_max(&self) -> usize;

    /// Copies what the cache of a slot holds, which are `tokens`.
    fn snapshot(&mut self, slot: SlotId, tokens: &[Token]) -> Option<Snapshot>;

    /// Bytes that such a copy would take.
    fn snapshot_bytes(&self, slot: SlotId) -> usize;

    /// Replaces what the cache of a slot holds by a copy; if that fails, the cache is empty and the answer is `false`.
    fn restore(&mut self, slot: SlotId, snapshot: &Snapshot) -> bool;

    /// What [`Engine::copy`] of a slot would hold.
    fn copied_state(&self, slot: SlotId, len: usize) -> KvState;

    /// Replaces what the cache of a slot holds by what another one holds; if that fails, it is empty.
    fn copy(&mut self, from: SlotId, to: SlotId) -> bool;

    /// Writes what the cache of a slot holds to a file.
    fn save(&self, slot: SlotId, tokens: &[Token], path: &Path) -> Result<(), String>;

    /// Reads it back into a slot. The file must be known to be whole: the engine's parser is not made for anything else.
    fn load(&mut self, slot: SlotId, tokens: &[Token], path: &Path) -> Result<(), String>;

    /// Whether a small model guesses ahead.
    fn has_drafter(&self) -> bool;

    /// Guesses how answers go on.
    fn draft(&mut self, wishes: &mut [DraftWish<'_>]);

    /// The logits of the token at `index` in the plan computed last; `None` if they were not asked for.
    fn logits(&self, index: usize) -> Option<&[f32]>;

    /// Computes what a picture or sound takes, and all that is needed to read it later; says why it cannot be read.
    fn prepare_media(&self, media: &Media) -> Result<PreparedMedia, String>;

    /// Reads a picture or sound into the cache of a slot, which holds `len` tokens. Blocks until it is done.
    fn read_media(
        &mut self,
        slot: SlotId,
        len: usize,
        media: &PreparedMedia,
    ) -> Result<(), EngineFault>;

    /// Compiles a grammar that has passed [`crate::grammar::check`].
    fn constraint(&self, grammar: &Grammar) -> Result<Box<dyn Constraint + Send>, String>;
}

/// A model that turns texts into numbers.
pub(crate) trait Embedder {
    /// What the model says about itself.
    fn card(&self) -> &ModelCard;

    /// The most texts in one call of [`Embedder::embed`].
    fn texts_max(&self) -> usize;

    /// The most tokens in one call, which is also the longest text.
    fn tokens_max(&self) -> usize;

    /// Turns a text into tokens, with those that the model wants around it.
    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<Token>;

    /// A question and a document in the form that a ranking model was trained with.
    fn pair(&self, query: &str, document: &str) -> Vec<Token>;

    /// Appends a token's bytes; unknown tokens have none.
    fn append_piece(&self, token: Token, into: &mut Vec<u8>);

    /// One vector for each text.
    fn embed(&mut self, texts: &[Vec<Token>]) -> Result<Vec<Vec<f32>>, String>;
}

/// What was loaded.
pub(crate) enum Loaded<'engine> {
    /// It makes text.
    Text(&'engine mut dyn Engine),
    /// It makes numbers.
    Vectors(&'engine mut dyn Embedder),
}

/// A picture or sound that is ready to be read.
pub(crate) struct PreparedMedia {
    /// Places it takes in the cache.
    pub(crate) tokens: usize,
    /// Positions it takes in the sequence; at most as many.
    pub(crate) positions: usize,
    /// The engine's own.
    pub(crate) state: Box<dyn Any>,
}

impl Debug for PreparedMedia {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PreparedMedia")
            .field("tokens", &self.tokens)
            .finish_non_exhaustive()
    }
}

/// A copy of what the cache of a slot held.
pub(crate) struct Snapshot {
    /// Bytes of memory it takes.
    pub(crate) bytes: usize,
    /// How far a cache that it is put into can go back.
    pub(crate) kv: KvState,
    /// The engine's own.
    pub(crate) state: Box<dyn Any>,
}

impl Debug for Snapshot {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Snapshot")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// An answer whose next tokens are to be guessed.
pub(crate) struct DraftWish<'tokens> {
    /// Its slot.
    pub(crate) slot: SlotId,
    /// Everything so far, the token chosen last included.
    pub(crate) tokens: &'tokens [Token],
    /// How many at most.
    pub(crate) most: usize,
    /// The guesses.
    pub(crate) guessed: Vec<Token>,
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
