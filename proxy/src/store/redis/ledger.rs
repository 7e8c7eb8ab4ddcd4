//! The books in Redis: a stream of entries in the hash slot of their settlement, hashes of sums beside it, and the audit log as a
//! list. A settlement adds one entry and nothing else; [`Ledger::fold`] adds entries up later, each once: a cursor in the same
//! slot moves with the sums, in one script.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use config::ids::{Tenant, UserId};
use policy::ledger::{Aspect, LedgerEntry, SumKey, Totals, increments, month_of};
use redis::AsyncCommands;

use super::Redis;
use crate::store::StoreError;
use crate::store::ledger::{
    AuditAct, AuditRecord, Breakdown, Keep, LOOKED_AT_MAX, Ledger, PRUNED_A_CALL, RecordPage,
    RecordQuery,
};

/// Entries of one call.
const ENTRIES_A_CALL: usize = 1_000;
/// Tries of a compare-and-set; each failure means that somebody else succeeded.
const TRIES_MAX: usize = 16;
/// A request settles after it came: this long at most, Unix milliseconds.
const SETTLES_WITHIN_MS: u64 = 3_600_000;
/// Clocks of proxies and Redis may differ by so much.
const SKEW_MS: u64 = 60_000;
/// The one field of a stream entry, as the settlement script writes it.
pub(super) const FIELD: &str = "e";
/// Between the parts of a sum's name; no part holds it.
pub(super) const GAP: char = '\0';

/// An entry as `XRANGE` returns it.
type Row = (String, (String, Vec<u8>));

impl Redis {
    pub(super) fn ledger_stream(&self, slot: &Tenant) -> String {
        self.counters.ledger_stream(slot)
    }

    pub(super) fn ledger_cursor(&self, slot: &Tenant) -> String {
        format!("{}:ledger-cursor:{{{slot}}}", self.prefix)
    }

    pub(super) fn usage_periods(&self, slot: &Tenant) -> String {
        format!("{}:usage-periods:{{{slot}}}", self.prefix)
    }

    pub(super) fn usage(&self, slot: &Tenant, period: &str) -> String {
        format!("{}:usage:{{{slot}}}:{period}", self.prefix)
    }

    fn audit_list(&self) -> String {
        format!("{{{}}}:audit", self.prefix)
    }

    pub(super) async fn slots(&self) -> Result<BTreeSet<Tenant>, StoreError> {
        let slots = self.counters.ledger_slots();
        let names: Vec<String> = self
            .link
            .call_at_leisure(async |connection| connection.smembers(&slots).await)
            .await?;
        Ok(names.into_iter().map(Tenant::new).collect())
    }

    /// Entries of one slot after an id (or from a moment), in the order of their settlements.
    pub(super) async fn range(
        &self,
        slot: &Tenant,
        from: &str,
        to: &str,
    ) -> Result<Vec<Row>, StoreError> {
        let mut range = redis::cmd("XRANGE");
        range
            .arg(self.ledger_stream(slot))
            .arg(from)
            .arg(to)
            .arg("COUNT")
            .arg(ENTRIES_A_CALL);
        self.link
            .call_at_leisure(async |connection| range.query_async(connection).await)
            .await
    }

    /// Adds up some entries of a slot; how many.
    async fn fold_some(&self, slot: &Tenant) -> Result<usize, StoreError> {
        let key = self.ledger_cursor(slot);
        let cursor: Option<String> = self
            .link
            .call_at_leisure(async |connection| connection.get(&key).await)
            .await?;
        let cursor = cursor.unwrap_or_default();
        let from = if cursor.is_empty() {
            "-".to_owned()
        } else {
            format!("({cursor}")
        };
        let rows = self.range(slot, &from, "+").await?;
        let Some((last, _)) = rows.last() else {
            return Ok(0);
        };
        let entries: Vec<LedgerEntry> = rows
            .iter()
            .map(|(_, (_, bytes))| read(bytes))
            .collect::<Result<_, _>>()?;
        let done = self
            .write_sums(slot, (&cursor, last), &increments(&entries))
            .await?;
        Ok(if done { entries.len() } else { 0 })
    }

