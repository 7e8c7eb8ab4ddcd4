//! The life of a house: work and events, then calm; again and again. In every calm everybody must be back, and nothing may have grown.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;
use tunnel::Tunnel;

use super::events::Event;
use super::house::{Ground, HUB, House, PORT, exchange};

/// Everybody is back so long after the last event.
const BACK_MAX: Duration = Duration::from_secs(30);
/// Requests break while things happen; one that neither ends nor breaks for so long is stuck.
const REQUEST_MAX: Duration = Duration::from_mins(1);
/// Events under way at once.
const EVENTS_MAX: usize = 12;
/// A helper of the kernel's TCP is asked for so many sockets at once, ahead of need.
const STOCK: usize = 16;
/// Tables and rooms that grow to their size and stay.
const SLACK_BYTES: u64 = 8 << 20;

pub(crate) struct Plan {
    pub(crate) ground: Ground,
    pub(crate) nodes: u16,
    pub(crate) rounds: u32,
    /// How long things happen in a round.
    pub(crate) round: Duration,
    pub(crate) seed: u64,
    /// Bytes that the heap holds now. What is resident says little: an allocator keeps what it was given back.
    pub(crate) held: fn() -> u64,
}

/// What a calm looks like.
#[derive(Clone, Copy, Debug)]
struct Calm {
    descriptors: usize,
    held: u64,
    resident: u64,
}

#[derive(Default)]
struct Counts {
    whole: AtomicU64,
    broken: AtomicU64,
    events: AtomicU64,
}

/// Lives through the plan and says in one line of JSON what it was.
pub(crate) async fn live(plan: Plan) -> String {
    let began = Instant::now();
    let seed = plan.seed;
    let house = Arc::new(House::build(plan.ground, plan.nodes).await);
    let counts = Arc::new(Counts::default());
    let mut random = StdRng::seed_from_u64(seed);
    let mut calms = vec![rest(&house, plan.held).await];
    for _ in 0..plan.rounds {
        round(&house, &counts, plan.round, &mut random).await;
        calms.push(rest(&house, plan.held).await);
    }
    let backend = house.hub().backend().name();
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let line = format!(
        "{{\"area\":\"hub-soak\",\"seed\":{seed},\"backend\":\"{backend}\",\"nodes\":{},\"rounds\":{},\"seconds\":{:.1},\"events\":{},\
         \"requests\":{},\"broken\":{},\"descriptors\":{:?},\"heap_mb\":{:?},\"resident_mb\":{:?}}}",
        plan.nodes,
        plan.rounds,
        began.elapsed().as_secs_f64(),
        read(&counts.events),
        read(&counts.whole),
        read(&counts.broken),
        calms
            .iter()
            .map(|calm| calm.descriptors)
            .collect::<Vec<_>>(),
        calms.iter().map(|calm| calm.held >> 20).collect::<Vec<_>>(),
        calms
            .iter()
            .map(|calm| calm.resident >> 20)
            .collect::<Vec<_>>(),
    );
    check(&calms, &line);
    assert!(read(&counts.whole) > 0, "nothing worked: {line}");
    line
}

/// The first round warms up; from then on nothing grows.
fn check(calms: &[Calm], line: &str) {
    let [first, warm, .., last] = calms else {
        return;
    };
    let more = last.descriptors.saturating_sub(first.descriptors);
    assert!(more <= STOCK + 2, "{more} descriptors were left: {line}");
    let allowed = warm.held + warm.held / 20 + SLACK_BYTES;
    assert!(last.held <= allowed, "memory has grown: {line}");
}

/// Work and events, for so long.
async fn round(house: &Arc<House>, counts: &Arc<Counts>, time: Duration, random: &mut StdRng) {
    let over = Arc::new(AtomicBool::new(false));
    let mut workers = JoinSet::new();
    for place in 0..house.nodes.len() {
        let (house, counts, over) = (Arc::clone(house), Arc::clone(counts), Arc::clone(&over));
        workers.spawn(work(house, place, (counts, over), random.random()));
    }
    let mut events = JoinSet::new();
    let end = Instant::now() + time;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(random.random_range(20..80))).await;
        while events.len() >= EVENTS_MAX {
            join(events.join_next().await);
        }
        let event = Event::draw(random);
        let place = random.random_range(0..house.nodes.len());
        events.spawn(event.happen(Arc::clone(house), place, random.random()));
        counts.events.fetch_add(1, Ordering::Relaxed);
    }
    while let Some(done) = events.join_next().await {
        join(Some(done));
    }
    for node in &house.nodes {
        node.wire.heal();
    }
    over.store(true, Ordering::Relaxed);
    while let Some(done) = workers.join_next().await {
        join(Some(done));
    }
}

fn join(done: Option<Result<(), tokio::task::JoinError>>) {
    if let Some(done) = done {
        done.expect("nobody fails");
    }
}

/// Requests to a node and from it, one after the other. One may break; none may bring other bytes than were sent.
async fn work(
    house: Arc<House>,
    place: usize,
    (counts, over): (Arc<Counts>, Arc<AtomicBool>),
    seed: u64,
) {
    let mut random = StdRng::seed_from_u64(seed);
    while !over.load(Ordering::Relaxed) {
        let is_whole = tokio::time::timeout(REQUEST_MAX, request(&house, place, &mut random)).await;
        let count = if is_whole.expect("a request that neither ends nor breaks") {
            &counts.whole
        } else {
            &counts.broken
        };
        count.fetch_add(1, Ordering::Relaxed);
        let pause = Duration::from_millis(random.random_range(10..300));
        tokio::time::sleep(pause).await;
    }
}

/// True: whole. False: it broke.
async fn request(house: &House, place: usize, random: &mut StdRng) -> bool {
    let node = &house.nodes[place];
    let (from, to): (Tunnel, _) = if random.random() {
        (house.hub(), node.address())
    } else {
        (node.tunnel(), HUB)
    };
    let mut bytes = vec![0; random.random_range(1..40_000)];
    random.fill(bytes.as_mut_slice());
    let Ok(stream) = from.connect(to, PORT, Duration::from_secs(2)).await else {
        return false;
    };
    let exchanged = tokio::time::timeout(Duration::from_secs(10), exchange(stream, &bytes)).await;
    match exchanged {
        Ok(Ok(back)) => {
            assert!(bytes.starts_with(&back), "other bytes came back");
            back.len() == bytes.len()
        }
        Ok(Err(_)) | Err(_) => false,
    }
}

/// Waits until everybody answers and no stream is left, and looks.
async fn rest(house: &Arc<House>, held: fn() -> u64) -> Calm {
    let give_up = Instant::now() + BACK_MAX;
    let mut backs = JoinSet::new();
    for place in 0..house.nodes.len() {
        let house = Arc::clone(house);
        backs.spawn(async move {
            let mut random = StdRng::seed_from_u64(7);
            while !request(&house, place, &mut random).await {
                assert!(Instant::now() < give_up, "node {place} is not back");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
    while let Some(done) = backs.join_next().await {
        join(Some(done));
    }
    let hub = house.hub();
    for node in &house.nodes {
        // A stream whose other end is gone without a word is asked after by itself.
        let patience = Instant::now() + BACK_MAX * 3;
        while hub.streams_now(node.address()).await.unwrap_or(0) > 0 {
            assert!(
                Instant::now() < patience,
                "a stream is left with {}",
                node.address()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Calm {
        descriptors: std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
        held: held(),
        resident: resident(),
    }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}
