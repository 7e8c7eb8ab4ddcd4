//! A chat as server-sent events, in the order of the OpenAI schema: role, deltas, the reason of the end, usage, `[DONE]`.

use std::time::{Duration, Instant};

use config::wire::chat::{
    CHUNK_OBJECT, ChatChunk, ChunkChoice, Delta, FunctionDelta, Role, Timings, TokenLogprob,
    ToolCallDelta, ToolKind,
};
use config::wire::sse;
use engine::{Event, Finish, Progress};
use indexmap::IndexMap;
use serde_json::{Value, json};

use super::{Envelope, Tally, call_id, finish_reason, index, logprobs, token_logprobs};
use crate::tools::splitter::{Part, SplitRules, Splitter};

/// Writes one streamed answer.
#[derive(Debug)]
pub struct ChatStream {
    envelope: Envelope,
    choices: Vec<Choice>,
    tally: Tally,
    clock: Option<Clock>,
    progress: bool,
}

#[derive(Debug)]
struct Choice {
    splitter: Splitter,
    begun: bool,
    logprobs: Vec<TokenLogprob>,
    /// Tokens of text that is held back.
    unnamed: Vec<i32>,
    /// Resumed tokens whose text comes with the next one.
    silent: u32,
    prompt_tokens: u32,
    cached_tokens: u32,
}

/// For `timings_per_token`.
#[derive(Debug, Default)]
struct Clock {
    first: Option<Instant>,
    waited: Duration,
    asked: Option<Instant>,
    tokens: u64,
}

impl Choice {
    /// Goes over text that the machine that began the answer has sent; says how many of its tokens are thoughts.
    fn go_over(&mut self, told: &[String]) -> u32 {
        let mut thoughts = 0;
        for text in told {
            self.begun = true;
            self.silent += 1;
            // Tokens without text of their own were told with the text of the next one.
            if !text.is_empty() {
                self.splitter.push(text, &mut Vec::new());
                let count = std::mem::take(&mut self.silent);
                thoughts += if self.splitter.is_thinking() {
                    count
                } else {
                    0
                };
            }
        }
        thoughts
    }
}

impl ChatStream {
    /// A stream of `choices` answers.
    pub fn new(envelope: Envelope, rules: &SplitRules, choices: usize) -> Self {
        let goes_on = envelope.goes_on;
        let choice = |_index| Choice {
            splitter: Splitter::new(rules.clone()),
            begun: goes_on,
            logprobs: Vec::new(),
            unnamed: Vec::new(),
            silent: 0,
            prompt_tokens: 0,
            cached_tokens: 0,
        };
        Self {
            tally: Tally::of(&envelope),
            envelope,
            choices: (0..choices).map(choice).collect(),
            clock: None,
            progress: false,
        }
    }

    /// Puts `timings` on every chunk.
    #[must_use]
    pub fn with_timings_per_token(mut self, now: Instant) -> Self {
        self.clock = Some(Clock {
            asked: Some(now),
            ..Clock::default()
        });
        self
    }

    /// Tells when the model begins to read the prompt, as llama-server's `prompt_progress`.
    #[must_use]
    pub const fn with_progress(mut self) -> Self {
        self.progress = true;
        self
    }

    /// What was used so far.
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Appends what an event of a choice becomes. Refusals become nothing here: they end the stream as an error.
    pub fn event(&mut self, choice: usize, event: &Event, out: &mut Vec<u8>, now: Instant) {
        let Some(state) = self.choices.get_mut(choice) else {
            return;
        };
        match event {
            Event::Started {
                prompt_tokens,
                cached_tokens,
                queue_ms,
                told,
            } => {
                state.prompt_tokens = *prompt_tokens;
                state.cached_tokens = *cached_tokens;
                self.tally.add_reasoning(state.go_over(told));
                if let Some(clock) = &mut self.clock {
                    clock.tokens += u64::try_from(told.len()).unwrap_or(u64::MAX);
                }
                self.progress &= told.is_empty();
                if self.progress {
                    let progress = json!({
                        "total": prompt_tokens,
                        "cache": cached_tokens,
                        "processed": cached_tokens,
                        "time_ms": queue_ms,
                    });
                    self.tell_progress(choice, progress, out);
                }
            }
            Event::Piece {
                text,
                tokens,
                logprobs,
                ids,
            } => {
                state.unnamed.extend(ids);
                state.logprobs.extend(token_logprobs(logprobs));
                if let Some(clock) = &mut self.clock {
                    clock.count(*tokens, now);
                }
                let mut parts = Vec::new();
                state.splitter.push(text, &mut parts);
                let silent = std::mem::take(&mut state.silent);
                if state.splitter.is_thinking() {
                    self.tally.add_reasoning(tokens + silent);
                }
                self.begin(choice, out);
                self.parts(choice, parts, out);
            }
            Event::Done {
                finish,
                usage,
                timings,
            } => {
                self.tally.add(choice, self.envelope.n, *usage, *timings);
                self.finish(choice, *finish, out);
            }
            Event::Progress(progress) => self.progress(choice, *progress, out),
            Event::Refused(_) => {}
        }
    }

    fn finish(&mut self, choice: usize, finish: Finish, out: &mut Vec<u8>) {
        let Some(state) = self.choices.get_mut(choice) else {
            return;
        };
        let mut parts = Vec::new();
        state.splitter.finish(&mut parts);
        // Nobody could go on from the end.
        state.unnamed.clear();
        let calls = state.splitter.calls();
        let rest = std::mem::take(&mut state.logprobs);
        self.begin(choice, out);
        self.parts(choice, parts, out);
        let end = ChunkChoice {
            index: index(choice),
            delta: Delta::default(),
            logprobs: logprobs(rest),
            finish_reason: Some(finish_reason(finish, calls)),
        };
        self.write(vec![end], out);
    }

