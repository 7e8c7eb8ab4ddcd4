//! Measures the two decisions of every request, in process: what the classifier thinks of a prompt of 8 KiB, and the route through a
//! fleet of 1,000 machines with three tiers each. Beside each stands a simple peer. `bench-routing classify` or `bench-routing route`;
//! prints one JSON object.

use std::hint::black_box;
use std::io::Write as _;
use std::time::{Duration, Instant};

use config::ids::{BackendId, NodeId, UserId};
use config::settings::load::{Outside, parse_proxy};
use config::settings::proxy::{Plan, Routing};
use config::tier::Tier;
use config::wire::node::{Memory, ModelReport, Report, TierReport, TierState, VERSION};
use policy::classify::{
    Ask, Category, Features, Reason, Speaker, Thresholds, Turn, Verdict, classify,
};
use policy::identity::Principal;
use policy::route::{self, Needs, Prompt, Target};
use policy::router::{Outcome, Router};
use serde_json::json;

const GOLDEN: &str = include_str!("../../proxy/policy/tests/golden.txt");
const PROMPT_BYTES: usize = 8 * 1_024;
const NODES: u32 = 1_000;
const ROUNDS: usize = 20_000;

fn main() {
    let answer = match std::env::args().nth(1).as_deref() {
        Some("classify") => classified(),
        Some("route") => routed(),
        Some(_) | None => {
            let _closed = writeln!(std::io::stderr(), "bench-routing classify|route");
            std::process::exit(64);
        }
    };
    let _closed = writeln!(std::io::stdout(), "{answer}");
}

fn defaults() -> Routing {
    parse_proxy("defaults", "", &Outside::this())
        .expect("the defaults are sound")
        .routing
}

/// Each call by itself: a median of sums would hide the slow ones.
fn measure(mut call: impl FnMut(usize)) -> [f64; 2] {
    for round in 0..ROUNDS / 10 {
        call(round);
    }
    let mut took: Vec<Duration> = (0..ROUNDS)
        .map(|round| {
            let started = Instant::now();
            call(round);
            started.elapsed()
        })
        .collect();
    took.sort_unstable();
    [50, 99].map(|share| {
        let at = took.get(took.len() * share / 100);
        let micros = at.map_or(0.0, |took| took.as_secs_f64() * 1e6);
        (micros * 100.0).round() / 100.0
    })
}

/// Prompts of 8 KiB: those of the golden set in one language one after the other, until it is enough.
fn prompts() -> Vec<String> {
    let languages = ["en", "de", "es", "fr", "zh", "ja"];
    let prompt = |language: &str| {
        let lines = GOLDEN.lines().filter(|line| line.starts_with(language));
        let texts: Vec<&str> = lines
            .filter_map(|line| line.splitn(4, ' ').nth(3))
            .collect();
        let mut text = texts.join("\n").repeat(8);
        text.truncate(text.floor_char_boundary(PROMPT_BYTES));
        text
    };
    languages.iter().map(|language| prompt(language)).collect()
}

fn classified() -> serde_json::Value {
    let prompts = prompts();
    let thresholds = Thresholds::from(&defaults());
    let prompt = |round: usize| {
        prompts
            .get(round % prompts.len())
            .map_or("", String::as_str)
    };
    let [p50, p99] = measure(|round| {
        let turns = [Turn {
            speaker: Speaker::User,
            text: prompt(round),
        }];
        let features = Features::of_ask(&Ask {
            turns: &turns,
            ..Ask::default()
        });
        black_box(classify(&features, thresholds));
    });
    let [peer_p50, peer_p99] = measure(|round| {
        black_box(by_keywords(prompt(round)));
    });
    json!({
        "classify_p50_us": p50, "classify_p99_us": p99,
        "keywords_p50_us": peer_p50, "keywords_p99_us": peer_p99,
        "bytes": PROMPT_BYTES, "languages": prompts.len(),
    })
}

/// The peer: what a small gateway does. Lower case, then each of a few English words is looked for.
fn by_keywords(text: &str) -> Tier {
    const HEAVY: [&str; 8] = [
        "prove",
        "analy",
        "compare",
        "evaluate",
        "step by step",
        "design",
        "derive",
        "in detail",
    ];
    const PRIMARY: [&str; 8] = [
        "explain", "summar", "code", "function", "write", "rewrite", "why", "how",
    ];
    let text = text.to_lowercase();
    if HEAVY.iter().any(|word| text.contains(word)) {
        Tier::Heavy
    } else if PRIMARY.iter().any(|word| text.contains(word)) {
        Tier::Primary
    } else {
        Tier::Fast
    }
}

