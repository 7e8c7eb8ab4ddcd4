//! The books in the redb file. Entries are written with the batch of counters that their settlement is in, and their sums in the
//! same transaction, so that a crash leaves both or neither.

use std::ops::Bound;
use std::path::Path;

use async_trait::async_trait;
use config::ids::{Tenant, UserId};
use policy::ledger::{Aspect, FIGURES, LedgerEntry, SumKey, Totals, increments, month_of};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::Embedded;
use super::records::{FileError, write};
use crate::store::StoreError;
use crate::store::ledger::{
    AuditAct, AuditRecord, Breakdown, Keep, LOOKED_AT_MAX, Ledger, PRUNED_A_CALL, RecordPage,
    RecordQuery,
};
use crate::store::transfer::{Row, SavedSum};

/// Entries, by tenant, moment and id.
const ENTRIES: TableDefinition<'static, &'static [u8], &'static [u8]> =
    TableDefinition::new("ledger");
/// Sums, by period, tenant, aspect and value.
const SUMS: TableDefinition<'static, &'static str, [u64; FIGURES]> = TableDefinition::new("usage");
/// Lines of the audit log.
const AUDIT: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("audit");
/// Between the parts of a name; no part holds it.
const GAP: char = '\0';

/// Makes the tables.
pub(super) fn create_tables(transaction: &WriteTransaction) -> Result<(), FileError> {
    transaction.open_table(ENTRIES)?;
    transaction.open_table(SUMS)?;
    transaction.open_table(AUDIT)?;
    Ok(())
}

/// Writes entries and adds them to their sums.
pub(super) fn append(
    transaction: &WriteTransaction,
    entries: &[LedgerEntry],
) -> Result<(), FileError> {
    if entries.is_empty() {
        return Ok(());
    }
    let mut table = transaction.open_table(ENTRIES)?;
    for entry in entries {
        table.insert(place(entry).as_slice(), entry.to_bytes().as_slice())?;
    }
    let mut table = transaction.open_table(SUMS)?;
    for (key, more) in increments(entries) {
        let name = name(&key);
        let mut sum = table
            .get(name.as_str())?
            .map_or_else(Totals::default, |row| Totals::from_row(row.value()));
        sum.add(&more);
        table.insert(name.as_str(), sum.to_row())?;
    }
    Ok(())
}

fn place(entry: &LedgerEntry) -> Vec<u8> {
    let mut place = start(&entry.tenant, entry.at_unix_ms);
    place.extend_from_slice(entry.id.as_bytes());
    place
}

fn start(tenant: &Tenant, at_unix_ms: u64) -> Vec<u8> {
    let mut place = Vec::with_capacity(tenant.as_str().len() + 41);
    place.extend_from_slice(tenant.as_str().as_bytes());
    place.push(0);
    place.extend_from_slice(&at_unix_ms.to_be_bytes());
    place
}

fn name(key: &SumKey) -> String {
    format!(
        "{}{}",
        prefix(&key.period, &key.tenant, key.aspect),
        key.value
    )
}

fn prefix(period: &str, tenant: &Tenant, aspect: Aspect) -> String {
    format!("{period}{GAP}{tenant}{GAP}{aspect}{GAP}")
}

fn records(file: &Database, query: &RecordQuery) -> Result<RecordPage, FileError> {
    let table = file.begin_read()?.open_table(ENTRIES)?;
    let from = start(&query.tenant, query.from_ms);
    let to = start(&query.tenant, query.to_ms);
    let after = match &query.after {
        None => None,
        Some(after) => Some(
            hex::decode(after)
                .map_err(|_| StoreError::Corrupt("a cursor that is not ours".into()))?,
        ),
    };
    let from = match &after {
        Some(after) if *after >= from => Bound::Excluded(after.as_slice()),
        Some(_) | None => Bound::Included(from.as_slice()),
    };
    let mut page = RecordPage::default();
    if let Bound::Excluded(after) = from
        && after >= to.as_slice()
    {
        return Ok(page);
    }
    let rows = table.range::<&[u8]>((from, Bound::Excluded(to.as_slice())))?;
    for (looked_at, row) in rows.enumerate() {
        let (place, bytes) = row?;
        let entry = LedgerEntry::from_bytes(bytes.value())
            .map_err(|error| StoreError::Corrupt(format!("ledger: {error}")))?;
        if query.wants(&entry) {
            page.entries.push(entry);
        }
        if page.entries.len() >= query.limit || looked_at >= LOOKED_AT_MAX {
            page.next = Some(hex::encode(place.value()));
            break;
        }
    }
    Ok(page)
}

