//! Cuts what the kernel hands over in one piece (TCP segmentation offload) into packets that fit the overlay, in place: each packet's header is
//! written over the end of the one before it, which has left by then. Pure; nothing is allocated.

use std::ops::ControlFlow;

use super::sum::pseudo;
use super::virtio::{HEADER_BYTES, Header};

const IP: usize = 40;
const TCP: usize = 20;
const TCP_HEADER_MAX: usize = 60;
/// A packet may be padded by its taker within this much room behind it.
pub(crate) const PADDING_ROOM: usize = 16;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Hands every packet of `buffer[..length]` (virtio header first) to `take`: a slice that begins with the packet, and the packet's length.
/// No packet is larger than `limit`.
/// What lies behind the packet may be overwritten up to [`PADDING_ROOM`] bytes; it is put back. False: not plain TCP over IPv6.
pub(crate) fn split(
    buffer: &mut [u8],
    (length, limit): (usize, usize),
    mut take: impl FnMut(&mut [u8], usize) -> ControlFlow<()>,
) -> bool {
    if buffer.len() < length + PADDING_ROOM {
        return false;
    }
    let Some(header) = Header::parse(buffer) else {
        return false;
    };
    let Some(length) = length.checked_sub(HEADER_BYTES) else {
        return false;
    };
    let packet = &mut buffer[HEADER_BYTES..];
    if length < IP + TCP || packet[0] >> 4 != 6 || packet[6] != 6 {
        return false;
    }
    let tcp_header = usize::from(packet[IP + 12] >> 4) * 4;
    let headers = IP + tcp_header;
    if tcp_header < TCP || length < headers {
        return false;
    }
    // The kernel knows the device; what the path to this peer carries may be less.
    let payload_max = limit.saturating_sub(headers).max(1);
    let size = header
        .segment
        .map_or(payload_max, |size| usize::from(size).min(payload_max));
    match length - headers {
        payload if payload > size => cut(packet, (headers, length), size, take),
        _ => {
            if header.needs_checksum {
                finish(&mut packet[..length]);
            }
            // The buffer is only padding behind the packet.
            let _ = take(packet, length);
        }
    }
    true
}

/// Cuts one TCP packet, `buffer[..length]`, into packets of at most `limit` bytes. `buffer` has [`PADDING_ROOM`] behind it. What is no TCP packet
/// is handed over as it is.
pub(crate) fn cut_to(
    buffer: &mut [u8],
    length: usize,
    limit: usize,
    mut take: impl FnMut(&mut [u8], usize),
) {
    let headers = buffer
        .get(IP + 12)
        .map_or(0, |byte| IP + usize::from(byte >> 4) * 4);
    let is_cut = headers >= IP + TCP
        && headers < length.min(limit)
        && length > limit
        && buffer.len() >= length + PADDING_ROOM;
    if !is_cut {
        take(buffer, length);
        return;
    }
    cut(
        buffer,
        (headers, length),
        limit - headers,
        |piece, length| {
            take(piece, length);
            ControlFlow::Continue(())
        },
    );
}

fn cut(
    packet: &mut [u8],
    (headers, length): (usize, usize),
    size: usize,
    mut take: impl FnMut(&mut [u8], usize) -> ControlFlow<()>,
) {
    let mut model = [0u8; IP + TCP_HEADER_MAX];
    model[..headers].copy_from_slice(&packet[..headers]);
    let model = &mut model[..headers];
    let flags = model[IP + 13];
    let first = u32::from_be_bytes([model[IP + 4], model[IP + 5], model[IP + 6], model[IP + 7]]);
    let mut at = headers;
    while at < length {
        let payload = size.min(length - at);
        let is_last = at + payload == length;
        let done = u32::try_from(at - headers).unwrap_or_default();
        let tcp_length = headers - IP + payload;
        model[4..6].copy_from_slice(&u16::try_from(tcp_length).unwrap_or_default().to_be_bytes());
        model[IP + 4..IP + 8].copy_from_slice(&first.wrapping_add(done).to_be_bytes());
        let mut own = flags;
        if !is_last {
            own &= !(FIN | PSH);
        }
        if done > 0 {
            own &= !CWR;
        }
        model[IP + 13] = own;
        let begin = at - headers;
        packet[begin..at].copy_from_slice(model);
        let whole = headers + payload;
        finish(&mut packet[begin..begin + whole]);
        let behind = begin + whole;
        let mut kept = [0u8; PADDING_ROOM];
        kept.copy_from_slice(&packet[behind..behind + PADDING_ROOM]);
        if take(&mut packet[begin..], whole).is_break() {
            return;
        }
        packet[behind..behind + PADDING_ROOM].copy_from_slice(&kept);
        at += payload;
    }
}

/// Writes the TCP checksum.
fn finish(packet: &mut [u8]) {
    let (ip, tcp) = packet.split_at_mut(IP);
    tcp[16..18].fill(0);
    let sum = pseudo(ip, tcp.len()).add(tcp).checksum();
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
}
