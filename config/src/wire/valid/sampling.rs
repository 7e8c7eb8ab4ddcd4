//! How tokens are chosen, by the names of OpenAI, llama-server and vLLM: read once, checked, and written again for the node.

use serde_json::{Map, Value};

use super::read::{Object, as_array, as_number, as_string, invalid, quote};
use super::{Invalid, LOGIT_BIAS_MAX};

const COUNT_MAX: i64 = i32::MAX as i64;
const TOKENS_MAX: u32 = i32::MAX as u32;
/// Sequence breakers of DRY, and bytes of each.
const BREAKERS_MAX: usize = 64;
const BREAKER_BYTES_MAX: usize = 64;

/// How tokens are chosen; `None` leaves it to the tier.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// 0 to 2.
    pub temperature: Option<f64>,
    /// How far the temperature goes to either side with the model's certainty; 0 to 2, 0 is off.
    pub dynatemp_range: Option<f64>,
    /// 0 to 10.
    pub dynatemp_exponent: Option<f64>,
    /// 0 to 1.
    pub top_p: Option<f64>,
    /// 0 (off) and up.
    pub top_k: Option<u32>,
    /// 0 to 1.
    pub min_p: Option<f64>,
    /// 0 to 1.
    pub typical_p: Option<f64>,
    /// 0 (off) to 100 standard deviations.
    pub top_n_sigma: Option<f64>,
    /// 0 to 1.
    pub xtc_probability: Option<f64>,
    /// 0 to 1; above 0.5 is off.
    pub xtc_threshold: Option<f64>,
    /// Above 0 to 2; 1 is off.
    pub repeat_penalty: Option<f64>,
    /// Tokens that the penalties look back on; the largest number is the whole context.
    pub repeat_last_n: Option<u32>,
    /// -2 to 2.
    pub presence_penalty: Option<f64>,
    /// -2 to 2.
    pub frequency_penalty: Option<f64>,
    /// 0 (off) to 100.
    pub dry_multiplier: Option<f64>,
    /// 1 to 10.
    pub dry_base: Option<f64>,
    /// Tokens that may be repeated freely.
    pub dry_allowed_length: Option<u32>,
    /// Tokens that DRY looks back on; the largest number is the whole context.
    pub dry_penalty_last_n: Option<u32>,
    /// Texts that no repetition reaches across.
    pub dry_sequence_breakers: Option<Vec<String>>,
    /// 0 (off), 1 or 2.
    pub mirostat: Option<u32>,
    /// 0 to 100 bits.
    pub mirostat_tau: Option<f64>,
    /// 0 to 1.
    pub mirostat_eta: Option<f64>,
    /// The same seed gives the same answer while `system_fingerprint` stays the same.
    pub seed: Option<i64>,
    /// Token id and what is added to its logit, -100 to 100; in order of id.
    pub logit_bias: Vec<(u32, f64)>,
}

/// Takes all of it out of a body.
pub(super) fn read(body: &mut Object) -> Result<Sampling, Invalid> {
    Ok(Sampling {
        temperature: body.number("temperature", 0.0..=2.0)?,
        dynatemp_range: body.number("dynatemp_range", 0.0..=2.0)?,
        dynatemp_exponent: body.number("dynatemp_exponent", 0.0..=10.0)?,
        top_p: body.number("top_p", 0.0..=1.0)?,
        top_k: or_less(body, "top_k", 0)?,
        min_p: body.number("min_p", 0.0..=1.0)?,
        typical_p: body.number("typical_p", 0.0..=1.0)?,
        top_n_sigma: top_n_sigma(body)?,
        xtc_probability: body.number("xtc_probability", 0.0..=1.0)?,
        xtc_threshold: body.number("xtc_threshold", 0.0..=1.0)?,
        repeat_penalty: repeat_penalty(body)?,
        repeat_last_n: or_less(body, "repeat_last_n", u32::MAX)?,
        presence_penalty: body.number("presence_penalty", -2.0..=2.0)?,
        frequency_penalty: body.number("frequency_penalty", -2.0..=2.0)?,
        dry_multiplier: body.number("dry_multiplier", 0.0..=100.0)?,
        dry_base: body.number("dry_base", 1.0..=10.0)?,
        dry_allowed_length: body.unsigned("dry_allowed_length", 0..=TOKENS_MAX)?,
        dry_penalty_last_n: or_less(body, "dry_penalty_last_n", u32::MAX)?,
        dry_sequence_breakers: breakers(body)?,
        mirostat: body.unsigned("mirostat", 0..=2)?,
        mirostat_tau: body.number("mirostat_tau", 0.0..=100.0)?,
        mirostat_eta: body.number("mirostat_eta", 0.0..=1.0)?,
        seed: body.integer("seed", i64::MIN..=i64::MAX)?,
        logit_bias: logit_bias(body)?,
    })
}

/// A count for which llama.cpp and vLLM write -1: no limit, the whole context.
fn or_less(body: &mut Object, key: &str, unlimited: u32) -> Result<Option<u32>, Invalid> {
    let count = body.integer(key, -1..=COUNT_MAX)?;
    Ok(count.map(|count| u32::try_from(count).unwrap_or(unlimited)))
}

