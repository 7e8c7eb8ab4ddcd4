//! The load of the engine benchmark: streamed chat completions over plain HTTP against any server that speaks OpenAI's API, so that
//! Hearth's node and llama-server are asked the same by the same client. Prints one JSON object; compares nothing itself.

use std::io::Write as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::try_join_all;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tests::fake::Failure;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// No answer of this benchmark takes longer, or something hangs.
const PATIENCE: Duration = Duration::from_mins(5);
/// Words of the long prompt unless `LONG_WORDS` says otherwise; the tiny tokenizer makes about two tokens of each.
const LONG_WORDS: usize = 1_000;
/// Events of the running stream before the long prompt arrives.
const EVENTS_BEFORE_LONG: usize = 4;
/// Tokens of the running stream: more than a long prompt takes to read.
const RUNNING_TOKENS: u32 = 1_200;

/// One answer as the client saw it.
struct Answer {
    first: Duration,
    longest_gap: Duration,
    prompt_tokens: u64,
    completion_tokens: u64,
}

/// What to ask.
#[derive(Clone)]
struct Ask {
    address: String,
    model: String,
    prompt: String,
    max_tokens: u32,
}

impl Ask {
    /// The whole sampler chain on both sides, and no early end: every stream makes `max_tokens`.
    fn body(&self, seed: usize) -> Value {
        json!({
            "model": self.model,
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": self.max_tokens,
            "stream": true,
            "stream_options": {"include_usage": true},
            "ignore_eos": true,
            "seed": seed,
            "temperature": 0.8,
            "top_k": 40,
            "top_p": 0.95,
            "min_p": 0.05,
            "repeat_penalty": 1.05,
            "presence_penalty": 0.1,
            "frequency_penalty": 0.1,
        })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, model, what, figure] = arguments.as_slice() else {
        return Err(
            "usage: bench-engine HOST:PORT MODEL decode|prefill|shared|stall NUMBER".into(),
        );
    };
    let number: usize = figure.parse()?;
    let ask = Ask {
        address: address.clone(),
        model: model.clone(),
        prompt: String::new(),
        max_tokens: 0,
    };
    let figures = match what.as_str() {
        "decode" => decode(ask, number).await?,
        "prefill" => prefill(ask, number).await?,
        "shared" => shared(ask, number).await?,
        "stall" => stall(ask, number).await?,
        other => return Err(format!("{other} is not decode, prefill, shared or stall").into()),
    };
    writeln!(std::io::stdout(), "{figures}")?;
    Ok(())
}

/// So many streams at once, each of `TOKENS` tokens (default 128).
async fn decode(ask: Ask, streams: usize) -> Result<Value, Failure> {
    let max_tokens = std::env::var("TOKENS").map_or(Ok(128), |text| text.parse())?;
    let started = Instant::now();
    let answers = try_join_all((0..streams).map(|number| {
        let ask = Ask {
            prompt: format!("{number} Tell me about number {number}."),
            max_tokens,
            ..ask.clone()
        };
        async move { answer(&ask, number, None).await }
    }))
    .await?;
    let took = started.elapsed();
    let tokens: u64 = answers.iter().map(|answer| answer.completion_tokens).sum();
    let mut firsts: Vec<f64> = answers.iter().map(|answer| ms(answer.first)).collect();
    Ok(json!({
        "tokens_per_second": per_second(tokens, took),
        "ttft_ms": median(&mut firsts),
    }))
}

/// A long prompt that nobody has asked before; `number` makes it new.
async fn prefill(ask: Ask, number: usize) -> Result<Value, Failure> {
    let ask = Ask {
        prompt: long_prompt(number),
        max_tokens: 2,
        ..ask
    };
    let answer = answer(&ask, number, None).await?;
    Ok(json!({
        "tokens_per_second": per_second(answer.prompt_tokens, answer.first),
        "ttft_ms": ms(answer.first),
        "prompt_tokens": answer.prompt_tokens,
    }))
}

/// The second turn of a conversation with a long first turn.
async fn shared(ask: Ask, number: usize) -> Result<Value, Failure> {
    let first = Ask {
        prompt: long_prompt(number),
        max_tokens: 2,
        ..ask
    };
    answer(&first, number, None).await?;
    let second = Ask {
        prompt: format!("{} And now?", first.prompt),
        ..first
    };
    let answer = answer(&second, number, None).await?;
    Ok(json!({ "ttft_ms": ms(answer.first) }))
}

