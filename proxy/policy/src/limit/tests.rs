use std::collections::BTreeMap;
use std::time::Duration;

use config::ids::UserId;
use config::settings::proxy::{Limits, PerMinute, Plan};

use super::{
    Concurrency, Counter, CounterState, Decision, Kind, Rule, concurrent_max, counters,
    go_duration, headers, ip_counters,
};
use crate::identity::Principal;
use crate::quota;

const NOON_MS: u64 = 20_000 * 86_400_000 + 43_200_000;

fn limits() -> Limits {
    let per_minute = PerMinute {
        text: 30,
        media: 10,
        health: 120,
    };
    Limits {
        guard_per_minute: 600,
        guard_burst: 120,
        per_ip: per_minute,
        per_user: per_minute,
        text_per_day: 100,
        media_per_day: 20,
        concurrent_per_user: 16,
        max_tokens_default: 2_048,
        table_max: 1_000,
        plans: BTreeMap::new(),
    }
}

fn ada(plan: Plan) -> Principal {
    Principal::person(UserId::new("https://id.example.org|ada"), plan)
}

fn summary(counters: &[Counter]) -> Vec<(&'static str, u32)> {
    let limit = |counter: &Counter| match counter.rule {
        Rule::Gcra(rate) => rate.limit,
        Rule::Day(day) => day.limit,
    };
    counters
        .iter()
        .map(|counter| (counter.name, limit(counter)))
        .collect()
}

fn of(plan: Plan, kind: Kind) -> Vec<Counter> {
    let ip = "192.0.2.7".parse().expect("an address");
    counters(&ada(plan), ip, kind, &limits(), NOON_MS)
}

#[test]
fn each_kind_is_charged_to_its_own_counters() {
    let none = Plan::default();
    assert_eq!(
        summary(&of(none, Kind::Text)),
        [("text-min-ip", 30), ("text-min", 30), ("text-day", 100)]
    );
    assert_eq!(
        summary(&of(none, Kind::Media)),
        [("media-min-ip", 10), ("media-min", 10), ("media-day", 20)]
    );
    assert_eq!(
        summary(&of(none, Kind::Health)),
        [("health-min-ip", 120), ("health-min", 120)]
    );
    let ip = "192.0.2.7".parse().expect("an address");
    assert_eq!(
        summary(&ip_counters(ip, Kind::Health, &limits())),
        [("health-min-ip", 120)]
    );
}

#[test]
fn a_plan_replaces_figures_and_lifts_the_address_with_them() {
    let big = Plan {
        text_per_minute: Some(300),
        text_per_day: Some(5_000),
        concurrent: Some(2),
        ..Plan::default()
    };
    assert_eq!(
        summary(&of(big, Kind::Text)),
        [("text-min-ip", 300), ("text-min", 300), ("text-day", 5_000)]
    );
    assert_eq!(concurrent_max(&ada(big), &limits()), 2);
    let small = Plan {
        text_per_minute: Some(5),
        media_per_day: Some(0),
        ..Plan::default()
    };
    assert_eq!(
        summary(&of(small, Kind::Text)),
        [("text-min-ip", 30), ("text-min", 5), ("text-day", 100)],
        "a small plan does not shrink the address for others"
    );
    assert_eq!(summary(&of(small, Kind::Media))[2], ("media-day", 0));
}

#[test]
fn keys_are_hashed_short_and_carry_the_day() {
    for counter in of(Plan::default(), Kind::Text) {
        assert!(counter.key.len() <= 48, "{}", counter.key);
        assert!(!counter.key.contains("ada") && !counter.key.contains("192"));
    }
    let day = of(Plan::default(), Kind::Text).pop().expect("the day");
    assert!(day.key.ends_with(":text-day:20000"), "{}", day.key);
}

#[test]
fn addresses_of_one_v6_network_share_a_counter() {
    let key = |ip: &str| {
        let ip = ip.parse().expect("an address");
        ip_counters(ip, Kind::Text, &limits())
            .pop()
            .map(|one| one.key)
    };
    assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff::9"));
    assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
    assert_eq!(key("192.0.2.7"), key("::ffff:192.0.2.7"));
    assert_ne!(key("192.0.2.7"), key("192.0.2.8"));
}

