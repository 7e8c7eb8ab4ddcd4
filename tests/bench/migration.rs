//! Measures what a dying machine costs the reader of a stream: the longest pause, how much of it passed before the proxy knew, and how
//! much until the next token; and how long a machine goes on for a reader who has left. The real stack on loopback: two machines with the tiny
//! model, one proxy, one reader.

use std::io::Write as _;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tests::client::Client;
use tests::node::Node;
use tests::process::send;
use tests::proxy::Proxy;
use tests::wait::until;

const NAMES: [&str; 2] = ["attic", "den"];
/// Tokens of one answer, and after how many of them its machine dies.
const TOKENS: u64 = 1_800;
const READ: usize = 20;
/// Readers who leave, one after the other.
const LEAVINGS: usize = 50;
const READY_MAX: Duration = Duration::from_mins(1);

/// Who dies.
#[derive(Clone, Copy, Debug)]
enum Death {
    /// The machine: nothing is told to anybody.
    Machine,
    /// It freezes with all its connections.
    Frozen,
    /// The worker process: its agent tells of it.
    Worker,
}

/// Of one answer, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// The longest pause between two chunks.
    gap: f64,
    /// From the death to the proxy's knowledge of it.
    detection: f64,
}

struct House {
    proxy: Proxy,
    nodes: [Node; 2],
    reader: Client,
    body: Value,
    answer: String,
}

