//! Connections that wait for their listener to take them. Bounded, half-open ones included.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::conn::Conn;
use crate::quic::QuicConn;

/// A connection that a listener gets.
#[derive(Debug)]
pub(crate) enum Arrival {
    Stack(Arc<Conn>),
    Quic(QuicConn),
}

impl Arrival {
    fn abandon(&self) {
        match self {
            Self::Stack(conn) => conn.abandon(),
            Self::Quic(conn) => conn.abandon(),
        }
    }
}

/// Whether a listener takes one more connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Room {
    Taken,
    Full,
    Closed,
}

/// What a listener and the driver share.
#[derive(Debug)]
pub(crate) struct Backlog {
    port: u16,
    max: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    ready: VecDeque<Arrival>,
    half_open: usize,
    waiting: Vec<Waker>,
    closed: bool,
}

impl Backlog {
    pub(crate) fn new(port: u16, max: usize) -> Arc<Self> {
        Arc::new(Self {
            port,
            max,
            inner: Mutex::default(),
        })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Half-open connections one peer may have, so that none can shut the others out.
    pub(crate) fn share(&self) -> usize {
        self.max.div_ceil(2)
    }

    /// Reserves a place for a connection that begins.
    pub(crate) fn reserve(&self) -> Room {
        let mut inner = self.lock();
        if inner.closed {
            return Room::Closed;
        }
        if inner.half_open + inner.ready.len() >= self.max {
            return Room::Full;
        }
        inner.half_open += 1;
        Room::Taken
    }

    /// Gives a place back: the connection never came to be.
    pub(crate) fn release(&self) {
        let mut inner = self.lock();
        inner.half_open = inner.half_open.saturating_sub(1);
    }

    /// Hands a made connection over; false when the listener is gone.
    pub(crate) fn deliver(&self, arrival: Arrival) -> bool {
        let waiting = {
            let mut inner = self.lock();
            inner.half_open = inner.half_open.saturating_sub(1);
            if inner.closed {
                return false;
            }
            inner.ready.push_back(arrival);
            std::mem::take(&mut inner.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
        true
    }

    /// The next connection; `None` when the tunnel is gone.
    pub(crate) fn poll_next(&self, context: &Context<'_>) -> Poll<Option<Arrival>> {
        let mut inner = self.lock();
        if let Some(arrival) = inner.ready.pop_front() {
            return Poll::Ready(Some(arrival));
        }
        if inner.closed {
            return Poll::Ready(None);
        }
        let waker = context.waker();
        if !inner.waiting.iter().any(|known| known.will_wake(waker)) {
            inner.waiting.push(waker.clone());
        }
        Poll::Pending
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Takes no more connections; resets those nobody has taken.
    pub(crate) fn close(&self) {
        let (ready, waiting) = {
            let mut inner = self.lock();
            inner.closed = true;
            (
                std::mem::take(&mut inner.ready),
                std::mem::take(&mut inner.waiting),
            )
        };
        for arrival in ready {
            arrival.abandon();
        }
        waiting.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
