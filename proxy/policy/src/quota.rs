//! The one admission over any table of numbers: all counters are charged or none, settled once, given back exactly. The
//! embedded store calls [`apply`] and [`settle`]; the Redis scripts mirror the arithmetic and ask [`decide`] for the words.
//! Keeps no table itself.
//!
//! The rule, in the words that the script repeats. For each counter at `now` from its stored number `s` (0 if none):
//!
//! 1. `room`: `gcra`: `t = min(max(s, now), now + 2*burst)`, `floor(max(0, burst - (t - now)) / interval)`, at most `limit`;
//!    `window` and `held`: `max(0, limit - s)`.
//! 2. `fits`: the counter refuses if `cost > room`. Else it grants `want` if `charge(want) <= room`, and otherwise
//!    `floor((room - cost) * 1,000,000 / per_million)`; with `per_million = 0` it grants `want`.
//! 3. `granted` is the least of all grants. Admitted if none refuses and `granted >= min`.
//! 4. Each counter is charged `c = cost + ceil(granted * per_million / 1,000,000)`: `gcra` stores `t + interval * c`, `window`
//!    and `held` store `s + c`. A counter whose `c` is 0 is not written. Counters of one request have different keys.
//!
//! Settlement of one counter with what was charged `c` (0 if the reservation is gone) and what was spent `p`:
//! `p > c`: `gcra`: `t + interval * (p - c)`, `window`, `held`: `s + (p - c)`; never refused. `p < c` and a number is stored:
//! `gcra`: `s - min(interval * (c - p), max(0, charged_to - now))` with `charged_to` the TAT that the charge stored;
//! `window`, `held`: `max(0, s - (c - p))`. A held number of 0 is dropped.

use std::sync::Arc;
use std::time::Duration;

use crate::limit::{Counter, CounterState, Decision, Elastic, MILLION, Rule};

/// A window's number outlives it by this: requests that began in it settle later, and clocks differ.
const WINDOW_SLACK_MS: u64 = 3_600_000;
/// How long a request is thought to hold something, when waits are compared.
const HELD_RANK: Duration = Duration::from_secs(1);
/// A held number means something until it is given back.
pub const NEVER_MS: u64 = u64::MAX;

/// A table of numbers by key; one transaction.
pub trait CounterMap {
    /// Why a number could not be read or written.
    type Error;

    /// The number, or `None` if there is none.
    fn load(&mut self, key: &str) -> Result<Option<u64>, Self::Error>;

    /// Stores the number; after `expires_at_ms` (Unix) it means nothing and may be dropped.
    fn save(&mut self, key: &Arc<str>, value: u64, expires_at_ms: u64) -> Result<(), Self::Error>;
}

/// A number to store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Write {
    /// The number.
    pub value: u64,
    /// When it stops to mean anything, Unix milliseconds; [`NEVER_MS`] for what is held, 0 when it may go at once.
    pub expires_at_ms: u64,
}

/// What a reservation charged to one counter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Charge {
    /// Units.
    pub units: u64,
    /// The TAT that this charge stored; 0 for other rules.
    pub charged_to_us: u64,
}

/// What [`decide`] found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verdict {
    /// For the caller.
    pub decision: Decision,
    /// In the order of the counters; empty when refused.
    pub charges: Vec<Charge>,
    /// What to store, in the order of the counters; empty when refused.
    pub writes: Vec<Write>,
}

/// Units that still fit.
pub fn room(rule: Rule, stored: Option<u64>, now_us: u64) -> u64 {
    let stored = stored.unwrap_or(0);
    match rule {
        Rule::Gcra(rate) => rate.room(stored, now_us),
        Rule::Window(window) => window.limit.saturating_sub(stored),
        Rule::Held { limit } => limit.saturating_sub(stored),
    }
}

