//! Bounds on what may be asked, checked on both sides of the process boundary.
//!
//! The agent checks so that a bad request never travels; the worker checks because it must not trust a frame. Values that
//! JSON cannot carry (NaN, infinities) and nesting that a parser would refuse are caught here, before they break a frame.

use crate::grammar;
use crate::media;
use crate::media::Segment;
use crate::spec::EmbedError;
use crate::spec::EmbedInput;
use crate::spec::GenerateSpec;
use crate::spec::LoadError;
use crate::spec::LoadSpec;
use crate::spec::Prompt;
use crate::spec::Refusal;
use crate::spec::Sampling;

/// A prompt above this cannot fit into a frame together with its JSON escapes.
const PROMPT_BYTES_MAX: usize = 8 * 1024 * 1024;
const PROMPT_TOKENS_MAX: usize = 2 * 1024 * 1024;
/// Pieces of a prompt; every one that looks like a control token is one.
const SEGMENTS_MAX: usize = 65_536;
const STOPS_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 512;
const BIASES_MAX: usize = 1_024;
/// Sequence breakers of DRY, and bytes of each.
const BREAKERS_MAX: usize = 64;
const BREAKER_BYTES_MAX: usize = 64;
const LOGPROBS_MAX: u8 = 20;
/// llama.cpp allows 256 sequences; more than this is never useful on one machine.
const SLOTS_MAX: u16 = 64;
const BATCH_MIN: u32 = 32;
const BATCH_MAX: u32 = 8_192;
const THREADS_MAX: u16 = 512;
/// More guesses ahead than this are never right.
const DRAFT_MAX: u32 = 64;
const SALT_BYTES_MAX: usize = 512;
const QUEUE_MAX: usize = 2_048;
/// OpenAI's bound on the texts of one request.
const TEXTS_MAX: usize = 2_048;
/// Beyond this an adapter says nothing sensible.
const SCALE_MAX: f32 = 100.0;

/// Says what is wrong with a request.
pub(crate) fn generate(spec: &GenerateSpec) -> Result<(), Refusal> {
    prompt(&spec.prompt)?;
    let segments: &[Segment] = match &spec.prompt {
        Prompt::Segments(segments) => segments,
        Prompt::Text { .. } | Prompt::Tokens(_) => &[],
    };
    media::check(segments, &spec.media)?;
    sampling(&spec.sampling)?;
    if spec
        .cache_salt
        .as_ref()
        .is_some_and(|salt| salt.len() > SALT_BYTES_MAX)
    {
        return invalid("cache_salt", format!("at most {SALT_BYTES_MAX} bytes"));
    }
    if spec.max_tokens == Some(0) {
        return invalid("max_tokens", "at least 1");
    }
    let resumed = spec.resume.as_ref().map_or(0, |resume| resume.tokens.len());
    if resumed > PROMPT_TOKENS_MAX {
        return invalid(
            "resume",
            format!("{resumed} tokens, at most {PROMPT_TOKENS_MAX}"),
        );
    }
    if spec.stop.len() > STOPS_MAX {
        return invalid("stop", format!("at most {STOPS_MAX} strings"));
    }
    if spec
        .stop
        .iter()
        .any(|stop| stop.is_empty() || stop.len() > STOP_BYTES_MAX)
    {
        return invalid(
            "stop",
            format!("each string has 1 to {STOP_BYTES_MAX} bytes"),
        );
    }
    if spec.logprobs.is_some_and(|count| count > LOGPROBS_MAX) {
        return invalid("top_logprobs", format!("at most {LOGPROBS_MAX}"));
    }
    match &spec.grammar {
        Some(grammar) => grammar::check(grammar).map_err(|reason| Refusal::BadGrammar { reason }),
        None => Ok(()),
    }
}

