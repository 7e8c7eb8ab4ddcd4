use config::settings::proxy::{Plan, Zone};
use proptest::prelude::*;

use super::{Calendar, Today, minute_of_day};
use crate::testing::limits;

const HOUR: u64 = 3_600_000;

fn zone(name: &str) -> Zone {
    name.parse().expect("a zone")
}

/// Unix milliseconds of a UTC time.
fn utc(text: &str) -> u64 {
    let at: jiff::Timestamp = text.parse().expect("a time");
    u64::try_from(at.as_millisecond()).expect("after 1970")
}

fn hours(today: &Today) -> u64 {
    (today.day.resets_at_ms - today.day.starts_at_ms) / HOUR
}

#[test]
fn the_minute_of_the_day_is_what_clocks_in_the_zone_show() {
    for (name, at, expected) in [
        ("UTC", "2026-11-21T00:00:00Z", (0, 0)),
        ("UTC", "2026-11-21T23:59:59.999Z", (23, 59)),
        ("Europe/Berlin", "2026-11-21T23:30:00Z", (0, 30)),
        ("Europe/Berlin", "2026-06-21T22:30:00Z", (0, 30)),
        ("America/New_York", "2026-11-21T03:05:00Z", (22, 5)),
        // The hour that does not exist in spring.
        ("Europe/Berlin", "2026-03-29T00:59:00Z", (1, 59)),
        ("Europe/Berlin", "2026-03-29T01:00:00Z", (3, 0)),
    ] {
        let (hour, minute) = expected;
        let found = minute_of_day(zone(name), utc(at));
        assert_eq!(found, hour * 60 + minute, "{name} {at}");
    }
    assert!(minute_of_day(Zone::default(), u64::MAX) < 1_440);
}

#[test]
fn a_day_of_utc_is_the_date() {
    let now = utc("2026-11-21T05:49:05Z");
    let today = Today::at(Zone::default(), now);
    assert_eq!(today.day.label.as_ref(), "2026-11-21");
    assert_eq!(today.day.starts_at_ms, utc("2026-11-21T00:00:00Z"));
    assert_eq!(today.day.resets_at_ms, utc("2026-11-22T00:00:00Z"));
    assert_eq!(today.month.label.as_ref(), "2026-11");
    assert_eq!(today.month.starts_at_ms, utc("2026-11-01T00:00:00Z"));
    assert_eq!(today.month.resets_at_ms, utc("2026-12-01T00:00:00Z"));
}

#[test]
fn a_day_begins_at_midnight_of_the_zone_and_not_of_utc() {
    let berlin = zone("Europe/Berlin");
    let before = Today::at(berlin, utc("2026-06-30T21:59:59Z"));
    let after = Today::at(berlin, utc("2026-06-30T22:00:00Z"));
    assert_eq!(
        (before.day.label.as_ref(), before.month.label.as_ref()),
        ("2026-06-30", "2026-06")
    );
    assert_eq!(
        (after.day.label.as_ref(), after.month.label.as_ref()),
        ("2026-07-01", "2026-07")
    );
    assert_eq!(before.month.resets_at_ms, utc("2026-06-30T22:00:00Z"));
    assert_eq!(after.month.resets_at_ms, utc("2026-07-31T22:00:00Z"));
}

#[test]
fn days_have_23_24_and_25_hours_when_the_clocks_change() {
    let table = [
        ("Europe/Berlin", "2026-03-29T12:00:00Z", 23),
        ("Europe/Berlin", "2026-03-28T12:00:00Z", 24),
        ("Europe/Berlin", "2026-10-25T12:00:00Z", 25),
        ("America/New_York", "2026-03-08T12:00:00Z", 23),
        ("America/New_York", "2026-11-01T12:00:00Z", 25),
        // Clocks are set forward at midnight itself: the day begins at one o'clock.
        ("America/Santiago", "2026-09-06T12:00:00Z", 23),
        ("Asia/Kolkata", "2026-06-01T12:00:00Z", 24),
    ];
    for (name, now, want) in table {
        assert_eq!(
            hours(&Today::at(zone(name), utc(now))),
            want,
            "{name} {now}"
        );
    }
}

#[test]
fn months_know_the_hour_that_the_clocks_took() {
    let march = Today::at(zone("Europe/Berlin"), utc("2026-03-15T12:00:00Z")).month;
    assert_eq!(
        (march.resets_at_ms - march.starts_at_ms) / HOUR,
        31 * 24 - 1
    );
    let february = Today::at(zone("Europe/Berlin"), utc("2028-02-15T12:00:00Z")).month;
    assert_eq!(
        (february.resets_at_ms - february.starts_at_ms) / HOUR,
        29 * 24
    );
}

#[test]
fn a_calendar_holds_until_the_first_midnight_of_its_zones() {
    let mut limits = limits();
    let plan = Plan {
        time_zone: Some(zone("Asia/Tokyo")),
        ..Plan::default()
    };
    limits.groups.insert("family".to_owned(), plan);
    let now = utc("2026-11-21T14:59:59Z");
    let calendar = Calendar::new(&limits, now);
    assert!(calendar.holds(now));
    assert!(!calendar.holds(now + 1_000), "midnight in Tokyo");
    assert!(!Calendar::default().holds(now));
    let tokyo = calendar.today(zone("Asia/Tokyo"), now + 1_000);
    assert_eq!(
        tokyo.day.label.as_ref(),
        "2026-11-22",
        "a stale calendar lies to nobody"
    );
    let other = calendar.today(zone("Europe/Berlin"), now);
    assert_eq!(other, Today::at(zone("Europe/Berlin"), now));
}

fn zones() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        Just("UTC"),
        Just("Europe/Berlin"),
        Just("America/New_York"),
        Just("America/Santiago"),
        Just("America/St_Johns"),
        Just("Australia/Lord_Howe"),
        Just("Pacific/Apia"),
        Just("Asia/Kathmandu"),
        Just("Africa/Casablanca"),
    ]
}

proptest! {
    /// Every moment lies in its day and its month, the next day begins where it ends, and labels never go back.
    #[test]
    fn days_follow_each_other_without_gap(name in zones(), now in 1_262_304_000_000_u64..2_500_000_000_000) {
        let zone = zone(name);
        let today = Today::at(zone, now);
        prop_assert!(today.holds(now), "{today:?}");
        prop_assert!(today.month.starts_at_ms <= today.day.starts_at_ms);
        prop_assert!(today.day.resets_at_ms <= today.month.resets_at_ms);
        let next = Today::at(zone, today.day.resets_at_ms);
        prop_assert_eq!(next.day.starts_at_ms, today.day.resets_at_ms);
        prop_assert!(next.day.label > today.day.label);
        let length = today.day.resets_at_ms - today.day.starts_at_ms;
        prop_assert!((22 * HOUR..=26 * HOUR).contains(&length), "{length}");
        let last = Today::at(zone, today.day.resets_at_ms - 1);
        prop_assert_eq!(last, today);
    }
}
