//! The workbench: where handshakes are examined and answered, beside the driver.
//!
//! A key agreement takes as long as encrypting a hundred packets. At most one thread of the runtime's blocking pool works at a time, and
//! only while there is work; the line is bounded, and whoever finds it full must come again. Nothing here knows peers or policy.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn};
use tokio::sync::mpsc;

use super::PeerId;
use super::message::{INITIATION_BYTES, Message};
use super::noise::{Identity, Loan, Returned};
use super::session::Datagram;
use crate::keys::PublicKey;
use crate::path::Path;

/// Jobs that may be under way; each is about 250 bytes, and a state of 11 KB when it is lent.
pub(crate) const JOBS_MAX: usize = 2_048;

/// An initiation off the wire that has passed the gate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) source: Path,
    pub(crate) bytes: [u8; INITIATION_BYTES],
}

impl Claim {
    /// For answering it in the driver.
    pub(crate) fn datagram(&self) -> Datagram<'_> {
        Datagram {
            message: Message::Initiation,
            source: self.source,
            bytes: &self.bytes,
        }
    }
}

/// Work for the bench.
pub(crate) enum Job {
    /// Who is it that begins this handshake?
    Examine(Claim, Arc<Identity>),
    /// Answer it, in this session.
    Respond(Claim, PeerId, Loan),
}

/// Work done.
pub(crate) enum Done {
    /// The key that the sender claims; `None`: the message is not authentic.
    Examined(Claim, Option<PublicKey>),
    Responded(Claim, PeerId, Returned),
}

/// Who does the work.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Hands {
    /// Whoever submits it, at once: for tests in invented time.
    Own,
    /// The runtime's blocking pool.
    Pool,
}

/// The workbench.
pub(crate) struct Bench {
    hands: Hands,
    line: Arc<Line>,
    done: mpsc::Receiver<Done>,
    under_way: usize,
}

/// What the bench and its thread share.
struct Line {
    waiting: Mutex<Waiting>,
    done: mpsc::Sender<Done>,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// A thread is at it.
    manned: bool,
}

impl Bench {
    pub(crate) fn new(hands: Hands) -> Self {
        let (sender, done) = mpsc::channel(JOBS_MAX);
        let line = Line {
            waiting: Mutex::default(),
            done: sender,
        };
        Self {
            hands,
            line: Arc::new(line),
            done,
            under_way: 0,
        }
    }

    /// Whether work is done as soon as it is submitted.
    pub(crate) fn is_own(&self) -> bool {
        self.hands == Hands::Own
    }

    /// Jobs that are not done and taken yet.
    pub(crate) fn under_way(&self) -> usize {
        self.under_way
    }

    /// Whether another job is taken.
    pub(crate) fn has_room(&self) -> bool {
        self.under_way < JOBS_MAX
    }

    /// Takes a job; ask [`Bench::has_room`] first.
    pub(crate) fn submit(&mut self, job: Job) {
        self.under_way += 1;
        if self.hands == Hands::Own {
            // There is room: as many fit as are under way.
            drop(self.line.done.try_send(job.work()));
            return;
        }
        let must_call = {
            let mut waiting = self.line.lock();
            waiting.jobs.push_back(job);
            !std::mem::replace(&mut waiting.manned, true)
        };
        if must_call {
            let line = Arc::clone(&self.line);
            drop(tokio::task::spawn_blocking(move || line.work()));
        }
    }

    /// Work that is done.
    pub(crate) fn take(&mut self) -> Option<Done> {
        let done = self.done.try_recv().ok()?;
        self.under_way -= 1;
        Some(done)
    }

    /// Ready when [`Bench::take`] has something.
    pub(crate) fn poll_done(&mut self, context: &mut Context<'_>) -> Poll<Done> {
        match self.done.poll_recv(context) {
            Poll::Ready(Some(done)) => {
                self.under_way -= 1;
                Poll::Ready(done)
            }
            // The bench itself holds a sender: the channel never ends.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

/// Nobody waits for the rest.
impl Drop for Bench {
    fn drop(&mut self) {
        self.line.lock().jobs.clear();
    }
}

impl Line {
    fn work(&self) {
        loop {
            let job = {
                let mut waiting = self.lock();
                let Some(job) = waiting.jobs.pop_front() else {
                    waiting.manned = false;
                    return;
                };
                job
            };
            // There is room, as many fit as are under way; or the driver is gone.
            drop(self.done.try_send(job.work()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job {
    fn work(self) -> Done {
        match self {
            Self::Examine(claim, identity) => Done::Examined(claim, examine(&claim, &identity)),
            Self::Respond(claim, id, loan) => {
                Done::Responded(claim, id, loan.respond(&claim.bytes))
            }
        }
    }
}

/// One key agreement reveals who the sender says it is.
fn examine(claim: &Claim, identity: &Identity) -> Option<PublicKey> {
    let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(&claim.bytes) else {
        return None;
    };
    parse_handshake_anon(identity.private.secret(), &identity.public, &initiation)
        .ok()
        .map(|half| PublicKey::from_bytes(half.peer_static_public))
}
