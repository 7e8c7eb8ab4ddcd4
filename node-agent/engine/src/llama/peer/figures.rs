//! What choosing a token costs at 262,144 tokens, beside llama.cpp's own samplers and the time that the requirement allows.
//!
//! `cargo test --release -p engine --lib -- --ignored --nocapture sampling_figures`

use std::time::Duration;
use std::time::Instant;

use llama_cpp_2::json_schema_to_grammar;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;
use llama_cpp_2::token::logit_bias::LlamaLogitBias;
use scheduler::Token;
use serde_json::Value;
use serde_json::json;

use super::backend;
use super::vocabulary;
use crate::llama::constraint::LlamaConstraint;
use crate::sampling::Sampler;
use crate::sampling::logprobs;
use crate::spec::Sampling;

/// For any common request.
const MOST: Duration = Duration::from_micros(300);
const TOKENS: usize = 200;
/// Different logits, so that no branch is foreseen from the time before.
const SETS: usize = 16;

/// Median and 99th percentile.
type Times = (Duration, Duration);

/// A number that looks random, the same in every run.
struct Noise(u64);

impl Noise {
    fn step(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        self.0
    }

    fn next(&mut self) -> f32 {
        let high = u16::try_from(self.step() >> 48).unwrap_or(0);
        f32::from(high) / f32::from(u16::MAX)
    }

    /// About a normal distribution, with a few tokens far above: what a model's logits look like.
    fn logits(&mut self) -> Vec<f32> {
        let count = usize::try_from(vocabulary::TOKENS).unwrap_or(0);
        let mut logits: Vec<f32> = (0..count)
            .map(|_id| (0..6).map(|_die| self.next()).sum::<f32>() * 4.0 - 12.0)
            .collect();
        for _likely in 0..20 {
            let place = usize::try_from(self.step() >> 32).unwrap_or(0) % count;
            logits[place] += 8.0 + 4.0 * self.next();
        }
        logits
    }
}

/// Time of one choice.
fn measure(sets: &[Vec<f32>], mut choose: impl FnMut(&[f32])) -> Times {
    let mut took: Vec<Duration> = (0..TOKENS)
        .map(|turn| {
            let begun = Instant::now();
            choose(&sets[turn % sets.len()]);
            begun.elapsed()
        })
        .collect();
    took.sort_unstable();
    (took[TOKENS / 2], took[TOKENS * 99 / 100])
}

fn requests() -> Vec<(&'static str, Value)> {
    vec![
        ("greedy", json!({"temperature": 0.0})),
        ("temperature", json!({})),
        ("top_p", json!({"top_p": 0.95})),
        ("min_p", json!({"min_p": 0.05})),
        ("top_k top_p", json!({"top_k": 40, "top_p": 0.95})),
        (
            "top_k top_p min_p",
            json!({"top_k": 64, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8}),
        ),
        ("typical_p", json!({"typical_p": 0.9})),
        ("top_n_sigma", json!({"top_n_sigma": 1.5})),
        (
            "penalties",
            json!({
                "repeat_penalty": 1.1, "frequency_penalty": 0.3, "presence_penalty": 0.3,
                "top_k": 40, "top_p": 0.95,
            }),
        ),
        (
            "penalties and dry",
            json!({"repeat_penalty": 1.1, "dry": {"multiplier": 0.8}, "top_k": 40, "top_p": 0.95}),
        ),
        (
            "xtc",
            json!({"xtc_probability": 0.5, "xtc_threshold": 0.1, "min_p": 0.02}),
        ),
        (
            "dynatemp",
            json!({"dynatemp_range": 0.5, "top_k": 40, "top_p": 0.95}),
        ),
        (
            "logit_bias",
            json!({"logit_bias": [[7, -100.0], [11, 5.0]], "top_p": 0.95}),
        ),
        (
            "mirostat 2",
            json!({"mirostat": {"version": "two", "tau": 5.0, "eta": 0.1}}),
        ),
    ]
}

/// The rules with a seed.
fn rules(of: &Value) -> Sampling {
    let rules: Sampling = serde_json::from_value(of.clone()).expect("rules by their names");
    Sampling {
        seed: Some(1),
        ..rules
    }
}

