//! The agent's side: starts a worker process, speaks its frames and hands out answers.
//!
//! One reader task, one writer task and one supervisor per worker; they end with it. A slow reader of one answer costs
//! nobody else anything, because the worker sends only as many pieces as there is credit for ([`PIECES_WINDOW`]).
//! This room must never name llama.cpp and never block a thread.

mod link;
mod words;

use std::ffi::OsStr;
use std::ffi::OsString;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::net::unix::OwnedWriteHalf;
use tokio::process::Child;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::check;
use crate::protocol;
use crate::protocol::FromWorker;
use crate::protocol::PIECES_WINDOW;
use crate::protocol::ToWorker;
use crate::spec::EmbedError;
use crate::spec::EmbedInput;
use crate::spec::Embedded;
use crate::spec::Event;
use crate::spec::GenerateSpec;
use crate::spec::LoadError;
use crate::spec::LoadSpec;
use crate::spec::ModelCard;
use crate::spec::Refusal;
use crate::spec::Stats;
use crate::spec::Usage;

use link::Link;
use link::Reply;
use words::LastWords;

pub(crate) use words::LOG_MARK;

/// Loading tens of gigabytes from a slow disk takes minutes; longer than this, something hangs.
const LOAD_SECS_MAX: u64 = 600;
/// How long a worker may take to end when it is asked to.
const SHUTDOWN_MAX: Duration = Duration::from_secs(3);
/// Frames that wait for the worker to read them.
const OUTGOING_MAX: usize = 64;
/// Texts in one frame: their vectors must fit into another one, at most 8,192 numbers of some 12 letters each.
const PART_TEXTS_MAX: usize = 256;
const PART_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long a request may wait for the worker to read it.
const SEND_MAX: Duration = Duration::from_secs(10);

/// Events of one answer that wait for its reader.
const EVENTS_MAX: usize = PIECES_WINDOW as usize + 4;
/// Of its progress; more is left out.
const PROGRESS_MAX: usize = 4;

/// A worker process with a loaded model. Dropping it kills the process.
#[derive(Debug)]
pub struct Worker {
    link: Arc<Link>,
    outgoing: mpsc::Sender<Vec<u8>>,
    pid: Option<u32>,
    /// Its end tells the supervisor to kill the process.
    alive: Mutex<Option<oneshot::Sender<()>>>,
}

impl Worker {
    /// Starts `program args…` as a worker and loads a model into it.
    pub async fn spawn(
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
        spec: LoadSpec,
    ) -> Result<(Self, ModelCard), LoadError> {
        check::load(&spec)?;
        let program = program.as_ref();
        let args = args
            .into_iter()
            .map(|arg| arg.as_ref().to_owned())
            .collect();
        let (mut child, stream) = start(program, args).map_err(|error| LoadError::Spawn {
            program: program.to_string_lossy().into_owned(),
            reason: error.to_string(),
        })?;
        let words = LastWords::default();
        let listener = child.stderr.take().map(|stderr| words.listen(stderr));
        let (mut reader, mut writer) = stream.into_split();

        let handshake = shake_hands(&mut reader, &mut writer, spec);
        let card = match timeout(Duration::from_secs(LOAD_SECS_MAX), handshake).await {
            Ok(Ok(card)) => card,
            Ok(Err(Some(error))) => return Err(error),
            Ok(Err(None)) => {
                let reason = link::obituary(&mut child, listener, &words).await;
                return Err(LoadError::Crashed { reason });
            }
            Err(_elapsed) => {
                return Err(LoadError::Timeout {
                    seconds: LOAD_SECS_MAX,
                });
            }
        };

        let pid = child.id();
        let link = Arc::new(Link::new(&card));
        let (outgoing, frames) = mpsc::channel(OUTGOING_MAX);
        let (alive, gone) = oneshot::channel();
        tokio::spawn(link::write(link.clone(), writer, frames));
        let reading = tokio::spawn(link::read(link.clone(), reader));
        let life = link::Life {
            child,
            gone,
            reading,
            listener,
            words,
        };
        tokio::spawn(link::supervise(link.clone(), life));
        let worker = Self {
            link,
            outgoing,
            pid,
            alive: Mutex::new(Some(alive)),
        };
        Ok((worker, card))
    }

    /// Sends a request. What the worker thinks of it comes as the first event.
    pub async fn generate(&self, spec: GenerateSpec) -> Result<Generation, Refusal> {
        check::generate(&spec)?;
        // All pieces in flight, the start and the end, so that the reader task never waits for this receiver.
        let (sender, events) = mpsc::channel(EVENTS_MAX + PROGRESS_MAX);
        let job = self.link.add_job(sender)?;
        let generation = Generation {
            job,
            events,
            link: self.link.clone(),
            taken: 0,
            state: State::Open,
        };
        let mut bytes = Vec::new();
        let frame = ToWorker::Generate {
            job,
            spec: Box::new(spec),
        };
        protocol::encode(&frame, &mut bytes).map_err(|error| Refusal::Invalid {
            param: "prompt".to_owned(),
            reason: error.to_string(),
        })?;
        self.send(bytes).await?;
        Ok(generation)
    }

