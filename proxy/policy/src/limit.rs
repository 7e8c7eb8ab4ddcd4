//! The words of counting: what a counter is, what an admission decides, what it tells. The arithmetic over a table is
//! [`crate::quota`]; who is counted against what is [`crate::plan`]; tables live in the stores.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use config::tier::Tier;
use config::wire::valid;

use crate::gcra::Rate;
use crate::refusal::Refusal;

mod headers;

pub use headers::{Concurrency, go_duration, headers};

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

/// What a counter counts.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Unit {
    /// Requests.
    Requests,
    /// Tokens, prompt and answer together.
    Tokens,
    /// Pictures and pieces of sound.
    Items,
    /// Bytes.
    Bytes,
    /// Money, millionths of the currency.
    Micros,
}

/// Whose budget a counter is, from the leaf of the tree to its root.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Level {
    /// The client's address.
    Address,
    /// The API key.
    Key,
    /// The person.
    User,
    /// A group of the person.
    Group,
    /// The tenant.
    Organisation,
    /// Everybody.
    Service,
}

impl Level {
    /// Whose budget it is, for a sentence to the caller.
    pub const fn whose(self) -> &'static str {
        match self {
            Self::Address => "your address's",
            Self::Key => "this key's",
            Self::User => "your",
            Self::Group => "your group's",
            Self::Organisation => "your organisation's",
            Self::Service => "this service's",
        }
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::Address | Self::User => "",
            Self::Key => "key-",
            Self::Group => "group-",
            Self::Organisation => "org-",
            Self::Service => "service-",
        }
    }
}

/// What is limited.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Measure {
    /// Text requests a minute.
    TextMinute,
    /// Media requests a minute.
    MediaMinute,
    /// Health checks and lists a minute.
    HealthMinute,
    /// Text requests a day.
    TextDay,
    /// Media requests a day.
    MediaDay,
    /// Tokens a minute.
    TokensMinute,
    /// Tokens a day.
    TokensDay,
    /// Tokens a month.
    TokensMonth,
    /// Pictures and sound a day.
    ItemsDay,
    /// Bytes of pictures and sound a day.
    BytesDay,
    /// Bytes that lie stored.
    StoredBytes,
    /// Requests in progress.
    Concurrent,
    /// Money a day.
    MoneyDay,
    /// Money a month.
    MoneyMonth,
}

impl Measure {
    /// The name of the policy in headers, metrics and keys, without whose it is.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TextMinute => "text-min",
            Self::MediaMinute => "media-min",
            Self::HealthMinute => "health-min",
            Self::TextDay => "text-day",
            Self::MediaDay => "media-day",
            Self::TokensMinute => "tokens-min",
            Self::TokensDay => "tokens-day",
            Self::TokensMonth => "tokens-month",
            Self::ItemsDay => "media-items-day",
            Self::BytesDay => "media-bytes-day",
            Self::StoredBytes => "media-bytes",
            Self::Concurrent => "concurrency",
            Self::MoneyDay => "money-day",
            Self::MoneyMonth => "money-month",
        }
    }

    /// What is counted.
    pub const fn unit(self) -> Unit {
        match self {
            Self::TextMinute
            | Self::MediaMinute
            | Self::HealthMinute
            | Self::TextDay
            | Self::MediaDay
            | Self::Concurrent => Unit::Requests,
            Self::TokensMinute | Self::TokensDay | Self::TokensMonth => Unit::Tokens,
            Self::ItemsDay => Unit::Items,
            Self::BytesDay | Self::StoredBytes => Unit::Bytes,
            Self::MoneyDay | Self::MoneyMonth => Unit::Micros,
        }
    }
}

/// The policy's name: `text-min`, `text-min-ip`, `group-tokens-month`, `tokens-day-heavy`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Name {
    /// Whose budget.
    pub level: Level,
    /// Of what.
    pub measure: Measure,
    /// Only of this tier.
    pub tier: Option<Tier>,
}

impl Name {
    /// A budget over all tiers.
    pub const fn new(level: Level, measure: Measure) -> Self {
        Self {
            level,
            measure,
            tier: None,
        }
    }

    /// A budget of the person.
    pub const fn user(measure: Measure) -> Self {
        Self::new(Level::User, measure)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.level.prefix())?;
        f.write_str(self.measure.as_str())?;
        if self.level == Level::Address {
            f.write_str("-ip")?;
        }
        if let Some(tier) = self.tier {
            f.write_str("-")?;
            f.write_str(tier.as_str())?;
        }
        Ok(())
    }
}

/// How long a calendar window is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Span {
    /// A local day.
    Day,
    /// A local month.
    Month,
}

/// A budget for one calendar day or month of a time zone.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Window {
    /// Units in it.
    pub limit: u64,
    /// Its first moment, Unix milliseconds.
    pub starts_at_ms: u64,
    /// The first moment of the next one, Unix milliseconds.
    pub resets_at_ms: u64,
    /// Which kind.
    pub span: Span,
}

