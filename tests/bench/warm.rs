//! Measures how many turns of conversations find what was said before in the cache of the machine that answers, and how long the first
//! word takes: three real machines and one proxy on loopback, people who talk at the same time and pause in between. The peer is a round
//! robin over the same machines: each has a name of its own for the same model, and the names are asked for in turn.
//! `bench-warm MODEL`; prints one JSON object.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tests::client::Client;
use tests::node::Node;
use tests::proxy::Proxy;
use tests::talk::{Talk, Turn, words};
use tests::wait::until;

const NAMES: [&str; 3] = ["attic", "den", "loft"];
/// Slots of a machine: all its conversations fit, as in a house that is not too small for its people.
const SLOTS: u32 = 4;
/// People who talk at the same time, one conversation each. No multiple of the machines: whoever goes round would then come back to the
/// same one by accident.
const PEOPLE: usize = 11;
const TURNS: usize = 6;
/// Words of the first question, with a page of text, and of the later ones.
const FIRST_WORDS: usize = 120;
const LATER_WORDS: usize = 40;
const ANSWER: u32 = 16;
/// Pauses between two turns, in milliseconds.
const PAUSES: std::ops::Range<u64> = 1_000..4_000;
const READY_MAX: Duration = Duration::from_mins(2);
/// Longer takes no answer, however busy the machine is.
const ANSWER_MAX: Duration = Duration::from_mins(10);

/// Who chooses the machine.
#[derive(Clone)]
enum Choice {
    Hearth,
    /// The next one, whoever asks.
    RoundRobin(Arc<AtomicUsize>),
}

impl Choice {
    fn model(&self) -> String {
        match self {
            Self::Hearth => "fast".to_owned(),
            Self::RoundRobin(count) => {
                let next = count.fetch_add(1, Ordering::Relaxed) % NAMES.len();
                format!("at-{}", NAMES[next])
            }
        }
    }
}

/// One conversation from its first turn to its last.
async fn person(client: Client, choice: Choice, seed: u64) -> Vec<Turn> {
    let mut talk = Talk::new(client, ANSWER);
    let mut turns = Vec::new();
    for turn in 0..TURNS {
        let spread = PAUSES.end - PAUSES.start;
        let number = u64::try_from(turn).unwrap_or(0);
        let pause = PAUSES.start + seed.wrapping_mul(7_919).wrapping_add(number * 4_211) % spread;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let length = if turn == 0 { FIRST_WORDS } else { LATER_WORDS };
        let question = words(seed * 1_000 + number, length);
        turns.push(talk.say(&choice.model(), &question).await);
    }
    turns
}

/// What a load came to.
#[derive(Default)]
struct Sums {
    later: usize,
    warm: usize,
    prompt_tokens: u64,
    cached_tokens: u64,
    first_ms: Vec<f64>,
    later_ms: Vec<f64>,
    given: BTreeMap<String, usize>,
}

impl Sums {
    fn add(&mut self, turn: &Turn) {
        *self.given.entry(turn.node.clone()).or_default() += 1;
        let ms = turn.first.as_secs_f64() * 1e3;
        if turn.before.is_none() {
            self.first_ms.push(ms);
            return;
        }
        self.later += 1;
        self.warm += usize::from(turn.is_warm());
        self.prompt_tokens += turn.prompt_tokens;
        self.cached_tokens += turn.cached_tokens;
        self.later_ms.push(ms);
    }

    /// The largest share of a machine, in equal shares.
    fn share_max(&self) -> f64 {
        let all: usize = self.given.values().sum();
        let most = self.given.values().max().copied().unwrap_or(0);
        round(float(most) * float(NAMES.len()) / float(all.max(1)))
    }

    fn figures(&mut self) -> Value {
        json!({
            "warm_hit_rate": round(float(self.warm) / float(self.later.max(1))),
            "cached_share": round(part(self.cached_tokens, self.prompt_tokens)),
            "ttft_p50_ms": quantile(&mut self.later_ms, 50),
            "ttft_p99_ms": quantile(&mut self.later_ms, 99),
            "first_turn_p50_ms": quantile(&mut self.first_ms, 50),
            "share_max": self.share_max(),
            "turns": self.later,
        })
    }
}

fn float(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}

