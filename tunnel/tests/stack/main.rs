//! The same stories as in `it` over the embedded TCP, as with a stock WireGuard peer.

#[cfg(test)]
#[path = "../it/carriers.rs"]
mod carriers;
#[cfg(test)]
#[path = "../it/halfopen.rs"]
mod halfopen;
#[cfg(test)]
#[path = "../it/narrow.rs"]
mod narrow;
#[cfg(test)]
#[path = "../it/relay.rs"]
mod relay;
#[cfg(test)]
#[path = "../it/sessions.rs"]
mod sessions;
#[cfg(test)]
#[path = "../it/streams.rs"]
mod streams;
#[cfg(test)]
#[path = "../it/support.rs"]
mod support;

/// Who does TCP in these tests.
#[cfg(test)]
const BACKEND: tunnel::Backend = tunnel::Backend::Embedded;
/// Streams are TCP, even between two ends of ours.
#[cfg(test)]
const QUIC: bool = false;
