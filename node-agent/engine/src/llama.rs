//! The only room that names llama.cpp.
//!
//! The safe API of the binding can still abort the process or corrupt its heap: a batch above `n_batch`, a sequence number
//! beyond the last, an unknown token, logits that were not computed, a grammar that is asked to go on after it failed, a
//! context too large for memory. Each is made impossible here, by checking before the call. What is left (a broken file
//! with a consistent header, a GPU out of memory) ends this process, which is why it is a process of its own.

mod card;
mod constraint;
mod draft;
mod embed;
mod params;
mod projector;
mod state;

use std::path::Path;

use llama_cpp_2::DecodeError;
use llama_cpp_2::LogOptions;
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::json_schema_to_grammar;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaLoraAdapter;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::send_logs_to_tracing;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::vocab::LlamaVocab;

use scheduler::BatchPlan;
use scheduler::KvState;
use scheduler::Rollback;
use scheduler::SlotId;
use scheduler::Token;

use crate::engine::Constraint;
use crate::engine::DraftWish;
use crate::engine::Engine;
use crate::engine::EngineFault;
use crate::engine::Loaded;
use crate::engine::PreparedMedia;
use crate::engine::Snapshot;
use crate::grammar;
use crate::host;
use crate::media::Media;
use crate::spec::Grammar;
use crate::spec::LoadError;
use crate::spec::LoadSpec;
use crate::spec::ModelCard;
use crate::spec::Task;

use card::number;
use card::read_card;
use constraint::LlamaConstraint;
use draft::Drafter;
use embed::LlamaEmbedder;
use params::check_memory;
use params::context_params;
use params::feasible;
use params::model_params;
use projector::Positions;
use projector::Projector;

