//! Predicts how long a backend takes to its first token, and remembers which conversations lie warm where. Knows hashes alone, never
//! a text; a prediction orders candidates and never leaves one out.
//!
//! The chain of a conversation has one link for each message: the hash of everything up to it, keyed by whom it belongs to. Links of
//! the opening that conversations share (tools, system prompt) are not in it: every node has them soon, and whoever had them first
//! would otherwise draw all that is new.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use config::ids::{BackendId, NodeId};
use config::wire::node::TierReport;

/// Reading speed assumed for a backend that has not reported one yet: a small model on a CPU.
const PROMPT_TOKENS_PER_SECOND: f64 = 200.0;
/// A round trip that nobody has measured: a home line.
const ROUND_TRIP: Duration = Duration::from_millis(30);
/// Links remembered of one backend: twice what a node reports.
const LINKS_MAX: usize = 512;
/// Backends remembered of one link; the newest stay.
const PLACES_MAX: usize = 8;
/// How long a link is believed that a node which tells its links has not told yet: it may wait in its queue.
const UNTOLD_MAX: Duration = Duration::from_mins(1);
/// After so long without a word a conversation no longer counts for whoever has it.
const TALK_MAX: Duration = Duration::from_mins(5);
/// Conversations counted; the one that was silent longest is forgotten first.
const TALKS_MAX: usize = 65_536;
/// Weight of a new measurement of the round trip.
const ROUND_TRIP_WEIGHT: f64 = 0.2;
/// How long until half of what a backend was seen to read in a second is forgotten. Whatever else a machine does only ever slows it, so
/// the best lately says what it can; a single slow prompt would send new conversations elsewhere.
const READS_HALF: Duration = Duration::from_mins(5);
/// No part of a prediction is longer.
const LONGEST: Duration = Duration::from_hours(1);

/// One link of a conversation's chain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Link {
    /// Keyed hash of everything up to here.
    pub hash: u64,
    /// Tokens up to here, estimated.
    pub tokens: u32,
}

/// What is to be read before the first token.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Prompt<'a> {
    /// The conversation's links, oldest first; empty: nothing of it can be warm.
    pub chain: &'a [Link],
    /// All its tokens, estimated.
    pub tokens: u32,
    /// Spreads what is new over backends that are equally good.
    pub spread: u64,
}

/// The parts of a predicted time to the first token.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Predicted {
    /// Waiting for a slot.
    pub slot: Duration,
    /// Reading what is not cached.
    pub prefill: Duration,
    /// There and back.
    pub round_trip: Duration,
    /// Until it is awake.
    pub waking: Duration,
    /// Tokens of the prompt that are probably cached there.
    pub cached_tokens: u32,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
}

impl Predicted {
    /// Until the first token.
    pub fn total(&self) -> Duration {
        self.slot
            .saturating_add(self.prefill)
            .saturating_add(self.round_trip)
            .saturating_add(self.waking)
    }

    /// Whether a part of the conversation itself is cached there.
    pub const fn is_warm(&self) -> bool {
        self.cached_tokens > 0
    }

    /// The word in metrics and `_routing`.
    pub const fn as_str(&self) -> &'static str {
        if self.is_warm() { "warm" } else { "cold" }
    }
}

/// What a prediction is made from, besides the report.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Known {
    /// Waiting for a slot.
    pub slot: Duration,
    /// Until it is awake.
    pub waking: Duration,
    /// Tokens of the prompt that are probably cached there.
    pub cached_tokens: u32,
    /// Measured; `None`: not yet.
    pub round_trip: Option<Duration>,
    /// How fast it probably reads, if it was never seen to; `None`: nobody like it was.
    pub prompt_tokens_per_second: Option<f64>,
}

/// Predicts the time to the first token of a prompt.
pub fn predict(tier: &TierReport, prompt_tokens: u32, known: Known) -> Predicted {
    let measured = tier.prompt_tokens_per_second;
    let speed = if measured > 0.0 && measured.is_finite() {
        measured
    } else {
        let like = known.prompt_tokens_per_second;
        like.unwrap_or(PROMPT_TOKENS_PER_SECOND)
    };
    let cached_tokens = known.cached_tokens.min(prompt_tokens);
    let seconds = f64::from(prompt_tokens - cached_tokens) / speed;
    Predicted {
        slot: known.slot,
        prefill: Duration::from_secs_f64(seconds.clamp(0.0, LONGEST.as_secs_f64())),
        round_trip: known.round_trip.unwrap_or(ROUND_TRIP),
        waking: known.waking,
        cached_tokens,
        prompt_tokens,
    }
}

