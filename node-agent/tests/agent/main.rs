//! The agent from outside: real worker processes, the tiny models of `tests/models`, a real tunnel over loopback.

mod chat;
mod failures;
mod fake_proxy;
mod program;
mod support;
mod uplink;
