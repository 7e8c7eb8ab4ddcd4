//! What is cut and what is merged, looked at by somebody else: every packet is taken apart and summed here as the RFCs have it, with nothing of the code
//! that made it.

use std::io::IoSlice;
use std::ops::ControlFlow;

use proptest::prelude::*;

use super::{FRONT, Inbound, PADDING_ROOM, SLOT_BYTES, split};

const IP: usize = 40;
const TCP: usize = 20;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// A TCP packet over IPv6, part by part.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Parts {
    /// Version, traffic class and flow label.
    first: [u8; 4],
    hops: u8,
    ends: [u8; 32],
    ports: [u8; 4],
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    window: u16,
    urgent: [u8; 2],
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Parts {
    /// RFC 8200, section 3, and RFC 9293, section 3.1. The checksum is left to the reader.
    fn read(packet: &[u8]) -> Self {
        assert!(packet.len() >= IP + TCP, "{} bytes", packet.len());
        assert_eq!(packet[0] >> 4, 6);
        let length = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
        assert_eq!(length, packet.len() - IP, "the payload's length");
        assert_eq!(packet[6], 6, "TCP");
        let tcp = &packet[IP..];
        let header = usize::from(tcp[12] >> 4) * 4;
        let number = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
        Self {
            first: packet[..4].try_into().unwrap(),
            hops: packet[7],
            ends: packet[8..40].try_into().unwrap(),
            ports: tcp[..4].try_into().unwrap(),
            sequence: number(4),
            acknowledged: number(8),
            flags: tcp[13],
            window: u16::from_be_bytes([tcp[14], tcp[15]]),
            urgent: [tcp[18], tcp[19]],
            options: tcp[TCP..header].to_vec(),
            payload: tcp[header..].to_vec(),
        }
    }

    /// With this in the place of the checksum.
    fn write(&self, sum: u16) -> Vec<u8> {
        let header = TCP + self.options.len();
        let length = u16::try_from(header + self.payload.len()).unwrap_or_default();
        let mut packet = self.first.to_vec();
        packet.extend(length.to_be_bytes());
        packet.extend([6, self.hops]);
        packet.extend(self.ends);
        packet.extend(self.ports);
        packet.extend(self.sequence.to_be_bytes());
        packet.extend(self.acknowledged.to_be_bytes());
        packet.extend([u8::try_from(header / 4).unwrap() << 4, self.flags]);
        packet.extend(self.window.to_be_bytes());
        packet.extend(sum.to_be_bytes());
        packet.extend(self.urgent);
        packet.extend(&self.options);
        packet.extend(&self.payload);
        packet
    }
}

