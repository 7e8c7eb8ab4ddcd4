//! Multi-turn conversations on three nodes whose caches are bounded: where the turns land.

use std::collections::{HashMap, VecDeque};

use config::tier::Tier;
use rand_like::Dice;

use super::*;
use config::ids::UserId;
use config::settings::proxy::Plan;

use crate::identity::Principal;
use crate::route::{Ask, Needs, Target};
use crate::router::{Outcome, Router, Ticket};
use crate::testing::{node_id, report, routing, start, tier};

const NODES: [&str; 3] = ["a", "b", "c"];
/// Conversations that a node's cache holds.
const CACHE: usize = 40;
const CONVERSATIONS: u64 = 60;
const TURNS: usize = 8;
const TOKENS: u32 = 400;

/// Numbers that are the same for the same seed.
mod rand_like {
    pub(super) struct Dice(pub(super) u64);

    impl Dice {
        pub(super) fn below(&mut self, end: usize) -> usize {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            usize::try_from(self.0 >> 33).unwrap_or(0) % end.max(1)
        }
    }
}

/// What a node really holds: the last turn of each conversation, least recently used out first.
#[derive(Default)]
struct Cache(VecDeque<Vec<u64>>);

impl Cache {
    fn serves(&mut self, chain: &[Link]) -> bool {
        let hashes: Vec<u64> = chain.iter().map(|link| link.hash).collect();
        // Only what the turn before left behind counts; an older turn would be read again from there.
        let last = hashes
            .len()
            .checked_sub(2)
            .and_then(|len| hashes.get(..len));
        let known = last.is_some_and(|last| self.0.iter().any(|held| held == last));
        self.0.retain(|held| !hashes.starts_with(held));
        self.0.push_back(hashes);
        if self.0.len() > CACHE {
            self.0.pop_front();
        }
        known
    }
}

struct Played {
    warm: usize,
    later: usize,
    given: HashMap<String, usize>,
}

fn play(seed: u64, known: bool) -> Played {
    let (mut router, begun) = (Router::new(&routing(), Duration::from_mins(1), 10), start());
    let principal = Principal::person(UserId::new("ada"), Plan::default());
    let mut dice = Dice(seed);
    let mut caches: HashMap<String, Cache> = HashMap::new();
    let mut turns: Vec<usize> = vec![0; usize::try_from(CONVERSATIONS).expect("fits")];
    let mut running: VecDeque<Ticket> = VecDeque::new();
    let mut played = Played {
        warm: 0,
        later: 0,
        given: HashMap::new(),
    };
    for name in NODES {
        let taken = router.report(name, report(name, 1, vec![tier(Tier::Fast)]), begun);
        taken.expect("reports");
    }
    for step in 0..(turns.len() * TURNS) {
        let now = begun + Duration::from_millis(u64::try_from(step).expect("fits") * 100);
        let left: Vec<usize> = (0..turns.len()).filter(|at| turns[*at] < TURNS).collect();
        let one = left[dice.below(left.len())];
        let length = turns[one] * 2 + 1;
        turns[one] += 1;
        let name = u64::try_from(one).expect("fits") + 1;
        let chain =
            links((1..=u64::try_from(length).expect("fits")).map(|turn| name * 1_000 + turn));
        let chain: Vec<Link> = chain
            .into_iter()
            .map(|link| Link {
                tokens: link.tokens / 100 * TOKENS,
                ..link
            })
            .collect();
        let prompt = Prompt {
            chain: if known { &chain } else { &[] },
            tokens: chain.last().map_or(0, |link| link.tokens),
            spread: seed ^ name,
        };
        let ask = Ask {
            target: &Target::Tier(Tier::Fast),
            principal: &principal,
            needs: Needs::default(),
            fallback: true,
            past_queues: false,
            past_waits: false,
            local_only: false,
            patience: Duration::from_mins(1),
            prompt,
        };
        let route = router.plan(&ask, now);
        let backend = route.steps.first().expect("a step").backend.clone();
        let ticket = router.begin(&backend, now).expect("begins");
        router.sent(&backend, prompt.chain, now);
        running.push_back(ticket);
        if running.len() > 5
            && let Some(done) = running.remove(dice.below(running.len()))
        {
            router.settle(done, Outcome::Ok, now);
        }
        let node = backend.node.as_str().to_owned();
        let warm = caches.entry(node.clone()).or_default().serves(&chain);
        *played.given.entry(node).or_default() += 1;
        if length > 1 {
            played.later += 1;
            played.warm += usize::from(warm);
        }
    }
    while let Some(done) = running.pop_front() {
        router.settle(done, Outcome::Ok, begun);
    }
    assert!(router.registry().node(&node_id("a")).is_some());
    played
}

#[test]
fn later_turns_land_warm_and_no_node_gets_more_than_its_share() {
    for seed in 1..40_u64 {
        let played = play(seed, true);
        let percent = played.warm * 100 / played.later;
        assert!(percent >= 95, "seed {seed}: {percent} % warm");
        let all: usize = played.given.values().sum();
        let most = played.given.values().max().copied().unwrap_or(0);
        assert!(most * 3 * 10 <= all * 12, "seed {seed}: {:?}", played.given);
        let blind = play(seed, false);
        let luck = blind.warm * 100 / blind.later;
        assert!(luck < 60, "without chains it is luck, not {luck} %");
    }
}
