//! Our sampling rules beside llama.cpp's own: on random logits both must leave the same tokens with the same probabilities.
//! And what ours cost at the largest vocabulary.

mod figures;
mod vocabulary;

use std::sync::OnceLock;

use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;
use llama_cpp_2::token::logit_bias::LlamaLogitBias;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use scheduler::Token;

use crate::sampling::Sampler;
use crate::sampling::logprobs;
use crate::spec::Dry;
use crate::spec::Mirostat;
use crate::spec::MirostatVersion;
use crate::spec::Sampling;

/// Few enough that nothing is cut off before the rules.
const N_VOCAB: i32 = 500;

/// Tokens and probabilities in order of the tokens.
type Left = Vec<(i32, f64)>;

/// What llama.cpp's samplers leave.
fn theirs(samplers: Vec<LlamaSampler>, logits: &[f32]) -> Left {
    let data = (0..).zip(logits);
    let data = data.map(|(id, logit)| LlamaTokenData::new(LlamaToken(id), *logit, 0.0));
    let mut array = LlamaTokenDataArray::new(data.collect(), false);
    for mut sampler in samplers {
        array.apply_sampler(&mut sampler);
    }
    let highest = array.data.iter().map(LlamaTokenData::logit);
    let highest = f64::from(highest.fold(f32::NEG_INFINITY, f32::max));
    let weight = |one: &LlamaTokenData| (f64::from(one.logit()) - highest).exp();
    let sum: f64 = array.data.iter().map(weight).sum();
    let mut left: Left = array
        .data
        .iter()
        .filter(|one| one.logit() > f32::NEG_INFINITY)
        .map(|one| (one.id().0, weight(one) / sum))
        .collect();
    left.sort_by_key(|(id, _probability)| *id);
    left
}

/// What ours leave.
fn ours(sampler: &Sampler, logits: &[f32]) -> Left {
    let distribution = sampler.distribution(logits);
    let mut left: Left = distribution
        .candidates
        .iter()
        .map(|candidate| candidate.token.0)
        .zip(distribution.probabilities)
        .collect();
    left.sort_by_key(|(id, _probability)| *id);
    left
}

fn sampler(rules: Sampling) -> Sampler {
    Sampler::new(rules, Some(1), &[], N_VOCAB.unsigned_abs())
}

/// The same tokens, but for one that lies just at the limit: llama.cpp adds up in single precision.
fn agree(ours: &Left, theirs: &Left) -> Result<(), TestCaseError> {
    let only = |left: &Left, other: &Left| {
        let alone = |(id, _probability): &&(i32, f64)| !other.iter().any(|(there, _)| there == id);
        left.iter().filter(alone).copied().collect::<Left>()
    };
    let at_limit = [only(ours, theirs), only(theirs, ours)].concat();
    prop_assert!(at_limit.len() <= 1, "{:?}", at_limit);
    let mass: f64 = at_limit.iter().map(|(_id, probability)| probability).sum();
    for (id, one) in ours {
        let other = theirs.iter().find(|(there, _)| there == id);
        let off = other.map_or(0.0, |(_id, other)| (one - other).abs());
        prop_assert!(off < 1e-4 + mass, "token {}: {} and {:?}", id, one, other);
    }
    Ok(())
}

