//! Vectors for texts and ranks for documents, in OpenAI's and Jina's shapes. A text that is too long is refused with the numbers, never cut.
//! Never logs a body.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use config::wire::valid::{Prompt, ValidEmbeddings, ValidRerank};
use engine::{EmbedError, EmbedInput, Embedded, Refusal};
use http::{Request, Response};
use serde_json::{Value, json};
use tokio::time::timeout_at;

use super::call::Call;
use super::record::Record;
use super::{Asked, Body, Front, json_response};
use crate::reply::Refused;
use crate::tiers::{InUse, Serving};

/// What was asked, whichever of the two it is.
struct Question {
    inputs: Vec<EmbedInput>,
    /// The field that holds the texts.
    param: &'static str,
    dimensions: Option<u32>,
}

/// The numbers, and the name of the model that made them.
struct Found {
    embedded: Embedded,
    model: String,
}

impl Front {
    /// `/v1/embeddings`
    pub(super) async fn embeddings<B: Asked>(
        &self,
        request: Request<B>,
    ) -> Result<Response<Body>, Refused> {
        let call = Call::read(request.headers())?;
        let mut record = Record::begin(&call, "embeddings", (&self.metrics, &self.ended));
        let answered = self.embed(request, &call).await;
        finish(answered, &mut record).map_err(|refused| record.refuse(refused))
    }

    /// `/v1/rerank`
    pub(super) async fn rerank<B: Asked>(
        &self,
        request: Request<B>,
    ) -> Result<Response<Body>, Refused> {
        let call = Call::read(request.headers())?;
        let mut record = Record::begin(&call, "rerank", (&self.metrics, &self.ended));
        let answered = self.rank(request, &call).await;
        finish(answered, &mut record).map_err(|refused| record.refuse(refused))
    }

    async fn embed<B: Asked>(
        &self,
        request: Request<B>,
        call: &Call,
    ) -> Result<(Value, u64), Refused> {
        let (bytes, _held) = self.body(request.into_body()).await?;
        let asked = ValidEmbeddings::parse(&bytes).map_err(Refused::Body)?;
        let inputs = asked.inputs.into_iter().map(|input| match input {
            Prompt::Text(text) => EmbedInput::Text(text),
            Prompt::Tokens(tokens) => EmbedInput::Tokens(tokens),
        });
        let question = Question {
            inputs: inputs.collect(),
            param: "input",
            dimensions: asked.dimensions,
        };
        let found = self.ask_vectors(question, call).await?;
        let tokens = total(&found.embedded);
        let width = asked
            .dimensions
            .and_then(|count| usize::try_from(count).ok());
        let vectors = found.embedded.vectors.into_iter().enumerate();
        let data: Vec<Value> = vectors
            .map(|(index, vector)| {
                let vector = normalised(vector, width);
                let embedding = if asked.base64 {
                    Value::from(STANDARD.encode(little_endian(&vector)))
                } else {
                    Value::from(vector)
                };
                json!({"object": "embedding", "index": index, "embedding": embedding})
            })
            .collect();
        let answer = json!({
            "object": "list",
            "data": data,
            "model": found.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        });
        Ok((answer, tokens))
    }

    async fn rank<B: Asked>(
        &self,
        request: Request<B>,
        call: &Call,
    ) -> Result<(Value, u64), Refused> {
        let (bytes, _held) = self.body(request.into_body()).await?;
        let asked = ValidRerank::parse(&bytes).map_err(Refused::Body)?;
        let documents = asked.documents.iter();
        let inputs = documents.map(|document| EmbedInput::Pair {
            query: asked.query.clone(),
            document: document.clone(),
        });
        let question = Question {
            inputs: inputs.collect(),
            param: "documents",
            dimensions: None,
        };
        let found = self.ask_vectors(question, call).await?;
        let tokens = total(&found.embedded);
        let scores = found.embedded.vectors.iter();
        let scores = scores.map(|vector| vector.first().copied().unwrap_or(f32::MIN));
        let mut ranked: Vec<(usize, f32)> = scores.enumerate().collect();
        // Equal scores keep the order they came in.
        ranked.sort_by(|(_, left), (_, right)| right.total_cmp(left));
        ranked.truncate(
            asked
                .top_n
                .map_or(usize::MAX, |top| usize::try_from(top).unwrap_or(usize::MAX)),
        );
        let result = |(index, score): (usize, f32)| {
            let mut result = json!({"index": index, "relevance_score": score});
            if asked.return_documents {
                result["document"] = json!({"text": asked.documents.get(index)});
            }
            result
        };
        let answer = json!({
            "object": "list",
            "model": found.model,
            "results": ranked.into_iter().map(result).collect::<Vec<Value>>(),
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        });
        Ok((answer, tokens))
    }

