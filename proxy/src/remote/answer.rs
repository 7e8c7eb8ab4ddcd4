//! A foreign server's answer in our words: our id, time and model, only members of `OpenAI`'s schema, and errors as our own nodes make
//! them. Trusts nothing: sizes are bounded, and nothing of its headers, its limits or its accounts reaches a client.

use config::wire::error::ErrorBody;
use config::wire::sse::{self, Decoder, Event};
use http::StatusCode;
use policy::route::Step;
use serde_json::{Map, Value};

use crate::gateway::dispatch::Job;
use crate::nodes::upstream::{Answer, Fault};

/// A whole answer: 2,048 vectors of 1,024 numbers take 24 MB.
const WHOLE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// What a server says about an error.
const ERROR_BYTES_MAX: usize = 64 * 1024;
/// One event.
const EVENT_BYTES_MAX: usize = 1024 * 1024;
/// Characters of its message that a caller may see.
const MESSAGE_MAX: usize = 400;
/// Members of an answer that clients may see; whatever else a vendor adds is not for them.
const MEMBERS: [&str; 9] = [
    "id", "object", "created", "model", "choices", "data", "results", "usage", "timings",
];

/// The names that an answer gets here.
#[derive(Clone, Debug)]
struct Names {
    id: String,
    created: u64,
    model: String,
}

/// Turns the bytes of a foreign body into ours, as they come.
#[derive(Debug)]
pub struct Shape {
    names: Names,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Events(Decoder),
    Whole(Vec<u8>),
    Refusal(Vec<u8>, StatusCode),
}

/// The answer in our words; its body is turned as it is read.
pub(super) fn ours(mut answer: Answer, (name, job, step): (&str, &Job, &Step)) -> Answer {
    let names = Names {
        id: job.completion_id.clone(),
        created: job.created_unix,
        model: step.model.clone(),
    };
    let is_stream = answer
        .headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("text/event-stream"));
    let kind = if answer.status != StatusCode::OK {
        let status = answer.status;
        if matches!(status.as_u16(), 401..=404) {
            tracing::warn!(
                remote = name,
                %status,
                "a server outside refuses our requests: check url, key and model of its [[remote]]"
            );
        }
        answer.status = mapped(status);
        Kind::Refusal(Vec::new(), status)
    } else if is_stream {
        Kind::Events(Decoder::new(EVENT_BYTES_MAX))
    } else {
        Kind::Whole(Vec::new())
    };
    answer.body.shaped(Shape { names, kind });
    answer
}

/// What its status means for the next step and for its breaker.
fn mapped(status: StatusCode) -> StatusCode {
    match status.as_u16() {
        400 | 413 | 415 | 422 => status,
        408 | 504 => StatusCode::GATEWAY_TIMEOUT,
        429 => StatusCode::TOO_MANY_REQUESTS,
        402 | 503 | 529 => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_GATEWAY,
    }
}

impl Shape {
    /// Ours, of the next foreign bytes; perhaps none yet.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<u8>, Fault> {
        let mut out = Vec::new();
        match &mut self.kind {
            Kind::Events(decoder) => {
                let mut events = Vec::new();
                decoder
                    .push(bytes, &mut events)
                    .map_err(|_| Fault::Nonsense)?;
                for event in events {
                    self.names.event(&event, &mut out)?;
                }
            }
            Kind::Whole(all) => take(all, bytes, WHOLE_BYTES_MAX)?,
            Kind::Refusal(all, _) => take(all, bytes, ERROR_BYTES_MAX)?,
        }
        Ok(out)
    }

    /// Ours, of what is left at the foreign end.
    pub fn end(self) -> Result<Vec<u8>, Fault> {
        match self.kind {
            Kind::Events(decoder) if decoder.is_mid_event() => Err(Fault::Lost),
            Kind::Events(_) => Ok(Vec::new()),
            Kind::Whole(all) => {
                let value: Value = serde_json::from_slice(&all).map_err(|_| Fault::Nonsense)?;
                let members = self.names.named(value).ok_or(Fault::Nonsense)?;
                serde_json::to_vec(&members).map_err(|_| Fault::Nonsense)
            }
            Kind::Refusal(all, status) => {
                let value = serde_json::from_slice(&all).unwrap_or_default();
                Ok(refusal(&value, status).to_bytes())
            }
        }
    }
}

fn take(all: &mut Vec<u8>, bytes: &[u8], max: usize) -> Result<(), Fault> {
    if all.len() + bytes.len() > max {
        return Err(Fault::Nonsense);
    }
    all.extend_from_slice(bytes);
    Ok(())
}

