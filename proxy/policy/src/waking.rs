//! What sleeps and is woken by the first request that needs it: a server that scales from zero, a machine that sleeps. One start at a
//! time, pauses that grow after failures, and how far a start has come. Starts nothing and reads no clock.

mod neighbours;

use std::time::{Duration, Instant};

pub use neighbours::neighbours;

/// Failures in a row after which the pause grows no more.
const DOUBLINGS_MAX: u32 = 5;
/// A start that takes longer than was expected is shown as almost there, never as done.
const PERCENT_MAX: u64 = 99;

/// A start under way: what whoever waits for it is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Waking {
    /// When it began.
    pub since: Instant,
    /// How long it will probably take.
    pub expected: Duration,
}

impl Waking {
    /// How far it probably is, from 0 to 99.
    pub fn percent(&self, now: Instant) -> u8 {
        let gone = now.saturating_duration_since(self.since).as_millis();
        let whole = self.expected.as_millis().max(1);
        let percent = gone.saturating_mul(100) / whole;
        u8::try_from(percent.min(u128::from(PERCENT_MAX))).unwrap_or(99)
    }

    /// How long it will probably still take.
    pub fn left(&self, now: Instant) -> Duration {
        let gone = now.saturating_duration_since(self.since);
        self.expected.saturating_sub(gone)
    }
}

/// How it is started and given up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rules {
    /// How long a start takes, until one was measured.
    pub expected: Duration,
    /// After a failed start nobody tries again for this long; it doubles with each failure, 32 times at most.
    pub pause: Duration,
}

/// What somebody who needs it does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Asks it.
    Awake,
    /// Waits for a start of somebody else.
    Wait(Waking),
    /// Starts it: nobody else does now.
    Start(Waking),
    /// Goes elsewhere: it did not start, and it is not time to try again.
    Resting {
        /// Until then.
        again_in: Duration,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Asleep,
    Waking(Waking),
    /// It is there, and has not answered yet.
    Booting(Waking),
    Awake,
    Resting {
        until: Instant,
    },
}

/// Something that sleeps.
#[derive(Debug)]
pub struct Sleeper {
    rules: Rules,
    stage: Stage,
    failures: u32,
    took: Option<Duration>,
    used_at: Instant,
}

impl Sleeper {
    /// Asleep.
    pub const fn new(rules: Rules, now: Instant) -> Self {
        Self {
            rules,
            stage: Stage::Asleep,
            failures: 0,
            took: None,
            used_at: now,
        }
    }

    /// Somebody needs it.
    pub fn want(&mut self, now: Instant) -> Verdict {
        self.used_at = now;
        match self.stage {
            Stage::Awake => Verdict::Awake,
            Stage::Waking(waking) | Stage::Booting(waking) => Verdict::Wait(waking),
            Stage::Resting { until } if now < until => Verdict::Resting {
                again_in: until.saturating_duration_since(now),
            },
            Stage::Asleep | Stage::Resting { .. } => {
                let waking = Waking {
                    since: now,
                    expected: self.expected(),
                };
                self.stage = Stage::Waking(waking);
                Verdict::Start(waking)
            }
        }
    }

    /// It is there and does not answer yet: nobody starts it again, and whoever waits goes on waiting.
    pub const fn here(&mut self) {
        if let Stage::Waking(waking) = self.stage {
            self.stage = Stage::Booting(waking);
        }
    }

    /// It runs, and nobody needs it: found awake, it is idle since it was used last, not since now.
    pub const fn found(&mut self) {
        self.stage = Stage::Awake;
        self.failures = 0;
    }

    /// It answers, whoever started it.
    pub fn awake(&mut self, now: Instant) {
        if let Stage::Waking(waking) | Stage::Booting(waking) = self.stage {
            self.took = Some(now.saturating_duration_since(waking.since));
        }
        if self.stage != Stage::Awake {
            self.used_at = now;
        }
        self.stage = Stage::Awake;
        self.failures = 0;
    }

