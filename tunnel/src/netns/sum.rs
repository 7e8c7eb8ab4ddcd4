//! The Internet checksum (RFC 1071) over what is sent. Pure.

/// The sum so far, not folded. Only its last piece may have an odd length.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum(u64);

impl Sum {
    /// Adds bytes as big-endian 16-bit words; an odd one at the end counts as the upper half.
    #[must_use]
    pub(super) fn add(self, bytes: &[u8]) -> Self {
        // Native words, many at a time: byte order only swaps the folded result (RFC 1071, section 2).
        let mut lanes = [0u64; 8];
        let mut chunks = bytes.chunks_exact(32);
        for chunk in &mut chunks {
            for (lane, word) in lanes.iter_mut().zip(chunk.chunks_exact(4)) {
                *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
            }
        }
        let mut native: u64 = lanes.iter().sum();
        for pair in chunks.remainder().chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            native += u64::from(u16::from_ne_bytes([pair[0], low]));
        }
        Self(self.0 + u64::from(u16::from_be_bytes(fold(native).to_ne_bytes())))
    }

    /// Adds one number.
    #[must_use]
    pub(super) fn add_number(self, number: u32) -> Self {
        Self(self.0 + u64::from(number))
    }

    /// The folded sum, not inverted.
    pub(super) fn folded(self) -> u16 {
        fold(self.0)
    }

    /// What stands in a header: the inverted sum.
    pub(super) fn checksum(self) -> u16 {
        !self.folded()
    }
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or_default()
}

/// The sum over the pseudo-header of a TCP segment of `length` bytes in an IPv6 packet.
pub(super) fn pseudo(ip: &[u8], length: usize) -> Sum {
    let addresses = ip.get(8..40).unwrap_or_default();
    Sum::default()
        .add(addresses)
        .add_number(u32::try_from(length).unwrap_or_default())
        .add_number(6)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the RFC has it, word by word.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_rfc(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let fast = Sum::default().add(&bytes).folded();
            prop_assert_eq!(fast, plain(&bytes));
        }
    }
}
