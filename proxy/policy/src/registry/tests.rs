use std::time::Duration;

use config::tier::Tier::{self, Fast, Heavy, Primary};
use config::wire::node::TierState;
use config::wire::wake::WakeReport;

use super::{Change, ListedKind, ListedState, Registry, ReportRefusal};
use crate::testing::{backend, node_id, report, start, tier};

const SILENT: Duration = Duration::from_secs(15);

fn registry() -> Registry {
    Registry::new(SILENT, 3)
}

fn auto() -> Vec<String> {
    vec!["auto".to_owned()]
}

#[test]
fn a_report_is_taken_once_and_only_if_newer() {
    let now = start();
    let mut all = registry();
    let first = all.report("den", report("a", 5, vec![tier(Fast)]), now);
    assert_eq!(
        first,
        Ok(vec![
            Change::NodeUp(node_id("a")),
            Change::Backend {
                backend: backend("a", Fast),
                from: None,
                to: Some(TierState::Ready),
            },
        ])
    );
    for seq in [5, 4] {
        let stale = all.report("den", report("a", seq, Vec::new()), now);
        assert_eq!(stale, Err(ReportRefusal::Stale), "seq {seq}");
    }
    assert!(all.has_tier(Fast), "a stale report changes nothing");
    assert_eq!(
        all.report("den", report("a", 6, vec![tier(Fast)]), now),
        Ok(Vec::new())
    );
}

#[test]
fn after_a_restart_the_count_begins_again() {
    let now = start();
    let mut all = registry();
    assert!(
        all.report("den", report("a", 900, vec![tier(Fast)]), now)
            .is_ok()
    );
    assert!(all.forget(&node_id("a")));
    assert!(!all.forget(&node_id("a")));
    assert!(
        all.report("den", report("a", 1, vec![tier(Fast)]), now)
            .is_ok()
    );
}

#[test]
fn what_changed_is_told() {
    let now = start();
    let mut all = registry();
    assert!(
        all.report("den", report("a", 1, vec![tier(Fast), tier(Heavy)]), now)
            .is_ok()
    );
    let mut down = tier(Fast);
    down.state = TierState::Down;
    let mut second = report("a", 2, vec![down]);
    second.draining = true;
    let ready = Some(TierState::Ready);
    assert_eq!(
        all.report("den", second, now),
        Ok(vec![
            Change::Draining(node_id("a"), true),
            Change::Backend {
                backend: backend("a", Fast),
                from: ready,
                to: Some(TierState::Down),
            },
            Change::Backend {
                backend: backend("a", Heavy),
                from: ready,
                to: None,
            },
        ])
    );
}

#[test]
fn a_silent_node_is_out_after_fifteen_seconds() {
    let now = start();
    let mut all = registry();
    assert_eq!(all.poll_timeout(), None);
    assert!(
        all.report("den", report("a", 1, vec![tier(Fast)]), now)
            .is_ok()
    );
    assert!(
        all.report(
            "loft",
            report("b", 1, vec![tier(Fast)]),
            now + Duration::from_secs(5)
        )
        .is_ok()
    );
    assert_eq!(all.poll_timeout(), Some(now + SILENT));
    assert!(all.expire(now + Duration::from_millis(14_999)).is_empty());
    assert_eq!(all.expire(now + SILENT), [node_id("a")]);
    assert_eq!(all.nodes().count(), 1);
    assert_eq!(all.tier_of_model("tiny-fast"), Some(Fast));
    assert_eq!(all.expire(now + SILENT * 2), [node_id("b")]);
    assert_eq!(
        all.tier_of_model("tiny-fast"),
        Some(Fast),
        "away is not unknown"
    );
    assert_eq!(all.tier_of_model("other"), None);
}

#[test]
fn nonsense_is_refused_and_changes_nothing() {
    let now = start();
    let bad = |change: fn(&mut config::wire::node::Report)| {
        let mut all = registry();
        let mut bad = report("a", 1, vec![tier(Fast), tier(Heavy)]);
        change(&mut bad);
        let refusal = all.report("den", bad, now).expect_err("nonsense");
        assert_eq!(all.nodes().count(), 0);
        refusal
    };
    assert_eq!(bad(|report| report.version = 2), ReportRefusal::Version);
    let malformed = |refusal| matches!(refusal, ReportRefusal::Malformed(_));
    assert!(malformed(bad(|report| report.tiers[1].tier = Fast)));
    assert!(malformed(bad(|report| report.tiers[0].model = None)));
    assert!(malformed(bad(|report| report.tiers[0].slots = 0)));
    assert!(malformed(bad(
        |report| report.tiers[0].tokens_per_second = -1.0
    )));
    assert!(malformed(bad(
        |report| report.tiers[0].tokens_per_second = f64::NAN
    )));
    for id in ["", "a\nb", &"x".repeat(257)] {
        let mut all = registry();
        let mut bad = report("a", 1, vec![tier(Fast)]);
        if let Some(model) = &mut bad.tiers[0].model {
            id.clone_into(&mut model.id);
        }
        assert!(all.report("den", bad, now).is_err(), "{id:?}");
    }
}