    /// The start failed. Returns until when nobody tries again.
    pub fn failed(&mut self, now: Instant) -> Instant {
        let pause = self.rules.pause * 2_u32.pow(self.failures.min(DOUBLINGS_MAX));
        self.failures = self.failures.saturating_add(1);
        let until = now + pause;
        self.stage = Stage::Resting { until };
        until
    }

    /// It went back to sleep, or was stopped.
    pub const fn slept(&mut self) {
        self.stage = Stage::Asleep;
    }

    /// A request is with it.
    pub const fn used(&mut self, now: Instant) {
        self.used_at = now;
    }

    /// Whether it is awake and nobody has needed it for so long.
    pub fn is_idle(&self, idle: Duration, now: Instant) -> bool {
        self.stage == Stage::Awake && now.saturating_duration_since(self.used_at) >= idle
    }

    /// Whether nobody has needed it for so long, awake or not. While it starts somebody needs it.
    pub fn is_unused(&self, idle: Duration, now: Instant) -> bool {
        self.waking().is_none() && now.saturating_duration_since(self.used_at) >= idle
    }

    /// Goes to sleep if nobody has needed it for so long; `false`: somebody has. From then on whoever needs it starts it.
    pub fn doze(&mut self, idle: Duration, now: Instant) -> bool {
        let is_unused = self.is_unused(idle, now);
        if is_unused && self.stage == Stage::Awake {
            self.stage = Stage::Asleep;
        }
        is_unused
    }

    /// Whether it is there, and has not answered yet.
    pub const fn is_booting(&self) -> bool {
        matches!(self.stage, Stage::Booting(_))
    }

    /// Whether it answers.
    pub fn is_awake(&self) -> bool {
        self.stage == Stage::Awake
    }

    /// The start under way.
    pub const fn waking(&self) -> Option<Waking> {
        match self.stage {
            Stage::Waking(waking) | Stage::Booting(waking) => Some(waking),
            Stage::Asleep | Stage::Awake | Stage::Resting { .. } => None,
        }
    }

    /// Until when nobody tries.
    pub fn resting(&self, now: Instant) -> Option<Instant> {
        match self.stage {
            Stage::Resting { until } if now < until => Some(until),
            Stage::Resting { .. }
            | Stage::Asleep
            | Stage::Waking(_)
            | Stage::Booting(_)
            | Stage::Awake => None,
        }
    }

    /// How long a start takes: as the last one did, or as the rules say.
    pub fn expected(&self) -> Duration {
        self.took.unwrap_or(self.rules.expected)
    }

