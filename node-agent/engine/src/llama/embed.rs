//! A model that turns texts into numbers: one vector for a text, or one number for a question and a document.
//!
//! A text is pooled from one pass through the compute graph, so every call holds whole texts and is never above what the context
//! was made for: llama.cpp ends the process otherwise. Nothing stays in the cache from one call to the next.

use std::num::NonZeroU32;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::context::params::LlamaPoolingType;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use scheduler::Token;

use super::card::number;
use crate::engine::Embedder;
use crate::host;
use crate::spec::LoadError;
use crate::spec::LoadSpec;
use crate::spec::ModelCard;
use crate::spec::Pooling;
use crate::spec::Task;
use crate::spec::Vectors;

/// Texts in one call. More do not make it faster.
const TEXTS_MAX: u32 = 32;
/// Tokens of the longest text unless the settings say otherwise: pages, not books.
const TOKENS_DEFAULT: u32 = 2_048;
/// No setting goes beyond this: attention scores grow with its square.
const TOKENS_MAX: u32 = 32_768;
const TOKENS_MIN: u32 = 64;
/// Memory for attention scores while answers are exact; see `params::is_exact`.
const SCORES_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Pooling as a model file numbers it.
const RANK: u64 = 4;

/// A model and its context for texts.
pub(super) struct LlamaEmbedder<'model> {
    model: &'model LlamaModel,
    context: LlamaContext<'model>,
    batch: LlamaBatch<'static>,
    tokens_max: usize,
    pair_template: Option<String>,
    card: ModelCard,
}

impl<'model> LlamaEmbedder<'model> {
    /// Makes the context, or says why this model cannot do it.
    pub(super) fn new(
        model: &'model LlamaModel,
        backend: &LlamaBackend,
        spec: &LoadSpec,
        mut card: ModelCard,
    ) -> Result<Self, LoadError> {
        let fail = |reason: String| LoadError::Model {
            path: spec.model_path.display().to_string(),
            reason,
        };
        let ranks = spec.task == Task::Rerank;
        let pooling = pooling(spec, model, &card).map_err(fail)?;
        let tokens_max = tokens_max(spec, &card);
        check_memory(spec, model, tokens_max)?;
        let context = model
            .new_context(backend, params(spec, model, &card, (tokens_max, pooling)))
            .map_err(|_null| fail("there is no context for texts; see the log".to_owned()))?;
        let width = if ranks {
            1
        } else {
            u32::try_from(model.n_embd_out()).unwrap_or(0)
        };
        card.n_ctx = tokens_max;
        card.slots = 1;
        card.vectors = Some(Vectors {
            width,
            tokens_max,
            ranks,
        });
        let pair_template = ranks
            .then(|| model.chat_template(Some("rerank")).ok())
            .flatten();
        let tokens_max = usize::try_from(tokens_max).unwrap_or(1);
        Ok(Self {
            pair_template: pair_template.and_then(|template| template.to_string().ok()),
            model,
            context,
            batch: LlamaBatch::new(tokens_max, 1),
            tokens_max,
            card,
        })
    }

    fn fill(&mut self, texts: &[Vec<Token>]) -> Result<(), String> {
        self.batch.clear();
        let total: usize = texts.iter().map(Vec::len).sum();
        if texts.len() > self.texts_max() || total > self.tokens_max {
            return Err(format!(
                "{} texts of {total} tokens in one call",
                texts.len()
            ));
        }
        for (sequence, text) in texts.iter().enumerate() {
            let sequence = i32::try_from(sequence).unwrap_or(0);
            for (position, token) in text.iter().enumerate() {
                if u32::try_from(token.0).map_or(true, |id| id >= self.card.n_vocab) {
                    return Err(format!("token {} is unknown", token.0));
                }
                let position = i32::try_from(position).unwrap_or(i32::MAX);
                self.batch
                    .add(LlamaToken(token.0), position, &[sequence], true)
                    .map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }
}

impl Embedder for LlamaEmbedder<'_> {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn texts_max(&self) -> usize {
        usize::try_from(TEXTS_MAX).unwrap_or(1)
    }

    fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<Token> {
        let tokens = self
            .model
            .vocab()
            .tokenize(text.as_bytes(), add_special, parse_special);
        tokens.into_iter().map(|token| Token(token.0)).collect()
    }

    fn pair(&self, query: &str, document: &str) -> Vec<Token> {
        if let Some(template) = &self.pair_template {
            // Split first: a question may hold the words of a placeholder.
            let text: String = template
                .split_inclusive("{query}")
                .map(|part| fill_in(part, query, document))
                .collect();
            return self.tokenize(&text, true, true);
        }
        let vocab = self.model.vocab();
        let known = |token: LlamaToken| (token.0 >= 0).then_some(Token(token.0));
        let end = known(vocab.eos()).or_else(|| known(vocab.sep()));
        let mut tokens = Vec::new();
        tokens.extend(known(vocab.bos()).filter(|_begin| vocab.should_add_bos()));
        tokens.extend(self.tokenize(query, false, false));
        tokens.extend(end.filter(|_end| vocab.should_add_eos()));
        tokens.extend(known(vocab.sep()).filter(|_sep| vocab.should_add_sep()));
        tokens.extend(self.tokenize(document, false, false));
        tokens.extend(end.filter(|_end| vocab.should_add_eos()));
        tokens
    }

