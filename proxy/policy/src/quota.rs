//! Days, and the one admission over any table of numbers: all counters are charged or none. The embedded store calls
//! [`apply`]; the Redis script mirrors [`step`] and asks [`decide`] for the answer. Keeps no table itself.

use std::time::Duration;

use crate::gcra;
use crate::limit::{Counter, CounterState, Decision, Rule};

/// One UTC day.
const DAY_MS: u64 = 86_400_000;
/// A day counter outlives its day by this, so that two proxies with slightly different clocks agree at midnight.
const DAY_SLACK_MS: u64 = 3_600_000;

/// A budget for one UTC calendar day.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Day {
    /// Units a day.
    pub limit: u32,
    /// The next midnight UTC, Unix milliseconds.
    pub resets_at_ms: u64,
    /// Days since 1970-01-01.
    pub day: i64,
}

impl Day {
    /// The day that holds the moment.
    pub fn at(limit: u32, now_unix_ms: u64) -> Self {
        let day = now_unix_ms / DAY_MS;
        Self {
            limit,
            resets_at_ms: (day + 1).saturating_mul(DAY_MS),
            day: i64::try_from(day).unwrap_or(i64::MAX),
        }
    }
}

/// A table of numbers by key; one transaction.
pub trait CounterMap {
    /// Why a number could not be read or written.
    type Error;

    /// The number, or `None` if there is none.
    fn load(&mut self, key: &str) -> Result<Option<u64>, Self::Error>;

    /// Stores the number; after `expires_at_ms` (Unix) it means nothing and may be dropped.
    fn save(&mut self, key: &str, value: u64, expires_at_ms: u64) -> Result<(), Self::Error>;
}

/// One counter against its stored number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Step {
    /// Whether the cost fits.
    pub admitted: bool,
    /// The number to store if every counter admits.
    pub value: u64,
    /// When the stored number stops to mean anything.
    pub expires_at_ms: u64,
    /// Until the cost would fit.
    pub retry_after: Duration,
    /// Where the counter stands: after the charge if it admits, as it was if not.
    pub state: CounterState,
}

/// Decides one counter at `now_us` (Unix microseconds).
pub fn step(counter: &Counter, stored: Option<u64>, now_us: u64) -> Step {
    match counter.rule {
        Rule::Gcra(rate) => {
            let step = gcra::step(stored.unwrap_or(0), rate, counter.cost, now_us);
            Step {
                admitted: step.admitted,
                value: step.tat_us,
                expires_at_ms: step.tat_us.div_ceil(1_000),
                retry_after: Duration::from_micros(step.retry_after_us),
                state: CounterState {
                    name: counter.name,
                    limit: rate.limit,
                    remaining: step.remaining,
                    reset_after: Duration::from_micros(step.reset_after_us),
                    window: Duration::from_millis(rate.period_ms),
                },
            }
        }
        Rule::Day(day) => day_step(counter, day, stored.unwrap_or(0), now_us),
    }
}

fn day_step(counter: &Counter, day: Day, used: u64, now_us: u64) -> Step {
    let limit = u64::from(day.limit);
    let next = used.saturating_add(u64::from(counter.cost));
    let admitted = next <= limit;
    let value = if admitted { next } else { used };
    let until = Duration::from_micros(
        day.resets_at_ms
            .saturating_mul(1_000)
            .saturating_sub(now_us),
    );
    Step {
        admitted,
        value,
        expires_at_ms: day.resets_at_ms.saturating_add(DAY_SLACK_MS),
        retry_after: if admitted { Duration::ZERO } else { until },
        state: CounterState {
            name: counter.name,
            limit: day.limit,
            remaining: u32::try_from(limit.saturating_sub(value)).unwrap_or(u32::MAX),
            reset_after: until,
            window: Duration::from_millis(DAY_MS),
        },
    }
}

/// What [`decide`] found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verdict {
    /// For the caller.
    pub decision: Decision,
    /// What to store, in the order of the counters; empty when refused.
    pub writes: Vec<Write>,
}

/// A number to store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Write {
    /// The number.
    pub value: u64,
    /// When it stops to mean anything, Unix milliseconds.
    pub expires_at_ms: u64,
}

/// Decides over stored numbers, which come in the order of the counters: all are charged or none. A store that charges on its
/// own (the Redis script) returns the numbers it found and its clock, and gets the same answer from here.
///
/// When refused, counters that would have admitted report what is left without the charge.
pub fn decide(counters: &[Counter], stored: &[Option<u64>], now_us: u64) -> Verdict {
    let stored = stored.iter().copied().chain(std::iter::repeat(None));
    let steps: Vec<Step> = counters
        .iter()
        .zip(stored)
        .map(|(counter, stored)| step(counter, stored, now_us))
        .collect();
    let refused = steps
        .iter()
        .enumerate()
        .filter(|(_, step)| !step.admitted)
        .max_by_key(|(_, step)| step.retry_after)
        .map(|(index, step)| (index, step.retry_after));
    if let Some((refused, retry_after)) = refused {
        let states = steps
            .iter()
            .zip(counters)
            .map(|(step, counter)| step.uncharged(counter))
            .collect();
        return Verdict {
            decision: Decision::Refused {
                refused,
                retry_after,
                states,
            },
            writes: Vec::new(),
        };
    }
    Verdict {
        decision: Decision::Admitted {
            states: steps.iter().map(|step| step.state).collect(),
        },
        writes: steps
            .iter()
            .map(|step| Write {
                value: step.value,
                expires_at_ms: step.expires_at_ms,
            })
            .collect(),
    }
}

/// Charges all counters or none.
pub fn apply<M: CounterMap>(
    map: &mut M,
    counters: &[Counter],
    now_us: u64,
) -> Result<Decision, M::Error> {
    let mut stored = Vec::with_capacity(counters.len());
    for counter in counters {
        stored.push(map.load(&counter.key)?);
    }
    let Verdict { decision, writes } = decide(counters, &stored, now_us);
    for (counter, write) in counters.iter().zip(writes) {
        map.save(&counter.key, write.value, write.expires_at_ms)?;
    }
    Ok(decision)
}

impl Step {
    /// The state without the charge.
    fn uncharged(&self, counter: &Counter) -> CounterState {
        if !self.admitted {
            return self.state;
        }
        let mut state = self.state;
        state.remaining = state
            .remaining
            .saturating_add(counter.cost)
            .min(state.limit);
        if let Rule::Gcra(rate) = counter.rule {
            let charged =
                Duration::from_micros(rate.interval_us().saturating_mul(u64::from(counter.cost)));
            state.reset_after = state.reset_after.saturating_sub(charged);
        }
        state
    }
}

/// Returns what an admission charged. A number that is gone stays gone.
pub fn give_back<M: CounterMap>(map: &mut M, counters: &[Counter]) -> Result<(), M::Error> {
    for counter in counters {
        let Some(stored) = map.load(&counter.key)? else {
            continue;
        };
        let (value, expires_at_ms) = match counter.rule {
            Rule::Gcra(rate) => {
                let tat = gcra::give_back(stored, rate, counter.cost);
                (tat, tat.div_ceil(1_000))
            }
            Rule::Day(day) => (
                stored.saturating_sub(u64::from(counter.cost)),
                day.resets_at_ms.saturating_add(DAY_SLACK_MS),
            ),
        };
        map.save(&counter.key, value, expires_at_ms)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
