//! Settings of hearth-node, resolved.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::settings::proxy::Log;
use crate::tier::Tier;

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
    /// Local UDP address. Default `0.0.0.0:0`.
    pub bind: SocketAddr,
    /// Metrics; loopback only; `None` = off (the default).
    pub admin_listen: Option<SocketAddr>,
    /// `OpenAI`'s API without a proxy for programs on this machine; loopback only; `None` = off (the default).
    pub api_listen: Option<SocketAddr>,
    /// SIGTERM: running jobs have this long to finish. Default 30 s.
    pub grace: Duration,
}

/// One tier and its model.
#[derive(Clone, Debug)]
pub struct TierSettings {
    /// Which.
    pub tier: Tier,
    /// A GGUF file.
    pub model: PathBuf,
    /// The id that clients use; default the file's stem without its quantisation.
    pub model_id: String,
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
    /// Sampling where the request says nothing.
    pub sampling: SamplingDefaults,
}

impl TierSettings {
    /// Whether clients call the model by this name.
    pub fn answers_to(&self, name: &str) -> bool {
        self.model_id == name
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

/// Defaults of one tier; `None` leaves it to the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingDefaults {
    /// 0 to 2.
    pub temperature: Option<f32>,
    /// 1 and up.
    pub top_k: Option<u32>,
    /// 0 to 1.
    pub top_p: Option<f32>,
    /// 0 to 1.
    pub min_p: Option<f32>,
    /// Above 0; 1 = off.
    pub repeat_penalty: Option<f32>,
}
