//! One streamed chat after another against OpenAI's API, with the time at which each part came. Believes the server's own count of tokens.

use std::time::{Duration, Instant};

use bytes::Bytes;
use config::wire::sse::{Decoder, Event};
use futures_util::StreamExt as _;
use reqwest::redirect;
use serde_json::{Value, json};
use tokio::time::timeout;

/// No answer takes longer; loading a large model is part of the first one.
const ANSWER_MAX: Duration = Duration::from_mins(10);
const CONNECT_MAX: Duration = Duration::from_secs(5);
const LIST_MAX: Duration = Duration::from_secs(10);
const LIST_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody there, or the connection broke.
    #[error("{url} does not answer: {reason}")]
    Broken {
        /// Who.
        url: String,
        /// Why.
        reason: String,
    },
    /// A refusal.
    #[error("{url} answers {status}: {message}")]
    Refused {
        /// Who.
        url: String,
        /// The status.
        status: u16,
        /// What it said.
        message: String,
    },
    /// An answer that is none.
    #[error("{url} answers oddly: {reason}")]
    Odd {
        /// Who.
        url: String,
        /// What was wrong.
        reason: String,
    },
}

/// What to ask.
#[derive(Clone, Debug)]
pub struct Ask {
    /// As the API takes them.
    pub messages: Value,
    /// Tokens of the answer, at most.
    pub max_tokens: u32,
    /// The answer goes on until then, whatever the model thinks; servers that do not know this ignore it.
    pub to_the_end: bool,
    /// `None`: whatever the tier does by default.
    pub temperature: Option<f64>,
    /// The answer has to be JSON.
    pub json: bool,
    /// So that a run can be repeated.
    pub seed: u32,
}

impl Ask {
    /// One message of a person.
    pub fn user(text: &str) -> Value {
        json!([{"role": "user", "content": text}])
    }

    fn body(&self, model: &str) -> Value {
        let mut body = json!({
            "model": model,
            "messages": self.messages,
            "max_tokens": self.max_tokens,
            "stream": true,
            "stream_options": {"include_usage": true},
            "seed": self.seed,
        });
        if let Some(fields) = body.as_object_mut() {
            if self.to_the_end {
                fields.insert("ignore_eos".to_owned(), Value::from(true));
            }
            if let Some(temperature) = self.temperature {
                fields.insert("temperature".to_owned(), Value::from(temperature));
            }
            if self.json {
                fields.insert("response_format".to_owned(), json!({"type": "json_object"}));
            }
        }
        body
    }
}

/// One answer as a client saw it.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// From the question to the first text.
    pub first: Duration,
    /// From the question to the end.
    pub whole: Duration,
    /// Between texts, in the order they came; what came together shares its time.
    pub gaps: Vec<Duration>,
    /// As the server counted.
    pub prompt_tokens: u64,
    /// As the server counted.
    pub completion_tokens: u64,
}

/// A server and the model asked for.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    model: String,
}

