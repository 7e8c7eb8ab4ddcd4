//! How streams tell the driver that they have something to send, without a queue that could grow.
//!
//! Every connection is in the list at most once (it keeps the flag), so the list is bounded by the
//! number of connections.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::conn::ConnKey;

#[derive(Debug, Default)]
pub(crate) struct Doorbell(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    keys: Vec<ConnKey>,
    driver: Option<Waker>,
}

impl Doorbell {
    /// Adds a connection and wakes the driver. The caller has checked that it is not in the list.
    pub(crate) fn ring(&self, key: ConnKey) {
        let driver = {
            let mut waiting = self.lock();
            waiting.keys.push(key);
            waiting.driver.take()
        };
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// Ready when somebody has rung.
    pub(crate) fn poll_rung(&self, context: &Context<'_>) -> Poll<()> {
        let mut waiting = self.lock();
        if !waiting.keys.is_empty() {
            return Poll::Ready(());
        }
        match &waiting.driver {
            Some(driver) if driver.will_wake(context.waker()) => {}
            Some(_) | None => waiting.driver = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Moves the list into `keys`, which must be empty; its memory is reused.
    pub(crate) fn take(&self, keys: &mut Vec<ConnKey>) {
        std::mem::swap(&mut self.lock().keys, keys);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
