//! The generic cell rate algorithm in whole microseconds: the one arithmetic of every short window, here and in the Redis
//! script. Stores nothing.
//!
//! A counter is one number, the *theoretical arrival time* (TAT): the moment at which its bucket is full again. Each unit of
//! cost moves it `interval` ahead; a cost is admitted while the TAT stays within `interval * limit` of now. So 30 a minute
//! means a burst of 30, then one each 2 s. Microseconds since 1970 stay below 2^53, so Lua's numbers hold them exactly, and so
//! does every product below while `limit` stays within [`LIMIT_MAX`].

/// Units a minute at most: one a microsecond.
pub const LIMIT_MAX: u64 = 60_000_000;

/// A limit of `limit` units each `period_ms`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Rate {
    /// Units; also the burst. 0 refuses everything.
    pub limit: u64,
    /// Window in milliseconds.
    pub period_ms: u64,
}

impl Rate {
    /// Time that one unit takes to come back. Rounded up, so that no window ever gains a unit; what this loses is below one
    /// microsecond a unit.
    pub fn interval_us(self) -> u64 {
        self.period_us().div_ceil(self.limit.max(1))
    }

    /// How far the TAT may lie ahead.
    pub fn burst_us(self) -> u64 {
        self.interval_us().saturating_mul(self.limit)
    }

    /// The window.
    pub const fn period_us(self) -> u64 {
        self.period_ms.saturating_mul(1_000)
    }

    /// The TAT that counts at `now_us`: an old one means a full bucket, and one more than two bursts ahead can only come from a
    /// clock that was set back or from a limit that was lowered, so nobody is locked out for longer than two windows.
    pub fn tat_us(self, stored_us: u64, now_us: u64) -> u64 {
        let furthest = now_us.saturating_add(self.burst_us().saturating_mul(2));
        stored_us.clamp(now_us, furthest)
    }

    /// Whole units that fit at `now_us`.
    pub fn room(self, stored_us: u64, now_us: u64) -> u64 {
        let ahead = self.tat_us(stored_us, now_us).saturating_sub(now_us);
        let free = self.burst_us().saturating_sub(ahead);
        free.checked_div(self.interval_us())
            .unwrap_or(self.limit)
            .min(self.limit)
    }

    /// The TAT after `cost` more units.
    pub fn charge(self, stored_us: u64, cost: u64, now_us: u64) -> u64 {
        self.tat_us(stored_us, now_us)
            .saturating_add(self.interval_us().saturating_mul(cost))
    }

    /// Until `cost` units fit; `None`: never, it is more than the burst.
    pub fn wait_us(self, stored_us: u64, cost: u64, now_us: u64) -> Option<u64> {
        if cost > self.limit {
            return None;
        }
        let next = self.charge(stored_us, cost, now_us);
        Some(next.saturating_sub(now_us).saturating_sub(self.burst_us()))
    }

    /// The TAT after `units` of a charge were given back that had moved it to `charged_to_us`. What of that charge came back by
    /// itself meanwhile comes back no second time: a refund that is late by a whole window gives nothing.
    pub fn refund(self, stored_us: u64, units: u64, charged_to_us: u64, now_us: u64) -> u64 {
        let owed = charged_to_us.saturating_sub(now_us);
        let back = self.interval_us().saturating_mul(units).min(owed);
        stored_us.saturating_sub(back)
    }
}

#[cfg(test)]
mod tests;
