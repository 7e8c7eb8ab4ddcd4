use std::time::{Duration, Instant};

use config::ids::UserId;
use config::settings::proxy::Plan;
use config::tier::Tier::{self, Fast, Heavy, Primary};
use config::wire::node::{Report, TierReport, TierState};

use super::{Outcome, Router, Ticket, Wish, distance};
use crate::breaker::Phase;
use crate::classify::{Category, Reason, Verdict};
use crate::identity::Principal;
use crate::refusal::Refusal;
use crate::route::warm::Prompt;
use crate::route::{Ask, Needs, Route, SkipReason, Target};
use crate::testing::{backend, node_id, report, routing, start, tier};

const SILENT: Duration = Duration::from_secs(15);

fn ada() -> Principal {
    Principal::person(UserId::new("ada"), Plan::default())
}

fn router(reports: Vec<Report>, now: Instant) -> Router {
    let mut router = Router::new(&routing(), SILENT, 100);
    for report in reports {
        let name = format!("name of {}", report.node_id);
        router.report(&name, report, now).expect("a good report");
    }
    router
}

fn plan(router: &Router, target: &Target, now: Instant) -> Route {
    plan_for(router, target, &ada(), true, now)
}

fn plan_for(
    router: &Router,
    target: &Target,
    principal: &Principal,
    fallback: bool,
    now: Instant,
) -> Route {
    let ask = Ask {
        target,
        principal,
        needs: Needs::default(),
        fallback,
        past_queues: false,
        past_waits: false,
        local_only: false,
        patience: Duration::from_mins(1),
        prompt: Prompt::default(),
    };
    router.plan(&ask, now)
}

fn auto(tier: Tier) -> Target {
    Target::Auto(Verdict {
        tier,
        category: Category::Code,
        score: 0.5,
        reasons: ["code", "length"]
            .map(|rule| Reason { rule, weight: 0.1 })
            .to_vec(),
    })
}

fn steps(route: &Route) -> Vec<String> {
    route
        .steps
        .iter()
        .map(|step| step.backend.to_string())
        .collect()
}

fn busy(mut report: TierReport, slots_busy: u32, queue_depth: u32) -> TierReport {
    report.slots_busy = slots_busy;
    report.queue_depth = queue_depth;
    report
}

fn fail(router: &mut Router, name: &str, tier: Tier, now: Instant) {
    let ticket = router.begin(&backend(name, tier), now).expect("a pass");
    router.settle(ticket, Outcome::ServerFault, now);
}

fn trip(router: &mut Router, name: &str, tier: Tier, now: Instant) {
    for _ in 0..3 {
        fail(router, name, tier, now);
    }
}

#[test]
fn a_tier_falls_back_downward_and_says_so() {
    let now = start();
    let all = vec![tier(Fast), tier(Primary), tier(Heavy)];
    let router = router(vec![report("a", 1, all)], now);
    let heavy = plan(&router, &Target::Tier(Heavy), now);
    assert_eq!(
        steps(&heavy),
        ["node_a/heavy", "node_a/primary", "node_a/fast"]
    );
    assert_eq!(heavy.reason, "requested");
    assert_eq!(heavy.detour(&heavy.steps[0]), None);
    assert_eq!(
        heavy.detour(&heavy.steps[1]),
        Some("heavy->primary".to_owned())
    );
    assert_eq!(heavy.steps[0].node_name, "name of node_a");
    let fast = plan(&router, &auto(Fast), now);
    assert_eq!(
        steps(&fast),
        ["node_a/fast"],
        "never upward while the tier exists"
    );
    assert_eq!(fast.reason, "code,length");
}

#[test]
fn without_fallback_only_the_wanted_tier_answers() {
    let now = start();
    let router = router(vec![report("a", 1, vec![tier(Fast), tier(Heavy)])], now);
    let heavy = plan_for(&router, &Target::Tier(Heavy), &ada(), false, now);
    assert_eq!(steps(&heavy), ["node_a/heavy"]);
    let primary = plan_for(&router, &Target::Tier(Primary), &ada(), false, now);
    assert_eq!(steps(&primary), [""; 0]);
    let guess = plan_for(&router, &auto(Primary), &ada(), false, now);
    assert_eq!(
        steps(&guess),
        ["node_a/fast"],
        "nobody asked for primary by name"
    );
}

