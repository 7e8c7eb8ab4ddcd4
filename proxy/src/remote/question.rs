//! A request in a foreign server's words: its names, only what it understands, and nothing of ours. Never carries a header of the client,
//! an id of a person, or another server's key.

use bytes::Bytes;
use config::settings::proxy::Fields;
use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::Full;
use serde_json::{Map, Value, json};

use super::Remote;
use crate::gateway::dispatch::Job;

/// Members of a chat request in `OpenAI`'s API, of those that we pass on.
const OPENAI: [&str; 29] = [
    "documents",
    "encoding_format",
    "dimensions",
    "frequency_penalty",
    "input",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "model",
    "n",
    "parallel_tool_calls",
    "presence_penalty",
    "prompt",
    "query",
    "reasoning_effort",
    "response_format",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "suffix",
    "temperature",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_n",
    "top_p",
];
/// Members that only our own nodes understand.
const OURS: [&str; 4] = [
    "hearth",
    "tier",
    "context_overflow",
    config::wire::node::RESUME,
];

/// The request; `None`: the server has no such operation.
pub(super) fn question(remote: &Remote, job: &Job) -> Option<Request<Full<Bytes>>> {
    let path = operation(job.path)?;
    let mut body: Map<String, Value> = serde_json::from_slice(&job.body).ok()?;
    fit(remote, &mut body, job.max_tokens);
    let body = serde_json::to_vec(&body).ok()?;
    post(remote, path, body)
}

/// Our operation in its API; paths that `OpenAI` does not have are Cohere's and Jina's, as vLLM and llama-server serve them.
fn operation(path: &str) -> Option<&'static str> {
    match path {
        "/v1/chat/completions" => Some("/chat/completions"),
        "/v1/completions" => Some("/completions"),
        "/v1/embeddings" | "/embeddings" => Some("/embeddings"),
        "/v1/rerank" | "/rerank" => Some("/rerank"),
        _ => None,
    }
}

/// `GET` of its list of models.
pub(super) fn look(remote: &Remote) -> Option<Request<Full<Bytes>>> {
    build(remote, Method::GET, "/models", Bytes::new())
}

fn post(remote: &Remote, path: &str, body: Vec<u8>) -> Option<Request<Full<Bytes>>> {
    build(remote, Method::POST, path, body.into())
}

fn build(remote: &Remote, method: Method, path: &str, body: Bytes) -> Option<Request<Full<Bytes>>> {
    let url = &remote.settings.url;
    let uri = Uri::try_from(format!("{}{path}", url.path)).ok()?;
    let has_body = method == Method::POST;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_str(&url.authority()).ok()?);
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static(concat!("hearth-proxy/", env!("CARGO_PKG_VERSION"))),
    );
    // An answer that is compressed could not be passed on as it comes.
    headers.insert(
        header::ACCEPT_ENCODING,
        HeaderValue::from_static("identity"),
    );
    if has_body {
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
    }
    if let Some(authorization) = &remote.authorization {
        headers.insert(header::AUTHORIZATION, authorization.clone());
    }
    Some(request)
}

/// Bytes of a request that make a token: fewer than in any language's usual text, so that the estimate is rather too high.
const BYTES_PER_TOKEN: u64 = 3;
/// Tokens that a template puts around the messages.
const TEMPLATE_TOKENS: u64 = 64;

/// Tokens that are left for an answer behind these messages; 1 at least, so that the server itself says what is too long.
fn room(body: &Map<String, Value>, n_ctx: u32) -> u64 {
    let written = serde_json::to_string(body).map_or(0, |text| text.len());
    let prompt = u64::try_from(written).unwrap_or(u64::MAX) / BYTES_PER_TOKEN + TEMPLATE_TOKENS;
    u64::from(n_ctx).saturating_sub(prompt).max(1)
}

/// Its name for the model, no more tokens than were granted, and only members that it knows.
fn fit(remote: &Remote, body: &mut Map<String, Value>, granted: Option<u64>) {
    let settings = &remote.settings;
    body.retain(|name, value| !OURS.contains(&name.as_str()) && !value.is_null());
    if settings.fields == Fields::OpenAi {
        body.retain(|name, _| OPENAI.contains(&name.as_str()));
    }
    body.insert("model".to_owned(), remote.model().into());
    let asked = ["max_completion_tokens", "max_tokens"]
        .into_iter()
        .filter_map(|name| body.remove(name)?.as_u64())
        .min();
    // Who names no number wants an answer that fits behind the prompt, and such servers refuse what might not.
    let room = asked.is_none().then(|| room(body, remote.n_ctx()));
    let most = [asked, granted, room].into_iter().flatten().min();
    if let Some(most) = most {
        let name = settings.max_tokens_field.as_str();
        body.insert(name.to_owned(), most.into());
    }
    if body.get("stream") == Some(&Value::Bool(true)) {
        // The proxy counts tokens whatever the client wants to see.
        body.insert("stream_options".to_owned(), json!({"include_usage": true}));
    } else {
        body.remove("stream_options");
    }
}
