//! The usage ledger: one entry for each request that was settled, and the sums that it adds to. Pure: what an entry adds to is
//! decided here, so that every store adds the same. Holds no prompt, no answer, no credential and no address.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use config::ids::{KeyId, NodeId, RequestId, Tenant, UserId};
use config::settings::plan::Price;
use config::tier::Tier;
use serde::{Deserialize, Serialize};

use crate::identity::Subject;
use crate::record::Ending;

/// Separates the parts of a value that names a pair. No id holds it: ids have no control characters.
const PAIR: char = '\u{1f}';
/// A price is for so many tokens.
const PRICED_TOKENS: u128 = 1_000_000;
/// Characters of `2026-11` in `2026-11-21`.
const MONTH_CHARS: usize = 7;

/// What one settled request used.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LedgerEntry {
    /// The reservation's id, 32 hex digits: no two entries share one.
    pub id: String,
    /// As in `x-request-id`; clients may choose it, so it may occur again.
    pub request_id: RequestId,
    /// When the request came, Unix milliseconds.
    pub at_unix_ms: u64,
    /// The local date of the person's plan, `2026-11-21`: the day that it counts for.
    pub day: Arc<str>,
    /// Whose house.
    pub tenant: Tenant,
    /// The person, hashed, as in the counters.
    pub user: Subject,
    /// The person.
    pub user_id: UserId,
    /// The owner of the key, while `user_id` is an end user whom a trusted front end named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acts_for: Option<UserId>,
    /// The key, if one was shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    /// The person's groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Arc<str>>,
    /// The operation, one of a closed set: `chat_completions`, `embeddings`, ...
    pub route: String,
    /// The tier that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// The model that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The node that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Tokens of the prompt, those from a cache among them.
    pub tokens_in: u64,
    /// Tokens of the answer, those of reasoning among them.
    pub tokens_out: u64,
    /// Of `tokens_in`: from a cache.
    pub tokens_cached: u64,
    /// Of `tokens_out`: reasoning.
    pub tokens_reasoning: u64,
    /// Pictures and pieces of sound.
    pub media_items: u64,
    /// Bytes of them.
    pub media_bytes: u64,
    /// What it cost, millionths of the currency.
    pub micros: u64,
    /// What it would have cost at the cloud's price list, millionths of the currency.
    pub cloud_micros: u64,
    /// Energy that the machine spent on it, thousandths of a joule; 0 where no machine tells.
    #[serde(default)]
    pub millijoules: u64,
    /// How it ended.
    pub outcome: Ending,
    /// Milliseconds from head to end.
    pub ms: u64,
}

impl LedgerEntry {
    /// An entry of a request that has used nothing yet; the rest is said with `..`.
    pub fn new(id: impl Into<String>, request_id: RequestId, user_id: UserId) -> Self {
        Self {
            id: id.into(),
            request_id,
            at_unix_ms: 0,
            day: Arc::from("1970-01-01"),
            tenant: Tenant::default(),
            user: Subject::of_user(&user_id),
            user_id,
            acts_for: None,
            key: None,
            groups: Vec::new(),
            route: String::new(),
            tier: None,
            model: None,
            node: None,
            tokens_in: 0,
            tokens_out: 0,
            tokens_cached: 0,
            tokens_reasoning: 0,
            media_items: 0,
            media_bytes: 0,
            micros: 0,
            cloud_micros: 0,
            millijoules: 0,
            outcome: Ending::Ok,
            ms: 0,
        }
    }

    /// The month that it counts for, `2026-11`.
    pub fn month(&self) -> &str {
        month_of(&self.day)
    }

    /// What it adds to every sum that it belongs to.
    pub fn totals(&self) -> Totals {
        Totals {
            requests: 1,
            failed: u64::from(self.outcome != Ending::Ok),
            tokens_in: self.tokens_in,
            tokens_out: self.tokens_out,
            tokens_cached: self.tokens_cached,
            tokens_reasoning: self.tokens_reasoning,
            media_items: self.media_items,
            media_bytes: self.media_bytes,
            micros: self.micros,
            cloud_micros: self.cloud_micros,
            millijoules: self.millijoules,
            ms: self.ms,
        }
    }

    /// The sums that it adds to: each of its aspects, for its day and for its month.
    pub fn sums(&self) -> Vec<SumKey> {
        let mut aspects = vec![
            (Aspect::All, String::new()),
            (Aspect::User, self.user_id.to_string()),
        ];
        let key = self.key.as_ref().map(ToString::to_string);
        let model = self.model.clone();
        aspects.extend(key.clone().map(|key| (Aspect::Key, key)));
        aspects.extend(model.clone().map(|model| (Aspect::Model, model)));
        aspects.extend(self.tier.map(|tier| (Aspect::Tier, tier.to_string())));
        aspects.extend(
            self.node
                .as_ref()
                .map(|node| (Aspect::Node, node.to_string())),
        );
        if let Some(model) = &model {
            aspects.push((Aspect::UserModel, pair(self.user_id.as_str(), model)));
            aspects.extend(key.map(|key| (Aspect::KeyModel, pair(&key, model))));
        }
        let periods = [self.day.to_string(), self.month().to_owned()];
        let keyed = |period: &String| {
            aspects
                .iter()
                .map(|(aspect, value)| SumKey {
                    tenant: self.tenant.clone(),
                    period: period.clone(),
                    aspect: *aspect,
                    value: value.clone(),
                })
                .collect::<Vec<_>>()
        };
        periods.iter().flat_map(keyed).collect()
    }

