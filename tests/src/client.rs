//! A program with a credential, talking HTTPS to the proxy: whole answers, streams, and raw requests.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use reqwest::{Certificate, RequestBuilder, Response, StatusCode, header::HeaderMap};
use serde_json::{Value, json};

/// A client of one proxy with one credential.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    bearer: Option<String>,
}

impl Client {
    /// Trusts exactly the proxy's certificate.
    pub fn new(base: &str, certificate_pem: &str, bearer: Option<&str>) -> Self {
        let mut client = Self::patient(base, certificate_pem, Duration::from_mins(1));
        client.bearer = bearer.map(ToOwned::to_owned);
        client
    }

    /// One that waits so long for the end of an answer, without a credential.
    pub fn patient(base: &str, certificate_pem: &str, patience: Duration) -> Self {
        let certificate = Certificate::from_pem(certificate_pem.as_bytes())
            .expect("the proxy's certificate is PEM");
        let http = reqwest::Client::builder()
            .tls_certs_only([certificate])
            .timeout(patience)
            .build()
            .expect("a client can be built");
        Self {
            http,
            base: base.to_owned(),
            bearer: None,
        }
    }

    /// The same client with another credential.
    #[must_use]
    pub fn with_bearer(&self, bearer: &str) -> Self {
        Self {
            bearer: Some(bearer.to_owned()),
            ..self.clone()
        }
    }

    /// A GET, credential included.
    pub async fn get(&self, path: &str) -> Reply {
        Reply::read(
            self.authorized(self.http.get(format!("{}{path}", self.base)))
                .send()
                .await
                .expect("the proxy answers"),
        )
        .await
    }

    /// A GET with one more header.
    pub async fn get_with(&self, path: &str, (name, value): (&str, &str)) -> Reply {
        let request = self.http.get(format!("{}{path}", self.base));
        let sent = self.authorized(request.header(name, value)).send().await;
        Reply::read(sent.expect("the proxy answers")).await
    }

    /// A GET that may fail to connect.
    pub async fn try_get(&self, path: &str) -> Option<Reply> {
        let response = self
            .authorized(self.http.get(format!("{}{path}", self.base)))
            .send()
            .await
            .ok()?;
        Some(Reply::read(response).await)
    }

    /// A chat completion with a body of the story's own.
    pub async fn complete(&self, body: Value) -> Reply {
        Reply::read(
            self.post("/v1/chat/completions", &body)
                .send()
                .await
                .expect("the proxy answers"),
        )
        .await
    }

    /// One question, greedy, to the model given.
    pub async fn ask(&self, model: &str, question: &str) -> Reply {
        self.complete(question_body(model, question, false)).await
    }

    /// One question, streamed.
    pub async fn stream(&self, model: &str, question: &str) -> Stream {
        let mut body = question_body(model, question, true);
        body["stream_options"] = json!({"include_usage": true});
        self.stream_body(body).await
    }

    /// A stream with a body of the story's own.
    pub async fn stream_body(&self, body: Value) -> Stream {
        let response = self
            .post("/v1/chat/completions", &body)
            .send()
            .await
            .expect("the proxy answers");
        assert_eq!(
            response.status(),
            StatusCode::OK,
            "{}",
            response.text().await.unwrap_or_default()
        );
        Stream::new(response)
    }

    /// The same whatever the status is; `None` when the connection breaks.
    pub async fn try_stream(&self, body: Value) -> Option<Stream> {
        let sent = self.post("/v1/chat/completions", &body).send().await;
        sent.ok().map(Stream::new)
    }

    /// A POST with a body of any kind.
    pub async fn post_raw(&self, path: &str, content_type: &str, body: Vec<u8>) -> Reply {
        let request = self
            .http
            .post(format!("{}{path}", self.base))
            .header("content-type", content_type)
            .body(body);
        Reply::read(
            self.authorized(request)
                .send()
                .await
                .expect("the proxy answers"),
        )
        .await
    }

    fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.authorized(self.http.post(format!("{}{path}", self.base)).json(body))
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.bearer {
            Some(bearer) => request.bearer_auth(bearer),
            None => request,
        }
    }
}

fn question_body(model: &str, question: &str, stream: bool) -> Value {
    json!({
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "stream": stream,
    })
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Response headers.
    pub headers: HeaderMap,
    /// Body as text.
    pub body: String,
}

