//! Who is counted under which name against which rule, what an admission decides, and the headers that tell the client. The
//! arithmetic over a table is [`crate::quota::apply`]; tables live in the stores.

use std::net::IpAddr;
use std::time::Duration;

use config::settings::proxy::{Limits, PerMinute, Plan};
use config::wire::valid;

use crate::gcra::Rate;
use crate::identity::{Principal, Subject};
use crate::quota::Day;
use crate::refusal::{Refusal, seconds_up};

/// Length of the short windows.
const MINUTE_MS: u64 = 60_000;

/// What a request costs from.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    /// Text only.
    Text,
    /// With images or audio.
    Media,
    /// Health and lists: no model runs.
    Health,
}

impl Kind {
    /// The label in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Media => "media",
            Self::Health => "health",
        }
    }
}

impl From<valid::Kind> for Kind {
    fn from(kind: valid::Kind) -> Self {
        match kind {
            valid::Kind::Text => Self::Text,
            valid::Kind::Media => Self::Media,
        }
    }
}

/// How a counter counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rule {
    /// A short window: the stored number is a TAT in microseconds.
    Gcra(Rate),
    /// A UTC day: the stored number is what was used.
    Day(Day),
}

/// One number that a request is charged to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Counter {
    /// Where the number is stored: `u:<16 hex>:text-min`; day counters end in the day, so a new day is a new number.
    pub key: String,
    /// The policy's name in headers and metrics.
    pub name: &'static str,
    /// How it counts.
    pub rule: Rule,
    /// Units of this request.
    pub cost: u32,
}

/// Where a counter stands after the decision.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CounterState {
    /// The policy's name.
    pub name: &'static str,
    /// Units in a window.
    pub limit: u32,
    /// Units left.
    pub remaining: u32,
    /// Until all units are back.
    pub reset_after: Duration,
    /// Length of the window.
    pub window: Duration,
}

/// How many requests a user has open, the present one included, and how many it may have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Concurrency {
    /// The most at once.
    pub limit: u32,
    /// Now.
    pub open: u32,
}

/// What an admission decided. It charges all its counters or none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decision {
    /// Every counter was charged.
    Admitted {
        /// In the order of the counters.
        states: Vec<CounterState>,
    },
    /// No counter was charged.
    Refused {
        /// Index of the counter that refuses longest.
        refused: usize,
        /// Until all of them would admit, if nobody else comes.
        retry_after: Duration,
        /// In the order of the counters.
        states: Vec<CounterState>,
    },
}

impl Decision {
    /// Where the counters stand.
    pub fn states(&self) -> &[CounterState] {
        match self {
            Self::Admitted { states } | Self::Refused { states, .. } => states,
        }
    }

    /// The refusal, if it is one.
    pub fn refusal(&self) -> Option<Refusal> {
        let Self::Refused {
            refused,
            retry_after,
            states,
        } = self
        else {
            return None;
        };
        let state = *states.get(*refused)?;
        let retry_after = *retry_after;
        if state.window > Duration::from_millis(MINUTE_MS) {
            return Some(Refusal::QuotaExceeded { retry_after, state });
        }
        Some(Refusal::RateLimited { retry_after, state })
    }
}

/// The counters of one request: its address and its user for a minute, and its user for the day.
///
/// A plan that raises a user's figure raises the address's too: a key with 300 a minute would otherwise stop at the 30 of the
/// machine it runs on.
pub fn counters(
    principal: &Principal,
    ip: IpAddr,
    kind: Kind,
    limits: &Limits,
    now_unix_ms: u64,
) -> Vec<Counter> {
    let plan = &principal.plan;
    let own = plan_per_minute(plan, kind);
    let ip_limit = per_minute(limits.per_ip, kind).max(own.unwrap_or(0));
    let user_limit = own.unwrap_or(per_minute(limits.per_user, kind));
    let subject = principal.subject();
    let (user_name, ip_name) = minute_names(kind);
    let mut all = vec![
        minute(&Subject::of_ip(ip), ip_name, ip_limit),
        minute(&subject, user_name, user_limit),
    ];
    let day = |name: &'static str, limit: u32| {
        let day = Day::at(limit, now_unix_ms);
        Counter {
            key: format!("{subject}:{name}:{}", day.day),
            name,
            rule: Rule::Day(day),
            cost: 1,
        }
    };
    match kind {
        Kind::Text => all.push(day(
            "text-day",
            plan.text_per_day.unwrap_or(limits.text_per_day),
        )),
        Kind::Media => all.push(day(
            "media-day",
            plan.media_per_day.unwrap_or(limits.media_per_day),
        )),
        Kind::Health => {}
    }
    all
}

