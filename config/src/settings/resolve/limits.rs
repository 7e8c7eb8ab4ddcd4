//! `[limits]` and its plans.

use super::proxy::count;
use crate::settings::proxy::{Limits, PerMinute, Plan};
use crate::settings::read::Section;

/// `[limits]`.
pub(super) fn limits(mut section: Section<'_>) -> Limits {
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
        concurrent_per_user: section
            .integer("concurrent_per_user", 1..=100_000)
            .unwrap_or(16),
        max_tokens_default: section
            .integer("max_tokens_default", 1..=1 << 30)
            .unwrap_or(2048),
        table_max: section
            .integer("table_max", 1000..=100_000_000)
            .map_or(100_000, count),
        plans: section
            .named("plans", 1000)
            .into_iter()
            .map(|(name, section)| (name, plan(section)))
            .collect(),
    };
    section.close();
    limits
}

fn plan(mut section: Section<'_>) -> Plan {
    let plan = Plan {
        text_per_minute: section.integer("text_per_minute", 1..=u32::MAX),
        media_per_minute: section.integer("media_per_minute", 1..=u32::MAX),
        text_per_day: section.integer("text_per_day", 0..=u32::MAX),
        media_per_day: section.integer("media_per_day", 0..=u32::MAX),
        concurrent: section.integer("concurrent", 1..=100_000),
    };
    section.close();
    plan
}

fn per_minute(section: &mut Section<'_>, key: &'static str, default: u32) -> u32 {
    section.integer(key, 1..=u32::MAX).unwrap_or(default)
}
