//! A request handed on to another server, and its answer brought back under our names: id, model and fingerprint are this node's, the
//! rest is as it came. A stream that breaks ends with an error event, never with a clean end.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use config::wire::sse::{self, Decoder, Event};
use futures_util::stream;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::asked::Surface;
use super::call::Call;
use super::job::Held;
use super::stream::{KEEP_ALIVE, event_stream};
use super::{Body, json_response};
use crate::reply::Refused;
use crate::tiers::TierRoom;
use crate::tiers::remote::Remote;

/// A whole answer is a few thousand tokens.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Silence for longer than this is the end of a stream.
const SILENCE_MAX: Duration = Duration::from_mins(1);
/// What a server says about an error, at most.
const MESSAGE_CHARS_MAX: usize = 400;

/// The names that an answer gets here.
struct Names {
    id: String,
    model: String,
    fingerprint: Option<String>,
}

/// A request for another server.
pub(super) struct Forward {
    pub(super) surface: Surface,
    pub(super) body: Bytes,
    pub(super) streams: bool,
    /// Goes before the messages.
    pub(super) system: Option<String>,
}

impl Forward {
    /// Asks and begins to answer.
    pub(super) async fn run(
        self,
        remote: Arc<Remote>,
        room: &TierRoom,
        (call, held): (&Call, Held),
    ) -> Result<Response<Body>, Refused> {
        let (path, prefix) = match self.surface {
            Surface::Chat => ("/chat/completions", "chatcmpl-"),
            Surface::Text => ("/completions", "cmpl-"),
        };
        let names = Names {
            id: call.completion_id(prefix),
            model: room.settings().model_id.clone(),
            fingerprint: room.fingerprint(false),
        };
        let body = renamed(&self, &remote.model, call.max_tokens)?;
        let left = call.time_left().ok_or(Refused::Deadline)?;
        let answer = remote.post(path, body, left).await;
        let answer = answer.map_err(|error| lost(room, &error))?;
        if !answer.status().is_success() {
            return Err(refused(room, answer).await);
        }
        if self.streams {
            return Ok(streamed(answer, names, held));
        }
        let bytes = bounded(answer).await.ok_or_else(|| broken(room))?;
        let mut whole: Value = serde_json::from_slice(&bytes).map_err(|_error| broken(room))?;
        names.apply(&mut whole);
        drop(held);
        Ok(json_response(&whole))
    }
}

impl Names {
    fn apply(&self, answer: &mut Value) {
        let Some(answer) = answer.as_object_mut() else {
            return;
        };
        if answer.contains_key("error") {
            return;
        }
        answer.insert("id".to_owned(), Value::from(self.id.clone()));
        answer.insert("model".to_owned(), Value::from(self.model.clone()));
        if let Some(fingerprint) = &self.fingerprint {
            answer.insert(
                "system_fingerprint".to_owned(),
                Value::from(fingerprint.clone()),
            );
        }
    }
}

/// The request with the name that the other server knows, no more tokens than it may have, and what the tier says first.
fn renamed(asked: &Forward, model: &str, most: Option<u32>) -> Result<Bytes, Refused> {
    let mut body: Value =
        serde_json::from_slice(&asked.body).map_err(|_error| Refused::BodyLost)?;
    if let Some(fields) = body.as_object_mut() {
        fields.insert("model".to_owned(), Value::from(model));
        if let Some(most) = most {
            let wanted = fields.get("max_tokens").and_then(Value::as_u64);
            let most = wanted.map_or(u64::from(most), |wanted| wanted.min(most.into()));
            fields.insert("max_tokens".to_owned(), Value::from(most));
        }
        let messages = fields.get_mut("messages").and_then(Value::as_array_mut);
        if let (Some(messages), Some(system)) = (messages, &asked.system) {
            messages.insert(0, json!({"role": "system", "content": system}));
        }
    }
    serde_json::to_vec(&body)
        .map(Bytes::from)
        .map_err(|_error| Refused::BodyLost)
}

fn lost(room: &TierRoom, error: &reqwest::Error) -> Refused {
    if error.is_timeout() && !error.is_connect() {
        return Refused::Deadline;
    }
    tracing::warn!(tier = %room.tier(), "the server of a tier does not answer");
    Refused::TierUnavailable {
        tier: room.tier(),
        reason: "its server does not answer",
    }
}