    /// Turns text into the model's tokens.
    pub async fn tokenize(
        &self,
        text: impl Into<String>,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<i32>, Refusal> {
        let text = text.into();
        let asked = self.ask(|call| ToWorker::Tokenize {
            call,
            text,
            add_special,
            parse_special,
        });
        match asked.await? {
            Reply::Tokens(tokens) => Ok(tokens),
            Reply::Text(_) | Reply::Embedded(_) => Err(self.link.gone()),
        }
    }

    /// Turns texts into numbers, with a worker that was loaded for it. The texts travel in parts, so a list may be long.
    pub async fn embed(&self, inputs: Vec<EmbedInput>) -> Result<Embedded, EmbedError> {
        check::embed(&inputs)?;
        let mut all = Embedded::default();
        let mut inputs = inputs.into_iter().peekable();
        while inputs.peek().is_some() {
            let mut part = Vec::new();
            let mut bytes = 0;
            // The first always goes; its size has been checked.
            while let Some(input) =
                inputs.next_if(|next| part.is_empty() || bytes + next.bytes() <= PART_BYTES_MAX)
            {
                bytes += input.bytes();
                part.push(input);
                if part.len() == PART_TEXTS_MAX {
                    break;
                }
            }
            let begun = u32::try_from(all.tokens.len()).unwrap_or(u32::MAX);
            let asked = self.ask(|call| ToWorker::Embed { call, inputs: part });
            let embedded = match asked.await? {
                Reply::Embedded(Ok(embedded)) => embedded,
                Reply::Embedded(Err(error)) => {
                    return Err(EmbedError {
                        input: error.input.map(|index| begun.saturating_add(index)),
                        ..error
                    });
                }
                Reply::Tokens(_) | Reply::Text(_) => return Err(self.link.gone().into()),
            };
            all.vectors.extend(embedded.vectors);
            all.tokens.extend(embedded.tokens);
        }
        Ok(all)
    }

    /// Turns tokens into text.
    pub async fn detokenize(&self, tokens: Vec<i32>) -> Result<String, Refusal> {
        match self
            .ask(|call| ToWorker::Detokenize { call, tokens })
            .await?
        {
            Reply::Text(text) => Ok(text),
            Reply::Tokens(_) | Reply::Embedded(_) => Err(self.link.gone()),
        }
    }

    /// Watches how busy the worker is.
    pub fn stats(&self) -> watch::Receiver<Stats> {
        self.link.stats()
    }

    /// Watches the links of the conversations in its caches, the newest last; none once it has ended.
    pub fn held(&self) -> watch::Receiver<Arc<[u64]>> {
        self.link.held()
    }

    /// Waits for the end of the process and says why it came.
    pub async fn exited(&self) -> String {
        self.link.exited().await
    }

    /// Whether it has brought an answer to its end since it started.
    pub fn has_answered(&self) -> bool {
        self.link.has_answered()
    }

    /// The process, for the operating system's tools.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Ends the process after the current step, or kills it if that takes long. Answers in progress end with a refusal, so whoever
    /// still waits for one need not have let go of the worker.
    pub async fn shutdown(&self) {
        let asked = async {
            let mut bytes = Vec::new();
            if protocol::encode(&ToWorker::Shutdown, &mut bytes).is_ok()
                && self.send(bytes).await.is_ok()
            {
                self.link.exited().await;
            }
        };
        let _in_time = timeout(SHUTDOWN_MAX, asked).await;
        drop(
            self.alive
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        self.link.exited().await;
    }

    async fn ask(&self, question: impl FnOnce(u64) -> ToWorker) -> Result<Reply, Refusal> {
        let (call, reply) = self.link.add_call()?;
        let mut bytes = Vec::new();
        protocol::encode(&question(call.number()), &mut bytes).map_err(|error| {
            Refusal::Invalid {
                param: "input".to_owned(),
                reason: error.to_string(),
            }
        })?;
        self.send(bytes).await?;
        reply.await.map_err(|_closed| self.link.gone())
    }

    async fn send(&self, bytes: Vec<u8>) -> Result<(), Refusal> {
        match timeout(SEND_MAX, self.outgoing.send(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_closed)) => Err(self.link.gone()),
            Err(_elapsed) => Err(Refusal::QueueFull {
                waiting: u32::try_from(OUTGOING_MAX).unwrap_or(u32::MAX),
            }),
        }
    }
}

/// An answer in the making. Dropping it cancels the job within one decode step.
#[derive(Debug)]
pub struct Generation {
    job: u64,
    events: mpsc::Receiver<Event>,
    link: Arc<Link>,
    taken: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// More is to come.
    Open,
    /// The last event was taken.
    Ended,
    /// Only what it used is waited for.
    Aborted,
}

impl Generation {
    /// Waits for the next event; `None` after [`Event::Done`] or [`Event::Refused`]. Safe to cancel.
    ///
    /// A caller who does not call this pauses its own slot after [`PIECES_WINDOW`] pieces.
    pub async fn next(&mut self) -> Option<Event> {
        if self.state != State::Open {
            return None;
        }
        let event = match self.events.recv().await {
            Some(event) => event,
            None => Event::Refused(self.link.gone()),
        };
        match &event {
            Event::Started { .. } | Event::Progress(_) => {}
            Event::Piece { .. } => self.take_piece(),
            Event::Done { .. } | Event::Refused(_) => self.state = State::Ended,
        }
        Some(event)
    }

