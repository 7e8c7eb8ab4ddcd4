//! What an operator sees: metrics, logs, and the loopback listener that serves them. Sees neither prompts nor secrets, and
//! decides nothing.

pub mod admin_http;
pub mod log;
pub mod metrics;
