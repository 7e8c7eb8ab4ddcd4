//! What stands in the redb file: JSON records by id, and counters. Every function is one transaction; those that write return
//! when the disk has it.

use config::ids::{KeyId, NodeId};
use config::secret::Secret;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::memory::Changes;
use crate::store::{JoinToken, KeyRecord, NodeRecord, Redeemed, Redemption, StoreError, local};

type Records = TableDefinition<'static, &'static str, &'static [u8]>;

/// Value and end of its meaning in Unix milliseconds, by the counter's key.
pub(super) const COUNTERS: TableDefinition<'static, &'static str, (u64, u64)> =
    TableDefinition::new("counters");
const KEYS: Records = TableDefinition::new("keys");
const JOIN_TOKENS: Records = TableDefinition::new("join_tokens");
const NODES: Records = TableDefinition::new("nodes");
const SECRETS: Records = TableDefinition::new("secrets");

/// Why a transaction did not happen.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// redb gave up; the file must be opened again.
    #[error("{0}")]
    Disk(redb::Error),
    /// Anything else.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<FileError> for StoreError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Disk(error) => Self::Unavailable(error.to_string()),
            FileError::Store(error) => error,
        }
    }
}

impl<E: DiskError> From<E> for FileError {
    fn from(error: E) -> Self {
        Self::Disk(error.into())
    }
}

/// The errors of redb, which has one type for each kind of call.
pub(super) trait DiskError: Into<redb::Error> {}
impl DiskError for redb::TransactionError {}
impl DiskError for redb::TableError {}
impl DiskError for redb::StorageError {}
impl DiskError for redb::CommitError {}

/// Makes the tables, so that reading never meets a missing one.
pub(super) fn create_tables(file: &Database) -> Result<(), FileError> {
    write(file, |transaction| {
        transaction.open_table(COUNTERS)?;
        for table in [KEYS, JOIN_TOKENS, NODES, SECRETS] {
            transaction.open_table(table)?;
        }
        Ok(())
    })
}

pub(super) fn write_counters(file: &Database, changes: &Changes) -> Result<(), FileError> {
    write(file, |transaction| {
        let mut table = transaction.open_table(COUNTERS)?;
        for (key, slot) in &changes.written {
            table.insert(key.as_str(), (slot.value, slot.expires_at_ms))?;
        }
        for key in &changes.dropped {
            table.remove(key.as_str())?;
        }
        Ok(())
    })
}

pub(super) fn ping(file: &Database) -> Result<(), FileError> {
    file.begin_read()?;
    Ok(())
}

pub(super) fn put_key(file: &Database, key: &KeyRecord) -> Result<(), FileError> {
    write(file, |transaction| {
        put(transaction, KEYS, key.id.as_str(), key)
    })
}

pub(super) fn key(file: &Database, id: &KeyId) -> Result<Option<KeyRecord>, FileError> {
    one(file, KEYS, id.as_str())
}

pub(super) fn keys(file: &Database) -> Result<Vec<KeyRecord>, FileError> {
    all(file, KEYS)
}

pub(super) fn revoke_key(
    file: &Database,
    id: &KeyId,
    now_unix: i64,
) -> Result<Option<KeyRecord>, FileError> {
    change(file, KEYS, id.as_str(), |key: &mut KeyRecord| {
        key.revoked_unix.get_or_insert(now_unix);
    })
}

/// Visible at once, on disk with the next counters: a sync of the disk for each use of a key would be too much.
pub(super) fn touch_key(file: &Database, id: &KeyId, now_unix: i64) -> Result<(), FileError> {
    let mut transaction = file.begin_write()?;
    let lightly = transaction.set_durability(Durability::None);
    lightly.map_err(|error| StoreError::Unavailable(error.to_string()))?;
    let Some(mut key) = get::<KeyRecord>(&transaction, KEYS, id.as_str())? else {
        return Ok(());
    };
    key.last_used_unix = key.last_used_unix.max(Some(now_unix));
    put(&transaction, KEYS, id.as_str(), &key)?;
    transaction.commit()?;
    Ok(())
}

pub(super) fn put_join_token(file: &Database, token: &JoinToken) -> Result<(), FileError> {
    write(file, |transaction| {
        put(transaction, JOIN_TOKENS, &token.id, token)
    })
}

pub(super) fn redeem_join_token(
    file: &Database,
    redemption: &Redemption,
    now_unix: i64,
) -> Result<Redeemed, FileError> {
    let mut redeemed = Redeemed::Unknown;
    change(
        file,
        JOIN_TOKENS,
        &redemption.id,
        |token: &mut JoinToken| {
            redeemed = token.redeem(redemption, now_unix);
        },
    )?;
    Ok(redeemed)
}