    /// Appends the usage chunk, if asked for, and `[DONE]`.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        if self.envelope.include_usage {
            let mut chunk = self.chunk(Vec::new());
            chunk.usage = Some(Some(self.tally.usage()));
            chunk.timings = Some(self.tally.timings());
            put(&chunk, out);
        }
        out.extend_from_slice(sse::DONE);
    }

    /// Prefill for those who asked for `prompt_progress`; everybody else learns it from comments.
    fn progress(&mut self, choice: usize, progress: Progress, out: &mut Vec<u8>) {
        let Progress::Prefill { done, total } = progress else {
            return;
        };
        let Some(state) = self.choices.get(choice).filter(|_state| self.progress) else {
            return;
        };
        let progress = json!({
            "total": total,
            "cache": state.cached_tokens,
            "processed": done,
        });
        self.tell_progress(choice, progress, out);
    }

    fn tell_progress(&mut self, choice: usize, progress: Value, out: &mut Vec<u8>) {
        // A stream begins with the role, whatever else was asked for.
        self.begin(choice, out);
        let mut chunk = self.chunk(vec![delta_of(choice, Delta::default())]);
        chunk.extra.insert("prompt_progress".to_owned(), progress);
        put(&chunk, out);
    }

    fn begin(&mut self, choice: usize, out: &mut Vec<u8>) {
        let Some(state) = self.choices.get_mut(choice) else {
            return;
        };
        if std::mem::replace(&mut state.begun, true) {
            return;
        }
        let delta = Delta {
            role: Some(Role::Assistant),
            content: Some(String::new()),
            ..Delta::default()
        };
        let mut chunk = self.chunk(vec![delta_of(choice, delta)]);
        chunk.timings = self.clock.as_ref().map(|clock| self.timings(clock));
        chunk.extra = self.envelope.context();
        put(&chunk, out);
    }

    fn parts(&mut self, choice: usize, parts: Vec<Part>, out: &mut Vec<u8>) {
        let mut left = parts.len();
        for part in parts {
            left -= 1;
            let mut change = delta_of(choice, self.delta(choice, part));
            // Probabilities of text that is held back wait for the text.
            if let Some(state) = self.choices.get_mut(choice) {
                change.logprobs = logprobs(std::mem::take(&mut state.logprobs));
                // The last chunk of them names the tokens of all: who has it has them all.
                if left == 0 && self.envelope.names_tokens {
                    sse::write_tokens(out, &std::mem::take(&mut state.unnamed));
                }
            }
            self.write(vec![change], out);
        }
    }

    fn delta(&self, choice: usize, part: Part) -> Delta {
        match part {
            Part::Thought(text) => Delta {
                reasoning_content: Some(text),
                ..Delta::default()
            },
            Part::Text(text) => Delta {
                content: Some(text),
                ..Delta::default()
            },
            Part::Call { index, name } => call_delta(ToolCallDelta {
                index,
                id: Some(call_id(&self.envelope.id, choice, index)),
                kind: Some(ToolKind::Function),
                function: FunctionDelta {
                    name: Some(name),
                    arguments: Some(String::new()),
                },
            }),
            Part::Arguments { index, text } => call_delta(ToolCallDelta {
                index,
                id: None,
                kind: None,
                function: FunctionDelta {
                    name: None,
                    arguments: Some(text),
                },
            }),
        }
    }

    fn write(&self, choices: Vec<ChunkChoice>, out: &mut Vec<u8>) {
        let mut chunk = self.chunk(choices);
        chunk.timings = self.clock.as_ref().map(|clock| self.timings(clock));
        put(&chunk, out);
    }

    fn timings(&self, clock: &Clock) -> Timings {
        let mut so_far = Tally::default();
        if let Some(first) = self.choices.first() {
            let usage = engine::Usage {
                prompt_tokens: first.prompt_tokens,
                cached_tokens: first.cached_tokens,
                completion_tokens: u32::try_from(clock.tokens).unwrap_or(u32::MAX),
                image_tokens: 0,
                audio_tokens: 0,
            };
            let times = engine::Timings {
                queue_ms: 0.0,
                prompt_ms: clock.prompt_ms(),
                predicted_ms: clock.waited.as_secs_f64() * 1000.0,
            };
            so_far.add(0, 1, usage, times);
        }
        Timings {
            queue_ms: None,
            ..so_far.timings()
        }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>) -> ChatChunk {
        ChatChunk {
            id: self.envelope.id.clone(),
            object: CHUNK_OBJECT.to_owned(),
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

impl Clock {
    fn count(&mut self, tokens: u32, now: Instant) {
        let first = *self.first.get_or_insert(now);
        self.tokens += u64::from(tokens);
        self.waited = now.saturating_duration_since(first);
    }

    fn prompt_ms(&self) -> f64 {
        match (self.asked, self.first) {
            (Some(asked), Some(first)) => {
                first.saturating_duration_since(asked).as_secs_f64() * 1000.0
            }
            (None, _) | (_, None) => 0.0,
        }
    }
}

fn delta_of(choice: usize, delta: Delta) -> ChunkChoice {
    ChunkChoice {
        index: index(choice),
        delta,
        logprobs: None,
        finish_reason: None,
    }
}

fn call_delta(call: ToolCallDelta) -> Delta {
    Delta {
        tool_calls: vec![call],
        ..Delta::default()
    }
}

fn put(chunk: &ChatChunk, out: &mut Vec<u8>) {
    if let Err(error) = sse::write_json(out, chunk) {
        // Strings, numbers and lists always have a JSON form; a NaN among the numbers is written as null.
        tracing::error!(%error, "a chunk could not be written");
    }
}
