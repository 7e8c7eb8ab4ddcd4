//! The same two cores with streams over QUIC.

use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use super::*;
use crate::netstack::conn::Failure;
use crate::quic::Way;
use crate::stream::Stream;

const CLEAR: Weather = Weather {
    lose: 0,
    duplicate: 0,
    delay: 0,
};

impl Sim {
    /// Finds out how the first core reaches a port of the second.
    fn way(&mut self, port: u16) -> Way {
        let (reply, mut answer) = oneshot::channel();
        let now = self.now;
        self.cores[0].way(OWN[1], port, reply, now);
        self.until(Duration::from_mins(2), |_| answer.try_recv().ok())
            .unwrap()
    }

    /// A stream that has begun, and what became of it.
    fn dial(&mut self, port: u16) -> Result<Stream, Failure> {
        let Way::Quic(stream) = self.way(port) else {
            panic!("both ends speak QUIC");
        };
        self.until(Duration::from_mins(2), |_| {
            match stream.poll_connected(&context()) {
                Poll::Ready(outcome) => Some(outcome),
                Poll::Pending => None,
            }
        })?;
        Ok(stream)
    }

    fn streams(&mut self) -> (Stream, Stream) {
        let backlog = self.cores[1].listen(PORT).unwrap();
        let near = self.dial(PORT).unwrap();
        match backlog.poll_next(&context()) {
            Poll::Ready(Some(Arrival::Quic(far))) => (near, Stream::of_quic(far)),
            Poll::Ready(Some(Arrival::Stack(_)) | None) | Poll::Pending => {
                panic!("a stream that is taken has arrived")
            }
        }
    }

    /// Moves bytes over streams and returns what arrived.
    fn carry_on(&mut self, from: &mut Stream, to: &mut Stream, bytes: &[u8]) -> Vec<u8> {
        let mut sent = 0;
        let mut got = Vec::new();
        self.until(Duration::from_mins(30), |_| {
            while sent < bytes.len()
                && let Poll::Ready(taken) =
                    Pin::new(&mut *from).poll_write(&mut context(), &bytes[sent..])
            {
                sent += taken.unwrap();
                if sent == bytes.len() {
                    assert!(
                        Pin::new(&mut *from)
                            .poll_shutdown(&mut context())
                            .is_ready()
                    );
                }
            }
            read_some(to, &mut got).then_some(())
        });
        got
    }

    fn rest(&mut self, long: Duration) {
        let end = self.now + long;
        while self.now < end {
            self.step();
        }
    }
}

/// Reads what there is; true at the end of the stream.
fn read_some(stream: &mut Stream, got: &mut Vec<u8>) -> bool {
    let mut room = [0; 4096];
    loop {
        let mut buffer = ReadBuf::new(&mut room);
        match Pin::new(&mut *stream).poll_read(&mut context(), &mut buffer) {
            Poll::Ready(read) => {
                read.unwrap();
                if buffer.filled().is_empty() {
                    return true;
                }
                got.extend_from_slice(buffer.filled());
            }
            Poll::Pending => return false,
        }
    }
}

#[test]
fn a_stream_between_two_ends_of_ours_takes_a_few_round_trips() {
    let mut sim = Sim::new(1, CLEAR);
    let (mut near, mut far) = sim.streams();
    let began = sim.now;
    let bytes = bytes(500_000);
    assert!(sim.carry_on(&mut near, &mut far, &bytes) == bytes);
    let took = sim.now - began;
    assert!(took < Duration::from_secs(1), "took {took:?}");
    for core in &sim.cores {
        assert_eq!(core.windows.drops.read(), crate::drops::Counters::default());
    }
}

#[test]
fn a_port_that_nobody_listens_on_is_refused_in_a_round_trip() {
    let mut sim = Sim::new(2, CLEAR);
    let (_near, _far) = sim.streams();
    let began = sim.now;
    assert!(matches!(sim.dial(PORT + 1), Err(Failure::Refused)));
    let took = sim.now - began;
    assert!(took <= Duration::from_millis(70), "took {took:?}");
}

