//! What peers have been sent and have sent before they were forgotten, so that a counter that somebody reads never goes back when a
//! peer leaves and comes again. Bounded: beyond that, the oldest account is closed for good.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv6Addr;

/// Overlay bytes received and sent.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Bytes {
    pub(super) rx: u64,
    pub(super) tx: u64,
}

/// The accounts of forgotten peers.
#[derive(Debug)]
pub(super) struct Ledger {
    accounts: HashMap<Ipv6Addr, Bytes>,
    /// In the order in which they were closed; may name some that were opened again.
    order: VecDeque<Ipv6Addr>,
    max: usize,
}

impl Ledger {
    pub(super) fn new(max: usize) -> Self {
        Self {
            accounts: HashMap::new(),
            order: VecDeque::new(),
            max,
        }
    }

    /// Keeps a peer's account.
    pub(super) fn close(&mut self, address: Ipv6Addr, bytes: Bytes) {
        if bytes == Bytes::default() {
            return;
        }
        while self.order.len() >= self.max {
            if let Some(oldest) = self.order.pop_front() {
                self.accounts.remove(&oldest);
            }
        }
        if self.accounts.insert(address, bytes).is_none() {
            self.order.push_back(address);
        }
    }

    /// What to go on with.
    pub(super) fn open(&mut self, address: Ipv6Addr) -> Bytes {
        let Some(bytes) = self.accounts.remove(&address) else {
            return Bytes::default();
        };
        self.order.retain(|known| *known != address);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_goes_on_and_the_oldest_is_closed_for_good() {
        let address = |number| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number);
        let mut ledger = Ledger::new(2);
        for number in 1..=3 {
            let rx = u64::from(number);
            ledger.close(address(number), Bytes { rx, tx: 7 });
        }
        assert_eq!(ledger.open(address(1)), Bytes::default(), "the oldest");
        assert_eq!(ledger.open(address(3)), Bytes { rx: 3, tx: 7 });
        assert_eq!(ledger.open(address(3)), Bytes::default(), "opened once");
        assert_eq!(ledger.order.len(), 1);
    }
}
