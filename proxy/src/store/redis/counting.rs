//! Counters in Redis: one script for an admission, one for a settlement, each one round trip, by the server's clock. All keys of a
//! call lie in the hash slot of its tenant, so that a cluster runs it. What happens while Redis is away is decided elsewhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use config::ids::Tenant;
use policy::ledger::LedgerEntry;
use policy::limit::{Counter, Decision, Elastic, Rule};
use policy::quota;
use redis::AsyncCommands;
use serde::{Deserialize, Serialize};

use super::link::{Link, Lua};
use crate::store::StoreError;
use crate::store::counting::{Reservation, ReservationId, SETTLED_KEPT_MS, Settlement, given_up};
use crate::store::transfer::{RuleCode, rule_code};

/// Ids that one call extends.
const EXTENDED_A_CALL: usize = 500;
/// Reservations that one call of the sweeper gives back.
const SWEPT_A_CALL: usize = 100;
/// Calls of the sweeper for one slot before it looks at the next.
const SWEEPS_A_SLOT: usize = 20;
/// Between two rounds of the sweeper.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// Slots whose books this process has opened; beyond, they are opened again.
const SLOTS_MAX: usize = 100_000;
const COMMON: &str = include_str!("common.lua");

/// What is owed to one counter in the end: as the script reads it and the journal writes it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(in crate::store) struct Owed {
    /// Without the prefix.
    pub(in crate::store) key: Arc<str>,
    /// `g`, `w`, `h` and its two numbers, as in the scripts.
    pub(in crate::store) rule: RuleCode,
    /// Units.
    pub(in crate::store) spent: u64,
}

/// A settlement as it is sent, now or later.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(in crate::store) struct Bill {
    /// In hex.
    #[serde(with = "id_text")]
    pub(in crate::store) id: ReservationId,
    /// The hash slot.
    pub(in crate::store) tenant: Tenant,
    /// Every counter.
    pub(in crate::store) owed: Vec<Owed>,
    /// For the books.
    pub(in crate::store) entry: Option<LedgerEntry>,
}

impl Bill {
    /// What a settlement says.
    pub(in crate::store) fn of(settlement: &Settlement) -> Self {
        let owed = settlement.counters.iter().zip(&settlement.spent);
        Self {
            id: settlement.id,
            tenant: settlement.tenant.clone(),
            owed: owed
                .map(|(counter, spent)| Owed {
                    key: Arc::clone(&counter.key),
                    rule: rule_code(counter.rule),
                    spent: *spent,
                })
                .collect(),
            entry: settlement.entry.clone(),
        }
    }
}

/// The scripts and where their keys lie.
#[derive(Debug)]
pub(super) struct Counters {
    link: Arc<Link>,
    prefix: String,
    /// Replicas that must hold a reservation.
    replicas: u32,
    reserving: Lua,
    settling: Lua,
    extending: Lua,
    releasing: Lua,
    sweeping: Lua,
    empty: Lua,
    /// Slots that this process has seen, and whether readers of the books can find them.
    slots: Mutex<HashMap<Tenant, bool>>,
}

impl Counters {
    pub(super) fn new(link: &Arc<Link>, prefix: &str, replicas: u32) -> Arc<Self> {
        let script = |body| Lua::new(&[COMMON, body]);
        let counters = Arc::new(Self {
            link: Arc::clone(link),
            prefix: prefix.to_owned(),
            replicas,
            reserving: script(include_str!("reserve.lua")),
            settling: script(include_str!("settle.lua")),
            extending: script(include_str!("extend.lua")),
            releasing: script(include_str!("release.lua")),
            sweeping: script(include_str!("sweep.lua")),
            empty: Lua::new(&["return 1"]),
            slots: Mutex::default(),
        });
        tokio::spawn(sweep(Arc::downgrade(&counters)));
        counters
    }

    /// The key of a counter.
    pub(super) fn counter(&self, key: &str) -> String {
        format!("{}:c:{key}", self.prefix)
    }

    /// What stands before an id in the key of its reservation.
    pub(super) fn reservations(&self, slot: &Tenant) -> String {
        format!("{}:r:{{{slot}}}:", self.prefix)
    }

