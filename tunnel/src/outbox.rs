//! Datagrams waiting for the socket, packed so that one system call sends many (UDP GSO).
//!
//! A batch goes to one destination; all its segments have the same size but the last, which may be
//! shorter. The outbox never touches a socket.

use std::collections::VecDeque;

use crate::path::Path;

/// Largest UDP payload one send may carry, with room for the headers.
const BATCH_BYTES: usize = 65_000;
/// The kernel's own bound on segments per send (`UDP_MAX_SEGMENTS`, 64 before Linux 6.9).
const SEGMENTS_MAX: usize = 64;
/// Emptied buffers kept for reuse.
const SPARES_MAX: usize = 32;
/// Batches after which producers should stop and let the driver send.
const BATCHES_SOFT_MAX: usize = 16;
/// The longest handshake message; boringtun insists on this much room in every buffer.
pub(crate) const ROOM_MIN: usize = 148;

/// Datagrams to one destination, sent by one system call.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) destination: Path,
    /// Size of every datagram in the batch but the last.
    pub(crate) segment: usize,
    buffer: Vec<u8>,
    used: usize,
    count: usize,
    sealed: bool,
}

impl Batch {
    pub(crate) fn contents(&self) -> &[u8] {
        &self.buffer[..self.used]
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    fn takes(&self, destination: Path, len: usize, segments_max: usize) -> bool {
        !self.sealed
            && self.destination == destination
            && len <= self.segment
            && self.count < segments_max
            && self.used + len.max(ROOM_MIN) <= self.buffer.len()
    }
}

/// The queue of batches.
#[derive(Debug)]
pub(crate) struct Outbox {
    batches: VecDeque<Batch>,
    spares: Vec<Vec<u8>>,
    segments_max: usize,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self {
            batches: VecDeque::new(),
            spares: Vec::new(),
            segments_max: 1,
        }
    }

    /// Says how many segments the socket takes per send; 1 turns batching off.
    pub(crate) fn set_segments_max(&mut self, segments: usize) {
        self.segments_max = segments.clamp(1, SEGMENTS_MAX);
    }

    /// Whether producers should pause until the driver has sent something.
    pub(crate) fn is_full(&self) -> bool {
        self.batches.len() >= BATCHES_SOFT_MAX
    }

    /// Queues the datagram that `fill` writes. `len` is its expected length; `fill` gets at least
    /// that much room, never less than [`ROOM_MIN`], and returns what it wrote (0 = nothing).
    pub(crate) fn push(
        &mut self,
        destination: Path,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) {
        if len > BATCH_BYTES - ROOM_MIN {
            return;
        }
        let segments_max = self.segments_max;
        let fits = self
            .batches
            .back()
            .is_some_and(|batch| batch.takes(destination, len, segments_max));
        if !fits {
            self.open(destination, len);
        }
        let Some(batch) = self.batches.back_mut() else {
            return;
        };
        let written = fill(&mut batch.buffer[batch.used..]);
        if written == 0 {
            if batch.count == 0
                && let Some(empty) = self.batches.pop_back()
            {
                self.recycle(empty);
            }
            return;
        }
        if batch.count == 0 {
            batch.segment = written;
        } else if written > batch.segment {
            // Longer than announced: it cannot end a batch of shorter segments.
            let datagram = batch.buffer[batch.used..batch.used + written].to_vec();
            batch.sealed = true;
            self.push_copy(destination, &datagram);
            return;
        }
        batch.sealed = written != batch.segment;
        batch.used += written;
        batch.count += 1;
    }

    /// Queues a datagram that already exists.
    pub(crate) fn push_copy(&mut self, destination: Path, datagram: &[u8]) {
        self.push(destination, datagram.len(), |room| {
            room[..datagram.len()].copy_from_slice(datagram);
            datagram.len()
        });
    }

    /// Takes the oldest batch.
    pub(crate) fn pop(&mut self) -> Option<Batch> {
        self.batches.pop_front()
    }

    /// Gives a sent batch's buffer back for reuse.
    pub(crate) fn recycle(&mut self, batch: Batch) {
        if self.spares.len() < SPARES_MAX {
            self.spares.push(batch.buffer);
        }
    }

    fn open(&mut self, destination: Path, len: usize) {
        let buffer = self.spares.pop().unwrap_or_else(|| vec![0; BATCH_BYTES]);
        self.batches.push_back(Batch {
            destination,
            segment: len,
            buffer,
            used: 0,
            count: 0,
            sealed: false,
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn to(port: u16) -> Path {
        Path::Udp(([127, 0, 0, 1], port).into())
    }

    fn split(batch: &Batch) -> Vec<Vec<u8>> {
        batch
            .contents()
            .chunks(batch.segment)
            .map(<[u8]>::to_vec)
            .collect()
    }

    #[test]
    fn equal_datagrams_share_a_batch_and_a_short_one_ends_it() {
        let mut outbox = Outbox::new();
        outbox.set_segments_max(64);
        for len in [1000, 1000, 400, 400] {
            outbox.push_copy(to(1), &vec![1; len]);
        }
        let first = outbox.pop().unwrap();
        assert_eq!((first.count(), first.segment), (3, 1000));
        let second = outbox.pop().unwrap();
        assert_eq!((second.count(), second.segment), (1, 400));
        assert!(outbox.pop().is_none());
    }

    proptest! {
        #[test]
        fn splitting_batches_gives_back_every_datagram_in_order(
            datagrams in proptest::collection::vec((1u16..4, 1usize..2000), 0..200),
            segments_max in 0usize..100,
        ) {
            let mut outbox = Outbox::new();
            outbox.set_segments_max(segments_max);
            for (number, (port, len)) in datagrams.iter().enumerate() {
                outbox.push_copy(to(*port), &vec![u8::try_from(number % 251).unwrap(); *len]);
            }
            let mut seen = Vec::new();
            while let Some(batch) = outbox.pop() {
                prop_assert!(batch.contents().len() <= BATCH_BYTES);
                prop_assert!(batch.count() <= SEGMENTS_MAX.min(segments_max.max(1)));
                for datagram in split(&batch) {
                    let port = batch.destination.source().port();
                    seen.push((port, datagram.len(), datagram[0]));
                }
                outbox.recycle(batch);
            }
            let expected: Vec<_> = datagrams
                .iter()
                .enumerate()
                .map(|(number, (port, len))| (*port, *len, u8::try_from(number % 251).unwrap()))
                .collect();
            prop_assert_eq!(seen, expected);
        }
    }
}
