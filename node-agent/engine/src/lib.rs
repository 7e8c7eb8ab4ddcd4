//! The worker process that runs a model, and the parent's side of it.
//!
//! A tier's model lives in a child process, because llama.cpp can abort: a crash then costs one tier for a second, never the agent.
//! Parent and child speak length-prefixed frames over one Unix socket, the child's standard input ([`protocol`]).
//! The child tokenises, schedules, decodes, samples, cuts at stop strings and keeps characters whole.
//! It does not know chat templates, tool calls, HTTP or OpenAI's JSON; those are the agent's.
//!
//! This crate must never open a network socket and never log a prompt or an answer.

mod check;
pub mod client;
mod engine;
mod grammar;
#[cfg(feature = "llama")]
mod host;
#[cfg(feature = "llama")]
mod llama;
pub mod media;
#[cfg(feature = "llama")]
mod names;
pub mod protocol;
mod sampling;
pub mod sandbox;
pub mod scripted;
pub mod spec;
pub mod worker;

pub use client::Aborted;
pub use client::Generation;
pub use client::Worker;
pub use media::Media;
pub use media::Modalities;
pub use media::Segment;
pub use scripted::Script;
pub use scripted::ScriptedReply;
pub use spec::Device;
pub use spec::Dry;
pub use spec::EmbedError;
pub use spec::EmbedInput;
pub use spec::Embedded;
pub use spec::Event;
pub use spec::Fim;
pub use spec::Finish;
pub use spec::FlashAttention;
pub use spec::GenerateSpec;
pub use spec::Grammar;
pub use spec::KvType;
pub use spec::LoadError;
pub use spec::LoadSpec;
pub use spec::LogprobEntry;
pub use spec::Lora;
pub use spec::Mirostat;
pub use spec::MirostatVersion;
pub use spec::ModelCard;
pub use spec::PROMPT_CACHE_BYTES;
pub use spec::Pooling;
pub use spec::Priority;
pub use spec::Progress;
pub use spec::Prompt;
pub use spec::Refusal;
pub use spec::Resume;
pub use spec::Sampling;
pub use spec::Split;
pub use spec::Stats;
pub use spec::Task;
pub use spec::Timings;
pub use spec::TokenLogprob;
pub use spec::Usage;
pub use spec::Vectors;
