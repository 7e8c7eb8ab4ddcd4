//! Breakers of one backend in several proxies: news that is lost, late, repeated and in the wrong order, a store that goes away; and
//! every interleaving of threads that want the probe, by loom.

use std::collections::VecDeque;
use std::time::Instant;

use loom::sync::{Arc, Mutex};
use proptest::prelude::*;

use super::super::{Breaker, News, Pass, Phase, Signal};
use super::{RULES, secs, start};

/// The lease of the store: the reference for who may probe. Given for as long as a probe may take.
#[derive(Default)]
struct Lease {
    held: Option<(u64, u64)>,
    last: u64,
}

impl Lease {
    fn take(&mut self, now: u64) -> Option<u64> {
        if self.held.is_some_and(|(_, until)| now < until) {
            return None;
        }
        self.last += 1;
        self.held = Some((self.last, now + 60));
        Some(self.last)
    }

    fn give_back(&mut self, number: u64) {
        if self.held.is_some_and(|(holder, _)| holder == number) {
            self.held = None;
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    /// A request comes to this proxy.
    Begin(usize),
    /// The attempt with this number ends so.
    End(usize, Signal),
    /// The letter with this number arrives at this proxy; it may arrive again.
    Deliver(usize, usize),
    /// The letter with this number is lost.
    Lose(usize),
    Wait(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let signal = prop_oneof![
        4 => Just(Signal::Failure),
        2 => Just(Signal::Success),
        1 => Just(Signal::Neutral),
    ];
    let event = prop_oneof![
        6 => (0_usize..3).prop_map(Event::Begin),
        6 => (0_usize..6, signal).prop_map(|(attempt, signal)| Event::End(attempt, signal)),
        4 => (0_usize..8, 0_usize..3).prop_map(|(letter, to)| Event::Deliver(letter, to)),
        1 => (0_usize..8).prop_map(Event::Lose),
        3 => (0_u64..40).prop_map(Event::Wait),
    ];
    proptest::collection::vec(event, 1..400)
}

struct Attempt {
    proxy: usize,
    pass: Pass,
    since: u64,
    lease: Option<u64>,
}

struct Fleet {
    base: Instant,
    now: u64,
    proxies: Vec<Breaker>,
    lease: Lease,
    attempts: Vec<Attempt>,
    letters: VecDeque<News>,
}

impl Fleet {
    fn new() -> Self {
        Self {
            base: start(),
            now: 0,
            proxies: (0..3).map(|_| Breaker::new(RULES)).collect(),
            lease: Lease::default(),
            attempts: Vec::new(),
            letters: VecDeque::new(),
        }
    }

    fn at(&self) -> Instant {
        self.base + secs(self.now)
    }

    /// As the shell does it: whoever would probe takes the lease first.
    fn begin(&mut self, proxy: usize) -> bool {
        let at = self.at();
        let Some(pass) = self.proxies[proxy].admit(at) else {
            return false;
        };
        let lease = if pass.is_probe() {
            let Some(lease) = self.lease.take(self.now) else {
                self.proxies[proxy].stand_back(pass, secs(1), at);
                return false;
            };
            Some(lease)
        } else {
            None
        };
        self.attempts.push(Attempt {
            proxy,
            pass,
            since: self.now,
            lease,
        });
        true
    }

    fn end(&mut self, attempt: usize, signal: Signal) {
        if attempt >= self.attempts.len() {
            return;
        }
        let ended = self.attempts.remove(attempt);
        let at = (self.at(), self.now);
        let news = self.proxies[ended.proxy].record(ended.pass, signal, at);
        self.letters.extend(news);
        // The store holds so many; what is older was delivered or is lost.
        while self.letters.len() > 8 {
            self.letters.pop_front();
        }
        if let Some(lease) = ended.lease {
            self.lease.give_back(lease);
        }
    }

    fn run(&mut self, event: Event) {
        let at = self.at();
        match event {
            Event::Begin(proxy) => drop(self.begin(proxy)),
            Event::End(attempt, signal) => self.end(attempt, signal),
            Event::Deliver(letter, to) => {
                if let Some(news) = self.letters.get(letter).copied() {
                    self.proxies[to].hear(news, at);
                }
            }
            Event::Lose(letter) => drop(self.letters.remove(letter)),
            Event::Wait(seconds) => self.now += seconds,
        }
    }

    fn live_probes(&self) -> usize {
        let probes = self.attempts.iter().filter(|one| one.pass.is_probe());
        probes.filter(|one| self.now < one.since + 60).count()
    }
}

proptest! {
    #[test]
    fn never_two_probes_in_the_fleet_whatever_becomes_of_the_news(events in events()) {
        let mut fleet = Fleet::new();
        for event in events {
            fleet.run(event);
            prop_assert!(fleet.live_probes() <= 1);
        }
    }

    #[test]
    fn no_probe_is_lost_a_backend_that_works_is_closed_everywhere_in_the_end(events in events()) {
        let mut fleet = Fleet::new();
        for event in events {
            fleet.run(event);
        }
        // From now on all is well with the backend; whatever ran is lost, and so are all letters.
        fleet.attempts.clear();
        fleet.letters.clear();
        for _ in 0..200 {
            fleet.now += 1;
            for proxy in 0..3 {
                if fleet.begin(proxy) {
                    fleet.end(0, Signal::Success);
                }
            }
        }
        for breaker in &fleet.proxies {
            prop_assert_eq!(breaker.phase(fleet.at()), Phase::Closed);
        }
    }

    #[test]
    fn with_all_news_delivered_in_any_order_all_agree_on_the_term(
        events in events(),
        order in proptest::collection::vec(0_usize..8, 64),
    ) {
        let mut fleet = Fleet::new();
        for event in events {
            if !matches!(event, Event::Lose(_)) {
                fleet.run(event);
            }
            // Who is connected hears all, some of it late and twice.
            for letter in &order {
                for to in 0..3 {
                    fleet.run(Event::Deliver(*letter, to));
                }
            }
            for letter in 0..fleet.letters.len() {
                for to in 0..3 {
                    fleet.run(Event::Deliver(letter, to));
                }
            }
            let terms: Vec<u64> = fleet.proxies.iter().map(|breaker| breaker.term).collect();
            prop_assert!(terms.iter().all(|term| *term == terms[0]), "{:?}", terms);
            let open: Vec<bool> = fleet
                .proxies
                .iter()
                .map(|breaker| breaker.phase(fleet.at()) == Phase::Closed)
                .collect();
            prop_assert!(open.iter().all(|one| *one == open[0]), "{:?}", open);
        }
    }
}

fn due(at: Instant) -> Breaker {
    let mut breaker = Breaker::new(RULES);
    for _ in 0..3 {
        if let Some(pass) = breaker.admit(at) {
            breaker.record(pass, Signal::Failure, (at, 0));
        }
    }
    breaker
}

/// One thread of a proxy, as the shell has it: the lock is not held while the store is asked.
fn wants_the_probe(
    proxy: &Mutex<Breaker>,
    lease: &Mutex<Lease>,
    running: &Mutex<u32>,
    at: Instant,
) {
    let Some(pass) = proxy.lock().unwrap().admit(at) else {
        return;
    };
    if !pass.is_probe() {
        return;
    }
    let taken = lease.lock().unwrap().take(0);
    let Some(number) = taken else {
        proxy.lock().unwrap().stand_back(pass, secs(1), at);
        return;
    };
    *running.lock().unwrap() += 1;
    assert_eq!(*running.lock().unwrap(), 1, "two probes at once");
    *running.lock().unwrap() -= 1;
    proxy.lock().unwrap().record(pass, Signal::Failure, (at, 0));
    lease.lock().unwrap().give_back(number);
}

#[test]
fn no_interleaving_of_threads_and_proxies_gives_two_probes_or_loses_the_one() {
    let base = start();
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let at = base + secs(30);
        let one = Arc::new(Mutex::new(due(base)));
        let other = Arc::new(Mutex::new(due(base)));
        let lease = Arc::new(Mutex::new(Lease::default()));
        let running = Arc::new(Mutex::new(0));
        let threads: Vec<_> = [&one, &one, &other]
            .map(|proxy| {
                let (proxy, lease, running) = (proxy.clone(), lease.clone(), running.clone());
                loom::thread::spawn(move || wants_the_probe(&proxy, &lease, &running, at))
            })
            .into_iter()
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(
            lease.lock().unwrap().held.is_none(),
            "the lease is free again"
        );
        let open = [&one, &other]
            .into_iter()
            .filter(|proxy| matches!(proxy.lock().unwrap().phase(at), Phase::Open { .. }))
            .count();
        assert!(open >= 1, "one probe went, and was not lost");
        for proxy in [&one, &other] {
            let again = proxy.lock().unwrap().admit(at + secs(30));
            assert!(
                again.is_some_and(Pass::is_probe),
                "the next one goes in time"
            );
        }
    });
}
