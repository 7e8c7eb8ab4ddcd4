//! hearth-proxy: the public edge. ARCHITECTURE.md tells which room does what.

pub mod admin;
pub mod app;
pub mod auth;
pub mod cli;
pub mod front;
pub mod gateway;
pub mod nodes;
pub mod observe;
pub mod remote;
pub mod store;
