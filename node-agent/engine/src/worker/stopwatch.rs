//! The time that this thread had a processor: what a computation costs, whoever else wants the machine or has stopped this process
//! meanwhile. Measures only.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A computation that is being measured, in the thread that began it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopwatch {
    began: Duration,
}

impl Stopwatch {
    /// From now on.
    pub(super) fn begin() -> Self {
        Self { began: spent() }
    }

    /// Processor time since then.
    pub(super) fn took(self) -> Duration {
        spent().saturating_sub(self.began)
    }
}

fn spent() -> Duration {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    // A clock of time spent is never negative.
    let secs = u64::try_from(spent.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(spent.tv_nsec).unwrap_or_default();
    Duration::new(secs, nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_costs_nothing_and_work_does() {
        let watch = Stopwatch::begin();
        std::thread::sleep(Duration::from_millis(20));
        assert!(watch.took() < Duration::from_millis(10));
        let mut sum = 0_u64;
        while watch.took() < Duration::from_millis(2) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(sum > 0);
    }
}
