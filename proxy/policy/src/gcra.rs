//! The generic cell rate algorithm in whole microseconds: the one arithmetic of every short window, here and in the Redis
//! script. Stores nothing.
//!
//! A counter is one number, the *theoretical arrival time* (TAT): the moment at which its bucket is full again. Each unit of
//! cost moves it `interval` ahead; a request is admitted while the TAT stays within `interval * limit` of now. So 30 a minute
//! means a burst of 30, then one each 2 s. Microseconds since 1970 stay below 2^53, so Lua's numbers hold them exactly.

/// A limit of `limit` units each `period_ms`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    /// Units; also the burst. 0 refuses everything.
    pub limit: u32,
    /// Window in milliseconds.
    pub period_ms: u64,
}

impl Rate {
    /// Time that one unit takes to come back. Rounded up, so that no window ever gains a unit.
    pub fn interval_us(self) -> u64 {
        self.period_us().div_ceil(u64::from(self.limit.max(1)))
    }

    /// How far the TAT may lie ahead.
    pub fn burst_us(self) -> u64 {
        self.interval_us().saturating_mul(u64::from(self.limit))
    }

    /// The window.
    pub fn period_us(self) -> u64 {
        self.period_ms.saturating_mul(1_000)
    }
}

/// What one step found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Step {
    /// Whether the cost fits.
    pub admitted: bool,
    /// The TAT to store if everything is admitted; the old one (or now) if not.
    pub tat_us: u64,
    /// Units left after this step.
    pub remaining: u32,
    /// Until the same cost would fit; 0 when admitted.
    pub retry_after_us: u64,
    /// Until all units are back.
    pub reset_after_us: u64,
}

/// One step at `now_us` from the stored TAT (0 when there is none).
///
/// A TAT further ahead than a full burst can only come from a clock that was set back, or from a limit that was lowered; it
/// counts as a full burst, so nobody is locked out for longer than a window.
pub fn step(tat_us: u64, rate: Rate, cost: u32, now_us: u64) -> Step {
    let interval = rate.interval_us();
    let burst = rate.burst_us();
    let tat = tat_us.clamp(now_us, now_us.saturating_add(burst));
    let next = tat.saturating_add(interval.saturating_mul(u64::from(cost)));
    if next.saturating_sub(now_us) <= burst {
        return Step {
            admitted: true,
            tat_us: next,
            remaining: units(burst - (next - now_us), interval, rate.limit),
            retry_after_us: 0,
            reset_after_us: next - now_us,
        };
    }
    // What costs more than the whole burst never fits; a window is as good an answer as any.
    let retry_after_us = if cost > rate.limit {
        rate.period_us()
    } else {
        next - now_us - burst
    };
    Step {
        admitted: false,
        tat_us: tat,
        remaining: units(burst - (tat - now_us), interval, rate.limit),
        retry_after_us,
        reset_after_us: tat - now_us,
    }
}

/// The TAT after a charged cost was given back.
pub fn give_back(tat_us: u64, rate: Rate, cost: u32) -> u64 {
    tat_us.saturating_sub(rate.interval_us().saturating_mul(u64::from(cost)))
}

fn units(room_us: u64, interval_us: u64, limit: u32) -> u32 {
    let whole = room_us.checked_div(interval_us).unwrap_or(0);
    u32::try_from(whole).unwrap_or(limit).min(limit)
}

#[cfg(test)]
mod tests;
