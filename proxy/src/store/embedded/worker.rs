//! The thread that writes the redb file: answers questions about records one after the other and writes changed counters in
//! batches. When the disk failed it opens the file again; until then counters in memory live on.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redb::{Database, DatabaseError};
use tokio::sync::{oneshot, watch};

use super::counters::{self, FileDisk};
use super::ledger;
use super::records::{self, FileError};
use super::{COMMIT_EVERY, backup, lock};
use crate::store::StoreError;
use crate::store::memory::CounterTable;

/// Questions that may wait. Each takes microseconds, or one sync of the disk.
const QUEUE_MAX: usize = 1_024;
/// Longest wait for an answer; beyond it the disk hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a copy of the whole file.
const BACKUP_TIMEOUT: Duration = Duration::from_mins(10);
/// How long the thread sleeps when nothing happens.
const IDLE: Duration = Duration::from_secs(1);
/// Pause between two tries to open a file that failed.
const REOPEN_EVERY: Duration = Duration::from_secs(1);
/// Memory that redb may use for pages.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

type Question = Box<dyn FnOnce(Result<&Database, StoreError>) -> FileState + Send>;

/// How a question leaves the file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum FileState {
    /// All is on disk.
    Good,
    /// Something waits for the next batch of counters.
    Unsynced,
    /// It must be opened again.
    Broken,
}

enum Message {
    Ask(Question),
    /// Counters have changed.
    Wake,
}

/// The handle of the thread; the last thing it does on drop is to write all counters.
#[derive(Debug)]
pub(super) struct Worker {
    path: PathBuf,
    messages: Option<SyncSender<Message>>,
    thread: Option<JoinHandle<()>>,
    written: watch::Receiver<u64>,
    /// A wake is under way.
    woken: Arc<AtomicBool>,
}

/// A worker and what it shares with its owner.
pub(super) struct Started {
    pub(super) worker: Worker,
    pub(super) counters: Arc<Mutex<CounterTable>>,
    pub(super) disk: Arc<FileDisk>,
}

struct Loop {
    path: PathBuf,
    disk: Arc<FileDisk>,
    counters: Arc<Mutex<CounterTable>>,
    messages: Receiver<Message>,
    written: watch::Sender<u64>,
    woken: Arc<AtomicBool>,
    /// When the first change of the batch became known.
    changed_at: Option<Instant>,
    unsynced: bool,
    opened_at: Instant,
    sweep_from: String,
}

impl Worker {
    /// Opens the file, reads the open reservations and starts the thread.
    pub(super) fn start(path: &Path, subjects_max: usize) -> Result<Started, StoreError> {
        let file = open(path)?;
        let reservations = counters::open_reservations(&file).map_err(StoreError::from)?;
        let counters = CounterTable::recorded(subjects_max, reservations);
        let counters = Arc::new(Mutex::new(counters));
        let disk = Arc::new(FileDisk::new());
        disk.set(Some(file));
        let (sender, messages) = sync_channel(QUEUE_MAX);
        let (written, seen) = watch::channel(0);
        let woken = Arc::new(AtomicBool::new(false));
        let work = Loop {
            path: path.to_owned(),
            disk: Arc::clone(&disk),
            counters: Arc::clone(&counters),
            messages,
            written,
            woken: Arc::clone(&woken),
            changed_at: None,
            unsynced: false,
            opened_at: Instant::now(),
            sweep_from: String::new(),
        };
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || work.run())
            .map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let worker = Self {
            path: path.to_owned(),
            messages: Some(sender),
            thread: Some(thread),
            written: seen,
            woken,
        };
        Ok(Started {
            worker,
            counters,
            disk,
        })
    }

    /// The number of the last batch on disk, as it grows.
    pub(super) fn written(&self) -> watch::Receiver<u64> {
        self.written.clone()
    }

    /// Counters have changed: a batch is due soon. Costs a message only for the first change of a batch.
    pub(super) fn wake(&self) {
        if self.woken.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(messages) = &self.messages else {
            return;
        };
        if messages.try_send(Message::Wake).is_err() {
            // The queue is full: the thread is awake, and looks for changes after each question.
            self.woken.store(false, Ordering::Release);
        }
    }

    /// Runs a question on the thread and waits for its answer.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Database) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.put(question, FileState::Good, ANSWER_TIMEOUT).await
    }

    /// The same for a change that may be lost with the last batch of counters.
    pub(super) async fn ask_lightly<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Database) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.put(question, FileState::Unsynced, ANSWER_TIMEOUT)
            .await
    }

    /// Copies the file between two commits.
    pub(super) async fn backup(&self, to: PathBuf) -> Result<u64, StoreError> {
        let from = self.path.clone();
        let copy = move |_: &Database| backup::copy(&from, &to);
        self.put(copy, FileState::Good, BACKUP_TIMEOUT).await
    }

    async fn put<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Database) -> Result<T, FileError> + Send + 'static,
        afterwards: FileState,
        timeout: Duration,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let question: Question = Box::new(move |file| {
            let answer = match file {
                Ok(file) => question(file),
                Err(error) => Err(FileError::Store(error)),
            };
            let state = match &answer {
                Err(FileError::Disk(_)) => FileState::Broken,
                Ok(_) => afterwards,
                Err(FileError::Store(_)) => FileState::Good,
            };
            // Whoever asked may have left.
            drop(reply.send(answer.map_err(StoreError::from)));
            state
        });
        let gone = || StoreError::Unavailable("the store's thread has stopped".into());
        let messages = self.messages.as_ref().ok_or_else(gone)?;
        messages
            .try_send(Message::Ask(question))
            .map_err(|error| match error {
                TrySendError::Full(_) => StoreError::Overloaded,
                TrySendError::Disconnected(_) => gone(),
            })?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(StoreError::Unavailable("the disk does not answer".into())),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.messages = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's thread panicked; the last batch of counters is lost");
        }
    }
}

