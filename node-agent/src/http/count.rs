//! What the proxy wants to know beside the answers: how many tokens a prompt has before it runs, and what a request used that was cut
//! off. Makes no answer and keeps no slot busy. Never logs a body.

use engine::{Prompt, Segment};
use http::{Request, Response};
use serde_json::json;
use tokio::time::timeout_at;

use super::asked::{Surface, in_a_thread};
use super::call::Call;
use super::{Asked, Body, Front, asked, json_response};
use crate::reply::Refused;
use crate::tiers::Ready;

impl Front {
    /// `/count/v1/...`: the tokens of all prompts of such a request, each once; pictures and sound are left out.
    pub(super) async fn count<B: Asked>(
        &self,
        request: Request<B>,
        surface: Surface,
    ) -> Result<Response<Body>, Refused> {
        let call = Call::read(request.headers())?;
        let room = self.room(&call)?.clone();
        let (bytes, held) = self.body(request.into_body()).await?;
        let asked = asked::Asked::read(surface, bytes).await?;
        drop(held);
        let asked = asked.told(room.settings().system.as_deref());
        let ready = room.ready()?;
        let prompts = {
            let (ready, room, call) = (ready.clone(), room.clone(), call.clone());
            in_a_thread(move || asked.prompts(&ready, &room, &call)).await?
        };
        let mut tokens = 0;
        for prompt in prompts {
            let counted = timeout_at(call.ends_at, tokens_of(&ready, prompt)).await;
            tokens += counted.map_err(|_elapsed| Refused::Deadline)??;
        }
        Ok(json_response(&json!({"prompt_tokens": tokens})))
    }

    /// `/requests/{completion_id}`: what a request used, once it has ended.
    pub(super) async fn used(&self, completion_id: &str) -> Result<Response<Body>, Refused> {
        let usage = self.ended.usage(completion_id).await;
        let usage = usage.ok_or(Refused::NotFound)?;
        Ok(json_response(&json!({"usage": usage})))
    }
}

async fn tokens_of(ready: &Ready, prompt: Prompt) -> Result<usize, Refused> {
    let worker = &ready.worker;
    let count = async |text: String, add_special, parse_special| {
        let tokens = worker.tokenize(text, add_special, parse_special).await;
        tokens.map(|tokens| tokens.len()).map_err(Refused::Engine)
    };
    match prompt {
        Prompt::Tokens(tokens) => Ok(tokens.len()),
        Prompt::Text {
            text,
            parse_special,
            add_special,
        } => count(text, add_special, parse_special).await,
        Prompt::Segments(segments) => {
            // The begin token stands in front whatever comes first; a text brings it along.
            let begins = matches!(
                segments.first(),
                Some(Segment::Text(_) | Segment::Literal(_))
            );
            let mut tokens = if begins {
                0
            } else {
                count(String::new(), true, false).await?
            };
            for (place, segment) in segments.into_iter().enumerate() {
                tokens += match segment {
                    Segment::Text(text) => count(text, place == 0, true).await?,
                    Segment::Literal(text) => count(text, place == 0, false).await?,
                    Segment::Tokens(tokens) => tokens.len(),
                    Segment::Media(_) => 0,
                };
            }
            Ok(tokens)
        }
    }
}