    async fn write_sums(
        &self,
        slot: &Tenant,
        (cursor, next): (&str, &str),
        more: &BTreeMap<SumKey, Totals>,
    ) -> Result<bool, StoreError> {
        let keys: Vec<SumKey> = more.keys().cloned().collect();
        let known = self.sums_in(slot, &keys).await?;
        let periods: BTreeSet<&str> = keys.iter().map(|key| key.period.as_str()).collect();
        let mut invocation = self.folding.prepare_invoke();
        invocation
            .key(self.ledger_cursor(slot))
            .key(self.usage_periods(slot));
        for period in &periods {
            invocation.key(self.usage(slot, period));
        }
        invocation.arg(cursor).arg(next);
        for ((key, more), mut sum) in more.iter().zip(known) {
            sum.add(more);
            let at = periods.iter().position(|period| *period == key.period);
            invocation
                .arg(at.unwrap_or(0) + 3)
                .arg(&key.period)
                .arg(field(key))
                .arg(row(sum)?);
        }
        let done: u8 = self
            .link
            .call_at_leisure(async |connection| invocation.invoke_async(connection).await)
            .await?;
        Ok(done == 1)
    }

    async fn sums_in(&self, slot: &Tenant, keys: &[SumKey]) -> Result<Vec<Totals>, StoreError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for key in keys {
            pipe.hget(self.usage(slot, &key.period), field(key));
        }
        let rows: Vec<Option<String>> = self
            .link
            .call_at_leisure(async |connection| pipe.query_async(connection).await)
            .await?;
        rows.iter()
            .map(|row| row.as_deref().map_or_else(|| Ok(Totals::default()), totals))
            .collect()
    }

    /// The fields of one hash that begin so.
    async fn scan(&self, hash: &str, prefix: &str) -> Result<Vec<(String, String)>, StoreError> {
        let pattern = format!("{}*", escaped(prefix));
        let (mut cursor, mut found) = (0_u64, Vec::new());
        loop {
            let mut scan = redis::cmd("HSCAN");
            scan.arg(hash)
                .arg(cursor)
                .arg("MATCH")
                .arg(&pattern)
                .arg("COUNT")
                .arg(ENTRIES_A_CALL);
            let (next, rows): (u64, Vec<(String, String)>) = self
                .link
                .call_at_leisure(async |connection| scan.query_async(connection).await)
                .await?;
            found.extend(rows);
            if next == 0 {
                return Ok(found);
            }
            cursor = next;
        }
    }

    pub(super) async fn periods(&self, slot: &Tenant) -> Result<Vec<String>, StoreError> {
        let key = self.usage_periods(slot);
        self.link
            .call_at_leisure(async |connection| connection.smembers(&key).await)
            .await
    }

    async fn prune_slot(&self, slot: &Tenant, keep: &Keep) -> Result<u64, StoreError> {
        let mut trim = redis::cmd("XTRIM");
        trim.arg(self.ledger_stream(slot))
            .arg("MINID")
            .arg("~")
            .arg(keep.records_from_ms)
            .arg("LIMIT")
            .arg(PRUNED_A_CALL);
        let trimmed: u64 = self
            .link
            .call_at_leisure(async |connection| trim.query_async(connection).await)
            .await?;
        let month = month_of(&keep.sums_from_day);
        let mut gone = trimmed;
        for period in self.periods(slot).await? {
            if period >= keep.sums_from_day || period == month {
                continue;
            }
            let (hash, set) = (self.usage(slot, &period), self.usage_periods(slot));
            let mut pipe = redis::pipe();
            pipe.cmd("UNLINK").arg(hash).ignore();
            pipe.srem(set, &period).ignore();
            self.link
                .call_at_leisure(async |connection| pipe.query_async::<()>(connection).await)
                .await?;
            gone += 1;
        }
        Ok(gone)
    }

    async fn forget_entries(
        &self,
        slot: &Tenant,
        who: (&Tenant, &UserId),
    ) -> Result<u64, StoreError> {
        let stream = self.ledger_stream(slot);
        let (tenant, user) = who;
        let (mut from, mut gone) = ("-".to_owned(), 0);
        loop {
            let rows = self.range(slot, &from, "+").await?;
            let Some((last, _)) = rows.last() else {
                return Ok(gone);
            };
            from = format!("({last}");
            let theirs: Vec<&String> = rows
                .iter()
                .filter(|(_, (_, bytes))| {
                    read(bytes).is_ok_and(|entry| {
                        entry.tenant == *tenant
                            && (entry.user_id == *user || entry.acts_for.as_ref() == Some(user))
                    })
                })
                .map(|(id, _)| id)
                .collect();
            if theirs.is_empty() {
                continue;
            }
            let mut delete = redis::cmd("XDEL");
            delete.arg(&stream).arg(&theirs);
            let deleted: u64 = self
                .link
                .call_at_leisure(async |connection| delete.query_async(connection).await)
                .await?;
            gone += deleted;
        }
    }

    async fn forget_sums(
        &self,
        slot: &Tenant,
        (tenant, user): (&Tenant, &UserId),
    ) -> Result<u64, StoreError> {
        let mut gone = 0;
        for period in self.periods(slot).await? {
            let hash = self.usage(slot, &period);
            let of = |aspect, value: String| {
                field(&SumKey {
                    tenant: tenant.clone(),
                    period: period.clone(),
                    aspect,
                    value,
                })
            };
            let pairs = of(Aspect::UserModel, policy::ledger::pair(user.as_str(), ""));
            let rows = self.scan(&hash, &pairs).await?;
            let mut names: Vec<String> = rows.into_iter().map(|(name, _)| name).collect();
            names.push(of(Aspect::User, user.to_string()));
            let removed: u64 = self
                .link
                .call_at_leisure(async |connection| connection.hdel(&hash, &names).await)
                .await?;
            gone += removed;
        }
        Ok(gone)
    }

    /// Adds a line to the audit log as it is.
    pub(super) async fn put_audit(&self, line: &AuditRecord) -> Result<(), StoreError> {
        let text = serde_json::to_string(line)
            .map_err(|error| StoreError::Corrupt(format!("audit: {error}")))?;
        let list = self.audit_list();
        self.link
            .call_at_leisure(async |connection| connection.rpush::<_, _, ()>(&list, &text).await)
            .await
    }

    async fn audit_range(&self, from: isize, to: isize) -> Result<Vec<AuditRecord>, StoreError> {
        let list = self.audit_list();
        let lines: Vec<String> = self
            .link
            .call_at_leisure(async |connection| connection.lrange(&list, from, to).await)
            .await?;
        lines
            .iter()
            .map(|line| {
                serde_json::from_str(line)
                    .map_err(|error| StoreError::Corrupt(format!("audit: {error}")))
            })
            .collect()
    }
}