    /// The bytes of a store: JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Texts and numbers alone: there is nothing in it that JSON cannot say.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// What [`LedgerEntry::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

/// What tokens cost at a price, millionths of the currency, rounded up. Cached tokens are part of `tokens_in`.
pub fn cost(price: Price, tokens_in: u64, tokens_cached: u64, tokens_out: u64) -> u64 {
    let cached = tokens_cached.min(tokens_in);
    let of = |tokens: u64, price: u64| u128::from(tokens).saturating_mul(u128::from(price));
    let sum = of(tokens_in - cached, price.input)
        .saturating_add(of(cached, price.cached_input))
        .saturating_add(of(tokens_out, price.output));
    u64::try_from(sum.div_ceil(PRICED_TOKENS)).unwrap_or(u64::MAX)
}

/// The month of a day: `2026-11` of `2026-11-21`.
pub fn month_of(day: &str) -> &str {
    day.get(..MONTH_CHARS).unwrap_or(day)
}

/// The value that names two things, for [`Aspect::UserModel`] and [`Aspect::KeyModel`].
pub fn pair(first: &str, second: &str) -> String {
    format!("{first}{PAIR}{second}")
}

/// The second half of a pair whose first half is known.
pub fn second_of<'a>(value: &'a str, first: &str) -> Option<&'a str> {
    value.strip_prefix(first)?.strip_prefix(PAIR)
}

/// What a sum is about.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Aspect {
    /// Everything of a tenant.
    All,
    /// One person.
    User,
    /// One API key.
    Key,
    /// One model.
    Model,
    /// One tier.
    Tier,
    /// One node.
    Node,
    /// One person with one model.
    UserModel,
    /// One key with one model.
    KeyModel,
}

impl Aspect {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::All,
        Self::User,
        Self::Key,
        Self::Model,
        Self::Tier,
        Self::Node,
        Self::UserModel,
        Self::KeyModel,
    ];

    /// The name in a store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::User => "user",
            Self::Key => "key",
            Self::Model => "model",
            Self::Tier => "tier",
            Self::Node => "node",
            Self::UserModel => "user-model",
            Self::KeyModel => "key-model",
        }
    }
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no aspect.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("usage is summed by all, user, key, model, tier, node, user-model or key-model")]
pub struct UnknownAspect;

impl FromStr for Aspect {
    type Err = UnknownAspect;

    fn from_str(text: &str) -> Result<Self, UnknownAspect> {
        Self::ALL
            .into_iter()
            .find(|aspect| aspect.as_str() == text)
            .ok_or(UnknownAspect)
    }
}

/// The name of one sum.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SumKey {
    /// Whose house.
    pub tenant: Tenant,
    /// A day (`2026-11-21`) or a month (`2026-11`).
    pub period: String,
    /// What it is about.
    pub aspect: Aspect,
    /// Which person, key, ...; empty for [`Aspect::All`].
    pub value: String,
}

/// Figures of a row of sums.
pub const FIGURES: usize = 12;

/// Sums over many requests.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Totals {
    /// Requests that were settled.
    pub requests: u64,
    /// Of them: not answered whole.
    pub failed: u64,
    /// Tokens of prompts, those from a cache among them.
    pub tokens_in: u64,
    /// Tokens of answers.
    pub tokens_out: u64,
    /// Of `tokens_in`: from a cache.
    pub tokens_cached: u64,
    /// Of `tokens_out`: reasoning.
    pub tokens_reasoning: u64,
    /// Pictures and pieces of sound.
    pub media_items: u64,
    /// Bytes of them.
    pub media_bytes: u64,
    /// Cost, millionths of the currency.
    pub micros: u64,
    /// Cost at the cloud's price list, millionths of the currency.
    pub cloud_micros: u64,
    /// Energy, thousandths of a joule.
    pub millijoules: u64,
    /// Milliseconds from head to end, all together.
    pub ms: u64,
}

