//! `[limits]`, its plans, and `[prices]`.

use std::collections::BTreeMap;

use super::proxy::count;
use crate::settings::plan::{Plan, Price, Prices, WhenUsedUp};
use crate::settings::proxy::{Limits, PerMinute};
use crate::settings::read::Section;
use crate::wire::wishes::Priority;

/// Tokens a minute at most: one a microsecond.
const TOKENS_PER_MINUTE_MAX: u64 = 60_000_000;
/// Any count at most: a thousand billions.
const COUNT_MAX: u64 = 1_000_000_000_000;
/// Plans, groups, tenants and prices at most.
const NAMES_MAX: usize = 1_000;
/// Money in one budget at most, and the price of a million tokens at most.
const MONEY_MAX: f64 = 1_000_000.0;
const PRICE_MAX: f64 = 900.0;
/// Millionths of the currency in one.
const MICROS: f64 = 1e6;
const ZONE: &str = "a time zone such as UTC, Europe/Berlin or America/New_York";
const WHEN_USED_UP: [(&str, WhenUsedUp); 2] = [
    ("refuse", WhenUsedUp::Refuse),
    ("downgrade", WhenUsedUp::Downgrade),
];
const PRIORITIES: [(&str, Priority); 3] = [
    ("interactive", Priority::Interactive),
    ("normal", Priority::Normal),
    ("batch", Priority::Batch),
];

/// `[limits]`.
pub(super) fn limits(mut section: Section<'_>) -> Limits {
    let plans: BTreeMap<String, Plan> = section
        .named("plans", NAMES_MAX)
        .into_iter()
        .map(|(name, section)| (name, plan(section)))
        .collect();
    let limits = Limits {
        guard_per_minute: per_minute(&mut section, "guard_per_minute", 600),
        guard_burst: per_minute(&mut section, "guard_burst", 240),
        per_ip: PerMinute {
            text: per_minute(&mut section, "text_per_minute_per_ip", 30),
            media: per_minute(&mut section, "media_per_minute_per_ip", 10),
            health: per_minute(&mut section, "health_per_minute_per_ip", 120),
        },
        per_user: PerMinute {
            text: per_minute(&mut section, "text_per_minute_per_user", 30),
            media: per_minute(&mut section, "media_per_minute_per_user", 10),
            health: per_minute(&mut section, "health_per_minute_per_user", 120),
        },
        text_per_day: section.integer("text_per_day", 0..=u32::MAX).unwrap_or(100),
        media_per_day: section.integer("media_per_day", 0..=u32::MAX).unwrap_or(20),
        stored_bytes: section
            .bytes("stored_bytes", 0..=1 << 50)
            .unwrap_or(500_000_000),
        concurrent_per_user: section
            .integer("concurrent_per_user", 1..=100_000)
            .unwrap_or(16),
        max_tokens_default: section
            .integer("max_tokens_default", 1..=1 << 30)
            .unwrap_or(2048),
        table_max: section
            .integer("table_max", 1000..=100_000_000)
            .map_or(100_000, count),
        lease: section
            .secs("lease_secs", 10..=3_600)
            .unwrap_or(std::time::Duration::from_mins(1)),
        time_zone: section.parsed("time_zone", ZONE).unwrap_or_default(),
        everyone: plan_of(&mut section, "everyone_plan", &plans).unwrap_or_default(),
        service: plan_of(&mut section, "service_plan", &plans),
        groups: plans_of(&mut section, "groups", &plans),
        tenants: plans_of(&mut section, "tenants", &plans),
        plans,
    };
    section.close();
    limits
}

/// The plan that a key names.
fn plan_of(
    section: &mut Section<'_>,
    key: &'static str,
    plans: &BTreeMap<String, Plan>,
) -> Option<Plan> {
    let name = section.text(key)?;
    let found = plans.get(&name).copied();
    if found.is_none() {
        section.problem(
            key,
            format!("{name:?} is not a plan: [limits.plans.{name}] is missing"),
        );
    }
    found
}

