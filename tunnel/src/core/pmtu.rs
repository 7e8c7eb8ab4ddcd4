//! How large a packet the path to one peer carries, found with padded echoes inside the tunnel. No ICMP of the underlay is needed or believed.
//!
//! A survey sends an echo of every size at once, the largest first and a small one last: what comes back is proof, and once the small one is back
//! what is missing does not pass. It is made when a path is new and from time to time while the path could carry more. While large packets are
//! sent, one echo of the size in use is checked twice a second; when it stays away and its small companion does not, a survey follows. So a path
//! that narrows is noticed within about a second, and a lost packet or a silent peer says nothing. A carrier is TCP and has no width. Time is an
//! argument; nothing is sent from here.

use std::time::{Duration, Instant};

use crate::path::{Path, PathKind};
use crate::settings::MTU_MIN;

/// What is tried, and no larger than allowed. Multiples of 16, to which `WireGuard` pads. With 60 bytes around it (IPv4) or 80 (IPv6): Ethernet over
/// IPv4, Ethernet over IPv6 or behind `PPPoE`, `DS-Lite` and mobile networks, the smallest link that IPv6 allows and a little more, that link.
const SIZES: [usize; 5] = [1440, 1408, 1360, 1280, MTU_MIN];
/// While large packets go out, they are checked this often.
const CHECK_EVERY: Duration = Duration::from_millis(500);
/// Large packets that nobody acknowledges are repeated after pauses that double; meanwhile the path counts as busy.
const BUSY: Duration = Duration::from_secs(5);
/// Packets overtake each other by less than this.
const SETTLE: Duration = Duration::from_millis(40);
/// Nothing back for so long, or three round trips: nothing is learned.
const WAIT_MIN: Duration = Duration::from_millis(600);
/// A survey that hears nothing is repeated this often: the peer may answer no echo.
const SILENT_MAX: u8 = 3;
/// A path that could carry more is surveyed again after this, and then after longer and longer.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_mins(10);
/// Fourfold so often, the least pause is longer than the longest.
const TRIES_MAX: u8 = 5;

/// Echoes to be sent: of these sizes in this order, and then a small one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Question {
    /// Comes back with the answers; never 0.
    pub(super) round: u16,
    sizes: [usize; SIZES.len() + 1],
}

impl Question {
    pub(super) fn sizes(&self) -> impl Iterator<Item = usize> + '_ {
        self.sizes.iter().copied().filter(|size| *size > 0)
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Check,
    Survey,
}

/// A question whose answers are awaited.
#[derive(Clone, Copy, Debug)]
struct Asked {
    kind: Kind,
    at: Instant,
    widest: usize,
    small_at: Option<Instant>,
}

/// When to survey next.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// Whatever is going on.
    At(Instant),
    /// Once large packets are sent again.
    WhenBusy(Instant),
    Never,
}

/// The width of one path.
#[derive(Debug)]
pub(super) struct Pmtu {
    start: u16,
    max: u16,
    size: u16,
    path: Option<Path>,
    round: u16,
    /// In a box: most peers ask nothing most of the time.
    asked: Option<Box<Asked>>,
    next: Next,
    /// How often a survey has found that the path could carry more.
    tries: u8,
    silent: u8,
    checked_at: Option<Instant>,
}

impl Pmtu {
    /// `start`: what is sent before anything is known; `max`: what is never exceeded.
    pub(super) fn new(start: usize, max: usize) -> Self {
        Self {
            start: narrow(start),
            max: narrow(max),
            size: narrow(start),
            path: None,
            round: 0,
            asked: None,
            next: Next::Never,
            tries: 0,
            silent: 0,
            checked_at: None,
        }
    }

    /// The largest packet that may be sent.
    pub(super) const fn size(&self) -> usize {
        self.size as usize
    }

    const fn max(&self) -> usize {
        self.max as usize
    }

    /// To be called when [`Pmtu::due`] says, some four times a second while something is under way. `path`: the one in use, while there is a
    /// session; `wide_at`: when a packet above the least size was sent last; `round_trip`: if it is known.
    pub(super) fn tick(
        &mut self,
        path: Option<Path>,
        (wide_at, round_trip): (Option<Instant>, Option<Duration>),
        now: Instant,
    ) -> Option<Question> {
        if path != self.path {
            self.begin(path, now);
        }
        if path.map(Path::kind) != Some(PathKind::Udp) || self.max() <= MTU_MIN {
            return None;
        }
        self.judge(round_trip.unwrap_or_default(), now);
        if self.asked.is_some() {
            return None;
        }
        let is_busy = wide_at.is_some_and(|at| now.duration_since(at) < BUSY);
        let is_due = match self.next {
            Next::At(at) => now >= at,
            Next::WhenBusy(at) => is_busy && now >= at,
            Next::Never => false,
        };
        let checked = self.checked_at.map(|at| now.duration_since(at));
        if is_due {
            Some(self.ask(Kind::Survey, now))
        } else if is_busy && checked.is_none_or(|ago| ago >= CHECK_EVERY) {
            self.checked_at = Some(now);
            Some(self.ask(Kind::Check, now))
        } else {
            None
        }
    }