#[test]
fn there_is_room_for_so_many_nodes_and_no_more() {
    let now = start();
    let mut all = registry();
    for name in ["a", "b", "c"] {
        assert!(all.report(name, report(name, 1, Vec::new()), now).is_ok());
    }
    let fourth = all.report("d", report("d", 1, Vec::new()), now);
    assert_eq!(fourth, Err(ReportRefusal::TooManyNodes));
    assert!(
        all.report("a", report("a", 2, Vec::new()), now).is_ok(),
        "known ones go on"
    );
}

#[test]
fn the_list_names_auto_the_tiers_and_the_models_once_each() {
    let now = start();
    let mut all = registry();
    let mut big = tier(Heavy);
    big.state = TierState::Loading;
    let mut small = tier(Fast);
    if let Some(model) = &mut small.model {
        model.n_ctx = 1_024;
    }
    assert!(
        all.report("den", report("a", 1, vec![tier(Fast), big]), now)
            .is_ok()
    );
    assert!(
        all.report("loft", report("b", 1, vec![small, tier(Primary)]), now)
            .is_ok()
    );
    let listed = all.list(&auto());
    let ids: Vec<&str> = listed.iter().map(|one| one.id.as_str()).collect();
    assert_eq!(
        ids,
        [
            "auto",
            "fast",
            "primary",
            "heavy",
            "tiny-fast",
            "tiny-heavy",
            "tiny-primary"
        ]
    );
    let fast = &listed[1];
    assert_eq!(
        (fast.kind, fast.state),
        (ListedKind::Tier, ListedState::Ready)
    );
    assert_eq!(fast.n_ctx, Some(1_024), "what fits everywhere");
    assert_eq!(fast.nodes, ["den", "loft"]);
    assert_eq!(listed[3].state, ListedState::Loading);
    assert_eq!(listed[0].tier, None::<Tier>);
}

#[test]
fn an_empty_house_lists_auto_alone() {
    let listed = registry().list(&auto());
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].state, ListedState::Unavailable);
}

#[test]
fn a_model_answers_to_its_other_names_and_is_listed_under_each() {
    let mut all = Registry::new(SILENT, 4);
    let now = start();
    let mut fast = tier(Fast);
    if let Some(model) = &mut fast.model {
        model.aliases = vec!["gemma4:e2b".to_owned(), "gemma4:26b-moe".to_owned()];
    }
    all.report("den", report("a", 1, vec![fast]), now)
        .expect("makes sense");
    for name in ["tiny-fast", "gemma4:e2b", "gemma4:26b-moe"] {
        assert_eq!(all.tier_of_model(name), Some(Fast), "{name}");
        assert!(all.backends().any(|backend| backend.answers_to(name)));
    }
    assert_eq!(all.tier_of_model("gemma4:31b"), None);
    let listed = all.list(&["auto".to_owned()]);
    let ids: Vec<&str> = listed.iter().map(|one| one.id.as_str()).collect();
    assert_eq!(
        ids,
        ["auto", "fast", "gemma4:26b-moe", "gemma4:e2b", "tiny-fast"]
    );
    all.expire(now + SILENT);
    assert_eq!(
        all.tier_of_model("gemma4:e2b"),
        Some(Fast),
        "away is not unknown"
    );

    let mut bad = tier(Fast);
    if let Some(model) = &mut bad.model {
        model.aliases = vec![String::new()];
    }
    assert!(all.report("den", report("b", 1, vec![bad]), now).is_err());
}

/// A report of a node that can be woken within 20 s.
fn sleeper(name: &str, seq: u64) -> config::wire::node::Report {
    let mut report = report(name, seq, vec![tier(Fast), tier(Heavy)]);
    report.wake = Some(WakeReport {
        macs: vec!["3c:7c:3f:12:34:56".parse().expect("a card")],
        takes_secs: 20,
        ..WakeReport::default()
    });
    report
}

#[test]
fn a_node_that_can_be_woken_sleeps_instead_of_leaving() {
    let now = start();
    let mut all = registry();
    all.report("den", sleeper("a", 1), now)
        .expect("makes sense");
    all.report("attic", report("b", 1, vec![tier(Primary)]), now)
        .expect("makes sense");
    let night = now + SILENT;
    assert_eq!(all.expire(night), [node_id("a"), node_id("b")]);
    assert!(all.node(&node_id("b")).is_none(), "nothing wakes it");
    let node = all.node(&node_id("a")).expect("it is only asleep");
    assert_eq!(node.asleep.map(|asleep| asleep.since), Some(night));
    assert!(!all.is_silent(node, night + SILENT * 100));
    assert!(all.expire(night + SILENT * 100).is_empty(), "said once");
    let backend = all.backend(&backend("a", Heavy)).expect("cold, not down");
    assert_eq!(
        (backend.tier.state, backend.tier.wakes_in_ms),
        (TierState::Sleeping, 20_000)
    );
    let listed = all.list(&auto());
    let heavy = listed.iter().find(|one| one.id == "heavy");
    assert_eq!(heavy.map(|one| one.state), Some(ListedState::Sleeping));

    all.report("den", sleeper("a", 2), night + SILENT)
        .expect("it woke up and speaks for itself");
    let node = all.node(&node_id("a")).expect("it is here");
    assert_eq!(node.asleep, None);
    assert!(node.tiers.iter().all(|tier| tier.state == TierState::Ready));
}