impl Names {
    fn event(&self, event: &Event, out: &mut Vec<u8>) -> Result<(), Fault> {
        if event.is_done() {
            out.extend_from_slice(sse::DONE);
            return Ok(());
        }
        let value: Value = serde_json::from_str(&event.data).map_err(|_| Fault::Nonsense)?;
        if value.get("error").is_some_and(|error| !error.is_null()) {
            return write(out, &refusal(&value, StatusCode::INTERNAL_SERVER_ERROR));
        }
        let members = self.named(value).ok_or(Fault::Nonsense)?;
        let nothing = members
            .get("choices")
            .and_then(Value::as_array)
            .is_some_and(Vec::is_empty)
            && members.get("usage").is_none_or(Value::is_null);
        // Some servers begin with what their filters thought of the prompt.
        if nothing {
            return Ok(());
        }
        write(out, &members)
    }

    /// The answer under our names, without what is not for clients.
    fn named(&self, value: Value) -> Option<Map<String, Value>> {
        let Value::Object(mut members) = value else {
            return None;
        };
        members.retain(|name, _| MEMBERS.contains(&name.as_str()));
        let has_id = members.contains_key("choices") || members.contains_key("id");
        if has_id {
            members.insert("id".to_owned(), self.id.clone().into());
            members.insert("created".to_owned(), self.created.into());
        }
        members.insert("model".to_owned(), self.model.clone().into());
        let choices = members.get_mut("choices").and_then(Value::as_array_mut);
        for choice in choices.into_iter().flatten() {
            for name in ["delta", "message"] {
                if let Some(said) = choice.get_mut(name).and_then(Value::as_object_mut) {
                    rename_thoughts(said);
                }
            }
        }
        Some(members)
    }
}

/// Thoughts have one name here; some servers call them `reasoning` or `thinking`.
fn rename_thoughts(said: &mut Map<String, Value>) {
    for name in ["reasoning", "thinking"] {
        if let Some(thought) = said.remove(name)
            && thought.is_string()
            && !said.contains_key("reasoning_content")
        {
            said.insert("reasoning_content".to_owned(), thought);
        }
    }
}

fn write(out: &mut Vec<u8>, value: &impl serde::Serialize) -> Result<(), Fault> {
    sse::write_json(out, value).map_err(|_| Fault::Nonsense)
}

/// Its error as one of our nodes would say it. Servers differ: `{"error": {"message"}}`, `{"error": "text"}`, `{"detail": ...}`,
/// `{"message": "text"}`.
fn refusal(body: &Value, status: StatusCode) -> ErrorBody {
    let error = &body["error"];
    let said = [
        &error["message"],
        error,
        &body["message"],
        &body["detail"],
        &body["detail"][0]["msg"],
    ];
    let said = said.into_iter().find_map(Value::as_str);
    let said: String = said
        .unwrap_or("it gives no reason")
        .chars()
        .filter(|letter| !letter.is_control())
        .take(MESSAGE_MAX)
        .collect();
    if is_callers(status) {
        let code = if is_too_long(error, &said) {
            "context_length_exceeded"
        } else {
            "invalid_value"
        };
        let message = format!("the model's server refuses the request: {said}");
        let param = error["param"].as_str().map(str::to_owned);
        return ErrorBody::new("invalid_request_error", code, message).with_param(param);
    }
    let code = match status.as_u16() {
        429 | 529 => "overloaded",
        408 | 504 => "timeout",
        402 | 503 => "tier_unavailable",
        _ => "internal",
    };
    // What it says about its accounts, limits and machines is not for clients.
    ErrorBody::new("server_error", code, "the model's server failed")
}

const fn is_callers(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 413 | 415 | 422)
}

/// Whether the prompt does not fit, in the words of `OpenAI`, llama-server and vLLM.
fn is_too_long(error: &Value, said: &str) -> bool {
    let code = error["code"].as_str().unwrap_or_default();
    let kind = error["type"].as_str().unwrap_or_default();
    let said = said.to_ascii_lowercase();
    code == "context_length_exceeded"
        || kind == "exceed_context_size_error"
        || said.contains("maximum context length")
        || said.contains("context size")
        || said.contains("max_model_len")
}

#[cfg(test)]
mod tests {
    use config::wire::error::ErrorDetail;
    use serde_json::json;

    use super::*;

    fn shape(kind: Kind) -> Shape {
        let names = Names {
            id: "chatcmpl-ours".to_owned(),
            created: 7,
            model: "big".to_owned(),
        };
        Shape { names, kind }
    }

