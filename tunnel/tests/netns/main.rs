//! The same stories as in `it`, with the kernel's TCP where this host lets us; elsewhere they repeat themselves.

#[cfg(test)]
#[path = "../it/carriers.rs"]
mod carriers;
#[cfg(test)]
#[path = "../it/halfopen.rs"]
mod halfopen;
#[cfg(test)]
#[path = "../it/hostile.rs"]
mod hostile;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod ladder;
#[cfg(test)]
mod namespace;
#[cfg(test)]
#[path = "../it/narrow.rs"]
mod narrow;
#[cfg(test)]
#[cfg(target_os = "linux")]
#[path = "../interop/place.rs"]
mod place;
#[cfg(test)]
#[path = "../it/relay.rs"]
mod relay;
#[cfg(test)]
#[path = "../it/renewal.rs"]
mod renewal;
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
const BACKEND: tunnel::Backend = tunnel::Backend::Auto;
/// Streams are QUIC where the kernel does not do TCP on both sides.
#[cfg(test)]
const QUIC: bool = true;
