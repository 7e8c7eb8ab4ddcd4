//! What a QUIC connection and its streams are: every stream's state, what happened to it, reading and writing. Under the connection's lock, and
//! without I/O: the driver asks for packets.
//!
//! A stream begins with the port it is for, two bytes, and its other side answers with one byte that it is taken, or with a reset that says
//! why not. From then on it is as TCP: each direction ends by itself, dropping it resets both.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::task::Waker;
use std::time::{Duration, Instant};

use quinn_proto::{
    Connection, Dir, Event, FinishError, ReadError, ReadableError, StreamEvent, StreamId, VarInt,
    WriteError,
};

use crate::netstack::conn::{End, Failure};

/// Nobody listens on the port.
const REFUSED: VarInt = VarInt::from_u32(1);
/// The stream was dropped.
const GONE: VarInt = VarInt::from_u32(2);
/// Said by the side that takes a stream.
const TAKEN: u8 = 1;
/// A stream that nobody holds may take this long to deliver what was written.
const LINGER: Duration = Duration::from_secs(10);

/// A stream's name among those of its connection, not reused.
pub(super) type Number = u64;

/// Why there is no connection any more.
#[derive(Clone, Copy, Debug)]
enum Over {
    /// This side has cut it.
    Cut(End),
    /// The peer has, or has forgotten it.
    Lost,
}

impl Over {
    fn error(self) -> io::Error {
        match self {
            Self::Cut(end) => end.error(),
            Self::Lost => reset_error(),
        }
    }
}

/// What the lock guards.
pub(super) struct Road {
    pub(super) proto: Connection,
    slots: HashMap<Number, Slot>,
    by_id: HashMap<StreamId, Number>,
    numbers: Number,
    /// Streams that wait until QUIC may open one.
    dialling: VecDeque<Number>,
    /// Streams of the peer that wait for their listener.
    asking: Vec<Number>,
    /// Streams whose owners are gone and which still deliver, with when to give them up.
    lingering: VecDeque<(Number, Instant)>,
    /// In the doorbell's list.
    pub(super) rung: bool,
    over: Option<Over>,
}

/// Where a stream stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// Ours: not taken yet.
    Dialling,
    Refused,
    /// The peer's: so much of its port is read.
    Asking(Option<u8>),
    /// The peer's: its port is known, and it waits for its listener.
    Queued,
    Open,
}

/// One stream.
struct Slot {
    id: Option<StreamId>,
    /// The port that it is for.
    port: u16,
    phase: Phase,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// The writing side is shut down.
    finished: bool,
    /// Everything written has arrived, or can arrive no more.
    delivered: bool,
    /// The reading side has ended.
    read_to_end: bool,
    /// Whoever held it is gone.
    abandoned: bool,
}

impl Slot {
    fn new(id: Option<StreamId>, port: u16, phase: Phase) -> Self {
        Self {
            id,
            port,
            phase,
            reader: None,
            writer: None,
            finished: false,
            delivered: false,
            read_to_end: false,
            abandoned: false,
        }
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }
}

impl Road {
    pub(super) fn new(proto: Connection) -> Self {
        Self {
            proto,
            slots: HashMap::new(),
            by_id: HashMap::new(),
            numbers: 0,
            dialling: VecDeque::new(),
            asking: Vec::new(),
            lingering: VecDeque::new(),
            rung: false,
            over: None,
        }
    }

    /// What became of a stream that was begun; `None`: nothing yet.
    pub(super) fn is_made(&self, number: Number) -> Option<Result<(), Failure>> {
        let slot = match self.over {
            Some(Over::Cut(end)) => return Some(Err(Failure::Cut(end))),
            Some(Over::Lost) => None,
            None => self.slots.get(&number),
        };
        match slot.map(|slot| slot.phase) {
            Some(Phase::Open) => Some(Ok(())),
            Some(Phase::Refused) => Some(Err(Failure::Refused)),
            Some(Phase::Dialling | Phase::Asking(_) | Phase::Queued) => None,
            None => Some(Err(Failure::Lost)),
        }
    }

