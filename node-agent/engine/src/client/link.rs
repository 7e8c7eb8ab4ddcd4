//! What the tasks of one worker share: who waits for which answer, and what must still be said to the worker.
//!
//! Every table here ends with the worker: [`Link::close`] answers everybody who still waits. Locks are held for a few
//! instructions and never across an await.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::unix::OwnedReadHalf;
use tokio::net::unix::OwnedWriteHalf;
use tokio::process::Child;
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::EVENTS_MAX;
use super::words::LastWords;
use crate::protocol;
use crate::protocol::FromWorker;
use crate::protocol::ToWorker;
use crate::spec::EmbedError;
use crate::spec::Embedded;
use crate::spec::Event;
use crate::spec::ModelCard;
use crate::spec::Refusal;
use crate::spec::Stats;
use crate::spec::Usage;

/// Answers and questions under way at once. The worker's own queue is far smaller and refuses first.
const WAITING_MAX: usize = 4096;
/// How long the rest of a dead worker's pipes may take.
const REST_MAX: Duration = Duration::from_secs(2);

/// What came back for a question.
#[derive(Debug)]
pub(super) enum Reply {
    Tokens(Vec<i32>),
    Text(String),
    Embedded(Result<Embedded, EmbedError>),
}

/// The state shared by all tasks of one worker.
#[derive(Debug)]
pub(super) struct Link {
    table: Mutex<Table>,
    wake: Notify,
    stats: watch::Sender<Stats>,
    held: watch::Sender<Arc<[u64]>>,
    exited: watch::Sender<Option<String>>,
    /// It has brought an answer to its end.
    answered: AtomicBool,
}

#[derive(Debug, Default)]
struct Table {
    closed: bool,
    next: u64,
    jobs: HashMap<u64, Wanted>,
    calls: HashMap<u64, oneshot::Sender<Reply>>,
    /// Said before anything else, and never lost: both are bounded by the jobs that exist.
    cancels: Vec<u64>,
    credits: HashMap<u64, u32>,
}

/// What somebody still wants of a job.
#[derive(Debug)]
enum Wanted {
    /// Everything that happens to it.
    Events(mpsc::Sender<Event>),
    /// What it used until it ended.
    Usage(oneshot::Sender<Usage>),
}

impl Link {
    pub(super) fn new(card: &ModelCard) -> Self {
        let stats = Stats {
            slots: card.slots,
            kv_tokens_max: u64::from(card.n_ctx) * u64::from(card.slots),
            ..Stats::default()
        };
        Self {
            table: Mutex::default(),
            wake: Notify::new(),
            stats: watch::Sender::new(stats),
            held: watch::Sender::new(Arc::default()),
            exited: watch::Sender::new(None),
            answered: AtomicBool::new(false),
        }
    }

    pub(super) fn add_job(&self, sender: mpsc::Sender<Event>) -> Result<u64, Refusal> {
        let mut table = self.open_table()?;
        table.next += 1;
        let job = table.next;
        table.jobs.insert(job, Wanted::Events(sender));
        Ok(job)
    }

    /// Forgets a job, and tells the worker if it may still work on it.
    pub(super) fn end_job(&self, job: u64, cancel: bool) {
        let mut table = self.lock();
        let known = table.jobs.remove(&job).is_some();
        table.credits.remove(&job);
        if cancel && known && !table.closed {
            table.cancels.push(job);
            drop(table);
            self.wake.notify_one();
        }
    }

    /// Ends a job of which only the usage is wanted any more; gives the sender back if it had ended before.
    pub(super) fn abort_job(
        &self,
        job: u64,
        sender: oneshot::Sender<Usage>,
    ) -> Option<oneshot::Sender<Usage>> {
        let mut table = self.lock();
        table.credits.remove(&job);
        let Some(wanted) = table.jobs.get_mut(&job) else {
            return Some(sender);
        };
        *wanted = Wanted::Usage(sender);
        table.cancels.push(job);
        drop(table);
        self.wake.notify_one();
        None
    }

    pub(super) fn credit(&self, job: u64, pieces: u32) {
        let mut table = self.lock();
        if table.jobs.contains_key(&job) {
            *table.credits.entry(job).or_default() += pieces;
            drop(table);
            self.wake.notify_one();
        }
    }

    pub(super) fn add_call(self: &Arc<Self>) -> Result<(Call, oneshot::Receiver<Reply>), Refusal> {
        let (sender, receiver) = oneshot::channel();
        let mut table = self.open_table()?;
        table.next += 1;
        let number = table.next;
        table.calls.insert(number, sender);
        drop(table);
        let call = Call {
            number,
            link: self.clone(),
        };
        Ok((call, receiver))
    }