/// Tokens that one counter grants; `None`: its fixed cost does not fit.
fn grants(counter: &Counter, room: u64, want: u64) -> Option<u64> {
    let left = room.checked_sub(counter.cost)?;
    if counter.charge(want) <= room {
        return Some(want);
    }
    let parts = u128::from(left) * u128::from(MILLION);
    let whole = parts.checked_div(u128::from(counter.per_million))?;
    Some(u64::try_from(whole).unwrap_or(u64::MAX).min(want))
}

/// Decides over stored numbers, which come in the order of the counters: all are charged or none. A store that charges on its
/// own (the Redis script) returns the numbers it found and its clock, and gets the same answer from here.
pub fn decide(
    counters: &[Counter],
    elastic: Elastic,
    stored: &[Option<u64>],
    now_us: u64,
) -> Verdict {
    let found = || {
        counters
            .iter()
            .zip(stored.iter().copied().chain(std::iter::repeat(None)))
    };
    let mut granted = elastic.want;
    let mut refuses = false;
    for (counter, stored) in found() {
        match grants(counter, room(counter.rule, stored, now_us), elastic.want) {
            Some(one) => granted = granted.min(one),
            None => refuses = true,
        }
    }
    if refuses || granted < elastic.min {
        let room = if refuses { 0 } else { granted };
        return refuse(found(), elastic, room, now_us);
    }
    let mut verdict = Verdict {
        decision: Decision::Admitted {
            granted,
            states: Vec::with_capacity(counters.len()),
        },
        charges: Vec::with_capacity(counters.len()),
        writes: Vec::with_capacity(counters.len()),
    };
    let mut states = Vec::with_capacity(counters.len());
    for (counter, stored) in found() {
        let units = counter.charge(granted);
        let value = add(counter.rule, stored.unwrap_or(0), units, now_us);
        states.push(state(counter, Some(value), now_us));
        verdict.charges.push(Charge {
            units,
            charged_to_us: charged_to(counter.rule, value),
        });
        verdict.writes.push(write(counter.rule, value));
    }
    verdict.decision = Decision::Admitted { granted, states };
    verdict
}

fn refuse<'a>(
    found: impl Iterator<Item = (&'a Counter, Option<u64>)>,
    elastic: Elastic,
    room: u64,
    now_us: u64,
) -> Verdict {
    let mut states = Vec::new();
    let mut longest: Option<(Duration, usize, Option<Duration>)> = None;
    for (index, (counter, stored)) in found.enumerate() {
        states.push(state(counter, stored, now_us));
        let need = counter.charge(elastic.min);
        if need <= self::room(counter.rule, stored, now_us) {
            continue;
        }
        let wait = wait(counter.rule, stored.unwrap_or(0), need, now_us);
        // What never fits is the longest; what is held ends with some other request, which is soon.
        let rank = match wait {
            Some(wait) => wait,
            None if need > counter.rule.limit() => Duration::MAX,
            None => HELD_RANK,
        };
        if longest.is_none_or(|(known, ..)| rank > known) {
            longest = Some((rank, index, wait));
        }
    }
    let (_, refused, retry_after) = longest.unwrap_or_default();
    Verdict {
        decision: Decision::Refused {
            refused,
            retry_after,
            room,
            states,
        },
        charges: Vec::new(),
        writes: Vec::new(),
    }
}

/// Until `need` units fit; `None`: no time helps.
fn wait(rule: Rule, stored: u64, need: u64, now_us: u64) -> Option<Duration> {
    if need > rule.limit() {
        return None;
    }
    match rule {
        Rule::Gcra(rate) => rate
            .wait_us(stored, need, now_us)
            .map(Duration::from_micros),
        Rule::Window(window) => Some(until(window.resets_at_ms, now_us)),
        Rule::Held { .. } => None,
    }
}

fn until(at_ms: u64, now_us: u64) -> Duration {
    Duration::from_micros(at_ms.saturating_mul(1_000).saturating_sub(now_us))
}

/// The number after `units` more.
fn add(rule: Rule, stored: u64, units: u64, now_us: u64) -> u64 {
    match rule {
        Rule::Gcra(rate) => rate.charge(stored, units, now_us),
        Rule::Window(_) | Rule::Held { .. } => stored.saturating_add(units),
    }
}

