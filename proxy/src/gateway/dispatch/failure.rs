//! What a node's refusal means: for the next step, for the breaker, for the caller. Repeats a node's words only to the caller
//! whose fault it is.

use config::wire::error::{ErrorBody, ErrorDetail};
use http::StatusCode;
use policy::refusal::Refusal;
use policy::router::Outcome;

use crate::nodes::upstream::Fault;

/// Characters of a node's message that a caller may see.
const MESSAGE_MAX: usize = 1_000;

/// Why a step gave no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The next step may.
    Next(Outcome),
    /// The connection broke, or nothing came in time, after the request was sent: the next step may, but not on the same node, which
    /// may be at work on it.
    Lost(Outcome),
    /// No step can help.
    Final(Outcome, Refusal),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Connect => Self::Next(Outcome::ConnectFailed),
            Fault::Lost => Self::Lost(Outcome::ConnectFailed),
            Fault::Timeout => Self::Lost(Outcome::TimedOut),
            Fault::Nonsense => Self::Next(Outcome::ServerFault),
        }
    }
}

impl Failure {
    /// Reads an answer that is not 200.
    pub(super) fn of_status(status: StatusCode, body: &[u8]) -> Self {
        let detail = serde_json::from_slice::<ErrorBody>(body)
            .ok()
            .map(|body| body.error);
        let code = detail.as_ref().and_then(|detail| detail.code.as_deref());
        match status.as_u16() {
            400 | 413 | 415 | 422 => match detail {
                Some(detail) => callers_fault(detail),
                None => Self::Next(Outcome::ServerFault),
            },
            429 => Self::Next(Outcome::Overloaded),
            // A node that goes down, or rests, is not broken: its report says so in a moment.
            503 if matches!(code, Some("overloaded" | "draining")) => {
                Self::Next(Outcome::Overloaded)
            }
            503 => Self::Next(Outcome::Unavailable),
            504 => Self::Next(Outcome::TimedOut),
            _ => Self::Next(Outcome::ServerFault),
        }
    }

    /// Reads an error event that came before any content.
    pub(super) fn of_error(detail: ErrorDetail) -> Self {
        if detail.kind == "invalid_request_error" {
            return callers_fault(detail);
        }
        Self::Next(match detail.code.as_deref() {
            Some("overloaded") => Outcome::Overloaded,
            Some("tier_unavailable") => Outcome::Unavailable,
            Some("timeout") => Outcome::TimedOut,
            Some(_) | None => Outcome::ServerFault,
        })
    }
}

/// The node's words for the caller, bounded and without control characters: a node is not trusted with our terminal.
fn callers_fault(detail: ErrorDetail) -> Failure {
    let clean = |text: &str| -> String {
        text.chars()
            .filter(|letter| !letter.is_control())
            .take(MESSAGE_MAX)
            .collect()
    };
    let message = clean(&detail.message);
    let code = detail
        .code
        .filter(|code| is_word(code))
        .unwrap_or_else(|| "invalid_value".to_owned());
    let refusal = if code == "context_length_exceeded" {
        Refusal::ContextTooLong { message }
    } else {
        Refusal::BadRequest {
            code: code.into(),
            param: detail.param.as_deref().map(clean),
            message,
        }
    };
    Failure::Final(Outcome::CallerFault, refusal)
}

fn is_word(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, code: &str) -> Failure {
        let body = ErrorBody::new("server_error", code, "words").to_bytes();
        Failure::of_status(StatusCode::from_u16(status).unwrap(), &body)
    }

    #[test]
    fn only_the_callers_own_fault_is_final() {
        assert!(matches!(
            status(400, "invalid_value"),
            Failure::Final(Outcome::CallerFault, Refusal::BadRequest { .. })
        ));
        for (code, word, outcome) in [
            (503, "overloaded", Outcome::Overloaded),
            (429, "anything", Outcome::Overloaded),
            (503, "draining", Outcome::Overloaded),
            (503, "tier_unavailable", Outcome::Unavailable),
            (500, "internal", Outcome::ServerFault),
            // A node that does not know us or the path is broken, whatever its status says.
            (401, "invalid_api_key", Outcome::ServerFault),
            (404, "not_found", Outcome::ServerFault),
            (302, "", Outcome::ServerFault),
        ] {
            assert!(
                matches!(status(code, word), Failure::Next(found) if found == outcome),
                "{code} {word}"
            );
        }
        let empty = Failure::of_status(StatusCode::BAD_REQUEST, b"<html>");
        assert!(matches!(empty, Failure::Next(Outcome::ServerFault)));
    }

    #[test]
    fn a_nodes_words_are_cut_and_cleaned() {
        let body = ErrorBody::new(
            "x",
            "Not A Word\n",
            format!("\u{1b}[2J{}", "x".repeat(5_000)),
        );
        let failure = Failure::of_status(StatusCode::BAD_REQUEST, &body.to_bytes());
        let Failure::Final(_, Refusal::BadRequest { code, message, .. }) = failure else {
            panic!("{failure:?}");
        };
        assert_eq!(
            (code.as_ref(), message.len()),
            ("invalid_value", MESSAGE_MAX)
        );
        assert!(message.starts_with("[2Jx"));
    }
}
