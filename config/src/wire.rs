//! What travels: OpenAI requests and answers, SSE, errors, and the words between node and proxy. Parses and writes; decides nothing.

pub mod chat;
pub mod completion;
pub mod error;
pub mod models;
pub mod node;
pub mod progress;
pub mod routing;
pub mod sse;
pub mod valid;
pub mod wake;
pub mod wishes;