impl Loop {
    fn run(mut self) {
        loop {
            let wait = self
                .changed_at
                .map_or(IDLE, |at| COMMIT_EVERY.saturating_sub(at.elapsed()));
            match self.messages.recv_timeout(wait) {
                Ok(Message::Ask(question)) => self.answer(question),
                Ok(Message::Wake) => {
                    self.changed_at.get_or_insert_with(Instant::now);
                }
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => {
                    self.write_counters();
                    self.disk.set(None);
                    return;
                }
            }
            if self
                .changed_at
                .is_some_and(|at| at.elapsed() >= COMMIT_EVERY)
            {
                self.reopen();
                self.write_counters();
            }
        }
    }

    /// Finds changes that nobody announced, because the queue was full.
    fn look(&mut self) {
        let changed = self.unsynced || lock(&self.counters).is_changed();
        if changed || self.disk.get().is_none() {
            self.changed_at.get_or_insert_with(Instant::now);
        }
    }

    fn answer(&mut self, question: Question) {
        let file = self.disk.get();
        let away =
            || StoreError::Unavailable("the store's file failed and is being opened again".into());
        match question(file.as_deref().ok_or_else(away)) {
            FileState::Good => {}
            FileState::Unsynced => {
                self.unsynced = true;
                self.changed_at.get_or_insert_with(Instant::now);
            }
            FileState::Broken => self.disk.set(None),
        }
    }

    fn reopen(&mut self) {
        if self.disk.get().is_some() || self.opened_at.elapsed() < REOPEN_EVERY {
            return;
        }
        self.opened_at = Instant::now();
        match open(&self.path) {
            Ok(file) => {
                tracing::warn!("the store's file is open again");
                self.disk.set(Some(file));
            }
            Err(error) => tracing::error!(%error, "the store's file cannot be opened"),
        }
    }

    fn write_counters(&mut self) {
        // From here on a change is of the next batch and announces itself again.
        self.woken.store(false, Ordering::Release);
        self.changed_at = None;
        let Some(file) = self.disk.get() else {
            return;
        };
        let changes = lock(&self.counters).take_changes();
        if changes.is_empty() && !self.unsynced && self.sweep_from.is_empty() {
            self.written.send_replace(changes.batch);
            return;
        }
        self.unsynced = false;
        let written = records::write(&file, |transaction| {
            ledger::append(transaction, &changes.entries)?;
            counters::write(transaction, &changes, (&self.sweep_from, unix_ms()))
        });
        match written {
            Ok(next) => {
                self.sweep_from = next;
                lock(&self.counters).written(&changes);
                self.written.send_replace(changes.batch);
            }
            Err(error) => {
                tracing::error!(%error, "counters cannot be written; they count on in memory");
                lock(&self.counters).put_back(changes);
                drop(file);
                self.disk.set(None);
            }
        }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

fn open(path: &Path) -> Result<Database, StoreError> {
    let unavailable = |error: &dyn std::fmt::Display| {
        StoreError::Unavailable(format!("{}: {error}", path.display()))
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| unavailable(&error))?;
    let database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create_file(file)
        .map_err(|error| {
            if matches!(error, DatabaseError::DatabaseAlreadyOpen) {
                return StoreError::InUse(path.display().to_string());
            }
            unavailable(&error)
        })?;
    records::create_tables(&database).map_err(StoreError::from)?;
    Ok(database)
}