impl House {
    async fn built() -> Self {
        let proxy = Proxy::generous()
            .routing("breaker_failures = 1000")
            .tunnel("heartbeat_secs = 1")
            .start()
            .await;
        let nodes = NAMES.map(|name| Node::named(name).tier("fast").join(&proxy));
        let reader = proxy.friend();
        let body = json!({
            "model": "fast",
            "messages": [{"role": "user", "content": "Tell me a long story of the sea."}],
            "temperature": 0,
            "max_tokens": TOKENS,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let mut house = Self {
            proxy,
            nodes,
            reader,
            body,
            answer: String::new(),
        };
        house.is_whole().await;
        let unbroken = house.reader.stream_body(house.body.clone()).await;
        house.answer = unbroken.collect().await.text;
        house
    }

    async fn is_whole(&self) {
        until("both machines serve", READY_MAX, || async {
            let ready = self.proxy.metric("hearth_nodes_ready").await;
            (ready >= 2.0).then_some(())
        })
        .await;
        self.proxy.serves(&self.reader, &["fast"]).await;
    }

    /// One answer whose machine dies; `None` if the answer was over before.
    async fn cost(&mut self, death: Death) -> Option<Cost> {
        let mut stream = self.reader.stream_body(self.body.clone()).await;
        let name = stream.headers["x-routing-node"].to_str().expect("a name");
        let at_work = NAMES.iter().position(|known| *known == name);
        let at_work = at_work.expect("one of the two");
        let (mut events, mut last, mut gap) = (Vec::new(), None::<Instant>, Duration::ZERO);
        let mut died = None;
        while let Some(event) = stream.data().await {
            let now = Instant::now();
            gap = gap.max(last.map_or(Duration::ZERO, |last| now - last));
            last = Some(now);
            events.push(event);
            if events.len() == READ {
                died = Some(SystemTime::now());
                self.die(at_work, death);
                last = Some(Instant::now());
            }
        }
        stream.unread(events);
        let transcript = stream.collect().await;
        assert_eq!(transcript.text, self.answer, "{:?}", transcript.error());
        let attempts = transcript.routing()["attempts"].as_array().map(Vec::len);
        self.revive(at_work, death);
        self.is_whole().await;
        let known = self.known_at();
        (attempts == Some(2)).then(|| Cost {
            gap: gap.as_secs_f64() * 1e3,
            detection: died
                .zip(known)
                .and_then(|(died, known)| known.duration_since(died).ok())
                .map_or(f64::NAN, |took| took.as_secs_f64() * 1e3),
        })
    }

    /// So long a machine goes on for a reader who has left, in milliseconds.
    async fn leaving(&self) -> f64 {
        let mut stream = self.reader.stream_body(self.body.clone()).await;
        for _event in 0..READ {
            stream.data().await.expect("it goes on");
        }
        drop(stream);
        let left = Instant::now();
        loop {
            let mut busy = 0.0;
            for node in &self.nodes {
                busy += node.metric("hearth_node_slots_busy").await.unwrap_or(0.0);
            }
            if busy < 0.5 {
                return left.elapsed().as_secs_f64() * 1e3;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn die(&mut self, at_work: usize, death: Death) {
        let node = &mut self.nodes[at_work];
        match death {
            Death::Machine => node.process().signal("KILL"),
            Death::Frozen => node.process().signal("STOP"),
            Death::Worker => {
                for worker in node.process().workers() {
                    send("KILL", worker);
                }
            }
        }
    }

    fn revive(&mut self, at_work: usize, death: Death) {
        let node = &mut self.nodes[at_work];
        match death {
            Death::Machine => node.restart(),
            Death::Frozen => node.process().signal("CONT"),
            Death::Worker => {}
        }
    }

    /// When the proxy last began to look for somebody else, as its log says.
    fn known_at(&mut self) -> Option<SystemTime> {
        let log = self.proxy.process().log();
        let lines = log.lines().rev();
        let mut at = lines
            .filter(|line| line.contains("is lost for an answer"))
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|line| unix_micros(line["ts"].as_str()?));
        let micros = at.next()?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_micros(micros))
    }
}

/// Of `2026-01-31T12:00:00.123456Z`.
fn unix_micros(stamp: &str) -> Option<u64> {
    let stamp = stamp.strip_suffix('Z')?;
    let (day, time) = stamp.split_once('T')?;
    let mut day = day.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (day.next()??, day.next()??, day.next()??);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = clock.split(':').map(|part| part.parse::<i64>().ok());
    let (hours, minutes, seconds) = (clock.next()??, clock.next()??, clock.next()??);
    // Days since 1970 of the civil calendar, years beginning in March.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let seconds = ((days * 24 + hours) * 60 + minutes) * 60 + seconds;
    let digits = format!("{fraction:0<6}");
    let micros: u64 = digits.get(..6)?.parse().ok()?;
    Some(u64::try_from(seconds).ok()? * 1_000_000 + micros)
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(f64::NAN)
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let rounds: usize = std::env::var("ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(5)
        .max(5);
    let mut house = House::built().await;
    let mut figures = serde_json::Map::new();
    let mut leavings = Vec::new();
    for _ in 0..LEAVINGS {
        leavings.push(house.leaving().await);
    }
    leavings.sort_by(f64::total_cmp);
    let (half, worst) = (leavings[LEAVINGS / 2], leavings[LEAVINGS - 1]);
    let _closed = writeln!(
        std::io::stderr(),
        "left (n = {LEAVINGS}): the machine stops after {half:.0} ms, at worst {worst:.0} ms, with the time to ask it"
    );
    for (figure, value) in [("leave_p50_ms", half), ("leave_max_ms", worst)] {
        figures.insert(figure.to_owned(), json!(value.round()));
    }
    for (name, death) in [
        ("killed", Death::Machine),
        ("frozen", Death::Frozen),
        ("worker", Death::Worker),
    ] {
        let mut costs = Vec::new();
        for _ in 0..rounds * 4 {
            costs.extend(house.cost(death).await);
            if costs.len() == rounds {
                break;
            }
        }
        let gap = median(costs.iter().map(|cost| cost.gap).collect());
        let detection = median(costs.iter().map(|cost| cost.detection).collect());
        let rest = median(
            costs
                .iter()
                .map(|cost| (cost.gap - cost.detection).max(0.0))
                .collect(),
        );
        let _closed = writeln!(
            std::io::stderr(),
            "{name} (n = {}): gap {gap:.0} ms, of which {detection:.0} ms until it was known and {rest:.0} ms to the next token",
            costs.len()
        );
        for (figure, value) in [
            ("gap_ms", gap),
            ("detection_ms", detection),
            ("rest_ms", rest),
        ] {
            figures.insert(format!("{name}_{figure}"), json!(value.round()));
        }
    }
    figures.insert(
        "migration_gap_ms".to_owned(),
        figures["killed_rest_ms"].clone(),
    );
    let _closed = writeln!(std::io::stdout(), "{}", Value::Object(figures));
}
