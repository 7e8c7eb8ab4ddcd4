//! A chat as one JSON body.

use config::wire::chat::{
    CHAT_OBJECT, ChatResponse, Choice, FinishReason, FunctionCall, ResponseMessage, Role,
    TokenLogprob, ToolCall, ToolKind,
};
use engine::Event;

use super::{Envelope, Tally, call_id, finish_reason, index, logprobs, token_logprobs};
use crate::tools::splitter::{Part, SplitRules, Splitter};

/// Gathers one whole answer.
#[derive(Debug)]
pub struct ChatWhole {
    envelope: Envelope,
    choices: Vec<Gathered>,
    tally: Tally,
}

#[derive(Debug)]
struct Gathered {
    splitter: Splitter,
    text: String,
    thoughts: String,
    calls: Vec<ToolCall>,
    logprobs: Vec<TokenLogprob>,
    finish: FinishReason,
}

impl ChatWhole {
    /// An answer with `choices` choices.
    pub fn new(envelope: Envelope, rules: &SplitRules, choices: usize) -> Self {
        let choice = |_index| Gathered {
            splitter: Splitter::new(rules.clone()),
            text: String::new(),
            thoughts: String::new(),
            calls: Vec::new(),
            logprobs: Vec::new(),
            finish: FinishReason::Stop,
        };
        Self {
            tally: Tally::of(&envelope),
            envelope,
            choices: (0..choices).map(choice).collect(),
        }
    }

    /// What was used so far.
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Takes an event of a choice in.
    pub fn event(&mut self, choice: usize, event: &Event) {
        let Some(gathered) = self.choices.get_mut(choice) else {
            return;
        };
        let mut parts = Vec::new();
        match event {
            Event::Piece {
                text,
                tokens,
                logprobs,
                ids: _,
            } => {
                gathered.logprobs.extend(token_logprobs(logprobs));
                gathered.splitter.push(text, &mut parts);
                if gathered.splitter.is_thinking() {
                    self.tally.add_reasoning(*tokens);
                }
            }
            Event::Done {
                finish,
                usage,
                timings,
            } => {
                gathered.splitter.finish(&mut parts);
                gathered.finish = finish_reason(*finish, gathered.splitter.calls());
                self.tally.add(choice, self.envelope.n, *usage, *timings);
            }
            Event::Started { .. } | Event::Progress(_) | Event::Refused(_) => {}
        }
        for part in parts {
            gathered.take(part, |call| call_id(&self.envelope.id, choice, call));
        }
    }

    /// The body.
    pub fn finish(self) -> ChatResponse {
        let choices = self.choices.into_iter().enumerate();
        let extra = self.envelope.context();
        ChatResponse {
            id: self.envelope.id,
            object: CHAT_OBJECT.to_owned(),
            created: self.envelope.created,
            model: self.envelope.model,
            choices: choices.map(|(at, gathered)| gathered.finish(at)).collect(),
            usage: Some(self.tally.usage()),
            system_fingerprint: self.envelope.fingerprint,
            timings: Some(self.tally.timings()),
            routing: None,
            extra,
        }
    }
}

impl Gathered {
    fn take(&mut self, part: Part, id: impl FnOnce(u32) -> String) {
        match part {
            Part::Thought(text) => self.thoughts.push_str(&text),
            Part::Text(text) => self.text.push_str(&text),
            Part::Call { index, name } => self.calls.push(ToolCall {
                id: id(index),
                kind: ToolKind::Function,
                function: FunctionCall {
                    name,
                    arguments: String::new(),
                },
            }),
            Part::Arguments { text, .. } => {
                // Arguments follow their call.
                if let Some(call) = self.calls.last_mut() {
                    call.function.arguments.push_str(&text);
                }
            }
        }
    }

    fn finish(self, at: usize) -> Choice {
        let called_only = self.text.is_empty() && !self.calls.is_empty();
        Choice {
            index: index(at),
            message: ResponseMessage {
                role: Role::Assistant,
                content: (!called_only).then_some(self.text),
                refusal: None,
                reasoning_content: (!self.thoughts.is_empty()).then_some(self.thoughts),
                tool_calls: self.calls,
            },
            logprobs: logprobs(self.logprobs),
            finish_reason: self.finish,
        }
    }
}
