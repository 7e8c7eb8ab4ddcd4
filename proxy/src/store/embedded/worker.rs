//! The thread that owns the redb file: answers questions about records one after the other and writes changed counters once a
//! second. When the disk failed it opens the file again; until then counters live on in memory.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable};
use tokio::sync::oneshot;

use super::records::{self, COUNTERS, FileError};
use super::{COUNTERS_LOST_MAX, lock};
use crate::store::StoreError;
use crate::store::memory::{CounterTable, Slot};

/// Questions that may wait. Each takes microseconds, or one sync of the disk.
const QUEUE_MAX: usize = 1_024;
/// Longest wait for an answer; beyond it the disk hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Memory that redb may use for pages.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

type Question = Box<dyn FnOnce(Result<&Database, StoreError>) -> FileState + Send>;

/// How a question leaves the file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum FileState {
    /// All is on disk.
    Good,
    /// Something waits for the next write of counters.
    Unsynced,
    /// It must be opened again.
    Broken,
}

/// The handle of the thread; the last thing it does on drop is to write all counters.
#[derive(Debug)]
pub(super) struct Worker {
    questions: Option<SyncSender<Question>>,
    thread: Option<JoinHandle<()>>,
}

struct Loop {
    path: PathBuf,
    file: Option<Database>,
    counters: Arc<Mutex<CounterTable>>,
    questions: Receiver<Question>,
    written_at: Instant,
    unsynced: bool,
}

impl Worker {
    /// Opens the file, reads the counters and starts the thread.
    pub(super) fn start(path: &Path) -> Result<(Self, Arc<Mutex<CounterTable>>), StoreError> {
        let file = open(path)?;
        let slots = load_counters(&file).map_err(StoreError::from)?;
        let counters = Arc::new(Mutex::new(CounterTable::recorded(slots)));
        let (sender, questions) = sync_channel(QUEUE_MAX);
        let work = Loop {
            path: path.to_owned(),
            file: Some(file),
            counters: Arc::clone(&counters),
            questions,
            written_at: Instant::now(),
            unsynced: false,
        };
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || work.run())
            .map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let worker = Self {
            questions: Some(sender),
            thread: Some(thread),
        };
        Ok((worker, counters))
    }

    /// Runs a question on the thread and waits for its answer.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Database) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.put(question, FileState::Good).await
    }

    /// The same for a change that may be lost with the last second of counters.
    pub(super) async fn ask_lightly<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Database) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.put(question, FileState::Unsynced).await
    }

    async fn put<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Database) -> Result<T, FileError> + Send + 'static,
        afterwards: FileState,
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
        let questions = self.questions.as_ref().ok_or_else(gone)?;
        questions.try_send(question).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Overloaded,
            TrySendError::Disconnected(_) => gone(),
        })?;
        match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(StoreError::Unavailable("the disk does not answer".into())),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.questions = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's thread panicked; the last second of counters is lost");
        }
    }
}

impl Loop {
    fn run(mut self) {
        loop {
            let wait = COUNTERS_LOST_MAX.saturating_sub(self.written_at.elapsed());
            match self.questions.recv_timeout(wait) {
                Ok(question) => self.answer(question),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.write_counters();
                    return;
                }
            }
            if self.written_at.elapsed() >= COUNTERS_LOST_MAX {
                self.reopen();
                self.write_counters();
            }
        }
    }

    fn answer(&mut self, question: Question) {
        let file = self.file.as_ref().ok_or_else(|| {
            StoreError::Unavailable("the store's file failed and is being opened again".into())
        });
        match question(file) {
            FileState::Good => {}
            FileState::Unsynced => self.unsynced = true,
            FileState::Broken => self.file = None,
        }
    }

    fn reopen(&mut self) {
        if self.file.is_some() {
            return;
        }
        match open(&self.path) {
            Ok(file) => {
                tracing::warn!("the store's file is open again");
                self.file = Some(file);
            }
            Err(error) => tracing::error!(%error, "the store's file cannot be opened"),
        }
    }

    fn write_counters(&mut self) {
        self.written_at = Instant::now();
        let Some(file) = &self.file else {
            return;
        };
        let changes = lock(&self.counters).take_changes();
        if changes.is_empty() && !self.unsynced {
            return;
        }
        self.unsynced = false;
        if let Err(error) = records::write_counters(file, &changes) {
            tracing::error!(%error, "counters cannot be written; they count on in memory");
            lock(&self.counters).put_back(changes);
            self.file = None;
        }
    }
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

fn load_counters(file: &Database) -> Result<HashMap<String, Slot>, FileError> {
    let table = file.begin_read()?.open_table(COUNTERS)?;
    let mut slots = HashMap::new();
    for row in table.iter()? {
        let (key, slot) = row?;
        let (value, expires_at_ms) = slot.value();
        let slot = Slot {
            value,
            expires_at_ms,
        };
        slots.insert(key.value().to_owned(), slot);
    }
    Ok(slots)
}
