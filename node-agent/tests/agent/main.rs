//! The agent from outside: real worker processes, the tiny models of `tests/models`, a real tunnel over loopback.

mod chat;
mod dialects;
mod failures;
mod fake_proxy;
#[path = "../../engine/tests/worker/gguf_writer.rs"]
#[expect(dead_code, reason = "these tests need a few of its models")]
mod gguf_writer;
mod life;
mod lines;
mod lock;
mod memory;
mod program;
mod prompts;
mod pull;
mod remote;
mod resume;
mod setup;
mod support;
mod uplink;
mod usage;
mod vectors;
mod warm;