/// The one's complement sum of the pseudo-header (RFC 8200, section 8.1) and what is behind the IPv6 header, word by word.
fn summed(packet: &[u8]) -> u16 {
    let (ip, tcp) = packet.split_at(IP);
    let mut bytes = ip[8..].to_vec();
    bytes.extend(u32::try_from(tcp.len()).unwrap().to_be_bytes());
    bytes.extend([0, 0, 0, 6]);
    bytes.extend(tcp);
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// The sum of the pseudo-header alone.
fn begun(packet: &[u8]) -> u16 {
    let mut only = packet[..IP].to_vec();
    let length = u32::try_from(packet.len() - IP).unwrap();
    let mut bytes = only.split_off(8);
    bytes.extend(length.to_be_bytes());
    bytes.extend([0, 0, 0, 6]);
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
}

fn parts() -> impl Strategy<Value = Parts> {
    let head = (
        any::<[u8; 3]>(),
        any::<u8>(),
        any::<[u8; 32]>(),
        any::<[u8; 4]>(),
    );
    let tcp = (
        any::<u32>(),
        any::<u32>(),
        prop_oneof![
            Just(ACK),
            Just(ACK | PSH),
            Just(ACK | FIN),
            Just(ACK | PSH | FIN),
            Just(ACK | CWR),
            Just(ACK | ECE | CWR | PSH)
        ],
        any::<u16>(),
        (0usize..=10).prop_flat_map(|words| proptest::collection::vec(any::<u8>(), words * 4)),
    );
    (head, tcp).prop_map(
        |((label, hops, ends, ports), (sequence, acknowledged, flags, window, options))| Parts {
            first: [0x60 | label[0] >> 4, label[0], label[1], label[2]],
            hops,
            ends,
            ports,
            sequence,
            acknowledged,
            flags,
            window,
            urgent: [0, 0],
            options,
            payload: Vec::new(),
        },
    )
}

/// As the kernel hands it over: virtio header, packet with a begun checksum, room behind it.
fn from_kernel(whole: &Parts, segment: Option<u16>) -> (Vec<u8>, usize) {
    let unsummed = whole.write(0);
    let packet = whole.write(begun(&unsummed));
    let headers = u16::try_from(packet.len() - whole.payload.len()).unwrap();
    let mut buffer = vec![1, if segment.is_some() { 4 } else { 0 }];
    buffer.extend(headers.to_ne_bytes());
    buffer.extend(segment.unwrap_or_default().to_ne_bytes());
    buffer.extend(40u16.to_ne_bytes());
    buffer.extend(16u16.to_ne_bytes());
    buffer.extend(packet);
    let length = buffer.len();
    buffer.resize(length + PADDING_ROOM, 0xee);
    (buffer, length)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_packet_that_was_cut_is_whole_and_all_of_them_are_what_was_sent(
        head in parts(),
        payload in proptest::collection::vec(any::<u8>(), 1..40_000),
        segment in proptest::option::of(200u16..1_440),
        limit in 1_200usize..1_500,
    ) {
        let whole = Parts { payload, ..head };
        let (mut buffer, length) = from_kernel(&whole, segment);
        let mut packets: Vec<Vec<u8>> = Vec::new();
        let is_cut = split(&mut buffer, (length, limit), |packet, length| {
            packets.push(packet[..length].to_vec());
            // The taker pads in place.
            packet[length..length.next_multiple_of(16)].fill(0x55);
            ControlFlow::Continue(())
        });
        prop_assert!(is_cut);
        let mut sent = Vec::new();
        let last = packets.len() - 1;
        for (number, packet) in packets.iter().enumerate() {
            prop_assert_eq!(summed(packet), 0xffff, "the sum of packet {}", number);
            prop_assert!(packet.len() <= limit);
            let got = Parts::read(packet);
            let mut flags = whole.flags;
            if number < last {
                flags &= !(FIN | PSH);
                let full = Parts::read(&packets[0]).payload.len();
                prop_assert_eq!(got.payload.len(), full, "all but the last are full");
            }
            if number > 0 {
                flags &= !CWR;
            }
            if let Some(segment) = segment {
                prop_assert!(got.payload.len() <= usize::from(segment));
            }
            let sequence = whole.sequence.wrapping_add(u32::try_from(sent.len()).unwrap());
            sent.extend_from_slice(&got.payload);
            let expected = Parts { sequence, flags, payload: got.payload.clone(), ..whole.clone() };
            prop_assert!(got == expected, "packet {}", number);
        }
        prop_assert!(sent == whole.payload, "bytes");
    }

    #[test]
    fn headers_that_lie_cut_nothing_that_is_too_large_and_break_nothing(
        head in parts(),
        payload in 0usize..3_000,
        virtio in any::<[u8; 10]>(),
        lies in proptest::collection::vec((0usize..80, any::<u8>()), 0..6),
        cut_off in 0usize..200,
        limit in 1_200usize..1_500,
    ) {
        let whole = Parts { payload: vec![7; payload], ..head };
        let (mut buffer, length) = from_kernel(&whole, None);
        if virtio[0] % 2 == 0 {
            buffer[..10].copy_from_slice(&virtio);
        } else {
            // Plausible but for its size.
            buffer[1] = 4;
            buffer[4..6].copy_from_slice(&virtio[4..6]);
        }
        for (at, byte) in lies {
            if let Some(one) = buffer.get_mut(at) {
                *one = byte;
            }
        }
        let length = length.saturating_sub(cut_off);
        let mut carried = 0;
        let mut largest = 0;
        let is_cut = split(&mut buffer, (length, limit), |packet, length| {
            carried += length;
            largest = largest.max(length);
            packet[length..length.next_multiple_of(16)].fill(0);
            ControlFlow::Continue(())
        });
        prop_assert!(largest <= limit, "{} of {}", largest, limit);
        prop_assert!(is_cut || carried == 0);
    }
}

/// One packet of a flow, and how it differs from what went before.
#[derive(Clone, Debug)]
struct Next {
    flow: usize,
    size: usize,
    change: u8,
}

fn next() -> impl Strategy<Value = Next> {
    (
        0usize..3,
        prop_oneof![Just(1_000usize), 0usize..1_200],
        0u8..24,
    )
        .prop_map(|(flow, size, change)| Next { flow, size, change })
}

/// Three flows of packets with what may happen in one: another window, acknowledgement or option, a gap, a push, an end, a mark.
fn packets(story: &[Next]) -> Vec<Parts> {
    let mut flows: Vec<Parts> = (0..3u8)
        .map(|flow| Parts {
            first: [0x60, 0, 0, 0],
            hops: 64,
            ends: [9; 32],
            ports: [0, 80, 1, flow],
            sequence: u32::MAX - 3_000,
            acknowledged: 1,
            flags: ACK,
            window: 100,
            urgent: [0, 0],
            options: vec![1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 7],
            payload: Vec::new(),
        })
        .collect();
    let mut all = Vec::new();
    for (number, next) in story.iter().enumerate() {
        let flow = &mut flows[next.flow];
        flow.flags = ACK;
        match next.change {
            0 => flow.window = flow.window.wrapping_add(7),
            1 => flow.acknowledged = flow.acknowledged.wrapping_add(100),
            2 => flow.options[7] = flow.options[7].wrapping_add(1),
            3 => flow.sequence = flow.sequence.wrapping_add(1_448),
            4 => flow.flags |= PSH,
            5 => flow.flags |= FIN,
            6 => flow.flags |= ECE,
            7 => flow.first[1] ^= 0x10,
            8 => flow.hops -= 1,
            9 => flow.sequence = flow.sequence.wrapping_sub(500),
            _ => {}
        }
        flow.payload = vec![u8::try_from(number % 251).unwrap(); next.size];
        all.push(flow.clone());
        flow.sequence = flow
            .sequence
            .wrapping_add(u32::try_from(next.size).unwrap());
    }
    all
}

/// Takes apart what was written, as the kernel's own segmentation does: the inverse, by somebody else.
fn taken_apart(pieces: &[IoSlice<'_>]) -> Vec<Parts> {
    let whole: Vec<u8> = pieces.iter().flat_map(|one| one.iter().copied()).collect();
    let (virtio, packet) = whole.split_at(FRONT);
    let number = |at: usize| u16::from_ne_bytes([virtio[at], virtio[at + 1]]);
    assert_eq!(virtio[0], 1, "the sum is only begun");
    assert_eq!((number(6), number(8)), (40, 16), "where it is");
    let got = Parts::read(packet);
    let headers = packet.len() - got.payload.len();
    assert_eq!(usize::from(number(2)), headers, "the headers' length");
    // What the device would do with it.
    let mut full = packet.to_vec();
    assert_eq!(u16::from_be_bytes([full[56], full[57]]), begun(packet));
    let unsummed = {
        full[56..58].fill(0);
        summed(&full)
    };
    full[56..58].copy_from_slice(&(!unsummed).to_be_bytes());
    assert_eq!(summed(&full), 0xffff);
    if virtio[1] == 0 {
        return vec![got];
    }
    assert_eq!(virtio[1], 4, "TCP over IPv6");
    let segment = usize::from(number(4));
    let count = got.payload.len().div_ceil(segment);
    assert!(count > 1, "one packet is no super-segment");
    let cut = got.payload.chunks(segment).enumerate();
    cut.map(|(at, payload)| Parts {
        sequence: got
            .sequence
            .wrapping_add(u32::try_from(at * segment).unwrap()),
        flags: if at + 1 < count {
            got.flags & !(PSH | FIN)
        } else {
            got.flags
        },
        payload: payload.to_vec(),
        ..got.clone()
    })
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn what_was_merged_falls_apart_into_what_came_and_in_its_order(
        story in proptest::collection::vec(next(), 1..120),
    ) {
        let came = packets(&story);
        let mut inbound = Inbound::new();
        for one in &came {
            let packet = one.write(0xabcd);
            prop_assert!(packet.len() <= SLOT_BYTES);
            inbound.room()[..packet.len()].copy_from_slice(&packet);
            prop_assert!(inbound.keep(packet.len()));
        }
        let mut apart = Vec::new();
        inbound.empty(|pieces| apart.extend(taken_apart(pieces)));
        prop_assert!(inbound.is_empty());
        for flow in 0..3u8 {
            let of = |all: &[Parts]| -> Vec<Parts> {
                // Of several windows in one piece the last is the one that counts, and nobody inside counts hops.
                let own = all.iter().filter(|one| one.ports[3] == flow);
                own.map(|one| Parts { window: 0, hops: 0, ..one.clone() }).collect()
            };
            prop_assert!(of(&apart) == of(&came), "flow {}", flow);
            let last = |all: &[Parts]| {
                let own = all.iter().rfind(|one| one.ports[3] == flow);
                own.map(|one| one.window)
            };
            prop_assert_eq!(last(&apart), last(&came));
        }
    }
}