    /// Cancels the job as dropping it does, and lets its end be waited for: only the engine knows how many tokens it made until then.
    #[must_use]
    pub fn abort(mut self) -> Aborted {
        if self.state != State::Open {
            return Aborted(None);
        }
        self.state = State::Aborted;
        let (sender, receiver) = oneshot::channel();
        if let Some(sender) = self.link.abort_job(self.job, sender) {
            // It has ended already, and its last event lies here.
            while let Ok(event) = self.events.try_recv() {
                if let Event::Done { usage, .. } = event {
                    let _receiver_is_here = sender.send(usage);
                    break;
                }
            }
        }
        Aborted(Some(receiver))
    }

    fn take_piece(&mut self) {
        self.taken += 1;
        // Credit in quarters: one frame for 16 pieces, and the worker never runs dry in between.
        if self.taken >= PIECES_WINDOW / 4 {
            self.link.credit(self.job, self.taken);
            self.taken = 0;
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        match self.state {
            State::Open => self.link.end_job(self.job, true),
            State::Ended => self.link.end_job(self.job, false),
            State::Aborted => {}
        }
    }
}

/// The end of an answer that nobody reads any more.
#[derive(Debug)]
pub struct Aborted(Option<oneshot::Receiver<Usage>>);

impl Aborted {
    /// Waits at most one step of the engine for what the answer used, tokens that were never told included; `None` if it was refused or
    /// had been read to its end, or the worker is gone.
    pub async fn usage(self) -> Option<Usage> {
        self.0?.await.ok()
    }
}

fn start(program: &OsStr, args: Vec<OsString>) -> std::io::Result<(Child, UnixStream)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // An abort would otherwise run a debugger, which takes seconds.
        .env("GGML_NO_BACKTRACE", "1")
        .kill_on_drop(true);
    // The worker needs no setting and no secret of the agent.
    for (name, _value) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HEARTH_") {
            command.env_remove(name);
        }
    }
    let child = command.spawn()?;
    Ok((child, UnixStream::from_std(ours)?))
}

/// Sends the load frame and waits for the card; `Err(None)` if the worker ended without a word.
async fn shake_hands(
    reader: &mut OwnedReadHalf,
    writer: &mut OwnedWriteHalf,
    spec: LoadSpec,
) -> Result<ModelCard, Option<LoadError>> {
    let frame = ToWorker::Load {
        version: protocol::VERSION,
        spec: Box::new(spec),
    };
    let mut bytes = Vec::new();
    protocol::encode(&frame, &mut bytes).map_err(|error| {
        Some(LoadError::Protocol {
            reason: error.to_string(),
        })
    })?;
    writer.write_all(&bytes).await.map_err(|_broken| None)?;
    match protocol::read_async(reader).await {
        Ok(Some(FromWorker::Loaded { version, card })) if version == protocol::VERSION => Ok(*card),
        Ok(Some(FromWorker::Loaded { version, .. })) => Err(Some(LoadError::Protocol {
            reason: format!("version {version} instead of {}", protocol::VERSION),
        })),
        Ok(Some(FromWorker::LoadFailed(error))) => Err(Some(error)),
        Ok(Some(
            FromWorker::Event { .. }
            | FromWorker::Cancelled { .. }
            | FromWorker::Tokens { .. }
            | FromWorker::Text { .. }
            | FromWorker::Embedded { .. }
            | FromWorker::Stats(_)
            | FromWorker::Held { .. },
        )) => Err(Some(LoadError::Protocol {
            reason: "the first frame was not the model's card".to_owned(),
        })),
        Ok(None) => Err(None),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            Err(Some(LoadError::Protocol {
                reason: error.to_string(),
            }))
        }
        Err(_broken) => Err(None),
    }
}