impl Totals {
    /// Adds.
    pub const fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.failed = self.failed.saturating_add(other.failed);
        self.tokens_in = self.tokens_in.saturating_add(other.tokens_in);
        self.tokens_out = self.tokens_out.saturating_add(other.tokens_out);
        self.tokens_cached = self.tokens_cached.saturating_add(other.tokens_cached);
        self.tokens_reasoning = self.tokens_reasoning.saturating_add(other.tokens_reasoning);
        self.media_items = self.media_items.saturating_add(other.media_items);
        self.media_bytes = self.media_bytes.saturating_add(other.media_bytes);
        self.micros = self.micros.saturating_add(other.micros);
        self.cloud_micros = self.cloud_micros.saturating_add(other.cloud_micros);
        self.millijoules = self.millijoules.saturating_add(other.millijoules);
        self.ms = self.ms.saturating_add(other.ms);
    }

    /// As the figures lie in a store.
    pub const fn to_row(self) -> [u64; FIGURES] {
        [
            self.requests,
            self.failed,
            self.tokens_in,
            self.tokens_out,
            self.tokens_cached,
            self.tokens_reasoning,
            self.media_items,
            self.media_bytes,
            self.micros,
            self.cloud_micros,
            self.millijoules,
            self.ms,
        ]
    }

    /// What [`Totals::to_row`] made.
    pub const fn from_row(row: [u64; FIGURES]) -> Self {
        let [
            requests,
            failed,
            tokens_in,
            tokens_out,
            tokens_cached,
            tokens_reasoning,
            media_items,
            media_bytes,
            micros,
            cloud_micros,
            millijoules,
            ms,
        ] = row;
        Self {
            requests,
            failed,
            tokens_in,
            tokens_out,
            tokens_cached,
            tokens_reasoning,
            media_items,
            media_bytes,
            micros,
            cloud_micros,
            millijoules,
            ms,
        }
    }
}

/// What some entries add to their sums, each sum once.
pub fn increments<'a>(
    entries: impl IntoIterator<Item = &'a LedgerEntry>,
) -> std::collections::BTreeMap<SumKey, Totals> {
    let mut sums = std::collections::BTreeMap::<SumKey, Totals>::new();
    for entry in entries {
        let totals = entry.totals();
        for key in entry.sums() {
            sums.entry(key).or_default().add(&totals);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(user: &str, model: &str, tokens: u64) -> LedgerEntry {
        LedgerEntry {
            day: "2026-11-21".into(),
            key: Some(KeyId::new("abcdefghij")),
            model: Some(model.to_owned()),
            tier: Some(Tier::Fast),
            tokens_in: tokens,
            ..LedgerEntry::new("00", RequestId::new("req_1"), UserId::new(user))
        }
    }

    #[test]
    fn an_entry_survives_the_store() {
        let entry = entry("https://idp.example.org|ada", "tiny", 7);
        assert_eq!(LedgerEntry::from_bytes(&entry.to_bytes()).unwrap(), entry);
    }

    #[test]
    fn an_entry_counts_for_its_day_and_its_month_in_every_aspect() {
        let sums = entry("ada", "tiny", 1).sums();
        assert_eq!(sums.len(), 14, "seven aspects, no node");
        assert!(
            sums.iter()
                .any(|sum| sum.period == "2026-11" && sum.aspect == Aspect::All)
        );
        let both = sums
            .iter()
            .find(|sum| sum.aspect == Aspect::UserModel)
            .unwrap();
        assert_eq!(second_of(&both.value, "ada"), Some("tiny"));
        assert_eq!(second_of(&both.value, "ad"), None, "no other person's");
    }

    #[test]
    fn cached_tokens_cost_what_cached_tokens_cost_and_money_is_rounded_up() {
        let price = Price {
            input: 3_000_000,
            cached_input: 300_000,
            output: 15_000_000,
        };
        assert_eq!(cost(price, 1_000_000, 0, 0), 3_000_000);
        assert_eq!(cost(price, 1_000_000, 1_000_000, 1_000_000), 15_300_000);
        assert_eq!(cost(price, 0, 9, 0), 0, "no more is cached than there was");
        assert_eq!(
            cost(
                Price {
                    input: 1,
                    ..Price::default()
                },
                1,
                0,
                0
            ),
            1
        );
        assert_eq!(cost(price, u64::MAX, 0, u64::MAX), u64::MAX);
    }

    #[test]
    fn aspects_are_read_as_they_are_written() {
        for aspect in Aspect::ALL {
            assert_eq!(aspect.as_str().parse(), Ok(aspect));
        }
        assert_eq!("people".parse::<Aspect>(), Err(UnknownAspect));
    }

    proptest! {
        #[test]
        fn every_aspect_that_all_entries_have_sums_to_the_same(tokens in proptest::collection::vec((0..3_u8, 0..3_u8, 0..1_000_u64), 1..40)) {
            let entries: Vec<LedgerEntry> = tokens
                .iter()
                .map(|(user, model, tokens)| entry(&format!("u{user}"), &format!("m{model}"), *tokens))
                .collect();
            let sums = increments(&entries);
            let want: u64 = tokens.iter().map(|(_, _, tokens)| tokens).sum();
            for aspect in [Aspect::All, Aspect::User, Aspect::Key, Aspect::Model, Aspect::Tier, Aspect::UserModel, Aspect::KeyModel] {
                for period in ["2026-11-21", "2026-11"] {
                    let found: u64 = sums
                        .iter()
                        .filter(|(key, _)| key.aspect == aspect && key.period == period)
                        .map(|(_, totals)| totals.tokens_in)
                        .sum();
                    prop_assert_eq!(found, want, "{} {}", aspect, period);
                }
            }
        }

        #[test]
        fn a_row_is_read_as_it_was_written(row in proptest::array::uniform12(0..u64::MAX)) {
            prop_assert_eq!(Totals::from_row(row).to_row(), row);
        }
    }
}
