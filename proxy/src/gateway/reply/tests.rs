//! The public error contract as one snapshot: a change here is a change for every client.

use std::fmt::Write as _;
use std::time::Duration;

use config::tier::Tier;
use policy::identity::Scope;
use policy::limit::{CounterState, Measure, Name, Span};
use policy::refusal::AccountFault;

use super::*;

fn state(measure: Measure, limit: u64) -> CounterState {
    let window = Duration::from_mins(1);
    CounterState {
        name: Name::user(measure),
        unit: measure.unit(),
        limit,
        remaining: 0,
        reset_after: Duration::from_millis(2500),
        window,
        span: matches!(measure, Measure::TextDay | Measure::MediaDay).then_some(Span::Day),
    }
}

fn refusals() -> Vec<Refusal> {
    let wait = Duration::from_millis(2500);
    vec![
        Refusal::MissingCredential,
        Refusal::InvalidCredential {
            why: "the key fails its \"checksum\"".into(),
        },
        Refusal::ExpiredCredential,
        Refusal::RevokedCredential,
        Refusal::AmbiguousCredential,
        Refusal::PlainHttp,
        Refusal::MissingScope {
            scope: Scope::Inference,
        },
        Refusal::ModelNotAllowed {
            model: "heavy".to_owned(),
        },
        Refusal::AccountNotAllowed {
            why: AccountFault::EmailNotVerified,
        },
        Refusal::UnknownModel {
            model: "gpt-9".to_owned(),
            nearest: vec!["auto".to_owned()],
        },
        Refusal::BadRequest {
            code: "invalid_value".into(),
            param: Some("messages[2].content".to_owned()),
            message: "messages[2].content must be a string".to_owned(),
        },
        Refusal::MalformedRequest {
            why: "a header line is folded",
        },
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
        Refusal::RateLimited {
            retry_after: wait,
            state: state(Measure::TextMinute, 30),
        },
        Refusal::QuotaExceeded {
            retry_after: Duration::from_hours(2),
            state: state(Measure::TextDay, 100),
        },
        Refusal::Guarded { retry_after: wait },
        Refusal::TooManyOpen { limit: 16 },
        Refusal::QueueFull { retry_after: wait },
        Refusal::NoTierAvailable {
            wanted: Some(Tier::Heavy),
            local_only: false,
            retry_after: Duration::from_secs(30),
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

fn write(out: &mut String, label: &str, (status, headers, body): (StatusCode, HeaderMap, Bytes)) {
    writeln!(out, "{label}: {}", status.as_u16()).unwrap();
    for (name, value) in &headers {
        writeln!(out, "  {name}: {}", value.to_str().unwrap()).unwrap();
    }
    writeln!(out, "  {}", String::from_utf8(body.to_vec()).unwrap()).unwrap();
}

#[test]
fn the_error_contract_is_what_it_was() {
    let request_id = RequestId::new("req_0123");
    let context = ReplyContext {
        request_id: request_id.clone(),
        limit_headers: HeaderMap::new(),
    };
    let mut out = String::new();
    for refusal in refusals() {
        write(&mut out, refusal.label(), refuse(&refusal, &context));
    }
    let heads = [
        HeadRefusal::Malformed("the Host header is missing"),
        HeadRefusal::TooLarge("more than 100 header fields"),
        HeadRefusal::TargetTooLong,
        HeadRefusal::MethodNotAllowed,
        HeadRefusal::MethodUnknown,
        HeadRefusal::TransferCoding,
        HeadRefusal::Version,
        HeadRefusal::ContentEncoding,
        HeadRefusal::Expectation,
        HeadRefusal::WrongHost,
        HeadRefusal::TooSlow,
    ];
    for head in heads {
        write(
            &mut out,
            &format!("head/{}", head.label()),
            refuse_head(head, &request_id),
        );
    }
    insta::assert_snapshot!(out);
}

#[test]
fn an_error_in_a_stream_is_one_event_with_the_nested_shape() {
    let event = refuse_in_stream(&Refusal::UpstreamBroken);
    let text = std::str::from_utf8(&event).unwrap();
    let json = text
        .strip_prefix("data: ")
        .and_then(|rest| rest.strip_suffix("\n\n"))
        .unwrap();
    let body: ErrorBody = serde_json::from_str(json).unwrap();
    assert_eq!(body.error.code.as_deref(), Some("upstream_error"));
    assert!(!json.contains('\n'), "an event is one line");
}

#[test]
fn limit_headers_travel_with_the_refusal() {
    let mut limit_headers = HeaderMap::new();
    limit_headers.insert("x-ratelimit-limit-requests", HeaderValue::from_static("30"));
    let context = ReplyContext {
        request_id: RequestId::new("req_0123"),
        limit_headers,
    };
    let (_, headers, _) = refuse(&Refusal::UpstreamError, &context);
    assert_eq!(headers["x-ratelimit-limit-requests"], "30");
}
