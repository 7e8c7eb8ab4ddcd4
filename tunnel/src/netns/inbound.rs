//! Gathers decrypted packets and merges those of one flow into super-segments (what a network card's receive offload does), so that the kernel's
//! TCP sees one packet of 64 KiB where fifty came. Bounded: when it is full it must be emptied. Pure; nothing is allocated per packet.

use std::io::IoSlice;

use super::sum::pseudo;
use super::virtio::{HEADER_BYTES, Header};

const IP: usize = 40;
const TCP: usize = 20;
/// Room for one datagram and what boringtun wants beside it.
pub(crate) const SLOT_BYTES: usize = 2_048;
/// Packets gathered at most; small enough to stay in the processor's cache.
const SLOTS: usize = 128;
/// Packets merged into one at most.
const RUN_MAX: usize = 60;
/// Flows open for merging at once.
const OPEN_MAX: usize = 8;
/// An IPv6 packet carries no more behind its header.
const PAYLOAD_MAX: usize = 65_535;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// Where the parts of one packet are.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    headers: u16,
    length: u16,
    next: Option<u8>,
}

/// Packets that are handed over as one.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u8,
    last: u8,
    count: u8,
    /// Takes more packets.
    open: bool,
    /// Payload of each packet but the last.
    segment: u16,
    payload: usize,
    next_sequence: u32,
}

/// The gathered packets.
#[derive(Debug)]
pub(crate) struct Inbound {
    bytes: Vec<u8>,
    slots: [Slot; SLOTS],
    used: usize,
    runs: Vec<Run>,
}