/// Loads a model and calls `run` with it. `last_words` tells what llama.cpp logged last.
pub(crate) fn with_engine<R>(
    spec: &LoadSpec,
    last_words: &dyn Fn() -> String,
    run: impl FnOnce(Loaded<'_>) -> R,
) -> Result<R, LoadError> {
    let fail = |reason: String| LoadError::Model {
        path: spec.model_path.display().to_string(),
        reason,
    };
    let file_bytes = match std::fs::metadata(&spec.model_path) {
        Ok(found) if found.is_file() => found.len(),
        Ok(_other) => return Err(fail("it is not a file".to_owned())),
        Err(error) => return Err(fail(error.to_string())),
    };
    send_logs_to_tracing(LogOptions::default());
    #[cfg(feature = "portable")]
    load_backends(&fail)?;
    let backend = LlamaBackend::init().map_err(|error| fail(error.to_string()))?;
    let spec = &feasible(spec, card::has_gpu());
    let mut model = LlamaModel::load_from_file(&backend, &spec.model_path, &model_params(spec))
        .map_err(|_null| fail(last_words()))?;
    let threads = spec
        .threads
        .unwrap_or_else(|| host::threads_for(file_bytes));
    let mut card = read_card(spec, &model, threads).map_err(fail)?;
    let adapter = lora(spec, &mut model, last_words)?;
    if spec.task != Task::Generate {
        let mut embedder = LlamaEmbedder::new(&model, &backend, spec, card)?;
        return Ok(run(Loaded::Vectors(&mut embedder)));
    }
    check_memory(spec, &model, card.n_ctx)?;
    let projector = projector::load(spec, &model, (threads, last_words))?;
    let in_one_pass = LoadSpec {
        ubatch: Some(spec.batch),
        ..spec.clone()
    };
    let spec = match &projector {
        Some(projector) if projector.needs_one_pass() => &in_one_pass,
        Some(_) | None => spec,
    };
    if let Some(projector) = &projector {
        card.modalities = projector.modalities();
    }
    let mut context = model
        .new_context(&backend, context_params(spec, &card, model.n_head()))
        .map_err(|_null| fail(format!("no context: {}", last_words())))?;
    if let (Some(mut adapter), Some(lora)) = (adapter, &spec.lora) {
        let set = context.lora_adapter_set(&mut adapter, lora.scale);
        set.map_err(|error| fail(format!("its adapter cannot be used: {error}")))?;
    }
    let draft_model = draft::load(spec, &backend, &model, last_words)?;
    let mut engine = LlamaEngine::new(&model, context, card, spec);
    engine.projector = projector;
    if let Some(draft_model) = &draft_model {
        let drafter = Drafter::new(draft_model, &backend, spec, &engine.card)
            .map_err(|reason| fail(format!("its draft model cannot be used: {reason}")))?;
        engine.drafter = Some(drafter);
    }
    Ok(run(Loaded::Text(&mut engine)))
}

/// Chooses among the libraries beside this program, one for each instruction set.
#[cfg(feature = "portable")]
fn load_backends(fail: &dyn Fn(String) -> LoadError) -> Result<(), LoadError> {
    let program = std::env::current_exe().map_err(|error| fail(error.to_string()))?;
    if let Some(folder) = program.parent() {
        llama_cpp_2::llama_backend::load_backends_from_path(folder);
    }
    if llama_cpp_2::list_llama_ggml_backend_devices().is_empty() {
        return Err(fail(
            "no libggml-cpu-*.so lies beside the program; copy them there from where it was built"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Reads the adapter that `spec` names; it must have been trained for this model.
fn lora(
    spec: &LoadSpec,
    model: &mut LlamaModel,
    last_words: &dyn Fn() -> String,
) -> Result<Option<LlamaLoraAdapter>, LoadError> {
    let Some(lora) = &spec.lora else {
        return Ok(None);
    };
    let fail = |reason: String| LoadError::Model {
        path: lora.path.display().to_string(),
        reason: format!("the adapter cannot be used: {reason}"),
    };
    if spec.task != Task::Generate {
        return Err(fail("a model for vectors takes none".to_owned()));
    }
    if !lora.path.is_file() {
        return Err(fail("it is not a file".to_owned()));
    }
    let adapter = model.lora_adapter_init(&lora.path);
    adapter.map(Some).map_err(|_null| fail(last_words()))
}

/// How the converter writes the exponent of a number, and one that always fits 64-bit floats.
const EXPONENT_ANY: &str = "[eE] [-+]? integral-part";
const EXPONENT_READABLE: &str = "[eE] [-+]? [0-9] [0-9]?";

struct LlamaEngine<'model> {
    model: &'model LlamaModel,
    context: LlamaContext<'model>,
    batch: LlamaBatch<'static>,
    batch_max: usize,
    /// Which tokens of the last plan have logits.
    outputs: Vec<bool>,
    card: ModelCard,
    end_tokens: Vec<Token>,
    rollback: Rollback,
    /// All sequences lie in one cache.
    unified: bool,
    /// Tokens that all sequences together can hold.
    kv_tokens: usize,
    drafter: Option<Drafter<'model>>,
    projector: Option<Projector>,
    positions: Positions,
}

impl<'model> LlamaEngine<'model> {
    fn new(
        model: &'model LlamaModel,
        context: LlamaContext<'model>,
        card: ModelCard,
        spec: &LoadSpec,
    ) -> Self {
        let vocab = model.vocab();
        let ends = vocab.tokens().filter(|token| vocab.is_eog(*token));
        let end_tokens = ends.map(|token| Token(token.0)).collect();
        let window = number(model, &card.architecture, "attention.sliding_window");
        let rollback = match window {
            _any if model.is_recurrent() || model.is_hybrid() => Rollback::Never,
            Some(window) if window > 0 => {
                Rollback::Window(u32::try_from(window).unwrap_or(u32::MAX))
            }
            Some(_) | None => Rollback::Any,
        };
        // The context may have rounded the size; the smaller one is safe.
        let batch = spec.batch.min(context.n_batch());
        let batch_max = usize::try_from(batch).unwrap_or(1);
        let kv_tokens = usize::try_from(params::cells(spec, card.n_ctx)).unwrap_or(usize::MAX);
        Self {
            positions: Positions::new(card.slots),
            projector: None,
            model,
            context,
            batch: LlamaBatch::new(batch_max, 1),
            batch_max,
            outputs: Vec::new(),
            card,
            end_tokens,
            rollback,
            unified: spec.kv_unified,
            kv_tokens,
            drafter: None,
        }
    }

    fn is_known(&self, token: Token) -> bool {
        u32::try_from(token.0).is_ok_and(|id| id < self.card.n_vocab)
    }

    fn fill_batch(&mut self, plan: &BatchPlan) -> Result<(), String> {
        self.batch.clear();
        self.outputs.clear();
        if plan.tokens().len() > self.batch_max {
            return Err(format!(
                "a plan of {} tokens is above {}",
                plan.tokens().len(),
                self.batch_max
            ));
        }
        for planned in plan.tokens() {
            let known = self.is_known(planned.token) && planned.slot.0 < self.card.slots;
            let index = usize::try_from(planned.position).unwrap_or(usize::MAX);
            let position = i32::try_from(self.positions.of(planned.slot, index)).ok();
            let (true, Some(position)) = (known && planned.position < self.card.n_ctx, position)
            else {
                return Err(format!(
                    "token {} of slot {} does not fit",
                    planned.token.0, planned.slot.0
                ));
            };
            self.batch
                .add(
                    LlamaToken(planned.token.0),
                    position,
                    &[i32::from(planned.slot.0)],
                    planned.output,
                )
                .map_err(|error| error.to_string())?;
            self.outputs.push(planned.output);
        }
        Ok(())
    }
}

impl Engine for LlamaEngine<'_> {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn batch_max(&self) -> usize {
        self.batch_max
    }

    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<Token> {
        let vocab = self.model.vocab();
        let mut tokens = vocab.tokenize(text.as_bytes(), add_special, parse_special);
        // llama.cpp keeps to it only for tokens that the file itself calls control tokens.
        if !parse_special && tokens.iter().any(|token| card::steers(&vocab, *token)) {
            tokens = tokenize_apart(&vocab, text, add_special);
        }
        // Many chat templates write the begin token themselves; twice, it spoils the answer.
        let begin = vocab.bos();
        if add_special && tokens.starts_with(&[begin, begin]) {
            tokens.remove(0);
        }
        tokens.into_iter().map(|token| Token(token.0)).collect()
    }

    fn begin_token(&self) -> Option<Token> {
        let vocab = self.model.vocab();
        let begin = Token(vocab.bos().0);
        (vocab.should_add_bos() && self.is_known(begin)).then_some(begin)
    }

    fn append_piece(&self, token: Token, special: bool, into: &mut Vec<u8>) {
        if self.is_known(token) {
            self.model
                .vocab()
                .token_to_piece_into(LlamaToken(token.0), into, special, None);
        }
    }

    fn end_tokens(&self) -> &[Token] {
        &self.end_tokens
    }

    fn kv_state(&self, slot: SlotId, len: usize) -> KvState {
        let oldest = self.context.kv_cache_seq_pos_min(i32::from(slot.0));
        KvState {
            len,
            oldest: u32::try_from(oldest).ok(),
            rollback: self.rollback,
        }
    }

    fn keep_prefix(&mut self, slot: SlotId, len: usize) -> bool {
        let kept = u32::try_from(self.positions.of(slot, len))
            .ok()
            .filter(|len| *len > 0)
            .is_some_and(|len| {
                self.context
                    .kv_cache_seq_rm(i32::from(slot.0), Some(len), None)
                    .is_ok()
            });
        if !kept {
            // Removing a whole sequence cannot fail.
            let removed = self
                .context
                .clear_kv_cache_seq(Some(u32::from(slot.0)), None, None);
            debug_assert_eq!(removed, Ok(true));
        }
        self.positions.truncate(slot, if kept { len } else { 0 });
        kept || len == 0
    }

    fn decode(&mut self, plan: &BatchPlan) -> Result<(), EngineFault> {
        self.fill_batch(plan).map_err(|reason| EngineFault {
            reason,
            caches_intact: true,
        })?;
        self.context.decode(&mut self.batch).map_err(|error| {
            self.outputs.clear();
            EngineFault {
                reason: error.to_string(),
                caches_intact: matches!(
                    error,
                    DecodeError::NoKvCacheSlot | DecodeError::NTokensZero
                ),
            }
        })
    }

    fn kv_tokens_max(&self) -> usize {
        self.kv_tokens
    }

    fn snapshot(&mut self, slot: SlotId, tokens: &[Token]) -> Option<Snapshot> {
        if !self.positions.are_plain(slot) {
            return None;
        }
        state::take(&self.context, slot, self.kv_state(slot, tokens.len()))
    }

    fn snapshot_bytes(&self, slot: SlotId) -> usize {
        state::size(&self.context, slot)
    }

    fn restore(&mut self, slot: SlotId, snapshot: &Snapshot) -> bool {
        self.keep_prefix(slot, 0);
        let restored = state::put(&mut self.context, slot, snapshot);
        if !restored {
            self.keep_prefix(slot, 0);
        }
        restored
    }

    fn copied_state(&self, slot: SlotId, len: usize) -> KvState {
        let state = self.kv_state(slot, len);
        if self.unified { state } else { state.copied() }
    }

    fn copy(&mut self, from: SlotId, to: SlotId) -> bool {
        self.keep_prefix(to, 0);
        if !self.unified {
            let taken = state::take(&self.context, from, self.kv_state(from, 0));
            let copied = taken.is_some_and(|taken| self.restore(to, &taken));
            if copied {
                self.positions.copy(from, to);
            }
            return copied;
        }
        self.positions.copy(from, to);
        let (from, to) = (i32::from(from.0), i32::from(to.0));
        self.context.kv_cache_seq_cp(from, to, None, None).is_ok()
    }

    fn save(&self, slot: SlotId, tokens: &[Token], path: &Path) -> Result<(), String> {
        // What stands for a picture means something only together with this projector.
        if !tokens.iter().all(|token| self.is_known(*token)) {
            return Err("it holds pictures or sound".to_owned());
        }
        state::save(&self.context, slot, tokens, path)
    }

    fn load(&mut self, slot: SlotId, tokens: &[Token], path: &Path) -> Result<(), String> {
        self.keep_prefix(slot, 0);
        let loaded = state::load(&mut self.context, slot, tokens, path);
        if loaded.is_err() {
            self.keep_prefix(slot, 0);
        }
        loaded
    }

    fn has_drafter(&self) -> bool {
        self.drafter.is_some()
    }

    fn prepare_media(&self, media: &Media) -> Result<PreparedMedia, String> {
        let projector = self.projector.as_ref();
        let projector = projector.ok_or("this model takes text only, no pictures or sound")?;
        projector.prepare(media, self.batch_max)
    }

    fn read_media(
        &mut self,
        slot: SlotId,
        len: usize,
        media: &PreparedMedia,
    ) -> Result<(), EngineFault> {
        // Whatever happens, the logits of the last plan are gone.
        self.outputs.clear();
        let fault = |reason: String| EngineFault {
            reason: format!("a picture or sound could not be read: {reason}"),
            caches_intact: true,
        };
        let Some(projector) = &mut self.projector else {
            return Err(fault("there is no projector".to_owned()));
        };
        let n_ctx = usize::try_from(self.card.n_ctx).unwrap_or(usize::MAX);
        if slot.0 >= self.card.slots || len + media.tokens >= n_ctx {
            return Err(fault(format!("{} tokens do not fit", media.tokens)));
        }
        let from = self.positions.of(slot, len);
        let place = (slot, from, self.batch_max);
        let end = projector.read(&mut self.context, media.state.as_ref(), place);
        let end = end.map_err(fault)?;
        if end != from + media.positions {
            return Err(fault(format!("it ended at {end} instead")));
        }
        self.positions.note(slot, len + media.tokens, end);
        Ok(())
    }

    fn draft(&mut self, wishes: &mut [DraftWish<'_>]) {
        if let Some(drafter) = &mut self.drafter {
            drafter.draft(wishes);
        }
    }

    fn logits(&self, index: usize) -> Option<&[f32]> {
        let computed = self.outputs.get(index).copied().unwrap_or(false);
        let index = i32::try_from(index).ok().filter(|_index| computed)?;
        Some(self.context.get_logits_ith(index))
    }

    fn constraint(&self, grammar: &Grammar) -> Result<Box<dyn Constraint + Send>, String> {
        let converted;
        let text = match grammar {
            Grammar::Gbnf(text) => text,
            Grammar::JsonSchema(schema) => {
                let text = json_schema_to_grammar(&schema.to_string()).map_err(|_code| {
                    "the JSON schema uses something that no grammar can express".to_owned()
                })?;
                // The converter lets an exponent have sixteen digits; no parser reads a number of that size.
                converted = text.replace(EXPONENT_ANY, EXPONENT_READABLE);
                grammar::check_gbnf(&converted).map_err(|reason| {
                    format!("the JSON schema makes no usable grammar: {reason}")
                })?;
                &converted
            }
        };
        let sampler = LlamaSampler::grammar(self.model, text, "root").map_err(|_null| {
            "it does not parse, has no rule root, or recurses to the left".to_owned()
        })?;
        Ok(Box::new(LlamaConstraint {
            sampler,
            broken: false,
        }))
    }
}

/// Tokens of a text none of which steers: cut where one would begin, so that it is not seen.
fn tokenize_apart(vocab: &LlamaVocab<'_>, text: &str, add_special: bool) -> Vec<LlamaToken> {
    let mut tokens = Vec::new();
    for (index, part) in text.split_inclusive('<').enumerate() {
        tokens.extend(vocab.tokenize(part.as_bytes(), add_special && index == 0, false));
    }
    tokens
}

#[cfg(test)]
mod peer;