    fn append_piece(&self, token: Token, into: &mut Vec<u8>) {
        if u32::try_from(token.0).is_ok_and(|id| id < self.card.n_vocab) {
            self.model
                .vocab()
                .token_to_piece_into(LlamaToken(token.0), into, true, None);
        }
    }

    fn embed(&mut self, texts: &[Vec<Token>]) -> Result<Vec<Vec<f32>>, String> {
        self.fill(texts)?;
        self.context.clear_kv_cache();
        self.context
            .decode(&mut self.batch)
            .map_err(|error| error.to_string())?;
        let ranks = self.card.vectors.is_some_and(|vectors| vectors.ranks);
        let read = |sequence: usize| {
            let sequence = i32::try_from(sequence).unwrap_or(i32::MAX);
            let vector = self.context.embeddings_seq_ith(sequence);
            let mut vector = vector.map_err(|error| error.to_string())?.to_vec();
            if ranks {
                vector.truncate(1);
            }
            if vector.iter().all(|number| number.is_finite()) {
                Ok(vector)
            } else {
                Err("the model made something that is no number".to_owned())
            }
        };
        (0..texts.len()).map(read).collect()
    }
}

fn fill_in(part: &str, query: &str, document: &str) -> String {
    let document_in = |text: &str| text.replace("{document}", document);
    match part.strip_suffix("{query}") {
        Some(before) => document_in(before) + query,
        None => document_in(part),
    }
}

fn pooling(
    spec: &LoadSpec,
    model: &LlamaModel,
    card: &ModelCard,
) -> Result<LlamaPoolingType, String> {
    let own = number(model, &card.architecture, "pooling_type");
    let wanted = match spec.task {
        Task::Rerank if own == Some(RANK) => return Ok(LlamaPoolingType::Rank),
        Task::Rerank => {
            return Err(
                "it is no ranking model: its file does not say pooling_type = 4 (rank); use kind = \"embedding\", or a model made for ranking"
                    .to_owned(),
            );
        }
        Task::Embed(wanted) => wanted,
        Task::Generate => None,
    };
    match (wanted, own) {
        (Some(Pooling::Mean), _) | (None, Some(0 | 1) | None) => Ok(LlamaPoolingType::Mean),
        (Some(Pooling::Cls), _) | (None, Some(2)) => Ok(LlamaPoolingType::Cls),
        (Some(Pooling::Last), _) | (None, Some(3)) => Ok(LlamaPoolingType::Last),
        (None, Some(RANK)) => {
            Err("it is a ranking model: use kind = \"rerank\" for its tier".to_owned())
        }
        (None, Some(other)) => Err(format!(
            "its file says pooling_type = {other}, which is unknown; say pooling = \"mean\", \"cls\" or \"last\""
        )),
    }
}

fn tokens_max(spec: &LoadSpec, card: &ModelCard) -> u32 {
    let wanted = if spec.n_ctx == 0 {
        TOKENS_DEFAULT
    } else {
        spec.n_ctx
    };
    wanted
        .clamp(TOKENS_MIN, TOKENS_MAX)
        .min(card.n_ctx_train.max(1))
}

fn params(
    spec: &LoadSpec,
    model: &LlamaModel,
    card: &ModelCard,
    (tokens_max, pooling): (u32, LlamaPoolingType),
) -> LlamaContextParams {
    let square = u64::from(tokens_max) * u64::from(tokens_max);
    let exact = spec.gpu_layers == 0 && square * u64::from(model.n_head()) * 4 <= SCORES_BYTES_MAX;
    let flash_attention = if exact {
        llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED
    } else {
        llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_AUTO
    };
    let threads = i32::from(card.threads);
    LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(tokens_max))
        .with_n_seq_max(TEXTS_MAX)
        .with_n_batch(tokens_max)
        .with_n_ubatch(tokens_max)
        .with_n_threads(threads)
        .with_n_threads_batch(spec.threads_batch.map_or(threads, i32::from))
        .with_flash_attention_policy(flash_attention)
        .with_offload_kqv(spec.gpu_layers > 0)
        .with_kv_unified(true)
        .with_embeddings(true)
        .with_pooling_type(pooling)
        .with_no_perf(true)
}

/// llama.cpp keeps the logits and the vector of every token of a call, whether they are asked for or not.
fn check_memory(spec: &LoadSpec, model: &LlamaModel, tokens_max: u32) -> Result<(), LoadError> {
    let Some(available_bytes) = host::memory_available().filter(|_bytes| spec.gpu_layers == 0)
    else {
        return Ok(());
    };
    let size = |count: i32| u64::try_from(count).unwrap_or(0);
    let per_token = 4 * (size(model.n_vocab()) + 2 * size(model.n_embd()));
    let needed_bytes = u64::from(tokens_max).saturating_mul(per_token);
    if needed_bytes > available_bytes {
        return Err(LoadError::Memory {
            needed_bytes,
            available_bytes,
        });
    }
    Ok(())
}
