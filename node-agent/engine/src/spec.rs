//! What the agent asks of an engine and what the engine answers, as plain values.
//!
//! This room must never do I/O and never name llama.cpp: everything here crosses a process boundary.

mod event;
mod load_error;
mod sampling;
mod vectors;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use crate::media::Media;
use crate::media::Modalities;
use crate::media::Segment;

pub use event::Event;
pub use event::Finish;
pub use event::LogprobEntry;
pub use event::Progress;
pub use event::Timings;
pub use event::TokenLogprob;
pub use event::Usage;
pub use load_error::LoadError;
pub use sampling::Dry;
pub use sampling::Mirostat;
pub use sampling::MirostatVersion;
pub use sampling::Sampling;
pub use vectors::EmbedError;
pub use vectors::EmbedInput;
pub use vectors::Embedded;
pub use vectors::Fim;
pub use vectors::Lora;
pub use vectors::Pooling;
pub use vectors::Task;
pub use vectors::Vectors;

/// Host memory for read prompts unless the settings say otherwise: 512 MiB.
pub const PROMPT_CACHE_BYTES: u64 = 512 * 1024 * 1024;

/// How a model is loaded into one worker process. Every file that a worker may open is named here and listed in
/// [`crate::sandbox`]; anything else it cannot open.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct LoadSpec {
    /// The GGUF file, or `script:…` for the scripted engine (see [`crate::scripted`]).
    pub model_path: PathBuf,
    /// Context length of one slot in tokens; 0 takes what the model was trained with. Never above that.
    pub n_ctx: u32,
    /// How many requests decode at the same time.
    pub slots: u16,
    /// Compute threads; `None` chooses by model size and physical cores.
    pub threads: Option<u16>,
    /// The most tokens in one decode call.
    pub batch: u32,
    /// Type of the cached keys and values.
    pub kv_type: KvType,
    /// Whether flash attention is used.
    pub flash_attention: FlashAttention,
    /// Layers put on a GPU; 0 keeps the model on the CPU.
    pub gpu_layers: u32,
    /// Map the file instead of reading it, so that a restart finds it in the page cache.
    pub mmap: bool,
    /// Lock the model in memory.
    pub mlock: bool,
    /// One KV cache for all slots instead of one part each (less memory, 16 % more work per token). Attention of several answers is then
    /// summed side by side: log-probabilities depend a little on who else is asking, as they do with guesses.
    pub kv_unified: bool,
    /// Keep all positions of layers with a sliding window. Takes several times the memory with such models, but any
    /// prefix can then be reused, not only one that was left a few hundred tokens ago.
    pub swa_full: bool,
    /// Requests that may wait for a slot.
    pub queue_max: usize,
    /// Waiting requests of one principal.
    pub queue_per_principal_max: usize,
    /// Seed of requests that bring none; `None` draws one for each.
    pub seed_default: Option<u64>,
    /// The longest gap that a long prompt may cause in a running stream.
    pub stall_max_ms: u32,
    /// Compute threads while prompts are read; `None` takes [`LoadSpec::threads`].
    pub threads_batch: Option<u16>,
    /// Tokens in one pass through the compute graph; `None` chooses by the kind of attention.
    pub ubatch: Option<u32>,
    /// How several GPUs share the model; `None` leaves it to llama.cpp.
    pub split: Option<Split>,
    /// The GPU that is used alone or holds what cannot be split.
    pub main_gpu: Option<u32>,
    /// With [`LoadSpec::kv_unified`]: tokens that all slots together can hold; `None` is `n_ctx` for each. Requests wait for
    /// room, so a context can be long without being paid for once per slot.
    pub kv_tokens: Option<u32>,
    /// A small model with the same vocabulary that guesses ahead.
    pub draft_model: Option<PathBuf>,
    /// The file that turns pictures and sound into what the model reads (`mmproj`).
    pub projector: Option<PathBuf>,
    /// The most tokens guessed ahead in one step.
    pub draft_max: u32,
    /// Guess ahead from what was said before; used where there is no draft model or it has no guess.
    pub ngram: bool,
    /// Host memory for prompts that were read and may come again; 0 keeps only what the slots hold.
    pub prompt_cache_bytes: u64,
    /// A folder in which read prompts survive a restart; `None` keeps none. They are what users wrote, so it is private.
    pub state_dir: Option<PathBuf>,
    /// Walls around the process: no network, no other program, no file but those named here.
    pub sandbox: bool,
    /// What the worker does with its model.
    pub task: Task,
    /// A change to the weights that was trained apart from them.
    pub lora: Option<Lora>,
}