impl Client {
    /// Of a server at `base`, which ends before `/v1` or after it.
    pub fn new(base: &str, model: &str) -> Result<Self, ClientError> {
        let base = base.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base).to_owned();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_MAX)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .tcp_nodelay(true)
            .build()
            .map_err(|error| ClientError::Broken {
                url: base.clone(),
                reason: error.to_string(),
            })?;
        Ok(Self {
            http,
            base,
            model: model.to_owned(),
        })
    }

    /// The same server with another model.
    #[must_use]
    pub fn with_model(mut self, model: &str) -> Self {
        model.clone_into(&mut self.model);
        self
    }

    /// What the server lists.
    pub async fn models(&self) -> Result<Vec<Value>, ClientError> {
        let url = format!("{}/v1/models", self.base);
        let answer = self.http.get(&url).timeout(LIST_MAX).send().await;
        let answer = answer.map_err(|error| self.broken(&error))?;
        let answer = self.well(answer).await?;
        if answer
            .content_length()
            .is_some_and(|bytes| bytes > LIST_BYTES_MAX)
        {
            return Err(self.odd("its list of models is longer than 4 MiB"));
        }
        let list: Value = answer.json().await.map_err(|error| self.broken(&error))?;
        match list["data"].as_array() {
            Some(models) => Ok(models.clone()),
            None => Err(self.odd("its list of models is none")),
        }
    }

    /// Asks and listens to the end.
    pub async fn ask(&self, ask: &Ask) -> Result<Answer, ClientError> {
        match timeout(ANSWER_MAX, self.listen(ask)).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(self.odd("no answer within ten minutes")),
        }
    }

    async fn listen(&self, ask: &Ask) -> Result<Answer, ClientError> {
        let began = Instant::now();
        let answer = self
            .http
            .post(format!("{}/v1/chat/completions", self.base))
            .json(&ask.body(&self.model))
            .send()
            .await
            .map_err(|error| self.broken(&error))?;
        let mut stream = self.well(answer).await?.bytes_stream();
        let mut hearing = Hearing::new(began);
        while let Some(chunk) = stream.next().await {
            let chunk: Bytes = chunk.map_err(|error| self.broken(&error))?;
            hearing.hear(&chunk).map_err(|reason| self.odd(&reason))?;
        }
        hearing.end().map_err(|reason| self.odd(&reason))
    }

    async fn well(&self, answer: reqwest::Response) -> Result<reqwest::Response, ClientError> {
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body: Value = answer.json().await.unwrap_or_default();
        let said = body["error"]["message"].as_str().unwrap_or("no reason");
        Err(ClientError::Refused {
            url: self.base.clone(),
            status: status.as_u16(),
            message: said.chars().filter(|c| !c.is_control()).take(400).collect(),
        })
    }

    fn broken(&self, error: &reqwest::Error) -> ClientError {
        let mut inner: &dyn std::error::Error = error;
        while let Some(source) = inner.source() {
            inner = source;
        }
        ClientError::Broken {
            url: self.base.clone(),
            reason: inner.to_string(),
        }
    }

    fn odd(&self, reason: &str) -> ClientError {
        ClientError::Odd {
            url: self.base.clone(),
            reason: reason.to_owned(),
        }
    }
}

/// An answer while it comes.
struct Hearing {
    began: Instant,
    last: Option<Instant>,
    decoder: Decoder,
    answer: Answer,
    done: bool,
}

impl Hearing {
    fn new(began: Instant) -> Self {
        Self {
            began,
            last: None,
            decoder: Decoder::default(),
            answer: Answer::default(),
            done: false,
        }
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut events = Vec::new();
        self.decoder
            .push(bytes, &mut events)
            .map_err(|error| format!("{error:?}"))?;
        let mut texts = 0_u32;
        for event in &events {
            texts += u32::from(self.event(event)?);
        }
        if texts == 0 {
            return Ok(());
        }
        let now = Instant::now();
        match self.last {
            None => self.answer.first = now - self.began,
            Some(last) => {
                let gap = (now - last) / texts;
                self.answer.gaps.extend((0..texts).map(|_text| gap));
            }
        }
        self.last = Some(now);
        Ok(())
    }

    /// Whether it brought text.
    fn event(&mut self, event: &Event) -> Result<bool, String> {
        if event.is_done() {
            self.done = true;
            return Ok(false);
        }
        let chunk: Value =
            serde_json::from_str(&event.data).map_err(|_error| "a chunk is no JSON".to_owned())?;
        if let Some(said) = chunk["error"]["message"].as_str() {
            return Err(said.chars().take(400).collect());
        }
        if let Some(usage) = chunk["usage"].as_object() {
            let count = |name: &str| usage.get(name).and_then(Value::as_u64).unwrap_or(0);
            self.answer.prompt_tokens = count("prompt_tokens");
            self.answer.completion_tokens = count("completion_tokens");
        }
        let delta = &chunk["choices"][0]["delta"];
        let said = delta["content"].as_str().unwrap_or_default();
        let thought = delta["reasoning_content"].as_str().unwrap_or_default();
        self.answer.text.push_str(said);
        Ok(!said.is_empty() || !thought.is_empty())
    }

    fn end(mut self) -> Result<Answer, String> {
        if !self.done {
            return Err("the stream ends without [DONE]".to_owned());
        }
        self.answer.whole = self.began.elapsed();
        Ok(self.answer)
    }
}
