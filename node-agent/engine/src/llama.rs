//! The only file that names llama.cpp.
//!
//! The safe API of the binding can still abort the process or corrupt its heap: a batch above `n_batch`, a sequence number
//! beyond the last, an unknown token, logits that were not computed, a grammar that is asked to go on after it failed, a
//! context too large for memory. Each is made impossible here, by checking before the call. What is left (a broken file
//! with a consistent header, a GPU out of memory) ends this process, which is why it is a process of its own.

use std::num::NonZeroU32;

use llama_cpp_2::DecodeError;
use llama_cpp_2::LlamaBackendDeviceType;
use llama_cpp_2::LogOptions;
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::KvCacheType;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::json_schema_to_grammar;
use llama_cpp_2::list_llama_ggml_backend_devices;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::send_logs_to_tracing;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;

use scheduler::BatchPlan;
use scheduler::KvState;
use scheduler::Rollback;
use scheduler::SlotId;
use scheduler::Token;

use crate::engine::Candidate;
use crate::engine::Constraint;
use crate::engine::Engine;
use crate::engine::EngineFault;
use crate::grammar;
use crate::host;
use crate::names;
use crate::spec::Device;
use crate::spec::FlashAttention;
use crate::spec::Grammar;
use crate::spec::KvType;
use crate::spec::LoadError;
use crate::spec::LoadSpec;
use crate::spec::ModelCard;

/// One pass through the compute graph takes at most this many tokens; more only costs memory.
const UBATCH_MAX: u32 = 512;
/// The same without flash attention, whose scores take memory for every token of it.
const UBATCH_EXACT: u32 = 128;
/// Memory for attention scores that exact answers may cost.
const SCORES_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Architectures that are no causal language models; decoding with them fails an assertion.
const NOT_CAUSAL: [&str; 8] = [
    "bert",
    "clip",
    "dream",
    "gemma-embedding",
    "llada",
    "rnd1",
    "t5",
    "wavtokenizer",
];

