//! One connection's entry in its peer's table: what becomes of it after each turn.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smoltcp::socket::tcp::State;

use super::backlog::{Arrival, Backlog};
use super::conn::{Conn, Inner};
use crate::agenda::Place;

/// A connection whose stream is gone may take this long to deliver what was written.
const LINGER: Duration = Duration::from_secs(10);
/// In TIME-WAIT a delayed acknowledgement is due within milliseconds; the next date is 10 s away.
const ACK_PENDING: Duration = Duration::from_secs(1);

/// A connection in the table.
pub(crate) struct Entry {
    pub(crate) conn: Arc<Conn>,
    pub(crate) place: Place,
    /// The listener that has not been given this connection yet.
    pub(crate) backlog: Option<Arc<Backlog>>,
    /// When to give the connection up: half-open too long, or lingering without a stream.
    pub(crate) give_up_at: Option<Instant>,
}

/// What becomes of a connection after its turn.
pub(crate) enum Fate {
    Keep,
    Forget,
}

impl Entry {
    /// Gives a made connection to its listener; true when that has happened now.
    pub(crate) fn hand_over(&mut self, conn: &Arc<Conn>, inner: &mut Inner) -> bool {
        let made = match inner.state() {
            State::Established | State::CloseWait => true,
            State::Closed
            | State::Listen
            | State::SynSent
            | State::SynReceived
            | State::FinWait1
            | State::FinWait2
            | State::Closing
            | State::LastAck
            | State::TimeWait => false,
        };
        if !made {
            return false;
        }
        let Some(backlog) = self.backlog.take() else {
            return false;
        };
        self.give_up_at = None;
        if !backlog.deliver(Arrival::Stack(Arc::clone(conn))) {
            inner.abandoned = true;
            inner.socket().abort();
        }
        true
    }

    /// Resets a connection that takes too long to begin or to end.
    pub(crate) fn lose_patience(&mut self, inner: &mut Inner, now: Instant) {
        if inner.abandoned && self.give_up_at.is_none() {
            self.give_up_at = Some(now + LINGER);
        }
        if self.give_up_at.is_some_and(|at| at <= now) {
            inner.socket().abort();
        }
    }

    /// Whether anything may still come of the connection. `next` is when the stack wants to be
    /// polled again.
    pub(crate) fn fate(&self, inner: &Inner, next: Option<Instant>, now: Instant) -> Fate {
        let over = match inner.state() {
            // A reset is still to be sent while the socket knows its remote end.
            State::Closed => inner.is_silent() || self.give_up_at.is_some_and(|at| at <= now),
            // A reset of a half-open connection brings smoltcp back here.
            State::Listen => self.backlog.is_some(),
            // The stream keeps what it has not read. The port is not reused before all others.
            State::TimeWait => next.is_none_or(|next| next > now + ACK_PENDING),
            // Nobody will read what may still come.
            State::FinWait2 => inner.abandoned,
            State::SynSent
            | State::SynReceived
            | State::Established
            | State::FinWait1
            | State::CloseWait
            | State::Closing
            | State::LastAck => false,
        };
        if over { Fate::Forget } else { Fate::Keep }
    }
}