fn broken(room: &TierRoom) -> Refused {
    tracing::warn!(tier = %room.tier(), "the server of a tier answers with something else");
    Refused::Engine(engine::Refusal::EngineFault {
        reason: "the server answered with something else".to_owned(),
    })
}

/// The other server's refusal in our words: the caller's faults stay the caller's, a refused key is ours.
async fn refused(room: &TierRoom, answer: reqwest::Response) -> Refused {
    let status = answer.status();
    let bytes = bounded(answer).await.unwrap_or_default();
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let said = body["error"]["message"].as_str().or(body["error"].as_str());
    let said: String = said
        .unwrap_or("no reason was given")
        .chars()
        .filter(|c| !c.is_control())
        .take(MESSAGE_CHARS_MAX)
        .collect();
    match status {
        StatusCode::BAD_REQUEST
        | StatusCode::UNPROCESSABLE_ENTITY
        | StatusCode::PAYLOAD_TOO_LARGE => Refused::Unsupported {
            param: body["error"]["param"]
                .as_str()
                .unwrap_or("messages")
                .to_owned(),
            message: format!("the model's server refuses the request: {said}"),
        },
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            Refused::TierUnavailable {
                tier: room.tier(),
                reason: "its server is busy",
            }
        }
        _other => {
            tracing::warn!(tier = %room.tier(), %status, "the server of a tier refused a request");
            Refused::Engine(engine::Refusal::EngineFault {
                reason: format!("the server answered {status}"),
            })
        }
    }
}

async fn bounded(mut answer: reqwest::Response) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.ok()? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > ANSWER_BYTES_MAX {
            return None;
        }
    }
    Some(bytes)
}

/// A stream under way. Dropping it closes the connection, which is how the other server learns to stop.
struct Live {
    answer: reqwest::Response,
    decoder: Decoder,
    names: Names,
    silent_for: Duration,
    ended: bool,
    _held: Held,
}

fn streamed(answer: reqwest::Response, names: Names, held: Held) -> Response<Body> {
    let live = Live {
        answer,
        decoder: Decoder::default(),
        names,
        silent_for: Duration::ZERO,
        ended: false,
        _held: held,
    };
    let chunks = stream::unfold(live, |mut live| async move {
        let bytes = live.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(bytes)), live))
    });
    event_stream(StreamBody::new(chunks).boxed_unsync())
}

impl Live {
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while out.is_empty() && !self.ended {
            match timeout(KEEP_ALIVE, self.answer.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    self.silent_for = Duration::ZERO;
                    self.take(&chunk, &mut out);
                }
                // The end without [DONE], or a broken connection.
                Ok(Ok(None) | Err(_)) => self.fail(&mut out),
                Err(_silence) if self.silent_for >= SILENCE_MAX => self.fail(&mut out),
                Err(_silence) => {
                    self.silent_for += KEEP_ALIVE;
                    out.extend_from_slice(sse::KEEP_ALIVE);
                }
            }
        }
        (!out.is_empty()).then(|| out.into())
    }

    fn take(&mut self, chunk: &[u8], out: &mut Vec<u8>) {
        let mut events = Vec::new();
        if self.decoder.push(chunk, &mut events).is_err() {
            self.fail(out);
            return;
        }
        for event in events {
            if self.ended {
                return;
            }
            self.event(&event, out);
        }
    }

    fn event(&mut self, event: &Event, out: &mut Vec<u8>) {
        if event.is_done() {
            out.extend_from_slice(sse::DONE);
            self.ended = true;
            return;
        }
        let Ok(mut chunk) = serde_json::from_str::<Value>(&event.data) else {
            self.fail(out);
            return;
        };
        if chunk.get("error").is_some() {
            self.fail(out);
            return;
        }
        self.names.apply(&mut chunk);
        if let Err(error) = sse::write_json(out, &chunk) {
            tracing::error!(%error, "an event could not be written");
        }
    }

    fn fail(&mut self, out: &mut Vec<u8>) {
        self.ended = true;
        let body = Refused::Engine(engine::Refusal::WorkerGone {
            reason: String::new(),
        })
        .body();
        if let Err(error) = sse::write_json(out, &body) {
            tracing::error!(%error, "an error event could not be written");
        }
    }
}
