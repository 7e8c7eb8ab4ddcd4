mod shared;

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Breaker, Pass, Phase, Rules, Signal};
use crate::testing::start;

const RULES: Rules = Rules {
    failures: 3,
    window: Duration::from_secs(30),
    open: Duration::from_secs(30),
    probe: Duration::from_mins(1),
};

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn fail(breaker: &mut Breaker, now: Instant) {
    let pass = breaker.admit(now).expect("the breaker lets it through");
    breaker.record(pass, Signal::Failure, (now, 0));
}

fn tripped(at: Instant) -> Breaker {
    let mut breaker = Breaker::new(RULES);
    for _ in 0..3 {
        fail(&mut breaker, at);
    }
    breaker
}

#[test]
fn three_failures_within_thirty_seconds_open_for_thirty() {
    let at = start();
    let mut breaker = Breaker::new(RULES);
    fail(&mut breaker, at);
    fail(&mut breaker, at + secs(15));
    assert_eq!(breaker.phase(at + secs(29)), Phase::Closed);
    fail(&mut breaker, at + secs(29));
    let until = at + secs(59);
    assert_eq!(breaker.phase(at + secs(29)), Phase::Open { until });
    assert!(
        breaker
            .admit(until.checked_sub(Duration::from_nanos(1)).unwrap())
            .is_none()
    );
    assert_eq!(breaker.phase(until), Phase::ProbeDue);
}

#[test]
fn failures_spread_wider_than_the_window_do_not_add_up() {
    let at = start();
    let mut breaker = Breaker::new(RULES);
    for n in 0..20 {
        fail(&mut breaker, at + secs(15 * n));
        assert_eq!(
            breaker.phase(at + secs(15 * n)),
            Phase::Closed,
            "failure {n}"
        );
    }
}

#[test]
fn success_between_failures_does_not_wipe_the_window() {
    let at = start();
    let mut breaker = Breaker::new(RULES);
    for n in 0..3 {
        let pass = breaker.admit(at).expect("closed");
        breaker.record(pass, Signal::Success, (at + secs(n), 0));
        fail(&mut breaker, at + secs(n));
    }
    assert!(
        matches!(breaker.phase(at + secs(2)), Phase::Open { .. }),
        "windowed, not consecutive"
    );
}

#[test]
fn exactly_one_probe_goes_and_its_success_closes() {
    let at = start();
    let mut breaker = tripped(at);
    let due = at + secs(30);
    let probe = breaker.admit(due).expect("the probe");
    assert!(probe.is_probe());
    assert!(breaker.admit(due).is_none(), "no second probe");
    assert!(
        breaker.admit(due + secs(59)).is_none(),
        "however long it takes"
    );
    breaker.record(probe, Signal::Success, (due + secs(59), 0));
    assert_eq!(breaker.phase(due + secs(59)), Phase::Closed);
    fail(&mut breaker, due + secs(59));
    assert_eq!(
        breaker.phase(due + secs(59)),
        Phase::Closed,
        "old failures are forgotten"
    );
}

#[test]
fn a_failed_probe_restarts_the_timer() {
    let at = start();
    let mut breaker = tripped(at);
    let due = at + secs(40);
    let probe = breaker.admit(due).expect("the probe");
    breaker.record(probe, Signal::Failure, (due + secs(5), 0));
    let until = due + secs(35);
    assert_eq!(breaker.phase(due + secs(5)), Phase::Open { until });
}

#[test]
fn a_probe_that_proves_nothing_hands_over_to_the_next_caller() {
    let at = start();
    let mut breaker = tripped(at);
    let due = at + secs(30);
    let probe = breaker.admit(due).expect("the probe");
    breaker.record(probe, Signal::Neutral, (due + secs(1), 0));
    let next = breaker
        .admit(due + secs(1))
        .expect("the next probe at once");
    assert!(next.is_probe());
    assert!(breaker.admit(due + secs(1)).is_none(), "one at a time");
}