    async fn ask_vectors(&self, question: Question, call: &Call) -> Result<Found, Refused> {
        let _in_flight = self.work.enter().ok_or(Refused::Draining)?;
        let room = self.room(call)?.clone();
        let in_use: InUse = timeout_at(call.ends_at, room.acquire())
            .await
            .map_err(|_elapsed| Refused::Deadline)??;
        let Serving::Worker(ready) = in_use.serving().clone() else {
            return Err(unsupported(
                "another server runs this tier; it is asked for text alone",
            ));
        };
        let ranks = question.param == "documents";
        let card = match ready.card.vectors {
            Some(card) if card.ranks == ranks => card,
            Some(_) | None => return Err(wrong_kind(&room.settings().model_id, ranks)),
        };
        if let Some(wanted) = question.dimensions.filter(|wanted| *wanted > card.width) {
            return Err(Refused::Malformed {
                param: "dimensions".to_owned(),
                message: format!(
                    "this model's vectors have {} numbers, so {wanted} cannot be had; ask for fewer or leave dimensions out",
                    card.width
                ),
            });
        }
        let one = question.inputs.len() == 1;
        let asked = ready.worker.embed(question.inputs);
        let embedded = timeout_at(call.ends_at, asked)
            .await
            .map_err(|_elapsed| Refused::Deadline)?
            .map_err(|error| blamed(error, question.param, one))?;
        Ok(Found {
            embedded,
            model: room.settings().model_id.clone(),
        })
    }
}

fn finish(
    answered: Result<(Value, u64), Refused>,
    record: &mut Record,
) -> Result<Response<Body>, Refused> {
    let (answer, tokens) = answered?;
    record.read(tokens);
    record.complete();
    Ok(json_response(&answer))
}

fn wrong_kind(model: &str, ranks: bool) -> Refused {
    let (what, kind) = if ranks {
        ("rank documents", "rerank")
    } else {
        ("make embeddings", "embedding")
    };
    unsupported(&format!(
        "the model {model} does not {what}; ask a model whose tier has kind = \"{kind}\" on its node"
    ))
}

fn unsupported(message: &str) -> Refused {
    Refused::Unsupported {
        param: "model".to_owned(),
        message: message.to_owned(),
    }
}

/// Names the text that cannot be used.
fn blamed(error: EmbedError, param: &str, one: bool) -> Refused {
    let place = match error.input {
        Some(index) if !one || param == "documents" => format!("{param}[{index}]"),
        Some(_) | None => param.to_owned(),
    };
    match error.refusal {
        Refusal::ContextLengthExceeded {
            prompt_tokens,
            n_ctx,
            ..
        } => Refused::TooLong {
            param: place,
            tokens: prompt_tokens,
            max: n_ctx,
        },
        Refusal::Invalid { reason, .. } => Refused::Malformed {
            message: format!("{place}: {reason}"),
            param: place,
        },
        other @ (Refusal::QueueFull { .. }
        | Refusal::DeadlineExceeded
        | Refusal::BadGrammar { .. }
        | Refusal::EngineFault { .. }
        | Refusal::WorkerGone { .. }) => Refused::Engine(other),
    }
}

fn total(embedded: &Embedded) -> u64 {
    embedded.tokens.iter().copied().map(u64::from).sum()
}

/// The first numbers of a vector, brought to length 1. A vector of zeros has no direction and stays.
fn normalised(mut vector: Vec<f32>, width: Option<usize>) -> Vec<f32> {
    vector.truncate(width.unwrap_or(usize::MAX));
    let square: f64 = vector
        .iter()
        .map(|number| f64::from(*number) * f64::from(*number))
        .sum();
    let length = square.sqrt();
    if length > 0.0 {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a part of a vector of length 1 is within -1 and 1"
        )]
        let scaled = |number: &f32| (f64::from(*number) / length) as f32;
        vector = vector.iter().map(scaled).collect();
    }
    vector
}

fn little_endian(vector: &[f32]) -> Vec<u8> {
    vector
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_vector_has_length_one_again() {
        let whole = normalised(vec![3.0, 4.0, 12.0], None);
        assert!((whole[2] - 12.0 / 13.0).abs() < 1e-6);
        assert_eq!(normalised(vec![3.0, 4.0, 12.0], Some(2)), [0.6, 0.8]);
        assert_eq!(normalised(vec![0.0, 0.0], None), [0.0, 0.0]);
    }

    #[test]
    fn base64_is_little_endian_floats() {
        let bytes = little_endian(&[1.0, -2.5]);
        assert_eq!(bytes, [0, 0, 128, 63, 0, 0, 32, 192]);
    }
}
