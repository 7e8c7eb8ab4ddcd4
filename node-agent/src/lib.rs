//! hearth-node: the home machine's agent. It enrols with a proxy, dials in over WireGuard, runs one worker process per tier and answers the
//! proxy's requests. It listens on no port that others can reach, and it never loads a model into its own process.

pub mod admin;
pub mod answer;
pub mod app;
pub mod bench;
pub mod chat;
pub mod cli;
pub mod context;
pub mod doctor;
pub mod files;
pub mod http;
pub mod hub;
pub mod identity;
pub mod join;
pub mod local;
pub mod media;
pub mod metrics;
pub mod models;
pub mod power;
pub mod register;
pub mod reply;
pub mod report;
pub mod schema;
pub mod setup;
pub mod status;
pub mod template;
pub mod tiers;
pub mod tools;
pub mod unmanaged;
pub mod uplink;
pub mod wake;
pub mod work;
