//! The agent from outside: real worker processes, the tiny models of `tests/models`, a real tunnel over loopback.

mod chat;
mod failures;
mod fake_proxy;
mod life;
mod lock;
mod memory;
mod program;
mod remote;
mod setup;
mod support;
mod uplink;
