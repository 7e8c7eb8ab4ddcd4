//! Each sampling rule alone, and what holds for all of them.

use proptest::prelude::*;

use super::*;

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

/// Every token chosen in many draws.
fn drawn(rules: &Sampling, logits: &[f32]) -> Vec<i32> {
    let mut sampler = Sampler::new(rules.clone(), None, &[]);
    let mut ids: Vec<i32> = (0..2_000)
        .filter_map(|_draw| sampler.choose(logits))
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
    let mut sampler = Sampler::new(greedy(), None, &[]);

    assert_eq!(sampler.choose(&[1.0, 5.0, 5.0, f32::NAN]), Some(Token(1)));
}

#[test]
fn the_same_seed_draws_the_same_tokens() {
    let logits = [1.0, 1.1, 0.9, 1.0];
    let draw = |seed| {
        let mut sampler = Sampler::new(seeded(seed), None, &[]);
        (0..50)
            .map(|_draw| sampler.choose(&logits))
            .collect::<Vec<_>>()
    };

    assert_eq!(draw(7), draw(7));
    assert_ne!(draw(7), draw(8));
}

#[test]
fn top_k_top_p_and_min_p_cut_the_tail() {
    // Probabilities: 0.64, 0.24, 0.09, 0.03.
    let logits = [3.0, 2.0, 1.0, 0.0];

    assert_eq!(
        drawn(
            &Sampling {
                top_k: 2,
                ..seeded(1)
            },
            &logits
        ),
        [0, 1]
    );
    assert_eq!(
        drawn(
            &Sampling {
                top_p: 0.7,
                ..seeded(1)
            },
            &logits
        ),
        [0, 1]
    );
    assert_eq!(
        drawn(
            &Sampling {
                top_p: 0.0,
                ..seeded(1)
            },
            &logits
        ),
        [0],
        "one always stays"
    );
    assert_eq!(
        drawn(
            &Sampling {
                min_p: 0.3,
                ..seeded(1)
            },
            &logits
        ),
        [0, 1]
    );
    assert_eq!(drawn(&seeded(1), &logits), [0, 1, 2, 3]);
}

#[test]
fn typical_sampling_may_drop_the_best_token() {
    // The entropy is 0.94; of all tokens the second (information 1.44) is nearest to it, just before the first (0.44).
    let logits = [3.0, 2.0, 1.0, 0.0];
    let rules = Sampling {
        typical_p: 0.2,
        ..seeded(1)
    };

    assert_eq!(drawn(&rules, &logits), [1]);
    let flat = [1.0, 1.0, 1.0, 1.0];
    assert_eq!(
        drawn(
            &Sampling {
                typical_p: 0.99,
                ..seeded(1)
            },
            &flat
        ),
        [0, 1, 2, 3]
    );
}

#[test]
fn a_bias_can_force_and_forbid() {
    let mut rules = greedy();
    rules.logit_bias = vec![(2, 100.0), (99, 100.0), (-1, 100.0)];
    assert_eq!(
        Sampler::new(rules, None, &[]).choose(&[1.0, 5.0, 0.0]),
        Some(Token(2))
    );

    let mut rules = greedy();
    rules.logit_bias = vec![(1, -100.0)];
    assert_eq!(
        Sampler::new(rules, None, &[]).choose(&[1.0, 5.0, 0.0]),
        Some(Token(0))
    );
}

#[test]
fn penalties_push_repeated_tokens_down() {
    let logits = [4.0, 3.9, 0.0];
    let mut repeat = Sampler::new(
        Sampling {
            repeat_penalty: 1.2,
            ..greedy()
        },
        None,
        &[Token(0)],
    );
    assert_eq!(
        repeat.choose(&logits),
        Some(Token(1)),
        "the prompt counts for the repeat penalty"
    );

    let mut frequency = Sampler::new(
        Sampling {
            frequency_penalty: 0.06,
            ..greedy()
        },
        None,
        &[Token(0)],
    );
    assert_eq!(
        frequency.choose(&logits),
        Some(Token(0)),
        "the prompt does not count for OpenAI's penalties"
    );
    frequency.accept(Token(0)).expect("no grammar");
    frequency.accept(Token(0)).expect("no grammar");
    assert_eq!(frequency.choose(&logits), Some(Token(1)));
}

#[test]
fn banned_tokens_are_never_chosen() {
    let mut sampler = Sampler::new(seeded(1), None, &[]);
    sampler.ban(&[Token(0)]);
    assert!((0..100).all(|_draw| sampler.choose(&[9.0, 0.0]) == Some(Token(1))));
    sampler.ban(&[Token(1)]);
    assert_eq!(sampler.choose(&[9.0, 0.0]), None, "nothing is left");
}

#[test]
fn a_grammar_is_obeyed_even_against_the_model() {
    let mut logits = vec![1.0; 3_000];
    logits[0] = 50.0;
    logits[2_999] = -50.0;
    for rules in [greedy(), seeded(1)] {
        let mut sampler = Sampler::new(rules, None, &[]);
        sampler.constrain(Box::new(Only(vec![2_999])));
        assert_eq!(sampler.choose(&logits), Some(Token(2_999)));
    }
    let mut sampler = Sampler::new(greedy(), None, &[]);
    sampler.constrain(Box::new(Only(Vec::new())));
    assert_eq!(
        sampler.choose(&logits),
        None,
        "a grammar without a way on ends the answer"
    );
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = [0.0_f32, 1.0_f32.ln(), 2.0_f32.ln()];
    let mut sampler = Sampler::new(seeded(3), None, &[]);
    let mut counts = [0_u32; 3];
    for _draw in 0..40_000 {
        let token = sampler.choose(&logits).expect("something is allowed");
        counts[usize::try_from(token.0).expect("small")] += 1;
    }
    assert!(
        (f64::from(counts[2]) / 40_000.0 - 0.5).abs() < 0.02,
        "{counts:?}"
    );
}

proptest! {
    #[test]
    fn the_quick_cut_finds_the_same_tokens_as_sorting(logits in prop::collection::vec(-50.0_f32..50.0, 1..400), count in 1_usize..40) {
        let mut sorted: Vec<Candidate> = (0..).zip(&logits).map(|(id, logit)| candidate(id, *logit)).collect();
        sort(&mut sorted);
        sorted.truncate(count);

        prop_assert_eq!(top(&logits, count), sorted);
    }

    #[test]
    fn any_rules_choose_something(
        logits in prop::collection::vec(-50.0_f32..50.0, 1..100),
        temperature in 0.0_f32..2.0, top_p in 0.0_f32..1.0, min_p in 0.0_f32..1.0, typical_p in 0.0_f32..1.0, top_k in 0_u32..10,
    ) {
        let rules = Sampling { temperature, top_k, top_p, min_p, typical_p, ..seeded(1) };
        let chosen = Sampler::new(rules, None, &[]).choose(&logits).expect("there are candidates");
        prop_assert!(usize::try_from(chosen.0).expect("not negative") < logits.len());
    }
}