/// How a counter counts. Every stored number stays below 2^53.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Rule {
    /// A short window: the stored number is a TAT in Unix microseconds.
    Gcra(Rate),
    /// A day or month: the stored number is what was used in it.
    Window(Window),
    /// What is held now, such as requests in progress or stored bytes: no time brings it back.
    Held {
        /// Units at most.
        limit: u64,
    },
}

impl Rule {
    /// The most units at once.
    pub const fn limit(self) -> u64 {
        match self {
            Self::Gcra(rate) => rate.limit,
            Self::Window(window) => window.limit,
            Self::Held { limit } => limit,
        }
    }
}

/// Parts of a unit in which elastic costs are given; see [`Counter::per_million`].
pub const MILLION: u64 = 1_000_000;

/// One number that a request is charged to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Counter {
    /// Where the number is stored: `{home}:u:<16 hex>:tokens-day:2026-11-21`. The tenant in braces is the hash slot; windows
    /// end in their local date, so a new day is a new number.
    pub key: Arc<str>,
    /// The policy's name.
    pub name: Name,
    /// What is counted.
    pub unit: Unit,
    /// How it counts.
    pub rule: Rule,
    /// What is charged however much is granted: 1 request, the prompt's tokens, the prompt's price.
    pub cost: u64,
    /// What each granted token costs besides, in millionths of the unit: 0 for requests, [`MILLION`] for tokens, the price of
    /// a million tokens in millionths of the currency for money.
    pub per_million: u64,
}

impl Counter {
    /// The whole charge when `granted` tokens are granted: `cost + ceil(granted * per_million / 1,000,000)`.
    pub fn charge(&self, granted: u64) -> u64 {
        let product = u128::from(granted) * u128::from(self.per_million);
        let elastic = u64::try_from(product.div_ceil(u128::from(MILLION))).unwrap_or(u64::MAX);
        self.cost.saturating_add(elastic)
    }
}

/// How many tokens a request would like to be granted, and with how few it is content. Requests without an answer want none.
/// `want * per_million` stays below 2^53, so Lua's numbers hold it: ten million tokens at 900 a million.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Elastic {
    /// At most this many.
    pub want: u64,
    /// At least this many, or nothing is charged.
    pub min: u64,
}

/// Where a counter stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CounterState {
    /// The policy's name.
    pub name: Name,
    /// What is counted.
    pub unit: Unit,
    /// Units in a window, or at once.
    pub limit: u64,
    /// Units left.
    pub remaining: u64,
    /// Until all units are back; zero for what no time brings back.
    pub reset_after: Duration,
    /// Length of the window; zero for what is held.
    pub window: Duration,
    /// `None`: a short window, or held.
    pub span: Option<Span>,
}

impl CounterState {
    /// Whether no time brings units back.
    pub const fn is_held(&self) -> bool {
        self.window.is_zero()
    }
}

/// What an admission decided. It charges all its counters or none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decision {
    /// Every counter was charged.
    Admitted {
        /// Tokens granted, between the least and the most that was wanted.
        granted: u64,
        /// In the order of the counters, after the charge.
        states: Vec<CounterState>,
    },
    /// No counter was charged.
    Refused {
        /// Index of the counter that refuses longest.
        refused: usize,
        /// Until all of them would admit, if nobody else comes; `None`: waiting does not help, because the cost is above the
        /// limit itself, or because only giving something back makes room.
        retry_after: Option<Duration>,
        /// Tokens that would have been granted to somebody content with them; 0 when a fixed cost does not fit.
        room: u64,
        /// In the order of the counters, without a charge.
        states: Vec<CounterState>,
    },
}

impl Decision {
    /// Where the counters stand.
    pub fn states(&self) -> &[CounterState] {
        match self {
            Self::Admitted { states, .. } | Self::Refused { states, .. } => states,
        }
    }

    /// Whether every counter was charged.
    pub const fn is_admitted(&self) -> bool {
        matches!(self, Self::Admitted { .. })
    }

    /// Tokens granted; 0 when refused.
    pub const fn granted(&self) -> u64 {
        match self {
            Self::Admitted { granted, .. } => *granted,
            Self::Refused { .. } => 0,
        }
    }

    /// The refusal, if it is one.
    pub fn refusal(&self) -> Option<Refusal> {
        let Self::Refused {
            refused,
            retry_after,
            states,
            ..
        } = self
        else {
            return None;
        };
        let state = *states.get(*refused)?;
        if state.name.measure == Measure::Concurrent {
            return Some(Refusal::TooManyOpen { limit: state.limit });
        }
        let Some(retry_after) = *retry_after else {
            return Some(Refusal::NeverFits { state });
        };
        if state.span.is_some() {
            return Some(Refusal::QuotaExceeded { retry_after, state });
        }
        Some(Refusal::RateLimited { retry_after, state })
    }
}

#[cfg(test)]
mod tests;
