//! Translates between the system's clock and smoltcp's.

use std::time::{Duration, Instant};

use smoltcp::time::Instant as StackInstant;

/// smoltcp treats zero as "long ago", so its time starts a while after it.
const START: Duration = Duration::from_mins(1);

/// The common origin of both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    epoch: Instant,
}

impl Clock {
    pub(crate) fn new(now: Instant) -> Self {
        Self { epoch: now }
    }

    pub(crate) fn to_stack(self, now: Instant) -> StackInstant {
        let since = START + now.saturating_duration_since(self.epoch);
        StackInstant::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    /// The system instant of a stack instant; anything before the start is the start.
    pub(crate) fn to_system(self, instant: StackInstant) -> Instant {
        let micros = u64::try_from(instant.total_micros()).unwrap_or(0);
        self.epoch + Duration::from_micros(micros).saturating_sub(START)
    }
}