/// The order of equally good backends for one conversation (rendezvous hashing): the same everywhere, and even over conversations.
pub fn rendezvous(spread: u64, backend: &BackendId) -> u64 {
    if spread == 0 {
        return 0;
    }
    let bytes = backend.node.as_str().bytes();
    let all = bytes.chain(backend.tier.as_str().bytes());
    // FNV-1a over the name, then the finalizer of SplitMix64: names that differ in one digit end far apart.
    let mut hash = all.fold(0xcbf2_9ce4_8422_2325_u64 ^ spread, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// One remembered link of a backend.
#[derive(Clone, Copy, Debug)]
struct Remembered {
    order: u64,
    since: Instant,
    told: bool,
}

/// What one backend holds, newest last.
#[derive(Debug, Default)]
struct Held {
    links: HashMap<u64, Remembered>,
    by_age: BTreeMap<u64, u64>,
    /// Its node tells what it holds.
    tells: bool,
    /// So many links were told last.
    said: usize,
}

/// Which backend has which conversations lately. Requests would be the wrong measure of its share: who was given many short
/// conversations is about to be free, who was given many long ones is not.
#[derive(Debug, Default)]
struct Talks {
    of: HashMap<u64, (BackendId, Instant)>,
    by_age: BTreeSet<(Instant, u64)>,
    counts: HashMap<BackendId, usize>,
}

impl Talks {
    fn hear(&mut self, talk: u64, backend: &BackendId, now: Instant) {
        self.end(talk);
        self.of.insert(talk, (backend.clone(), now));
        self.by_age.insert((now, talk));
        *self.counts.entry(backend.clone()).or_default() += 1;
        while let Some((heard, oldest)) = self.by_age.first().copied() {
            let is_over = now.saturating_duration_since(heard) >= TALK_MAX;
            if !is_over && self.of.len() <= TALKS_MAX {
                break;
            }
            self.end(oldest);
        }
    }

    fn end(&mut self, talk: u64) {
        let Some((backend, heard)) = self.of.remove(&talk) else {
            return;
        };
        self.by_age.remove(&(heard, talk));
        if let Some(count) = self.counts.get_mut(&backend) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&backend);
            }
        }
    }

    fn forget(&mut self, node: &NodeId) {
        let of_it = self.of.iter().filter(|(_, (at, _))| at.node == *node);
        let of_it: Vec<u64> = of_it.map(|(talk, _)| *talk).collect();
        for talk in of_it {
            self.end(talk);
        }
    }
}

/// Which conversations lie warm where, as far as this proxy was told or has sent them there itself.
#[derive(Debug, Default)]
pub struct Warmth {
    held: HashMap<BackendId, Held>,
    /// The same by link, so that a plan looks at those who have it and at nobody else. Newest last.
    places: HashMap<u64, Vec<BackendId>>,
    talks: Talks,
    round_trips: HashMap<NodeId, Duration>,
    /// Tokens read in a second, and when.
    reads: HashMap<BackendId, (f64, Instant)>,
    count: u64,
}

impl Warmth {
    /// A request with this chain goes there.
    pub fn sent(&mut self, backend: &BackendId, chain: &[Link], now: Instant) {
        self.sent_besides(backend, chain, now);
        if let Some(first) = chain.first() {
            self.talks.hear(first.hash, backend, now);
        }
    }

    /// The same of a backend that is asked besides another one: it reads the conversation, and need not keep it.
    pub fn sent_besides(&mut self, backend: &BackendId, chain: &[Link], now: Instant) {
        for link in chain {
            self.insert(backend, link.hash, false, now);
        }
    }

    /// The links that a node says it holds. Those that it held and holds no more are forgotten; one that has been sent there since may
    /// still be on its way.
    pub fn told(&mut self, backend: &BackendId, links: &[u64], now: Instant) {
        let tells = self.held.get(backend).is_some_and(|held| held.tells);
        if links.is_empty() && !tells {
            return;
        }
        for link in links {
            self.insert(backend, *link, true, now);
        }
        let Some(held) = self.held.get_mut(backend) else {
            return;
        };
        held.tells = true;
        held.said = links.len();
        let told: BTreeSet<u64> = links.iter().copied().collect();
        let gone = held.links.iter().filter(|(link, one)| {
            let late = now.saturating_duration_since(one.since) >= UNTOLD_MAX;
            !told.contains(link) && (one.told || late)
        });
        let gone: Vec<u64> = gone.map(|(link, _)| *link).collect();
        for link in gone {
            self.remove(backend, link);
        }
    }

    /// A backend lost all that it held.
    pub fn cold(&mut self, backend: &BackendId) {
        let Some(held) = self.held.remove(backend) else {
            return;
        };
        for link in held.links.keys() {
            self.leave(backend, *link);
        }
    }