/// llama.cpp writes -1 for "off".
fn top_n_sigma(body: &mut Object) -> Result<Option<f64>, Invalid> {
    let sigma = body.number("top_n_sigma", -1.0..=100.0)?;
    Ok(sigma.map(|sigma| sigma.max(0.0)))
}

/// `repeat_penalty`, which vLLM calls `repetition_penalty`.
fn repeat_penalty(body: &mut Object) -> Result<Option<f64>, Invalid> {
    let mut found = None;
    for key in ["repetition_penalty", "repeat_penalty"] {
        let penalty = body.number(key, 0.0..=2.0)?;
        // Logits are divided by it.
        if penalty == Some(0.0) {
            return Err(invalid(key, "0 is outside: above 0 to 2; 1 is off"));
        }
        found = penalty.or(found);
    }
    Ok(found)
}

fn breakers(body: &mut Object) -> Result<Option<Vec<String>>, Invalid> {
    let key = "dry_sequence_breakers";
    let Some(items) = body.take(key) else {
        return Ok(None);
    };
    let items = as_array(key.to_owned(), items, BREAKERS_MAX)?;
    let texts = items.into_iter().enumerate().map(|(index, item)| {
        let path = format!("{key}[{index}]");
        let text = as_string(path.clone(), item, BREAKER_BYTES_MAX)?;
        if text.is_empty() {
            return Err(invalid(path, "an empty text breaks nothing; leave it out"));
        }
        Ok(text)
    });
    texts.collect::<Result<_, _>>().map(Some)
}

fn logit_bias(body: &mut Object) -> Result<Vec<(u32, f64)>, Invalid> {
    let Some(entries) = body.object("logit_bias")? else {
        return Ok(Vec::new());
    };
    let map = entries.into_map();
    if map.len() > LOGIT_BIAS_MAX {
        let message = format!(
            "{} entries are too many; at most {LOGIT_BIAS_MAX}",
            map.len()
        );
        return Err(invalid("logit_bias", message));
    }
    let mut list = Vec::with_capacity(map.len());
    for (token, bias) in map {
        let id = token.parse::<u32>().ok().filter(|id| *id <= TOKENS_MAX);
        let Some(id) = id else {
            let message = format!("{} is not a token id", quote(&token));
            return Err(invalid("logit_bias", message));
        };
        let path = format!("logit_bias.{id}");
        list.push((id, as_number(path, &bias, -100.0..=100.0)?));
    }
    list.sort_by_key(|(id, _)| *id);
    list.dedup_by_key(|(id, _)| *id);
    Ok(list)
}

/// Writes all of it for the node.
pub(super) fn write(sampling: &Sampling, body: &mut Map<String, Value>) {
    let numbers = [
        ("temperature", sampling.temperature),
        ("dynatemp_range", sampling.dynatemp_range),
        ("dynatemp_exponent", sampling.dynatemp_exponent),
        ("top_p", sampling.top_p),
        ("min_p", sampling.min_p),
        ("typical_p", sampling.typical_p),
        ("top_n_sigma", sampling.top_n_sigma),
        ("xtc_probability", sampling.xtc_probability),
        ("xtc_threshold", sampling.xtc_threshold),
        ("repeat_penalty", sampling.repeat_penalty),
        ("presence_penalty", sampling.presence_penalty),
        ("frequency_penalty", sampling.frequency_penalty),
        ("dry_multiplier", sampling.dry_multiplier),
        ("dry_base", sampling.dry_base),
        ("mirostat_tau", sampling.mirostat_tau),
        ("mirostat_eta", sampling.mirostat_eta),
    ];
    let counts = [
        ("top_k", sampling.top_k),
        ("repeat_last_n", sampling.repeat_last_n),
        ("dry_allowed_length", sampling.dry_allowed_length),
        ("dry_penalty_last_n", sampling.dry_penalty_last_n),
        ("mirostat", sampling.mirostat),
    ];
    for (key, value) in numbers {
        body.extend(value.map(|value| (key.to_owned(), value.into())));
    }
    for (key, value) in counts {
        let count = value.map(|count| {
            if count > TOKENS_MAX {
                -1
            } else {
                i64::from(count)
            }
        });
        body.extend(count.map(|count| (key.to_owned(), count.into())));
    }
    let breakers = sampling.dry_sequence_breakers.clone();
    body.extend(breakers.map(|texts| ("dry_sequence_breakers".to_owned(), texts.into())));
    let seed = sampling.seed;
    body.extend(seed.map(|seed| ("seed".to_owned(), seed.into())));
    if !sampling.logit_bias.is_empty() {
        let bias = sampling.logit_bias.iter();
        let bias: Map<String, Value> = bias
            .map(|(id, bias)| (id.to_string(), Value::from(*bias)))
            .collect();
        body.insert("logit_bias".to_owned(), Value::Object(bias));
    }
}
