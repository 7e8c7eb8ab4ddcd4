//! One breaker per backend: a few failures within a window open it, after a while exactly one probe decides. Knows nothing of
//! what it guards, and starts no timer: the next caller after `until` is the probe.
//!
//! Every pass carries the *epoch* in which it was given. A result from an earlier epoch says nothing about now and is
//! ignored, so a slow request from before the trip can neither close the breaker nor fail the probe.
//!
//! Breakers of one backend in several proxies tell each other [`News`]. Each piece has a *term* that only grows: what is older than
//! what is known says nothing, so that lost, repeated and reordered news cost time at most. That only one probe goes is not their
//! matter: whoever would probe first takes a lease, and [`Breaker::stand_back`] if another one has it.

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

/// What the breaker of one proxy tells those of the others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct News {
    /// Counts up with every opening and closing, at whichever proxy.
    pub term: u64,
    /// How long it stays open from now on; `None`: it is closed.
    pub open: Option<Duration>,
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
    HalfOpen { lost_at: Instant },
}

/// One breaker.
#[derive(Debug)]
pub struct Breaker {
    rules: Rules,
    state: State,
    epoch: u64,
    /// Of the last opening or closing that is known, here or elsewhere.
    term: u64,
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
            term: 0,
        }
    }

    /// How it stands. Changes nothing, so a plan may look as often as it likes.
    pub fn phase(&self, now: Instant) -> Phase {
        match self.state {
            State::Closed { .. } => Phase::Closed,
            State::Open { until } if now < until => Phase::Open { until },
            State::Open { .. } => Phase::ProbeDue,
            State::HalfOpen { lost_at } if now < lost_at => Phase::Probing { lost_at },
            State::HalfOpen { .. } => Phase::ProbeDue,
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
                let lost_at = now + self.rules.probe;
                self.enter(State::HalfOpen { lost_at });
                Some(Pass {
                    epoch: self.epoch,
                    probe: true,
                })
            }
        }
    }

    /// Learns from the attempt for which the pass was given. What the others must hear of comes back; `stamp` is the shell's clock,
    /// by which a proxy that has just started is not behind the others.
    pub fn record(
        &mut self,
        pass: Pass,
        signal: Signal,
        (now, stamp): (Instant, u64),
    ) -> Option<News> {
        if pass.epoch != self.epoch {
            return None;
        }
        match (&mut self.state, signal) {
            (State::Closed { failed_at }, Signal::Failure) => {
                let window = self.rules.window;
                failed_at.retain(|at| now.saturating_duration_since(*at) < window);
                failed_at.push_back(now);
                let failures = usize::try_from(self.rules.failures.max(1)).unwrap_or(1);
                (failed_at.len() >= failures).then(|| self.trip((now, stamp)))
            }
            (State::HalfOpen { .. }, Signal::Success) => Some(self.close(stamp)),
            (State::HalfOpen { .. }, Signal::Failure) => Some(self.trip((now, stamp))),
            // The probe proved nothing: the next caller may try at once.
            (State::HalfOpen { .. }, Signal::Neutral) => {
                self.enter(State::Open { until: now });
                None
            }
            (State::Closed { .. }, Signal::Success | Signal::Neutral)
            // No pass is given while open, so none of this epoch can come back.
            | (State::Open { .. }, Signal::Success | Signal::Failure | Signal::Neutral) => None,
        }
    }

    /// The same for an attempt that goes on: its first content is proof enough. What comes of it later counts as of any other.
    pub fn prove(&mut self, pass: &mut Pass, (now, stamp): (Instant, u64)) -> Option<News> {
        if !pass.probe || pass.epoch != self.epoch {
            return None;
        }
        let news = self.record(*pass, Signal::Success, (now, stamp));
        *pass = Pass {
            epoch: self.epoch,
            probe: false,
        };
        news
    }

    /// Another proxy has the probe: this one asks again after `pause`.
    pub fn stand_back(&mut self, pass: Pass, pause: Duration, now: Instant) {
        if pass.probe && pass.epoch == self.epoch {
            let lost_at = now + pause.min(self.rules.probe);
            self.enter(State::HalfOpen { lost_at });
        }
    }

    /// Hears what the breaker of another proxy told. `false`: it is known, or older than what is.
    pub fn hear(&mut self, news: News, now: Instant) -> bool {
        if news.term <= self.term {
            return false;
        }
        self.term = news.term;
        match news.open {
            Some(left) => {
                let until = now + left.min(self.rules.open);
                self.enter(State::Open { until });
            }
            None => self.enter(State::Closed {
                failed_at: VecDeque::new(),
            }),
        }
        true
    }

    /// What a proxy that heard nothing lately should know; `None` while there is nothing to avoid.
    pub fn news(&self, now: Instant) -> Option<News> {
        match self.state {
            State::Open { until } if now < until => Some(News {
                term: self.term,
                open: Some(until - now),
            }),
            State::Open { .. } | State::HalfOpen { .. } | State::Closed { .. } => None,
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

    /// The backend was shown not to work in another way than by an attempt: opens at once, whatever was counted.
    pub fn fail(&mut self, (now, stamp): (Instant, u64)) -> News {
        self.trip((now, stamp))
    }

    fn trip(&mut self, (now, stamp): (Instant, u64)) -> News {
        let open = self.rules.open;
        self.enter(State::Open { until: now + open });
        self.turn(stamp, Some(open))
    }

    fn close(&mut self, stamp: u64) -> News {
        self.enter(State::Closed {
            failed_at: VecDeque::new(),
        });
        self.turn(stamp, None)
    }

    fn turn(&mut self, stamp: u64, open: Option<Duration>) -> News {
        self.term = self.term.saturating_add(1).max(stamp);
        News {
            term: self.term,
            open,
        }
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
    }
}

#[cfg(test)]
mod tests;