pub(super) fn read(bytes: &[u8]) -> Result<LedgerEntry, StoreError> {
    LedgerEntry::from_bytes(bytes).map_err(|error| StoreError::Corrupt(format!("ledger: {error}")))
}

fn field(key: &SumKey) -> String {
    field_of(&key.tenant, key.aspect.as_str(), &key.value)
}

pub(super) fn field_of(tenant: &Tenant, aspect: &str, value: &str) -> String {
    format!("{tenant}{GAP}{aspect}{GAP}{value}")
}

pub(super) fn row(sum: Totals) -> Result<String, StoreError> {
    serde_json::to_string(&sum.to_row())
        .map_err(|error| StoreError::Corrupt(format!("usage: {error}")))
}

pub(super) fn totals(row: &str) -> Result<Totals, StoreError> {
    serde_json::from_str(row)
        .map(Totals::from_row)
        .map_err(|error| StoreError::Corrupt(format!("usage: {error}")))
}

/// A text as a pattern of Redis that matches it alone.
pub(super) fn escaped(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for letter in text.chars() {
        if matches!(letter, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern
}

/// Where a page ended: a slot and an id in its stream.
fn place(cursor: &str) -> Result<(Tenant, String), StoreError> {
    let (slot, id) = cursor
        .split_once('.')
        .ok_or_else(|| StoreError::Corrupt("a cursor that is not ours".into()))?;
    let plain = |byte: u8| byte.is_ascii_digit() || byte == b'-';
    if id.is_empty() || !id.bytes().all(plain) {
        return Err(StoreError::Corrupt("a cursor that is not ours".into()));
    }
    Ok((Tenant::new(slot), id.to_owned()))
}

#[async_trait]
impl Ledger for Redis {
    async fn append(&self, entries: &[LedgerEntry]) -> Result<(), StoreError> {
        for some in entries.chunks(ENTRIES_A_CALL) {
            let slots: BTreeSet<&Tenant> = some.iter().map(|entry| &entry.tenant).collect();
            for slot in slots {
                self.counters.open_books(slot).await?;
                // One slot a pipeline: a cluster takes no other.
                let mut pipe = redis::pipe();
                for entry in some.iter().filter(|entry| entry.tenant == *slot) {
                    pipe.cmd("XADD")
                        .arg(self.ledger_stream(slot))
                        .arg("*")
                        .arg(FIELD)
                        .arg(entry.to_bytes())
                        .ignore();
                }
                self.link
                    .call_at_leisure(async |connection| pipe.query_async::<()>(connection).await)
                    .await?;
            }
        }
        Ok(())
    }

    async fn records(&self, query: &RecordQuery) -> Result<RecordPage, StoreError> {
        let start = query.after.as_deref().map(place).transpose()?;
        let to = query.to_ms.saturating_add(SETTLES_WITHIN_MS).to_string();
        let (mut page, mut looked_at) = (RecordPage::default(), 0);
        for slot in self.slots().await? {
            let mut from = match &start {
                Some((at, _)) if slot < *at => continue,
                Some((at, id)) if slot == *at => format!("({id}"),
                Some(_) | None => query.from_ms.saturating_sub(SKEW_MS).to_string(),
            };
            loop {
                let rows = self.range(&slot, &from, &to).await?;
                let is_last = rows.len() < ENTRIES_A_CALL;
                for (id, (_, bytes)) in rows {
                    let entry = read(&bytes)?;
                    looked_at += 1;
                    if query.wants(&entry) {
                        page.entries.push(entry);
                    }
                    if page.entries.len() >= query.limit || looked_at >= LOOKED_AT_MAX {
                        page.next = Some(format!("{slot}.{id}"));
                        return Ok(page);
                    }
                    from = format!("({id}");
                }
                if is_last {
                    break;
                }
            }
        }
        Ok(page)
    }

    async fn sums(&self, keys: &[SumKey]) -> Result<Vec<Totals>, StoreError> {
        let mut all = vec![Totals::default(); keys.len()];
        for slot in self.slots().await? {
            for (sum, more) in all.iter_mut().zip(self.sums_in(&slot, keys).await?) {
                sum.add(&more);
            }
        }
        Ok(all)
    }

    async fn breakdown(&self, of: &Breakdown) -> Result<Vec<(String, Totals)>, StoreError> {
        let name = |value: String| {
            field(&SumKey {
                tenant: of.tenant.clone(),
                period: of.period.clone(),
                aspect: of.aspect,
                value,
            })
        };
        let begins = name(String::new());
        let first = of
            .first
            .as_deref()
            .map(|first| policy::ledger::pair(first, ""));
        let pattern = name(first.unwrap_or_default());
        let mut found = BTreeMap::<String, Totals>::new();
        for slot in self.slots().await? {
            let rows = self.scan(&self.usage(&slot, &of.period), &pattern).await?;
            for (name, row) in rows {
                let value = name.strip_prefix(&begins).unwrap_or_default();
                found
                    .entry(value.to_owned())
                    .or_default()
                    .add(&totals(&row)?);
            }
        }
        Ok(found.into_iter().take(of.limit).collect())
    }

    async fn fold(&self) -> Result<u64, StoreError> {
        let mut all = 0;
        for slot in self.slots().await? {
            loop {
                let some = self.fold_some(&slot).await?;
                all += some as u64;
                if some < ENTRIES_A_CALL {
                    break;
                }
            }
        }
        Ok(all)
    }

    async fn prune(&self, keep: &Keep) -> Result<u64, StoreError> {
        // What goes must have been added up.
        self.fold().await?;
        let mut gone = 0;
        for slot in self.slots().await? {
            gone += self.prune_slot(&slot, keep).await?;
        }
        Ok(gone)
    }

    async fn forget_usage(&self, tenant: &Tenant, user: &UserId) -> Result<u64, StoreError> {
        // Else what is not added up yet would bring the sums back.
        self.fold().await?;
        let mut gone = 0;
        for slot in self.slots().await? {
            gone += self.forget_entries(&slot, (tenant, user)).await?;
            gone += self.forget_sums(&slot, (tenant, user)).await?;
        }
        Ok(gone)
    }

    async fn note(&self, act: &AuditAct) -> Result<AuditRecord, StoreError> {
        let list = self.audit_list();
        for _ in 0..TRIES_MAX {
            let last = self.last_audit().await?;
            let line = AuditRecord::after(last.as_ref(), act.clone());
            let text = serde_json::to_string(&line)
                .map_err(|error| StoreError::Corrupt(format!("audit: {error}")))?;
            let mut invocation = self.noting.prepare_invoke();
            invocation.key(&list).arg(line.seq - 1).arg(text);
            let done: u8 = self
                .link
                .call_at_leisure(async |connection| invocation.invoke_async(connection).await)
                .await?;
            if done == 1 {
                return Ok(line);
            }
        }
        Err(StoreError::Overloaded)
    }

    async fn audit(&self, after: u64, limit: usize) -> Result<Vec<AuditRecord>, StoreError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let from = isize::try_from(after).unwrap_or(isize::MAX);
        let more = isize::try_from(limit - 1).unwrap_or(isize::MAX);
        self.audit_range(from, from.saturating_add(more)).await
    }

    async fn last_audit(&self) -> Result<Option<AuditRecord>, StoreError> {
        Ok(self.audit_range(-1, -1).await?.pop())
    }
}
