//! What stands in the redb file: JSON records by id, and counters. Every function is one transaction; those that write return
//! when the disk has it.

use std::ops::Bound;

use config::ids::{KeyId, NodeId, UserId};
use config::secret::Secret;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{counters, ledger};
use crate::store::{
    BurstRecord, Denial, Denied, JoinToken, KeyRecord, NodeRecord, Redeemed, Redemption,
    StoreError, UserRecord, local,
};

type Records = TableDefinition<'static, &'static str, &'static [u8]>;

const KEYS: Records = TableDefinition::new("keys");
const USERS: Records = TableDefinition::new("users");
const DENIALS: Records = TableDefinition::new("denials");
const JOIN_TOKENS: Records = TableDefinition::new("join_tokens");
const NODES: Records = TableDefinition::new("nodes");
const BURSTS: Records = TableDefinition::new("bursts");
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
        counters::create_tables(transaction)?;
        ledger::create_tables(transaction)?;
        for table in [KEYS, USERS, DENIALS, JOIN_TOKENS, NODES, BURSTS, SECRETS] {
            transaction.open_table(table)?;
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

pub(super) fn swap_key(
    file: &Database,
    before: &KeyRecord,
    after: &KeyRecord,
) -> Result<bool, FileError> {
    swap(file, KEYS, after.id.as_str(), (before, after))
}

pub(super) fn touch_key(file: &Database, id: &KeyId, now_unix: i64) -> Result<(), FileError> {
    touch(file, KEYS, id.as_str(), |key: &mut KeyRecord| {
        key.last_used_unix = key.last_used_unix.max(Some(now_unix));
    })
}

pub(super) fn create_user(file: &Database, user: UserRecord) -> Result<UserRecord, FileError> {
    write(file, |transaction| {
        if let Some(known) = get(transaction, USERS, user.id.as_str())? {
            return Ok(known);
        }
        put(transaction, USERS, user.id.as_str(), &user)?;
        Ok(user)
    })
}

pub(super) fn swap_user(
    file: &Database,
    before: &UserRecord,
    after: &UserRecord,
) -> Result<bool, FileError> {
    swap(file, USERS, after.id.as_str(), (before, after))
}

pub(super) fn user(file: &Database, id: &UserId) -> Result<Option<UserRecord>, FileError> {
    one(file, USERS, id.as_str())
}

pub(super) fn users(
    file: &Database,
    after: Option<&UserId>,
    limit: usize,
) -> Result<Vec<UserRecord>, FileError> {
    let table = file.begin_read()?.open_table(USERS)?;
    let from = after.map_or(Bound::Unbounded, |id| Bound::Excluded(id.as_str()));
    let mut found = Vec::new();
    for row in table.range::<&str>((from, Bound::Unbounded))?.take(limit) {
        let (id, record) = row?;
        found.push(parse(USERS, id.value(), record.value())?);
    }
    Ok(found)
}

pub(super) fn touch_user(file: &Database, id: &UserId, now_unix: i64) -> Result<(), FileError> {
    touch(file, USERS, id.as_str(), |user: &mut UserRecord| {
        user.last_seen_unix = user.last_seen_unix.max(now_unix);
    })
}

pub(super) fn remove_user(file: &Database, id: &UserId) -> Result<bool, FileError> {
    remove(file, USERS, id.as_str())
}

pub(super) fn put_denial(file: &Database, denial: &Denial) -> Result<(), FileError> {
    write(file, |transaction| {
        put(transaction, DENIALS, &denial.whom.text(), denial)
    })
}

pub(super) fn remove_denial(file: &Database, whom: &Denied) -> Result<bool, FileError> {
    remove(file, DENIALS, &whom.text())
}

pub(super) fn denials(file: &Database) -> Result<Vec<Denial>, FileError> {
    all(file, DENIALS)
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

pub(super) fn swap_node(
    file: &Database,
    before: &NodeRecord,
    after: &NodeRecord,
) -> Result<bool, FileError> {
    swap(file, NODES, after.id.as_str(), (before, after))
}

pub(super) fn touch_node(file: &Database, id: &NodeId, now_unix: i64) -> Result<(), FileError> {
    touch(file, NODES, id.as_str(), |node: &mut NodeRecord| {
        node.last_seen_unix = node.last_seen_unix.max(Some(now_unix));
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

pub(super) fn swap_burst(
    file: &Database,
    name: &str,
    before: Option<&BurstRecord>,
    after: Option<&BurstRecord>,
) -> Result<bool, FileError> {
    write(file, |transaction| {
        if get::<BurstRecord>(transaction, BURSTS, name)?.as_ref() != before {
            return Ok(false);
        }
        match after {
            Some(after) => put(transaction, BURSTS, name, after)?,
            None => drop(transaction.open_table(BURSTS)?.remove(name)?),
        }
        Ok(true)
    })
}

pub(super) fn burst(file: &Database, name: &str) -> Result<Option<BurstRecord>, FileError> {
    one(file, BURSTS, name)
}

pub(super) fn bursts(file: &Database) -> Result<Vec<BurstRecord>, FileError> {
    all(file, BURSTS)
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

/// A secret and its name.
type Named = (String, Secret<[u8; 32]>);

/// All secrets, by name.
pub(super) fn secrets(file: &Database) -> Result<Vec<Named>, FileError> {
    let table = file.begin_read()?.open_table(SECRETS)?;
    let mut names = Vec::new();
    for row in table.iter()? {
        names.push(row?.0.value().to_owned());
    }
    drop(table);
    let mut all = Vec::with_capacity(names.len());
    for name in names {
        if let Some(secret) = known_secret(file, &name)? {
            all.push((name, secret));
        }
    }
    Ok(all)
}

/// Sets a secret that is not there yet.
pub(super) fn put_secret(
    file: &Database,
    name: &str,
    secret: &Secret<[u8; 32]>,
) -> Result<(), FileError> {
    match known_secret(file, name)? {
        Some(known) if known == *secret => Ok(()),
        Some(_) => Err(StoreError::Corrupt(format!(
            "the secret {name} is there already, and another one"
        ))
        .into()),
        None => write(file, |transaction| {
            let mut table = transaction.open_table(SECRETS)?;
            table.insert(name, secret.expose().as_slice())?;
            Ok(())
        }),
    }
}

/// One durable transaction; an error leaves everything as it was.
pub(super) fn write<T>(
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

/// Visible at once, on disk with the next counters: a sync of the disk for each use of a key would be too much.
fn touch<T: DeserializeOwned + Serialize>(
    file: &Database,
    records: Records,
    id: &str,
    change: impl FnOnce(&mut T),
) -> Result<(), FileError> {
    let mut transaction = file.begin_write()?;
    let lightly = transaction.set_durability(Durability::None);
    lightly.map_err(|error| StoreError::Unavailable(error.to_string()))?;
    let Some(mut record) = get::<T>(&transaction, records, id)? else {
        return Ok(());
    };
    change(&mut record);
    put(&transaction, records, id, &record)?;
    transaction.commit()?;
    Ok(())
}

/// Replaces what still is as it was read.
fn swap<T: DeserializeOwned + Serialize + PartialEq>(
    file: &Database,
    records: Records,
    id: &str,
    (before, after): (&T, &T),
) -> Result<bool, FileError> {
    write(file, |transaction| {
        let known = get::<T>(transaction, records, id)?;
        if known.as_ref() != Some(before) {
            return Ok(false);
        }
        put(transaction, records, id, after)?;
        Ok(true)
    })
}

fn remove(file: &Database, records: Records, id: &str) -> Result<bool, FileError> {
    write(file, |transaction| {
        let removed = transaction.open_table(records)?.remove(id)?.is_some();
        Ok(removed)
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
