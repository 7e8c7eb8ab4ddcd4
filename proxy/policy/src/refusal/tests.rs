use std::collections::BTreeSet;
use std::time::Duration;

use config::tier::Tier;
use config::wire::valid::{Invalid, InvalidCode};

use super::{AccountFault, Refusal};
use crate::identity::Scope;
use crate::limit::{CounterState, Level, Measure, Name, Span, Unit};

/// One of each, so that labels and sentences are pinned in one place.
fn all() -> Vec<Refusal> {
    let mut all = of_callers();
    all.extend(of_the_house());
    all
}

fn of_callers() -> Vec<Refusal> {
    vec![
        Refusal::MissingCredential,
        Refusal::InvalidCredential {
            why: "the key fails its checksum (typo?)".into(),
        },
        Refusal::ExpiredCredential,
        Refusal::RevokedCredential,
        Refusal::AmbiguousCredential,
        Refusal::PlainHttp,
        Refusal::MissingScope {
            scope: Scope::Metrics,
        },
        Refusal::ModelNotAllowed {
            model: "heavy".to_owned(),
        },
        Refusal::AccountNotAllowed {
            why: AccountFault::NotOnList,
        },
        Refusal::UnknownModel {
            model: "gpt".to_owned(),
            nearest: vec!["fast".to_owned(), "auto".to_owned()],
        },
        Refusal::BadRequest {
            code: "invalid_value".into(),
            param: Some("temperature".to_owned()),
            message: "temperature is 3, must be 0 to 2".to_owned(),
        },
        Refusal::MalformedRequest { why: "two hosts" },
        Refusal::ContextTooLong {
            message: "5000 tokens do not fit into 4096".to_owned(),
        },
        Refusal::BodyTooLarge { limit: 4_194_304 },
        Refusal::BodyTimeout,
        Refusal::UnsupportedMediaType,
        Refusal::MethodNotAllowed { allow: "POST" },
        Refusal::NotFound {
            hint: Some("/v1/models".to_owned()),
        },
        Refusal::HeaderTooLarge,
    ]
}

fn of_the_house() -> Vec<Refusal> {
    let state = CounterState {
        name: Name::user(Measure::TextMinute),
        unit: Unit::Requests,
        limit: 30,
        remaining: 0,
        reset_after: Duration::from_mins(1),
        window: Duration::from_mins(1),
        span: None,
    };
    let retry_after = Duration::from_millis(1_501);
    vec![
        Refusal::RateLimited { retry_after, state },
        Refusal::QuotaExceeded {
            retry_after: Duration::from_hours(2),
            state: CounterState {
                name: Name::user(Measure::TextDay),
                limit: 100,
                window: Duration::from_hours(24),
                span: Some(Span::Day),
                ..state
            },
        },
        Refusal::NeverFits {
            state: CounterState {
                name: Name::new(Level::Organisation, Measure::MoneyDay),
                unit: Unit::Micros,
                limit: 1_500_000,
                span: Some(Span::Day),
                ..state
            },
        },
        Refusal::Guarded { retry_after },
        Refusal::TooManyOpen { limit: 16 },
        Refusal::QueueFull { retry_after },
        Refusal::NoTierAvailable {
            wanted: Some(Tier::Heavy),
            local_only: false,
            retry_after,
        },
        Refusal::UpstreamError,
        Refusal::UpstreamBroken,
        Refusal::Timeout,
        Refusal::StoreAway,
        Refusal::IssuerAway,
        Refusal::Draining,
        Refusal::Internal,
    ]
}

#[test]
fn labels_blame_hints_and_sentences_are_pinned() {
    let lines: Vec<String> = all()
        .iter()
        .map(|refusal| {
            let wait = refusal.retry_after().map_or(0, |wait| wait.as_secs());
            let retry = if refusal.should_retry() {
                "retry"
            } else {
                "stop"
            };
            let back = if refusal.gives_back() { "back" } else { "keep" };
            format!(
                "{} | {} | {wait} | {retry} | {back} | {refusal}",
                refusal.label(),
                refusal.blame().as_str()
            )
        })
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn every_label_is_its_own() {
    let labels: BTreeSet<&str> = all().iter().map(Refusal::label).collect();
    assert_eq!(labels.len(), all().len());
}

#[test]
fn a_wait_is_never_told_as_zero() {
    let now = Refusal::QueueFull {
        retry_after: Duration::ZERO,
    };
    assert_eq!(now.retry_after(), Some(Duration::from_secs(1)));
}

#[test]
fn the_field_at_fault_is_named_in_the_sentence_too() {
    let invalid = |param: Option<&str>| Invalid {
        param: param.map(str::to_owned),
        code: InvalidCode::InvalidValue,
        message: "5 is outside 0 to 2".to_owned(),
    };
    let named = Refusal::from(invalid(Some("temperature")));
    assert_eq!(named.to_string(), "`temperature`: 5 is outside 0 to 2");
    assert_eq!(
        Refusal::from(invalid(None)).to_string(),
        "5 is outside 0 to 2"
    );
}

#[test]
fn a_used_up_budget_says_whose_it_is_how_much_is_left_and_when_it_is_back() {
    let state = CounterState {
        name: Name {
            level: Level::Group,
            measure: Measure::TokensMonth,
            tier: Some(Tier::Heavy),
        },
        unit: Unit::Tokens,
        limit: 20_000_000,
        remaining: 12,
        reset_after: Duration::from_hours(300),
        window: Duration::from_hours(720),
        span: Some(Span::Month),
    };
    let refusal = Refusal::QuotaExceeded {
        retry_after: state.reset_after,
        state,
    };
    assert_eq!(
        refusal.to_string(),
        "quota used up: your group's quota of 20000000 tokens a month in the heavy tier has 12 tokens left, and this \
         request needs more (group-tokens-month-heavy); it resets in 1080000 s"
    );
    let stored = CounterState {
        name: Name::user(Measure::StoredBytes),
        unit: Unit::Bytes,
        limit: 500_000_000,
        remaining: 5,
        reset_after: Duration::ZERO,
        window: Duration::ZERO,
        span: None,
    };
    assert_eq!(
        Refusal::NeverFits { state: stored }.to_string(),
        "no room: your limit of 500000000 bytes at once has 5 bytes left (media-bytes); delete something first"
    );
}

#[test]
fn an_outage_at_home_says_that_nobody_else_was_asked() {
    let outage = |local_only| Refusal::NoTierAvailable {
        wanted: Some(Tier::Heavy),
        local_only,
        retry_after: Duration::from_secs(5),
    };
    assert_eq!(outage(true).label(), outage(false).label());
    assert!(outage(true).to_string().contains("local_only"));
    assert!(!outage(false).to_string().contains("local_only"));
}