pub(super) fn join_tokens(file: &Database) -> Result<Vec<JoinToken>, FileError> {
    all(file, JOIN_TOKENS)
}

pub(super) fn put_node(file: &Database, mut node: NodeRecord) -> Result<(), FileError> {
    write(file, |transaction| {
        let known: Option<NodeRecord> = get(transaction, NODES, node.id.as_str())?;
        node.revoked_unix = known
            .and_then(|known| known.revoked_unix)
            .or(node.revoked_unix);
        put(transaction, NODES, node.id.as_str(), &node)
    })
}

pub(super) fn node(file: &Database, id: &NodeId) -> Result<Option<NodeRecord>, FileError> {
    one(file, NODES, id.as_str())
}

pub(super) fn nodes(file: &Database) -> Result<Vec<NodeRecord>, FileError> {
    all(file, NODES)
}

pub(super) fn revoke_node(
    file: &Database,
    id: &NodeId,
    now_unix: i64,
) -> Result<Option<NodeRecord>, FileError> {
    change(file, NODES, id.as_str(), |node: &mut NodeRecord| {
        node.revoked_unix.get_or_insert(now_unix);
    })
}

pub(super) fn secret(file: &Database, name: &str) -> Result<Secret<[u8; 32]>, FileError> {
    if let Some(known) = known_secret(file, name)? {
        return Ok(known);
    }
    // This thread alone writes, so nobody made one in between.
    let fresh = local::random()?;
    write(file, |transaction| {
        let mut table = transaction.open_table(SECRETS)?;
        table.insert(name, fresh.expose().as_slice())?;
        Ok(())
    })?;
    Ok(fresh)
}

fn known_secret(file: &Database, name: &str) -> Result<Option<Secret<[u8; 32]>>, FileError> {
    let table = file.begin_read()?.open_table(SECRETS)?;
    let Some(known) = table.get(name)? else {
        return Ok(None);
    };
    let known = <[u8; 32]>::try_from(known.value())
        .map_err(|_| StoreError::Corrupt(format!("secrets/{name}")))?;
    Ok(Some(Secret::new(known)))
}

/// One durable transaction; an error leaves everything as it was.
fn write<T>(
    file: &Database,
    work: impl FnOnce(&WriteTransaction) -> Result<T, FileError>,
) -> Result<T, FileError> {
    let transaction = file.begin_write()?;
    let done = work(&transaction)?;
    transaction.commit()?;
    Ok(done)
}

fn one<T: DeserializeOwned>(
    file: &Database,
    records: Records,
    id: &str,
) -> Result<Option<T>, FileError> {
    let table = file.begin_read()?.open_table(records)?;
    match table.get(id)? {
        Some(found) => Ok(Some(parse(records, id, found.value())?)),
        None => Ok(None),
    }
}

fn all<T: DeserializeOwned>(file: &Database, records: Records) -> Result<Vec<T>, FileError> {
    let table = file.begin_read()?.open_table(records)?;
    let mut found = Vec::new();
    for row in table.iter()? {
        let (id, record) = row?;
        found.push(parse(records, id.value(), record.value())?);
    }
    Ok(found)
}

fn change<T: DeserializeOwned + Serialize + PartialEq + Clone>(
    file: &Database,
    records: Records,
    id: &str,
    change: impl FnOnce(&mut T),
) -> Result<Option<T>, FileError> {
    write(file, |transaction| {
        let Some(mut record) = get::<T>(transaction, records, id)? else {
            return Ok(None);
        };
        let before = record.clone();
        change(&mut record);
        if record != before {
            put(transaction, records, id, &record)?;
        }
        Ok(Some(record))
    })
}

fn get<T: DeserializeOwned>(
    transaction: &WriteTransaction,
    records: Records,
    id: &str,
) -> Result<Option<T>, FileError> {
    let table = transaction.open_table(records)?;
    match table.get(id)? {
        Some(found) => Ok(Some(parse(records, id, found.value())?)),
        None => Ok(None),
    }
}

fn put<T: Serialize>(
    transaction: &WriteTransaction,
    records: Records,
    id: &str,
    record: &T,
) -> Result<(), FileError> {
    let text = serde_json::to_vec(record)
        .map_err(|error| StoreError::Corrupt(format!("{id} cannot be written: {error}")))?;
    transaction
        .open_table(records)?
        .insert(id, text.as_slice())?;
    Ok(())
}

fn parse<T: DeserializeOwned>(records: Records, id: &str, text: &[u8]) -> Result<T, FileError> {
    use redb::TableHandle;
    serde_json::from_slice(text)
        .map_err(|error| StoreError::Corrupt(format!("{}/{id}: {error}", records.name())).into())
}