/// Logits about as spread as a model's, no two alike.
fn logits() -> impl Strategy<Value = Vec<f32>> {
    let size = usize::try_from(N_VOCAB).unwrap_or(0);
    prop::collection::vec(-12.0_f32..12.0, size)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rules_that_cut_the_tail_agree(logits in logits(), top_k in 1_u32..600, p in 0.01_f32..1.0, min_p in 0.001_f32..0.5) {
        let count = i32::try_from(top_k).unwrap_or(0);
        agree(
            &ours(&sampler(Sampling { top_k, ..Sampling::default() }), &logits),
            &theirs(vec![LlamaSampler::top_k(count)], &logits),
        )?;
        agree(
            &ours(&sampler(Sampling { top_p: p, ..Sampling::default() }), &logits),
            &theirs(vec![LlamaSampler::top_p(p, 0)], &logits),
        )?;
        agree(
            &ours(&sampler(Sampling { min_p, ..Sampling::default() }), &logits),
            &theirs(vec![LlamaSampler::min_p(min_p, 0)], &logits),
        )?;
        agree(
            &ours(&sampler(Sampling { typical_p: p, ..Sampling::default() }), &logits),
            &theirs(vec![LlamaSampler::typical(p, 0)], &logits),
        )?;
        agree(
            &ours(&sampler(Sampling { top_n_sigma: p * 3.0, ..Sampling::default() }), &logits),
            &theirs(vec![LlamaSampler::top_n_sigma(p * 3.0)], &logits),
        )?;
    }

    #[test]
    fn temperatures_and_xtc_agree(logits in logits(), temperature in 0.1_f32..2.0, range in 0.0_f32..2.0, threshold in 0.01_f32..0.5) {
        agree(
            &ours(&sampler(Sampling { temperature, ..Sampling::default() }), &logits),
            &theirs(vec![LlamaSampler::temp(temperature)], &logits),
        )?;
        let dynamic = Sampling {
            temperature,
            dynatemp_range: range,
            dynatemp_exponent: 1.3,
            ..Sampling::default()
        };
        agree(
            &ours(&sampler(dynamic), &logits),
            &theirs(vec![LlamaSampler::temp_ext(temperature, range, 1.3)], &logits),
        )?;
        let excluding = Sampling {
            xtc_probability: 1.0,
            xtc_threshold: threshold,
            ..Sampling::default()
        };
        agree(
            &ours(&sampler(excluding), &logits),
            &theirs(vec![LlamaSampler::xtc(1.0, threshold, 0, 1)], &logits),
        )?;
    }

    #[test]
    fn bias_and_penalties_agree(
        logits in logits(),
        said in prop::collection::vec(0..40_i32, 0..80),
        (repeat, frequency, presence) in (0.5_f32..2.0, -1.0_f32..1.0, -1.0_f32..1.0),
        last_n in 0_i32..100,
        bias in prop::collection::btree_map(0..N_VOCAB, -5.0_f32..5.0, 0..20),
    ) {
        let rules = Sampling {
            repeat_penalty: repeat,
            repeat_last_n: Some(last_n.unsigned_abs()),
            frequency_penalty: frequency,
            presence_penalty: presence,
            logit_bias: bias.clone().into_iter().collect(),
            ..Sampling::default()
        };
        let mut mine = sampler(rules);
        let mut penalties = LlamaSampler::penalties(N_VOCAB, last_n, repeat, frequency, presence);
        for id in said {
            mine.accept(Token(id), b"").map_err(TestCaseError::fail)?;
            penalties.accept(LlamaToken(id));
        }
        let bias: Vec<LlamaLogitBias> = bias
            .into_iter()
            .map(|(id, bias)| LlamaLogitBias::new(LlamaToken(id), bias))
            .collect();
        let bias = LlamaSampler::logit_bias(N_VOCAB, &bias);
        agree(&ours(&mine, &logits), &theirs(vec![bias, penalties], &logits))?;
    }

    #[test]
    fn log_probabilities_agree(logits in logits(), chosen in 0..N_VOCAB) {
        let everywhere = theirs(vec![LlamaSampler::dist(1)], &logits);
        let (scored, best) = logprobs::score(&logits, Token(chosen), 20);
        for one in best.iter().chain([&scored]) {
            let there = everywhere.iter().find(|(id, _probability)| *id == one.token.0);
            let there = there.map_or(f64::NEG_INFINITY, |(_id, probability)| probability.ln());
            let off = (f64::from(one.logprob) - there).abs();
            prop_assert!(off < 1e-3, "token {}: {} and {}", one.token.0, one.logprob, there);
        }
        let mut ranked = everywhere;
        ranked.sort_by(|left, right| right.1.total_cmp(&left.1));
        let ranked: Vec<i32> = ranked.iter().take(20).map(|(id, _probability)| *id).collect();
        prop_assert_eq!(best.iter().map(|one| one.token.0).collect::<Vec<i32>>(), ranked);
    }

    // Falling off as words do; where they do not, llama.cpp's count of candidates overflows and becomes one.
    #[test]
    fn mirostat_begins_alike(noise in logits(), tau in 0.5_f32..6.0) {
        let ranks = (1_u16..).zip(noise);
        let logits: Vec<f32> = ranks.map(|(rank, noise)| noise * 0.02 - 1.6 * f32::from(rank).ln()).collect();
        for version in [MirostatVersion::One, MirostatVersion::Two] {
            let rules = Sampling {
                mirostat: Some(Mirostat { version, tau, eta: 0.1 }),
                ..Sampling::default()
            };
            let peer = match version {
                MirostatVersion::One => LlamaSampler::mirostat(N_VOCAB, 1, tau, 0.1, 100),
                MirostatVersion::Two => LlamaSampler::mirostat_v2(1, tau, 0.1),
            };
            agree(&ours(&sampler(rules), &logits), &theirs(vec![peer], &logits))?;
        }
    }

    #[test]
    fn the_whole_chain_agrees(logits in logits(), said in prop::collection::vec(0..40_i32, 0..80), temperature in 0.1_f32..2.0) {
        let rules = Sampling {
            temperature,
            repeat_penalty: 1.1,
            repeat_last_n: Some(64),
            top_n_sigma: 2.5,
            top_k: 100,
            typical_p: 0.97,
            top_p: 0.95,
            min_p: 0.01,
            ..Sampling::default()
        };
        let mut mine = sampler(rules);
        let mut penalties = LlamaSampler::penalties(N_VOCAB, 64, 1.1, 0.0, 0.0);
        for id in said {
            mine.accept(Token(id), b"").map_err(TestCaseError::fail)?;
            penalties.accept(LlamaToken(id));
        }
        let chain = vec![
            penalties,
            LlamaSampler::top_n_sigma(2.5),
            LlamaSampler::top_k(100),
            LlamaSampler::typical(0.97, 0),
            LlamaSampler::top_p(0.95, 0),
            LlamaSampler::min_p(0.01, 0),
            LlamaSampler::temp(temperature),
        ];
        agree(&ours(&mine, &logits), &theirs(chain, &logits))?;
    }
}

