//! The child process: one thread reads frames, one thread owns the model and does everything else.
//!
//! It must never outlive its agent, never touch the network and never write a prompt or an answer anywhere but into the
//! socket. Its standard input is that socket, used both ways.

mod ahead;
mod answer;
mod embed;
mod guess;
mod intake;
mod log;
mod media;
mod outbox;
mod progress;
mod reuse;
mod saved;
mod serve;
mod stopwatch;
mod warm;
mod watchdog;

use std::io;
use std::io::BufReader;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::mpsc;
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::Duration;

use crate::check;
use crate::engine::Loaded;
use crate::protocol;
use crate::protocol::FromWorker;
use crate::protocol::ToWorker;
use crate::sandbox;
use crate::scripted;
use crate::scripted::Script;
use crate::spec::LoadError;
use crate::spec::LoadSpec;

use embed::Desk;
use log::Log;
use serve::Server;
use watchdog::Watchdog;

/// Frames that wait for the end of a step. When it is full the socket fills, and then the agent waits.
const INBOX_MAX: usize = 256;
/// llama.cpp recurses over grammars and schemas; their depth is bounded, but the default stack is not generous.
const STACK_BYTES: usize = 64 * 1024 * 1024;
/// How long the current step may still take when the agent is gone.
const STEP_MAX: Duration = Duration::from_secs(2);

/// What the reader thread hands on.
#[derive(Debug)]
pub(crate) enum Mail {
    Frame(ToWorker),
    /// The agent is gone.
    Closed,
}

/// Runs a worker on the socket that is this process's standard input; returns when the agent is gone or says so.
pub fn run() -> ExitCode {
    match serve_stdin() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::warn!(%error, "the worker ends");
            ExitCode::FAILURE
        }
    }
}

fn serve_stdin() -> io::Result<()> {
    let log = Log::install();
    let mut stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let Some(frame) = protocol::read(&mut stream)? else {
        return Ok(());
    };
    let ToWorker::Load { version, spec } = frame else {
        return Err(io::Error::other("the first frame was not a load"));
    };
    if version != protocol::VERSION {
        let reason = format!("version {version} instead of {}", protocol::VERSION);
        return refuse(&mut stream, LoadError::Protocol { reason });
    }
    // Before any other thread exists, so that all of them stand behind the walls.
    sandbox::enter(&spec);
    thread::Builder::new()
        .name("decode".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || serve(&spec, &log, stream))?
        .join()
        .map_err(|_panic| io::Error::other("the decode thread panicked"))?
}

fn serve(spec: &LoadSpec, log: &Log, stream: UnixStream) -> io::Result<()> {
    let (sender, inbox) = mpsc::sync_channel(INBOX_MAX);
    let reading = stream.try_clone()?;
    thread::Builder::new()
        .name("frames".to_owned())
        .spawn(move || read_frames(reading, &sender))?;
    let mut writing = stream.try_clone()?;
    let watchdog = Watchdog::start()?;
    let served = with_engine(spec, log, |loaded| match loaded {
        Loaded::Text(engine) => Server::new(engine, spec, stream, watchdog).run(&inbox),
        Loaded::Vectors(embedder) => Desk::new(embedder, spec, stream, watchdog).run(&inbox),
    });
    match served {
        Ok(end) => end,
        Err(error) => refuse(&mut writing, error),
    }
}

fn with_engine<R>(
    spec: &LoadSpec,
    log: &Log,
    run: impl FnOnce(Loaded<'_>) -> R,
) -> Result<R, LoadError> {
    check::load(spec)?;
    if let Some(script) = Script::from_path(&spec.model_path) {
        let script = script.map_err(|reason| LoadError::Invalid {
            field: "model_path".to_owned(),
            reason,
        })?;
        return scripted::with_engine(spec, script, |engine| run(Loaded::Text(engine)));
    }
    with_model(spec, log, run)
}

#[cfg(feature = "llama")]
fn with_model<R>(
    spec: &LoadSpec,
    log: &Log,
    run: impl FnOnce(Loaded<'_>) -> R,
) -> Result<R, LoadError> {
    crate::llama::with_engine(spec, &|| log.last_words(), run)
}

#[cfg(not(feature = "llama"))]
fn with_model<R>(
    spec: &LoadSpec,
    _log: &Log,
    _run: impl FnOnce(Loaded<'_>) -> R,
) -> Result<R, LoadError> {
    Err(LoadError::Model {
        path: spec.model_path.display().to_string(),
        reason: "this program was built without llama.cpp".to_owned(),
    })
}

fn refuse(stream: &mut UnixStream, error: LoadError) -> io::Result<()> {
    let reason = error.to_string();
    let mut bytes = Vec::new();
    protocol::encode(&FromWorker::LoadFailed(error), &mut bytes)?;
    io::Write::write_all(stream, &bytes)?;
    Err(io::Error::other(reason))
}

/// Hands frames on until the agent is gone; then makes sure that this process ends even in the middle of a long step.
#[expect(
    clippy::exit,
    reason = "the decode thread may be inside llama.cpp, which nothing can interrupt"
)]
fn read_frames(stream: UnixStream, inbox: &SyncSender<Mail>) {
    let mut stream = BufReader::new(stream);
    loop {
        match protocol::read(&mut stream) {
            Ok(Some(frame)) => {
                if inbox.send(Mail::Frame(frame)).is_err() {
                    return;
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "a frame could not be read");
                break;
            }
        }
    }
    // Full or closed, the effect is the same: the process ends below.
    let _full = inbox.try_send(Mail::Closed);
    thread::sleep(STEP_MAX);
    std::process::exit(1);
}
