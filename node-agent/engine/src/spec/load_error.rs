//! Why a model could not be loaded, in words for its owner. Must never name llama.cpp's own types.

use serde::Deserialize;
use serde::Serialize;

/// Why a model could not be loaded.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum LoadError {
    /// The worker program could not be started.
    #[error("cannot start the worker {program}: {reason}")]
    Spawn {
        /// The program.
        program: String,
        /// What the system said.
        reason: String,
    },
    /// The load specification makes no sense.
    #[error("{field} is invalid: {reason}")]
    Invalid {
        /// The field of [`super::LoadSpec`].
        field: String,
        /// What would be right.
        reason: String,
    },
    /// The file is missing, broken or of an unknown kind.
    #[error("cannot load {path}: {reason}")]
    Model {
        /// The file.
        path: String,
        /// The last words of the engine about it.
        reason: String,
    },
    /// The context would not fit into memory.
    #[error(
        "the context needs about {needed_bytes} bytes, but {available_bytes} are free; use a smaller n_ctx, fewer slots or a smaller kv_type"
    )]
    Memory {
        /// Estimate of what is needed.
        needed_bytes: u64,
        /// What is free.
        available_bytes: u64,
    },
    /// The worker process ended while it loaded the model.
    #[error("the worker ended while loading: {reason}")]
    Crashed {
        /// Its exit status and last words.
        reason: String,
    },
    /// The worker did not become ready in time.
    #[error("the worker was not ready after {seconds} s")]
    Timeout {
        /// How long was waited.
        seconds: u64,
    },
    /// The program that was started does not speak our frames.
    #[error("the worker speaks another protocol: {reason}")]
    Protocol {
        /// What was wrong.
        reason: String,
    },
}