impl LoadSpec {
    /// Describes a model file with the defaults that suit a home machine.
    pub fn new(model_path: impl Into<PathBuf>) -> Self {
        Self {
            model_path: model_path.into(),
            n_ctx: 0,
            slots: 4,
            threads: None,
            batch: 512,
            kv_type: KvType::F16,
            flash_attention: FlashAttention::Auto,
            gpu_layers: 0,
            mmap: true,
            mlock: false,
            kv_unified: false,
            swa_full: false,
            queue_max: 64,
            queue_per_principal_max: 32,
            seed_default: None,
            stall_max_ms: 100,
            threads_batch: None,
            ubatch: None,
            split: None,
            main_gpu: None,
            kv_tokens: None,
            draft_model: None,
            projector: None,
            draft_max: 8,
            ngram: false,
            prompt_cache_bytes: PROMPT_CACHE_BYTES,
            state_dir: None,
            sandbox: true,
            task: Task::Generate,
            lora: None,
        }
    }
}

/// How several GPUs share a model.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// One GPU has it all.
    None,
    /// Each has some layers.
    Layer,
    /// Each has a part of every layer.
    Row,
}

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KvType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    #[default]
    F16,
    /// 8-bit blocks, half the memory of `F16`.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4-bit blocks, a quarter of the memory of `F16`; needs flash attention.
    #[serde(rename = "q4_0")]
    Q4_0,
}

/// Whether flash attention is used.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FlashAttention {
    /// On a CPU it is left out while that costs little memory, because it makes an answer depend on what else is being
    /// computed; elsewhere llama.cpp decides.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// What a loaded model says about itself.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ModelCard {
    /// `general.architecture`, for example `llama` or `gemma4`.
    pub architecture: String,
    /// `general.name`, or the file name without its suffix.
    pub name: String,
    /// The Jinja source of `tokenizer.chat_template`.
    pub chat_template: Option<String>,
    /// Text of the begin-of-sequence token, empty if there is none.
    pub bos_token: String,
    /// Text of the end-of-sequence token, empty if there is none.
    pub eos_token: String,
    /// Whether the tokenizer itself puts the begin token in front.
    pub add_bos: bool,
    /// Texts that are read as control tokens unless they stand in a [`Segment::Literal`].
    #[serde(default)]
    pub control_tokens: Vec<String>,
    /// Context length of one slot in tokens.
    pub n_ctx: u32,
    /// Context length the model was trained with.
    pub n_ctx_train: u32,
    /// Number of tokens in the vocabulary.
    pub n_vocab: u32,
    /// Number of weights.
    pub parameters: u64,
    /// Size of all tensors.
    pub size_bytes: u64,
    /// For example `Q8_0`.
    pub quantization: String,
    /// Number of slots.
    pub slots: u16,
    /// Compute threads in use.
    pub threads: u16,
    /// Devices that hold the model.
    pub devices: Vec<Device>,
    /// Layers that are not on the CPU.
    pub gpu_layers: u32,
    /// What it takes besides text.
    pub modalities: Modalities,
    /// What it makes instead of text.
    pub vectors: Option<Vectors>,
    /// The tokens around a hole in a text, if it was trained to fill one.
    pub fim: Option<Fim>,
}

/// A compute device as the engine names it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Device {
    /// For example `CPU` or `CUDA0`.
    pub name: String,
    /// What the vendor calls it.
    pub description: String,
    /// Memory free when the model was loaded.
    pub memory_free_bytes: u64,
    /// All memory of the device.
    pub memory_total_bytes: u64,
}

/// One request for text.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct GenerateSpec {
    /// What the model reads.
    pub prompt: Prompt,
    /// Pictures and sounds, in the order of their places in the prompt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub media: Vec<Arc<Media>>,
    /// The most tokens to make; `None` goes on to the end of the context.
    pub max_tokens: Option<u32>,
    /// No more than this, however much was asked for and fits: never a reason to refuse.
    #[serde(default)]
    pub tokens_at_most: Option<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// A form that the answer must take.
    pub grammar: Option<Grammar>,
    /// Ask for log-probabilities with this many alternatives (0-20).
    pub logprobs: Option<u8>,
    /// Time left for the whole request, waiting included.
    pub deadline: Option<Duration>,
    /// Whose request this is: fairness in the queue, and the wall around reused prefixes unless there is a salt.
    pub principal: u64,
    /// Before whom it goes in the queue.
    #[serde(default)]
    pub priority: Priority,
    /// Requests with the same salt may reuse what the others have read; two salts never share anything.
    pub cache_salt: Option<String>,
    /// The links of its conversation, oldest first. They say nothing here, and come back in what is held.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<u64>,
    /// Never end at an end-of-generation token.
    pub ignore_eos: bool,
    /// Do not end at one before the answer has so many tokens.
    #[serde(default)]
    pub min_tokens: u32,
    /// Reuse and keep the KV cache of this prompt.
    pub cache_prompt: bool,
    /// Also write control tokens such as `<|tool_call>` into the text.
    pub render_special: bool,
    /// An answer that another machine has begun.
    #[serde(default)]
    pub resume: Option<Resume>,
}

/// A class in the queue.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Somebody looks at the screen.
    Interactive,
    /// As usual.
    #[default]
    Normal,
    /// Nobody waits for it.
    Batch,
}

