//! Large groups, of which a plan looks at a part: who must be found in it all the same.

use super::*;

/// Far more than are looked at.
const MANY: usize = 300;

/// A large house whose last machines are so busy that nobody would look at them.
fn large(busiest: &[&str], now: Instant) -> Router {
    let idle = (0..MANY).map(|number| report(&format!("idle{number}"), 1, vec![tier(Fast)]));
    let busy = busiest
        .iter()
        .map(|name| report(name, 1, vec![busy(tier(Fast), 4, 40)]));
    let mut router = Router::new(&routing(), Duration::from_hours(1), 1_000);
    for report in idle.chain(busy) {
        router.report("n", report, now).expect("a good report");
    }
    router
}

#[test]
fn a_due_probe_is_found_however_far_down_a_group_it_stands() {
    let now = start();
    let mut router = large(&["last"], now);
    let last = backend("last", Fast);
    trip(&mut router, "last", Fast, now);
    for target in [Target::Tier(Fast), Target::Model("tiny-fast".to_owned())] {
        let early = plan(&router, &target, now + Duration::from_secs(29));
        assert!(!steps(&early).contains(&"node_last/fast".to_owned()));
        let due = plan(&router, &target, now + Duration::from_secs(30));
        assert_eq!(due.steps[0].backend, last);
        assert!(due.steps[1..].iter().all(|step| step.backend != last));
    }
    let later = now + Duration::from_secs(31);
    let probe = router.begin(&last, later).expect("the probe");
    assert!(
        plan(&router, &Target::Tier(Fast), later).steps[0].backend != last,
        "it is under way"
    );
    router.settle(probe, Outcome::Ok, later);
    assert!(
        plan(&router, &Target::Tier(Fast), later).steps[0].backend != last,
        "it is well again"
    );
}

#[test]
fn a_request_is_led_to_one_doubtful_backend_and_not_to_the_next() {
    let now = start();
    let doubtful = ["u", "v", "w", "x", "y"];
    let mut router = large(&doubtful, now);
    for name in doubtful {
        trip(&mut router, name, Fast, now);
    }
    let due = now + Duration::from_secs(30);
    let mut found = Vec::new();
    for _ in doubtful {
        let route = plan(&router, &Target::Tier(Fast), due);
        let probes = route.steps.iter().filter(|step| {
            doubtful
                .iter()
                .any(|name| step.backend == backend(name, Fast))
        });
        assert_eq!(probes.count(), 1, "{:?}", steps(&route));
        let first = route.steps[0].backend.clone();
        // Under way, and never settled.
        drop(router.begin(&first, due).expect("the probe"));
        found.push(first);
    }
    found.sort();
    assert_eq!(
        found,
        doubtful.map(|name| backend(name, Fast)),
        "each in its turn"
    );
}

#[test]
fn a_due_probe_that_cannot_be_asked_makes_room_for_the_next() {
    let now = start();
    let mut router = large(&["u", "v"], now);
    for name in ["u", "v"] {
        trip(&mut router, name, Fast, now);
    }
    router.hold_node(&backend("u", Fast).node, true);
    let due = now + Duration::from_secs(30);
    let route = plan(&router, &Target::Tier(Fast), due);
    assert_eq!(route.steps[0].backend, backend("v", Fast));
    let nowhere = plan_for(
        &router,
        &Target::Model("other".to_owned()),
        &ada(),
        false,
        due,
    );
    assert!(nowhere.steps.is_empty());
}

#[test]
fn who_is_heard_again_is_probed_at_once_however_many_others_there_are() {
    let now = start();
    let mut router = large(&["u"], now);
    trip(&mut router, "u", Fast, now);
    let soon = now + Duration::from_secs(1);
    router.node_heard_again(&backend("u", Fast).node, soon);
    let route = plan(&router, &Target::Tier(Fast), soon);
    assert_eq!(route.steps[0].backend, backend("u", Fast));
}

#[test]
fn another_model_in_a_tier_holds_nothing_of_what_the_last_one_read() {
    let now = start();
    let mut told = tier(Fast);
    told.prefixes = vec!["00000000000000ff".to_owned(), "nonsense".to_owned()];
    let mut router = router(vec![report("a", 1, vec![told.clone()])], now);
    let here = backend("a", Fast);
    assert_eq!(router.warmth().len_of(&here), 1);
    assert_eq!(router.prefixes().into_values().sum::<usize>(), 1);
    router
        .report("a", report("a", 2, vec![told.clone()]), now)
        .expect("a good report");
    assert_eq!(router.warmth().len_of(&here), 1);
    told.prefixes.clear();
    told.model.as_mut().expect("a model").id = "another".to_owned();
    router
        .report("a", report("a", 3, vec![told]), now)
        .expect("a good report");
    assert_eq!(router.warmth().len_of(&here), 0);
}

#[test]
fn who_was_never_seen_to_read_is_believed_as_fast_as_its_twin() {
    let now = start();
    let mut unseen = tier(Fast);
    unseen.prompt_tokens_per_second = 0.0;
    unseen.tokens_per_second = 0.0;
    let mut seen = busy(tier(Fast), 1, 0);
    seen.prompt_tokens_per_second = 20_000.0;
    seen.tokens_per_second = 4_000.0;
    let router = router(
        vec![
            report("seen", 1, vec![seen]),
            report("unseen", 1, vec![unseen]),
        ],
        now,
    );
    let principal = ada();
    let target = Target::Tier(Fast);
    let ask = Ask {
        target: &target,
        principal: &principal,
        needs: Needs::default(),
        fallback: false,
        past_queues: false,
        past_waits: false,
        local_only: false,
        patience: Duration::from_mins(1),
        prompt: Prompt {
            chain: &[],
            tokens: 4_000,
            spread: 0,
        },
    };
    let route = router.plan(&ask, now);
    assert_eq!(steps(&route), ["node_unseen/fast", "node_seen/fast"]);
    assert_eq!(route.steps[0].predicted.prefill, Duration::from_millis(200));
}