#[test]
fn a_peer_that_never_says_what_it_is_gets_tcp_after_a_moment() {
    let mut sim = Sim::new(3, CLEAR);
    sim.connect();
    let mut stock = Sim::with(4, CLEAR, false);
    stock.until(Duration::from_mins(1), |sim| {
        sim.cores[0]
            .windows
            .board
            .read(OWN[1], sim.now)?
            .since_handshake
    });
    let began = stock.now;
    assert!(matches!(stock.way(PORT), Way::Tcp));
    let first = stock.now - began;
    assert!(first < Duration::from_millis(700), "took {first:?}");
    let began = stock.now;
    assert!(matches!(stock.way(PORT), Way::Tcp));
    assert_eq!(stock.now, began, "the second dial knows it");
}

#[test]
fn a_connection_without_streams_is_closed_and_then_silent() {
    let mut sim = Sim::new(5, CLEAR);
    let (mut near, mut far) = sim.streams();
    let once = sim.carry_on(&mut near, &mut far, b"once");
    assert_eq!(once, b"once");
    drop((near, far));
    sim.rest(Duration::from_secs(75));
    for core in &sim.cores {
        assert!(
            core.members
                .values()
                .all(|member| member.inside.quic.is_at_rest())
        );
    }
    let before = sim.sent;
    sim.rest(Duration::from_secs(40));
    assert!(sim.sent - before <= 2, "{} datagrams", sim.sent - before);
}

#[test]
fn a_dropped_stream_is_seen_by_its_other_side_and_leaves_nothing() {
    let mut sim = Sim::new(6, CLEAR);
    let (near, mut far) = sim.streams();
    drop(near);
    let mut room = [0; 16];
    let error = sim.until(Duration::from_millis(100), |_| {
        let mut buffer = ReadBuf::new(&mut room);
        match Pin::new(&mut far).poll_read(&mut context(), &mut buffer) {
            Poll::Ready(read) => Some(read.unwrap_err()),
            Poll::Pending => None,
        }
    });
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    drop(far);
    sim.rest(Duration::from_secs(1));
    for core in &sim.cores {
        assert!(core.members.values().all(|member| member.inside.len() == 0));
    }
}

#[test]
fn whoever_has_forgotten_its_connections_says_so_with_its_next_word() {
    let mut sim = Sim::new(7, CLEAR);
    let (mut near, _far) = sim.streams();
    let id = *sim.cores[1].members.keys().next().unwrap();
    let now = sim.now;
    // As after a minute without a session, but the packet that says so is lost.
    sim.weather.lose = 1000;
    sim.cores[1].cut(id, End::SessionLost, now);
    sim.rest(Duration::from_millis(300));
    sim.weather.lose = 0;
    sim.cores[1].note_session(id, now);
    let mut got = Vec::new();
    sim.until(Duration::from_secs(1), |_| {
        let mut room = [0; 16];
        let mut buffer = ReadBuf::new(&mut room);
        match Pin::new(&mut near).poll_read(&mut context(), &mut buffer) {
            Poll::Ready(read) => Some(read.unwrap_err()),
            Poll::Pending => None,
        }
    });
    let (mut near, mut far) = sim.streams_again();
    assert!(!read_some(&mut far, &mut got));
    assert_eq!(sim.carry_on(&mut near, &mut far, b"anew"), b"anew");
}

impl Sim {
    /// As [`Sim::streams`] where somebody listens already: on another port.
    fn streams_again(&mut self) -> (Stream, Stream) {
        let backlog = self.cores[1].listen(PORT + 7).unwrap();
        let near = self.dial(PORT + 7).unwrap();
        let far = self.until(Duration::from_secs(1), |_| {
            match backlog.poll_next(&context()) {
                Poll::Ready(Some(Arrival::Quic(far))) => Some(far),
                Poll::Ready(Some(Arrival::Stack(_)) | None) | Poll::Pending => None,
            }
        });
        (near, Stream::of_quic(far))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn bytes_survive_any_weather_in_both_directions_over_quic(
        seed in any::<u32>(),
        lose in 0u32..80,
        duplicate in 0u32..100,
        delay in 0u32..200,
        len in 1usize..60_000,
    ) {
        let mut sim = Sim::new(u64::from(seed), CLEAR);
        let (mut near, mut far) = sim.streams();
        sim.weather = Weather { lose, duplicate, delay };
        let bytes = bytes(len);
        prop_assert!(sim.carry_on(&mut near, &mut far, &bytes) == bytes);
        prop_assert!(sim.carry_on(&mut far, &mut near, &bytes) == bytes);
    }
}
