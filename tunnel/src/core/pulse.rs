//! A sign of life inside the tunnel: `ICMPv6` echo (RFC 4443, section 4) with one peer. The tunnel answers it itself, so the answer says that
//! the machine and this process still run, whatever TCP is waiting for; a kernel's WireGuard answers it too. Decides nothing: who is
//! dead is for the owner of the tunnel to say. Echoes padded to a size tell what the path carries; [`super::pmtu`] decides about that.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use crate::drops::DropReason;
use crate::outbox::Outbox;
use crate::settings::MTU_MAX;
use crate::wg::session::{Plain, Session};

const IPV6_HEADER_BYTES: usize = 40;
/// Type, code, checksum, identifier, sequence number.
const ICMP_HEADER_BYTES: usize = 8;
/// When it was asked, in nanoseconds since the peer was added.
const STAMP_BYTES: usize = 8;
const REQUEST_BYTES: usize = IPV6_HEADER_BYTES + ICMP_HEADER_BYTES + STAMP_BYTES;
const ICMPV6: u8 = 58;
const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;
/// Marks a sign of life; of no meaning but to recognise our own.
const PULSE: [u8; 2] = [0x48, 0x54];
/// Marks an echo that measures how wide the path is.
const WIDTH: [u8; 2] = [0x48, 0x57];
/// However many ask, a peer is asked no more often.
const ASK_EVERY: Duration = Duration::from_millis(10);
/// An answer later than this says nothing about the path.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Echoes that the loss is made of.
const REMEMBERED: u16 = 64;
/// An answer that is this many questions late is lost.
const LATE_MAX: u16 = 4;

/// What became of the last echoes.
#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    /// Echoes asked so far.
    asked: u64,
    /// Up to which it is known what became of them.
    settled: u64,
    /// Of the last 64 up to `settled`, the lowest bit being the last: which were answered.
    bits: u64,
}

impl Answers {
    /// Notes a question; its number goes into the packet.
    fn ask(&mut self) -> u16 {
        self.asked += 1;
        self.settle(self.asked.saturating_sub(u64::from(LATE_MAX)));
        number(self.asked)
    }

    /// Notes an answer to the question with this number.
    fn answered(&mut self, number_of: u16) {
        let late = number(self.asked).wrapping_sub(number_of);
        let Some(question) = self.asked.checked_sub(u64::from(late)).filter(|at| *at > 0) else {
            return;
        };
        self.settle(question);
        let age = self.settled - question;
        if age < u64::from(REMEMBERED) {
            self.bits |= 1 << age;
        }
    }

    fn settle(&mut self, up_to: u64) {
        let more = up_to.saturating_sub(self.settled);
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        self.bits = self.bits.checked_shl(more).unwrap_or(0);
        self.settled = self.settled.max(up_to);
    }

    /// Lost of the last 64, per mille; `None` before the first.
    fn loss_per_mille(&self) -> Option<u16> {
        let count = self.settled.min(u64::from(REMEMBERED));
        let lost = count.checked_sub(u64::from(self.bits.count_ones()))?;
        (lost * 1_000)
            .checked_div(count)
            .and_then(|lost| u16::try_from(lost).ok())
    }
}

/// A question's number on the wire.
fn number(question: u64) -> u16 {
    let [low, high, ..] = question.to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// What is known of one peer's pulse.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pulse {
    began: Instant,
    asked_at: Option<Instant>,
    round_trip: Option<Duration>,
    answers: Answers,
}