#[test]
fn a_tier_that_exists_nowhere_gives_way_to_the_nearest() {
    let now = start();
    let two = router(vec![report("a", 1, vec![tier(Primary), tier(Heavy)])], now);
    let route = plan(&two, &auto(Fast), now);
    assert_eq!(steps(&route), ["node_a/primary", "node_a/heavy"]);
    assert_eq!(
        route.reason,
        "code,length; no fast tier, nearest is primary"
    );
    assert_eq!(
        route.detour(&route.steps[0]),
        Some("fast->primary".to_owned())
    );
    let ends = router(vec![report("a", 1, vec![tier(Fast), tier(Heavy)])], now);
    let route = plan(&ends, &Target::Tier(Primary), now);
    assert_eq!(
        steps(&route),
        ["node_a/fast", "node_a/heavy"],
        "of two equally near the cheaper first"
    );
}

#[test]
fn a_tier_that_is_only_down_is_not_replaced_by_a_stronger_one() {
    let now = start();
    let mut down = tier(Fast);
    down.state = TierState::Down;
    let router = router(vec![report("a", 1, vec![down, tier(Heavy)])], now);
    let route = plan(&router, &auto(Fast), now);
    assert_eq!(steps(&route), [""; 0]);
    assert_eq!(route.skipped, [(backend("a", Fast), SkipReason::Down)]);
    assert_eq!(route.refusal().label(), "no_tier_available");
}

#[test]
fn within_a_tier_the_shortest_wait_goes_first() {
    let now = start();
    let mut quick = busy(tier(Primary), 4, 4);
    quick.tokens_per_second = 400.0;
    let reports = vec![
        report("queue", 1, vec![busy(tier(Primary), 4, 4)]),
        report("quick", 1, vec![quick]),
        report("half", 1, vec![busy(tier(Primary), 2, 0)]),
        report("idle", 1, vec![tier(Primary)]),
    ];
    let router = router(reports, now);
    let route = plan(&router, &Target::Tier(Primary), now);
    assert_eq!(
        steps(&route),
        [
            "node_idle/primary",
            "node_half/primary",
            "node_quick/primary",
            "node_queue/primary"
        ]
    );
    assert_eq!(route.steps[0].wait, Duration::ZERO);
    assert!(route.steps[2].wait < route.steps[3].wait);
}

#[test]
fn attempts_under_way_count_before_the_next_report_does() {
    let now = start();
    let reports = vec![
        report("a", 1, vec![tier(Fast)]),
        report("b", 1, vec![tier(Fast)]),
    ];
    let mut router = router(reports, now);
    let first = router.begin(&backend("a", Fast), now).expect("a pass");
    assert_eq!(
        steps(&plan(&router, &Target::Tier(Fast), now)),
        ["node_b/fast", "node_a/fast"]
    );
    router.settle(first, Outcome::Ok, now);
    assert_eq!(router.in_flight(&backend("a", Fast)), 0);
    assert_eq!(
        steps(&plan(&router, &Target::Tier(Fast), now)),
        ["node_a/fast", "node_b/fast"]
    );
}

#[test]
fn full_queues_are_busy_and_not_broken() {
    let now = start();
    let router = router(vec![report("a", 1, vec![busy(tier(Fast), 4, 64)])], now);
    let route = plan(&router, &Target::Tier(Fast), now);
    let Refusal::QueueFull { retry_after } = route.refusal() else {
        panic!("{:?}", route.refusal());
    };
    assert!((1..=5).contains(&retry_after.as_secs()));
}