#[test]
fn a_machine_that_falls_asleep_at_work_sleeps_as_one_that_was_idle() {
    let now = start();
    let mut all = registry();
    for (name, wakes) in [("a", true), ("b", false)] {
        let mut report = sleeper(name, 1);
        report.wake = report.wake.filter(|_| wakes);
        report.tiers[0].slots_busy = 1;
        all.report(name, report, now).expect("makes sense");
    }
    for name in ["a", "b"] {
        all.lose(&node_id(name), now + SILENT / 3);
    }
    let node = all.node(&node_id("a")).expect("it is only asleep");
    let asleep = node.asleep.map(|asleep| asleep.since);
    assert_eq!(asleep, Some(now + SILENT / 3));
    assert_eq!(node.tiers[0].slots_busy, 0);
    assert!(all.node(&node_id("b")).is_none(), "nothing wakes it");
    all.lose(&node_id("a"), now + SILENT);
    let node = all.node(&node_id("a")).expect("it is only asleep");
    assert_eq!(node.asleep.map(|one| one.since), asleep, "said once");
}

#[test]
fn what_an_administrator_drained_stays_so_while_it_sleeps() {
    let now = start();
    let mut all = registry();
    let drained = |all: &Registry| all.node(&node_id("a")).map(|node| node.draining);
    let mut going = sleeper("a", 1);
    going.draining = true;
    all.report("a", going, now).expect("makes sense");
    all.lose(&node_id("a"), now);
    assert_eq!(drained(&all), Some(false), "it was about to go, and went");

    all.report("a", sleeper("a", 2), now).expect("makes sense");
    assert!(all.hold(&node_id("a"), true) && !all.hold(&node_id("a"), true));
    all.expire(now + SILENT);
    assert_eq!(drained(&all), Some(true), "nobody wakes it");
    assert!(all.hold(&node_id("a"), false));
    assert_eq!(drained(&all), Some(false), "it does not report, so at once");
    all.hold(&node_id("a"), true);
    assert_eq!(drained(&all), Some(true));
    all.report("a", sleeper("a", 3), now + SILENT)
        .expect("makes sense");
    assert_eq!(drained(&all), Some(true), "awake, it gets no work either");

    all.hold(&node_id("later"), true);
    assert!(all.recall("later", sleeper("later", 9), now));
    let later = all.node(&node_id("later")).map(|node| node.draining);
    assert_eq!(later, Some(true));
}

#[test]
fn a_node_that_does_not_wake_up_is_down_for_a_while() {
    let now = start();
    let mut all = registry();
    all.report("den", sleeper("a", 1), now)
        .expect("makes sense");
    all.expire(now + SILENT);
    let until = now + SILENT * 10;
    all.overslept(&node_id("a"), until);
    let state = |all: &Registry| all.backend(&backend("a", Fast)).map(|one| one.tier.state);
    assert_eq!(state(&all), Some(TierState::Down));
    assert_eq!(all.poll_timeout(), Some(until));
    all.expire(
        until
            .checked_sub(Duration::from_millis(1))
            .expect("later than the start"),
    );
    assert_eq!(state(&all), Some(TierState::Down));
    all.expire(until);
    assert_eq!(state(&all), Some(TierState::Sleeping));
}

#[test]
fn what_slept_before_a_restart_is_recalled_until_it_speaks() {
    let now = start();
    let mut all = registry();
    assert!(all.recall("den", sleeper("a", 9), now));
    assert!(!all.recall("den", sleeper("a", 9), now), "known already");
    assert!(
        !all.recall("b", report("b", 9, vec![tier(Fast)]), now),
        "nothing wakes it"
    );
    assert_eq!(all.tier_of_model("tiny-heavy"), Some(Heavy));
    all.report("den", sleeper("a", 1), now)
        .expect("its own first report is newer than a memory");
}

#[test]
fn a_server_outside_is_foreign_and_at_home_only_if_the_settings_say_so() {
    let now = start();
    let mut all = registry();
    all.place_outside(node_id("cloud"), false);
    all.place_outside(node_id("cellar"), true);
    for name in ["cloud", "cellar", "own"] {
        all.report(name, report(name, 1, vec![tier(Heavy)]), now)
            .expect("makes sense");
    }
    let of = |name: &str| {
        let node = all.node(&node_id(name)).expect("reported");
        (node.foreign, node.local)
    };
    assert_eq!(of("cloud"), (true, false));
    assert_eq!(of("cellar"), (true, true));
    assert_eq!(of("own"), (false, true));
    let mut leaking = tier(Fast);
    leaking.elsewhere = true;
    all.report("own", report("own", 2, vec![leaking]), now)
        .expect("makes sense");
    let backend = all.backend(&backend("own", Fast)).expect("reported");
    assert!(
        !backend.is_local(),
        "our node, but another server behind it"
    );
}
