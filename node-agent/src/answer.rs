//! The engine's events as OpenAI's JSON: whole answers and streams, for chats and text completions. Pure: events in, bytes out;
//! who waits for them and where the bytes go is decided elsewhere.

pub mod chat_stream;
pub mod chat_whole;
pub mod text;

use config::wire::chat::{
    CompletionTokensDetails, FinishReason, Logprobs, PromptTokensDetails, Timings, TokenLogprob,
    TopLogprob, Usage,
};
use engine::Finish;
use indexmap::IndexMap;
use ring::digest;
use serde_json::{Value, json};

/// What is the same on every chunk of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// `chatcmpl-…` or `cmpl-…`.
    pub id: String,
    /// Unix seconds.
    pub created: i64,
    /// The model's id.
    pub model: String,
    /// Changes whenever the same seed may give another answer.
    pub fingerprint: Option<String>,
    /// The stream ends with a usage chunk, and earlier chunks say `usage: null`.
    pub include_usage: bool,
    /// Choices for each prompt.
    pub n: usize,
    /// The answer's part in what the machine draws, in watts.
    pub watts: Option<f64>,
    /// Milliseconds until the model was loaded for it; `None`: it was.
    pub load_ms: Option<f64>,
    /// Messages that were left out to make the conversation fit, with the sender's leave.
    pub dropped: usize,
    /// Chunks come with the tokens that they are made of.
    pub names_tokens: bool,
    /// Another model has begun the answer: its first chunk is sent already.
    pub goes_on: bool,
}

impl Envelope {
    /// What was done to the conversation, for the answer's metadata.
    fn context(&self) -> IndexMap<String, Value> {
        let done = (self.dropped > 0).then(|| {
            let told = json!({"overflow": "slide", "dropped_messages": self.dropped});
            ("context".to_owned(), told)
        });
        done.into_iter().collect()
    }
}

/// What the choices used, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    prompt: u64,
    cached: u64,
    completion: u64,
    reasoning: u64,
    image: u64,
    audio: u64,
    prompt_ms: f64,
    predicted_ms: f64,
    queue_ms: Option<f64>,
    load_ms: Option<f64>,
    watts: Option<f64>,
    /// Milliseconds of all choices together.
    busy_ms: f64,
}

impl Tally {
    /// Nothing used yet of an answer.
    pub fn of(envelope: &Envelope) -> Self {
        Self {
            watts: envelope.watts,
            load_ms: envelope.load_ms,
            ..Self::default()
        }
    }

    /// Adds one finished choice. Its prompt counts only once for all its `n` answers.
    pub fn add(&mut self, choice: usize, n: usize, usage: engine::Usage, timings: engine::Timings) {
        if choice.is_multiple_of(n.max(1)) {
            self.prompt += u64::from(usage.prompt_tokens);
            self.cached += u64::from(usage.cached_tokens);
            self.image += u64::from(usage.image_tokens);
            self.audio += u64::from(usage.audio_tokens);
            self.prompt_ms += timings.prompt_ms;
        }
        self.busy_ms += timings.prompt_ms + timings.predicted_ms;
        self.completion += u64::from(usage.completion_tokens);
        // Choices are decoded side by side.
        self.predicted_ms = self.predicted_ms.max(timings.predicted_ms);
        let waited = self.queue_ms.unwrap_or_default();
        self.queue_ms = Some(waited.max(timings.queue_ms));
    }

    /// Adds tokens that were thoughts.
    pub fn add_reasoning(&mut self, tokens: u32) {
        self.reasoning += u64::from(tokens);
    }

    /// For `usage`.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::new(self.prompt, self.completion, self.cached);
        usage.prompt_tokens_details = Some(PromptTokensDetails {
            cached_tokens: self.cached,
            image_tokens: self.image,
            audio_tokens: self.audio,
        });
        usage.completion_tokens_details = Some(CompletionTokensDetails {
            reasoning_tokens: self.reasoning,
        });
        usage.joules = self.joules();
        usage
    }

    fn joules(&self) -> Option<f64> {
        self.watts.map(|watts| watts * self.busy_ms / 1000.0)
    }

    /// For `timings`.
    pub fn timings(&self) -> Timings {
        #[expect(
            clippy::cast_precision_loss,
            reason = "token counts are far below 2^52"
        )]
        let tokens = self.completion as f64;
        let rate = if self.predicted_ms > 0.0 {
            tokens / self.predicted_ms * 1000.0
        } else {
            0.0
        };
        Timings {
            cache_n: self.cached,
            prompt_n: self.prompt.saturating_sub(self.cached),
            prompt_ms: self.prompt_ms,
            predicted_n: self.completion,
            predicted_ms: self.predicted_ms,
            predicted_per_second: rate,
            queue_ms: self.queue_ms,
            load_ms: self.load_ms,
            joules: self.joules(),
        }
    }
}

/// OpenAI's word for the engine's. A deadline within an answer is answered as an error instead.
pub(crate) const fn finish_reason(finish: Finish, calls: u32) -> FinishReason {
    match finish {
        Finish::Stop | Finish::StopString if calls > 0 => FinishReason::ToolCalls,
        Finish::Stop | Finish::StopString => FinishReason::Stop,
        Finish::Length | Finish::Deadline => FinishReason::Length,
    }
}

/// The id of a call: the same for every delta of it, unlike any other.
pub(crate) fn call_id(completion: &str, choice: usize, call: u32) -> String {
    let name = format!("{completion}\0{choice}\0{call}");
    let hash = digest::digest(&digest::SHA256, name.as_bytes());
    let hex = hex::encode(hash.as_ref());
    format!("call_{}", hex.get(..24).unwrap_or(&hex))
}

/// OpenAI's form of log-probabilities.
pub(crate) fn token_logprobs(entries: &[engine::TokenLogprob]) -> Vec<TokenLogprob> {
    entries
        .iter()
        .map(|entry| TokenLogprob {
            token: String::from_utf8_lossy(&entry.chosen.bytes).into_owned(),
            logprob: f64::from(entry.chosen.logprob),
            bytes: Some(entry.chosen.bytes.clone()),
            top_logprobs: entry
                .top
                .iter()
                .map(|top| TopLogprob {
                    token: String::from_utf8_lossy(&top.bytes).into_owned(),
                    logprob: f64::from(top.logprob),
                    bytes: Some(top.bytes.clone()),
                })
                .collect(),
        })
        .collect()
}

pub(crate) fn logprobs(entries: Vec<TokenLogprob>) -> Option<Logprobs> {
    if entries.is_empty() {
        return None;
    }
    Some(Logprobs {
        content: entries,
        refusal: None,
    })
}

pub(crate) fn index(choice: usize) -> u32 {
    u32::try_from(choice).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
