//! Whole workers: a real child process behind the public API, with a script or with the tiny models.

mod life;
mod scripted;
mod support;
#[cfg(feature = "llama")]
mod tiny;
#[cfg(feature = "llama")]
mod tiny_rules;
#[cfg(feature = "llama")]
#[cfg(feature = "llama")]
mod walls;
mod window;