/// Says what is wrong with texts to be turned into numbers.
pub(crate) fn embed(inputs: &[EmbedInput]) -> Result<(), EmbedError> {
    if inputs.is_empty() || inputs.len() > TEXTS_MAX {
        return Err(EmbedError::from(Refusal::Invalid {
            param: "input".to_owned(),
            reason: format!("{} texts, 1 to {TEXTS_MAX} are possible", inputs.len()),
        }));
    }
    let long = inputs
        .iter()
        .position(|input| input.bytes() > PROMPT_BYTES_MAX);
    let Some(index) = long else {
        return Ok(());
    };
    Err(EmbedError {
        input: u32::try_from(index).ok(),
        refusal: Refusal::Invalid {
            param: "input".to_owned(),
            reason: format!("a text has more than {PROMPT_BYTES_MAX} bytes"),
        },
    })
}

/// Says what is wrong with a load specification.
pub(crate) fn load(spec: &LoadSpec) -> Result<(), LoadError> {
    let wrong = |field: &str, reason: String| {
        Err(LoadError::Invalid {
            field: field.to_owned(),
            reason,
        })
    };
    if spec.slots == 0 || spec.slots > SLOTS_MAX {
        return wrong(
            "slots",
            format!("{} is not within 1 to {SLOTS_MAX}", spec.slots),
        );
    }
    if !(BATCH_MIN..=BATCH_MAX).contains(&spec.batch) {
        return wrong(
            "batch",
            format!("{} is not within {BATCH_MIN} to {BATCH_MAX}", spec.batch),
        );
    }
    if spec.batch < u32::from(spec.slots) {
        return wrong(
            "batch",
            format!(
                "{} is less than one token for each of {} slots",
                spec.batch, spec.slots
            ),
        );
    }
    let threads = [spec.threads, spec.threads_batch];
    if threads
        .into_iter()
        .flatten()
        .any(|threads| threads == 0 || threads > THREADS_MAX)
    {
        return wrong("threads", format!("not within 1 to {THREADS_MAX}"));
    }
    if spec.draft_max > DRAFT_MAX {
        return wrong(
            "draft_max",
            format!("{} is above {DRAFT_MAX}", spec.draft_max),
        );
    }
    if spec
        .ubatch
        .is_some_and(|ubatch| ubatch == 0 || ubatch > spec.batch)
    {
        return wrong("ubatch", format!("not within 1 to batch, {}", spec.batch));
    }
    if spec.queue_max > QUEUE_MAX {
        return wrong(
            "queue_max",
            format!("{} is above {QUEUE_MAX}", spec.queue_max),
        );
    }
    if let Some(lora) = &spec.lora
        && !(-SCALE_MAX..=SCALE_MAX).contains(&lora.scale)
    {
        return wrong(
            "lora",
            format!(
                "the scale {} is not within -{SCALE_MAX} to {SCALE_MAX}",
                lora.scale
            ),
        );
    }
    if spec.model_path.to_str().is_none() {
        return wrong("model_path", "not valid UTF-8".to_owned());
    }
    Ok(())
}

fn prompt(prompt: &Prompt) -> Result<(), Refusal> {
    match prompt {
        Prompt::Text { text, .. } if text.len() > PROMPT_BYTES_MAX => invalid(
            "prompt",
            format!("{} bytes, at most {PROMPT_BYTES_MAX}", text.len()),
        ),
        Prompt::Tokens(tokens) if tokens.len() > PROMPT_TOKENS_MAX => invalid(
            "prompt",
            format!("{} tokens, at most {PROMPT_TOKENS_MAX}", tokens.len()),
        ),
        Prompt::Segments(segments) => {
            let sizes = segments.iter().map(|segment| match segment {
                Segment::Text(text) | Segment::Literal(text) => text.len(),
                Segment::Tokens(tokens) => tokens.len().saturating_mul(4),
                Segment::Media(_) => 0,
            });
            let bytes: usize = sizes.sum();
            if bytes > PROMPT_BYTES_MAX || segments.len() > SEGMENTS_MAX {
                let pieces = segments.len();
                return invalid(
                    "prompt",
                    format!(
                        "{bytes} bytes in {pieces} pieces, at most {PROMPT_BYTES_MAX} in {SEGMENTS_MAX}"
                    ),
                );
            }
            Ok(())
        }
        Prompt::Text { .. } | Prompt::Tokens(_) => Ok(()),
    }
}