/// The same rules as llama.cpp's server chains them.
fn chain(rules: &Sampling, model: &LlamaModel) -> LlamaSampler {
    let n_vocab = i32::try_from(vocabulary::TOKENS).unwrap_or(i32::MAX);
    let bias = rules.logit_bias.iter();
    let bias: Vec<LlamaLogitBias> = bias
        .map(|(id, bias)| LlamaLogitBias::new(LlamaToken(*id), *bias))
        .collect();
    let mut chain = Vec::new();
    if !bias.is_empty() {
        chain.push(LlamaSampler::logit_bias(n_vocab, &bias));
    }
    let (repeat, frequency, presence) = (
        rules.repeat_penalty,
        rules.frequency_penalty,
        rules.presence_penalty,
    );
    chain.push(LlamaSampler::penalties(
        n_vocab, 64, repeat, frequency, presence,
    ));
    if rules.temperature <= 0.0 {
        chain.push(LlamaSampler::greedy());
        return LlamaSampler::chain_simple(chain);
    }
    if let Some(mirostat) = rules.mirostat {
        chain.push(LlamaSampler::temp(rules.temperature));
        chain.push(LlamaSampler::mirostat_v2(1, mirostat.tau, mirostat.eta));
        return LlamaSampler::chain_simple(chain);
    }
    if let Some(dry) = &rules.dry {
        let (length, breakers) = (2, dry.breakers.iter());
        chain.push(LlamaSampler::dry(
            model,
            dry.multiplier,
            dry.base,
            length,
            -1,
            breakers,
        ));
    }
    chain.push(LlamaSampler::top_n_sigma(rules.top_n_sigma));
    chain.push(LlamaSampler::top_k(i32::try_from(rules.top_k).unwrap_or(0)));
    chain.push(LlamaSampler::typical(rules.typical_p, 0));
    chain.push(LlamaSampler::top_p(rules.top_p, 0));
    chain.push(LlamaSampler::min_p(rules.min_p, 0));
    chain.push(LlamaSampler::xtc(
        rules.xtc_probability,
        rules.xtc_threshold,
        0,
        1,
    ));
    chain.push(LlamaSampler::temp_ext(
        rules.temperature,
        rules.dynatemp_range,
        rules.dynatemp_exponent,
    ));
    chain.push(LlamaSampler::dist(1));
    LlamaSampler::chain_simple(chain)
}

/// Time of one choice of llama.cpp's, its list of candidates included, as in `llama_sampler_sample`.
fn measure_peer(sets: &[Vec<f32>], mut chain: LlamaSampler) -> Times {
    let mut array = LlamaTokenDataArray::new(Vec::with_capacity(sets[0].len()), false);
    measure(sets, |logits| {
        array.data.clear();
        let candidates = (0..).zip(logits);
        array
            .data
            .extend(candidates.map(|(id, logit)| LlamaTokenData::new(LlamaToken(id), *logit, 0.0)));
        array.selected = None;
        array.sorted = false;
        array.apply_sampler(&mut chain);
        chain.accept(array.selected_token().expect("all are allowed"));
    })
}

/// Prints one request and says whether it is within the limit.
#[expect(clippy::print_stdout, reason = "figures are there to be read")]
fn print(name: &str, (median, late): Times, peer: Option<Times>) -> bool {
    let beside = peer.map_or(String::new(), |(median, late)| {
        let (median, late) = (micros(median), micros(late));
        format!(", llama.cpp {median:8.1} us median {late:8.1} us p99")
    });
    println!(
        "{name:>24} {:8.1} us median {:8.1} us p99{beside}",
        micros(median),
        micros(late)
    );
    median < MOST
}

