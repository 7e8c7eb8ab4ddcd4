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