    /// Wakes somebody when there is more to read.
    pub(super) fn read_later(&mut self, number: Number, waker: &Waker) {
        if let Some(slot) = self.slots.get_mut(&number) {
            slot.reader = Some(waker.clone());
        }
    }

    /// Wakes somebody when there is more room to write.
    pub(super) fn write_later(&mut self, number: Number, waker: &Waker) {
        if let Some(slot) = self.slots.get_mut(&number) {
            slot.writer = Some(waker.clone());
        }
    }

    /// Streams that somebody holds or that still deliver.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) const fn is_over(&self) -> bool {
        self.over.is_some()
    }

    /// Begins a stream to a port of the peer.
    pub(super) fn dial(&mut self, port: u16) -> Number {
        let number = self.insert(Slot::new(None, port, Phase::Dialling));
        self.dialling.push_back(number);
        self.open_dialled();
        number
    }

    /// Ends everything; streams fail at once.
    pub(super) fn cut(&mut self, end: End, now: Instant) {
        self.end(Over::Cut(end));
        if !self.proto.is_closed() {
            self.proto.close(now, GONE, bytes::Bytes::new());
        }
    }

    /// The peer has forgotten the connection.
    pub(super) fn lose(&mut self, now: Instant) {
        self.end(Over::Lost);
        if !self.proto.is_closed() {
            self.proto.close(now, GONE, bytes::Bytes::new());
        }
    }

    fn end(&mut self, over: Over) {
        self.over.get_or_insert(over);
        self.dialling.clear();
        self.asking.clear();
        self.lingering.clear();
        self.slots.retain(|_, slot| !slot.abandoned);
        self.slots.values_mut().for_each(Slot::wake);
    }

    /// Works on what has happened.
    pub(super) fn digest(&mut self) {
        while let Some(event) = self.proto.poll() {
            match event {
                Event::Connected
                | Event::Stream(StreamEvent::Available { .. } | StreamEvent::Opened { .. }) => {
                    self.open_dialled();
                    self.take_opened();
                }
                Event::Stream(StreamEvent::Readable { id }) => self.look(id),
                Event::Stream(StreamEvent::Writable { id }) => {
                    if let Some(slot) = self.slot_of(id)
                        && let Some(waker) = slot.writer.take()
                    {
                        waker.wake();
                    }
                }
                Event::Stream(StreamEvent::Finished { id } | StreamEvent::Stopped { id, .. }) => {
                    self.settle(id);
                }
                Event::ConnectionLost { reason } => {
                    tracing::debug!(%reason, "a connection inside the tunnel ended");
                    self.end(Over::Lost);
                }
                Event::HandshakeDataReady | Event::DatagramReceived | Event::DatagramsUnblocked => {
                }
            }
        }
    }

    /// Streams of the peer that want to be taken, with their ports.
    pub(super) fn take_asking(&mut self) -> Vec<(Number, u16)> {
        let asking = std::mem::take(&mut self.asking);
        let port = |number| self.slots.get(&number).map(|slot| (number, slot.port));
        asking.into_iter().filter_map(port).collect()
    }

    /// A stream has to wait for its listener.
    pub(super) fn ask_later(&mut self, number: Number) {
        self.asking.push(number);
    }

    /// Takes a stream of the peer.
    pub(super) fn accept(&mut self, number: Number) {
        if let Some(slot) = self.slots.get_mut(&number)
            && let Some(id) = slot.id
        {
            slot.phase = Phase::Open;
            // Its window is fresh; a stream that was stopped meanwhile says so to whoever reads.
            let _ = self.proto.send_stream(id).write(&[TAKEN]);
        }
    }

    /// Refuses a stream of the peer.
    pub(super) fn refuse(&mut self, number: Number) {
        self.reset(number, REFUSED);
    }

    /// Gives up on streams that deliver for too long; says when to come back.
    pub(super) fn lose_patience(&mut self, now: Instant) -> Option<Instant> {
        while let Some((number, until)) = self.lingering.front().copied() {
            let is_there = self.slots.contains_key(&number);
            if is_there && until > now {
                return Some(until);
            }
            self.lingering.pop_front();
            self.reset(number, GONE);
        }
        None
    }

    fn insert(&mut self, slot: Slot) -> Number {
        self.numbers += 1;
        if let Some(id) = slot.id {
            self.by_id.insert(id, self.numbers);
        }
        self.slots.insert(self.numbers, slot);
        self.numbers
    }

    fn remove(&mut self, number: Number) {
        if let Some(slot) = self.slots.remove(&number)
            && let Some(id) = slot.id
        {
            self.by_id.remove(&id);
        }
    }

    fn slot_of(&mut self, id: StreamId) -> Option<&mut Slot> {
        let number = self.by_id.get(&id)?;
        self.slots.get_mut(number)
    }

    fn open_dialled(&mut self) {
        while let Some(number) = self.dialling.front().copied() {
            let Some(slot) = self.slots.get_mut(&number) else {
                self.dialling.pop_front();
                continue;
            };
            let Some(id) = self.proto.streams().open(Dir::Bi) else {
                return;
            };
            self.dialling.pop_front();
            slot.id = Some(id);
            self.by_id.insert(id, number);
            let port = slot.port.to_be_bytes();
            if self.proto.send_stream(id).write(&port) != Ok(port.len()) {
                slot.phase = Phase::Refused;
                slot.wake();
            }
        }
    }

    fn take_opened(&mut self) {
        while let Some(id) = self.proto.streams().accept(Dir::Bi) {
            self.insert(Slot::new(Some(id), 0, Phase::Asking(None)));
            self.look(id);
        }
    }

    /// Reads what a stream says about itself, or wakes whoever reads it.
    fn look(&mut self, id: StreamId) {
        let Some(number) = self.by_id.get(&id).copied() else {
            return;
        };
        loop {
            let Some(slot) = self.slots.get_mut(&number) else {
                return;
            };
            if matches!(slot.phase, Phase::Open | Phase::Refused) {
                if let Some(waker) = slot.reader.take() {
                    waker.wake();
                }
                return;
            }
            let byte = read_byte(&mut self.proto, id);
            slot.phase = match (slot.phase, byte) {
                (_, Ok(None)) => return,
                (Phase::Dialling, Ok(Some(TAKEN))) => Phase::Open,
                (Phase::Dialling, _) => Phase::Refused,
                (Phase::Asking(None), Ok(Some(high))) => Phase::Asking(Some(high)),
                (Phase::Asking(Some(high)), Ok(Some(low))) => {
                    slot.port = u16::from_be_bytes([high, low]);
                    slot.phase = Phase::Queued;
                    self.asking.push(number);
                    return;
                }
                (_, _) => {
                    self.reset(number, GONE);
                    return;
                }
            };
        }
    }

    /// What was written has arrived, or the peer does not want it.
    fn settle(&mut self, id: StreamId) {
        let Some(slot) = self.slot_of(id) else {
            return;
        };
        slot.delivered = true;
        if let Some(waker) = slot.writer.take() {
            waker.wake();
        }
        if slot.abandoned
            && let Some(number) = self.by_id.get(&id).copied()
        {
            self.remove(number);
        }
    }

    /// Reads what there is; `Ok(None)`: nothing yet. The flag: the peer is to be told that its window opens.
    pub(super) fn read(
        &mut self,
        number: Number,
        into: &mut [u8],
    ) -> (io::Result<Option<usize>>, bool) {
        if let Some(over) = self.over {
            return (Err(over.error()), false);
        }
        let Some((slot, id)) = self
            .slots
            .get_mut(&number)
            .and_then(|slot| slot.id.map(|id| (slot, id)))
        else {
            return (Err(reset_error()), false);
        };
        if slot.read_to_end {
            return (Ok(Some(0)), false);
        }
        let mut stream = self.proto.recv_stream(id);
        let mut chunks = match stream.read(true) {
            Ok(chunks) => chunks,
            Err(ReadableError::ClosedStream | ReadableError::IllegalOrderedRead) => {
                return (Err(reset_error()), false);
            }
        };
        let mut taken = 0;
        let mut outcome = Ok(None);
        while let Some(room) = into.get_mut(taken..)
            && !room.is_empty()
        {
            match chunks.next(room.len()) {
                Ok(Some(chunk)) => {
                    if let Some(room) = room.get_mut(..chunk.bytes.len()) {
                        room.copy_from_slice(&chunk.bytes);
                    }
                    taken += chunk.bytes.len();
                }
                Ok(None) => {
                    slot.read_to_end = true;
                    outcome = Ok(Some(0));
                    break;
                }
                Err(ReadError::Blocked) => break,
                Err(ReadError::Reset(_)) => {
                    outcome = Err(reset_error());
                    break;
                }
            }
        }
        let ring = chunks.finalize().should_transmit();
        if taken > 0 {
            outcome = Ok(Some(taken));
        }
        (outcome, ring)
    }

    /// Takes what fits.
    pub(super) fn write(&mut self, number: Number, from: &[IoSlice<'_>]) -> io::Result<usize> {
        if let Some(over) = self.over {
            return Err(over.error());
        }
        let slot = self.slots.get(&number);
        let Some((slot, id)) = slot.and_then(|slot| slot.id.map(|id| (slot, id))) else {
            return Err(reset_error());
        };
        if slot.finished {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut stream = self.proto.send_stream(id);
        let mut taken = 0;
        for slice in from.iter().filter(|slice| !slice.is_empty()) {
            match stream.write(slice) {
                Ok(more) => {
                    taken += more;
                    if more < slice.len() {
                        break;
                    }
                }
                Err(WriteError::Blocked) => break,
                Err(WriteError::Stopped(_) | WriteError::ClosedStream) if taken == 0 => {
                    return Err(reset_error());
                }
                Err(WriteError::Stopped(_) | WriteError::ClosedStream) => break,
            }
        }
        Ok(taken)
    }

    /// Ends the writing side.
    pub(super) fn finish(&mut self, number: Number) -> io::Result<()> {
        if let Some(over) = self.over {
            return Err(over.error());
        }
        let Some(slot) = self.slots.get_mut(&number) else {
            return Err(reset_error());
        };
        if slot.finished {
            return Ok(());
        }
        slot.finished = true;
        let Some(id) = slot.id else {
            return Err(reset_error());
        };
        match self.proto.send_stream(id).finish() {
            Ok(()) => Ok(()),
            Err(FinishError::Stopped(_) | FinishError::ClosedStream) => {
                slot.delivered = true;
                Err(reset_error())
            }
        }
    }

    /// Nobody holds the stream any more.
    pub(super) fn abandon(&mut self, number: Number, now: Instant) {
        let Some(slot) = self.slots.get_mut(&number) else {
            return;
        };
        slot.abandoned = true;
        if self.over.is_some() {
            self.remove(number);
            return;
        }
        if !slot.finished || slot.delivered {
            self.reset(number, GONE);
            return;
        }
        if let Some(id) = slot.id {
            // Nobody will read what may still come.
            let _ = self.proto.recv_stream(id).stop(GONE);
        }
        self.lingering.push_back((number, now + LINGER));
    }

    /// Ends both directions of a stream and forgets it.
    fn reset(&mut self, number: Number, code: VarInt) {
        if let Some(id) = self.slots.get(&number).and_then(|slot| slot.id) {
            // An error means that this direction has ended already.
            let _ = self.proto.send_stream(id).reset(code);
            let _ = self.proto.recv_stream(id).stop(code);
        }
        self.remove(number);
    }
}

/// The next byte of a stream: `Ok(None)`: it is still to come.
fn read_byte(proto: &mut Connection, id: StreamId) -> Result<Option<u8>, ()> {
    let mut stream = proto.recv_stream(id);
    let mut chunks = stream.read(true).map_err(|_| ())?;
    let byte = match chunks.next(1) {
        Ok(Some(chunk)) => Ok(chunk.bytes.first().copied()),
        Err(ReadError::Blocked) => Ok(None),
        Ok(None) | Err(ReadError::Reset(_)) => Err(()),
    };
    // A byte more or less in a window says nothing that cannot wait.
    let _ = chunks.finalize();
    byte
}

fn reset_error() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionReset,
        "connection reset by the tunnel peer",
    )
}