impl Inbound {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; SLOTS * SLOT_BYTES],
            slots: [Slot::default(); SLOTS],
            used: 0,
            runs: Vec::with_capacity(SLOTS),
        }
    }

    /// Room for the next packet. When the table is full the last place is given again: the owner has not emptied it.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        let at = self.used.min(SLOTS - 1) * SLOT_BYTES;
        &mut self.bytes[at..at + SLOT_BYTES]
    }

    pub(crate) fn is_full(&self) -> bool {
        self.used >= SLOTS
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Keeps the packet of `length` bytes that was written into [`Inbound::room`]: plain TCP over IPv6. False when it is not one after all.
    pub(crate) fn keep(&mut self, length: usize) -> bool {
        if self.is_full() || length > SLOT_BYTES {
            return false;
        }
        let at = self.used * SLOT_BYTES;
        let packet = &self.bytes[at..at + length];
        let Some(tcp_header) = packet.get(IP + 12).map(|byte| usize::from(byte >> 4) * 4) else {
            return false;
        };
        let headers = IP + tcp_header;
        if tcp_header < TCP || headers > length {
            return false;
        }
        let (Ok(short), Ok(head), Ok(slot)) = (
            u16::try_from(length),
            u16::try_from(headers),
            u8::try_from(self.used),
        ) else {
            return false;
        };
        self.slots[self.used] = Slot {
            headers: head,
            length: short,
            next: None,
        };
        self.used += 1;
        if !self.join(slot, headers, length) {
            self.begin(slot, headers, length);
        }
        true
    }

    fn begin(&mut self, slot: u8, headers: usize, length: usize) {
        let packet = self.packet(slot);
        let payload = length - headers;
        let flags = packet[IP + 13];
        let sequence = sequence(packet);
        self.runs.push(Run {
            first: slot,
            last: slot,
            count: 1,
            open: payload > 0 && flags == ACK,
            segment: u16::try_from(payload).unwrap_or_default(),
            payload,
            next_sequence: sequence.wrapping_add(u32::try_from(payload).unwrap_or_default()),
        });
    }

    /// Puts a packet behind the run that it continues.
    fn join(&mut self, slot: u8, headers: usize, length: usize) -> bool {
        let payload = length - headers;
        let newest = self.runs.len();
        for at in (newest.saturating_sub(OPEN_MAX)..newest).rev() {
            let run = self.runs[at];
            let (first, packet) = (self.packet(run.first), self.packet(slot));
            if !same_flow(first, packet) {
                continue;
            }
            let fits = run.open
                && usize::from(run.count) < RUN_MAX
                && (1..=usize::from(run.segment)).contains(&payload)
                && run.payload + payload + headers <= PAYLOAD_MAX
                && sequence(packet) == run.next_sequence
                && continues(first, packet, headers);
            if !fits {
                // Whatever comes after it must not overtake it.
                self.runs[at].open = false;
                return false;
            }
            let pushes = packet[IP + 13] & PSH;
            let window = [packet[IP + 14], packet[IP + 15]];
            let head = usize::from(run.first) * SLOT_BYTES + IP;
            self.bytes[head + 13] |= pushes;
            self.bytes[head + 14..head + 16].copy_from_slice(&window);
            self.slots[usize::from(run.last)].next = Some(slot);
            let run = &mut self.runs[at];
            run.last = slot;
            run.count += 1;
            run.payload += payload;
            run.next_sequence = run
                .next_sequence
                .wrapping_add(u32::try_from(payload).unwrap_or_default());
            run.open = pushes == 0 && payload == usize::from(run.segment);
            return true;
        }
        false
    }

    /// Hands every packet over, merged, as the pieces that together are one write to the TUN, and is empty afterwards.
    pub(crate) fn empty(&mut self, mut write: impl FnMut(&[IoSlice<'_>])) {
        for at in 0..self.runs.len() {
            let run = self.runs[at];
            let headers = self.slots[usize::from(run.first)].headers;
            self.prepare(run, usize::from(headers));
            let segment = (run.count > 1).then_some(run.segment);
            let virtio = Header::to_bytes(headers, segment);
            let mut pieces = [IoSlice::new(&[]); RUN_MAX + 1];
            pieces[0] = IoSlice::new(&virtio);
            let mut count = 1;
            let mut next = Some(run.first);
            while let Some(slot) = next {
                let known = self.slots[usize::from(slot)];
                let skip = if count == 1 {
                    0
                } else {
                    usize::from(known.headers)
                };
                pieces[count] = IoSlice::new(&self.packet(slot)[skip..]);
                count += 1;
                next = known.next;
            }
            write(&pieces[..count]);
        }
        self.runs.clear();
        self.used = 0;
    }

    /// Makes the first packet's headers those of the whole run.
    fn prepare(&mut self, run: Run, headers: usize) {
        let at = usize::from(run.first) * SLOT_BYTES;
        let tcp_length = headers - IP + run.payload;
        let packet = &mut self.bytes[at..at + headers];
        packet[4..6].copy_from_slice(&u16::try_from(tcp_length).unwrap_or_default().to_be_bytes());
        let sum = pseudo(packet, tcp_length).folded();
        packet[IP + 16..IP + 18].copy_from_slice(&sum.to_be_bytes());
    }

    fn packet(&self, slot: u8) -> &[u8] {
        let at = usize::from(slot) * SLOT_BYTES;
        &self.bytes[at..at + usize::from(self.slots[usize::from(slot)].length)]
    }
}

fn sequence(packet: &[u8]) -> u32 {
    u32::from_be_bytes([
        packet[IP + 4],
        packet[IP + 5],
        packet[IP + 6],
        packet[IP + 7],
    ])
}

fn same_flow(one: &[u8], other: &[u8]) -> bool {
    one[8..IP + 4] == other[8..IP + 4]
}

/// Whether nothing but position, length and checksum differ: traffic class, acknowledgement, options, and no flag but ACK and a last PSH.
fn continues(first: &[u8], packet: &[u8], headers: usize) -> bool {
    first[..4] == packet[..4]
        && first.len() >= headers
        && first[IP + 8..IP + 13] == packet[IP + 8..IP + 13]
        && packet[IP + 13] & !PSH == ACK
        && first[IP + TCP..headers] == packet[IP + TCP..headers]
}

/// Bytes in front of a packet of the TUN.
pub(crate) const FRONT: usize = HEADER_BYTES;

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use proptest::prelude::*;

    use super::super::outbound::{PADDING_ROOM, split};
    use super::super::sum::Sum;
    use super::*;

    const HEADERS: usize = IP + TCP + 12;

    /// A super-segment as the kernel hands it over.
    fn super_segment(payload: &[u8], segment: u16, (port, first): (u16, u32)) -> (Vec<u8>, usize) {
        let mut packet = vec![0; HEADERS];
        packet[0] = 0x60;
        packet[6] = 6;
        packet[7] = 64;
        packet[23] = 1;
        packet[39] = 2;
        packet[IP..IP + 2].copy_from_slice(&port.to_be_bytes());
        packet[IP + 4..IP + 8].copy_from_slice(&first.to_be_bytes());
        packet[IP + 12] = 8 << 4;
        packet[IP + 13] = ACK | PSH;
        packet[IP + TCP..HEADERS].copy_from_slice(&[1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 7]);
        packet.extend(payload);
        let gso = (payload.len() > usize::from(segment)).then_some(segment);
        let mut buffer = Header::to_bytes(u16::try_from(HEADERS).unwrap(), gso).to_vec();
        buffer.extend(packet);
        let length = buffer.len();
        buffer.resize(length + PADDING_ROOM, 0xee);
        (buffer, length)
    }

    /// The packets of a super-segment; the taker pads as the tunnel does.
    fn cut(payload: &[u8], segment: u16, flow: (u16, u32)) -> Vec<Vec<u8>> {
        let (mut buffer, length) = super_segment(payload, segment, flow);
        let mut packets = Vec::new();
        assert!(split(
            &mut buffer,
            (length, usize::from(u16::MAX)),
            |packet, length| {
                packets.push(packet[..length].to_vec());
                packet[length..length.next_multiple_of(16)].fill(0);
                ControlFlow::Continue(())
            }
        ));
        packets
    }

    fn is_summed(packet: &[u8]) -> bool {
        pseudo(packet, packet.len() - IP)
            .add(&packet[IP..])
            .folded()
            == 0xffff
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn what_is_cut_and_merged_again_is_what_it_was(
            payload in proptest::collection::vec(any::<u8>(), 1..60_000),
            segment in 500u16..1_400,
            first in any::<u32>(),
        ) {
            let mut inbound = Inbound::new();
            let mut merged = Vec::new();
            let mut writes = 0;
            let packets = cut(&payload, segment, (7, first));
            for packet in &packets {
                prop_assert!(is_summed(packet));
                prop_assert!(packet.len() <= HEADERS + usize::from(segment));
                if inbound.is_full() {
                    inbound.empty(|_| {});
                }
                inbound.room()[..packet.len()].copy_from_slice(packet);
                prop_assert!(inbound.keep(packet.len()));
            }
            inbound.empty(|pieces| {
                writes += 1;
                let whole: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
                merged.extend_from_slice(&whole[HEADER_BYTES + HEADERS..]);
            });
            if packets.len() <= RUN_MAX {
                prop_assert_eq!(writes, 1);
            }
            if packets.len() <= SLOTS {
                prop_assert!(merged == payload);
            }
        }

        #[test]
        fn flows_that_alternate_stay_apart_and_in_order(
            sizes in proptest::collection::vec((0u16..3, 1usize..1_200), 1..100),
        ) {
            let mut inbound = Inbound::new();
            let mut sent: [Vec<u8>; 3] = Default::default();
            let mut next = [0u32; 3];
            for (number, (port, size)) in sizes.iter().enumerate() {
                let at = usize::from(*port);
                let payload = vec![u8::try_from(number).unwrap(); *size];
                let packet = cut(&payload, 1_400, (*port, next[at])).remove(0);
                next[at] += u32::try_from(*size).unwrap();
                sent[at].extend(&payload);
                inbound.room()[..packet.len()].copy_from_slice(&packet);
                prop_assert!(inbound.keep(packet.len()));
            }
            let mut got: [Vec<u8>; 3] = Default::default();
            inbound.empty(|pieces| {
                let whole: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
                let packet = &whole[HEADER_BYTES..];
                let port = usize::from(u16::from_be_bytes([packet[IP], packet[IP + 1]]));
                got[port].extend(&packet[HEADERS..]);
            });
            prop_assert!(got == sent);
        }

        #[test]
        fn no_packet_makes_it_panic(packet in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut inbound = Inbound::new();
            inbound.room()[..packet.len()].copy_from_slice(&packet);
            let _kept = inbound.keep(packet.len());
            inbound.empty(|_| {});
            let length = packet.len();
            let mut buffer = packet;
            buffer.resize(length + PADDING_ROOM, 0);
            let _plain = split(&mut buffer, (length, 1_280), |_, _| ControlFlow::Continue(()));
            let sum = Sum::default().add(&buffer).folded();
            prop_assert_eq!(sum, Sum::default().add(&buffer).folded());
        }
    }
}
