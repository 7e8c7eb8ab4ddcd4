//! Settings of hearth-node, resolved.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::secret::Secret;
use crate::settings::proxy::{Backend, Log};
use crate::tier::Tier;
use crate::wire::wake::{Mac, SecureOn, WAKE_PORT};

/// The whole file.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `[node]`
    pub node: Node,
    /// `[[tiers]]`, at least one, each tier once.
    pub tiers: Vec<TierSettings>,
    /// `[log]`
    pub log: Log,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Node {
    /// What people call it; default the host's name.
    pub name: String,
    /// Identity key and registration. Default `~/.local/share/hearth-node`, or `/var/lib/hearth-node` as root.
    pub state_dir: PathBuf,
    /// Local UDP address. Default `[::]:0`, which is IPv4 too, and IPv4 alone where there is no IPv6.
    pub bind: SocketAddr,
    /// Metrics; loopback only; `None` = off (the default).
    pub admin_listen: Option<SocketAddr>,
    /// `OpenAI`'s API without a proxy for programs on this machine; loopback only; `None` = off (the default).
    pub api_listen: Option<SocketAddr>,
    /// Memory for all models together, in bytes; a tier that needs it sends the longest unused one to sleep. `None` = no bound.
    pub memory_max: Option<u64>,
    /// What the machine draws under load, in watts, where no sensor tells; `None` = unknown.
    pub watts: Option<f32>,
    /// Metrics under the names of other servers too. Default none.
    pub metrics_compat: Vec<MetricsCompat>,
    /// SIGTERM: running jobs have this long to finish. Default 30 s.
    pub grace: Duration,
    /// Life of a WireGuard key; the next one takes over without a cut. Default 24 h.
    pub rekey: Duration,
    /// A proxy that says no is asked again only this often. Default 60 s.
    pub refused_retry: Duration,
    /// `[wake]`
    pub wake: Wake,
    /// `[tunnel] backend`: who does TCP inside the tunnel. Default auto.
    pub backend: Backend,
    /// `[tunnel] carrier`: where the network lets no UDP through, the tunnel goes over HTTPS. Default true.
    pub carrier: bool,
    /// `[tunnel] mtu_max`: largest packet inside the tunnel, in bytes; what the path carries is measured up to it. Default 1440, 1200 to 1500.
    pub mtu_max: usize,
}

/// Sleeping and waking; without a word of it the node can neither be woken nor wakes others.
#[derive(Clone, Debug, PartialEq)]
pub struct Wake {
    /// Cards that wake this machine (Wake-on-LAN). Default none.
    pub macs: Vec<Mac>,
    /// Where packets for it go; `None`: the broadcast addresses of the neighbour's networks.
    pub broadcast: Option<Ipv4Addr>,
    /// And to which port. Default 9.
    pub port: u16,
    /// The password that the card wants.
    pub secure_on: Option<SecureOn>,
    /// From the packet to its first report. Default 60 s.
    pub takes: Duration,
    /// Sends packets for its neighbours. Default false.
    pub wakes_others: bool,
    /// The name of its place: nodes of one place are neighbours. `None`: those of one network are.
    pub site: Option<String>,
}

impl Default for Wake {
    fn default() -> Self {
        Self {
            macs: Vec::new(),
            broadcast: None,
            port: WAKE_PORT,
            secure_on: None,
            takes: Duration::from_mins(1),
            wakes_others: false,
            site: None,
        }
    }
}

