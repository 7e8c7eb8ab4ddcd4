//! Each sampling rule alone, and what holds for all of them.

use proptest::prelude::*;

use super::*;
use crate::spec::Dry;
use crate::spec::Mirostat;
use crate::spec::MirostatVersion;

const N_VOCAB: u32 = 32;

fn greedy() -> Sampling {
    Sampling {
        temperature: 0.0,
        ..Sampling::default()
    }
}

fn seeded(seed: u64) -> Sampling {
    Sampling {
        seed: Some(seed),
        ..Sampling::default()
    }
}

fn sampler(rules: Sampling, prompt: &[Token]) -> Sampler {
    Sampler::new(rules, None, prompt, N_VOCAB)
}

/// Every token chosen in many draws.
fn drawn(rules: &Sampling, logits: &[f32]) -> Vec<i32> {
    let mut ids: Vec<i32> = (0..2_000)
        .filter_map(|seed| {
            let rules = Sampling {
                seed: Some(seed),
                ..rules.clone()
            };
            sampler(rules, &[]).choose(logits)
        })
        .map(|token| token.0)
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

struct Only(Vec<i32>);

impl Constraint for Only {
    fn retain_allowed(&mut self, candidates: &mut Vec<Candidate>) {
        candidates.retain(|candidate| self.0.contains(&candidate.token.0));
    }

    fn accept(&mut self, _token: Token) -> Result<(), String> {
        Ok(())
    }
}

#[test]
fn temperature_zero_takes_the_best_and_of_equals_the_first() {
    let mut sampler = sampler(greedy(), &[]);

    assert_eq!(sampler.choose(&[1.0, 5.0, 5.0, f32::NAN]), Some(Token(1)));
}

#[test]
fn a_draw_depends_on_the_seed_and_the_place_alone() {
    let logits = [1.0, 1.1, 0.9, 1.0];
    let draw = |seed, tries: usize| {
        let mut sampler = sampler(seeded(seed), &[]);
        let mut said = Vec::new();
        for _place in 0..50 {
            // Looking more than once, as guessing ahead does, must not matter.
            let token = (0..tries).find_map(|_try| sampler.choose(&logits));
            let token = token.expect("all tokens are allowed");
            sampler.accept(token, b"").expect("there is no grammar");
            said.push(token);
        }
        said
    };

    assert_eq!(draw(7, 1), draw(7, 3));
    assert_ne!(draw(7, 1), draw(8, 1));
}

#[test]
fn an_answer_that_is_replayed_goes_on_the_same() {
    let logits: Vec<f32> = (0..20_u8).map(|id| f32::from(id % 7) / 3.0).collect();
    let rules = Sampling {
        repeat_penalty: 1.3,
        frequency_penalty: 0.4,
        dry: Some(Dry {
            multiplier: 0.8,
            ..Dry::default()
        }),
        xtc_probability: 0.5,
        ..seeded(11)
    };
    let go_on = |said: &[Token]| {
        let mut sampler = sampler(rules.clone(), &[Token(3)]);
        sampler.read(Token(3), b"x");
        for token in said {
            sampler.accept(*token, b"x").expect("no grammar");
        }
        let mut all = said.to_vec();
        while all.len() < 64 {
            let token = sampler.choose(&logits).expect("all are allowed");
            sampler.accept(token, b"x").expect("no grammar");
            all.push(token);
        }
        all
    };
    let whole = go_on(&[]);
    for cut in 0..64 {
        assert_eq!(go_on(&whole[..cut]), whole, "cut at {cut}");
    }
}

/// A change to the rules, and the tokens that are left.
type Case = (fn(&mut Sampling), &'static [i32]);

#[test]
fn top_k_top_p_min_p_and_top_n_sigma_cut_the_tail() {
    // Probabilities: 0.64, 0.24, 0.09, 0.03. The standard deviation is 1.118.
    let logits = [3.0, 2.0, 1.0, 0.0];
    let cases: [Case; 6] = [
        (|rules| rules.top_k = 2, &[0, 1]),
        (|rules| rules.top_p = 0.7, &[0, 1]),
        (|rules| rules.top_p = 0.0, &[0]),
        (|rules| rules.min_p = 0.3, &[0, 1]),
        (|rules| rules.top_n_sigma = 1.0, &[0, 1]),
        (|_rules| {}, &[0, 1, 2, 3]),
    ];
    for (change, left) in cases {
        let mut rules = seeded(1);
        change(&mut rules);
        assert_eq!(drawn(&rules, &logits), left, "{rules:?}");
    }
}

#[test]
fn typical_sampling_may_drop_the_best_token() {
    // The entropy is 0.94; of all tokens the second (information 1.44) is nearest to it, just before the first (0.44).
    let logits = [3.0, 2.0, 1.0, 0.0];
    let rules = Sampling {
        typical_p: 0.2,
        ..seeded(1)
    };
    let drawn = drawn(&rules, &logits);
    assert_eq!(drawn.len(), 1);
}

#[test]
fn xtc_excludes_all_likely_tokens_but_the_last() {
    let logits = [3.0, 2.9, 2.8, 0.0, -1.0];
    let rules = Sampling {
        xtc_probability: 1.0,
        xtc_threshold: 0.2,
        ..seeded(1)
    };
    assert_eq!(drawn(&rules, &logits), [2, 3, 4]);
    let alone = [9.0, 0.0];
    let rules = Sampling { top_k: 1, ..rules };
    assert_eq!(drawn(&rules, &alone), [0], "one likely token stays");
}

#[test]
fn a_dynamic_temperature_is_low_for_the_sure_and_high_for_the_unsure() {
    let rules = Sampling {
        temperature: 1.0,
        dynatemp_range: 1.0,
        ..seeded(1)
    };
    let sure = sampler(rules.clone(), &[]).distribution(&[9.0, 0.0, 0.0]);
    let plain = sampler(seeded(1), &[]).distribution(&[9.0, 0.0, 0.0]);
    assert!(sure.probabilities[0] > plain.probabilities[0]);
    let unsure = sampler(rules, &[]).distribution(&[1.0, 0.5, 0.6]);
    let plain = sampler(seeded(1), &[]).distribution(&[1.0, 0.5, 0.6]);
    assert!(unsure.probabilities[0] < plain.probabilities[0]);
}

#[test]
fn mirostat_steers_the_surprise_to_its_target() {
    // So flat a distribution that it alone would surprise by 4.4 bits.
    let logits: Vec<f32> = (0..32_u8).map(|id| -f32::from(id) / 10.0).collect();
    for version in [MirostatVersion::One, MirostatVersion::Two] {
        let rules = Sampling {
            mirostat: Some(Mirostat {
                version,
                tau: 2.0,
                eta: 0.1,
            }),
            ..seeded(5)
        };
        let mut sampler = sampler(rules, &[]);
        let mut bits = 0.0;
        for _place in 0..2_000 {
            let distribution = sampler.distribution(&logits);
            let token = sampler.choose(&logits).expect("all are allowed");
            let place = distribution
                .candidates
                .iter()
                .position(|one| one.token == token);
            let place = place.expect("it was drawn from these");
            bits -= distribution.probabilities[place].log2();
            sampler.accept(token, b"").expect("no grammar");
        }
        let mean = bits / 2_000.0;
        assert!((mean - 2.0).abs() < 0.1, "{version:?}: {mean} bits");
    }
}

#[test]
fn bias_and_bans_move_single_tokens() {
    let rules = Sampling {
        logit_bias: vec![(0, -100.0), (3, 100.0), (99, 1.0)],
        ..greedy()
    };
    let mut biased = sampler(rules, &[]);
    assert_eq!(biased.choose(&[9.0, 1.0, 2.0, 0.0]), Some(Token(3)));
    biased.ban(&[Token(3)], u64::MAX);
    assert_eq!(biased.choose(&[9.0, 1.0, 2.0, 0.0]), Some(Token(2)));
}

#[test]
fn a_ban_ends_at_its_place() {
    let mut sampler = sampler(greedy(), &[]);
    sampler.ban(&[Token(0)], 2);
    let logits = [9.0, 1.0];
    let mut said = Vec::new();
    for _place in 0..3 {
        let token = sampler.choose(&logits).expect("one is allowed");
        sampler.accept(token, b"").expect("no grammar");
        said.push(token.0);
    }
    assert_eq!(said, [1, 1, 0]);
}

#[test]
fn the_repeat_penalty_looks_back_into_the_prompt() {
    let rules = Sampling {
        repeat_penalty: 2.0,
        repeat_last_n: Some(2),
        ..greedy()
    };
    let mut sampler = sampler(rules, &[Token(0), Token(1), Token(2)]);
    // The first token of the prompt is out of reach; the logits of the others are halved.
    assert_eq!(sampler.choose(&[3.0, 5.0, 4.0]), Some(Token(0)));
}

#[test]
fn presence_and_frequency_count_the_answer_as_openai_does() {
    let rules = Sampling {
        presence_penalty: 1.0,
        frequency_penalty: 0.5,
        ..greedy()
    };
    let mut sampler = sampler(rules, &[Token(0)]);
    assert_eq!(
        sampler.choose(&[5.0, 4.9]),
        Some(Token(0)),
        "not the prompt"
    );
    for _time in 0..100 {
        sampler.accept(Token(1), b"").expect("no grammar");
    }
    sampler.accept(Token(0), b"").expect("no grammar");
    assert_eq!(sampler.choose(&[5.0, 54.9]), Some(Token(1)), "54.9 - 51");
    assert_eq!(
        sampler.choose(&[5.0, 54.0]),
        Some(Token(0)),
        "54 - 51 < 5 - 1.5"
    );
}

#[test]
fn a_grammar_is_asked_again_only_when_it_refuses() {
    let mut sampler = sampler(greedy(), &[]);
    sampler.constrain(Box::new(Only(vec![2])));
    assert_eq!(sampler.choose(&[5.0, 4.0, 3.0]), Some(Token(2)));
}

#[test]
fn a_grammar_finds_a_token_far_down() {
    let mut logits = vec![1.0; 40_000];
    logits[39_999] = -3.0;
    for rules in [greedy(), seeded(1)] {
        let mut sampler = sampler(rules, &[]);
        sampler.constrain(Box::new(Only(vec![39_999])));
        assert_eq!(sampler.choose(&logits), Some(Token(39_999)));
    }
}

#[test]
fn when_nothing_is_allowed_the_answer_ends() {
    for rules in [greedy(), seeded(1)] {
        let mut sampler = sampler(rules, &[]);
        sampler.constrain(Box::new(Only(Vec::new())));
        assert_eq!(sampler.choose(&[1.0, 2.0]), None);
    }
    assert_eq!(sampler(greedy(), &[]).choose(&[f32::NAN]), None);
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = [2.0_f32.ln(), 1.0_f32.ln(), 1.0_f32.ln()];
    let mut counts = [0.0_f64; 3];
    let mut sampler = sampler(seeded(3), &[]);
    for _place in 0..20_000 {
        let token = sampler.choose(&logits).expect("all are allowed");
        sampler.accept(token, b"").expect("no grammar");
        counts[usize::try_from(token.0).expect("it is not negative")] += 1.0;
    }
    for (count, expected) in counts.into_iter().zip([0.5, 0.25, 0.25]) {
        assert!((count / 20_000.0 - expected).abs() < 0.01, "{counts:?}");
    }
}

proptest! {
    #[test]
    fn whatever_is_asked_a_possible_token_is_chosen(
        logits in prop::collection::vec(-20.0_f32..20.0, 1..200),
        rules in rules(),
    ) {
        let mut sampler = sampler(rules, &[Token(0)]);
        for _place in 0..8 {
            let token = sampler.choose(&logits).expect("every logit is finite");
            prop_assert!(usize::try_from(token.0).is_ok_and(|id| id < logits.len()));
            sampler.accept(token, b"word ").expect("no grammar");
        }
    }
}

prop_compose! {
    fn rules()(
        temperature in 0.0_f32..3.0,
        dynatemp_range in 0.0_f32..2.0,
        top_k in 0_u32..300,
        top_p in 0.0_f32..=1.0,
        min_p in 0.0_f32..=1.0,
        typical_p in 0.0_f32..=1.0,
        top_n_sigma in 0.0_f32..3.0,
        xtc_probability in 0.0_f32..=1.0,
        repeat_penalty in 0.5_f32..2.0,
        multiplier in 0.0_f32..3.0,
        mirostat in prop::option::of((prop::bool::ANY, 0.1_f32..8.0)),
        seed in any::<u64>(),
    ) -> Sampling {
        Sampling {
            temperature,
            dynatemp_range,
            top_k,
            top_p,
            min_p,
            typical_p,
            top_n_sigma,
            xtc_probability,
            repeat_penalty,
            dry: Some(Dry { multiplier, ..Dry::default() }),
            mirostat: mirostat.map(|(first, tau)| Mirostat {
                version: if first { MirostatVersion::One } else { MirostatVersion::Two },
                tau,
                eta: 0.1,
            }),
            seed: Some(seed),
            ..Sampling::default()
        }
    }
}
