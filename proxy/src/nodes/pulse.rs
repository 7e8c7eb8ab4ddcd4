//! Notices within a second that a node is gone while requests are under way at it: one that is silent is asked inside the tunnel for a
//! sign of life, again and again, and when none comes its connections are cut, so that whoever waits there goes on elsewhere at once. Never
//! judges a node that never answered such a question, nor one that is only slow: its tunnel answers however busy its models are.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use config::ids::NodeId;
use config::settings::proxy::Routing;
use tunnel::{PeerStatus, Tunnel};

use super::fleet::Fleet;
use super::members::{Member, Members};
use super::upstream::Upstream;
use crate::observe::metrics::Metrics;

/// Between two questions to a node that is silent. With 30 % of the packets lost each way, half of the questions are answered.
const ASK_EVERY: Duration = Duration::from_millis(25);
/// So many questions at least, however little time was given.
const QUESTIONS_MIN: u32 = 8;
/// An answer may be so many round trips late: the first ones on a path of which little is known, or whose delay has just grown.
const ROUND_TRIPS: u32 = 3;
/// A path is measured so often while it is in use.
const MEASURE_EVERY: Duration = Duration::from_secs(2);
/// Nobody waits for this long without a look at who has become busy.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// When a node is asked, and when it is believed gone.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Silence before the first question.
    pub after: Duration,
    /// So long an answer is waited for; longer where the way is far.
    pub patience: Duration,
}

impl From<&Routing> for Rules {
    fn from(routing: &Routing) -> Self {
        Self {
            after: routing.silence,
            patience: routing.silence_patience,
        }
    }
}

/// What is to be done about one node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    /// Nothing: it was heard.
    Rest,
    /// Ask it now, and look again soon.
    Ask,
    /// It is gone.
    Lost,
    /// It was gone and is heard again.
    Back,
}

/// One node with requests under way.
#[derive(Clone, Copy, Debug)]
struct Vigil {
    /// The first question that went unanswered, and how many followed.
    unanswered: Option<(Instant, u32)>,
    measured_at: Option<Instant>,
    is_lost: bool,
}

impl Vigil {
    const NEW: Self = Self {
        unanswered: None,
        measured_at: None,
        is_lost: false,
    };

    fn look(&mut self, status: &PeerStatus, rules: Rules, now: Instant) -> Step {
        let silence = status.since_heard.unwrap_or(Duration::MAX);
        // Heard after the first question: that is an answer, whatever it was.
        let asked = self.unanswered.map(|(at, _)| now.duration_since(at));
        if silence < rules.after || asked.is_some_and(|asked| silence < asked) {
            return self.heard(now);
        }
        let Some(round_trip) = status.round_trip else {
            // It may be too old to know the question.
            return self.measure(now);
        };
        let (since, questions) = self.unanswered.get_or_insert((now, 0));
        // Half of the time for questions, and three round trips for their answers.
        let far = rules.patience / 2 + round_trip * ROUND_TRIPS;
        let patience = rules.patience.max(far);
        if !self.is_lost && *questions >= QUESTIONS_MIN && now.duration_since(*since) >= patience {
            self.is_lost = true;
            return Step::Lost;
        }
        *questions = questions.saturating_add(1);
        Step::Ask
    }

    fn heard(&mut self, now: Instant) -> Step {
        self.unanswered = None;
        if std::mem::take(&mut self.is_lost) {
            return Step::Back;
        }
        self.measure(now)
    }

    fn measure(&mut self, now: Instant) -> Step {
        let is_due = |at: Instant| now.duration_since(at) >= MEASURE_EVERY;
        if self.measured_at.is_none_or(is_due) {
            self.measured_at = Some(now);
            return Step::Ask;
        }
        Step::Rest
    }
}

/// Watches the nodes of one proxy.
pub struct Pulse {
    /// Knows where requests are under way.
    pub fleet: Arc<Fleet>,
    /// Where the nodes are.
    pub members: Arc<Members>,
    /// Whose connections are cut.
    pub upstream: Upstream,
    /// Carries the questions.
    pub tunnel: Tunnel,
    /// Counts who was lost.
    pub metrics: Arc<Metrics>,
    /// When.
    pub rules: Rules,
}