    /// Open reservations by their end.
    pub(super) fn index(&self, slot: &Tenant) -> String {
        format!("{}:x:{{{slot}}}", self.prefix)
    }

    /// The stream to which a settlement of this slot adds its entry: `XADD key * e <LedgerEntry::to_bytes>`.
    pub(super) fn ledger_stream(&self, slot: &Tenant) -> String {
        format!("{}:ledger:{{{slot}}}", self.prefix)
    }

    /// The set of slots that have books.
    pub(super) fn ledger_slots(&self) -> String {
        format!("{{{}}}:ledger_slots", self.prefix)
    }

    /// Charges at the given time, or at the server's.
    pub(super) async fn reserve(
        &self,
        reservation: &Reservation,
        now_us: Option<u64>,
    ) -> Result<Decision, StoreError> {
        let Reservation {
            id,
            tenant,
            counters,
            elastic,
            lease_ms,
        } = reservation;
        let mut keys = vec![
            format!("{}{id}", self.reservations(tenant)),
            self.index(tenant),
        ];
        keys.extend(counters.iter().map(|counter| self.counter(&counter.key)));
        let args = admission(counters, 'r', (*elastic, *lease_ms), now_us);
        if *lease_ms > 0 {
            self.know(tenant, false);
        }
        let seen: String = if self.replicas == 0 {
            self.link.run(&self.reserving, &keys, &args).await?
        } else {
            let (seen, held) = self
                .link
                .run_and_wait(&self.reserving, &keys, (&args, self.replicas))
                .await?;
            if held < self.replicas {
                return Err(StoreError::Unavailable(format!(
                    "{held} of {} replicas of Redis hold the reservation",
                    self.replicas
                )));
            }
            seen
        };
        Seen::read(&seen)?.decision(counters, *elastic)
    }

    /// A round trip that decides nothing.
    pub(super) async fn run_empty(&self) -> Result<(), StoreError> {
        let none: &[u64] = &[];
        let done = self.link.run::<u8>(&self.empty, &[], &none).await;
        done.map(drop)
    }

    /// A reservation that does not count, though Redis may have charged it: what it charged goes back. If this fails too, its
    /// lease gives it back.
    pub(super) async fn withdraw(&self, reservation: &Reservation) {
        let bill = Bill::of(&Settlement {
            id: reservation.id,
            tenant: reservation.tenant.clone(),
            counters: reservation.counters.clone(),
            spent: vec![0; reservation.counters.len()],
            entry: None,
        });
        if let Err(error) = self.settle(&bill, None).await {
            tracing::debug!(%error, "a reservation is left to its lease");
        }
    }

    /// Where counters stand at the given time, or at the server's.
    pub(super) async fn look(
        &self,
        tenant: &Tenant,
        counters: &[Counter],
        now_us: Option<u64>,
    ) -> Result<Decision, StoreError> {
        let id = ReservationId::from_bytes([0; 16]);
        let mut keys = vec![
            format!("{}{id}", self.reservations(tenant)),
            self.index(tenant),
        ];
        keys.extend(counters.iter().map(|counter| self.counter(&counter.key)));
        let args = admission(counters, 'l', (Elastic::default(), 0), now_us);
        let seen: String = self.link.run(&self.reserving, &keys, &args).await?;
        let Seen { now_us, stored, .. } = Seen::read(&seen)?;
        Ok(quota::decide(counters, Elastic::default(), &stored, now_us).decision)
    }

    /// Charges what was spent, once an id.
    pub(super) async fn settle(&self, bill: &Bill, now_us: Option<u64>) -> Result<(), StoreError> {
        let Bill {
            id,
            tenant,
            owed,
            entry,
        } = bill;
        if entry.is_some() {
            self.open_books(tenant).await?;
        }
        let mut keys = vec![
            format!("{}{id}", self.reservations(tenant)),
            self.index(tenant),
            self.ledger_stream(tenant),
        ];
        keys.extend(owed.iter().map(|owed| self.counter(&owed.key)));
        let mut terms = Packed::default();
        terms.number(now_us.unwrap_or(0));
        terms.number(SETTLED_KEPT_MS);
        for Owed { rule, spent, .. } in owed {
            terms.letter(rule.0);
            terms.numbers([rule.1, rule.2, *spent]);
        }
        let entry = entry.as_ref().map(LedgerEntry::to_bytes);
        let args = (terms.done(), entry.unwrap_or_default());
        self.link
            .run::<u8>(&self.settling, &keys, &args)
            .await
            .map(drop)
    }

