//! The tunnel from outside: real sockets on loopback, real time.

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod relay;
#[cfg(test)]
mod sessions;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod support;