impl Pulse {
    /// Watches for ever; with a silence of zero, nobody.
    pub async fn watch(self) {
        if self.rules.after.is_zero() {
            return;
        }
        let mut vigils: HashMap<NodeId, Vigil> = HashMap::new();
        loop {
            let busy = self.fleet.busy();
            // Who was lost is watched until it is back or gone from the table, whether anybody waits for it or not.
            vigils.retain(|node, vigil| {
                busy.contains(node) || (vigil.is_lost && self.members.member(node).is_some())
            });
            for node in busy {
                vigils.entry(node).or_insert(Vigil::NEW);
            }
            let mut pause = LOOK_EVERY;
            for (node, vigil) in &mut vigils {
                if self.look(node, vigil).await {
                    pause = ASK_EVERY;
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Looks at one node; whether it is to be looked at again soon.
    async fn look(&self, node: &NodeId, vigil: &mut Vigil) -> bool {
        let Some(member) = self.members.member(node) else {
            return false;
        };
        let Some(status) = self.tunnel.peer_status(member.address) else {
            return false;
        };
        let now = tokio::time::Instant::now().into_std();
        if let Some(round_trip) = status.round_trip {
            self.fleet.took(&member.id, round_trip);
        }
        match vigil.look(&status, self.rules, now) {
            Step::Rest => false,
            Step::Ask => {
                // An error: it has just left the tunnel, and its connections with it.
                let _asked = self.tunnel.echo(member.address).await;
                // Of one that was lost nobody waits to hear.
                !vigil.is_lost
            }
            Step::Lost => {
                self.lost(&member, &status);
                false
            }
            Step::Back => {
                tracing::info!(node = %member.id, name = member.name, "a node is heard again");
                self.fleet.heard_again(&member.id, now);
                false
            }
        }
    }

    fn lost(&self, member: &Member, status: &PeerStatus) {
        let heard_ms = status.since_heard.map(|heard| heard.as_millis());
        tracing::warn!(node = %member.id, name = member.name, heard_ms, "a node gives no sign of life: its requests go on elsewhere");
        self.metrics.node_lost();
        let now = tokio::time::Instant::now().into_std();
        // Until it reports again nothing new goes there, unless it can be woken.
        self.fleet.lost(&member.id, now);
        self.upstream.cut(member.address);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    const RULES: Rules = Rules {
        after: Duration::from_millis(250),
        patience: Duration::from_millis(500),
    };

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn status(since_heard: Duration, round_trip: Option<Duration>) -> PeerStatus {
        let key = tunnel::PrivateKey::from_bytes([1; 32]).public_key();
        PeerStatus {
            public_key: key,
            endpoint: None,
            remote: None,
            path: tunnel::PathKind::Carried,
            mtu: 1_280,
            since_handshake: Some(Duration::from_secs(9)),
            since_heard: Some(since_heard),
            rx_bytes: 0,
            tx_bytes: 0,
            streams: 1,
            round_trip,
            loss_per_mille: None,
            rejected: tunnel::Counters::default(),
        }
    }

    /// A path with a node at its end, and the proxy's looks at it, in invented time.
    struct Path {
        loss_per_mille: u32,
        one_way: Duration,
        /// Of the answers' own traffic: a datagram this often, if any.
        traffic: Option<Duration>,
        random: StdRng,
        arrivals: Vec<Instant>,
    }

    impl Path {
        fn new(
            loss_per_mille: u32,
            one_way: Duration,
            traffic: Option<Duration>,
            seed: u64,
        ) -> Self {
            Self {
                loss_per_mille,
                one_way,
                traffic,
                random: StdRng::seed_from_u64(seed),
                arrivals: Vec::new(),
            }
        }

        fn passes(&mut self) -> bool {
            self.random.random_range(0..1000) >= self.loss_per_mille
        }

        /// Watches for so long; when the node was believed gone.
        fn watched(&mut self, dies: Option<Duration>, lasts: Duration) -> Option<Duration> {
            let began = Instant::now();
            let (mut now, mut heard, mut said) = (began, began, began);
            let mut vigil = Vigil::NEW;
            let alive = |at: Instant| dies.is_none_or(|dies| at < began + dies);
            while now < began + lasts {
                while let Some(every) = self.traffic
                    && said + every <= now
                {
                    said += every;
                    if alive(said) && self.passes() {
                        self.arrivals.push(said + self.one_way);
                    }
                }
                self.arrivals.sort();
                while self.arrivals.first().is_some_and(|at| *at <= now) {
                    heard = heard.max(self.arrivals.remove(0));
                }
                let seen = status(now - heard, Some(self.one_way * 2));
                let mut pause = LOOK_EVERY;
                match vigil.look(&seen, RULES, now) {
                    Step::Lost => return Some(now - began),
                    Step::Ask => {
                        let there = now + self.one_way;
                        if self.passes() && alive(there) && self.passes() {
                            self.arrivals.push(there + self.one_way);
                        }
                        pause = ASK_EVERY;
                    }
                    Step::Rest | Step::Back => {}
                }
                now += pause;
            }
            None
        }
    }

    #[test]
    fn a_dead_node_is_noticed_within_a_second() {
        for one_way in [0, 1, 10, 30] {
            let mut path = Path::new(0, ms(one_way), Some(ms(20)), 1);
            let lost = path
                .watched(Some(ms(2_000)), ms(10_000))
                .expect("it is noticed");
            assert!(lost < ms(3_000), "{one_way} ms: {lost:?}");
        }
    }

    #[test]
    fn a_node_that_reads_a_long_prompt_is_left_in_peace() {
        let mut path = Path::new(0, ms(5), None, 1);
        assert_eq!(path.watched(None, Duration::from_mins(5)), None);
    }

    #[test]
    fn thirty_percent_loss_and_two_hundred_milliseconds_cost_nothing() {
        for seed in 0..20 {
            for traffic in [None, Some(ms(50)), Some(ms(700))] {
                let mut path = Path::new(300, ms(200), traffic, seed);
                let watched = path.watched(None, Duration::from_mins(2));
                assert_eq!(watched, None, "seed {seed}, {traffic:?}");
            }
        }
    }

    #[test]
    fn a_dead_node_is_noticed_through_loss_and_delay_too() {
        let mut path = Path::new(300, ms(200), Some(ms(50)), 3);
        let lost = path
            .watched(Some(ms(5_000)), ms(20_000))
            .expect("it is noticed");
        assert!(lost < ms(5_000) + ms(3_000), "{lost:?}");
    }

    #[test]
    fn one_that_never_answered_a_question_is_not_judged() {
        let mut vigil = Vigil::NEW;
        let began = Instant::now();
        for at in 0..600 {
            let now = began + ms(at * 100);
            let step = vigil.look(&status(ms(at * 100), None), RULES, now);
            assert!(matches!(step, Step::Rest | Step::Ask), "{at}: {step:?}");
        }
    }

    #[test]
    fn one_that_is_heard_again_is_back_once() {
        let mut vigil = Vigil::NEW;
        let began = Instant::now();
        let rtt = Some(ms(1));
        let mut at = 0;
        loop {
            let step = vigil.look(&status(ms(1_000 + at), rtt), RULES, began + ms(at));
            if step == Step::Lost {
                break;
            }
            at += 25;
            assert!(at < 2_000, "never lost");
        }
        let later = began + ms(at + 25);
        assert_eq!(vigil.look(&status(ms(9_000), rtt), RULES, later), Step::Ask);
        assert_eq!(
            vigil.look(&status(ms(3), rtt), RULES, later + ms(9)),
            Step::Back
        );
        assert_ne!(
            vigil.look(&status(ms(3), rtt), RULES, later + ms(9)),
            Step::Back
        );
    }

    #[test]
    fn after_a_sleep_of_our_own_everybody_is_asked_first() {
        let mut vigil = Vigil::NEW;
        let step = vigil.look(
            &status(Duration::from_hours(1), Some(ms(1))),
            RULES,
            Instant::now(),
        );
        assert_eq!(step, Step::Ask);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        #[test]
        fn weather_alone_never_loses_a_node(
            loss in 0u32..=300,
            one_way in 0u64..=200,
            traffic in proptest::option::of(5u64..2_000),
            seed in any::<u64>(),
        ) {
            let mut path = Path::new(loss, ms(one_way), traffic.map(ms), seed);
            prop_assert_eq!(path.watched(None, Duration::from_secs(30)), None);
        }

        #[test]
        fn the_dead_are_always_noticed(
            loss in 0u32..=300,
            one_way in 0u64..=200,
            dies in 500u64..5_000,
            seed in any::<u64>(),
        ) {
            let mut path = Path::new(loss, ms(one_way), Some(ms(50)), seed);
            let lost = path.watched(Some(ms(dies)), ms(dies + 20_000));
            // Silence, patience, three round trips, what was still on its way, and a look.
            let most = ms(dies) + RULES.after + RULES.patience + ms(one_way) * 10 + LOOK_EVERY * 2;
            prop_assert!(lost.is_some_and(|at| at <= most), "{lost:?} of {most:?}");
        }
    }
}