fn sums(file: &Database, keys: &[SumKey]) -> Result<Vec<Totals>, FileError> {
    let table = file.begin_read()?.open_table(SUMS)?;
    let mut found = Vec::with_capacity(keys.len());
    for key in keys {
        let row = table.get(name(key).as_str())?;
        found.push(row.map_or_else(Totals::default, |row| Totals::from_row(row.value())));
    }
    Ok(found)
}

fn breakdown(file: &Database, of: &Breakdown) -> Result<Vec<(String, Totals)>, FileError> {
    let table = file.begin_read()?.open_table(SUMS)?;
    let prefix = prefix(&of.period, &of.tenant, of.aspect);
    let from = match &of.first {
        Some(first) => format!("{prefix}{}", policy::ledger::pair(first, "")),
        None => prefix.clone(),
    };
    let mut found = Vec::new();
    for row in table.range(from.as_str()..)? {
        let (name, sum) = row?;
        let Some(_) = name.value().strip_prefix(&from) else {
            break;
        };
        if found.len() >= of.limit {
            break;
        }
        let value = name.value().strip_prefix(&prefix).unwrap_or_default();
        found.push((value.to_owned(), Totals::from_row(sum.value())));
    }
    Ok(found)
}

fn prune(file: &Database, keep: &Keep) -> Result<u64, FileError> {
    write(file, |transaction| {
        let mut table = transaction.open_table(ENTRIES)?;
        let old = old_entries(&table, keep.records_from_ms)?;
        for place in &old {
            table.remove(place.as_slice())?;
        }
        let mut table = transaction.open_table(SUMS)?;
        let sums = old_sums(&table, &keep.sums_from_day)?;
        for name in &sums {
            table.remove(name.as_str())?;
        }
        Ok((old.len() + sums.len()) as u64)
    })
}

/// Tenants one after the other: what is old is at the beginning of each.
fn old_entries(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    before_ms: u64,
) -> Result<Vec<Vec<u8>>, FileError> {
    let mut old: Vec<Vec<u8>> = Vec::new();
    let mut from: Vec<u8> = Vec::new();
    'tenants: loop {
        let rows = table.range(from.as_slice()..)?;
        for row in rows {
            let (place, _) = row?;
            let place = place.value();
            let tenant = place.split(|&byte| byte == 0).next().unwrap_or_default();
            let mut end = [tenant, b"\0"].concat();
            end.extend_from_slice(&before_ms.to_be_bytes());
            if place >= end.as_slice() {
                from = [tenant, b"\x01"].concat();
                continue 'tenants;
            }
            old.push(place.to_vec());
            if old.len() >= PRUNED_A_CALL {
                return Ok(old);
            }
        }
        return Ok(old);
    }
}

fn old_sums(
    table: &impl ReadableTable<&'static str, [u64; FIGURES]>,
    from_day: &str,
) -> Result<Vec<String>, FileError> {
    let month = month_of(from_day);
    let mut old = Vec::new();
    for row in table.range(..from_day)? {
        let (name, _) = row?;
        let name = name.value();
        let is_kept_month = name.split(GAP).next() == Some(month);
        if !is_kept_month {
            old.push(name.to_owned());
        }
        if old.len() >= PRUNED_A_CALL {
            break;
        }
    }
    Ok(old)
}

/// Writes an entry that is in the sums already.
pub(super) fn put_entry(
    transaction: &WriteTransaction,
    entry: &LedgerEntry,
) -> Result<(), FileError> {
    let mut table = transaction.open_table(ENTRIES)?;
    table.insert(place(entry).as_slice(), entry.to_bytes().as_slice())?;
    Ok(())
}