    pub(super) fn held(&self) -> watch::Receiver<Arc<[u64]>> {
        self.held.subscribe()
    }

    pub(super) fn stats(&self) -> watch::Receiver<Stats> {
        self.stats.subscribe()
    }

    pub(super) async fn exited(&self) -> String {
        let mut exited = self.exited.subscribe();
        match exited.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_closed) => String::new(),
        }
    }

    pub(super) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// The refusal for everybody who asks a worker that has ended.
    pub(super) fn gone(&self) -> Refusal {
        let reason = self.exited.borrow().clone();
        Refusal::WorkerGone {
            reason: reason.unwrap_or_else(|| "its connection is closed".to_owned()),
        }
    }

    fn open_table(&self) -> Result<MutexGuard<'_, Table>, Refusal> {
        let table = self.lock();
        if table.closed {
            return Err(self.gone());
        }
        let waiting = table.jobs.len() + table.calls.len();
        if waiting >= WAITING_MAX {
            return Err(Refusal::QueueFull {
                waiting: u32::try_from(waiting).unwrap_or(u32::MAX),
            });
        }
        Ok(table)
    }

    fn deliver(&self, frame: FromWorker) {
        match frame {
            FromWorker::Event { job, event } => self.deliver_event(job, event),
            FromWorker::Cancelled { job, usage } => self.settle(job, usage),
            FromWorker::Tokens { call, tokens } => self.answer(call, Reply::Tokens(tokens)),
            FromWorker::Text { call, text } => self.answer(call, Reply::Text(text)),
            FromWorker::Embedded { call, result } => self.answer(call, Reply::Embedded(result)),
            FromWorker::Held { links } => {
                self.held.send_replace(links.into());
            }
            FromWorker::Stats(stats) => {
                self.stats.send_replace(stats);
            }
            FromWorker::Loaded { .. } | FromWorker::LoadFailed(_) => {}
        }
    }

    fn deliver_event(&self, job: u64, event: Event) {
        let done = matches!(event, Event::Done { .. });
        if done {
            self.answered.store(true, Ordering::Relaxed);
        }
        let last = done || matches!(event, Event::Refused(_));
        let mut table = self.lock();
        let sender = match table.jobs.get(&job) {
            None => return,
            Some(Wanted::Events(sender)) => sender,
            Some(Wanted::Usage(_)) => {
                drop(table);
                return self.deliver_end(job, &event);
            }
        };
        // How far it is may be left out where nobody listens; what it says may not.
        if matches!(event, Event::Progress(_)) && sender.capacity() <= EVENTS_MAX {
            return;
        }
        // Full only if the worker ignored its credit; then the answer has a hole and must not go on.
        let broken = sender.try_send(event).is_err();
        if last || broken {
            table.jobs.remove(&job);
            table.credits.remove(&job);
        }
        if broken && !last {
            table.cancels.push(job);
            drop(table);
            self.wake.notify_one();
        }
    }

    /// The end of an answer crossed its cancellation.
    fn deliver_end(&self, job: u64, event: &Event) {
        match event {
            Event::Done { usage, .. } => self.settle(job, *usage),
            Event::Refused(_) => drop(self.lock().jobs.remove(&job)),
            Event::Started { .. } | Event::Progress(_) | Event::Piece { .. } => {}
        }
    }

    /// Tells what a job used to whoever aborted it.
    fn settle(&self, job: u64, usage: Usage) {
        let mut table = self.lock();
        if let Some(Wanted::Usage(_)) = table.jobs.get(&job)
            && let Some(Wanted::Usage(sender)) = table.jobs.remove(&job)
        {
            // Whoever aborted it may have given up.
            let _unwanted = sender.send(usage);
        }
    }

    fn answer(&self, call: u64, reply: Reply) {
        if let Some(sender) = self.lock().calls.remove(&call) {
            // The asker may have given up.
            let _unwanted = sender.send(reply);
        }
    }

    /// Answers everybody who waits, and refuses everybody who comes later.
    fn close(&self, reason: &str) {
        self.exited.send_replace(Some(reason.to_owned()));
        let mut table = self.lock();
        table.closed = true;
        table.calls.clear();
        table.cancels.clear();
        table.credits.clear();
        for (_job, wanted) in table.jobs.drain() {
            let Wanted::Events(sender) = wanted else {
                continue;
            };
            let gone = Refusal::WorkerGone {
                reason: reason.to_owned(),
            };
            // If there is no room, the receiver sees the channel's end instead and asks `gone()`.
            let _full = sender.try_send(Event::Refused(gone));
        }
        drop(table);
        self.stats.send_modify(|stats| {
            stats.slots_busy = 0;
            stats.queue_depth = 0;
            stats.kv_tokens = 0;
        });
        self.held.send_replace(Arc::default());
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Encodes what must be said now; `None` when the worker has ended.
    fn mail(&self) -> Option<Vec<u8>> {
        let mut table = self.lock();
        if table.closed {
            return None;
        }
        let cancels = std::mem::take(&mut table.cancels);
        let credits = std::mem::take(&mut table.credits);
        drop(table);
        let mut bytes = Vec::new();
        let cancels = cancels.into_iter().map(|job| ToWorker::Cancel { job });
        let credits = credits
            .into_iter()
            .map(|(job, pieces)| ToWorker::Credit { job, pieces });
        for frame in cancels.chain(credits) {
            protocol::encode(&frame, &mut bytes).ok()?;
        }
        Some(bytes)
    }
}

