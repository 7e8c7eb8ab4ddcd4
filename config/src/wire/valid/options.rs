//! The fields that chat and text completions share: length, stop strings, sampling, and what is ignored by name.

use super::read::{Object, as_array, as_string, invalid};
use super::{GRAMMAR_BYTES_MAX, Generation, Invalid, N_MAX, STOP_MAX, sampling};
use crate::wire::chat::StreamOptions;
use serde_json::Value;

/// Fields without meaning here, named in the documentation: they change billing, caching or safety on OpenAI's side only.
const IGNORED: [&str; 4] = ["store", "service_tier", "prompt_cache_key", "verbosity"];
const TOKENS_MAX: u32 = i32::MAX as u32;
const STOP_BYTES_MAX: usize = 512;
const MODEL_BYTES_MAX: usize = 256;

/// Takes out what is accepted and ignored.
pub(super) fn ignore(body: &mut Object) {
    for key in IGNORED {
        drop(body.take(key));
    }
}

/// The end user, whom trusted front ends name: `safety_identifier`, or its older name `user`.
pub(super) fn end_user(body: &mut Object, bytes_max: usize) -> Result<Option<String>, Invalid> {
    let identifier = body.string("safety_identifier", bytes_max)?;
    let user = body.string("user", bytes_max)?;
    Ok(identifier.or(user))
}

/// `model`: required, printable.
pub(super) fn model(body: &mut Object) -> Result<String, Invalid> {
    let Some(model) = body.string("model", MODEL_BYTES_MAX)? else {
        return Err(invalid(
            "model",
            "missing; name a model, a tier (fast, primary, heavy), or auto",
        ));
    };
    if model.is_empty() || model.chars().any(char::is_control) {
        return Err(invalid(
            "model",
            "empty or not printable; name a model, a tier (fast, primary, heavy), or auto",
        ));
    }
    Ok(model)
}

/// `tier`: Hearth's own field; `auto` is the same as leaving it out.
pub(super) fn tier(body: &mut Object) -> Result<Option<crate::tier::Tier>, Invalid> {
    match body.string("tier", MODEL_BYTES_MAX)?.as_deref() {
        None | Some("auto") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_unknown| {
            let message = format!(
                "{} is not one of fast, primary, heavy, auto",
                super::read::quote(text)
            );
            invalid("tier", message)
        }),
    }
}

/// `stream_options`; `include_obfuscation` is ignored by name.
pub(super) fn stream_options(body: &mut Object) -> Result<StreamOptions, Invalid> {
    let Some(mut options) = body.object("stream_options")? else {
        return Ok(StreamOptions::default());
    };
    Ok(StreamOptions {
        include_usage: options.boolean("include_usage")?.unwrap_or(false),
    })
}

/// Everything of [`Generation`].
pub(super) fn generation(body: &mut Object) -> Result<Generation, Invalid> {
    let max_tokens = body.unsigned("max_tokens", 1..=TOKENS_MAX)?;
    let completion_max = body.unsigned("max_completion_tokens", 1..=TOKENS_MAX)?;
    Ok(Generation {
        max_tokens: completion_max.or(max_tokens),
        n: body.unsigned("n", 1..=N_MAX)?.unwrap_or(1),
        stop: stop(body)?,
        sampling: sampling::read(body)?,
        ignore_eos: body.boolean("ignore_eos")?.unwrap_or(false),
        min_tokens: body.unsigned("min_tokens", 0..=TOKENS_MAX)?.unwrap_or(0),
        grammar: grammar(body)?,
        cache_prompt: body.boolean("cache_prompt")?,
        timings_per_token: body.boolean("timings_per_token")?.unwrap_or(false),
        return_progress: body.boolean("return_progress")?.unwrap_or(false),
    })
}

/// `grammar`, which vLLM calls `guided_grammar`.
fn grammar(body: &mut Object) -> Result<Option<String>, Invalid> {
    let guided = body.string("guided_grammar", GRAMMAR_BYTES_MAX)?;
    let grammar = body.string("grammar", GRAMMAR_BYTES_MAX)?;
    Ok(grammar.or(guided).filter(|grammar| !grammar.is_empty()))
}

fn stop(body: &mut Object) -> Result<Vec<String>, Invalid> {
    let items = match body.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => as_array("stop".to_owned(), Value::Array(items), STOP_MAX)?,
        Some(one @ Value::String(_)) => vec![one],
        Some(other) => {
            let message = format!(
                "expected a string or an array of at most {STOP_MAX} strings, got {}",
                super::read::kind_of(&other)
            );
            return Err(invalid("stop", message));
        }
    };
    let mut list = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let path = format!("stop[{index}]");
        let text = as_string(path.clone(), item, STOP_BYTES_MAX)?;
        if text.is_empty() {
            return Err(invalid(
                path,
                "an empty stop string would end every answer at once",
            ));
        }
        list.push(text);
    }
    Ok(list)
}

/// Writes [`Generation`] for the node.
pub(super) fn write(generation: &Generation, body: &mut serde_json::Map<String, Value>) {
    sampling::write(&generation.sampling, body);
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(key.to_owned(), value);
        }
    };
    put("max_tokens", generation.max_tokens.map(Value::from));
    put("n", (generation.n != 1).then(|| generation.n.into()));
    put(
        "stop",
        (!generation.stop.is_empty()).then(|| generation.stop.clone().into()),
    );
    put("ignore_eos", generation.ignore_eos.then_some(true.into()));
    put(
        "min_tokens",
        (generation.min_tokens > 0).then(|| generation.min_tokens.into()),
    );
    put("grammar", generation.grammar.clone().map(Value::from));
    put("cache_prompt", generation.cache_prompt.map(Value::from));
    put(
        "timings_per_token",
        generation.timings_per_token.then_some(true.into()),
    );
    put(
        "return_progress",
        generation.return_progress.then_some(true.into()),
    );
}

/// `stream` and what the node must add to it: usage always travels inside, because quotas need it.
pub(super) fn write_stream(stream: bool, body: &mut serde_json::Map<String, Value>) {
    body.insert("stream".to_owned(), stream.into());
    if stream {
        body.insert(
            "stream_options".to_owned(),
            serde_json::json!({"include_usage": true}),
        );
    }
}