    fn detail(body: &Value, status: u16) -> ErrorDetail {
        refusal(body, StatusCode::from_u16(status).unwrap()).error
    }

    fn events(text: &str) -> Result<String, Fault> {
        let mut shape = shape(Kind::Events(Decoder::new(EVENT_BYTES_MAX)));
        let mut out = shape.push(text.as_bytes())?;
        out.extend(shape.end()?);
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    #[test]
    fn a_stream_gets_our_names_and_loses_what_vendors_add() {
        let out = events(
            "data: {\"choices\":[],\"prompt_filter_results\":[1]}\n\n: PROCESSING\n\ndata: {\"id\":\"x-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"vendor/big\",\"provider\":\"V\",\"system_fingerprint\":\"fp\",\"choices\":[{\"index\":0,\"delta\":{\"reasoning\":\"hm\"},\"finish_reason\":null}]}\n\ndata: [DONE]\n\n",
        )
        .unwrap();
        let first: Value =
            serde_json::from_str(out.lines().next().unwrap().strip_prefix("data: ").unwrap())
                .unwrap();
        assert_eq!(
            first,
            json!({"id": "chatcmpl-ours", "object": "chat.completion.chunk", "created": 7, "model": "big",
                "choices": [{"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": null}]})
        );
        assert!(out.ends_with("data: [DONE]\n\n"));
        assert!(!out.contains("PROCESSING") && !out.contains("vendor"));
    }

    #[test]
    fn a_stream_that_is_none_is_a_fault() {
        assert_eq!(events("data: {\n\n"), Err(Fault::Nonsense));
        assert_eq!(events("data: [1]\n\n"), Err(Fault::Nonsense));
        assert_eq!(events("data: {\"choices\":[]"), Err(Fault::Lost));
    }

    #[test]
    fn an_error_within_a_stream_says_nothing_of_its_server() {
        let out = events("data: {\"error\":{\"message\":\"org-42 ran out\",\"code\":502}}\n\n");
        let out = out.unwrap();
        assert!(out.contains("\"code\":\"internal\""), "{out}");
        assert!(!out.contains("org-42"), "{out}");
    }

    #[test]
    fn errors_of_every_family_are_read() {
        for (status, body, code) in [
            (
                400,
                json!({"error": {"message": "m", "code": "x"}}),
                "invalid_value",
            ),
            (400, json!({"error": "m"}), "invalid_value"),
            (422, json!({"detail": [{"msg": "m"}]}), "invalid_value"),
            (
                400,
                json!({"object": "error", "message": "m"}),
                "invalid_value",
            ),
            (
                400,
                json!({"error": {"message": "m", "type": "exceed_context_size_error"}}),
                "context_length_exceeded",
            ),
            (
                400,
                json!({"message": "This model's maximum context length is 8192"}),
                "context_length_exceeded",
            ),
            (429, json!({"error": {"message": "org-42"}}), "overloaded"),
            (
                503,
                json!({"error": {"message": "Loading model"}}),
                "tier_unavailable",
            ),
            (500, json!(null), "internal"),
            (
                401,
                json!({"error": {"message": "bad key sk-1"}}),
                "internal",
            ),
        ] {
            let found = detail(&body, status);
            assert_eq!(found.code.as_deref(), Some(code), "{status} {body}");
            assert!(!found.message.contains("sk-1") && !found.message.contains("org-42"));
        }
    }

    #[test]
    fn only_a_callers_fault_keeps_its_status() {
        for (status, want) in [
            (400, 400),
            (413, 413),
            (422, 422),
            (401, 502),
            (403, 502),
            (404, 502),
            (302, 502),
            (402, 503),
            (429, 429),
            (500, 502),
            (503, 503),
            (504, 504),
            (529, 503),
            (408, 504),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(mapped(status).as_u16(), want, "{status}");
        }
    }

    #[test]
    fn a_whole_answer_is_bounded_and_renamed() {
        let mut whole = shape(Kind::Whole(Vec::new()));
        let text = json!({"id": "x", "object": "chat.completion", "choices": [{"message": {"content": "hi"}}], "x_groq": {"id": "req"}});
        assert!(whole.push(text.to_string().as_bytes()).unwrap().is_empty());
        let out: Value = serde_json::from_slice(&whole.end().unwrap()).unwrap();
        assert_eq!(
            (&out["id"], &out["model"]),
            (&json!("chatcmpl-ours"), &json!("big"))
        );
        assert!(out.get("x_groq").is_none());
        let mut large = shape(Kind::Whole(vec![0; WHOLE_BYTES_MAX]));
        assert_eq!(large.push(b"x"), Err(Fault::Nonsense));
    }
}