#[test]
fn an_explicit_model_stays_on_its_backends_unless_fallback_is_allowed() {
    let now = start();
    let mut other = tier(Heavy);
    if let Some(model) = &mut other.model {
        "other-heavy".clone_into(&mut model.id);
    }
    let reports = vec![
        report("a", 1, vec![tier(Heavy), tier(Fast)]),
        report("b", 1, vec![other, tier(Primary)]),
    ];
    let router = router(reports, now);
    let target = Target::Model("tiny-heavy".to_owned());
    let strict = plan_for(&router, &target, &ada(), false, now);
    assert_eq!(steps(&strict), ["node_a/heavy"]);
    let loose = plan(&router, &target, now);
    assert_eq!(
        steps(&loose),
        [
            "node_a/heavy",
            "node_b/heavy",
            "node_b/primary",
            "node_a/fast"
        ]
    );
    assert_eq!(loose.reason, "model");
    assert_eq!(loose.detour(&loose.steps[0]), None);
    assert_eq!(
        loose.detour(&loose.steps[1]),
        Some("tiny-heavy->other-heavy".to_owned())
    );
}

#[test]
fn closed_tiers_and_models_are_left_out_and_named() {
    let now = start();
    let all = vec![tier(Fast), tier(Primary), tier(Heavy)];
    let router = router(vec![report("a", 1, all)], now);
    let narrow = Principal {
        tiers: Some(vec![Fast]),
        ..ada()
    };
    let route = plan_for(&router, &auto(Heavy), &narrow, true, now);
    assert_eq!(steps(&route), ["node_a/fast"]);
    assert!(
        route
            .skipped
            .contains(&(backend("a", Heavy), SkipReason::NotAllowed))
    );
    assert!(
        route.reason.ends_with("no heavy tier, nearest is fast"),
        "{}",
        route.reason
    );
    let by_model = Principal {
        models: Some(vec!["tiny-primary".to_owned()]),
        ..ada()
    };
    for guessed in [Fast, Primary, Heavy] {
        let route = plan_for(&router, &auto(guessed), &by_model, true, now);
        assert_eq!(
            steps(&route),
            ["node_a/primary"],
            "{guessed}: what is closed does not exist, whichever way it lies"
        );
    }
}

#[test]
fn pictures_go_to_models_that_see() {
    let now = start();
    let mut seeing = tier(Primary);
    if let Some(model) = &mut seeing.model {
        model.modalities = vec!["image".to_owned()];
    }
    let blind = router(vec![report("a", 1, vec![tier(Fast)])], now);
    let seeing = router(vec![report("a", 1, vec![tier(Fast), seeing])], now);
    let needs = Needs {
        image: true,
        ..Needs::default()
    };
    let target = auto(Fast);
    let principal = ada();
    let ask = Ask {
        target: &target,
        principal: &principal,
        needs,
        fallback: true,
        past_queues: false,
        past_waits: false,
        local_only: false,
        patience: Duration::from_mins(1),
        prompt: Prompt::default(),
    };
    assert_eq!(steps(&seeing.plan(&ask, now)), ["node_a/primary"]);
    let refusal = blind.plan(&ask, now).refusal();
    assert_eq!(
        refusal.label(),
        "bad_request",
        "an outage would be the wrong word: {refusal}"
    );
}

/// A router with a heavy tier far away and a primary tier at home.
fn half_outside(now: Instant) -> Router {
    let mut router = Router::new(&routing(), SILENT, 100);
    router.place_outside(node_id("cloud"), false);
    for (name, tiers) in [("cloud", vec![tier(Heavy)]), ("home", vec![tier(Primary)])] {
        router
            .report(name, report(name, 1, tiers), now)
            .expect("a good report");
    }
    router
}

#[test]
fn what_must_stay_at_home_sees_only_what_is_there() {
    let now = start();
    let router = half_outside(now);
    let (target, principal) = (Target::Tier(Heavy), ada());
    let ask = Ask {
        target: &target,
        principal: &principal,
        needs: Needs::default(),
        fallback: true,
        past_queues: false,
        past_waits: false,
        local_only: true,
        patience: Duration::from_mins(1),
        prompt: Prompt::default(),
    };
    let route = router.plan(&ask, now);
    assert_eq!(steps(&route), ["node_home/primary"]);
    let outside = (backend("cloud", Heavy), SkipReason::NotLocal);
    assert!(route.skipped.contains(&outside), "{route:?}");
    let alone = router.plan(
        &Ask {
            fallback: false,
            ..ask
        },
        now,
    );
    assert_eq!(steps(&alone), [""; 0]);
    let refusal = alone.refusal();
    assert_eq!(refusal.label(), "no_tier_available");
    assert!(refusal.to_string().contains("local_only"), "{refusal}");
    let free = Ask {
        local_only: false,
        ..ask
    };
    assert_eq!(
        steps(&router.plan(&free, now)),
        ["node_cloud/heavy", "node_home/primary"]
    );
}

