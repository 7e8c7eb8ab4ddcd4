//! What this proxy admitted and settled while its Redis was away: lines in a file of the state directory, each with a checksum,
//! kept until Redis has charged them. A process that is killed loses no line; a power cut loses what was not yet synced, which
//! no settlement is told to be durable before. Knows neither limits nor Redis.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ring::digest;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::redis::Bill;
use super::{StoreError, private_folder};

/// The file in the state directory.
const FILE: &str = "redis-journal";
/// Bills that wait for Redis at most.
const BILLS_MAX: usize = 100_000;
/// Bytes of the file at most.
const BYTES_MAX: u64 = 512 << 20;
/// Bytes of a line's checksum, as hex.
const SUM: usize = 16;
/// A settlement waits no longer than this for the disk.
const SYNC_TIMEOUT: Duration = Duration::from_secs(5);

/// A line.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// A share that is spent from, as it was when Redis went away.
    Share {
        /// Of this counter.
        key: Arc<str>,
        /// What is counted, as in metrics.
        unit: String,
        /// Units.
        units: u64,
    },
    /// A request was admitted here and charged to these shares.
    Admitted {
        /// Its id, in hex.
        id: String,
        /// Counters and units.
        charges: Vec<(Arc<str>, u64)>,
    },
    /// A request ended; Redis has not charged it.
    Bill(Box<Bill>),
    /// Redis has.
    Paid(String),
}

/// What a file said when it was opened.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// What is left of every share, with its unit's word.
    pub(super) shares: HashMap<Arc<str>, (String, u64)>,
}

/// The file. One process has it open.
#[derive(Debug)]
pub(super) struct Journal {
    inner: Mutex<Inner>,
    /// Bytes that are on the disk for good.
    synced: watch::Sender<u64>,
    /// Tells the thread that syncs; dropped, it ends.
    sync: std::sync::mpsc::SyncSender<()>,
    path: PathBuf,
}

#[derive(Debug)]
struct Inner {
    file: File,
    /// Written since the process began, also what was cut off since.
    written: u64,
    /// In the file.
    bytes: u64,
    bills: BTreeMap<u64, Bill>,
    next: u64,
}

impl Journal {
    /// Opens the file of the state directory, with what an earlier process left in it.
    pub(super) fn open(state_dir: &Path) -> Result<(Arc<Self>, Left), StoreError> {
        private_folder(state_dir)?;
        let path = state_dir.join(FILE);
        let fault =
            |error: std::io::Error| StoreError::Unavailable(format!("{}: {error}", path.display()));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(fault)?;
        file.try_lock()
            .map_err(|_| StoreError::InUse(path.display().to_string()))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(fault)?;
        let (lines, good) = read(&bytes);
        if good < bytes.len() {
            tracing::warn!(
                lost = bytes.len() - good,
                "the journal of Redis ended in the middle of a line"
            );
        }
        let good = u64::try_from(good).unwrap_or(u64::MAX);
        file.set_len(good).map_err(fault)?;
        file.seek(std::io::SeekFrom::End(0)).map_err(fault)?;
        let syncing = file.try_clone().map_err(fault)?;
        let (left, bills) = sum_up(lines);
        if !bills.is_empty() {
            tracing::warn!(
                bills = bills.len(),
                "settlements of an earlier run wait for Redis"
            );
        }
        let (sync, tell) = std::sync::mpsc::sync_channel(1);
        let next = u64::try_from(bills.len()).unwrap_or(u64::MAX);
        let journal = Arc::new(Self {
            inner: Mutex::new(Inner {
                file,
                written: 0,
                bytes: good,
                bills: (0..).zip(bills).collect(),
                next,
            }),
            synced: watch::Sender::new(0),
            sync,
            path,
        });
        let weak = Arc::downgrade(&journal);
        std::thread::Builder::new()
            .name("redis-journal".into())
            .spawn(move || {
                // One sync for all that was written meanwhile.
                while let Ok(()) = tell.recv() {
                    let Some(journal) = weak.upgrade() else {
                        return;
                    };
                    let written = journal.lock().written;
                    match syncing.sync_data() {
                        Ok(()) => {
                            journal.synced.send_replace(written);
                        }
                        Err(error) => tracing::error!(%error, "the journal of Redis is not synced"),
                    }
                }
            })
            .map_err(|error| StoreError::Unavailable(format!("a thread: {error}")))?;
        Ok((journal, left))
    }

    /// A share is spent from now on.
    pub(super) fn share(
        &self,
        key: &Arc<str>,
        unit: &'static str,
        units: u64,
    ) -> Result<(), StoreError> {
        let line = Line::Share {
            key: Arc::clone(key),
            unit: unit.to_owned(),
            units,
        };
        self.write(&mut self.lock(), &[line]).map(drop)
    }