    /// When [`Pmtu::tick`] has something to do, if nothing happens until then.
    pub(super) fn due(
        &self,
        path: Option<Path>,
        wide_at: Option<Instant>,
        now: Instant,
    ) -> Option<Instant> {
        if path != self.path {
            return Some(now);
        }
        if path.map(Path::kind) != Some(PathKind::Udp) || self.max() <= MTU_MIN {
            return None;
        }
        let is_busy = wide_at.is_some_and(|at| now.duration_since(at) < BUSY);
        if self.asked.is_some() || is_busy {
            return Some(now);
        }
        match self.next {
            Next::At(at) => Some(at),
            Next::WhenBusy(_) | Next::Never => None,
        }
    }

    /// An echo of a round came back.
    pub(super) fn answered(&mut self, round: u16, size: usize, now: Instant) {
        let Some(asked) = self.asked.as_mut().filter(|_| round == self.round) else {
            return;
        };
        if size < MTU_MIN {
            asked.small_at.get_or_insert(now);
            return;
        }
        asked.widest = asked.widest.max(size);
        let (kind, widest) = (asked.kind, asked.widest);
        match kind {
            Kind::Check if widest >= self.size() => self.asked = None,
            Kind::Check => {}
            Kind::Survey => {
                self.size = narrow(self.size().max(widest).min(self.max()));
                if widest >= self.max() {
                    self.conclude(widest, now);
                }
            }
        }
    }

    fn begin(&mut self, path: Option<Path>, now: Instant) {
        self.path = path;
        self.size = match path.map(Path::kind) {
            Some(PathKind::Carried) => self.max,
            Some(PathKind::Udp) | None => self.start,
        };
        self.asked = None;
        self.next = Next::At(now);
        self.tries = 0;
        self.silent = 0;
    }

    fn ask(&mut self, kind: Kind, now: Instant) -> Question {
        self.round = self.round.checked_add(1).unwrap_or(1);
        self.asked = Some(Box::new(Asked {
            kind,
            at: now,
            widest: 0,
            small_at: None,
        }));
        let mut sizes = [0; SIZES.len() + 1];
        match kind {
            Kind::Check => sizes[0] = self.size(),
            Kind::Survey => {
                self.next = Next::Never;
                let below = SIZES.iter().copied().filter(|size| *size < self.max());
                for (room, size) in sizes.iter_mut().zip([self.max()].into_iter().chain(below)) {
                    *room = size;
                }
            }
        }
        Question {
            round: self.round,
            sizes,
        }
    }

    /// Draws the conclusion, once there is one.
    fn judge(&mut self, round_trip: Duration, now: Instant) {
        let Some(asked) = self.asked.as_deref().copied() else {
            return;
        };
        // A peer that seemed silent may only be far away.
        let wait = (WAIT_MIN * 2u32.pow(u32::from(self.silent))).max(round_trip * 3);
        let is_settled = asked
            .small_at
            .is_some_and(|at| now.duration_since(at) >= SETTLE);
        let is_over = now.duration_since(asked.at) >= wait;
        match asked.kind {
            Kind::Survey if is_settled || (is_over && asked.widest > self.size()) => {
                self.conclude(asked.widest, now);
            }
            Kind::Survey if is_over => {
                self.asked = None;
                self.silent = (self.silent + 1).min(SILENT_MAX);
                self.next = if self.silent < SILENT_MAX {
                    Next::At(now + PAUSE_MIN)
                } else {
                    Next::WhenBusy(now + PAUSE_MAX)
                };
            }
            Kind::Check if is_settled => {
                self.asked = None;
                self.next = Next::At(now);
            }
            Kind::Check if is_over => self.asked = None,
            Kind::Survey | Kind::Check => {}
        }
    }

    fn conclude(&mut self, widest: usize, now: Instant) {
        self.asked = None;
        self.silent = 0;
        let size = widest.clamp(MTU_MIN, self.max());
        if size != self.size() {
            // A lost echo looks like a narrow path: look again soon.
            self.tries = 0;
        }
        self.size = narrow(size);
        if self.size >= self.max {
            self.next = Next::Never;
            self.tries = 0;
        } else {
            let pause = PAUSE_MIN * 4u32.pow(u32::from(self.tries));
            self.next = Next::WhenBusy(now + pause.min(PAUSE_MAX));
            self.tries = (self.tries + 1).min(TRIES_MAX);
        }
    }
}