    /// How long somebody who needs it now would wait.
    pub fn wait(&self, now: Instant) -> Duration {
        match self.stage {
            Stage::Awake => Duration::ZERO,
            Stage::Waking(waking) | Stage::Booting(waking) => waking.left(now),
            Stage::Asleep | Stage::Resting { .. } => self.expected(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::start;

    const RULES: Rules = Rules {
        expected: Duration::from_mins(1),
        pause: Duration::from_secs(30),
    };

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn one_starts_and_the_others_wait_for_it() {
        let now = start();
        let mut gpu = Sleeper::new(RULES, now);
        let waking = Waking {
            since: now,
            expected: secs(60),
        };
        assert_eq!(gpu.want(now), Verdict::Start(waking));
        assert_eq!(gpu.want(now + secs(30)), Verdict::Wait(waking));
        assert_eq!(waking.percent(now + secs(30)), 50);
        assert_eq!(gpu.wait(now + secs(30)), secs(30));
        gpu.awake(now + secs(40));
        assert_eq!(gpu.want(now + secs(41)), Verdict::Awake);
        assert_eq!(gpu.expected(), secs(40), "as the last start took");
    }

    #[test]
    fn a_start_that_takes_too_long_is_never_shown_as_done() {
        let now = start();
        let waking = Waking {
            since: now,
            expected: Duration::ZERO,
        };
        assert_eq!(waking.percent(now), 0);
        assert_eq!(waking.percent(now + secs(1_000_000)), 99);
        assert_eq!(waking.left(now + secs(1)), Duration::ZERO);
    }

    #[test]
    fn pauses_grow_with_failures_and_are_forgotten_when_it_answers() {
        let mut now = start();
        let mut gpu = Sleeper::new(RULES, now);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert!(matches!(gpu.want(now), Verdict::Start(_)));
            let until = gpu.failed(now);
            let Verdict::Resting { again_in } = gpu.want(now) else {
                panic!("nobody may try at once");
            };
            assert_eq!(until, now + again_in);
            pauses.push(again_in.as_secs());
            now = until;
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 960, 960, 960]);
        assert!(matches!(gpu.want(now), Verdict::Start(_)));
        gpu.awake(now);
        gpu.slept();
        assert!(matches!(gpu.want(now), Verdict::Start(_)));
        assert_eq!(gpu.failed(now), now + secs(30));
    }

    #[test]
    fn only_what_is_awake_and_unwanted_is_idle() {
        let now = start();
        let mut gpu = Sleeper::new(RULES, now);
        assert!(!gpu.is_idle(secs(10), now + secs(100)), "asleep");
        gpu.want(now);
        gpu.awake(now + secs(5));
        assert!(!gpu.is_idle(secs(10), now + secs(14)));
        assert!(gpu.is_idle(secs(10), now + secs(15)));
        gpu.used(now + secs(15));
        assert!(!gpu.is_idle(secs(10), now + secs(24)));
        gpu.awake(now + secs(60));
        assert!(
            gpu.is_idle(secs(10), now + secs(60)),
            "a look at it is no use of it"
        );
    }

    #[test]
    fn what_is_there_and_loads_is_not_started_again_and_its_time_goes_on() {
        let now = start();
        let mut machine = Sleeper::new(RULES, now);
        let Verdict::Start(waking) = machine.want(now) else {
            panic!("it sleeps");
        };
        machine.here();
        assert!(machine.is_booting());
        for later in [1, 30, 300] {
            assert_eq!(machine.want(now + secs(later)), Verdict::Wait(waking));
        }
        machine.awake(now + secs(45));
        assert_eq!(machine.expected(), secs(45), "until it answered");
        machine.here();
        assert!(machine.is_awake(), "it was there before");
    }

    #[test]
    fn what_is_found_awake_is_idle_since_it_was_used_last() {
        let now = start();
        let mut gpu = Sleeper::new(RULES, now);
        gpu.found();
        assert!(!gpu.doze(secs(10), now + secs(9)));
        assert!(gpu.is_awake());
        assert!(gpu.doze(secs(10), now + secs(10)));
        assert!(!gpu.is_awake());
        assert!(gpu.doze(secs(10), now + secs(20)), "still unused");
        gpu.want(now + secs(20));
        assert!(!gpu.doze(secs(10), now + secs(90)), "it starts");
    }

    proptest! {
        /// Whatever happens in whatever order: between two starts somebody said how the first one ended.
        #[test]
        fn there_are_never_two_starts_at_once(steps in prop::collection::vec((0_u8..7, 0_u64..100), 0..200)) {
            let mut now = start();
            let mut gpu = Sleeper::new(RULES, now);
            let mut starting = false;
            for (step, pass) in steps {
                now += secs(pass);
                match step {
                    0 => match gpu.want(now) {
                        Verdict::Start(_) => {
                            prop_assert!(!starting);
                            starting = true;
                        }
                        Verdict::Wait(_) => prop_assert!(starting),
                        Verdict::Awake | Verdict::Resting { .. } => prop_assert!(!starting),
                    },
                    1 => { gpu.awake(now); starting = false; }
                    2 if starting => { gpu.failed(now); starting = false; }
                    3 => gpu.here(),
                    4 if !starting => gpu.found(),
                    5 => { gpu.doze(secs(50), now); }
                    _ => gpu.used(now),
                }
                prop_assert_eq!(gpu.waking().is_some(), starting);
            }
        }
    }
}
