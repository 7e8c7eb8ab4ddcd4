//! Who is left out for being away or broken, and how it comes back.

use super::*;

#[test]
fn draining_loading_and_silent_backends_are_skipped() {
    let now = start();
    let mut draining = report("d", 1, vec![tier(Fast)]);
    draining.draining = true;
    let mut loading = tier(Fast);
    loading.state = TierState::Loading;
    loading.model = None;
    let router = router(vec![draining, report("l", 1, vec![loading])], now);
    let reasons = |now| -> Vec<SkipReason> {
        let route = plan(&router, &Target::Tier(Fast), now);
        route
            .skipped
            .into_iter()
            .map(|(_, reason)| reason)
            .collect()
    };
    assert_eq!(reasons(now), [SkipReason::Draining, SkipReason::Loading]);
    assert_eq!(
        reasons(now + SILENT),
        [SkipReason::Silent, SkipReason::Silent]
    );
}

#[test]
fn an_open_breaker_skips_and_tells_when_it_reopens() {
    let now = start();
    let mut router = router(vec![report("a", 1, vec![tier(Heavy)])], now);
    trip(&mut router, "a", Heavy, now);
    let later = now + Duration::from_secs(10);
    let route = plan(&router, &Target::Tier(Heavy), later);
    assert_eq!(steps(&route), [""; 0]);
    assert_eq!(route.retry_after(), Duration::from_secs(20));
    assert_eq!(route.refusal().retry_after(), Some(Duration::from_secs(20)));
    assert!(router.begin(&backend("a", Heavy), later).is_none());
}

#[test]
fn a_due_probe_goes_first_and_alone() {
    let now = start();
    let reports = vec![
        report("a", 1, vec![tier(Fast)]),
        report("b", 1, vec![tier(Fast)]),
    ];
    let mut router = router(reports, now);
    trip(&mut router, "b", Fast, now);
    let due = now + Duration::from_secs(30);
    for (seq, name) in [(2, "a"), (2, "b")] {
        router
            .report(name, report(name, seq, vec![tier(Fast)]), due)
            .expect("good");
    }
    let one = plan(&router, &Target::Tier(Fast), due);
    let two = plan(&router, &Target::Tier(Fast), due);
    assert_eq!(steps(&one), ["node_b/fast", "node_a/fast"]);
    let probe = router.begin(&one.steps[0].backend, due).expect("the probe");
    assert!(probe.is_probe());
    assert!(
        router.begin(&two.steps[0].backend, due).is_none(),
        "the second plan moves on"
    );
    let next = router
        .begin(&two.steps[1].backend, due)
        .expect("the healthy one");
    router.settle(next, Outcome::Ok, due);
    router.settle(probe, Outcome::Ok, due);
    assert_eq!(router.phase(&backend("b", Fast), due), Phase::Closed);
}

#[test]
fn clients_who_leave_and_callers_errors_open_no_breaker() {
    let now = start();
    let mut router = router(vec![report("a", 1, vec![tier(Fast)])], now);
    let id = backend("a", Fast);
    for _ in 0..10 {
        let tickets: Vec<Ticket> = (0..3).filter_map(|_| router.begin(&id, now)).collect();
        let outcomes = [Outcome::CallerFault, Outcome::Overloaded];
        let mut outcomes = outcomes.into_iter();
        for ticket in tickets {
            let _news = match outcomes.next() {
                Some(outcome) => router.settle(ticket, outcome, now),
                None => router.abandon(ticket, now),
            };
        }
    }
    assert_eq!(router.phase(&id, now), Phase::Closed);
    assert_eq!(router.in_flight(&id), 0);
}

#[test]
fn a_probe_closes_its_breaker_only_by_a_whole_answer() {
    let table = [
        (Outcome::Ok, "closed"),
        (Outcome::CallerFault, "half_open"),
        (Outcome::Overloaded, "half_open"),
        (Outcome::Abandoned, "half_open"),
        (Outcome::Unavailable, "open"),
        (Outcome::ConnectFailed, "open"),
        (Outcome::ServerFault, "open"),
        (Outcome::TimedOut, "open"),
        (Outcome::Broken, "open"),
    ];
    let id = backend("a", Fast);
    for (outcome, phase) in table {
        let now = start();
        let mut router = router(vec![report("a", 1, vec![tier(Fast)])], now);
        trip(&mut router, "a", Fast, now);
        let due = now + Duration::from_secs(30);
        let probe = router.begin(&id, due).expect("the probe");
        router.settle(probe, outcome, due);
        assert_eq!(
            router.phase(&id, due).as_str(),
            phase,
            "{}",
            outcome.as_str()
        );
    }
}

#[test]
fn a_node_that_registers_anew_may_prove_itself_at_once() {
    let now = start();
    let mut router = router(vec![report("a", 7, vec![tier(Fast)])], now);
    trip(&mut router, "a", Fast, now);
    router.node_restarted(&node_id("a"), now);
    assert!(
        router.registry().nodes().next().is_none(),
        "nothing of it is believed"
    );
    router
        .report("a", report("a", 1, vec![tier(Fast)]), now)
        .expect("the count begins again");
    let probe = router.begin(&backend("a", Fast), now).expect("a probe");
    assert!(probe.is_probe());
    router.settle(probe, Outcome::Ok, now);
}

#[test]
fn a_node_that_went_silent_takes_its_quiet_breakers_along() {
    let now = start();
    let all = vec![tier(Fast), tier(Heavy)];
    let mut router = router(vec![report("a", 1, all)], now);
    fail(&mut router, "a", Fast, now);
    trip(&mut router, "a", Heavy, now);
    assert_eq!(router.poll_timeout(), Some(now + SILENT));
    assert_eq!(router.expire(now + SILENT), [node_id("a")]);
    let left: Vec<_> = router
        .phases(now + SILENT)
        .map(|(id, _)| id.clone())
        .collect();
    assert_eq!(
        left,
        [backend("a", Heavy)],
        "an open one still has something to say"
    );
    assert!(!router.remove_node(&node_id("a")));
    assert_eq!(router.phases(now).count(), 0);
}

/// Its worker was killed under three answers and is loaded again within a second.
#[test]
fn a_tier_that_was_loaded_anew_may_be_tried_at_once() {
    let now = start();
    let told = |seq, state| {
        let tier = TierReport {
            state,
            ..tier(Fast)
        };
        report("den", seq, vec![tier])
    };
    let mut router = router(vec![told(1, TierState::Ready)], now);
    let den = backend("den", Fast);
    trip(&mut router, "den", Fast, now);
    assert!(matches!(router.phase(&den, now), Phase::Open { .. }));
    for (seq, state) in [(2, TierState::Ready), (3, TierState::Loading)] {
        let taken = router.report("den", told(seq, state), now);
        taken.expect("a good report");
    }
    assert!(
        matches!(router.phase(&den, now), Phase::Open { .. }),
        "it is still not there"
    );
    router
        .report("den", told(4, TierState::Ready), now)
        .expect("a good report");
    assert_eq!(router.phase(&den, now), Phase::ProbeDue);
    let probe = router.begin(&den, now).expect("the one probe");
    assert!(probe.is_probe());
    assert!(router.begin(&den, now).is_none(), "one at a time");
    router.settle(probe, Outcome::Ok, now);
    assert_eq!(router.phase(&den, now), Phase::Closed);
}