/// The beginning of an answer, made elsewhere: only what comes after it is made and told.
///
/// The tokens are read after the prompt and replayed through grammar, penalties, stop strings and text, so that the rest is
/// what it would have been. They count as completion tokens.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Resume {
    /// What was told in [`Event::Piece`] so far.
    pub tokens: Vec<i32>,
}

impl GenerateSpec {
    /// Asks for a continuation of `text` in which special tokens count as such, as a chat template writes them.
    pub fn from_template(text: impl Into<String>) -> Self {
        Self {
            prompt: Prompt::Text {
                text: text.into(),
                parse_special: true,
                add_special: true,
            },
            media: Vec::new(),
            max_tokens: None,
            tokens_at_most: None,
            sampling: Sampling::default(),
            stop: Vec::new(),
            grammar: None,
            logprobs: None,
            deadline: None,
            principal: 0,
            priority: Priority::Normal,
            cache_salt: None,
            links: Vec::new(),
            ignore_eos: false,
            cache_prompt: true,
            render_special: false,
            min_tokens: 0,
            resume: None,
        }
    }
}

/// What the model reads.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// Text for the model's tokenizer.
    Text {
        /// The text.
        text: String,
        /// Whether `<|im_start|>` and the like become control tokens.
        parse_special: bool,
        /// Whether the begin token is added if the model wants one.
        add_special: bool,
    },
    /// Tokens as they are.
    Tokens(Vec<i32>),
    /// Pieces of different kinds, one after the other; the begin token is added if the model wants one.
    Segments(Vec<Segment>),
}

/// A form that the answer must take.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Grammar {
    /// llama.cpp's grammar notation with a rule `root`.
    Gbnf(String),
    /// A JSON schema.
    JsonSchema(serde_json::Value),
}

/// Why a request got no answer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The prompt, or the prompt with the wanted answer, is longer than a slot's context.
    #[error("the context holds {n_ctx} tokens, but the prompt has {prompt_tokens} and {} more were asked for", max_tokens.unwrap_or(1))]
    ContextLengthExceeded {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// What the request asked for.
        max_tokens: Option<u32>,
        /// Context length of one slot.
        n_ctx: u32,
    },
    /// Too many requests wait already.
    #[error("{waiting} requests wait already")]
    QueueFull {
        /// How many wait.
        waiting: u32,
    },
    /// The deadline passed before the first token.
    #[error("the deadline passed while the request waited")]
    DeadlineExceeded,
    /// The grammar or schema cannot be used.
    #[error("the grammar cannot be used: {reason}")]
    BadGrammar {
        /// What is wrong with it.
        reason: String,
    },
    /// A value is out of its range.
    #[error("{param} is invalid: {reason}")]
    Invalid {
        /// The field, in OpenAI's spelling.
        param: String,
        /// What would be right.
        reason: String,
    },
    /// The engine failed at this request, but lives.
    #[error("the engine failed: {reason}")]
    EngineFault {
        /// What happened.
        reason: String,
    },
    /// The worker process ended.
    #[error("the worker process ended: {reason}")]
    WorkerGone {
        /// Its exit status and last words.
        reason: String,
    },
}

impl Refusal {
    /// Names it for logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::ContextLengthExceeded { .. } => "context_length_exceeded",
            Self::QueueFull { .. } => "queue_full",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::BadGrammar { .. } => "bad_grammar",
            Self::Invalid { .. } => "invalid",
            Self::EngineFault { .. } => "engine_fault",
            Self::WorkerGone { .. } => "worker_gone",
        }
    }
}

/// How busy a worker is.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Stats {
    /// Number of slots.
    pub slots: u16,
    /// Slots at work.
    pub slots_busy: u16,
    /// Requests that wait for a slot.
    pub queue_depth: u32,
    /// Tokens made per second while any was made, recent average over all slots.
    pub tokens_per_second: f64,
    /// Prompt tokens read per second while any was read, recent average.
    pub prompt_tokens_per_second: f64,
    /// Tokens in the KV cache, reusable ones of idle slots included.
    pub kv_tokens: u64,
    /// Tokens that fit into the KV cache.
    pub kv_tokens_max: u64,
    /// Prompt tokens read since the start, cached ones not counted.
    pub prompt_tokens_total: u64,
    /// Prompt tokens found in the KV cache since the start.
    pub cached_tokens_total: u64,
    /// Tokens made since the start.
    pub completion_tokens_total: u64,
    /// Prompts of which something was reused, from a slot or from host memory.
    pub prompt_hits_total: u64,
    /// Those of them that came from another slot or from host memory.
    pub prompt_moves_total: u64,
    /// Bytes of read prompts in host memory.
    pub prompt_cache_bytes: u64,
    /// Tokens guessed ahead.
    pub drafted_tokens_total: u64,
    /// Those of them that were right.
    pub accepted_tokens_total: u64,
}