impl Pulse {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            began: now,
            asked_at: None,
            round_trip: None,
            answers: Answers::default(),
        }
    }

    /// The way there and back: follows a longer one at once and a shorter one slowly. `None` until the first answer.
    pub(crate) const fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Echoes lost of the last 64, per mille; `None` until the fate of one is known.
    pub(crate) fn loss_per_mille(&self) -> Option<u16> {
        self.answers.loss_per_mille()
    }

    /// Whether somebody has asked since then.
    pub(crate) fn is_asked_since(&self, then: Instant) -> bool {
        self.asked_at.is_some_and(|at| at >= then)
    }

    /// Asks for an answer, unless that was done a moment ago.
    pub(crate) fn ask(
        &mut self,
        session: &mut Session,
        own: Ipv6Addr,
        (outbox, now): (&mut Outbox, Instant),
    ) {
        let is_asked = |at: Instant| now.duration_since(at) < ASK_EVERY;
        if self.asked_at.is_some_and(is_asked) {
            return;
        }
        if !session.is_established() {
            return;
        }
        self.asked_at = Some(now);
        let question = self.answers.ask();
        let echo = Echo {
            round: question,
            size: REQUEST_BYTES,
        };
        self.send(session, (own, PULSE), echo, (outbox, now));
    }

    /// Sends an echo padded to a size, to learn how wide the path is; whoever asked knows it again by its round. It is no sign of life: whether it
    /// comes back says nothing about loss.
    pub(crate) fn measure(
        &self,
        session: &mut Session,
        own: Ipv6Addr,
        echo: Echo,
        out: (&mut Outbox, Instant),
    ) {
        self.send(session, (own, WIDTH), echo, out);
    }

    fn send(
        &self,
        session: &mut Session,
        (own, identifier): (Ipv6Addr, [u8; 2]),
        echo: Echo,
        (outbox, now): (&mut Outbox, Instant),
    ) {
        let stamp = u64::try_from(now.duration_since(self.began).as_nanos()).unwrap_or(u64::MAX);
        let mut scratch = [0; MTU_MAX.next_multiple_of(16)];
        let length = echo.size.clamp(REQUEST_BYTES, MTU_MAX);
        let ends = (own, session.peer().address);
        write_request(
            &mut scratch[..length],
            ends,
            (identifier, echo.round, stamp),
        );
        session.seal(&mut scratch, length, outbox, now);
    }

    /// Answers a question, or takes an answer.
    pub(crate) fn take(
        &mut self,
        plain: &Plain<'_>,
        (session, own): (&mut Session, Ipv6Addr),
        (outbox, now): (&mut Outbox, Instant),
    ) -> Result<Option<Echo>, DropReason> {
        let packet = plain.packet;
        if plain.source != session.peer().address {
            return Err(DropReason::ForeignSource);
        }
        if packet.get(24..IPV6_HEADER_BYTES) != Some(&own.octets()) {
            return Err(DropReason::ForeignDestination);
        }
        if packet.get(IPV6_HEADER_BYTES) == Some(&ECHO_REQUEST) {
            let mut scratch = [0; MTU_MAX];
            let room = scratch
                .get_mut(..packet.len())
                .ok_or(DropReason::Malformed)?;
            room.copy_from_slice(packet);
            write_reply(room);
            session.seal(&mut scratch, packet.len(), outbox, now);
            Ok(None)
        } else {
            Ok(self.answered(packet, now))
        }
    }

    fn answered(&mut self, packet: &[u8], now: Instant) -> Option<Echo> {
        let at = IPV6_HEADER_BYTES + ICMP_HEADER_BYTES;
        let stamp = packet
            .get(at..at + STAMP_BYTES)
            .and_then(|bytes| <[u8; STAMP_BYTES]>::try_from(bytes).ok());
        let identifier = packet.get(at - 4..at - 2)?;
        let (Some(stamp), PULSE | WIDTH) = (stamp, <[u8; 2]>::try_from(identifier).ok()?) else {
            return None;
        };
        let since = now.duration_since(self.began);
        let asked = Duration::from_nanos(u64::from_be_bytes(stamp));
        let took = since.checked_sub(asked).filter(|took| *took < ANSWER_MAX)?;
        let round = u16::from_be_bytes([packet[at - 2], packet[at - 1]]);
        if identifier == WIDTH {
            // Padded: it says how wide the path is, not how long.
            let size = packet.len();
            return Some(Echo { round, size });
        }
        self.answers.answered(round);
        self.round_trip = Some(match self.round_trip {
            Some(known) if known > took => (known * 7 + took) / 8,
            Some(_) | None => took,
        });
        None
    }
}

/// An echo and how large a packet it is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Echo {
    /// The sequence number (RFC 4443, section 4.1).
    pub(crate) round: u16,
    /// The whole overlay packet, in bytes.
    pub(crate) size: usize,
}

/// Whether an overlay packet is an echo request or reply.
pub(crate) fn is_echo(packet: &[u8]) -> bool {
    packet.len() >= IPV6_HEADER_BYTES + ICMP_HEADER_BYTES
        && packet[0] >> 4 == 6
        && packet[6] == ICMPV6
        && matches!(packet[IPV6_HEADER_BYTES], ECHO_REQUEST | ECHO_REPLY)
        && packet[IPV6_HEADER_BYTES + 1] == 0
}

fn write_request(
    packet: &mut [u8],
    (own, peer): (Ipv6Addr, Ipv6Addr),
    (identifier, round, stamp): ([u8; 2], u16, u64),
) {
    let payload = u16::try_from(packet.len() - IPV6_HEADER_BYTES).unwrap_or_default();
    let (ip, icmp) = packet.split_at_mut(IPV6_HEADER_BYTES);
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&payload.to_be_bytes());
    ip[6] = ICMPV6;
    ip[7] = 64;
    ip[8..24].copy_from_slice(&own.octets());
    ip[24..40].copy_from_slice(&peer.octets());
    icmp[0] = ECHO_REQUEST;
    icmp[4..6].copy_from_slice(&identifier);
    icmp[6..8].copy_from_slice(&round.to_be_bytes());
    icmp[8..16].copy_from_slice(&stamp.to_be_bytes());
    let sum = checksum(packet);
    packet[42..44].copy_from_slice(&sum.to_be_bytes());
}