    pub(super) async fn extend(
        &self,
        ids: &[(Tenant, ReservationId)],
        lease_ms: u64,
    ) -> Result<(), StoreError> {
        let mut ids: Vec<&(Tenant, ReservationId)> = ids.iter().collect();
        ids.sort();
        for slot in ids.chunk_by(|one, two| one.0 == two.0) {
            for some in slot.chunks(EXTENDED_A_CALL) {
                let Some((tenant, _)) = some.first() else {
                    continue;
                };
                let mut args = vec![
                    String::new(),
                    lease_ms.to_string(),
                    self.reservations(tenant),
                ];
                args.extend(some.iter().map(|(_, id)| id.to_string()));
                let keys = [self.index(tenant)];
                self.link.run::<u64>(&self.extending, &keys, &args).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn release(&self, counters: &[Counter]) -> Result<(), StoreError> {
        let held: Vec<&Counter> = counters
            .iter()
            .filter(|counter| matches!(counter.rule, Rule::Held { .. }))
            .collect();
        if held.is_empty() {
            return Ok(());
        }
        let keys: Vec<String> = held
            .iter()
            .map(|counter| self.counter(&counter.key))
            .collect();
        let units: Vec<u64> = held.iter().map(|counter| counter.cost).collect();
        self.link
            .run::<u8>(&self.releasing, &keys, &units)
            .await
            .map(drop)
    }

    /// Makes a slot known to those who read the books; once for each slot and process.
    pub(super) async fn open_books(&self, slot: &Tenant) -> Result<(), StoreError> {
        if self.known().get(slot) == Some(&true) {
            return Ok(());
        }
        let slots = self.ledger_slots();
        self.link
            .call(async |line| line.sadd::<_, _, u8>(&slots, slot.as_str()).await)
            .await?;
        self.know(slot, true);
        Ok(())
    }

    fn know(&self, slot: &Tenant, has_books: bool) {
        let mut known = self.known();
        if let Some(known) = known.get_mut(slot) {
            *known |= has_books;
            return;
        }
        if known.len() >= SLOTS_MAX {
            known.clear();
        }
        known.insert(slot.clone(), has_books);
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Tenant, bool>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One round: every slot that has books, and whatever this process has seen, in case Redis lost the set of them.
    async fn sweep_once(&self) -> Result<(), StoreError> {
        let set = self.ledger_slots();
        let known: Vec<Tenant> = self.known().keys().cloned().collect();
        if !known.is_empty() {
            let names: Vec<&str> = known.iter().map(Tenant::as_str).collect();
            self.link
                .call_at_leisure(async |line| line.sadd::<_, _, u64>(&set, &names).await)
                .await?;
        }
        let names: Vec<String> = self
            .link
            .call_at_leisure(async |line| line.smembers(&set).await)
            .await?;
        for slot in names.into_iter().map(Tenant::new) {
            self.sweep_slot(&slot).await?;
        }
        Ok(())
    }

    async fn sweep_slot(&self, slot: &Tenant) -> Result<(), StoreError> {
        let keys = [self.index(slot)];
        let args = [self.reservations(slot), SWEPT_A_CALL.to_string()];
        for _ in 0..SWEEPS_A_SLOT {
            let swept: usize = self
                .link
                .run(&self.sweeping, &keys, &args.as_slice())
                .await?;
            if swept < SWEPT_A_CALL {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// The argument of an admission.
fn admission(
    counters: &[Counter],
    act: char,
    (elastic, lease_ms): (Elastic, u64),
    now_us: Option<u64>,
) -> Vec<u8> {
    let mut terms = Packed::default();
    terms.number(now_us.unwrap_or(0));
    terms.letter(act);
    terms.numbers([lease_ms, elastic.want, elastic.min]);
    for counter in counters {
        let (letter, a, limit) = rule_code(counter.rule);
        terms.letter(letter);
        terms.numbers([a, limit, counter.cost, counter.per_million]);
    }
    terms.done()
}

/// Numbers and letters as the scripts unpack them: one array of `MessagePack`.
#[derive(Default)]
struct Packed {
    items: Vec<u8>,
    count: u16,
}

impl Packed {
    /// Any number: one byte up to 127, else nine.
    fn number(&mut self, number: u64) {
        if let Ok(small @ 0..0x80) = u8::try_from(number) {
            self.items.push(small);
        } else {
            self.items.push(0xcf);
            self.items.extend(number.to_be_bytes());
        }
        self.count = self.count.saturating_add(1);
    }

    fn numbers<const N: usize>(&mut self, numbers: [u64; N]) {
        for one in numbers {
            self.number(one);
        }
    }

    /// A string of one ASCII letter.
    fn letter(&mut self, letter: char) {
        self.items.push(0xa1);
        self.items.push(u8::try_from(letter).unwrap_or(b'?'));
        self.count = self.count.saturating_add(1);
    }

    fn done(self) -> Vec<u8> {
        let mut array = vec![0xdc];
        array.extend(self.count.to_be_bytes());
        array.extend(self.items);
        array
    }
}

/// The counters as the script saw them; policy says what that means for every one.
struct Seen {
    now_us: u64,
    outcome: Outcome,
    granted: u64,
    stored: Vec<Option<u64>>,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Outcome {
    Admitted,
    Refused,
    Held,
    Settled,
}

impl Seen {
    fn read(answer: &str) -> Result<Self, StoreError> {
        Self::parse(answer)
            .ok_or_else(|| StoreError::Corrupt("the answer of the admission script".into()))
    }

    fn parse(answer: &str) -> Option<Self> {
        let mut words = answer.split_ascii_whitespace();
        let (now_us, outcome, granted) = (words.next()?, words.next()?, words.next()?);
        let stored = words.map(|word| match word {
            "-" => Some(None),
            word => word.parse().ok().map(Some),
        });
        Some(Self {
            now_us: now_us.parse().ok()?,
            outcome: match outcome {
                "1" => Outcome::Admitted,
                "0" => Outcome::Refused,
                "h" => Outcome::Held,
                "s" => Outcome::Settled,
                _ => return None,
            },
            granted: granted.parse().ok()?,
            stored: stored.collect::<Option<_>>()?,
        })
    }

    fn decision(&self, counters: &[Counter], elastic: Elastic) -> Result<Decision, StoreError> {
        match self.outcome {
            Outcome::Held => {
                let states = counters.iter().zip(&self.stored);
                return Ok(Decision::Admitted {
                    granted: self.granted,
                    states: states
                        .map(|(counter, stored)| quota::state(counter, *stored, self.now_us))
                        .collect(),
                });
            }
            Outcome::Settled => {
                return Err(given_up());
            }
            Outcome::Admitted | Outcome::Refused => {}
        }
        let decision = quota::decide(counters, elastic, &self.stored, self.now_us).decision;
        // Two languages, one arithmetic: a difference is a defect, and the script is what charged.
        let is_admitted = self.outcome == Outcome::Admitted;
        if decision.is_admitted() != is_admitted || decision.granted() != self.granted {
            return Err(StoreError::Corrupt("script and policy disagree".into()));
        }
        Ok(decision)
    }
}

/// Sweeps for ever, as long as somebody counts.
async fn sweep(counters: Weak<Counters>) {
    loop {
        // Not all proxies in the same moment.
        let jitter: f64 = rand::random_range(0.75..1.25);
        tokio::time::sleep(SWEEP_EVERY.mul_f64(jitter)).await;
        let Some(counters) = counters.upgrade() else {
            return;
        };
        if let Err(error) = counters.sweep_once().await {
            tracing::debug!(%error, "reservations are left to the next round");
        }
    }
}

/// An id as text.
mod id_text {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::store::counting::ReservationId;

    pub(super) fn serialize<S: Serializer>(id: &ReservationId, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<ReservationId, D::Error> {
        String::deserialize(from)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}
