//! Counters and open reservations in the redb file: read one by one when memory does not hold them, written in batches, swept
//! bit by bit when they have expired.

use std::sync::{Arc, PoisonError, RwLock};

use policy::gcra::Rate;
use policy::limit::{Rule, Span, Window};
use policy::quota::Charge;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::records::FileError;
use crate::store::StoreError;
use crate::store::counting::ReservationId;
use crate::store::memory::{Changes, Charged, Disk, Open, Slot};

/// Value and end of its meaning in Unix milliseconds, by the counter's key.
pub(super) const COUNTERS: TableDefinition<'static, &'static str, (u64, u64)> =
    TableDefinition::new("counters");
/// What is charged and not settled yet, by the reservation's id.
const RESERVATIONS: TableDefinition<'static, &'static [u8], &'static [u8]> =
    TableDefinition::new("reservations");
/// Rows that one batch looks at for what has expired.
const SWEPT_A_BATCH: usize = 500;

/// The file, while it is open. Reading it waits for no writer.
#[derive(Debug)]
pub(super) struct FileDisk {
    database: RwLock<Option<Arc<Database>>>,
}

impl FileDisk {
    pub(super) const fn new() -> Self {
        Self {
            database: RwLock::new(None),
        }
    }

    /// The database, unless it failed and is being opened again.
    pub(super) fn get(&self) -> Option<Arc<Database>> {
        let database = self.database.read();
        database.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts in the database, or takes it out.
    pub(super) fn set(&self, database: Option<Database>) {
        let mut place = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *place = database.map(Arc::new);
    }
}

impl Disk for FileDisk {
    const KEEPS: bool = true;

