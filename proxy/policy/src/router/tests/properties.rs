use std::time::Duration;

use config::tier::Tier::{self, Fast, Heavy, Primary};
use config::wire::node::{Report, TierReport, TierState};
use proptest::prelude::*;

use super::{ada, auto, busy, plan_for, router};
use crate::identity::Principal;
use crate::route::{Ask, Needs, Prompt, SkipReason, Step, Target};
use crate::router::{Outcome, Router, Ticket};
use crate::testing::{backend, report, routing, start, tier};

fn tier_reports() -> impl Strategy<Value = Vec<TierReport>> {
    let one = |which: Tier| {
        let until = prop_oneof![1 => Just(0_u64), 3 => 1_u64..120_000];
        let state = prop_oneof![
            4 => Just((TierState::Ready, 0)),
            2 => until.clone().prop_map(|ms| (TierState::Loading, ms)),
            1 => until.prop_map(|ms| (TierState::Sleeping, ms)),
            1 => Just((TierState::Down, 0)),
        ];
        (state, 0_u32..6, 0_u32..70, 0.0_f64..100.0).prop_map(
            move |((state, wakes_in_ms), slots_busy, queue, speed)| {
                let mut report = busy(tier(which), slots_busy, queue);
                report.state = state;
                report.wakes_in_ms = wakes_in_ms;
                report.tokens_per_second = speed;
                report
            },
        )
    };
    let maybe = |which: Tier| proptest::option::of(one(which));
    (maybe(Fast), maybe(Primary), maybe(Heavy))
        .prop_map(|(fast, primary, heavy)| [fast, primary, heavy].into_iter().flatten().collect())
}

fn houses() -> impl Strategy<Value = Vec<Report>> {
    proptest::collection::vec((tier_reports(), proptest::bool::weighted(0.1)), 0..5).prop_map(
        |nodes| {
            let numbered = nodes.into_iter().enumerate();
            numbered
                .map(|(index, (tiers, draining))| Report {
                    draining,
                    ..report(&index.to_string(), 1, tiers)
                })
                .collect()
        },
    )
}

fn targets() -> impl Strategy<Value = Target> {
    let tiers = prop_oneof![Just(Fast), Just(Primary), Just(Heavy)];
    prop_oneof![
        tiers.clone().prop_map(Target::Tier),
        tiers.clone().prop_map(auto),
        tiers.prop_map(|tier| Target::Model(format!("tiny-{tier}"))),
    ]
}