    /// A backend has another model.
    pub fn another(&mut self, backend: &BackendId) {
        self.cold(backend);
        self.reads.remove(backend);
    }

    /// A node is gone, or was started anew.
    pub fn forget(&mut self, node: &NodeId) {
        let of_it = self.held.keys().filter(|backend| backend.node == *node);
        let of_it: Vec<BackendId> = of_it.cloned().collect();
        for backend in &of_it {
            self.cold(backend);
        }
        self.talks.forget(node);
        self.reads.retain(|backend, _| backend.node != *node);
        self.round_trips.remove(node);
    }

    /// How fast a backend reads, from what it says now and what it said before; 0: nobody knows.
    pub fn reads(&mut self, backend: &BackendId, says: f64, now: Instant) -> f64 {
        let before = self.reads.get(backend).map_or(0.0, |(speed, at)| {
            let halves =
                now.saturating_duration_since(*at).as_secs_f64() / READS_HALF.as_secs_f64();
            speed * 0.5_f64.powf(halves)
        });
        let speed = if says.is_finite() {
            says.max(before)
        } else {
            before
        };
        if speed > 0.0 {
            self.reads.insert(backend.clone(), (speed, now));
        }
        speed
    }

    /// A round trip to a node was measured.
    pub fn took(&mut self, node: &NodeId, round_trip: Duration) {
        let known = self.round_trips.entry(node.clone()).or_insert(round_trip);
        *known = known.mul_f64(1.0 - ROUND_TRIP_WEIGHT)
            + round_trip.min(LONGEST).mul_f64(ROUND_TRIP_WEIGHT);
    }

    /// What was measured of the way to a node.
    pub fn round_trip(&self, node: &NodeId) -> Option<Duration> {
        self.round_trips.get(node).copied()
    }

    /// Conversations that a backend has lately.
    pub fn talks(&self, backend: &BackendId) -> usize {
        self.talks.counts.get(backend).copied().unwrap_or(0)
    }

    /// Who holds how many tokens of a conversation. Looks only at those who hold some.
    pub fn of(&self, chain: &[Link]) -> HashMap<&BackendId, u32> {
        let mut found = HashMap::new();
        for link in chain.iter().rev() {
            for backend in self.places.get(&link.hash).into_iter().flatten() {
                found.entry(backend).or_insert(link.tokens);
            }
        }
        found
    }

    /// How many links each node that tells its links has told last.
    pub fn told_by_node(&self) -> HashMap<&NodeId, usize> {
        let mut nodes = HashMap::new();
        for (backend, held) in self.held.iter().filter(|(_, held)| held.tells) {
            *nodes.entry(&backend.node).or_default() += held.said;
        }
        nodes
    }

    /// Links remembered of a backend.
    pub fn len_of(&self, backend: &BackendId) -> usize {
        self.held.get(backend).map_or(0, |held| held.links.len())
    }

    fn insert(&mut self, backend: &BackendId, link: u64, told: bool, now: Instant) {
        self.count += 1;
        let order = self.count;
        let held = self.held.entry(backend.clone()).or_default();
        let mut entry = Remembered {
            order,
            since: now,
            told,
        };
        if let Some(old) = held.links.get(&link) {
            held.by_age.remove(&old.order);
            entry.told |= old.told;
        }
        held.links.insert(link, entry);
        held.by_age.insert(order, link);
        let oldest = if held.links.len() > LINKS_MAX {
            held.by_age.first_key_value().map(|(_, link)| *link)
        } else {
            None
        };
        let places = self.places.entry(link).or_default();
        if let Some(at) = places.iter().position(|known| known == backend) {
            let known = places.remove(at);
            places.push(known);
        } else {
            places.push(backend.clone());
        }
        let displaced = (places.len() > PLACES_MAX).then(|| places.remove(0));
        if let Some(displaced) = displaced
            && let Some(held) = self.held.get_mut(&displaced)
            && let Some(old) = held.links.remove(&link)
        {
            held.by_age.remove(&old.order);
        }
        if let Some(oldest) = oldest {
            self.remove(backend, oldest);
        }
    }

    fn remove(&mut self, backend: &BackendId, link: u64) {
        if let Some(held) = self.held.get_mut(backend)
            && let Some(old) = held.links.remove(&link)
        {
            held.by_age.remove(&old.order);
        }
        self.leave(backend, link);
    }

    fn leave(&mut self, backend: &BackendId, link: u64) {
        if let Some(places) = self.places.get_mut(&link) {
            places.retain(|known| known != backend);
            if places.is_empty() {
                self.places.remove(&link);
            }
        }
    }
}

#[cfg(test)]
mod tests;