/// One tier and its model.
#[derive(Clone, Debug, PartialEq)]
pub struct TierSettings {
    /// Which.
    pub tier: Tier,
    /// A GGUF file; empty when another server runs the model.
    pub model: PathBuf,
    /// The server that runs the model instead of this node.
    pub upstream: Option<Upstream>,
    /// The id that clients use; default the file's stem without its quantisation.
    pub model_id: String,
    /// Other names that clients may use, as Ollama writes them: `gemma4:e2b`.
    pub aliases: Vec<String>,
    /// What the model is told where a conversation has no system message.
    pub system: Option<String>,
    /// Tokens of context per slot; `None`: the largest that fits, at most what the model was trained for.
    pub context: Option<u32>,
    /// Requests decoded at once. Default 4.
    pub slots: u32,
    /// Requests that may wait. Default 64.
    pub queue_max: u32,
    /// CPU threads; `None`: chosen from model size and cores.
    pub threads: Option<u32>,
    /// Layers on the GPU; `None`: all that llama.cpp can place there.
    pub gpu_layers: Option<u32>,
    /// `f16`, `q8_0` or `q4_0`. Default `f16`.
    pub kv_type: KvType,
    /// Lock the weights in memory. Default false.
    pub mlock: bool,
    /// An unused model leaves memory after this; `None` = never (the default).
    pub keep_alive: Option<Duration>,
    /// Load with the first request instead of at the start. Default false.
    pub load_on_demand: bool,
    /// What the model makes. Default: text.
    pub kind: TierKind,
    /// How an embedding model's vectors are pooled; `None`: as its file says.
    pub pooling: Option<Pooling>,
    /// Adapters on top of the weights: at most one, as far as llama.cpp's binding goes.
    pub lora: Vec<LoraSettings>,
    /// How llama.cpp runs it.
    pub engine: EngineSettings,
    /// Sampling where the request says nothing.
    pub sampling: SamplingDefaults,
}

/// A server that speaks OpenAI's API: Ollama, vLLM, LM Studio, llama-server.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// Up to and including `/v1` with most servers.
    pub url: String,
    /// Its name for the model; `None`: the first that it lists.
    pub model: Option<String>,
    /// Its API key.
    pub key: Option<Secret<String>>,
    /// Prompts that go there stay at home. Default: whether its address is private.
    pub local: bool,
}

impl TierSettings {
    /// Whether clients call the model by this name.
    pub fn answers_to(&self, name: &str) -> bool {
        self.model_id == name || self.aliases.iter().any(|alias| alias == name)
    }
}

/// What a tier's model makes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum TierKind {
    /// Text.
    #[default]
    Chat,
    /// Vectors for texts.
    Embedding,
    /// Ranks of documents.
    Rerank,
}

impl TierKind {
    /// The word in settings and reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Embedding => "embedding",
            Self::Rerank => "rerank",
        }
    }
}

/// How one vector is made of those of all tokens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first token's.
    Cls,
    /// The last token's.
    Last,
}

/// An adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSettings {
    /// Its GGUF file.
    pub path: PathBuf,
    /// How much of it. Default 1.
    pub scale: f32,
}

/// How several GPUs share a model.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Split {
    /// One has it all.
    None,
    /// Each has some layers.
    Layer,
    /// Each has a part of every layer.
    Row,
}

/// Names of metrics that other servers have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MetricsCompat {
    /// `llamacpp:...`
    Llamacpp,
    /// `vllm:...`
    Vllm,
}

/// How llama.cpp runs a model; the defaults suit a home machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EngineSettings {
    /// `None`: on a CPU only where the context needs it, on a GPU where it can.
    pub flash_attention: Option<bool>,
    /// Most tokens computed in one step. Default 512.
    pub batch: u32,
    /// Threads that read prompts; `None`: as many as `threads`.
    pub threads_batch: Option<u32>,
    /// One cache for all slots. Default false.
    pub kv_unified: bool,
    /// With `kv_unified`, tokens of all requests together; `None`: `context` for each slot.
    pub kv_tokens: Option<u32>,
    /// Keep all positions of layers with a sliding window. Default false.
    pub swa_full: bool,
    /// Map the file. Default true.
    pub mmap: bool,
    /// The GPU used first.
    pub main_gpu: Option<u32>,
    /// Host memory for prompts that may come again, in bytes. Default 512 MiB; 0 = off.
    pub prompt_cache_bytes: u64,
    /// Where read prompts survive a restart; `None` = nowhere (the default).
    pub prompt_dir: Option<PathBuf>,
    /// A small model with the same vocabulary that guesses ahead.
    pub draft_model: Option<PathBuf>,
    /// The file that lets the model see or hear (`mmproj`).
    pub projector: Option<PathBuf>,
    /// Most tokens guessed ahead. Default 8.
    pub draft_max: u32,
    /// Guess ahead from what was said before. Default false.
    pub ngram: bool,
    /// Tokens in one pass through the compute graph; `None`: by the kind of attention.
    pub ubatch: Option<u32>,
    /// How several GPUs share the model; `None`: as llama.cpp does it.
    pub split: Option<Split>,
    /// Walls around the worker process. Default true.
    pub sandbox: bool,
    /// A chat template in Jinja that replaces the model's own.
    pub chat_template_file: Option<PathBuf>,
    /// How the model calls tools; `None`: as its template shows it.
    pub tool_format: Option<ToolFormat>,
    /// How the model thinks aloud; `None`: as its template shows it.
    pub reasoning_format: Option<ReasoningFormat>,
}