/// Turns a request into its reply: the addresses change places.
fn write_reply(packet: &mut [u8]) {
    let (ip, icmp) = packet.split_at_mut(IPV6_HEADER_BYTES);
    let (from, to) = ip[8..].split_at_mut(16);
    from.swap_with_slice(to);
    ip[7] = 64;
    icmp[0] = ECHO_REPLY;
    icmp[2..4].fill(0);
    let sum = checksum(packet);
    packet[42..44].copy_from_slice(&sum.to_be_bytes());
}

/// RFC 4443, section 2.3, over a packet whose checksum field is zero.
fn checksum(packet: &[u8]) -> u16 {
    let (ip, icmp) = packet.split_at(IPV6_HEADER_BYTES);
    let words = |bytes: &[u8]| -> u64 {
        let pairs = bytes.chunks(2).map(|pair| {
            let low = pair.get(1).copied().unwrap_or(0);
            u64::from(u16::from_be_bytes([pair[0], low]))
        });
        pairs.sum()
    };
    let mut sum = words(&ip[8..]) + icmp.len() as u64 + u64::from(ICMPV6) + words(icmp);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    const PEER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

    fn request(stamp: u64) -> [u8; REQUEST_BYTES] {
        let mut packet = [0; REQUEST_BYTES];
        write_request(&mut packet, (OWN, PEER), (PULSE, 1, stamp));
        packet
    }

    /// The sum over a packet with its checksum is all ones: RFC 1071.
    fn is_summed(packet: &[u8]) -> bool {
        checksum(packet) == 0
    }

    #[test]
    fn a_reply_is_the_request_with_its_addresses_changed() {
        let asked = request(7);
        let mut reply = asked;
        write_reply(&mut reply);
        assert!(is_echo(&asked) && is_echo(&reply));
        assert!(is_summed(&asked) && is_summed(&reply));
        assert_eq!(
            (&reply[8..24], &reply[24..40]),
            (&asked[24..40], &asked[8..24])
        );
        assert_eq!(reply[44..], asked[44..]);
    }

    #[test]
    fn the_round_trip_grows_at_once_and_shrinks_slowly() {
        let began = Instant::now();
        let mut pulse = Pulse::new(began);
        let mut answered = |asked_ms: u64, took_ms: u64| {
            let mut packet = request(asked_ms * 1_000_000);
            write_reply(&mut packet);
            pulse.answered(&packet, began + Duration::from_millis(asked_ms + took_ms));
            pulse.round_trip()
        };
        assert_eq!(answered(0, 20), Some(Duration::from_millis(20)));
        assert_eq!(answered(100, 400), Some(Duration::from_millis(400)));
        assert_eq!(answered(1000, 0), Some(Duration::from_millis(350)));
        assert_eq!(answered(2000, 60_000), Some(Duration::from_millis(350)));
    }

    #[test]
    fn every_fourth_echo_lost_is_a_loss_of_a_quarter() {
        let mut answers = Answers::default();
        assert_eq!(answers.loss_per_mille(), None);
        for round in 0..70_000u32 {
            let number = answers.ask();
            if round % 4 != 0 {
                answers.answered(number);
            }
        }
        assert_eq!(answers.loss_per_mille(), Some(250));
        for _ in 0..REMEMBERED {
            let number = answers.ask();
            answers.answered(number);
        }
        assert_eq!(answers.loss_per_mille(), Some(0));
    }

    #[test]
    fn late_answers_count_and_those_that_never_come_are_lost() {
        let mut answers = Answers::default();
        let first = answers.ask();
        let second = answers.ask();
        answers.answered(second);
        assert_eq!(answers.loss_per_mille(), Some(500));
        answers.answered(first);
        assert_eq!(answers.loss_per_mille(), Some(0));
        for _ in 0..10 {
            answers.ask();
        }
        let lost = answers.loss_per_mille();
        assert_eq!(lost, Some(6 * 1_000 / 8), "four may still come");
    }

    proptest! {
        #[test]
        fn nothing_that_comes_makes_it_panic(packet in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut pulse = Pulse::new(Instant::now());
            if is_echo(&packet) {
                let mut reply = packet.clone();
                write_reply(&mut reply);
                let sum_is_right = is_summed(&reply);
                prop_assert!(sum_is_right);
            }
            pulse.answered(&packet, Instant::now());
        }

        #[test]
        fn every_echo_of_any_length_is_answered_with_a_right_sum(data in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut packet = request(1).to_vec();
            packet.truncate(48);
            packet.extend(&data);
            write_reply(&mut packet);
            let sum_is_right = is_summed(&packet);
            prop_assert!(sum_is_right);
        }
    }
}
