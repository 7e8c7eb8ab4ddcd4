use std::time::Duration;

use config::tier::Tier;

use super::{
    Concurrency, Counter, CounterState, Decision, Level, Measure, Name, Rule, Span, Unit, Window,
    go_duration, headers,
};
use crate::gcra::Rate;
use crate::limit::Elastic;
use crate::quota;

const DAY_MS: u64 = 86_400_000;
const NOON_MS: u64 = 20_000 * DAY_MS + DAY_MS / 2;

fn counter(name: Name, rule: Rule) -> Counter {
    Counter {
        key: name.to_string().into(),
        name,
        unit: name.measure.unit(),
        rule,
        cost: 1,
        per_million: 0,
    }
}

fn minute(level: Level, measure: Measure, limit: u64) -> Counter {
    let rate = Rate {
        limit,
        period_ms: 60_000,
    };
    counter(Name::new(level, measure), Rule::Gcra(rate))
}

fn day(level: Level, measure: Measure, limit: u64) -> Counter {
    let window = Window {
        limit,
        starts_at_ms: 20_000 * DAY_MS,
        resets_at_ms: 20_001 * DAY_MS,
        span: Span::Day,
    };
    counter(Name::new(level, measure), Rule::Window(window))
}

fn text() -> [Counter; 3] {
    [
        minute(Level::Address, Measure::TextMinute, 30),
        minute(Level::User, Measure::TextMinute, 30),
        day(Level::User, Measure::TextDay, 100),
    ]
}

fn decide(counters: &[Counter], stored: &[Option<u64>]) -> Decision {
    quota::decide(counters, Elastic::default(), stored, NOON_MS * 1_000).decision
}

fn lines(sent: &[(&'static str, String)]) -> String {
    let lines: Vec<String> = sent
        .iter()
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    lines.join("\n")
}

#[test]
fn names_say_whose_budget_it_is() {
    let heavy = Name {
        level: Level::Group,
        measure: Measure::TokensMonth,
        tier: Some(Tier::Heavy),
    };
    let table = [
        (Name::user(Measure::TextMinute), "text-min"),
        (
            Name::new(Level::Address, Measure::TextMinute),
            "text-min-ip",
        ),
        (Name::new(Level::Key, Measure::TokensDay), "key-tokens-day"),
        (
            Name::new(Level::Organisation, Measure::MoneyMonth),
            "org-money-month",
        ),
        (
            Name::new(Level::Service, Measure::Concurrent),
            "service-concurrency",
        ),
        (heavy, "group-tokens-month-heavy"),
    ];
    for (name, text) in table {
        assert_eq!(name.to_string(), text);
    }
}

#[test]
fn the_headers_are_those_of_the_contract() {
    let decision = decide(&text(), &[None, None, Some(11)]);
    insta::assert_snapshot!(lines(&headers(decision.states(), None)), @r#"
    x-ratelimit-limit-requests: 30
    x-ratelimit-remaining-requests: 29
    x-ratelimit-reset-requests: 2s
    ratelimit-policy: "text-min-ip";q=30;w=60, "text-min";q=30;w=60, "text-day";q=100;w=86400
    ratelimit: "text-min-ip";r=29;t=2, "text-min";r=29;t=2, "text-day";r=88;t=43200
    "#);
    assert!(headers(&[], None).is_empty());
}

#[test]
fn tokens_media_and_requests_in_progress_have_headers_too() {
    let mut tokens = day(Level::User, Measure::TokensDay, 1_000);
    tokens.cost = 400;
    let counters = [
        minute(Level::User, Measure::MediaMinute, 10),
        tokens,
        day(Level::Group, Measure::TokensDay, 50_000),
        day(Level::Group, Measure::TokensDay, 20_000),
        day(Level::User, Measure::BytesDay, 500_000_000),
        counter(Name::user(Measure::Concurrent), Rule::Held { limit: 16 }),
    ];
    let decision = decide(&counters, &[None; 6]);
    let open = Concurrency { limit: 16, open: 3 };
    insta::assert_snapshot!(lines(&headers(decision.states(), Some(open))), @r#"
    x-ratelimit-limit-requests: 10
    x-ratelimit-remaining-requests: 9
    x-ratelimit-reset-requests: 6s
    x-ratelimit-limit-tokens: 1000
    x-ratelimit-remaining-tokens: 600
    x-ratelimit-reset-tokens: 12h0m0s
    ratelimit-policy: "media-min";q=10;w=60, "tokens-day";q=1000;w=86400;hearth-unit="tokens", "group-tokens-day";q=20000;w=86400;hearth-unit="tokens", "media-bytes-day";q=500000000;w=86400;qu="content-bytes", "concurrency";q=16;qu="concurrent-requests"
    ratelimit: "media-min";r=9;t=6, "tokens-day";r=600;t=43200, "group-tokens-day";r=19999;t=43200, "media-bytes-day";r=499999999;t=43200, "concurrency";r=15
    "#);
}

#[test]
fn open_requests_are_a_policy_of_their_own() {
    let decision = decide(&text(), &[None, None, None]);
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
    let full = NOON_MS * 1_000 + 60_000_000 - 500_000;
    let decision = decide(&text(), &[Some(full), Some(full), Some(3)]);
    let refusal = decision.refusal().expect("both windows are used up");
    assert_eq!(refusal.retry_after(), Some(Duration::from_secs(2)));
    let sent = headers(decision.states(), None);
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
    let decision = decide(&text(), &[None, None, Some(99)]);
    let sent = headers(decision.states(), None);
    assert_eq!(sent[0], ("x-ratelimit-limit-requests", "100".to_owned()));
    assert_eq!(sent[1], ("x-ratelimit-remaining-requests", "0".to_owned()));
    assert_eq!(
        sent[2],
        ("x-ratelimit-reset-requests", "12h0m0s".to_owned())
    );
}

fn refused(measure: Measure, span: Option<Span>, retry_after: Option<Duration>) -> Decision {
    let state = CounterState {
        name: Name::user(measure),
        unit: Unit::Requests,
        limit: 1,
        remaining: 0,
        reset_after: Duration::from_secs(9),
        window: Duration::from_mins(1),
        span,
    };
    Decision::Refused {
        refused: 0,
        retry_after,
        room: 0,
        states: vec![state],
    }
}

#[test]
fn a_minute_that_refuses_is_a_rate_limit_and_a_day_a_quota() {
    let soon = Some(Duration::from_millis(8_001));
    let nine = Some(Duration::from_secs(9));
    let table = [
        (
            refused(Measure::TextMinute, None, soon),
            "rate_limited",
            nine,
        ),
        (
            refused(Measure::TextDay, Some(Span::Day), soon),
            "quota_exceeded",
            nine,
        ),
        (
            refused(Measure::TokensMonth, Some(Span::Month), soon),
            "quota_exceeded",
            nine,
        ),
        (
            refused(Measure::TokensDay, Some(Span::Day), None),
            "never_fits",
            None,
        ),
        (
            refused(Measure::Concurrent, None, None),
            "too_many_open",
            Some(Duration::from_secs(1)),
        ),
    ];
    for (decision, label, retry_after) in table {
        let refusal = decision.refusal().expect("a refusal");
        assert_eq!(
            (refusal.label(), refusal.retry_after()),
            (label, retry_after)
        );
    }
    let admitted = Decision::Admitted {
        granted: 0,
        states: Vec::new(),
    };
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