/// A question under way; forgotten when the asker gives up.
#[derive(Debug)]
pub(super) struct Call {
    number: u64,
    link: Arc<Link>,
}

impl Call {
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut table = self.link.lock();
        let unanswered = table.calls.remove(&self.number).is_some();
        if unanswered && !table.closed {
            table.cancels.push(self.number);
            drop(table);
            self.link.wake.notify_one();
        }
    }
}

/// Writes requests, cancellations and credit until the worker ends or its handle is dropped.
pub(super) async fn write(
    link: Arc<Link>,
    mut writer: OwnedWriteHalf,
    mut frames: mpsc::Receiver<Vec<u8>>,
) {
    loop {
        let mut requests = tokio::select! {
            request = frames.recv() => match request {
                Some(request) => request,
                None => return,
            },
            () = link.wake.notified() => Vec::new(),
        };
        // The mail is taken before the remaining requests and written after them: whatever it cancels is then known to
        // the worker, because a job is cancelled only after its request was queued.
        let Some(mail) = link.mail() else {
            return;
        };
        while let Ok(request) = frames.try_recv() {
            requests.extend_from_slice(&request);
        }
        for bytes in [requests, mail] {
            if !bytes.is_empty() && writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
    }
}

/// Reads frames until the worker's end of the socket closes.
pub(super) async fn read(link: Arc<Link>, reader: OwnedReadHalf) {
    let mut reader = BufReader::with_capacity(64 * 1024, reader);
    while let Ok(Some(frame)) = protocol::read_async(&mut reader).await {
        link.deliver(frame);
    }
}

/// The process and everything that ends with it.
pub(super) struct Life {
    pub(super) child: Child,
    pub(super) gone: oneshot::Receiver<()>,
    pub(super) reading: JoinHandle<()>,
    pub(super) listener: Option<JoinHandle<()>>,
    pub(super) words: LastWords,
}

/// Waits for the end of the process, or brings it about when the handle is dropped or the frames end.
pub(super) async fn supervise(link: Arc<Link>, mut life: Life) {
    tokio::select! {
        _status = life.child.wait() => {}
        _dropped = &mut life.gone => {
            if let Err(error) = life.child.start_kill() {
                tracing::debug!(%error, "the worker was gone already");
            }
        }
        _broken = &mut life.reading => {}
    }
    let reason = obituary(&mut life.child, life.listener, &life.words).await;
    // Frames that the worker wrote before its end still count.
    if !life.reading.is_finished() && timeout(REST_MAX, &mut life.reading).await.is_err() {
        life.reading.abort();
    }
    link.close(&reason);
}

/// Waits for the process's end, forcing it if need be, and says how it ended.
pub(super) async fn obituary(
    child: &mut Child,
    listener: Option<JoinHandle<()>>,
    words: &LastWords,
) -> String {
    let status = match timeout(REST_MAX, child.wait()).await {
        Ok(status) => status,
        Err(_elapsed) => {
            if let Err(error) = child.start_kill() {
                tracing::debug!(%error, "the worker was gone already");
            }
            child.wait().await
        }
    };
    if let Some(listener) = listener {
        let _silent = timeout(REST_MAX, listener).await;
    }
    let end = match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "unknown exit status".to_owned(),
        },
        Err(error) => error.to_string(),
    };
    match words.dying() {
        Some(dying) => format!("{end}: {dying}"),
        None => end,
    }
}
