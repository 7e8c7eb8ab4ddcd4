//! How long a node may be silent before the first content of an answer. A long prompt on a small machine, a queue, a model that is being
//! loaded take their time, and none of them is a failure: whoever shows that it is at work is waited for, to the end of the request.

use std::time::Duration;

use config::wire::progress::Progress;
use tokio::time::Instant;

/// Until when a node is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hope {
    until: Instant,
    silence: Duration,
    deadline: Instant,
    known: Option<Progress>,
}

impl Hope {
    /// From now on, for so long, and in no case beyond the deadline.
    pub(super) fn new(now: Instant, silence: Duration, deadline: Instant) -> Self {
        let until = now.checked_add(silence);
        Self {
            until: until.map_or(deadline, |until| until.min(deadline)),
            silence,
            deadline,
            known: None,
        }
    }

    /// When it is over.
    pub(super) const fn until(&self) -> Instant {
        self.until
    }

    /// The node sent something without any chunk of the answer, and this is what it last said of its work. A prompt must get on to count;
    /// of a queue and of a model that is being loaded it is enough that the node goes on to speak.
    pub(super) fn heard(&mut self, now: Instant, word: Option<Progress>) {
        let is_at_work = match word {
            None => false,
            Some(Progress::Prefill(..)) => word != self.known,
            Some(Progress::Queue(_) | Progress::Load(_)) => true,
        };
        self.known = word;
        if is_at_work {
            self.renew(now);
        }
    }

    /// It got on: the wait begins anew.
    pub(super) fn renew(&mut self, now: Instant) {
        *self = Self {
            known: self.known,
            ..Self::new(now, self.silence, self.deadline)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_mins(2);

    fn lasts_until(heard: &[(u64, Option<Progress>)]) -> u64 {
        let start = Instant::now();
        let at = |secs: u64| start + Duration::from_secs(secs);
        let mut hope = Hope::new(start, SILENCE, at(600));
        for (secs, word) in heard {
            assert!(at(*secs) < hope.until(), "it was given up before {secs} s");
            hope.heard(at(*secs), *word);
        }
        (hope.until() - start).as_secs()
    }

    #[test]
    fn a_prompt_that_gets_on_is_waited_for() {
        let read = |done| Some(Progress::Prefill(done, 4_096));
        assert_eq!(lasts_until(&[]), 120);
        assert_eq!(lasts_until(&[(100, read(512)), (200, read(1_024))]), 320);
        assert_eq!(
            lasts_until(&[(100, read(512)), (150, read(512))]),
            220,
            "the same words again are no work"
        );
    }

    #[test]
    fn a_queue_and_a_load_are_waited_for_as_long_as_the_node_speaks() {
        let place = Some(Progress::Queue(1));
        assert_eq!(
            lasts_until(&[(100, place), (200, place), (300, place)]),
            420
        );
        assert_eq!(lasts_until(&[(110, Some(Progress::Load(40)))]), 230);
        assert_eq!(lasts_until(&[(100, None)]), 120, "a comment says nothing");
    }

    #[test]
    fn nothing_is_waited_for_beyond_the_deadline() {
        let place = Some(Progress::Queue(1));
        let told: Vec<_> = (1..6).map(|turn| (turn * 100, place)).collect();
        assert_eq!(lasts_until(&told), 600);
        let now = Instant::now();
        let whole = Hope::new(now, Duration::MAX, now + SILENCE);
        assert_eq!(whole.until() - now, SILENCE);
    }
}