    /// A request was admitted. Written when this returns, on the disk soon after.
    pub(super) fn admitted(
        &self,
        id: &str,
        charges: Vec<(Arc<str>, u64)>,
    ) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.write(&mut self.lock(), &[Line::Admitted { id, charges }])
            .map(drop)
    }

    /// A request ended. On the disk for good when this returns.
    pub(super) async fn owe(&self, bill: Bill) -> Result<(), StoreError> {
        let written = {
            let mut inner = self.lock();
            if inner.bills.len() >= BILLS_MAX {
                return Err(StoreError::Overloaded);
            }
            let written = self.write(&mut inner, &[Line::Bill(Box::new(bill.clone()))])?;
            let at = inner.next;
            inner.next += 1;
            inner.bills.insert(at, bill);
            written
        };
        let mut synced = self.synced.subscribe();
        let durable = synced.wait_for(|synced| *synced >= written);
        match tokio::time::timeout(SYNC_TIMEOUT, durable).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(StoreError::Unavailable(
                "the journal of Redis is not on the disk yet".into(),
            )),
        }
    }

    /// The oldest bills, so many at most.
    pub(super) fn bills(&self, most: usize) -> Vec<(u64, Bill)> {
        let inner = self.lock();
        let bills = inner.bills.iter().take(most);
        bills.map(|(at, bill)| (*at, bill.clone())).collect()
    }

    /// Bills that wait.
    pub(super) fn waiting(&self) -> usize {
        self.lock().bills.len()
    }

    /// Redis has charged these.
    pub(super) fn paid(&self, bills: &[u64]) {
        let mut inner = self.lock();
        let mut lines = Vec::with_capacity(bills.len());
        for at in bills {
            if let Some(bill) = inner.bills.remove(at) {
                lines.push(Line::Paid(bill.id.to_string()));
            }
        }
        if let Err(error) = self.write(&mut inner, &lines) {
            // After a restart they are sent again, and Redis knows their ids.
            tracing::warn!(%error, "the journal does not say what Redis has charged");
        }
    }

    /// Forgets everything, if no bill waits: whether it did.
    pub(super) fn clear(&self) -> bool {
        let mut inner = self.lock();
        if !inner.bills.is_empty() {
            return false;
        }
        if inner.bytes == 0 {
            return true;
        }
        let cut = inner.file.set_len(0).and_then(|()| inner.file.rewind());
        if let Err(error) = cut {
            tracing::warn!(%error, "the journal of Redis cannot be emptied");
            return false;
        }
        inner.bytes = 0;
        true
    }

    fn write(&self, inner: &mut Inner, lines: &[Line]) -> Result<u64, StoreError> {
        let mut text = String::new();
        for line in lines {
            let json = serde_json::to_string(line)
                .map_err(|error| StoreError::Corrupt(format!("journal: {error}")))?;
            text.push_str(&sum(json.as_bytes()));
            text.push_str(&json);
            text.push('\n');
        }
        let more = u64::try_from(text.len()).unwrap_or(u64::MAX);
        if inner.bytes.saturating_add(more) > BYTES_MAX {
            return Err(StoreError::Overloaded);
        }
        if let Err(error) = inner.file.write_all(text.as_bytes()) {
            // Half a line must not stand before a whole one.
            let bytes = inner.bytes;
            let undone = inner
                .file
                .set_len(bytes)
                .and_then(|()| inner.file.seek(std::io::SeekFrom::Start(bytes)));
            if let Err(error) = undone {
                tracing::error!(%error, "the journal of Redis is damaged at its end");
            }
            let path = self.path.display();
            return Err(StoreError::Unavailable(format!("{path}: {error}")));
        }
        inner.bytes += more;
        inner.written += more;
        // Full: the thread is about to look anyway.
        let _told = self.sync.try_send(());
        Ok(inner.written)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // The thread may hold the file for a moment longer.
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = inner.file.unlock() {
            tracing::warn!(%error, "the journal of Redis stays locked");
        }
    }
}

fn sum(bytes: &[u8]) -> String {
    let mut text = hex::encode(digest::digest(&digest::SHA256, bytes));
    text.truncate(SUM);
    text
}

/// The lines up to the first that is torn or changed, and how many bytes they are.
fn read(bytes: &[u8]) -> (Vec<Line>, usize) {
    let (mut lines, mut good) = (Vec::new(), 0);
    for raw in bytes.split_inclusive(|byte| *byte == b'\n') {
        let parsed = raw
            .strip_suffix(b"\n")
            .and_then(|line| line.split_at_checked(SUM))
            .filter(|(known, json)| sum(json).as_bytes() == *known)
            .and_then(|(_, json)| serde_json::from_slice(json).ok());
        let Some(line) = parsed else {
            break;
        };
        lines.push(line);
        good += raw.len();
    }
    (lines, good)
}

/// What is left of the shares, and the bills that wait. Who was admitted and never ended counts as charged to its share.
fn sum_up(lines: Vec<Line>) -> (Left, Vec<Bill>) {
    let mut shares: HashMap<Arc<str>, (String, u64)> = HashMap::new();
    let mut charges: HashMap<String, Vec<(Arc<str>, u64)>> = HashMap::new();
    let mut bills: Vec<Bill> = Vec::new();
    for line in lines {
        match line {
            Line::Share { key, unit, units } => {
                shares.entry(key).or_insert((unit, units));
            }
            Line::Admitted { id, charges: some } => {
                charges.insert(id, some);
            }
            Line::Bill(bill) => {
                if let Some(charged) = charges.get_mut(&bill.id.to_string()) {
                    for (key, units) in charged {
                        let spent = bill.owed.iter().find(|owed| owed.key == *key);
                        *units = spent.map_or(0, |owed| owed.spent);
                    }
                }
                bills.push(*bill);
            }
            Line::Paid(id) => bills.retain(|bill| bill.id.to_string() != id),
        }
    }
    for (key, units) in charges.into_values().flatten() {
        if let Some((_, left)) = shares.get_mut(&key) {
            *left = left.saturating_sub(units);
        }
    }
    (Left { shares }, bills)
}

#[cfg(test)]
mod tests;