    fn load(&self, key: &str) -> Result<Option<Slot>, StoreError> {
        let Some(database) = self.get() else {
            return Err(StoreError::Unavailable(
                "the store's file failed and is being opened again".into(),
            ));
        };
        read(&database, key).map_err(StoreError::from)
    }
}

fn read(database: &Database, key: &str) -> Result<Option<Slot>, FileError> {
    let table = database.begin_read()?.open_table(COUNTERS)?;
    let row = table.get(key)?;
    Ok(row.map(|row| {
        let (value, expires_at_ms) = row.value();
        Slot {
            value,
            expires_at_ms,
        }
    }))
}

/// Makes the tables.
pub(super) fn create_tables(transaction: &WriteTransaction) -> Result<(), FileError> {
    transaction.open_table(COUNTERS)?;
    transaction.open_table(RESERVATIONS)?;
    Ok(())
}

/// The reservations that nobody settled before the file was last closed.
pub(super) fn open_reservations(
    database: &Database,
) -> Result<Vec<(ReservationId, Open)>, FileError> {
    let table = database.begin_read()?.open_table(RESERVATIONS)?;
    let mut all = Vec::new();
    for row in table.iter()? {
        let (id, open) = row?;
        let known: Option<(ReservationId, Open)> = id
            .value()
            .try_into()
            .ok()
            .map(ReservationId::from_bytes)
            .zip(
                serde_json::from_slice::<Row>(open.value())
                    .ok()
                    .map(Open::from),
            );
        let known = known.ok_or_else(|| StoreError::Corrupt("reservations".into()))?;
        all.push(known);
    }
    Ok(all)
}

/// Writes a batch and removes some of what has expired; says where to look on.
pub(super) fn write(
    transaction: &WriteTransaction,
    changes: &Changes,
    (sweep_from, now_unix_ms): (&str, u64),
) -> Result<String, FileError> {
    let mut table = transaction.open_table(COUNTERS)?;
    let (expired, next) = expired(&table, sweep_from, now_unix_ms)?;
    for key in &expired {
        table.remove(key.as_str())?;
    }
    for (key, slot) in &changes.counters {
        match slot {
            Some(slot) => {
                table.insert(key.as_ref(), (slot.value, slot.expires_at_ms))?;
            }
            None => {
                table.remove(key.as_ref())?;
            }
        }
    }
    let mut table = transaction.open_table(RESERVATIONS)?;
    for (id, open) in &changes.reservations {
        match open {
            Some(open) => {
                table.insert(id.as_bytes().as_slice(), bytes_of(open)?.as_slice())?;
            }
            None => {
                table.remove(id.as_bytes().as_slice())?;
            }
        }
    }
    Ok(next)
}

fn bytes_of(open: &Open) -> Result<Vec<u8>, FileError> {
    serde_json::to_vec(&Row::from(open))
        .map_err(|error| StoreError::Corrupt(format!("reservations: {error}")).into())
}

/// Writes one reservation as it is.
pub(super) fn put_open(
    transaction: &WriteTransaction,
    id: &ReservationId,
    open: &Open,
) -> Result<(), FileError> {
    let mut table = transaction.open_table(RESERVATIONS)?;
    table.insert(id.as_bytes().as_slice(), bytes_of(open)?.as_slice())?;
    Ok(())
}

/// Keys of the next rows that have expired, and the key after them; empty at the end.
fn expired(
    table: &impl ReadableTable<&'static str, (u64, u64)>,
    from: &str,
    now_unix_ms: u64,
) -> Result<(Vec<String>, String), FileError> {
    let mut gone = Vec::new();
    for (looked, row) in table.range(from..)?.enumerate() {
        let (key, slot) = row?;
        if looked == SWEPT_A_BATCH {
            return Ok((gone, key.value().to_owned()));
        }
        let (_, expires_at_ms) = slot.value();
        if expires_at_ms <= now_unix_ms {
            gone.push(key.value().to_owned());
        }
    }
    Ok((gone, String::new()))
}

/// A reservation as it lies in the file.
#[derive(Debug, Deserialize, Serialize)]
struct Row {
    expires_at_ms: u64,
    granted: u64,
    charges: Vec<RowCharge>,
}

/// One counter of it: key, rule, units and where they moved the TAT.
#[derive(Debug, Deserialize, Serialize)]
struct RowCharge {
    key: String,
    rule: RowRule,
    units: u64,
    charged_to_us: u64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum RowRule {
    Gcra {
        limit: u64,
        period_ms: u64,
    },
    Day {
        limit: u64,
        from_ms: u64,
        to_ms: u64,
    },
    Month {
        limit: u64,
        from_ms: u64,
        to_ms: u64,
    },
    Held {
        limit: u64,
    },
}

impl From<&Open> for Row {
    fn from(open: &Open) -> Self {
        let charge = |charged: &Charged| RowCharge {
            key: charged.key.as_ref().to_owned(),
            rule: charged.rule.into(),
            units: charged.charge.units,
            charged_to_us: charged.charge.charged_to_us,
        };
        Self {
            expires_at_ms: open.expires_at_ms,
            granted: open.granted,
            charges: open.charges.iter().map(charge).collect(),
        }
    }
}

impl From<Row> for Open {
    fn from(row: Row) -> Self {
        let charged = |charge: RowCharge| Charged {
            key: charge.key.into(),
            rule: charge.rule.into(),
            charge: Charge {
                units: charge.units,
                charged_to_us: charge.charged_to_us,
            },
        };
        Self {
            expires_at_ms: row.expires_at_ms,
            granted: row.granted,
            charges: row.charges.into_iter().map(charged).collect(),
        }
    }
}

impl From<Rule> for RowRule {
    fn from(rule: Rule) -> Self {
        match rule {
            Rule::Gcra(Rate { limit, period_ms }) => Self::Gcra { limit, period_ms },
            Rule::Window(Window {
                limit,
                starts_at_ms: from_ms,
                resets_at_ms: to_ms,
                span,
            }) => match span {
                Span::Day => Self::Day {
                    limit,
                    from_ms,
                    to_ms,
                },
                Span::Month => Self::Month {
                    limit,
                    from_ms,
                    to_ms,
                },
            },
            Rule::Held { limit } => Self::Held { limit },
        }
    }
}

impl From<RowRule> for Rule {
    fn from(rule: RowRule) -> Self {
        let window = |limit, starts_at_ms, resets_at_ms, span| {
            Self::Window(Window {
                limit,
                starts_at_ms,
                resets_at_ms,
                span,
            })
        };
        match rule {
            RowRule::Gcra { limit, period_ms } => Self::Gcra(Rate { limit, period_ms }),
            RowRule::Day {
                limit,
                from_ms,
                to_ms,
            } => window(limit, from_ms, to_ms, Span::Day),
            RowRule::Month {
                limit,
                from_ms,
                to_ms,
            } => window(limit, from_ms, to_ms, Span::Month),
            RowRule::Held { limit } => Self::Held { limit },
        }
    }
}
