//! The limit headers: OpenAI's for the request and the token counter that bind most, and the IETF draft's for all of them
//! (draft-ietf-httpapi-ratelimit-headers-10). Says nothing that the counters do not.

use std::cmp::Reverse;
use std::fmt::Write as _;
use std::time::Duration;

use super::{CounterState, Measure, Unit};
use crate::refusal::seconds_up;

/// How many requests a user has open, the present one included, and how many it may have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Concurrency {
    /// The most at once.
    pub limit: u64,
    /// Now.
    pub open: u64,
}

/// The headers of these counters; `concurrency` counts where no counter of that kind does. Empty without counters.
pub fn headers(
    states: &[CounterState],
    concurrency: Option<Concurrency>,
) -> Vec<(&'static str, String)> {
    if states.is_empty() {
        return Vec::new();
    }
    let mut sent = Vec::with_capacity(8);
    if let Some(state) = binding(states, Unit::Requests) {
        sent.push(("x-ratelimit-limit-requests", state.limit.to_string()));
        sent.push((
            "x-ratelimit-remaining-requests",
            state.remaining.to_string(),
        ));
        sent.push(("x-ratelimit-reset-requests", go_duration(state.reset_after)));
    }
    if let Some(state) = binding(states, Unit::Tokens) {
        sent.push(("x-ratelimit-limit-tokens", state.limit.to_string()));
        sent.push(("x-ratelimit-remaining-tokens", state.remaining.to_string()));
        sent.push(("x-ratelimit-reset-tokens", go_duration(state.reset_after)));
    }
    let (mut policy, mut current) = (String::with_capacity(256), String::with_capacity(256));
    for state in distinct(states) {
        one(state, &mut policy, &mut current);
    }
    let counted = states
        .iter()
        .any(|state| state.name.measure == Measure::Concurrent);
    if let (Some(Concurrency { limit, open }), false) = (concurrency, counted) {
        comma(&mut policy, &mut current);
        let left = limit.saturating_sub(open);
        // Writing to a String cannot fail.
        let _ = write!(
            policy,
            "\"concurrency\";q={limit};qu=\"concurrent-requests\""
        );
        let _ = write!(current, "\"concurrency\";r={left}");
    }
    sent.push(("ratelimit-policy", policy));
    sent.push(("ratelimit", current));
    sent
}

/// The counter of this unit with the least left; what is held is not a window and has headers of its own.
fn binding(states: &[CounterState], unit: Unit) -> Option<&CounterState> {
    states
        .iter()
        .filter(|state| state.unit == unit && !state.is_held())
        .min_by_key(|state| (state.remaining, Reverse(state.reset_after)))
}

/// One state a name: a person in two groups has two counters of one name, and the one with less left counts.
fn distinct(states: &[CounterState]) -> impl Iterator<Item = &CounterState> {
    states.iter().enumerate().filter_map(|(index, state)| {
        let tighter = |(other_index, other): (usize, &CounterState)| {
            other.name == state.name && (other.remaining, other_index) < (state.remaining, index)
        };
        (!states.iter().enumerate().any(tighter)).then_some(state)
    })
}

fn comma(policy: &mut String, current: &mut String) {
    if !policy.is_empty() {
        policy.push_str(", ");
        current.push_str(", ");
    }
}

fn one(state: &CounterState, policy: &mut String, current: &mut String) {
    comma(policy, current);
    let CounterState {
        name,
        limit,
        remaining,
        ..
    } = state;
    // Writing to a String cannot fail.
    let _ = write!(policy, "\"{name}\";q={limit}");
    if !state.is_held() {
        let _ = write!(policy, ";w={}", state.window.as_secs());
    }
    // Units that the draft does not know are named as ours.
    let unit = match (state.unit, state.name.measure) {
        (Unit::Requests, Measure::Concurrent) => ";qu=\"concurrent-requests\"",
        (Unit::Requests, _) => "",
        (Unit::Tokens, _) => ";hearth-unit=\"tokens\"",
        (Unit::Items, _) => ";hearth-unit=\"media-items\"",
        (Unit::Bytes, _) => ";qu=\"content-bytes\"",
        (Unit::Micros, _) => ";hearth-unit=\"micros\"",
    };
    policy.push_str(unit);
    let _ = write!(current, "\"{name}\";r={remaining}");
    // Nobody knows when somebody gives back what is held, so there is no `t`.
    if !state.is_held() {
        let _ = write!(current, ";t={}", reset_seconds(returns_after(state)));
    }
}

/// Until there is more than now. A short window fills up all the time: an empty one has its next unit long before it is full,
/// and `t` must not say later than the `Retry-After` next to it.
fn returns_after(state: &CounterState) -> Duration {
    if state.remaining > 0 || state.span.is_some() || state.limit == 0 {
        return state.reset_after;
    }
    let interval_us = u64::try_from(state.window.as_micros())
        .unwrap_or(u64::MAX)
        .div_ceil(state.limit);
    let others = Duration::from_micros(interval_us.saturating_mul(state.limit - 1));
    state.reset_after.saturating_sub(others)
}

fn reset_seconds(reset_after: Duration) -> u64 {
    if reset_after.is_zero() {
        return 0;
    }
    seconds_up(reset_after)
}

/// A duration as Go prints it, to the millisecond: `0s`, `20ms`, `1.5s`, `6m0s`, `23h59m59s`.
pub fn go_duration(duration: Duration) -> String {
    let ms = duration.as_micros().div_ceil(1_000);
    if ms == 0 {
        return "0s".to_owned();
    }
    if ms < 1_000 {
        return format!("{ms}ms");
    }
    let (seconds, fraction) = (ms / 1_000, ms % 1_000);
    let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    let mut text = String::new();
    if hours > 0 {
        text = format!("{hours}h");
    }
    if hours > 0 || minutes > 0 {
        text = format!("{text}{minutes}m");
    }
    if fraction == 0 {
        return format!("{text}{seconds}s");
    }
    let decimals = format!("{fraction:03}");
    format!("{text}{seconds}.{}s", decimals.trim_end_matches('0'))
}