#[test]
fn what_only_our_nodes_can_do_is_never_asked_of_others() {
    let now = start();
    let router = half_outside(now);
    let (target, principal) = (Target::Tier(Heavy), ada());
    let ask = Ask {
        target: &target,
        principal: &principal,
        needs: Needs {
            native: true,
            ..Needs::default()
        },
        fallback: true,
        past_queues: false,
        past_waits: false,
        local_only: false,
        patience: Duration::from_mins(1),
        prompt: Prompt::default(),
    };
    assert_eq!(steps(&router.plan(&ask, now)), ["node_home/primary"]);
}

#[test]
fn whoever_cannot_wait_for_a_sleeper_tries_every_warm_tier_first() {
    let now = start();
    let mut asleep = tier(Heavy);
    asleep.state = TierState::Sleeping;
    asleep.wakes_in_ms = 30_000;
    let router = router(
        vec![
            report("a", 1, vec![asleep]),
            report("b", 1, vec![tier(Primary)]),
        ],
        now,
    );
    let (target, principal) = (Target::Tier(Heavy), ada());
    let ask = |secs| Ask {
        target: &target,
        principal: &principal,
        needs: Needs::default(),
        fallback: true,
        past_queues: false,
        past_waits: false,
        local_only: false,
        patience: Duration::from_secs(secs),
        prompt: Prompt::default(),
    };
    assert_eq!(
        steps(&router.plan(&ask(10), now)),
        ["node_b/primary", "node_a/heavy"],
        "it is woken only where nothing warm answers"
    );
    assert_eq!(
        steps(&router.plan(&ask(30), now)),
        ["node_a/heavy", "node_b/primary"]
    );
}

#[test]
fn a_tier_that_is_loaded_is_waited_for_within_patience_and_its_time_runs() {
    let now = start();
    let mut loading = tier(Heavy);
    loading.state = TierState::Loading;
    loading.wakes_in_ms = 12_000;
    let mut router = router(
        vec![
            report("a", 1, vec![loading.clone()]),
            report("b", 1, vec![tier(Primary)]),
        ],
        now,
    );
    let (target, principal) = (Target::Tier(Heavy), ada());
    let ask = |secs| Ask {
        target: &target,
        principal: &principal,
        needs: Needs::default(),
        fallback: true,
        past_queues: false,
        past_waits: false,
        local_only: false,
        patience: Duration::from_secs(secs),
        prompt: Prompt::default(),
    };
    let after = |secs| now + Duration::from_secs(secs);
    assert_eq!(
        steps(&router.plan(&ask(10), now)),
        ["node_b/primary", "node_a/heavy"]
    );
    let route = router.plan(&ask(10), after(4));
    assert_eq!(steps(&route), ["node_a/heavy", "node_b/primary"]);
    assert_eq!(route.steps[0].predicted.waking, Duration::from_secs(8));
    assert!(route.steps[0].cold);

    // Its breaker saw the worker that broke: the next one is waited for, and begins with a probe.
    router.trip(&backend("a", Heavy), now);
    let route = router.plan(&ask(10), after(5));
    let ready_in = Duration::from_secs(7);
    let skipped = (backend("a", Heavy), SkipReason::Reloading { ready_in });
    assert!(route.skipped.contains(&skipped), "{route:?}");
    assert_eq!(route.ready_in(), Some(ready_in));
    assert!(route.is_worth_waiting());
    loading.state = TierState::Ready;
    let loaded = report("a", 2, vec![loading]);
    router.report("a", loaded, after(6)).expect("a good report");
    assert_eq!(
        steps(&router.plan(&ask(10), after(6))),
        ["node_a/heavy", "node_b/primary"]
    );
}