fn sampling(rules: &Sampling) -> Result<(), Refusal> {
    ranges(&[
        ("temperature", rules.temperature, 0.0, 100.0),
        ("dynatemp_range", rules.dynatemp_range, 0.0, 100.0),
        ("dynatemp_exponent", rules.dynatemp_exponent, 0.0, 10.0),
        ("top_p", rules.top_p, 0.0, 1.0),
        ("min_p", rules.min_p, 0.0, 1.0),
        ("typical_p", rules.typical_p, 0.0, 1.0),
        ("top_n_sigma", rules.top_n_sigma, 0.0, 100.0),
        ("xtc_probability", rules.xtc_probability, 0.0, 1.0),
        ("xtc_threshold", rules.xtc_threshold, 0.0, 1.0),
        ("repeat_penalty", rules.repeat_penalty, 0.01, 100.0),
        ("presence_penalty", rules.presence_penalty, -100.0, 100.0),
        ("frequency_penalty", rules.frequency_penalty, -100.0, 100.0),
    ])?;
    if let Some(dry) = &rules.dry {
        ranges(&[
            ("dry_multiplier", dry.multiplier, 0.0, 100.0),
            ("dry_base", dry.base, 1.0, 10.0),
        ])?;
        let long = |text: &String| text.len() > BREAKER_BYTES_MAX;
        if dry.breakers.len() > BREAKERS_MAX || dry.breakers.iter().any(long) {
            return invalid(
                "dry_sequence_breakers",
                format!("at most {BREAKERS_MAX} texts of at most {BREAKER_BYTES_MAX} bytes"),
            );
        }
    }
    if let Some(mirostat) = &rules.mirostat {
        ranges(&[
            ("mirostat_tau", mirostat.tau, 0.0, 100.0),
            ("mirostat_eta", mirostat.eta, 0.0, 1.0),
        ])?;
    }
    if rules.logit_bias.len() > BIASES_MAX {
        let count = rules.logit_bias.len();
        return invalid(
            "logit_bias",
            format!("{count} tokens, at most {BIASES_MAX}"),
        );
    }
    if rules
        .logit_bias
        .iter()
        .any(|(_token, bias)| !bias.is_finite())
    {
        return invalid("logit_bias", "each value is a finite number");
    }
    Ok(())
}

/// Says which value is outside of its bounds. A range holds no NaN, so each check also refuses that.
fn ranges(values: &[(&str, f32, f32, f32)]) -> Result<(), Refusal> {
    for (param, value, least, most) in values {
        if !(least..=most).contains(&value) {
            return invalid(param, format!("{value} is not within {least} to {most}"));
        }
    }
    Ok(())
}

fn invalid<T>(param: &str, reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Invalid {
        param: param.to_owned(),
        reason: reason.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_cannot_carry_are_refused() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut spec = GenerateSpec::from_template("x");
            spec.sampling.temperature = value;
            assert!(generate(&spec).is_err(), "temperature {value}");
            let mut spec = GenerateSpec::from_template("x");
            spec.sampling.logit_bias = vec![(1, value)];
            assert!(generate(&spec).is_err(), "bias {value}");
        }
        assert_eq!(generate(&GenerateSpec::from_template("x")), Ok(()));
    }

    #[test]
    fn load_specifications_are_bounded() {
        assert_eq!(load(&LoadSpec::new("m.gguf")), Ok(()));
        for change in [
            (|spec: &mut LoadSpec| spec.slots = 0) as fn(&mut LoadSpec),
            |spec| spec.slots = 1_000,
            |spec| spec.batch = 1,
            |spec| spec.batch = 1_000_000,
            |spec| spec.threads = Some(0),
        ] {
            let mut spec = LoadSpec::new("m.gguf");
            change(&mut spec);
            assert!(load(&spec).is_err(), "{spec:?}");
        }
    }
}