const fn charged_to(rule: Rule, value: u64) -> u64 {
    match rule {
        Rule::Gcra(_) => value,
        Rule::Window(_) | Rule::Held { .. } => 0,
    }
}

fn write(rule: Rule, value: u64) -> Write {
    let expires_at_ms = match rule {
        Rule::Gcra(_) => value.div_ceil(1_000),
        Rule::Window(window) => window.resets_at_ms.saturating_add(WINDOW_SLACK_MS),
        Rule::Held { .. } if value == 0 => 0,
        Rule::Held { .. } => NEVER_MS,
    };
    Write {
        value,
        expires_at_ms,
    }
}

/// Where a counter stands with this number.
pub fn state(counter: &Counter, stored: Option<u64>, now_us: u64) -> CounterState {
    let remaining = room(counter.rule, stored, now_us);
    let (reset_after, window, span) = match counter.rule {
        Rule::Gcra(rate) => {
            let tat = rate.tat_us(stored.unwrap_or(0), now_us);
            let reset = Duration::from_micros(tat.saturating_sub(now_us));
            (reset, Duration::from_millis(rate.period_ms), None)
        }
        Rule::Window(window) => (
            until(window.resets_at_ms, now_us),
            Duration::from_millis(window.resets_at_ms.saturating_sub(window.starts_at_ms)),
            Some(window.span),
        ),
        Rule::Held { .. } => (Duration::ZERO, Duration::ZERO, None),
    };
    CounterState {
        name: counter.name,
        unit: counter.unit,
        limit: counter.rule.limit(),
        remaining,
        reset_after,
        window,
        span,
    }
}

/// Charges all counters or none; the charges are what a settlement needs later.
pub fn apply<M: CounterMap>(
    map: &mut M,
    counters: &[Counter],
    elastic: Elastic,
    now_us: u64,
) -> Result<(Decision, Vec<Charge>), M::Error> {
    let mut stored = Vec::with_capacity(counters.len());
    for counter in counters {
        stored.push(map.load(&counter.key)?);
    }
    let verdict = decide(counters, elastic, &stored, now_us);
    let written = counters.iter().zip(&verdict.charges).zip(verdict.writes);
    for ((counter, charge), write) in written {
        if charge.units > 0 {
            map.save(&counter.key, write.value, write.expires_at_ms)?;
        }
    }
    Ok((verdict.decision, verdict.charges))
}

/// Brings one counter from what was charged to what was spent. `charge` is `None` when the reservation is gone: then all that
/// was spent is charged.
pub fn settle<M: CounterMap>(
    map: &mut M,
    (key, rule): (&Arc<str>, Rule),
    charge: Option<Charge>,
    spent: u64,
    now_us: u64,
) -> Result<(), M::Error> {
    let charged = charge.map_or(0, |charge| charge.units);
    if spent == charged {
        return Ok(());
    }
    let stored = map.load(key)?;
    if let Some(write) = settled(rule, stored, charge, spent, now_us) {
        map.save(key, write.value, write.expires_at_ms)?;
    }
    Ok(())
}

/// The number after a settlement; `None`: nothing changes.
pub fn settled(
    rule: Rule,
    stored: Option<u64>,
    charge: Option<Charge>,
    spent: u64,
    now_us: u64,
) -> Option<Write> {
    let Charge {
        units,
        charged_to_us,
    } = charge.unwrap_or(Charge {
        units: 0,
        charged_to_us: 0,
    });
    if spent > units {
        let value = add(rule, stored.unwrap_or(0), spent - units, now_us);
        return Some(write(rule, value));
    }
    // What is gone stays gone.
    let stored = stored?;
    let back = units - spent;
    if back == 0 {
        return None;
    }
    let value = match rule {
        Rule::Gcra(rate) => rate.refund(stored, back, charged_to_us, now_us),
        Rule::Window(_) | Rule::Held { .. } => stored.saturating_sub(back),
    };
    Some(write(rule, value))
}

#[cfg(test)]
mod tests;
