//! Source ports for outgoing connections.

/// The first port ever used as a source; below are the services.
const FIRST: u16 = 16_384;
const COUNT: u32 = 65_536 - FIRST as u32;

/// Hands out ports in order, from a random start. A port comes again only after all the others
/// did: the other side may still remember a recent connection from it and refuse a new one.
#[derive(Debug)]
pub(crate) struct Ports {
    next: u32,
}

impl Ports {
    pub(crate) fn new(random: u32) -> Self {
        Self {
            next: random % COUNT,
        }
    }

    /// The next port for which `is_free` holds.
    pub(crate) fn take(&mut self, is_free: impl Fn(u16) -> bool) -> Option<u16> {
        for _ in 0..COUNT {
            let port = FIRST + u16::try_from(self.next).unwrap_or(0);
            self.next = (self.next + 1) % COUNT;
            if is_free(port) {
                return Some(port);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_port_is_not_reused_before_all_others_were() {
        let mut ports = Ports::new(u32::MAX);
        let seen: HashSet<u16> = (0..COUNT).filter_map(|_| ports.take(|_| true)).collect();
        assert_eq!(seen.len(), COUNT as usize);
        assert!(seen.iter().all(|port| *port >= FIRST));
    }

    #[test]
    fn a_port_in_use_is_skipped_and_none_left_is_said() {
        let mut ports = Ports::new(0);
        assert_eq!(ports.take(|port| port == 40_000), Some(40_000));
        assert_eq!(ports.take(|_| false), None);
    }
}