proptest! {
    #[test]
    fn a_route_repeats_nothing_and_goes_only_where_it_may(
        house in houses(), target in targets(), fallback: bool,
        allowed in proptest::option::of(proptest::sample::subsequence(Tier::ALL.to_vec(), 0..=3)),
        trips in proptest::collection::vec((0_usize..5, 0_usize..3), 0..4),
        wait in 0_u64..40,
    ) {
        let now = start();
        let mut router = Router::new(&routing(), Duration::from_secs(100), 100);
        for report in house {
            router.report("n", report, now).expect("a good report");
        }
        for (node, tier) in trips {
            for _ in 0..3 {
                if let Some(ticket) = router.begin(&backend(&node.to_string(), Tier::ALL[tier]), now) {
                    router.settle(ticket, Outcome::TimedOut, now);
                }
            }
        }
        let now = now + Duration::from_secs(wait);
        let principal = Principal { tiers: allowed, ..ada() };
        let route = plan_for(&router, &target, &principal, fallback, now);
        let again = plan_for(&router, &target, &principal, fallback, now);
        prop_assert_eq!(&route, &again, "planning changes nothing");

        let mut seen: Vec<_> = route.steps.iter().map(|step| step.backend.clone()).collect();
        seen.extend(route.skipped.iter().map(|(id, _)| id.clone()));
        let count = seen.len();
        seen.sort();
        seen.dedup();
        prop_assert_eq!(seen.len(), count, "no backend twice");
        for step in &route.steps {
            let found = router.registry().backend(&step.backend).expect("it exists");
            let comes = found.tier.state == TierState::Loading && found.tier.wakes_in_ms > 0;
            prop_assert!((found.tier.state.answers() || comes) && !found.node.draining);
            prop_assert_eq!(step.cold, found.tier.state != TierState::Ready);
            prop_assert!(principal.may_use_tier(step.backend.tier));
            prop_assert!(router.begin(&step.backend, now).is_some(), "every step can be begun");
        }
        if let Some(wanted) = route.wanted {
            let exists = router.registry().has_tier(wanted) && principal.may_use_tier(wanted);
            let upward = route.steps.iter().any(|step| step.backend.tier > wanted);
            prop_assert!(!(exists && upward), "never upward while the tier exists");
        }
        if route.steps.is_empty() {
            prop_assert!(route.refusal().retry_after().is_some_and(|wait| wait >= Duration::from_secs(1)));
        }
    }

    #[test]
    fn whoever_waits_for_a_load_does_so_within_patience_or_after_all_that_is_warm(
        house in houses(), target in targets(), patience in 0_u64..120,
        trips in proptest::collection::vec((0_usize..5, 0_usize..3), 0..4), wait in 0_u64..90,
    ) {
        let now = start();
        let mut router = Router::new(&routing(), Duration::from_secs(100), 100);
        for report in house {
            router.report("n", report, now).expect("a good report");
        }
        for (node, tier) in trips {
            for _ in 0..3 {
                if let Some(ticket) = router.begin(&backend(&node.to_string(), Tier::ALL[tier]), now) {
                    router.settle(ticket, Outcome::ServerFault, now);
                }
            }
        }
        let now = now + Duration::from_secs(wait);
        let (principal, patience) = (ada(), Duration::from_secs(patience));
        let ask = |past_waits| Ask {
            target: &target,
            principal: &principal,
            needs: Needs::default(),
            fallback: true,
            past_queues: past_waits,
            past_waits,
            local_only: false,
            patience,
            prompt: Prompt::default(),
        };
        let route = router.plan(&ask(false), now);
        let is_late = |step: &Step| step.predicted.waking > patience;
        let first_late = route.steps.iter().position(is_late).unwrap_or(route.steps.len());
        prop_assert!(route.steps[first_late..].iter().all(is_late), "late ones come last: {:?}", route.steps);

        let past = router.plan(&ask(true), now);
        for (id, reason) in &route.skipped {
            let tier = router.registry().backend(id).expect("it exists").tier;
            if *reason == SkipReason::Loading {
                prop_assert!(tier.state == TierState::Loading && tier.wakes_in_ms == 0);
            }
            if let SkipReason::Reloading { ready_in } = reason {
                prop_assert!(tier.state == TierState::Loading && !ready_in.is_zero());
                prop_assert!(*ready_in <= Duration::from_millis(tier.wakes_in_ms.max(250)));
                prop_assert!(route.is_worth_waiting());
            }
            let is_left_out = past.skipped.iter().any(|(other, _)| other == id);
            if reason.is_passing() && *reason != SkipReason::Loading {
                prop_assert!(!is_left_out, "what passes does not hinder who waits: {reason:?}");
            }
        }
        if route.steps.is_empty() && !route.is_worth_waiting() {
            prop_assert!(past.steps.is_empty(), "who is refused at once could not have waited");
        }
        prop_assert!(past.steps.len() >= route.steps.len());
    }

    #[test]
    fn a_settled_ticket_frees_exactly_one_place(actions in proptest::collection::vec((any::<bool>(), 0_usize..8, 0_usize..9), 1..200)) {
        const OUTCOMES: [Outcome; 9] = [
            Outcome::Ok, Outcome::CallerFault, Outcome::Overloaded, Outcome::Unavailable, Outcome::ConnectFailed,
            Outcome::ServerFault, Outcome::TimedOut, Outcome::Broken, Outcome::Abandoned,
        ];
        let mut now = start();
        let mut router = router(vec![report("a", 1, vec![tier(Fast)])], now);
        let id = backend("a", Fast);
        let mut tickets: Vec<Ticket> = Vec::new();
        for (begin, index, outcome) in actions {
            now += Duration::from_secs(3);
            if begin {
                tickets.extend(router.begin(&id, now));
            } else if index < tickets.len() {
                let ticket = tickets.remove(index);
                router.settle(ticket, OUTCOMES[outcome], now);
            }
            prop_assert_eq!(usize::try_from(router.in_flight(&id)).unwrap_or(0), tickets.len());
        }
    }
}
