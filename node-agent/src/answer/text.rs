//! Text completions, streamed and whole: the old surface, without roles, thoughts or tools.

use config::wire::completion::{
    COMPLETION_OBJECT, CompletionChoice, CompletionLogprobs, CompletionResponse,
};
use config::wire::sse;
use engine::Event;
use indexmap::IndexMap;

use super::{Envelope, Tally, finish_reason, index};

/// Writes or gathers one text completion.
#[derive(Debug)]
pub struct TextAnswer {
    envelope: Envelope,
    choices: Vec<CompletionChoice>,
    /// Characters given out, for `text_offset`.
    offsets: Vec<usize>,
    tally: Tally,
}

impl TextAnswer {
    /// An answer with `choices` choices.
    pub fn new(envelope: Envelope, choices: usize) -> Self {
        Self {
            tally: Tally::of(&envelope),
            envelope,
            choices: (0..choices).map(|at| choice(at, String::new())).collect(),
            offsets: vec![0; choices],
        }
    }

    /// What was used so far.
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Takes an event in for [`TextAnswer::finish`].
    pub fn gather(&mut self, at: usize, event: &Event) {
        let Some(change) = self.change(at, event) else {
            return;
        };
        let Some(whole) = self.choices.get_mut(at) else {
            return;
        };
        whole.text.push_str(&change.text);
        whole.finish_reason = change.finish_reason.or(whole.finish_reason);
        match (&mut whole.logprobs, change.logprobs) {
            (Some(all), Some(more)) => {
                all.tokens.extend(more.tokens);
                all.token_logprobs.extend(more.token_logprobs);
                all.top_logprobs.extend(more.top_logprobs);
                all.text_offset.extend(more.text_offset);
            }
            (none @ None, more) => *none = more,
            (Some(_), None) => {}
        }
    }

    /// Appends what an event becomes in a stream.
    pub fn event(&mut self, at: usize, event: &Event, out: &mut Vec<u8>) {
        if let (Event::Piece { ids, .. }, true) = (event, self.envelope.names_tokens) {
            sse::write_tokens(out, ids);
        }
        if let Some(change) = self.change(at, event) {
            let body = self.body(vec![change]);
            put(&body, out);
        }
    }

    /// Appends the usage chunk, if asked for, and `[DONE]`.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        if self.envelope.include_usage {
            let mut body = self.body(Vec::new());
            body.usage = Some(Some(self.tally.usage()));
            body.timings = Some(self.tally.timings());
            put(&body, out);
        }
        out.extend_from_slice(sse::DONE);
    }

    /// The whole body.
    pub fn finish(mut self) -> CompletionResponse {
        let choices = std::mem::take(&mut self.choices);
        let mut body = self.body(choices);
        body.usage = Some(Some(self.tally.usage()));
        body.timings = Some(self.tally.timings());
        body
    }

    fn change(&mut self, at: usize, event: &Event) -> Option<CompletionChoice> {
        match event {
            Event::Piece { text, logprobs, .. } => {
                let mut change = choice(at, text.clone());
                if let Some(offset) = self.offsets.get_mut(at) {
                    change.logprobs = old_logprobs(logprobs, *offset);
                    *offset += text.chars().count();
                }
                (!text.is_empty() || change.logprobs.is_some()).then_some(change)
            }
            Event::Done {
                finish,
                usage,
                timings,
            } => {
                self.tally.add(at, self.envelope.n, *usage, *timings);
                let mut change = choice(at, String::new());
                change.finish_reason = Some(finish_reason(*finish, 0));
                Some(change)
            }
            Event::Started { told, .. } => {
                // Sent already by the machine that began the answer.
                if let Some(offset) = self.offsets.get_mut(at) {
                    *offset += told.iter().map(|text| text.chars().count()).sum::<usize>();
                }
                None
            }
            Event::Progress(_) | Event::Refused(_) => None,
        }
    }

    fn body(&self, choices: Vec<CompletionChoice>) -> CompletionResponse {
        CompletionResponse {
            id: self.envelope.id.clone(),
            object: COMPLETION_OBJECT.to_owned(),
            created: self.envelope.created,
            model: self.envelope.model.clone(),
            choices,
            usage: self.envelope.include_usage.then_some(None),
            system_fingerprint: self.envelope.fingerprint.clone(),
            timings: None,
            routing: None,
            extra: IndexMap::new(),
        }
    }
}

fn choice(at: usize, text: String) -> CompletionChoice {
    CompletionChoice {
        text,
        index: index(at),
        logprobs: None,
        finish_reason: None,
    }
}

fn old_logprobs(entries: &[engine::TokenLogprob], start: usize) -> Option<CompletionLogprobs> {
    if entries.is_empty() {
        return None;
    }
    let mut lists = CompletionLogprobs::default();
    let mut offset = start;
    for entry in entries {
        let token = String::from_utf8_lossy(&entry.chosen.bytes).into_owned();
        lists.text_offset.push(offset);
        offset += token.chars().count();
        lists.tokens.push(token);
        lists.token_logprobs.push(f64::from(entry.chosen.logprob));
        let top = entry.top.iter().map(|top| {
            let token = String::from_utf8_lossy(&top.bytes).into_owned();
            (token, f64::from(top.logprob))
        });
        lists.top_logprobs.push(top.collect());
    }
    Some(lists)
}

fn put(body: &CompletionResponse, out: &mut Vec<u8>) {
    if let Err(error) = sse::write_json(out, body) {
        tracing::error!(%error, "a chunk could not be written");
    }
}
