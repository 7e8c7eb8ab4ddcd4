//! `POST /v1/classify`: what the classifier thinks of a text, and why. Runs no model, keeps nothing of the text.

use std::time::Instant;

use http::StatusCode;
use policy::classify::{Ask, Features, Speaker, Thresholds, Turn, Verdict, classify};
use policy::refusal::Refusal;
use serde::{Deserialize, Serialize};

use super::Call;
use super::body::Reader;
use super::exchange::{Exchange, Stop};

/// Bytes of a body. The classifier reads both ends of a text; nobody needs to send a book.
const BODY_MAX: u64 = 1024 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    text: String,
}

/// `category` and `latency_ms`, and what they stand on.
#[derive(Debug, Serialize)]
struct Answer {
    #[serde(flatten)]
    verdict: Verdict,
    latency_ms: f64,
}

/// What a text alone tells: no tools, no pictures, one turn.
pub(crate) fn features_of(text: &str) -> Features {
    let turns = [Turn {
        speaker: Speaker::User,
        text,
    }];
    Features::of_ask(&Ask {
        turns: &turns,
        ..Ask::default()
    })
}

/// Answers.
pub(super) async fn answer(
    call: &Call,
    thresholds: Thresholds,
    exchange: &mut Exchange<'_>,
) -> Result<(), Stop> {
    let body = Reader::small(exchange, &call.headers, BODY_MAX).await?;
    let order: Order = serde_json::from_slice(&body).map_err(|error| Refusal::BadRequest {
        code: "invalid_request".into(),
        param: Some("text".to_owned()),
        message: format!("the body must be {{\"text\": \"...\"}} and nothing else: {error}"),
    })?;
    let started = Instant::now();
    let verdict = classify(&features_of(&order.text), thresholds);
    let micros = u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX);
    let answer = Answer {
        verdict,
        latency_ms: f64::from(micros) / 1_000.0,
    };
    exchange.json(StatusCode::OK, &answer).await
}