/// How a model writes calls of tools.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ToolFormat {
    /// JSON between `<tool_call>` tags.
    Hermes,
    /// Gemma 4's own notation.
    Gemma4,
    /// JSON, perhaps after `<|python_tag|>`.
    Llama3,
    /// A JSON list after `[TOOL_CALLS]`.
    Mistral,
    /// `[TOOL_CALLS]name[ARGS]` and JSON.
    MistralArgs,
    /// `<function=name>` with `<parameter=key>` inside.
    QwenXml,
}

/// How a model thinks aloud.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReasoningFormat {
    /// Not at all: everything that it writes is its answer.
    None,
    /// Between `<think>` tags.
    Think,
    /// In Gemma 4's channel.
    Gemma4,
    /// Between Mistral's `[THINK]` tokens.
    Mistral,
    /// Between `<seed:think>` tags.
    Seed,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            flash_attention: None,
            batch: 512,
            threads_batch: None,
            kv_unified: false,
            kv_tokens: None,
            swa_full: false,
            mmap: true,
            main_gpu: None,
            prompt_cache_bytes: 512 * 1024 * 1024,
            prompt_dir: None,
            draft_model: None,
            projector: None,
            draft_max: 8,
            ngram: false,
            ubatch: None,
            split: None,
            sandbox: true,
            chat_template_file: None,
            tool_format: None,
            reasoning_format: None,
        }
    }
}

/// Type of the KV cache.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KvType {
    /// 16-bit floats.
    F16,
    /// 8 bits.
    #[serde(rename = "q8_0")]
    Q8,
    /// 4 bits.
    #[serde(rename = "q4_0")]
    Q4,
}

/// Defaults of one tier; `None` leaves it to the engine. A request may say otherwise in each of them.
#[derive(Clone, Debug, Default, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingDefaults {
    /// 0 to 2.
    pub temperature: Option<f32>,
    /// 0 (off) to 2.
    pub dynatemp_range: Option<f32>,
    /// 0 to 10.
    pub dynatemp_exponent: Option<f32>,
    /// 1 and up.
    pub top_k: Option<u32>,
    /// 0 to 1.
    pub top_p: Option<f32>,
    /// 0 to 1.
    pub min_p: Option<f32>,
    /// 0 to 1; 1 = off.
    pub typical_p: Option<f32>,
    /// 0 (off) to 100.
    pub top_n_sigma: Option<f32>,
    /// 0 (off) to 1.
    pub xtc_probability: Option<f32>,
    /// 0 to 1; above 0.5 = off.
    pub xtc_threshold: Option<f32>,
    /// Above 0; 1 = off.
    pub repeat_penalty: Option<f32>,
    /// Tokens that the penalties look back on.
    pub repeat_last_n: Option<u32>,
    /// -2 to 2.
    pub presence_penalty: Option<f32>,
    /// -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// 0 (off) to 100.
    pub dry_multiplier: Option<f32>,
    /// 1 to 10.
    pub dry_base: Option<f32>,
    /// Tokens that may be repeated freely.
    pub dry_allowed_length: Option<u32>,
    /// Tokens that DRY looks back on.
    pub dry_penalty_last_n: Option<u32>,
    /// Texts that no repetition reaches across.
    pub dry_sequence_breakers: Option<Vec<String>>,
    /// 0 (off), 1 or 2.
    pub mirostat: Option<u32>,
    /// 0 to 100 bits.
    pub mirostat_tau: Option<f32>,
    /// 0 to 1.
    pub mirostat_eta: Option<f32>,
}
