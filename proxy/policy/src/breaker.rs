//! One breaker per backend: a few failures within a window open it, after a while exactly one probe decides. Knows nothing of
//! what it guards, and starts no timer: the next caller after `until` is the probe.
//!
//! Every pass carries the *epoch* in which it was given. A result from an earlier epoch says nothing about now and is
//! ignored, so a slow request from before the trip can neither close the breaker nor fail the probe.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use config::settings::proxy::Routing;

/// When to open and for how long.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rules {
    /// Failures within `window` that open.
    pub failures: u32,
    /// How far back failures count.
    pub window: Duration,
    /// How long it stays open.
    pub open: Duration,
    /// A probe without a result is lost after this.
    pub probe: Duration,
}

impl From<&Routing> for Rules {
    fn from(routing: &Routing) -> Self {
        Self {
            failures: routing.breaker_failures,
            window: routing.breaker_window,
            open: routing.breaker_open,
            probe: routing.breaker_probe,
        }
    }
}

/// What a result says about the backend.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Signal {
    /// It works.
    Success,
    /// It does not.
    Failure,
    /// Nothing: the caller's error, or the caller left.
    Neutral,
}

/// Permission for one attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pass {
    epoch: u64,
    probe: bool,
}

impl Pass {
    /// Whether this attempt decides over the breaker.
    pub const fn is_probe(self) -> bool {
        self.probe
    }
}

/// How a breaker stands, for routes and metrics.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Phase {
    /// Lets everything through.
    Closed,
    /// Lets nothing through until then.
    Open {
        /// The first moment at which a probe may go.
        until: Instant,
    },
    /// The next caller will be the probe.
    ProbeDue,
    /// A probe is under way.
    Probing {
        /// When it counts as lost.
        lost_at: Instant,
    },
}

impl Phase {
    /// The label in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
            Self::ProbeDue | Self::Probing { .. } => "half_open",
        }
    }

    /// The value of the metric: 0 closed, 1 half-open, 2 open.
    pub const fn gauge(self) -> i64 {
        match self {
            Self::Closed => 0,
            Self::ProbeDue | Self::Probing { .. } => 1,
            Self::Open { .. } => 2,
        }
    }
}

#[derive(Debug)]
enum State {
    Closed { failed_at: VecDeque<Instant> },
    Open { until: Instant },
    HalfOpen { since: Instant },
}

/// One breaker.
#[derive(Debug)]
pub struct Breaker {
    rules: Rules,
    state: State,
    epoch: u64,
}

impl Breaker {
    /// A closed breaker.
    pub const fn new(rules: Rules) -> Self {
        Self {
            rules,
            state: State::Closed {
                failed_at: VecDeque::new(),
            },
            epoch: 0,
        }
    }

    /// How it stands. Changes nothing, so a plan may look as often as it likes.
    pub fn phase(&self, now: Instant) -> Phase {
        match self.state {
            State::Closed { .. } => Phase::Closed,
            State::Open { until } if now < until => Phase::Open { until },
            State::Open { .. } => Phase::ProbeDue,
            State::HalfOpen { since } => {
                let lost_at = since + self.rules.probe;
                if now < lost_at {
                    Phase::Probing { lost_at }
                } else {
                    Phase::ProbeDue
                }
            }
        }
    }

    /// Takes a pass. After the open time, and after a lost probe, exactly one caller gets one.
    pub fn admit(&mut self, now: Instant) -> Option<Pass> {
        match self.phase(now) {
            Phase::Closed => Some(Pass {
                epoch: self.epoch,
                probe: false,
            }),
            Phase::Open { .. } | Phase::Probing { .. } => None,
            Phase::ProbeDue => {
                self.enter(State::HalfOpen { since: now });
                Some(Pass {
                    epoch: self.epoch,
                    probe: true,
                })
            }
        }
    }

    /// Learns from the attempt for which the pass was given.
    pub fn record(&mut self, pass: Pass, signal: Signal, now: Instant) {
        if pass.epoch != self.epoch {
            return;
        }
        match (&mut self.state, signal) {
            (State::Closed { failed_at }, Signal::Failure) => {
                let window = self.rules.window;
                failed_at.retain(|at| now.saturating_duration_since(*at) < window);
                failed_at.push_back(now);
                if failed_at.len() >= usize::try_from(self.rules.failures.max(1)).unwrap_or(1) {
                    self.trip(now);
                }
            }
            (State::Closed { .. }, Signal::Success | Signal::Neutral) => {}
            (State::HalfOpen { .. }, Signal::Success) => self.enter(State::Closed {
                failed_at: VecDeque::new(),
            }),
            (State::HalfOpen { .. }, Signal::Failure) => self.trip(now),
            // The probe proved nothing: the next caller may try at once.
            (State::HalfOpen { .. }, Signal::Neutral) => {
                self.enter(State::Open { until: now });
            }
            // No pass is given while open, so none of this epoch can come back.
            (State::Open { .. }, Signal::Success | Signal::Failure | Signal::Neutral) => {}
        }
    }

    /// The backend was started anew: what it did before says little, so a probe may go at once.
    pub fn restarted(&mut self, now: Instant) {
        match self.state {
            State::Closed { .. } => self.enter(State::Closed {
                failed_at: VecDeque::new(),
            }),
            State::Open { .. } | State::HalfOpen { .. } => {
                self.enter(State::Open { until: now });
            }
        }
    }

    fn trip(&mut self, now: Instant) {
        let until = now + self.rules.open;
        self.enter(State::Open { until });
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
    }
}

#[cfg(test)]
mod tests;
