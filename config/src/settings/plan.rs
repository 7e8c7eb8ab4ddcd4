//! Plans and prices: what people, keys, groups, tenants and the whole service may spend, and what it costs. Figures only.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::tier::Tier;
use crate::wire::wishes::Priority;
pub use crate::zone::Zone;

/// Figures of one person, key, group, tenant or of the service; `None` keeps what stands before it, and where nothing stands
/// there is no limit. As a value of its own it is what an administrator sets for one person: an override.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plan {
    /// Text requests a minute.
    pub text_per_minute: Option<u32>,
    /// Media requests a minute.
    pub media_per_minute: Option<u32>,
    /// Text requests a day.
    pub text_per_day: Option<u32>,
    /// Media requests a day.
    pub media_per_day: Option<u32>,
    /// Requests in progress.
    pub concurrent: Option<u32>,
    /// Tokens a minute, prompt and answer together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// Tokens a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_day: Option<u64>,
    /// Tokens a month.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_month: Option<u64>,
    /// Tokens of the heavy tier a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heavy_tokens_per_day: Option<u64>,
    /// Tokens of the heavy tier a month.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heavy_tokens_per_month: Option<u64>,
    /// Tokens of the primary tier a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary_tokens_per_day: Option<u64>,
    /// Tokens of the primary tier a month.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary_tokens_per_month: Option<u64>,
    /// Pictures and pieces of sound a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub media_items_per_day: Option<u64>,
    /// Bytes of pictures and sound a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub media_bytes_per_day: Option<u64>,
    /// Bytes that may lie stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<u64>,
    /// Money a day, millionths of the currency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micros_per_day: Option<u64>,
    /// Money a month, millionths of the currency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micros_per_month: Option<u64>,
    /// What happens when a budget of a tier is used up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when_heavy_is_used_up: Option<WhenUsedUp>,
    /// Where days and months begin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<Zone>,
    /// Requests never leave the tiers at home. Whoever says `true` wins: a narrower plan cannot loosen a wider one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_only: Option<bool>,
    /// The highest class in the queues. Whoever says less wins: a narrower plan cannot loosen a wider one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
}

/// What happens to a request whose tier's own budget is used up.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenUsedUp {
    /// 429.
    #[default]
    Refuse,
    /// It goes on in the next smaller tier, and the answer says so.
    Downgrade,
}

impl Plan {
    /// These figures, and those of `base` where there are none.
    #[must_use]
    pub fn over(self, base: Self) -> Self {
        Self {
            text_per_minute: self.text_per_minute.or(base.text_per_minute),
            media_per_minute: self.media_per_minute.or(base.media_per_minute),
            text_per_day: self.text_per_day.or(base.text_per_day),
            media_per_day: self.media_per_day.or(base.media_per_day),
            concurrent: self.concurrent.or(base.concurrent),
            tokens_per_minute: self.tokens_per_minute.or(base.tokens_per_minute),
            tokens_per_day: self.tokens_per_day.or(base.tokens_per_day),
            tokens_per_month: self.tokens_per_month.or(base.tokens_per_month),
            heavy_tokens_per_day: self.heavy_tokens_per_day.or(base.heavy_tokens_per_day),
            heavy_tokens_per_month: self.heavy_tokens_per_month.or(base.heavy_tokens_per_month),
            primary_tokens_per_day: self.primary_tokens_per_day.or(base.primary_tokens_per_day),
            primary_tokens_per_month: self
                .primary_tokens_per_month
                .or(base.primary_tokens_per_month),
            media_items_per_day: self.media_items_per_day.or(base.media_items_per_day),
            media_bytes_per_day: self.media_bytes_per_day.or(base.media_bytes_per_day),
            stored_bytes: self.stored_bytes.or(base.stored_bytes),
            micros_per_day: self.micros_per_day.or(base.micros_per_day),
            micros_per_month: self.micros_per_month.or(base.micros_per_month),
            when_heavy_is_used_up: self.when_heavy_is_used_up.or(base.when_heavy_is_used_up),
            time_zone: self.time_zone.or(base.time_zone),
            local_only: match (self.local_only, base.local_only) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (own, other) => own.or(other),
            },
            // Nothing said is less than every class, and what goes first is less than what goes later.
            priority: self.priority.max(base.priority),
        }
    }

    /// Tokens of this tier alone, a day.
    pub const fn tier_tokens_per_day(&self, tier: Tier) -> Option<u64> {
        match tier {
            Tier::Heavy => self.heavy_tokens_per_day,
            Tier::Primary => self.primary_tokens_per_day,
            Tier::Fast => None,
        }
    }

    /// Tokens of this tier alone, a month.
    pub const fn tier_tokens_per_month(&self, tier: Tier) -> Option<u64> {
        match tier {
            Tier::Heavy => self.heavy_tokens_per_month,
            Tier::Primary => self.primary_tokens_per_month,
            Tier::Fast => None,
        }
    }
}

/// What a million tokens cost, millionths of the currency.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Price {
    /// Of prompt tokens that were computed.
    pub input: u64,
    /// Of prompt tokens that a cache held.
    pub cached_input: u64,
    /// Of answer tokens.
    pub output: u64,
}

/// What usage costs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Prices {
    /// The label of all amounts. Default `EUR`.
    pub currency: String,
    /// By model id, or by tier for all its models.
    pub models: BTreeMap<String, Price>,
    /// What a cloud asks for a model of the same class, by model id or tier: for comparison only.
    pub cloud: BTreeMap<String, Price>,
}

impl Prices {
    /// The price of a model: its own, or that of its tier, or nothing.
    pub fn of(&self, model: &str, tier: Tier) -> Price {
        find(&self.models, model, tier)
    }

    /// The cloud's price, found the same way.
    pub fn cloud_of(&self, model: &str, tier: Tier) -> Price {
        find(&self.cloud, model, tier)
    }
}

fn find(prices: &BTreeMap<String, Price>, model: &str, tier: Tier) -> Price {
    prices
        .get(model)
        .or_else(|| prices.get(tier.as_str()))
        .copied()
        .unwrap_or_default()
}