#[test]
fn the_headers_are_those_of_the_contract() {
    let counters = of(Plan::default(), Kind::Text);
    let stored = [None, None, Some(11)];
    let decision = quota::decide(&counters, &stored, NOON_MS * 1_000).decision;
    let text: Vec<String> = headers(decision.states(), None)
        .into_iter()
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    insta::assert_snapshot!(text.join("\n"), @r#"
    x-ratelimit-limit-requests: 30
    x-ratelimit-remaining-requests: 29
    x-ratelimit-reset-requests: 2s
    ratelimit-policy: "text-min-ip";q=30;w=60, "text-min";q=30;w=60, "text-day";q=100;w=86400
    ratelimit: "text-min-ip";r=29;t=2, "text-min";r=29;t=2, "text-day";r=88;t=43200
    "#);
    assert!(headers(&[], None).is_empty());
}

#[test]
fn open_requests_are_a_policy_of_their_own() {
    let counters = of(Plan::default(), Kind::Text);
    let decision = quota::decide(&counters, &[None, None, None], NOON_MS * 1_000).decision;
    let open = Concurrency { limit: 16, open: 3 };
    let sent = headers(decision.states(), Some(open));
    assert!(
        sent[3]
            .1
            .ends_with(", \"concurrency\";q=16;qu=\"concurrent-requests\"")
    );
    assert!(sent[4].1.ends_with(", \"concurrency\";r=13"));
    assert!(headers(&[], Some(open)).is_empty());
}

#[test]
fn an_empty_window_says_when_its_next_unit_comes_and_never_later_than_retry_after() {
    let counters = of(Plan::default(), Kind::Text);
    let now_us = NOON_MS * 1_000;
    let full = now_us + 60_000_000 - 500_000;
    let verdict = quota::decide(&counters, &[Some(full), Some(full), Some(3)], now_us);
    let refusal = verdict
        .decision
        .refusal()
        .expect("both windows are used up");
    let wait = refusal.retry_after().expect("waiting helps");
    assert_eq!(wait, Duration::from_secs(2));
    let sent = headers(verdict.decision.states(), None);
    assert!(
        sent[4]
            .1
            .starts_with("\"text-min-ip\";r=0;t=2, \"text-min\";r=0;t=2"),
        "{}",
        sent[4].1
    );
    assert_eq!(sent[2].1, "59.5s", "OpenAI's header says when all are back");
}

#[test]
fn the_counter_that_binds_most_speaks_in_the_openai_headers() {
    let counters = of(Plan::default(), Kind::Text);
    let stored = [None, None, Some(99)];
    let decision = quota::decide(&counters, &stored, NOON_MS * 1_000).decision;
    let sent = headers(decision.states(), None);
    assert_eq!(sent[0], ("x-ratelimit-limit-requests", "100".to_owned()));
    assert_eq!(sent[1], ("x-ratelimit-remaining-requests", "0".to_owned()));
    assert_eq!(
        sent[2],
        ("x-ratelimit-reset-requests", "12h0m0s".to_owned())
    );
}

#[test]
fn a_minute_that_refuses_is_a_rate_limit_and_a_day_a_quota() {
    let refusal = |window: u64| {
        let state = CounterState {
            name: "text",
            limit: 1,
            remaining: 0,
            reset_after: Duration::from_secs(9),
            window: Duration::from_secs(window),
        };
        let decision = Decision::Refused {
            refused: 0,
            retry_after: Duration::from_millis(8_001),
            states: vec![state],
        };
        decision
            .refusal()
            .map(|refusal| (refusal.label(), refusal.retry_after()))
    };
    let nine = Some(Duration::from_secs(9));
    assert_eq!(refusal(60), Some(("rate_limited", nine)), "hints round up");
    assert_eq!(refusal(86_400), Some(("quota_exceeded", nine)));
    let admitted = Decision::Admitted { states: Vec::new() };
    assert_eq!(admitted.refusal(), None);
}

#[test]
fn durations_read_as_go_prints_them() {
    let table = [
        (0, "0s"),
        (1, "1ms"),
        (20, "20ms"),
        (1_000, "1s"),
        (1_500, "1.5s"),
        (8_640, "8.64s"),
        (59_999, "59.999s"),
        (60_000, "1m0s"),
        (360_000, "6m0s"),
        (3_600_000, "1h0m0s"),
        (86_399_000, "23h59m59s"),
        (90_061_050, "25h1m1.05s"),
    ];
    for (ms, text) in table {
        assert_eq!(go_duration(Duration::from_millis(ms)), text);
    }
    assert_eq!(
        go_duration(Duration::from_micros(1)),
        "1ms",
        "never 0 while something is left"
    );
}
