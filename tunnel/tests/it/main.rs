//! The tunnel from outside: real sockets on loopback, real time.

#[cfg(test)]
mod carriers;
#[cfg(test)]
mod flood;
#[cfg(test)]
mod halfopen;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod narrow;
#[cfg(test)]
mod quic;
#[cfg(test)]
mod relay;
#[cfg(test)]
mod renewal;
#[cfg(test)]
mod sessions;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod support;

/// Who does TCP in these tests.
#[cfg(test)]
const BACKEND: tunnel::Backend = tunnel::Backend::Embedded;
/// Streams are QUIC where the kernel does not do TCP on both sides.
#[cfg(test)]
const QUIC: bool = true;