#[test]
fn a_lost_probe_times_out_and_its_late_result_is_ignored() {
    let at = start();
    let mut breaker = tripped(at);
    let due = at + secs(30);
    let lost = breaker.admit(due).expect("the probe");
    let again = due + secs(60);
    let second = breaker.admit(again).expect("a new probe");
    assert!(second.is_probe());
    breaker.record(lost, Signal::Success, (again, 0));
    assert!(
        matches!(breaker.phase(again), Phase::Probing { .. }),
        "only the new probe decides"
    );
    breaker.record(second, Signal::Success, (again, 0));
    assert_eq!(breaker.phase(again), Phase::Closed);
}

#[test]
fn the_callers_errors_never_count() {
    let at = start();
    let mut breaker = Breaker::new(RULES);
    for _ in 0..100 {
        let pass = breaker.admit(at).expect("closed");
        breaker.record(pass, Signal::Neutral, (at, 0));
    }
    assert_eq!(breaker.phase(at), Phase::Closed);
}

#[test]
fn results_from_before_the_trip_say_nothing_about_now() {
    let at = start();
    let mut breaker = Breaker::new(RULES);
    let slow: Vec<Pass> = (0..2).filter_map(|_| breaker.admit(at)).collect();
    for _ in 0..3 {
        fail(&mut breaker, at);
    }
    let due = at + secs(30);
    let probe = breaker.admit(due).expect("the probe");
    for (pass, signal) in slow.into_iter().zip([Signal::Success, Signal::Failure]) {
        breaker.record(pass, signal, (due, 0));
        assert!(
            matches!(breaker.phase(due), Phase::Probing { .. }),
            "{signal:?}"
        );
    }
    breaker.record(probe, Signal::Success, (due, 0));
    assert_eq!(breaker.phase(due), Phase::Closed);
}

#[test]
fn a_restart_lets_one_probe_go_at_once() {
    let at = start();
    let mut breaker = tripped(at);
    breaker.restarted(at + secs(1));
    let probe = breaker.admit(at + secs(1)).expect("a probe");
    assert!(probe.is_probe());
    assert!(breaker.admit(at + secs(1)).is_none());
}

#[test]
fn the_first_content_of_a_probe_closes_and_what_follows_counts_as_usual() {
    let at = start();
    let mut breaker = tripped(at);
    let due = at + secs(30);
    let mut probe = breaker.admit(due).expect("the probe");
    let news = breaker.prove(&mut probe, (due, 7)).expect("it is news");
    assert_eq!((news.open, breaker.phase(due)), (None, Phase::Closed));
    for _ in 0..2 {
        fail(&mut breaker, due);
    }
    let opened = breaker.record(probe, Signal::Failure, (due, 7));
    assert!(
        opened.is_some_and(|news| news.open == Some(secs(30))),
        "the third failure"
    );
}

#[test]
fn whoever_finds_that_another_proxy_probes_asks_again_soon() {
    let at = start();
    let mut breaker = tripped(at);
    let due = at + secs(30);
    let probe = breaker.admit(due).expect("the probe");
    breaker.stand_back(probe, secs(1), due);
    assert!(breaker.admit(due).is_none());
    assert!(breaker.admit(due + secs(1)).is_some_and(Pass::is_probe));
    breaker.record(probe, Signal::Success, (due + secs(1), 0));
    assert!(breaker.admit(due + secs(1)).is_none(), "its pass is void");
}

#[test]
fn news_is_believed_once_and_never_when_it_is_old() {
    let at = start();
    let (mut one, mut other) = (Breaker::new(RULES), Breaker::new(RULES));
    let opened = (0..3)
        .find_map(|_| {
            let pass = one.admit(at)?;
            one.record(pass, Signal::Failure, (at, 1_000))
        })
        .expect("it opens");
    assert!(other.hear(opened, at + secs(2)));
    assert!(!other.hear(opened, at + secs(9)), "it is known");
    assert_eq!(
        other.phase(at + secs(2)),
        Phase::Open {
            until: at + secs(32)
        }
    );
    let probe = other.admit(at + secs(32)).expect("the probe");
    let closed = other
        .record(probe, Signal::Success, (at + secs(33), 1_000))
        .expect("news");
    assert!(one.hear(closed, at + secs(33)));
    assert!(
        !one.hear(opened, at + secs(34)),
        "what comes late changes nothing"
    );
    assert_eq!(one.phase(at + secs(34)), Phase::Closed);
    assert_eq!(one.news(at + secs(34)), None);
}