/// Sizes of packets fit two bytes.
fn narrow(size: usize) -> u16 {
    u16::try_from(size).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TICK: Duration = Duration::from_millis(250);
    const ROUND_TRIP: Duration = Duration::from_millis(40);

    /// A path in invented time, and the state machine at its end.
    struct Bench {
        pmtu: Pmtu,
        path: Option<Path>,
        width: usize,
        /// Echoes lost for other reasons, per mille.
        loss: u64,
        state: u64,
        now: Instant,
        busy: bool,
        asked: usize,
    }

    impl Bench {
        fn new(width: usize) -> Self {
            Self {
                pmtu: Pmtu::new(1280, 1440),
                path: Some(Path::Udp(([192, 0, 2, 1], 1).into())),
                width,
                loss: 0,
                state: 1,
                now: Instant::now(),
                busy: true,
                asked: 0,
            }
        }

        fn step(&mut self) {
            let wide_at = self.busy.then_some(self.now);
            let question = self
                .pmtu
                .tick(self.path, (wide_at, Some(ROUND_TRIP)), self.now);
            if let Some(question) = question {
                self.asked += question.sizes().count() + 1;
                for size in question.sizes().chain([56]) {
                    self.state ^= self.state << 13;
                    self.state ^= self.state >> 7;
                    self.state ^= self.state << 17;
                    let is_lost = self.state % 1000 < self.loss;
                    if size <= self.width && !is_lost {
                        let at = self.now + ROUND_TRIP;
                        self.pmtu.answered(question.round, size, at);
                    }
                }
            }
            self.now += TICK;
        }

        fn run(&mut self, for_: Duration) {
            let end = self.now + for_;
            while self.now < end {
                self.step();
            }
        }
    }

    #[test]
    fn a_path_is_known_within_half_a_second_and_no_wider_than_it_is() {
        for (width, expected) in [
            (9000, 1440),
            (1440, 1440),
            (1439, 1408),
            (1400, 1360),
            (1300, 1280),
            (1279, 1200),
            (100, 1200),
        ] {
            let mut bench = Bench::new(width);
            assert_eq!(bench.pmtu.size(), 1280, "1280 first");
            bench.run(TICK * 2);
            assert_eq!(bench.pmtu.size(), expected, "path of {width}");
        }
    }

    #[test]
    fn a_path_that_narrows_is_followed_within_a_second_and_a_half_and_one_that_widens_too() {
        let mut bench = Bench::new(1440);
        bench.run(TICK * 4);
        for (width, expected) in [(1400, 1360), (1290, 1280), (1200, 1200)] {
            bench.width = width;
            bench.run(Duration::from_millis(1_500));
            assert_eq!(bench.pmtu.size(), expected, "path of {width}");
        }
        bench.width = 1440;
        bench.run(Duration::from_mins(5));
        assert_eq!(bench.pmtu.size(), 1440);
    }

    #[test]
    fn an_idle_path_is_left_alone() {
        let mut bench = Bench::new(1400);
        bench.busy = false;
        bench.run(Duration::from_secs(2));
        let asked = bench.asked;
        bench.run(Duration::from_mins(30));
        assert_eq!(bench.asked, asked);
    }

    #[test]
    fn a_peer_that_answers_no_echo_keeps_what_it_began_with() {
        let mut bench = Bench::new(0);
        bench.run(Duration::from_mins(1));
        assert_eq!(bench.pmtu.size(), 1280);
    }

    #[test]
    fn over_a_carrier_nothing_is_asked_and_another_path_begins_anew() {
        let mut bench = Bench::new(1440);
        bench.run(TICK * 4);
        assert_eq!(bench.pmtu.size(), 1440);
        bench.path = Some(Path::Carried(crate::path::CarrierId {
            number: 1,
            remote: std::net::Ipv4Addr::LOCALHOST.into(),
        }));
        let asked = bench.asked;
        bench.run(Duration::from_secs(5));
        assert_eq!((bench.pmtu.size(), bench.asked), (1440, asked));
        bench.path = Some(Path::Udp(([192, 0, 2, 1], 2).into()));
        bench.width = 1290;
        bench.step();
        assert_eq!(bench.pmtu.size(), 1280, "1280 first");
        bench.run(TICK * 2);
        assert_eq!(bench.pmtu.size(), 1280);
    }

    proptest! {
        #[test]
        fn under_loss_the_size_is_right_nearly_always_and_never_wider_than_the_path(
            width in 1200usize..1600,
            seed in 1u64..,
        ) {
            let mut bench = Bench::new(width);
            bench.loss = 20;
            bench.state = seed;
            let right = SIZES.into_iter().find(|size| *size <= width).unwrap();
            // What was 1280 before anything was known.
            bench.run(TICK * 20);
            let mut rights = 0;
            for _ in 0..400 {
                bench.step();
                prop_assert!(bench.pmtu.size() <= right);
                rights += usize::from(bench.pmtu.size() == right);
            }
            prop_assert!(rights >= 340, "{rights} of 400");
        }
    }
}