/// The plans of `[key.NAME]`, each with its `plan`.
fn plans_of(
    section: &mut Section<'_>,
    key: &'static str,
    plans: &BTreeMap<String, Plan>,
) -> BTreeMap<String, Plan> {
    let mut all = BTreeMap::new();
    for (name, mut section) in section.named(key, NAMES_MAX) {
        let plan = plan_of(&mut section, "plan", plans);
        if !section.was_given("plan") {
            section.missing("plan", "the name of a plan in [limits.plans]");
        }
        if let Some(plan) = plan {
            all.insert(name, plan);
        }
        section.close();
    }
    all
}

fn plan(mut section: Section<'_>) -> Plan {
    let mut tokens = |key| section.integer(key, 0..=COUNT_MAX);
    let plan = Plan {
        tokens_per_day: tokens("tokens_per_day"),
        tokens_per_month: tokens("tokens_per_month"),
        heavy_tokens_per_day: tokens("heavy_tokens_per_day"),
        heavy_tokens_per_month: tokens("heavy_tokens_per_month"),
        primary_tokens_per_day: tokens("primary_tokens_per_day"),
        primary_tokens_per_month: tokens("primary_tokens_per_month"),
        media_items_per_day: tokens("media_items_per_day"),
        text_per_minute: section.integer("text_per_minute", 1..=u32::MAX),
        media_per_minute: section.integer("media_per_minute", 1..=u32::MAX),
        text_per_day: section.integer("text_per_day", 0..=u32::MAX),
        media_per_day: section.integer("media_per_day", 0..=u32::MAX),
        concurrent: section.integer("concurrent", 1..=100_000),
        tokens_per_minute: section.integer("tokens_per_minute", 1..=TOKENS_PER_MINUTE_MAX),
        media_bytes_per_day: section.bytes("media_bytes_per_day", 0..=1 << 50),
        stored_bytes: section.bytes("stored_bytes", 0..=1 << 50),
        micros_per_day: money(&mut section, "money_per_day", MONEY_MAX),
        micros_per_month: money(&mut section, "money_per_month", MONEY_MAX),
        when_heavy_is_used_up: section.one_of("when_heavy_is_used_up", &WHEN_USED_UP),
        time_zone: section.parsed("time_zone", ZONE),
        local_only: section.boolean("local_only"),
        priority: section.one_of("priority", &PRIORITIES),
    };
    section.close();
    plan
}

/// An amount as people write it, in millionths.
fn money(section: &mut Section<'_>, key: &'static str, max: f64) -> Option<u64> {
    let amount = section.float(key, 0.0..=max)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "from 0 to a million millions, as the range above says"
    )]
    let micros = (amount * MICROS).round() as u64;
    Some(micros)
}

/// `[prices]`.
pub(super) fn prices(mut section: Section<'_>) -> Prices {
    let prices = Prices {
        currency: section
            .checked_text(
                "currency",
                "a label of 1 to 8 letters such as EUR",
                |text| {
                    (1..=8).contains(&text.len())
                        && text.bytes().all(|byte| byte.is_ascii_alphabetic())
                },
            )
            .unwrap_or_else(|| "EUR".to_owned()),
        models: named_prices(&mut section, "models"),
        cloud: named_prices(&mut section, "cloud"),
    };
    section.close();
    prices
}

fn named_prices(section: &mut Section<'_>, key: &'static str) -> BTreeMap<String, Price> {
    section
        .named(key, NAMES_MAX)
        .into_iter()
        .map(|(name, section)| (name, price(section)))
        .collect()
}

/// The price of a section that need not be there.
pub(super) fn price_of(mut section: Section<'_>) -> Option<Price> {
    let given = price_in(&mut section);
    let is_given = ["input", "cached_input", "output"]
        .into_iter()
        .any(|key| section.was_given(key));
    section.close();
    is_given.then_some(given)
}

fn price(mut section: Section<'_>) -> Price {
    let price = price_in(&mut section);
    section.close();
    price
}

fn price_in(section: &mut Section<'_>) -> Price {
    let input = money(section, "input", PRICE_MAX).unwrap_or(0);
    Price {
        input,
        cached_input: money(section, "cached_input", PRICE_MAX).unwrap_or(input),
        output: money(section, "output", PRICE_MAX).unwrap_or(0),
    }
}

fn per_minute(section: &mut Section<'_>, key: &'static str, default: u32) -> u32 {
    section.integer(key, 1..=u32::MAX).unwrap_or(default)
}
