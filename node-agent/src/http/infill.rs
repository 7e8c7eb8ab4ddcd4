//! `/infill`: what belongs between two texts, in llama-server's shape. The model needs the control tokens for it; one without them is told
//! so. Never logs a body.

use config::wire::valid::ValidInfill;
use engine::{Event, Fim, Finish, GenerateSpec, Prompt, Segment};
use http::{Request, Response};
use serde_json::json;
use tokio::time::timeout_at;

use super::asked::setting;
use super::call::Call;
use super::flow::Flow;
use super::record::Record;
use super::{Asked, Body, Front, json_response};
use crate::answer::Tally;
use crate::chat;
use crate::reply::Refused;
use crate::tiers::Serving;

impl Front {
    /// `/infill`
    pub(super) async fn infill<B: Asked>(
        &self,
        request: Request<B>,
    ) -> Result<Response<Body>, Refused> {
        let call = Call::read(request.headers())?;
        let mut record = Record::begin(&call, "infill", (&self.metrics, &self.ended));
        let answered = self.fill_hole(request, &call, &mut record).await;
        answered.map_err(|refused| record.refuse(refused))
    }

    async fn fill_hole<B: Asked>(
        &self,
        request: Request<B>,
        call: &Call,
        record: &mut Record,
    ) -> Result<Response<Body>, Refused> {
        let _in_flight = self.work.enter().ok_or(Refused::Draining)?;
        let room = self.room(call)?.clone();
        let (bytes, _held) = self.body(request.into_body()).await?;
        let asked = ValidInfill::parse(&bytes).map_err(Refused::Body)?;
        let in_use = timeout_at(call.ends_at, room.acquire())
            .await
            .map_err(|_elapsed| Refused::Deadline)??;
        let Serving::Worker(ready) = in_use.serving().clone() else {
            return Err(Refused::Unsupported {
                param: "model".to_owned(),
                message: "another server runs this tier; use /v1/completions".to_owned(),
            });
        };
        let settings = room.settings();
        let fim = ready.card.fim.ok_or_else(|| chat::no_fim("input_suffix"))?;
        let mut spec = GenerateSpec::from_template("");
        spec.prompt = prompt(&asked, fim);
        chat::fill(
            &mut spec,
            &asked.generation,
            &setting(&ready, &settings.sampling, call)?,
        );
        let mut flow = Flow::start(
            ready.clone(),
            vec![spec],
            (call.ends_at, record.unsettled()),
        )
        .await?;
        let (mut content, mut tally, mut end) = (String::new(), Tally::default(), Finish::Stop);
        while let Some((choice, event)) = flow.next().await {
            record.see(choice, &event);
            match event {
                Event::Refused(refusal) => return Err(Refused::Engine(refusal)),
                Event::Piece { text, .. } => content.push_str(&text),
                Event::Done {
                    finish,
                    usage,
                    timings,
                } => {
                    tally.add(0, 1, usage, timings);
                    end = finish;
                }
                Event::Started { .. } | Event::Progress(_) => {}
            }
        }
        record.complete();
        let stop_type = match end {
            Finish::Stop => "eos",
            Finish::StopString => "word",
            Finish::Length | Finish::Deadline => "limit",
        };
        let usage = tally.usage();
        Ok(json_response(&json!({
            "index": 0,
            "content": content,
            "model": settings.model_id,
            "stop": true,
            "stop_type": stop_type,
            "tokens_predicted": usage.completion_tokens,
            "tokens_evaluated": usage.prompt_tokens,
            "truncated": false,
            "timings": tally.timings(),
            "usage": usage,
        })))
    }
}

/// Other files first, then the two sides of the hole, then how it begins.
fn prompt(asked: &ValidInfill, fim: Fim) -> Prompt {
    let mut segments = Vec::new();
    if let Some(repository) = fim.repository.filter(|_| !asked.extra.is_empty()) {
        segments.push(Segment::Tokens(vec![repository]));
        segments.push(Segment::Literal("project\n".to_owned()));
    }
    for file in &asked.extra {
        match fim.file {
            Some(token) => {
                segments.push(Segment::Tokens(vec![token]));
                segments.push(Segment::Literal(format!("{}\n", file.name)));
            }
            None => segments.push(Segment::Literal("\n\n--- snippet ---\n\n".to_owned())),
        }
        segments.push(Segment::Literal(file.text.clone()));
    }
    if let Some(token) = fim.file.filter(|_| !asked.extra.is_empty()) {
        segments.push(Segment::Tokens(vec![token]));
        segments.push(Segment::Literal("filename\n".to_owned()));
    }
    segments.extend(chat::hole(&asked.prefix, &asked.suffix, fim));
    segments.push(Segment::Literal(asked.prompt.clone()));
    segments.retain(|segment| *segment != Segment::Literal(String::new()));
    Prompt::Segments(segments)
}