/// The vocabulary alone.
fn model() -> LlamaModel {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("vocabulary.gguf");
    vocabulary::write(&path).expect("it is written");
    let params = LlamaModelParams::default().with_vocab_only(true);
    LlamaModel::load_from_file(backend(), &path, &params).expect("it loads")
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[test]
#[expect(clippy::print_stdout, reason = "figures are there to be read")]
#[ignore = "figures are for a quiet machine and a release build"]
fn sampling_figures() {
    let mut noise = Noise(1);
    let sets: Vec<Vec<f32>> = (0..SETS).map(|_set| noise.logits()).collect();
    let model = model();
    let mut worst = Duration::ZERO;
    let mut least = f64::INFINITY;
    let mut within = true;
    for (name, of) in requests() {
        let rules = rules(&of);
        let peer = measure_peer(&sets, chain(&rules, &model));
        let mut sampler = Sampler::new(rules, None, &[], vocabulary::TOKENS);
        let took = measure(&sets, |logits| {
            let token = sampler.choose(logits).expect("all are allowed");
            sampler
                .accept(token, b" word")
                .expect("there is no grammar");
        });
        worst = worst.max(took.0);
        least = least.min(micros(peer.0) / micros(took.0));
        within &= print(name, took, Some(peer));
    }
    let took = measure(&sets, |logits| {
        let (chosen, best) = logprobs::score(logits, Token(7), 20);
        assert!(chosen.logprob <= 0.0 && best.len() == 20);
    });
    print("20 top_logprobs", took, None);
    let [follows, refused, lost] = with_grammar(&sets, &model);
    within &= print("json grammar", follows, None);
    print("json grammar, refused", refused, None);
    print("json grammar, everywhere", lost, None);
    worst = worst.max(follows.0);
    println!(
        "{{\"area\":\"sampling\",\"vocabulary\":{},\"worst_median_us\":{:.1},\"least_times_llama_cpp\":{least:.1},\"json_grammar_us\":{:.1},\"json_grammar_refused_us\":{:.1}}}",
        vocabulary::TOKENS,
        micros(worst),
        micros(follows.0),
        micros(refused.0),
    );
    assert!(least > 1.0, "a chain of llama.cpp is faster");
    assert!(within, "more than {MOST:?} for a common request");
}

/// Three kinds of tokens in a JSON text: those that the grammar allows at once, those for which it has to look further, and
/// those for which it has to look everywhere.
fn with_grammar(sets: &[Vec<f32>], model: &LlamaModel) -> [Times; 3] {
    let schema = r#"{"type":"object","properties":{"text":{"type":"string"}},"required":["text"]}"#;
    let text = json_schema_to_grammar(schema).expect("it is simple");
    let constrained = || {
        let grammar = LlamaSampler::grammar(model, &text, "root").expect("it compiles");
        let rules = Sampling {
            top_p: 0.95,
            seed: Some(1),
            ..Sampling::default()
        };
        let mut sampler = Sampler::new(rules, None, &[], vocabulary::TOKENS);
        sampler.constrain(Box::new(LlamaConstraint {
            sampler: grammar,
            broken: false,
        }));
        for character in "{\"text\":\"".chars() {
            let id = u32::from(character) - 32 + 259;
            let token = Token(i32::try_from(id).unwrap_or(0));
            sampler.accept(token, b"").expect("the grammar begins so");
        }
        sampler
    };
    // Within the text nearly every word is allowed.
    let mut within = constrained();
    let follows = measure(sets, |logits| {
        let token = within.choose(logits).expect("words are allowed");
        within.accept(token, b"").expect("it was allowed");
    });
    // After it only two tokens are.
    let mut after = constrained();
    let quote = Token(i32::try_from(u32::from('"') - 32 + 259).unwrap_or(0));
    after.accept(quote, b"").expect("the text may end");
    // A model that has learnt JSON has them among its first thousand.
    let brace = usize::try_from(u32::from('}') - 32 + 259).unwrap_or(0);
    let likely: Vec<Vec<f32>> = sets
        .iter()
        .cloned()
        .map(|mut logits| {
            logits[brace] = 9.0;
            logits
        })
        .collect();
    let refused = measure(&likely, |logits| {
        assert!(after.choose(logits).is_some());
    });
    let lost = measure(sets, |logits| {
        assert!(after.choose(logits).is_some());
    });
    [follows, refused, lost]
}
