//! Days and months as people live them: in a time zone, 23 and 25 hours long when the clocks change. The rules are built in;
//! nothing here reads a clock or a file.

use std::sync::Arc;

use config::settings::plan::Zone;
use config::settings::proxy::Limits;
use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

use crate::limit::{Span, Window};

/// The last millisecond that is told apart: the year 9999 is far enough.
const LATEST_MS: i64 = 253_370_764_800_000;

/// One calendar day or month.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Local {
    /// `2026-11-21` or `2026-11`.
    pub label: Arc<str>,
    /// Its first moment, Unix milliseconds.
    pub starts_at_ms: u64,
    /// The first moment of the next one.
    pub resets_at_ms: u64,
}

impl Local {
    /// A budget for it.
    pub const fn window(&self, limit: u64, span: Span) -> Window {
        Window {
            limit,
            starts_at_ms: self.starts_at_ms,
            resets_at_ms: self.resets_at_ms,
            span,
        }
    }
}

/// The day and the month of a moment in a zone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Today {
    /// The zone.
    pub zone: Zone,
    /// The day.
    pub day: Local,
    /// The month.
    pub month: Local,
}

impl Today {
    /// The day and month that hold the moment.
    pub fn at(zone: Zone, now_unix_ms: u64) -> Self {
        let rules = rules(zone);
        let (now_ms, shown) = on_the_wall(&rules, now_unix_ms);
        let date = shown.date();
        let first = date.first_of_month();
        let tomorrow = date.tomorrow().unwrap_or(date);
        let next_month = date.last_of_month().tomorrow().unwrap_or(date);
        Self {
            zone,
            day: Local {
                label: format!("{:04}-{:02}-{:02}", date.year(), date.month(), date.day()).into(),
                starts_at_ms: midnight(&rules, date, None),
                resets_at_ms: midnight(&rules, tomorrow, Some(now_ms)),
            },
            month: Local {
                label: format!("{:04}-{:02}", date.year(), date.month()).into(),
                starts_at_ms: midnight(&rules, first, None),
                resets_at_ms: midnight(&rules, next_month, Some(now_ms)),
            },
        }
    }

    /// Whether the moment is in this day.
    pub const fn holds(&self, now_unix_ms: u64) -> bool {
        self.day.starts_at_ms <= now_unix_ms && now_unix_ms < self.day.resets_at_ms
    }
}

/// The minute of the day, 0 to 1,439, that clocks in a zone show. Those between 2:00 and 3:00 may come twice a year, or not at all.
pub fn minute_of_day(zone: Zone, now_unix_ms: u64) -> u16 {
    let time = on_the_wall(&rules(zone), now_unix_ms).1.time();
    u16::from(time.hour().unsigned_abs()) * 60 + u16::from(time.minute().unsigned_abs())
}

fn rules(zone: Zone) -> TimeZone {
    TimeZone::tzif(zone.as_str(), zone.rules()).unwrap_or(TimeZone::UTC)
}

/// The moment in milliseconds that jiff takes, and what clocks show then.
fn on_the_wall(rules: &TimeZone, now_unix_ms: u64) -> (i64, DateTime) {
    let now_ms = i64::try_from(now_unix_ms)
        .unwrap_or(LATEST_MS)
        .min(LATEST_MS);
    let now = Timestamp::from_millisecond(now_ms).unwrap_or(Timestamp::UNIX_EPOCH);
    (now_ms, rules.to_datetime(now))
}

/// The first moment of a date. Where clocks are set forward over midnight it is when they are; where they are set back over it,
/// it is the first midnight, unless that lies before `after_ms`.
fn midnight(rules: &TimeZone, date: Date, after_ms: Option<i64>) -> u64 {
    let time = DateTime::from_parts(date, jiff::civil::Time::midnight());
    let ambiguous = rules.to_ambiguous_timestamp(time);
    let first = ambiguous.compatible().map(Timestamp::as_millisecond);
    let second = ambiguous.later().map(Timestamp::as_millisecond);
    let ms = match (first, second, after_ms) {
        (Ok(first), Ok(second), Some(after)) if first <= after => second,
        (Ok(first), _, _) => first,
        (Err(_), _, _) => LATEST_MS,
    };
    u64::try_from(ms).unwrap_or(0)
}

/// Today in every zone that the settings name: made once a day, read by every request.
#[derive(Clone, Debug, Default)]
pub struct Calendar {
    known: Vec<Today>,
}

impl Calendar {
    /// The days that hold the moment.
    pub fn new(limits: &Limits, now_unix_ms: u64) -> Self {
        let plans = limits.plans.values().chain(limits.groups.values());
        let plans = plans
            .chain(limits.tenants.values())
            .chain(limits.service.iter())
            .chain([&limits.everyone]);
        let mut zones: Vec<Zone> = plans.filter_map(|plan| plan.time_zone).collect();
        zones.push(limits.time_zone);
        zones.sort_unstable();
        zones.dedup();
        Self {
            known: zones
                .into_iter()
                .map(|zone| Today::at(zone, now_unix_ms))
                .collect(),
        }
    }

    /// Whether the moment is in all of the days; if not, it is time for a new calendar.
    pub fn holds(&self, now_unix_ms: u64) -> bool {
        !self.known.is_empty() && self.known.iter().all(|today| today.holds(now_unix_ms))
    }

    /// The day of a zone. One that the settings do not name costs a little more.
    pub fn today(&self, zone: Zone, now_unix_ms: u64) -> Today {
        self.known
            .iter()
            .find(|today| today.zone == zone && today.holds(now_unix_ms))
            .cloned()
            .unwrap_or_else(|| Today::at(zone, now_unix_ms))
    }
}

#[cfg(test)]
mod tests;