/// There can be one in a process.
fn backend() -> &'static LlamaBackend {
    static BACKEND: OnceLock<LlamaBackend> = OnceLock::new();
    BACKEND.get_or_init(|| LlamaBackend::init().expect("it is the first"))
}

fn tiny() -> LlamaModel {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/models/tiny-fast-q8_0.gguf"
    );
    LlamaModel::load_from_file(backend(), path, &LlamaModelParams::default())
        .expect("the tiny model loads")
}

#[test]
fn dry_agrees() {
    let model = tiny();
    let n_vocab = usize::try_from(model.n_vocab()).expect("it has a vocabulary");
    let vocab = model.vocab();
    let piece = |id: i32| {
        let mut bytes = Vec::new();
        vocab.token_to_piece_into(LlamaToken(id), &mut bytes, true, None);
        bytes
    };
    let breaking = vocab.tokenize(b"\n", false, false)[0].0;
    let cases = (
        prop::collection::vec(-12.0_f32..12.0, n_vocab),
        prop::collection::vec(prop_oneof![9 => 300..304_i32, 1 => Just(breaking)], 0..120),
        (0.1_f32..3.0, 1.0_f32..3.0),
        (0_i32..5, 1_i32..100),
    );
    let mut runner = TestRunner::new(ProptestConfig::with_cases(64));
    let checked = runner.run(
        &cases,
        |(logits, said, (multiplier, base), (allowed, last_n))| {
            let rule = Dry {
                multiplier,
                base,
                allowed_length: allowed.unsigned_abs(),
                last_n: last_n.unsigned_abs(),
                breakers: vec!["\n".to_owned()],
            };
            let rules = Sampling {
                dry: Some(rule),
                top_k: 2_000,
                ..Sampling::default()
            };
            let mut mine = Sampler::new(rules, Some(1), &[], 1_024);
            let mut peer = LlamaSampler::dry(&model, multiplier, base, allowed, last_n, ["\n"]);
            for id in said {
                mine.accept(Token(id), &piece(id))
                    .map_err(TestCaseError::fail)?;
                peer.accept(LlamaToken(id));
            }
            agree(&ours(&mine, &logits), &theirs(vec![peer], &logits))
        },
    );
    checked.expect("both penalise the same");
}