/// The reference: the rules again in the fewest words, over whole seconds and a list of failures.
#[derive(Default)]
struct Model {
    failed_at: Vec<u64>,
    open_until: Option<u64>,
    probe_since: Option<u64>,
}

impl Model {
    fn admit(&mut self, now: u64) -> Option<bool> {
        let Some(until) = self.open_until else {
            return Some(false);
        };
        let waiting = self.probe_since.is_some_and(|since| now < since + 60);
        if now < until || waiting {
            return None;
        }
        self.probe_since = Some(now);
        Some(true)
    }

    fn record(&mut self, probe: bool, signal: Signal, now: u64) {
        match (probe, signal) {
            (true, Signal::Success) => *self = Self::default(),
            (true, Signal::Failure) => (self.open_until, self.probe_since) = (Some(now + 30), None),
            (true, Signal::Neutral) => (self.open_until, self.probe_since) = (Some(now), None),
            (false, Signal::Failure) => {
                self.failed_at.push(now);
                if self.failed_at.iter().filter(|at| now - **at < 30).count() >= 3 {
                    *self = Self {
                        open_until: Some(now + 30),
                        ..Self::default()
                    };
                }
            }
            (false, Signal::Success | Signal::Neutral) => {}
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Begin,
    /// Ends the pass with this number, counted from the oldest, as it says.
    End(usize, Signal),
    Wait(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let signal = prop_oneof![
        3 => Just(Signal::Failure),
        2 => Just(Signal::Success),
        1 => Just(Signal::Neutral),
    ];
    let event = prop_oneof![
        4 => Just(Event::Begin),
        4 => (0_usize..4, signal).prop_map(|(pass, signal)| Event::End(pass, signal)),
        2 => (0_u64..40).prop_map(Event::Wait),
    ];
    proptest::collection::vec(event, 1..300)
}

proptest! {
    #[test]
    fn behaves_as_the_reference(events in events()) {
        let base = start();
        let (mut breaker, mut model) = (Breaker::new(RULES), Model::default());
        let mut passes: Vec<Pass> = Vec::new();
        let mut now = 0;
        for event in events {
            let at = base + secs(now);
            match event {
                Event::Wait(seconds) => now += seconds,
                Event::Begin => {
                    let pass = breaker.admit(at);
                    prop_assert_eq!(pass.map(Pass::is_probe), model.admit(now));
                    passes.extend(pass);
                }
                Event::End(index, signal) if index < passes.len() => {
                    let pass = passes.remove(index);
                    // The reference knows no epochs: it hears only what still counts.
                    if pass.epoch == breaker.epoch {
                        model.record(pass.is_probe(), signal, now);
                    }
                    breaker.record(pass, signal, (at, 0));
                }
                Event::End(..) => {}
            }
        }
    }

    #[test]
    fn no_two_probes_run_at_once(events in events()) {
        let base = start();
        let mut breaker = Breaker::new(RULES);
        let mut passes: Vec<(Pass, u64)> = Vec::new();
        let mut now = 0;
        for event in events {
            let at = base + secs(now);
            match event {
                Event::Wait(seconds) => now += seconds,
                Event::Begin => passes.extend(breaker.admit(at).map(|pass| (pass, now))),
                Event::End(index, signal) if index < passes.len() => {
                    let (pass, _) = passes.remove(index);
                    breaker.record(pass, signal, (at, 0));
                }
                Event::End(..) => {}
            }
            let live = passes.iter().filter(|(pass, since)| pass.is_probe() && now < since + 60);
            prop_assert!(live.count() <= 1);
        }
    }
}
