use config::tier::Tier;
use proptest::prelude::*;

use super::*;
use crate::testing::{backend, start, tier};

fn links(hashes: impl IntoIterator<Item = u64>) -> Vec<Link> {
    let numbered = hashes.into_iter().zip(1_u32..);
    numbered
        .map(|(hash, place)| Link {
            hash,
            tokens: place * 100,
        })
        .collect()
}

proptest! {
    #[test]
    fn more_cached_tokens_never_make_the_first_one_later(
        prompt in 0_u32..200_000,
        (less, more) in (0_u32..200_000, 0_u32..200_000),
        speed in 0.0_f64..10_000.0,
    ) {
        let mut report = tier(Tier::Fast);
        report.prompt_tokens_per_second = speed;
        let at = |cached_tokens| {
            let known = Known { cached_tokens, ..Known::default() };
            predict(&report, prompt, known).total()
        };
        prop_assert!(at(less.max(more)) <= at(less.min(more)));
    }

    #[test]
    fn a_table_stays_within_its_bounds_and_its_two_halves_agree(
        steps in proptest::collection::vec((0_u8..12, 0_u64..2_000, any::<bool>()), 0..1_500),
    ) {
        let mut warmth = Warmth::default();
        let now = start();
        for (node, hash, told) in steps {
            let backend = backend(&node.to_string(), Tier::Fast);
            if told {
                warmth.told(&backend, &[hash], now);
            } else {
                warmth.sent(&backend, &links([hash, hash + 1]), now);
            }
        }
        for (backend, held) in &warmth.held {
            prop_assert!(held.links.len() <= LINKS_MAX);
            prop_assert_eq!(held.links.len(), held.by_age.len());
            for link in held.links.keys() {
                prop_assert!(warmth.places[link].contains(backend));
            }
        }
        for (link, places) in &warmth.places {
            prop_assert!((1..=PLACES_MAX).contains(&places.len()));
            for backend in places {
                prop_assert!(warmth.held[backend].links.contains_key(link));
            }
        }
    }

    #[test]
    fn a_conversation_that_differs_in_one_message_is_warm_up_to_there_and_no_further(
        chain in proptest::collection::vec(any::<u64>(), 2..32),
        at in 0_usize..32,
    ) {
        let at = at % chain.len();
        let (mut warmth, now) = (Warmth::default(), start());
        let here = backend("a", Tier::Fast);
        let known: BTreeSet<u64> = chain.iter().copied().collect();
        prop_assume!(known.len() == chain.len());
        warmth.sent(&here, &links(chain.iter().copied()), now);
        // An edit changes every link from there on.
        let edited = chain.iter().enumerate();
        let edited = edited.map(|(place, hash)| if place < at { *hash } else { !*hash });
        let edited: Vec<u64> = edited.collect();
        prop_assume!(edited.iter().skip(at).all(|hash| !known.contains(hash)));
        let found = warmth.of(&links(edited)).get(&here).copied();
        let expected = u32::try_from(at).ok().filter(|at| *at > 0).map(|at| at * 100);
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn what_a_node_no_longer_tells_is_forgotten_and_what_is_on_its_way_is_not() {
    let (mut warmth, now) = (Warmth::default(), start());
    let here = backend("a", Tier::Fast);
    warmth.told(&here, &[1, 2], now);
    warmth.sent(&here, &links([7]), now);
    warmth.told(&here, &[2], now + Duration::from_secs(5));
    let has = |warmth: &Warmth, hash| warmth.of(&links([hash])).contains_key(&here);
    assert!(!has(&warmth, 1) && has(&warmth, 2) && has(&warmth, 7));
    warmth.told(&here, &[], now + UNTOLD_MAX);
    assert_eq!(warmth.len_of(&here), 0, "seven had its time to arrive");
}

#[test]
fn a_backend_that_tells_nothing_is_believed_to_hold_what_was_sent() {
    let (mut warmth, now) = (Warmth::default(), start());
    let here = backend("cloud", Tier::Heavy);
    warmth.sent(&here, &links([7, 8]), now);
    warmth.told(&here, &[], now + UNTOLD_MAX * 9);
    assert_eq!(warmth.of(&links([7, 8])).get(&here), Some(&200));
    warmth.forget(&here.node);
    assert!(warmth.of(&links([7, 8])).is_empty() && warmth.places.is_empty());
}

#[test]
fn unknown_speeds_and_ways_have_defaults() {
    let mut report = tier(Tier::Fast);
    report.prompt_tokens_per_second = 0.0;
    let predicted = predict(&report, 400, Known::default());
    assert_eq!(predicted.prefill, Duration::from_secs(2));
    assert_eq!(predicted.round_trip, ROUND_TRIP);
    assert_eq!(predicted.as_str(), "cold");
}

#[test]
fn one_slow_prompt_makes_no_slow_machine_and_many_do() {
    let (mut warmth, now) = (Warmth::default(), start());
    let here = backend("a", Tier::Fast);
    assert!(warmth.reads(&here, 0.0, now) <= 0.0);
    assert!(warmth.reads(&here, 800.0, now) >= 800.0);
    let soon = warmth.reads(&here, 90.0, now + Duration::from_secs(5));
    assert!((780.0..800.0).contains(&soon), "{soon}");
    let later = warmth.reads(&here, 90.0, now + READS_HALF);
    assert!((395.0..405.0).contains(&later), "{later}");
    assert!(warmth.reads(&here, 90.0, now + READS_HALF * 9) <= 90.0);
    warmth.another(&here);
    assert!(warmth.reads(&here, 50.0, now + READS_HALF * 9) <= 50.0);
}

mod turns;