fn part(of: u64, all: u64) -> f64 {
    let count = |tokens: u64| float(usize::try_from(tokens).unwrap_or(usize::MAX));
    count(of) / count(all.max(1))
}

fn round(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

fn quantile(of: &mut [f64], percent: usize) -> f64 {
    of.sort_by(f64::total_cmp);
    let at = (of.len() * percent / 100).min(of.len().saturating_sub(1));
    of.get(at).copied().unwrap_or(f64::NAN).round()
}

struct House {
    proxy: Proxy,
    _nodes: Vec<Node>,
    friend: Client,
}

impl House {
    async fn built(model: &str) -> Self {
        let proxy = Proxy::generous().tunnel("heartbeat_secs = 1").start().await;
        let join = |name: &&str| {
            Node::named(name)
                .tier_with(
                    "fast",
                    model,
                    SLOTS,
                    &format!("aliases = [\"at-{name}\"]\ncontext = 4096\nthreads = 1"),
                )
                .join(&proxy)
        };
        let nodes: Vec<Node> = NAMES.iter().map(join).collect();
        let patient = Client::patient(&proxy.url(), &proxy.certificate(), ANSWER_MAX);
        let friend = patient.with_bearer(&proxy.key("bench").1);
        until("three machines serve", READY_MAX, || async {
            (proxy.metric("hearth_nodes_ready").await >= 3.0).then_some(())
        })
        .await;
        let house = Self {
            proxy,
            _nodes: nodes,
            friend,
        };
        // The first answers pay for page faults and growing buffers.
        for name in NAMES {
            let mut talk = Talk::new(house.friend.clone(), ANSWER);
            talk.say(&format!("at-{name}"), &words(1, FIRST_WORDS))
                .await;
        }
        house
    }

    async fn load(&self, choice: &Choice, seed: u64) -> Vec<Turn> {
        let people = (0..PEOPLE).map(|number| {
            let number = u64::try_from(number).unwrap_or(0);
            let seed = seed * 100 + number + 2;
            person(self.friend.clone(), choice.clone(), seed)
        });
        let turns = join_all(people).await;
        turns.into_iter().flatten().collect()
    }
}

fn tell(line: &str) {
    let _closed = writeln!(std::io::stderr(), "{line}");
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let Some(model) = std::env::args().nth(1) else {
        tell("usage: bench-warm MODEL: a GGUF file with a context of 4,096 tokens");
        std::process::exit(64);
    };
    let rounds = std::env::var("ROUNDS").ok();
    let rounds: u64 = rounds.and_then(|rounds| rounds.parse().ok()).unwrap_or(3);
    let house = House::built(&model).await;
    let (mut hearth, mut robin) = (Sums::default(), Sums::default());
    let next = Arc::new(AtomicUsize::new(0));
    for number in 0..rounds {
        for (name, sums, choice) in [
            ("hearth", &mut hearth, Choice::Hearth),
            (
                "round robin",
                &mut robin,
                Choice::RoundRobin(Arc::clone(&next)),
            ),
        ] {
            let seed = number * 2 + u64::from(name == "hearth");
            let turns = house.load(&choice, seed).await;
            for turn in &turns {
                sums.add(turn);
            }
            tell(&format!(
                "{name} after round {}: {} {:?}",
                number + 1,
                sums.figures(),
                sums.given
            ));
        }
    }
    let missed = house
        .proxy
        .metric("hearth_route_warm_total{tier=\"fast\",result=\"cold\"")
        .await;
    tell(&format!(
        "later turns that Hearth itself took for cold, both loads: {missed}"
    ));
    let (ours, peers) = (hearth.figures(), robin.figures());
    let answer = json!({
        "warm_hit_rate": ours["warm_hit_rate"],
        "warm_cached_share": ours["cached_share"],
        "warm_ttft_p50_ms": ours["ttft_p50_ms"],
        "warm_ttft_p99_ms": ours["ttft_p99_ms"],
        "warm_share_max": ours["share_max"],
        "round_robin_warm_hit_rate": peers["warm_hit_rate"],
        "round_robin_cached_share": peers["cached_share"],
        "round_robin_ttft_p50_ms": peers["ttft_p50_ms"],
        "round_robin_ttft_p99_ms": peers["ttft_p99_ms"],
    });
    let _closed = writeln!(std::io::stdout(), "{answer}");
}
