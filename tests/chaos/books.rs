//! The verdict: answers, books, and what is still held when all is over.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;
use tests::wait::until;

use crate::acts::{Act, Deed};
use crate::crowd::{End, Question, Told};
use crate::say;
use crate::town::{Footprint, MACHINES, Town};

/// A reservation of a proxy that was killed lasts for its lease of 10 s, and a moment.
const SETTLED_MAX: Duration = Duration::from_secs(40);
/// Open files more than in calm weather: while the other proxy is away everybody comes here, and each of fifty readers leaves an idle
/// connection to a node in the pool; a log, a lookup under way.
const FILES_MAX: usize = 50 + 24;
/// Resident memory more than in calm weather: what allocators keep after the busiest moment.
const RSS_KIB_MAX: u64 = 64 * 1024;
/// Between the last word of an answer and its line in the books, when all wait for a processor.
const UNWRITTEN_MAX: Duration = Duration::from_secs(2);
/// One answer in so many may part from the unbroken one at a tie: whoever goes on reads in one batch what was made token by token, and
/// rounding differs. Seen once in three thousand.
const TIES_PER: usize = 200;
/// Complaints that are shown.
const SHOWN_MAX: usize = 12;

/// What was found wrong, and what was counted.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    wrong: Vec<String>,
    notes: Vec<String>,
}