impl Reply {
    async fn read(response: Response) -> Self {
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let body = response.text().await.expect("the body arrives");
        Self {
            status,
            headers,
            body,
        }
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.body))
    }

    /// The assistant's words.
    pub fn text(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()["choices"][0]["message"]["content"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// `_routing`.
    pub fn routing(&self) -> Value {
        self.json()["_routing"].clone()
    }

    /// `error.code`.
    pub fn code(&self) -> String {
        self.json()["error"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// A header as text, empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }
}

/// A running stream of server-sent events.
pub struct Stream {
    /// HTTP status.
    pub status: u16,
    /// Response headers.
    pub headers: HeaderMap,
    /// The connection ended before the answer did.
    pub is_cut: bool,
    bytes: BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    rest: Vec<u8>,
    ready: VecDeque<String>,
}

impl Stream {
    fn new(response: Response) -> Self {
        let headers = response.headers().clone();
        Self {
            status: response.status().as_u16(),
            headers,
            is_cut: false,
            bytes: response.bytes_stream().boxed(),
            rest: Vec::new(),
            ready: VecDeque::new(),
        }
    }

    /// The data of the next event; `None` at the end or when the connection broke.
    pub async fn data(&mut self) -> Option<String> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Some(data);
            }
            let piece = tokio::time::timeout(Duration::from_mins(1), self.bytes.next())
                .await
                .expect("a stream goes on or ends")?;
            let Ok(piece) = piece else {
                self.is_cut = true;
                return None;
            };
            self.rest.extend_from_slice(&piece);
            while let Some(end) = self.rest.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.rest.drain(..end + 2).collect();
                let block = String::from_utf8(block).expect("events are UTF-8");
                self.ready.extend(
                    block
                        .lines()
                        .filter_map(|line| line.strip_prefix("data: "))
                        .map(ToOwned::to_owned),
                );
            }
        }
    }

    /// The whole body as text, for an answer that is no stream.
    pub async fn rest(mut self) -> String {
        let mut all = Vec::new();
        while let Some(Ok(piece)) = self.bytes.next().await {
            all.extend_from_slice(&piece);
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    /// Reads on until `mark` has come, comments included, and returns the text so far.
    ///
    /// What was read is gone for [`Stream::data`]; [`Stream::rest`] goes on behind it.
    pub async fn text_until(&mut self, mark: &str) -> String {
        let mut text = Vec::new();
        loop {
            let piece = tokio::time::timeout(Duration::from_mins(1), self.bytes.next())
                .await
                .expect("a stream goes on or ends");
            let so_far = String::from_utf8_lossy(&text);
            let Some(Ok(piece)) = piece else {
                panic!("the stream ended before {mark:?} came: {so_far}");
            };
            text.extend_from_slice(&piece);
            let so_far = String::from_utf8_lossy(&text);
            if so_far.contains(mark) {
                return so_far.into_owned();
            }
        }
    }

    /// Takes events back that were read already.
    pub fn unread(&mut self, events: Vec<String>) {
        for event in events.into_iter().rev() {
            self.ready.push_front(event);
        }
    }

    /// Reads to the end.
    pub async fn collect(mut self) -> Transcript {
        let started = Instant::now();
        let mut transcript = Transcript::default();
        while let Some(data) = self.data().await {
            if data == "[DONE]" {
                transcript.done = true;
                continue;
            }
            let chunk: Value = serde_json::from_str(&data).expect("data is JSON");
            if let Some(text) = chunk["choices"][0]["delta"]["content"].as_str() {
                transcript.text.push_str(text);
            }
            transcript.chunks.push(chunk);
        }
        transcript.took = started.elapsed();
        transcript
    }
}

/// A finished stream.
#[derive(Debug, Default)]
pub struct Transcript {
    /// All content deltas together.
    pub text: String,
    /// Every chunk but `[DONE]`.
    pub chunks: Vec<Value>,
    /// Whether `[DONE]` came.
    pub done: bool,
    /// Time from the head to the end.
    pub took: Duration,
}

impl Transcript {
    /// The finish reason, if one came.
    pub fn finish_reason(&self) -> Option<String> {
        self.chunks.iter().find_map(|chunk| {
            chunk["choices"][0]["finish_reason"]
                .as_str()
                .map(ToOwned::to_owned)
        })
    }

    /// `_routing` of the chunk that carries it.
    pub fn routing(&self) -> Value {
        self.chunks
            .iter()
            .find(|chunk| !chunk["_routing"].is_null())
            .map_or(Value::Null, |chunk| chunk["_routing"].clone())
    }

    /// The error event, if the stream broke.
    pub fn error(&self) -> Option<Value> {
        self.chunks
            .iter()
            .find(|chunk| !chunk["error"].is_null())
            .map(|chunk| chunk["error"].clone())
    }

    /// The usage chunk's usage.
    pub fn usage(&self) -> Value {
        self.chunks
            .last()
            .map_or(Value::Null, |chunk| chunk["usage"].clone())
    }
}