/// The longest gap of a running stream while a long prompt arrives.
async fn stall(ask: Ask, number: usize) -> Result<Value, Failure> {
    let running = Ask {
        prompt: format!("{number} Count."),
        max_tokens: RUNNING_TOKENS,
        ..ask.clone()
    };
    let long = Ask {
        prompt: long_prompt(number),
        max_tokens: 2,
        ..ask
    };
    let (begun, has_begun) = oneshot::channel();
    let (watched, long) = tokio::try_join!(
        async { answer(&running, number, Some(begun)).await },
        async {
            has_begun.await?;
            answer(&long, number, None).await
        }
    )?;
    Ok(json!({ "stall_ms": ms(watched.longest_gap), "ttft_ms": ms(long.first) }))
}

/// Asks once. `begun` is told when the stream is well under way; gaps count from there.
async fn answer(
    ask: &Ask,
    seed: usize,
    begun: Option<oneshot::Sender<()>>,
) -> Result<Answer, Failure> {
    timeout(PATIENCE, asked(ask, seed, begun)).await?
}

async fn asked(
    ask: &Ask,
    seed: usize,
    mut begun: Option<oneshot::Sender<()>>,
) -> Result<Answer, Failure> {
    let stream = TcpStream::connect(&ask.address).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::post("/v1/chat/completions")
        .header("host", &ask.address)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(ask.body(seed).to_string())))?;
    let started = Instant::now();
    let response = sender.send_request(request).await?;
    if !response.status().is_success() {
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body)).into());
    }
    let mut body = response.into_body();
    let mut seen = Seen::default();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        seen.see(&data, started.elapsed());
        if seen.events > EVENTS_BEFORE_LONG
            && let Some(begun) = begun.take()
        {
            seen.longest_gap = Duration::ZERO;
            begun.send(()).ok();
        }
    }
    driver.abort();
    seen.answer()
}

/// What has come so far. Only the last events are parsed, so that the client costs the servers little.
#[derive(Default)]
struct Seen {
    events: usize,
    first: Option<Duration>,
    last: Duration,
    longest_gap: Duration,
    tail: Vec<u8>,
}

impl Seen {
    fn see(&mut self, data: &[u8], at: Duration) {
        // The first event may only say who speaks, and half a character says nothing yet.
        let told = count(data, b"\"content\":\"").saturating_sub(count(data, b"\"content\":\"\""));
        if told > 0 {
            self.events += told;
            if self.first.is_none() {
                self.first = Some(at);
            } else {
                self.longest_gap = self.longest_gap.max(at.saturating_sub(self.last));
            }
            self.last = at;
        }
        self.tail.extend_from_slice(data);
        if self.tail.len() > 64 * 1024 {
            self.tail.drain(..32 * 1024);
        }
    }

    fn answer(self) -> Result<Answer, Failure> {
        let text = String::from_utf8_lossy(&self.tail);
        let usage = text
            .lines()
            .rev()
            .filter_map(|line| line.strip_prefix("data: "))
            .filter_map(|data| serde_json::from_str::<Value>(data).ok())
            .find(|event| event["usage"].is_object())
            .ok_or("the answer ended without usage")?;
        let first = self.first.unwrap_or(self.last);
        Ok(Answer {
            first,
            longest_gap: self.longest_gap,
            prompt_tokens: usage["usage"]["prompt_tokens"].as_u64().unwrap_or(0),
            completion_tokens: usage["usage"]["completion_tokens"].as_u64().unwrap_or(0),
        })
    }
}

fn count(data: &[u8], what: &[u8]) -> usize {
    data.windows(what.len())
        .filter(|window| *window == what)
        .count()
}

/// New from the first word on, so that no cache helps.
fn long_prompt(number: usize) -> String {
    const WORDS: [&str; 8] = [
        "river", "stone", "green", "seven", "house", "light", "winter", "paper",
    ];
    let mut state = number.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut text = format!("{number}");
    let words = std::env::var("LONG_WORDS").ok();
    let words = words.and_then(|words| words.parse().ok());
    for _ in 0..words.unwrap_or(LONG_WORDS) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        text.push(' ');
        text.push_str(WORDS[(state >> 33) % WORDS.len()]);
    }
    text
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e5).round() / 100.0
}

fn per_second(tokens: u64, took: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "token counts are small")]
    let tokens = tokens as f64;
    (tokens / took.as_secs_f64().max(1e-9) * 10.0).round() / 10.0
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
