//! Fifty people who talk to the town all the time, and what each of them was told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::client::{Client, Stream, Transcript};

use crate::dice::Dice;

/// How one stream ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// With a finish reason and `[DONE]`.
    Whole,
    /// With an error event.
    Told(String),
    /// The connection broke.
    Cut,
    /// Cleanly, although the answer was not whole: never allowed.
    Silent,
    /// With a status that is none of success.
    Refused(u16, String),
    /// Nobody was there.
    Nobody,
}

/// What one person was told, and when.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) question: usize,
    pub(crate) proxy: usize,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    pub(crate) end: End,
    pub(crate) text: String,
    /// Chunks with content.
    pub(crate) pieces: u64,
    pub(crate) tokens: Option<(u64, u64)>,
    pub(crate) request_id: String,
    /// Nodes that were at work on it.
    pub(crate) attempts: usize,
    /// Where it went on elsewhere.
    pub(crate) continued: Value,
    /// The longest time without a chunk after the first.
    pub(crate) gap: Duration,
}

/// What can be asked, and the answer without any chaos.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) body: Value,
    pub(crate) answer: String,
    pub(crate) tokens: (u64, u64),
    /// Where each token ends, in bytes, and by how much it was more likely than the next best one, in nats.
    pub(crate) leads: Vec<(usize, f64)>,
}

/// Below this a choice is one of rounding: how many others were in the batch, and what was read at once, move a logit by as much.
const TIE: f64 = 0.05;

impl Question {
    /// Whether the token at this byte might as well have been another one.
    pub(crate) fn is_tie(&self, at: usize) -> bool {
        let token = self.leads.iter().find(|(end, _)| at < *end);
        token.is_some_and(|(_, lead)| *lead < TIE)
    }
}

/// How sure the model is of each token of an answer.
pub(crate) async fn leads(door: &Client, body: &Value, answer: &str) -> Vec<(usize, f64)> {
    let mut body = body.clone();
    body["stream"] = json!(false);
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(2);
    if let Some(members) = body.as_object_mut() {
        members.remove("stream_options");
    }
    let reply = door.complete(body).await;
    if reply.text() != answer {
        return Vec::new();
    }
    let told = reply.json()["choices"][0]["logprobs"]["content"].clone();
    let mut end = 0;
    let told = told.as_array().cloned().unwrap_or_default();
    let lead = |token: &Value| {
        let of = |at: usize| token["top_logprobs"][at]["logprob"].as_f64();
        end += token["bytes"].as_array().map_or(0, Vec::len);
        let lead = of(0)
            .zip(of(1))
            .map_or(f64::MAX, |(best, next)| best - next);
        (end, lead)
    };
    told.iter().map(lead).collect()
}

/// Greedy: the answer is the same from every machine.
pub(crate) fn bodies(max_tokens: u64) -> Vec<Value> {
    let ask = |text: &str| {
        json!({
            "model": "fast",
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": max_tokens,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        })
    };
    let mut bodies: Vec<Value> = [
        "Tell me a long story of the sea.",
        "Erzähl mir eine lange Geschichte über Kühe, Öl und Äpfel.",
        "讲一个关于大海的长故事。🐙",
        "What is a proxy?",
    ]
    .map(ask)
    .into();
    let mut listed = ask("Name many things.");
    listed["response_format"] = json!({"type": "json_schema", "json_schema": {"name": "things", "strict": true, "schema": {
        "type": "object", "additionalProperties": false, "required": ["things"],
        "properties": {"things": {"type": "array", "minItems": 20, "maxItems": 20, "items": {"type": "string", "maxLength": 24}}},
    }}});
    listed["ignore_eos"] = json!(false);
    bodies.push(listed);
    bodies
}

/// Asks once and reads to the end, whatever it is.
pub(crate) async fn ask(door: &Client, body: &Value, (question, proxy): (usize, usize)) -> Told {
    let began = Instant::now();
    let mut told = Told {
        question,
        proxy,
        began,
        ended: began,
        end: End::Nobody,
        text: String::new(),
        pieces: 0,
        tokens: None,
        request_id: String::new(),
        attempts: 0,
        continued: Value::Null,
        gap: Duration::ZERO,
    };
    if let Some(stream) = door.try_stream(body.clone()).await {
        read(stream, &mut told).await;
    }
    told.ended = Instant::now();
    told
}

async fn read(mut stream: Stream, told: &mut Told) {
    let id = stream.headers.get("x-request-id");
    let id = id.and_then(|id| id.to_str().ok()).unwrap_or_default();
    id.clone_into(&mut told.request_id);
    if stream.status != 200 {
        let status = stream.status;
        let body = stream.rest().await;
        told.end = End::Refused(status, code(&body));
        return;
    }
    let (mut events, mut last) = (Vec::new(), None::<Instant>);
    while let Some(event) = stream.data().await {
        let now = Instant::now();
        if let Some(last) = last {
            told.gap = told.gap.max(now - last);
        }
        last = Some(now);
        events.push(event);
    }
    let is_cut = stream.is_cut;
    stream.unread(events);
    let transcript = stream.collect().await;
    told.end = end(&transcript, is_cut);
    told.pieces = pieces(&transcript);
    let usage = transcript.usage();
    let of = |name: &str| usage[name].as_u64();
    told.tokens = of("prompt_tokens").zip(of("completion_tokens"));
    told.attempts = transcript.routing()["attempts"]
        .as_array()
        .map_or(0, Vec::len);
    told.continued = transcript.routing()["continued"].clone();
    told.text = transcript.text;
}

fn end(transcript: &Transcript, is_cut: bool) -> End {
    if let Some(error) = transcript.error() {
        return End::Told(error["code"].as_str().unwrap_or("?").to_owned());
    }
    let is_whole = transcript.done && transcript.finish_reason().is_some();
    match (is_whole, is_cut) {
        (true, _) => End::Whole,
        (false, true) => End::Cut,
        (false, false) => End::Silent,
    }
}

fn pieces(transcript: &Transcript) -> u64 {
    let has_content = |chunk: &&Value| {
        let content = chunk["choices"][0]["delta"]["content"].as_str();
        content.is_some_and(|content| !content.is_empty())
    };
    let count = transcript.chunks.iter().filter(has_content).count();
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn code(body: &str) -> String {
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    body["error"]["code"].as_str().unwrap_or("?").to_owned()
}

/// One person: asks again and again until it is over. Whoever is refused asks the other proxy after a moment.
pub(crate) async fn person(
    doors: [Client; 2],
    questions: Arc<[Question]>,
    (number, seed): (usize, u64),
    over: Arc<AtomicBool>,
) -> Vec<Told> {
    let mut dice = Dice::new(seed.wrapping_add(1 + number as u64));
    let mut all = Vec::new();
    let mut proxy = number % doors.len();
    while !over.load(Ordering::Relaxed) {
        let question = dice.below(questions.len());
        let told = ask(&doors[proxy], &questions[question].body, (question, proxy)).await;
        if told.end != End::Whole {
            tokio::time::sleep(dice.between(100, 300)).await;
        }
        if matches!(told.end, End::Nobody | End::Cut | End::Refused(..)) {
            proxy = (proxy + 1) % doors.len();
        }
        all.push(told);
    }
    all
}