/// Sets a sum.
pub(super) fn put_sum(transaction: &WriteTransaction, sum: &SavedSum) -> Result<(), FileError> {
    let aspect: Aspect = sum
        .aspect
        .parse()
        .map_err(|_| StoreError::Corrupt(format!("the aspect {} of a sum", sum.aspect)))?;
    let key = format!("{}{}", prefix(&sum.period, &sum.tenant, aspect), sum.value);
    let mut table = transaction.open_table(SUMS)?;
    table.insert(key.as_str(), sum.row)?;
    Ok(())
}

/// Writes a line of the audit log as it is.
pub(super) fn put_audit(
    transaction: &WriteTransaction,
    line: &AuditRecord,
) -> Result<(), FileError> {
    let bytes =
        serde_json::to_vec(line).map_err(|error| StoreError::Corrupt(format!("audit: {error}")))?;
    let mut table = transaction.open_table(AUDIT)?;
    table.insert(line.seq, bytes.as_slice())?;
    Ok(())
}

/// Entries of all tenants after a place, in hex.
pub(super) fn entries_after(
    file: &Database,
    after: Option<&str>,
    most: usize,
) -> Result<(Vec<Row>, Option<String>), FileError> {
    let table = file.begin_read()?.open_table(ENTRIES)?;
    let after = after
        .map(hex::decode)
        .transpose()
        .map_err(|_| StoreError::Corrupt("a cursor that is not ours".into()))?;
    let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    let (mut rows, mut last) = (Vec::new(), None);
    for row in table.range::<&[u8]>((from, Bound::Unbounded))?.take(most) {
        let (place, bytes) = row?;
        let entry = LedgerEntry::from_bytes(bytes.value())
            .map_err(|error| StoreError::Corrupt(format!("ledger: {error}")))?;
        rows.push(Row::Entry(Box::new(entry)));
        last = Some(hex::encode(place.value()));
    }
    Ok((rows, last))
}

/// Sums after a name.
pub(super) fn sums_after(
    file: &Database,
    after: Option<&str>,
    most: usize,
) -> Result<(Vec<Row>, Option<String>), FileError> {
    let table = file.begin_read()?.open_table(SUMS)?;
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let (mut rows, mut last) = (Vec::new(), None);
    for row in table.range::<&str>((from, Bound::Unbounded))?.take(most) {
        let (name, sum) = row?;
        let parts: Vec<&str> = name.value().splitn(4, GAP).collect();
        let [period, tenant, aspect, value] = parts.as_slice() else {
            return Err(StoreError::Corrupt("the name of a sum".into()).into());
        };
        rows.push(Row::Sum(SavedSum {
            tenant: Tenant::new(*tenant),
            period: (*period).to_owned(),
            aspect: (*aspect).to_owned(),
            value: (*value).to_owned(),
            row: sum.value(),
        }));
        last = Some(name.value().to_owned());
    }
    Ok((rows, last))
}

fn forget(file: &Database, tenant: &Tenant, user: &UserId) -> Result<u64, FileError> {
    write(file, |transaction| {
        let mut table = transaction.open_table(ENTRIES)?;
        let mut gone = 0;
        let (from, to) = (start(tenant, 0), start(tenant, u64::MAX));
        table.retain_in::<&[u8], _>(from.as_slice()..=to.as_slice(), |_, bytes| {
            let is_theirs = LedgerEntry::from_bytes(bytes)
                .is_ok_and(|entry| entry.user_id == *user || entry.acts_for.as_ref() == Some(user));
            gone += u64::from(is_theirs);
            !is_theirs
        })?;
        let mut table = transaction.open_table(SUMS)?;
        table.retain(|name, _| {
            let is_theirs = is_of(name, tenant, user);
            gone += u64::from(is_theirs);
            !is_theirs
        })?;
        Ok(gone)
    })
}

