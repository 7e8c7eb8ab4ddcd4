//! A conversation of several turns as a chat program holds it: every question goes with all that was said before. Says of each turn who
//! answered, how much of it lay in that machine's cache, and how long its first word took.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Client;

/// Of what the turn before made a machine read, this much counts as all: templates differ in how they close an answer.
const MOST_PERCENT: u64 = 90;

/// A running conversation.
pub struct Talk {
    client: Client,
    messages: Vec<Value>,
    max_tokens: u32,
    before: Option<(String, u64)>,
}

/// One turn.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Who answered.
    pub node: String,
    /// Who answered the turn before; `None`: it was the first.
    pub before: Option<String>,
    /// Tokens of all that was said.
    pub prompt_tokens: u64,
    /// Of these, in that machine's cache.
    pub cached_tokens: u64,
    /// Tokens that the turn before made a machine read.
    pub known_tokens: u64,
    /// From the question to the first word.
    pub first: Duration,
}

impl Turn {
    /// Whether all that was said up to the last question lay in the cache.
    pub fn is_warm(&self) -> bool {
        self.before.is_some() && self.cached_tokens * 100 >= self.known_tokens * MOST_PERCENT
    }
}

impl Talk {
    /// Nothing said yet; answers have at most so many tokens.
    pub fn new(client: Client, max_tokens: u32) -> Self {
        Self {
            client,
            messages: Vec::new(),
            max_tokens,
            before: None,
        }
    }

    /// Goes on at another proxy, or with another key of the same person.
    pub fn through(&mut self, client: Client) {
        self.client = client;
    }

    /// Asks `model` and reads the answer to its end.
    pub async fn say(&mut self, model: &str, question: &str) -> Turn {
        self.messages
            .push(json!({"role": "user", "content": question}));
        let asked = Instant::now();
        let mut stream = self
            .client
            .stream_body(json!({
                "model": model,
                "messages": self.messages,
                "temperature": 0,
                "max_tokens": self.max_tokens,
                "ignore_eos": true,
                "stream": true,
                "stream_options": {"include_usage": true},
            }))
            .await;
        let (mut events, mut first) = (Vec::new(), None);
        while let Some(event) = stream.data().await {
            if first.is_none() && has_words(&event) {
                first = Some(asked.elapsed());
            }
            events.push(event);
        }
        stream.unread(events);
        let transcript = stream.collect().await;
        assert!(
            transcript.done && transcript.error().is_none(),
            "the answer broke off: {:?}",
            transcript.error()
        );
        self.messages
            .push(json!({"role": "assistant", "content": transcript.text}));
        let usage = transcript.usage();
        let count = |value: &Value| value.as_u64().unwrap_or(0);
        let node = transcript.routing()["node"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let prompt_tokens = count(&usage["prompt_tokens"]);
        let before = self.before.replace((node.clone(), prompt_tokens));
        let (before, known_tokens) =
            before.map_or((None, 0), |(node, tokens)| (Some(node), tokens));
        Turn {
            node,
            before,
            prompt_tokens,
            cached_tokens: count(&usage["prompt_tokens_details"]["cached_tokens"]),
            known_tokens,
            first: first.unwrap_or_else(|| asked.elapsed()),
        }
    }
}

fn has_words(event: &str) -> bool {
    serde_json::from_str::<Value>(event).is_ok_and(|chunk| {
        let words = chunk["choices"][0]["delta"]["content"].as_str();
        words.is_some_and(|words| !words.is_empty())
    })
}

/// So many words that no other conversation begins with.
pub fn words(seed: u64, count: usize) -> String {
    const WORDS: [&str; 16] = [
        "river", "stone", "garden", "winter", "letter", "window", "market", "train", "apple",
        "cloud", "paper", "music", "island", "bridge", "forest", "morning",
    ];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..count).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let at = usize::try_from(state >> 60).unwrap_or(0);
        WORDS.get(at).copied().unwrap_or_default()
    });
    words.collect::<Vec<_>>().join(" ")
}