fn routed() -> serde_json::Value {
    let now = Instant::now();
    let router = fleet(now);
    let principal = Principal::person(UserId::new("bench"), Plan::default());
    let heavy = Target::Auto(Verdict {
        tier: Tier::Heavy,
        category: Category::Analysis,
        score: 0.8,
        reasons: vec![Reason {
            rule: "reasoning",
            weight: 0.26,
        }],
    });
    let targets = [
        ("auto", heavy),
        ("tier", Target::Tier(Tier::Fast)),
        ("model", Target::Model("model-primary-3".to_owned())),
    ];
    let mut out = serde_json::Map::new();
    let mut worst = [0.0_f64; 2];
    for (name, target) in &targets {
        let ask = route::Ask {
            target,
            principal: &principal,
            needs: Needs::default(),
            fallback: true,
            past_queues: false,
            past_waits: false,
            local_only: false,
            patience: Duration::from_secs(10),
            prompt: Prompt::default(),
        };
        let took = measure(|_round| {
            black_box(router.plan(&ask, now));
        });
        for (worst, took) in worst.iter_mut().zip(took) {
            *worst = worst.max(took);
        }
        out.insert(format!("{name}_us"), json!(took));
    }
    let ring: Vec<BackendId> = router
        .registry()
        .backends()
        .map(|backend| backend.id())
        .collect();
    let peer = measure(|round| {
        let next = ring.iter().cycle().skip(round % ring.len());
        black_box(
            next.clone()
                .find(|backend| backend.tier == Tier::Heavy)
                .cloned(),
        );
    });
    let [p50, p99] = worst;
    out.insert("route_p50_us".to_owned(), json!(p50));
    out.insert("route_p99_us".to_owned(), json!(p99));
    out.insert("round_robin_us".to_owned(), json!(peer));
    out.insert("backends".to_owned(), json!(ring.len()));
    out.into()
}

/// Machines under uneven load: every seventh tier has attempts of ours under way, every fiftieth has an open breaker.
fn fleet(now: Instant) -> Router {
    let routing = defaults();
    let mut router = Router::new(&routing, Duration::from_hours(24), 2_000);
    for number in 0..NODES {
        let report = Report {
            version: VERSION,
            node_id: NodeId::new(format!(
                "node_{:08x}{number:08x}",
                number.wrapping_mul(2_654_435_761)
            )),
            seq: 1,
            draining: number % 97 == 0,
            memory: Memory::default(),
            tiers: Tier::ALL.map(|kind| tier(kind, number)).to_vec(),
            wake: None,
            back_end: None,
        };
        router
            .report(&format!("machine-{number}"), report, now)
            .expect("a sound report");
    }
    let backends: Vec<BackendId> = router
        .registry()
        .backends()
        .map(|backend| backend.id())
        .collect();
    for (at, backend) in backends.iter().enumerate() {
        let attempts = if at % 7 == 0 { 2 } else { 0 };
        for _ in 0..attempts {
            // Never settled: it stays under way for as long as the bench runs.
            drop(router.begin(backend, now));
        }
        if at % 50 == 0 {
            for _ in 0..routing.breaker_failures {
                if let Some(ticket) = router.begin(backend, now) {
                    router.settle(ticket, Outcome::ConnectFailed, now);
                }
            }
        }
    }
    router
}

fn tier(tier: Tier, number: u32) -> TierReport {
    let load = number.wrapping_mul(2_246_822_519) >> 24;
    TierReport {
        tier,
        state: TierState::Ready,
        reason: None,
        model: Some(ModelReport {
            id: format!("model-{tier}-{}", number % 10),
            aliases: Vec::new(),
            file_sha256: format!("{number:064x}"),
            size_bytes: 1,
            n_ctx: 8_192,
            n_ctx_train: 8_192,
            parameters: 1,
            quantization: "Q8_0".to_owned(),
            architecture: "llama".to_owned(),
            modalities: vec!["text".to_owned()],
        }),
        slots: 4,
        slots_busy: load % 5,
        queue_depth: if load % 5 == 4 { load % 9 } else { 0 },
        queue_max: 64,
        tokens_per_second: 20.0 + f64::from(load),
        prompt_tokens_per_second: 400.0,
        prefixes: Vec::new(),
        elsewhere: false,
        wakes_in_ms: 0,
    }
}