/// Whether a sum names the person.
fn is_of(name: &str, tenant: &Tenant, user: &UserId) -> bool {
    let mut parts = name.splitn(4, GAP);
    let (_, of, aspect, value) = (parts.next(), parts.next(), parts.next(), parts.next());
    let (Some(of), Some(aspect), Some(value)) = (of, aspect, value) else {
        return false;
    };
    let whose = match aspect.parse() {
        Ok(Aspect::User) => value == user.as_str(),
        Ok(Aspect::UserModel) => policy::ledger::second_of(value, user.as_str()).is_some(),
        Ok(
            Aspect::All
            | Aspect::Key
            | Aspect::Model
            | Aspect::Tier
            | Aspect::Node
            | Aspect::KeyModel,
        )
        | Err(_) => false,
    };
    of == tenant.as_str() && whose
}

fn note(file: &Database, act: AuditAct) -> Result<AuditRecord, FileError> {
    write(file, |transaction| {
        let mut table = transaction.open_table(AUDIT)?;
        let last = match table.last()? {
            Some((_, line)) => Some(line_of(line.value())?),
            None => None,
        };
        let line = AuditRecord::after(last.as_ref(), act);
        let bytes = serde_json::to_vec(&line)
            .map_err(|error| StoreError::Corrupt(format!("audit: {error}")))?;
        table.insert(line.seq, bytes.as_slice())?;
        Ok(line)
    })
}

fn audit(file: &Database, after: u64, limit: usize) -> Result<Vec<AuditRecord>, FileError> {
    let table = file.begin_read()?.open_table(AUDIT)?;
    let mut lines = Vec::new();
    for row in table.range(after.saturating_add(1)..)?.take(limit) {
        lines.push(line_of(row?.1.value())?);
    }
    Ok(lines)
}

fn last_audit(file: &Database) -> Result<Option<AuditRecord>, FileError> {
    let table = file.begin_read()?.open_table(AUDIT)?;
    match table.last()? {
        Some((_, line)) => Ok(Some(line_of(line.value())?)),
        None => Ok(None),
    }
}

fn line_of(bytes: &[u8]) -> Result<AuditRecord, FileError> {
    serde_json::from_slice(bytes)
        .map_err(|error| StoreError::Corrupt(format!("audit: {error}")).into())
}

#[async_trait]
impl Ledger for Embedded {
    async fn append(&self, entries: &[LedgerEntry]) -> Result<(), StoreError> {
        let entries = entries.to_vec();
        self.worker
            .ask(move |file| write(file, |transaction| append(transaction, &entries)))
            .await
    }

    async fn records(&self, query: &RecordQuery) -> Result<RecordPage, StoreError> {
        let query = query.clone();
        self.worker.ask(move |file| records(file, &query)).await
    }

    async fn sums(&self, keys: &[SumKey]) -> Result<Vec<Totals>, StoreError> {
        let keys = keys.to_vec();
        self.worker.ask(move |file| sums(file, &keys)).await
    }

    async fn breakdown(&self, of: &Breakdown) -> Result<Vec<(String, Totals)>, StoreError> {
        let of = of.clone();
        self.worker.ask(move |file| breakdown(file, &of)).await
    }

    async fn fold(&self) -> Result<u64, StoreError> {
        Ok(0)
    }

    async fn prune(&self, keep: &Keep) -> Result<u64, StoreError> {
        let keep = keep.clone();
        self.worker.ask(move |file| prune(file, &keep)).await
    }

    async fn forget_usage(&self, tenant: &Tenant, user: &UserId) -> Result<u64, StoreError> {
        let (tenant, user) = (tenant.clone(), user.clone());
        self.worker
            .ask(move |file| forget(file, &tenant, &user))
            .await
    }

    async fn backup(&self, to: &Path) -> Result<u64, StoreError> {
        let written = Self::backup(self, to).await?;
        // What a crash would have left behind in the file was put in order meanwhile.
        Ok(std::fs::metadata(to).map_or(written, |file| file.len()))
    }

    async fn note(&self, act: &AuditAct) -> Result<AuditRecord, StoreError> {
        let act = act.clone();
        self.worker.ask(move |file| note(file, act)).await
    }

    async fn audit(&self, after: u64, limit: usize) -> Result<Vec<AuditRecord>, StoreError> {
        self.worker.ask(move |file| audit(file, after, limit)).await
    }

    async fn last_audit(&self) -> Result<Option<AuditRecord>, StoreError> {
        self.worker.ask(last_audit).await
    }
}
