//! The agent from outside: real worker processes, the tiny models of `tests/models`, a real tunnel over loopback.

mod chat;
mod failures;
mod support;
