//! `_routing`: what Hearth tells the client about where an answer came from. Written by the proxy alone.

use serde::{Deserialize, Serialize};

use crate::tier::Tier;

/// The metadata in a JSON body and in the last normal SSE chunk.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Routing {
    /// The tier that answered.
    pub tier: Tier,
    /// The model that answered.
    pub model: String,
    /// The node that answered, by name.
    pub node: String,
    /// Milliseconds from the request's head to the end of the answer.
    pub latency_ms: u64,
    /// Milliseconds from the request's head to the first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<u64>,
    /// Tokens generated.
    pub tokens: u64,
    /// Why this tier: `requested`, `model`, or the classifier's strongest reasons.
    pub reason: String,
    /// Every try, in order, the successful one last.
    pub attempts: Vec<Attempt>,
    /// The detour, as `heavy->primary`, or null.
    pub fallback: Option<String>,
    /// Where the answer went on elsewhere, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub continued: Vec<Continued>,
    /// Where the time went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timing: Option<Timing>,
}

/// A place where an answer broke off and went on.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Continued {
    /// The node that was lost, by name.
    pub from: String,
    /// The node that went on, by name.
    pub to: String,
    /// The model that went on.
    pub model: String,
    /// Tokens of the answer before it.
    pub at_token: u64,
    /// Token for token, or from the text.
    pub how: ContinuedHow,
}

/// How an answer went on.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ContinuedHow {
    /// The same model, token for token: nobody can tell.
    Tokens,
    /// Another model, from the text that was said.
    Text,
}

/// Where the time of a request went, milliseconds. Together they are `latency_ms`, but for rounding and for answers that went on
/// elsewhere.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Timing {
    /// In the proxy, until the node that answered was asked; tries that failed count here.
    pub edge_ms: f64,
    /// Until a machine or a server that slept was awake, or a model was loaded. 0: it was.
    #[serde(default)]
    pub wake_ms: f64,
    /// It had to be woken or loaded.
    #[serde(default)]
    pub cold: bool,
    /// To the node and back, and whatever nobody else accounts for.
    pub tunnel_ms: f64,
    /// Waiting for a slot, in the proxy and on the node.
    pub queue_ms: f64,
    /// Reading the prompt.
    pub prefill_ms: f64,
    /// Writing the answer.
    pub decode_ms: f64,
}

/// One try at one backend.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Attempt {
    /// The tier tried.
    pub tier: Tier,
    /// The node tried, by name; null if the tier had no node to try.
    pub node: Option<String>,
    /// `ok`, or why it did not answer, from the same words as the metrics.
    pub outcome: String,
}
