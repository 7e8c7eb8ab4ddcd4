//! How tokens are chosen, as a request says it.

use serde::Deserialize;
use serde::Serialize;

/// How tokens are chosen.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Sampling {
    /// 0 takes the best token every time.
    pub temperature: f32,
    /// The temperature varies by so much around its value with how sure the model is; 0 means it does not.
    pub dynatemp_range: f32,
    /// How the temperature follows the entropy.
    pub dynatemp_exponent: f32,
    /// Only the k best tokens; 0 means no such limit (the 1,024 best, to be exact).
    pub top_k: u32,
    /// Only the best tokens that together reach this probability; 1 means all.
    pub top_p: f32,
    /// Only tokens at least this likely relative to the best; 0 means all.
    pub min_p: f32,
    /// Locally typical sampling; 1 means off.
    pub typical_p: f32,
    /// Only tokens whose logit is at most so many standard deviations below the best; 0 means all.
    pub top_n_sigma: f32,
    /// How often the likeliest tokens are excluded (XTC); 0 means never.
    pub xtc_probability: f32,
    /// From which probability on they are; above 0.5 there is never more than one.
    pub xtc_threshold: f32,
    /// Divides the logits of tokens among the last [`Sampling::repeat_last_n`]; 1 means off.
    pub repeat_penalty: f32,
    /// How many tokens, prompt included, the penalties look back on. `None`: the repeat penalty on 64, the other two on
    /// the answer, as OpenAI has it.
    pub repeat_last_n: Option<u32>,
    /// Subtracted from the logit of every token that was seen.
    pub presence_penalty: f32,
    /// Subtracted for each time that a token was seen.
    pub frequency_penalty: f32,
    /// A penalty on repeating whole passages.
    pub dry: Option<Dry>,
    /// Keeps the surprise near a target; takes the place of all rules that leave out candidates.
    pub mirostat: Option<Mirostat>,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(i32, f32)>,
    /// The same seed gives the same text.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    /// OpenAI's defaults: temperature 1, nothing cut off, no penalties.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            top_n_sigma: 0.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            repeat_penalty: 1.0,
            repeat_last_n: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            dry: None,
            mirostat: None,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

/// "Don't repeat yourself": a token that would go on repeating `n` tokens loses `multiplier * base ^ (n - allowed_length)`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Dry {
    /// How strong it is; 0 means off.
    pub multiplier: f32,
    /// How it grows with each token, at least 1.
    pub base: f32,
    /// Repetitions shorter than this are free.
    pub allowed_length: u32,
    /// How many tokens, prompt included, it looks back on.
    pub last_n: u32,
    /// Texts that no repetition reaches across.
    pub breakers: Vec<String>,
}

impl Default for Dry {
    /// llama.cpp's values, switched off.
    fn default() -> Self {
        Self {
            multiplier: 0.0,
            base: 1.75,
            allowed_length: 2,
            last_n: u32::MAX,
            breakers: ["\n", ":", "\"", "*"].map(str::to_owned).to_vec(),
        }
    }
}

/// Keeps the surprise of an answer near a target.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Mirostat {
    /// Which of the two algorithms.
    pub version: MirostatVersion,
    /// The target, in bits.
    pub tau: f32,
    /// How fast it is approached.
    pub eta: f32,
}

/// The algorithms of the paper.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MirostatVersion {
    /// Estimates how the tail falls off.
    One,
    /// Cuts what is too surprising.
    Two,
}