/// The counter of an address alone, for what needs no credential.
pub fn ip_counters(ip: IpAddr, kind: Kind, limits: &Limits) -> Vec<Counter> {
    let (_, name) = minute_names(kind);
    vec![minute(
        &Subject::of_ip(ip),
        name,
        per_minute(limits.per_ip, kind),
    )]
}

/// How many requests of the principal may be open at once.
pub fn concurrent_max(principal: &Principal, limits: &Limits) -> u32 {
    principal
        .plan
        .concurrent
        .unwrap_or(limits.concurrent_per_user)
}

fn minute(subject: &Subject, name: &'static str, limit: u32) -> Counter {
    Counter {
        key: format!("{subject}:{name}"),
        name,
        rule: Rule::Gcra(Rate {
            limit,
            period_ms: MINUTE_MS,
        }),
        cost: 1,
    }
}

const fn minute_names(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Text => ("text-min", "text-min-ip"),
        Kind::Media => ("media-min", "media-min-ip"),
        Kind::Health => ("health-min", "health-min-ip"),
    }
}

const fn per_minute(figures: PerMinute, kind: Kind) -> u32 {
    match kind {
        Kind::Text => figures.text,
        Kind::Media => figures.media,
        Kind::Health => figures.health,
    }
}

const fn plan_per_minute(plan: &Plan, kind: Kind) -> Option<u32> {
    match kind {
        Kind::Text => plan.text_per_minute,
        Kind::Media => plan.media_per_minute,
        Kind::Health => None,
    }
}

/// The limit headers: OpenAI's for the counter that binds most, and the IETF draft's for all of them
/// (draft-ietf-httpapi-ratelimit-headers-10), with the user's open requests where they count. Empty without counters.
pub fn headers(
    states: &[CounterState],
    concurrency: Option<Concurrency>,
) -> Vec<(&'static str, String)> {
    let Some(binding) = states
        .iter()
        .min_by_key(|state| (state.remaining, std::cmp::Reverse(state.reset_after)))
    else {
        return Vec::new();
    };
    let mut policy = list(states, |state| {
        format!(
            "\"{}\";q={};w={}",
            state.name,
            state.limit,
            state.window.as_secs()
        )
    });
    let mut current = list(states, |state| {
        format!(
            "\"{}\";r={};t={}",
            state.name,
            state.remaining,
            reset_seconds(returns_after(state))
        )
    });
    if let Some(Concurrency { limit, open }) = concurrency {
        policy = format!("{policy}, \"concurrency\";q={limit};qu=\"concurrent-requests\"");
        // Nobody knows when one of them ends, so there is no `t`.
        current = format!(
            "{current}, \"concurrency\";r={}",
            limit.saturating_sub(open)
        );
    }
    vec![
        ("x-ratelimit-limit-requests", binding.limit.to_string()),
        (
            "x-ratelimit-remaining-requests",
            binding.remaining.to_string(),
        ),
        (
            "x-ratelimit-reset-requests",
            go_duration(binding.reset_after),
        ),
        ("ratelimit-policy", policy),
        ("ratelimit", current),
    ]
}

fn list(states: &[CounterState], item: impl Fn(&CounterState) -> String) -> String {
    states.iter().map(item).collect::<Vec<_>>().join(", ")
}

/// Until there is more than now. A short window fills up all the time: an empty one has its next unit long before it is full, and
/// `t` must not say later than the `Retry-After` next to it.
fn returns_after(state: &CounterState) -> Duration {
    if state.remaining > 0 || state.window > Duration::from_millis(MINUTE_MS) || state.limit == 0 {
        return state.reset_after;
    }
    let others = state.window / state.limit * (state.limit - 1);
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

#[cfg(test)]
mod tests;
