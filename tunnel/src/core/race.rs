//! Decides, for a peer that we keep a session with, when a carrier is wanted beside UDP, when UDP is tried again, and when the carrier can go. Time
//! is an argument; nothing is sent from here.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::path::{CarrierId, PathKind};

/// UDP that answers nothing for this long gets a carrier beside it.
const RACE_AFTER: Duration = Duration::from_secs(2);
/// While a carrier is used, UDP is tried this often: two lost tries still bring it back within a minute.
const TRY_UDP_EVERY: Duration = Duration::from_secs(20);
/// UDP that has worked for this long needs no carrier beside it.
const CALM: Duration = Duration::from_secs(10);

/// What is known of the way to the peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) on: PathKind,
    pub(super) doubt: Duration,
    pub(super) carrier: Option<CarrierId>,
}

/// What to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    Stay,
    TryUdp,
    Close(CarrierId),
}

/// The race of UDP and a carrier to one peer.
#[derive(Debug)]
pub(super) struct Race {
    wanted: watch::Sender<bool>,
    try_at: Option<Instant>,
    calm_since: Option<Instant>,
}

impl Race {
    pub(super) fn new() -> Self {
        Self {
            wanted: watch::Sender::new(false),
            try_at: None,
            calm_since: None,
        }
    }

    pub(super) fn boxed() -> Box<Self> {
        Box::new(Self::new())
    }

    /// Tells whoever can dial a carrier whether one is wanted.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.wanted.subscribe()
    }

    /// `jitter` is uniform in 0..1.
    pub(super) fn tick(&mut self, facts: Facts, jitter: f64, now: Instant) -> Step {
        match facts.on {
            PathKind::Carried => {
                self.want(true);
                self.calm_since = None;
                let pause = TRY_UDP_EVERY.mul_f64(0.9 + 0.2 * jitter);
                let try_at = self.try_at.get_or_insert(now + pause);
                if now < *try_at {
                    return Step::Stay;
                }
                *try_at = now + pause;
                Step::TryUdp
            }
            PathKind::Udp => {
                self.try_at = None;
                if facts.doubt >= RACE_AFTER {
                    self.want(true);
                    self.calm_since = None;
                    return Step::Stay;
                }
                let since = self.calm_since.get_or_insert(now);
                if now.duration_since(*since) < CALM {
                    return Step::Stay;
                }
                self.want(false);
                facts.carrier.map_or(Step::Stay, Step::Close)
            }
        }
    }

    /// When [`Race::tick`] has something to do, if nothing happens until then.
    pub(super) fn due(&self, facts: Facts, now: Instant) -> Option<Instant> {
        // It may end at any time.
        if facts.on == PathKind::Carried || facts.carrier.is_some() {
            return Some(now);
        }
        let is_wanted = *self.wanted.borrow();
        if facts.doubt >= RACE_AFTER {
            return (!is_wanted || self.calm_since.is_some()).then_some(now);
        }
        let doubtful = now + RACE_AFTER.saturating_sub(facts.doubt);
        let doubtful = (!facts.doubt.is_zero()).then_some(doubtful);
        let calm = match self.calm_since {
            None => Some(now),
            Some(since) => is_wanted.then_some(since + CALM),
        };
        [doubtful, calm].into_iter().flatten().min()
    }

    fn want(&self, wanted: bool) {
        self.wanted
            .send_if_modified(|known| std::mem::replace(known, wanted) != wanted);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    const CARRIER: CarrierId = CarrierId {
        number: 1,
        remote: IpAddr::V4(Ipv4Addr::LOCALHOST),
    };

    fn udp(doubt_ms: u64, carrier: Option<CarrierId>) -> Facts {
        Facts {
            on: PathKind::Udp,
            doubt: Duration::from_millis(doubt_ms),
            carrier,
        }
    }

    #[test]
    fn a_carrier_is_wanted_after_two_seconds_and_no_longer_once_udp_has_proved_itself() {
        let now = Instant::now();
        let mut race = Race::new();
        let wanted = race.watch();
        race.tick(udp(1_900, None), 0.5, now);
        assert!(!*wanted.borrow());
        race.tick(udp(2_000, None), 0.5, now);
        assert!(*wanted.borrow());
        let facts = udp(30, Some(CARRIER));
        assert_eq!(race.tick(facts, 0.5, now), Step::Stay);
        let later = now + CALM;
        assert_eq!(race.tick(facts, 0.5, later), Step::Close(CARRIER));
        assert!(!*wanted.borrow());
    }

    #[test]
    fn udp_that_falters_again_keeps_the_carrier() {
        let now = Instant::now();
        let mut race = Race::new();
        for second in 0..60 {
            let doubt = if second % 9 == 8 { 2_500 } else { 0 };
            let at = now + Duration::from_secs(second);
            let step = race.tick(udp(doubt, Some(CARRIER)), 0.5, at);
            assert_eq!(step, Step::Stay, "second {second}");
        }
    }

    #[test]
    fn a_carried_session_tries_udp_twice_a_minute_at_least() {
        let now = Instant::now();
        let mut race = Race::new();
        let facts = Facts {
            on: PathKind::Carried,
            doubt: Duration::ZERO,
            carrier: Some(CARRIER),
        };
        let tries = (0..240)
            .map(|quarter| now + Duration::from_millis(quarter * 250))
            .filter(|at| race.tick(facts, 1.0, *at) == Step::TryUdp)
            .count();
        assert_eq!(tries, 2);
    }
}
