//! The redb file as rows, and rows as a redb file. Rows are written past the counters in memory: for a file that nobody uses
//! meanwhile, and that is opened again afterwards.

use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use config::secret::Secret;
use policy::quota::{Charge, NEVER_MS};
use redb::{Database, ReadableDatabase, WriteTransaction};

use super::records::{FileError, write};
use super::{Embedded, counters, ledger, lock, records};
use crate::store::StoreError;
use crate::store::counting::ReservationId;
use crate::store::memory::{Charged, Open};
use crate::store::transfer::{
    Row, SavedCharge, SavedCounter, SavedReservation, Table, Transfer, rule_code, rule_of,
};

/// Rows of one page.
const PAGE: usize = 1_000;

/// Some rows, and where the next begin.
type Page = (Vec<Row>, Option<String>);

fn counters_after(file: &Database, after: Option<&str>) -> Result<Page, FileError> {
    let table = file.begin_read()?.open_table(counters::COUNTERS)?;
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut rows = Vec::new();
    let mut last = None;
    for row in table.range::<&str>((from, Bound::Unbounded))?.take(PAGE) {
        let (key, slot) = row?;
        let (value, expires_at_ms) = slot.value();
        last = Some(key.value().to_owned());
        // Zero: it may go at once.
        if expires_at_ms > 0 {
            rows.push(Row::Counter(SavedCounter {
                key: key.value().to_owned(),
                value,
                expires_at_ms: (expires_at_ms != NEVER_MS).then_some(expires_at_ms),
            }));
        }
    }
    Ok((rows, last))
}

fn reservations(file: &Database) -> Result<Page, FileError> {
    let all = counters::open_reservations(file)?;
    let rows = all.into_iter().map(|(id, open)| {
        let charges = open.charges.iter().map(|charged| SavedCharge {
            key: charged.key.as_ref().to_owned(),
            rule: rule_code(charged.rule),
            units: charged.charge.units,
            charged_to_us: charged.charge.charged_to_us,
        });
        Row::Reservation(SavedReservation {
            id: id.to_string(),
            expires_at_ms: open.expires_at_ms,
            granted: open.granted,
            charges: charges.collect(),
        })
    });
    Ok((rows.collect(), None))
}

fn open_of(saved: &SavedReservation) -> Option<(ReservationId, Open)> {
    let charges = saved.charges.iter().map(|charge| {
        Some(Charged {
            key: Arc::from(charge.key.as_str()),
            rule: rule_of(charge.rule)?,
            charge: Charge {
                units: charge.units,
                charged_to_us: charge.charged_to_us,
            },
        })
    });
    let open = Open {
        expires_at_ms: saved.expires_at_ms,
        granted: saved.granted,
        charges: charges.collect::<Option<_>>()?,
    };
    Some((saved.id.parse().ok()?, open))
}

fn put(transaction: &WriteTransaction, row: &Row) -> Result<(), FileError> {
    match row {
        Row::Counter(counter) => {
            let mut table = transaction.open_table(counters::COUNTERS)?;
            let ends = counter.expires_at_ms.unwrap_or(NEVER_MS);
            table.insert(counter.key.as_str(), (counter.value, ends))?;
            Ok(())
        }
        Row::Reservation(saved) => {
            let (id, open) = open_of(saved)
                .ok_or_else(|| StoreError::Corrupt(format!("the reservation {}", saved.id)))?;
            counters::put_open(transaction, &id, &open)
        }
        Row::Entry(entry) => ledger::put_entry(transaction, entry),
        Row::Sum(sum) => ledger::put_sum(transaction, sum),
        Row::Audit(line) => ledger::put_audit(transaction, line),
        Row::Key(_)
        | Row::User(_)
        | Row::Denial(_)
        | Row::JoinToken(_)
        | Row::Node(_)
        | Row::Burst(_)
        | Row::Secret { .. } => Err(StoreError::Corrupt("a record among the rows".into()).into()),
    }
}

#[async_trait]
impl Transfer for Embedded {
    async fn secrets(&self) -> Result<Vec<(String, Secret<[u8; 32]>)>, StoreError> {
        self.worker.ask(records::secrets).await
    }

    async fn put_secret(&self, name: &str, secret: &Secret<[u8; 32]>) -> Result<(), StoreError> {
        let (name, secret) = (name.to_owned(), secret.clone());
        self.worker
            .ask(move |file| records::put_secret(file, &name, &secret))
            .await
    }

    async fn rows(
        &self,
        table: Table,
        after: Option<&str>,
    ) -> Result<(Vec<Row>, Option<String>), StoreError> {
        if after.is_none() {
            // What is only in memory yet.
            let batch = lock(&self.counters).batch();
            self.on_disk(batch).await?;
        }
        let after = after.map(str::to_owned);
        self.worker
            .ask(move |file| match table {
                Table::Counters => counters_after(file, after.as_deref()),
                Table::Reservations => reservations(file),
                Table::Entries => ledger::entries_after(file, after.as_deref(), PAGE),
                Table::Sums => ledger::sums_after(file, after.as_deref(), PAGE),
            })
            .await
    }

    async fn put_rows(&self, rows: Vec<Row>) -> Result<(), StoreError> {
        self.worker
            .ask(move |file| {
                write(file, |transaction| {
                    rows.iter().try_for_each(|row| put(transaction, row))
                })
            })
            .await
    }
}
