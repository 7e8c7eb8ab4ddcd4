//! What a model's tokenizer and template make of words, in llama-server's shapes: `/tokenize`, `/detokenize`, `/apply-template`. Makes no
//! answer and keeps no slot busy. Never logs a body.

use std::future::Future;
use std::time::SystemTime;

use config::wire::valid::ChatRequest;
use config::wire::wishes::Priority;
use engine::{Refusal, Worker};
use http::{Request, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::asked::tell;
use super::call::Call;
use super::{Asked, Body, Front, json_response};
use crate::chat::{self, Setting};
use crate::reply::Refused;

/// Pieces are asked for one by one.
const PIECES_MAX: usize = 4_096;

#[derive(Debug, Deserialize)]
struct Tokenize {
    content: String,
    #[serde(default)]
    add_special: bool,
    #[serde(default = "yes")]
    parse_special: bool,
    #[serde(default)]
    with_pieces: bool,
}

#[derive(Debug, Deserialize)]
struct Detokenize {
    tokens: Vec<i32>,
}

const fn yes() -> bool {
    true
}

impl Front {
    pub(super) async fn tokenize<B: Asked>(
        &self,
        request: Request<B>,
    ) -> Result<Response<Body>, Refused> {
        let call = Call::read(request.headers())?;
        let room = self.room(&call)?;
        let (bytes, _held) = self.body(request.into_body()).await?;
        let asked: Tokenize = read(
            &bytes,
            "content",
            "expected {\"content\": string, \"add_special\"?: bool, \"parse_special\"?: bool, \"with_pieces\"?: bool}",
        )?;
        let ready = room.ready()?;
        let tokens = ready
            .worker
            .tokenize(asked.content, asked.add_special, asked.parse_special);
        let tokens = in_time(call.ends_at, tokens).await?;
        if !asked.with_pieces {
            return Ok(json_response(&json!({"tokens": tokens})));
        }
        if tokens.len() > PIECES_MAX {
            return Err(Refused::Unsupported {
                param: "with_pieces".to_owned(),
                message: format!(
                    "the text has {} tokens, and pieces are given for at most {PIECES_MAX}; send less text or leave with_pieces out",
                    tokens.len()
                ),
            });
        }
        let pieces = pieces(&ready.worker, tokens, call.ends_at).await?;
        Ok(json_response(&json!({"tokens": pieces})))
    }

    pub(super) async fn detokenize<B: Asked>(
        &self,
        request: Request<B>,
    ) -> Result<Response<Body>, Refused> {
        let call = Call::read(request.headers())?;
        let room = self.room(&call)?;
        let (bytes, _held) = self.body(request.into_body()).await?;
        let asked: Detokenize = read(&bytes, "tokens", "expected {\"tokens\": [integers]}")?;
        let ready = room.ready()?;
        let text = in_time(call.ends_at, ready.worker.detokenize(asked.tokens)).await?;
        Ok(json_response(&json!({"content": text})))
    }

    /// The prompt that a chat would become.
    pub(super) async fn apply_template<B: Asked>(
        &self,
        request: Request<B>,
    ) -> Result<Response<Body>, Refused> {
        let call = Call::read(request.headers())?;
        let room = self.room(&call)?;
        let (bytes, held) = self.body(request.into_body()).await?;
        let ready = room.ready()?;
        let settings = room.settings();
        let deadline = call.time_left().ok_or(Refused::Deadline)?;
        // A long conversation takes its time; other streams must not wait for it.
        let rendering = tokio::task::spawn_blocking(move || {
            let _held = held;
            let mut chat = ChatRequest::parse(&bytes).map_err(Refused::Body)?;
            if let Some(system) = &settings.system {
                tell(&mut chat, system);
            }
            let setting = Setting {
                template: &ready.template,
                defaults: &settings.sampling,
                modalities: ready.card.modalities,
                deadline,
                principal: 0,
                priority: Priority::default(),
                links: &[],
                said: None,
                max_tokens: None,
                now: SystemTime::now(),
            };
            chat::prompt_text(&chat, &setting)
        });
        let prompt = rendering.await.map_err(|error| {
            let reason = error.to_string();
            Refused::Engine(Refusal::EngineFault { reason })
        })??;
        Ok(json_response(&json!({"prompt": prompt})))
    }
}

async fn pieces(
    worker: &Worker,
    tokens: Vec<i32>,
    ends_at: Instant,
) -> Result<Vec<Value>, Refused> {
    let mut pieces = Vec::with_capacity(tokens.len());
    for id in tokens {
        let piece = in_time(ends_at, worker.detokenize(vec![id])).await?;
        pieces.push(json!({"id": id, "piece": piece}));
    }
    Ok(pieces)
}

async fn in_time<T>(
    ends_at: Instant,
    asked: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refused> {
    match timeout_at(ends_at, asked).await {
        Ok(answer) => answer.map_err(Refused::Engine),
        Err(_elapsed) => Err(Refused::Deadline),
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8], param: &str, expected: &str) -> Result<T, Refused> {
    serde_json::from_slice(bytes).map_err(|_error| Refused::Unsupported {
        param: param.to_owned(),
        message: expected.to_owned(),
    })
}