impl Verdict {
    /// Every answer is the unbroken one, or says that it is not.
    pub(crate) fn answers(&mut self, told: &[Told], deeds: &[Deed], questions: &[Question]) {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        let mut ties = 0;
        for told in told {
            let question = &questions[told.question];
            let is_excused = || {
                let during = |deed: &&Deed| told.began < deed.ended && told.ended > deed.began;
                let seen: Vec<&Deed> = deeds.iter().filter(during).collect();
                // Whoever waited so long that every machine was struck under it has nobody left who has not begun with it.
                let is_struck = |machine| seen.iter().any(|deed| deed.strikes(machine));
                let is_alone = told.text.is_empty() && (0..MACHINES.len()).all(is_struck);
                is_alone || seen.iter().any(|deed| deed.excuses(told.proxy))
            };
            let (kind, is_right) = match &told.end {
                End::Whole => (
                    "whole",
                    told.text == question.answer && told.tokens == Some(question.tokens),
                ),
                End::Silent => ("ended silently", false),
                End::Told(_) => ("told of an error", is_excused()),
                End::Cut => ("cut", is_excused()),
                End::Refused(..) => ("refused", is_excused()),
                End::Nobody => ("nobody there", is_excused()),
            };
            let count = counts.entry(kind).or_default();
            *count += 1;
            let is_prefix = question.answer.starts_with(&told.text);
            if !is_prefix && parts_at_tie(told, question) {
                ties += 1;
                continue;
            }
            if !is_right || !is_prefix {
                let at = told.text.len();
                self.wrong.push(format!(
                    "{:?} at byte {at} of {}, right so far: {is_prefix}, tokens {:?} of {:?}, {} attempts, {:?}, proxy {}, {}",
                    told.end,
                    question.answer.len(),
                    told.tokens,
                    question.tokens,
                    told.attempts,
                    told.ended - told.began,
                    told.proxy,
                    told.request_id,
                ));
                if !is_prefix {
                    self.wrong
                        .push(parting(&told.text, &question.answer, &told.continued));
                }
            }
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_unstable();
        let moved = told.iter().filter(|told| told.attempts > 1).count();
        self.notes.push(format!(
            "{} streams: {counts:?}, {moved} over more than one node, {ties} went another way where two tokens were as likely",
            told.len()
        ));
        if ties * TIES_PER > told.len() {
            self.wrong
                .push(format!("{ties} answers parted at ties, of {}", told.len()));
        }
    }

    /// The books say what was delivered, request by request, and nothing stays reserved.
    pub(crate) async fn books(
        &mut self,
        town: &Town,
        (told, deeds): (&[Told], &[Deed]),
        questions: &[Question],
    ) {
        let settled = until("nothing stays reserved", SETTLED_MAX, || async {
            let (used, billed) = (used(town).await, billed(town));
            (used == billed).then_some(billed)
        });
        let billed = settled.await;
        let records = town.records();
        let by_request: HashMap<&str, &Value> = records
            .iter()
            .filter_map(|record| Some((record["request_id"].as_str()?, record)))
            .collect();
        let (mut exact, mut between, mut missing) = (0_u64, 0_u64, 0_u64);
        for told in told.iter().filter(|told| !told.request_id.is_empty()) {
            let record = by_request.get(told.request_id.as_str());
            let tokens = |name: &str| record.and_then(|record| record[name].as_u64());
            let entry = tokens("tokens_in").zip(tokens("tokens_out"));
            let (all_in, all_out) = questions[told.question].tokens;
            let is_right = match (&told.end, entry) {
                // Killed between the last word and the books: what was reserved went back.
                (End::Whole, None) if was_killed(told, deeds) => {
                    missing += 1;
                    true
                }
                (End::Whole, entry) => {
                    exact += 1;
                    entry == told.tokens
                }
                // Nothing came, nothing is charged.
                (End::Told(_), Some((0, 0))) => told.pieces == 0,
                // Each piece is a token at least; what was on its way when it broke was made as well.
                (End::Told(_), Some((tokens_in, tokens_out))) => {
                    between += 1;
                    tokens_in == all_in && (told.pieces..=all_out).contains(&tokens_out)
                }
                (End::Refused(..), entry) => entry.is_none_or(|(_, out)| out == 0),
                (End::Cut | End::Silent | End::Nobody, None) => {
                    missing += 1;
                    true
                }
                (End::Cut | End::Silent | End::Nobody, Some((_, out))) => out <= all_out,
                (End::Told(_), None) => false,
            };
            if !is_right {
                self.wrong.push(format!(
                    "the books say {entry:?} of {}, which ended {:?} with {:?} and {} pieces",
                    told.request_id, told.end, told.tokens, told.pieces
                ));
            }
        }
        self.notes.push(format!(
            "books: {billed} tokens in {} lines, used = billed; {exact} answers charged to the token, {between} broken ones for what was made, {missing} of killed proxies given back",
            records.len()
        ));
    }

    /// Nothing is held that was not held before.
    pub(crate) async fn leaks(&mut self, town: &mut Town, before: &[(String, Footprint)]) {
        until("no slot is busy", Duration::from_secs(40), || async {
            (town.slots_busy() == 0).then_some(())
        })
        .await;
        until("no request is open", Duration::from_secs(20), || async {
            (town.metric("hearth_inflight").await < 0.5).then_some(())
        })
        .await;
        let is_proxy = |name: &str| name.starts_with("proxy");
        let most = |what: fn(&Footprint) -> u64, like: &str| {
            let same = before
                .iter()
                .filter(|(name, _)| is_proxy(name) == is_proxy(like));
            same.map(|(_, footprint)| what(footprint)).max()
        };
        for (name, now) in town.footprints() {
            let files = most(|one| one.files as u64, &name).unwrap_or_default();
            let rss = most(|one| one.rss_kib, &name).unwrap_or_default();
            let line = format!(
                "{name}: {} files ({files} in calm weather), {} MiB ({})",
                now.files,
                now.rss_kib / 1024,
                rss / 1024
            );
            let leaks =
                now.files as u64 > files + FILES_MAX as u64 || now.rss_kib > rss + RSS_KIB_MAX;
            if leaks {
                self.wrong.push(format!("leaks: {line}"));
            }
            self.notes.push(line);
        }
        for (machine, name) in town.machines.iter_mut().zip(MACHINES) {
            for agent in &mut machine.agents {
                let workers = agent.process().workers().len();
                if workers != 1 {
                    self.wrong.push(format!(
                        "{name}: {workers} workers of an agent with one tier"
                    ));
                }
            }
        }
    }

    /// Says it all; panics if anything was wrong.
    pub(crate) async fn said(self, town: &mut Town) {
        let (passed, lost) = town.datagrams();
        for note in &self.notes {
            say(note);
        }
        say(&format!(
            "migrations since the last start of each proxy {}, nodes believed gone {}; datagrams passed {passed}, lost {lost}",
            town.metric("hearth_migrations_total").await,
            town.metric("hearth_nodes_lost_total").await,
        ));
        for wrong in self.wrong.iter().take(SHOWN_MAX) {
            say(&format!("WRONG: {wrong}"));
            let id = wrong.split(' ').find(|word| word.starts_with("req_"));
            let id = id.unwrap_or_default().trim_end_matches(',');
            for line in town.logged(id) {
                say(&format!("       {line}"));
            }
        }
        assert!(
            self.wrong.is_empty(),
            "{} things were wrong",
            self.wrong.len()
        );
    }
}

fn same_bytes(one: &str, other: &str) -> usize {
    let pairs = one.bytes().zip(other.bytes());
    pairs.take_while(|(one, other)| one == other).count()
}

/// Whether an answer goes another way from a token on that was as likely as another: rounding decides there, and who else is in the batch.
pub(crate) fn parts_at_tie(told: &Told, question: &Question) -> bool {
    question.is_tie(same_bytes(&told.text, &question.answer))
}

/// Where two answers part.
fn parting(told: &str, wanted: &str, continued: &Value) -> String {
    let at = same_bytes(told, wanted);
    let around = |text: &str| {
        let from = text.floor_char_boundary(at.saturating_sub(16));
        let to = text.floor_char_boundary((at + 24).min(text.len()));
        text.get(from..to).unwrap_or_default().to_owned()
    };
    format!(
        "it parts at byte {at}: {:?} instead of {:?}; continued {continued}",
        around(told),
        around(wanted)
    )
}

/// Whether the proxy of an answer was killed so shortly after its end that nothing of it may stand in the books.
fn was_killed(told: &Told, deeds: &[Deed]) -> bool {
    let mut kills = deeds
        .iter()
        .filter(|deed| deed.act == Act::KillProxy && deed.whom == told.proxy);
    kills.any(|deed| {
        deed.began + UNWRITTEN_MAX >= told.ended && deed.began <= told.ended + UNWRITTEN_MAX
    })
}

/// Tokens that count against the key's limit now: settled and reserved.
async fn used(town: &Town) -> u64 {
    let profile = town.doors[0].get("/api/user").await.json();
    let limits = profile["limits"].as_array().cloned().unwrap_or_default();
    let found = limits
        .iter()
        .find(|state| state["name"] == "key-tokens-day");
    found
        .and_then(|state| state["used"].as_u64())
        .unwrap_or(u64::MAX)
}

/// Tokens in the books.
fn billed(town: &Town) -> u64 {
    let of = |record: &Value, name: &str| record[name].as_u64().unwrap_or(0);
    let records = town.records();
    let each = records
        .iter()
        .map(|record| of(record, "tokens_in") + of(record, "tokens_out"));
    each.sum()
}