#[test]
fn a_failed_start_opens_the_breaker_without_an_attempt() {
    let now = start();
    let mut router = router(vec![report("a", 1, vec![tier(Heavy)])], now);
    let heavy = backend("a", Heavy);
    router.trip(&heavy, now);
    assert!(matches!(router.phase(&heavy, now), Phase::Open { .. }));
    assert!(router.begin(&heavy, now).is_none());
}

#[test]
fn model_and_tier_are_read_as_the_contract_says() {
    let now = start();
    let router = router(vec![report("a", 1, vec![tier(Fast), tier(Heavy)])], now);
    let wish = |model: Option<&str>, tier| router.wish(model, tier, &ada());
    assert_eq!(wish(None, None), Ok(Wish::Auto));
    assert_eq!(wish(Some(""), None), Ok(Wish::Auto));
    assert_eq!(wish(Some("auto"), None), Ok(Wish::Auto));
    assert_eq!(wish(Some("heavy"), None), Ok(Wish::Tier(Heavy)));
    assert_eq!(
        wish(Some("tiny-fast"), None),
        Ok(Wish::Model("tiny-fast".to_owned()))
    );
    assert_eq!(
        wish(Some("nonsense"), Some(Primary)),
        Ok(Wish::Tier(Primary)),
        "tier wins"
    );
    let narrow = Principal {
        tiers: Some(vec![Fast]),
        models: Some(vec!["other".to_owned()]),
        ..ada()
    };
    for model in ["heavy", "tiny-heavy", "tiny-fast"] {
        let refusal = router.wish(Some(model), None, &narrow).expect_err("closed");
        assert_eq!(refusal.label(), "model_not_allowed", "{model}");
    }
}

#[test]
fn an_unknown_model_is_answered_with_the_nearest_ids() {
    let now = start();
    let all = vec![tier(Fast), tier(Primary), tier(Heavy)];
    let known = router(vec![report("a", 1, all)], now);
    let Err(Refusal::UnknownModel { nearest, .. }) = known.wish(Some("Tiny-Fsat"), None, &ada())
    else {
        panic!("the model does not exist");
    };
    assert_eq!(nearest.first().map(String::as_str), Some("tiny-fast"));
    assert_eq!(nearest.len(), 5);
    let empty = router(Vec::new(), now);
    let refusal = empty
        .wish(Some("tiny-fast"), None, &ada())
        .expect_err("nobody knows");
    assert_eq!(
        refusal.label(),
        "no_tier_available",
        "an outage is not the caller's mistake"
    );
}

#[test]
fn a_model_that_is_away_is_unavailable_and_not_unknown() {
    let now = start();
    let reports = vec![
        report("a", 1, vec![tier(Heavy)]),
        report("b", 2, vec![tier(Fast)]),
    ];
    let mut router = router(reports, now);
    router.remove_node(&node_id("a"));
    let wish = router.wish(Some("tiny-heavy"), None, &ada());
    assert_eq!(wish, Ok(Wish::Model("tiny-heavy".to_owned())));
    let target = Target::Model("tiny-heavy".to_owned());
    let route = plan_for(&router, &target, &ada(), false, now);
    assert_eq!(route.refusal().label(), "no_tier_available");
    assert_eq!(route.wanted, Some(Heavy));
}

#[test]
fn the_list_shows_what_the_principal_may_use() {
    let now = start();
    let router = router(vec![report("a", 1, vec![tier(Fast), tier(Heavy)])], now);
    let narrow = Principal {
        tiers: Some(vec![Fast]),
        ..ada()
    };
    let ids: Vec<String> = router.list(&narrow).into_iter().map(|one| one.id).collect();
    assert_eq!(ids, ["auto", "fast", "tiny-fast"]);
}

#[test]
fn distances_are_those_of_levenshtein() {
    for (a, b, expected) in [
        ("", "", 0),
        ("abc", "", 3),
        ("kitten", "sitting", 3),
        ("Fast", "fast", 0),
    ] {
        assert_eq!(distance(a, b), expected, "{a} {b}");
    }
}

mod ahead;
mod breakers;
mod properties;
mod twins;
