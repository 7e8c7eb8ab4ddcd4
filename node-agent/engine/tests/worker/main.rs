//! Whole workers: a real child process behind the public API, with a script or with the tiny models.

#[cfg(feature = "llama")]
mod counted;
#[cfg(feature = "llama")]
mod crafted;
#[cfg(feature = "llama")]
mod gguf_writer;
#[cfg(feature = "llama")]
mod guesses;
#[cfg(feature = "llama")]
mod held;
#[cfg(feature = "llama")]
mod interleaved;
mod life;
#[cfg(feature = "llama")]
mod media;
#[cfg(feature = "llama")]
#[path = "../../../../tests/models/projector.rs"]
mod projector;
#[cfg(feature = "llama")]
mod prompts;
#[cfg(feature = "llama")]
mod resume;
#[cfg(feature = "llama")]
mod reuse;
#[cfg(feature = "llama")]
mod schemas;
mod scripted;
mod support;
#[cfg(feature = "llama")]
mod tiny;
#[cfg(feature = "llama")]
mod tiny_rules;
#[cfg(feature = "llama")]
mod vectors;
#[cfg(feature = "llama")]
mod walls;
mod window;