/// Loads a model and calls `run` with it. `last_words` tells what llama.cpp logged last.
pub(crate) fn with_engine<R>(
    spec: &LoadSpec,
    last_words: &dyn Fn() -> String,
    run: impl FnOnce(&mut dyn Engine) -> R,
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
    let backend = LlamaBackend::init().map_err(|error| fail(error.to_string()))?;
    let params = LlamaModelParams::default()
        .with_n_gpu_layers(spec.gpu_layers)
        .with_use_mmap(spec.mmap)
        .with_use_mlock(spec.mlock);
    let model = LlamaModel::load_from_file(&backend, &spec.model_path, &params)
        .map_err(|_null| fail(last_words()))?;
    let threads = spec
        .threads
        .unwrap_or_else(|| host::threads_for(file_bytes));
    let card = read_card(spec, &model, threads).map_err(fail)?;
    check_memory(spec, &model, card.n_ctx)?;
    let context = model
        .new_context(&backend, context_params(spec, &card, model.n_head()))
        .map_err(|_null| fail(format!("no context: {}", last_words())))?;
    let mut engine = LlamaEngine::new(&model, context, card, spec);
    Ok(run(&mut engine))
}

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
        Self {
            model,
            context,
            batch: LlamaBatch::new(batch_max, 1),
            batch_max,
            outputs: Vec::new(),
            card,
            end_tokens,
            rollback,
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
            let position = i32::try_from(planned.position).ok();
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
        // Many chat templates write the begin token themselves; twice, it spoils the answer.
        let begin = vocab.bos();
        if add_special && tokens.starts_with(&[begin, begin]) {
            tokens.remove(0);
        }
        tokens.into_iter().map(|token| Token(token.0)).collect()
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
        let kept = u32::try_from(len)
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

    fn logits(&self, index: usize) -> Option<&[f32]> {
        let computed = self.outputs.get(index).copied().unwrap_or(false);
        let index = i32::try_from(index).ok().filter(|_index| computed)?;
        Some(self.context.get_logits_ith(index))
    }

    fn constraint(&self, grammar: &Grammar) -> Result<Box<dyn Constraint>, String> {
        let converted;
        let text = match grammar {
            Grammar::Gbnf(text) => text,
            Grammar::JsonSchema(schema) => {
                converted = json_schema_to_grammar(&schema.to_string()).map_err(|_code| {
                    "the JSON schema uses something that no grammar can express".to_owned()
                })?;
                grammar::check_gbnf(&converted)?;
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

struct LlamaConstraint {
    sampler: LlamaSampler,
    /// It refused a token; asking it again would abort.
    broken: bool,
}

impl Constraint for LlamaConstraint {
    fn retain_allowed(&mut self, candidates: &mut Vec<Candidate>) {
        if self.broken {
            candidates.clear();
        }
        let data = candidates.iter().map(|candidate| {
            LlamaTokenData::new(LlamaToken(candidate.token.0), candidate.logit, 0.0)
        });
        let mut array = LlamaTokenDataArray::new(data.collect(), false);
        if array.data.is_empty() {
            return;
        }
        self.sampler.apply(&mut array);
        candidates.clear();
        let allowed = array
            .data
            .iter()
            .filter(|data| data.logit() > f32::NEG_INFINITY);
        candidates.extend(allowed.map(|data| Candidate {
            token: Token(data.id().0),
            logit: data.logit(),
        }));
    }

    fn accept(&mut self, token: Token) -> Result<(), String> {
        if self.broken {
            return Err("the grammar has failed before".to_owned());
        }
        self.sampler
            .try_accept(LlamaToken(token.0))
            .map_err(|error| {
                self.broken = true;
                format!("the grammar does not go on with token {token:?}: {error}")
            })
    }
}

fn context_params(spec: &LoadSpec, card: &ModelCard, heads: u32) -> LlamaContextParams {
    let kv_type = match spec.kv_type {
        KvType::F32 => KvCacheType::F32,
        KvType::F16 => KvCacheType::F16,
        KvType::Q8_0 => KvCacheType::Q8_0,
        KvType::Q4_0 => KvCacheType::Q4_0,
    };
    let exact = is_exact(spec, card.n_ctx, heads);
    let flash_attention = match spec.flash_attention {
        FlashAttention::Auto if exact => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        FlashAttention::Auto => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_AUTO,
        FlashAttention::On => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        FlashAttention::Off => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED,
    };
    let ubatch_max = if exact { UBATCH_EXACT } else { UBATCH_MAX };
    let threads = i32::from(card.threads);
    LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(
            card.n_ctx.saturating_mul(u32::from(card.slots)),
        ))
        .with_n_seq_max(u32::from(card.slots))
        .with_n_batch(spec.batch)
        .with_n_ubatch(spec.batch.min(ubatch_max))
        .with_n_threads(threads)
        .with_n_threads_batch(threads)
        .with_type_k(kv_type)
        .with_type_v(kv_type)
        .with_flash_attention_policy(flash_attention)
        .with_offload_kqv(spec.gpu_layers > 0)
        .with_kv_unified(spec.kv_unified)
        .with_swa_full(spec.swa_full)
        .with_no_perf(true)
}

/// Whether attention is computed so that an answer does not depend on what else is in the batch.
///
/// Flash attention on a CPU rounds differently with every split into batches (measured: log-probabilities move by 0.03),
/// so the same seed would give another text when others are being served, and it is no faster there. The price of doing
/// without is memory for the attention scores, which is paid while it is small. A quantised cache needs flash attention.
fn is_exact(spec: &LoadSpec, n_ctx: u32, heads: u32) -> bool {
    let scores = u64::from(n_ctx) * u64::from(heads) * u64::from(UBATCH_EXACT) * 4;
    let plain_cache = match spec.kv_type {
        KvType::F32 | KvType::F16 => true,
        KvType::Q8_0 | KvType::Q4_0 => false,
    };
    let wanted = match spec.flash_attention {
        FlashAttention::Auto => spec.gpu_layers == 0 && scores <= SCORES_BYTES_MAX,
        FlashAttention::Off => true,
        FlashAttention::On => false,
    };
    wanted && plain_cache
}

fn read_card(spec: &LoadSpec, model: &LlamaModel, threads: u16) -> Result<ModelCard, String> {
    let text = |key: &str| {
        model
            .meta_val_str(key)
            .ok()
            .filter(|value| !value.is_empty())
    };
    let architecture = text("general.architecture").ok_or("it names no architecture")?;
    if NOT_CAUSAL.iter().any(|kind| architecture.contains(kind)) {
        return Err(format!("{architecture} is not a causal language model"));
    }
    let n_vocab = u32::try_from(model.n_vocab()).unwrap_or(0);
    let tokenizer = text("tokenizer.ggml.model").unwrap_or_default();
    if n_vocab == 0 || ["", "none", "no_vocab"].contains(&tokenizer.as_str()) {
        return Err("it has no tokenizer".to_owned());
    }
    let n_ctx_train = model.n_ctx_train();
    let wanted = if spec.n_ctx == 0 {
        n_ctx_train
    } else {
        spec.n_ctx.min(n_ctx_train)
    };
    let vocab = model.vocab();
    let token_text = |token: LlamaToken| {
        let known = u32::try_from(token.0).is_ok_and(|id| id < n_vocab);
        let text = known.then(|| vocab.text(token)).flatten();
        text.map(|text| text.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let file_name = spec
        .model_path
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned());
    Ok(ModelCard {
        name: text("general.name").or(file_name).unwrap_or_default(),
        chat_template: model
            .chat_template(None)
            .ok()
            .and_then(|template| template.to_string().ok()),
        bos_token: token_text(vocab.bos()),
        eos_token: token_text(vocab.eos()),
        add_bos: vocab.should_add_bos(),
        n_ctx: wanted.max(1),
        n_ctx_train,
        n_vocab,
        parameters: model.n_params(),
        size_bytes: model.size(),
        quantization: names::quantization(text("general.file_type").as_deref()).to_owned(),
        slots: spec.slots,
        threads,
        devices: devices(spec.gpu_layers > 0),
        architecture,
    })
}

/// Refuses a context that would not fit, since the system would end this process instead of refusing.
///
/// The estimate is a lower bound: a sliding window needs less than full attention, so such layers are left out.
fn check_memory(spec: &LoadSpec, model: &LlamaModel, n_ctx: u32) -> Result<(), LoadError> {
    let cells = u64::from(n_ctx) * u64::from(spec.slots);
    if cells > u64::from(u32::MAX / 2) {
        return Err(LoadError::Invalid {
            field: "n_ctx".to_owned(),
            reason: format!("{n_ctx} for each of {} slots is too much", spec.slots),
        });
    }
    let Some(available_bytes) = host::memory_available().filter(|_bytes| spec.gpu_layers == 0)
    else {
        return Ok(());
    };
    let architecture = model
        .meta_val_str("general.architecture")
        .unwrap_or_default();
    let heads = u64::from(model.n_head().max(1));
    let width = u64::try_from(model.n_embd()).unwrap_or(0);
    let head = number(model, &architecture, "attention.key_length").unwrap_or(width / heads);
    let window = number(model, &architecture, "attention.sliding_window").unwrap_or(0);
    let windowed = window > 0 && !spec.swa_full;
    let recurrent = model.is_recurrent() || model.is_hybrid();
    // Windowed and hybrid models have at least one full layer in six.
    let layers = u64::from(model.n_layer()) / if windowed || recurrent { 6 } else { 1 };
    // In 32nds of a byte, because a block of 32 numbers has a scale.
    let number_size = match spec.kv_type {
        KvType::F32 => 128,
        KvType::F16 => 64,
        KvType::Q8_0 => 34,
        KvType::Q4_0 => 18,
    };
    let per_cell = 2 * layers * head * u64::from(model.n_head_kv()) * number_size / 32;
    let needed_bytes = cells.saturating_mul(per_cell);
    if needed_bytes > available_bytes {
        return Err(LoadError::Memory {
            needed_bytes,
            available_bytes,
        });
    }
    Ok(())
}

fn number(model: &LlamaModel, architecture: &str, key: &str) -> Option<u64> {
    model
        .meta_val_str(&format!("{architecture}.{key}"))
        .ok()?
        .parse()
        .ok()
}

fn devices(with_gpu: bool) -> Vec<Device> {
    let used = |kind: LlamaBackendDeviceType| match kind {
        LlamaBackendDeviceType::Cpu => true,
        LlamaBackendDeviceType::Accelerator
        | LlamaBackendDeviceType::Gpu
        | LlamaBackendDeviceType::IntegratedGpu
        | LlamaBackendDeviceType::Unknown => with_gpu,
    };
    let all = list_llama_ggml_backend_devices().into_iter();
    let used = all.filter(|device| used(device.device_type));
    let device = used.map(|device| Device {
        name: device.name,
        description: device.description,
        memory_free_bytes: u64::try_from(device.memory_free).unwrap_or(u64::MAX),
        memory_total_bytes: u64::try_from(device.memory_total).unwrap_or(u64::MAX),
    });
    device.collect()
}
