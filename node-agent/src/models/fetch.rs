//! One file from a server that may cut, stall, lie about ranges or send other bytes, into one place: whole and with the right SHA-256, or not
//! at all. What came stays and is gone on with, after a broken connection and after a restart.

mod part;
mod stream;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use reqwest::Url;
use tokio_util::sync::CancellationToken;

use super::hashes::hash_file;
use super::net::{Ask, Net, NetError};
use super::progress::{Progress, size};
use part::Part;
use stream::{Given, take};

/// Requests for one file at a time.
pub const STREAMS: usize = 8;
/// Free space wanted beyond what is missing: a file system is never quite empty.
const SPARE_PERCENT: u64 = 5;
const LOCK_EVERY: Duration = Duration::from_millis(300);
const NO_SPACE: i32 = 28;
const FILE_TOO_LARGE: i32 = 27;
const NO_QUOTA: i32 = 122;

/// What is to be fetched.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// From where.
    pub url: Url,
    /// Its size, if the hub said.
    pub bytes: Option<u64>,
    /// Its SHA-256 in hex, if the hub said.
    pub sha256: Option<String>,
}

/// Why a file was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The network.
    #[error(transparent)]
    Net(#[from] NetError),
    /// No room.
    #[error(
        "the disk of {} has {} free, {} are needed (with 5 % to spare): make room, or choose another folder with HF_HOME{}",
        folder.display(), size(*free), size(*needed), kept(*done)
    )]
    Space {
        /// Where.
        folder: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes needed.
        needed: u64,
        /// Bytes that are there already.
        done: u64,
    },
    /// A write failed.
    #[error("{} cannot be written: {source}{}{}", path.display(), hint(source), kept(*done))]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// Bytes that are there already.
        done: u64,
    },
    /// All bytes came, but they are others.
    #[error(
        "{url} does not have the SHA-256 that was promised: {wanted} was, {found} came; the wrong file was deleted"
    )]
    Wrong {
        /// From where.
        url: String,
        /// As the hub said.
        wanted: String,
        /// Of what came.
        found: String,
    },
    /// Stopped by a person.
    #[error("stopped")]
    Stopped,
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(NO_SPACE) => " (make room, or choose another folder with HF_HOME)",
        Some(FILE_TOO_LARGE) => {
            " (files may not become that large here: see `ulimit -f` and the file system)"
        }
        Some(NO_QUOTA) => " (the quota is used up)",
        _ => "",
    }
}

fn kept(done: u64) -> String {
    if done == 0 {
        return String::new();
    }
    format!(
        "; the {} that came are kept, and the same command goes on from there",
        size(done)
    )
}

/// Fetches `wanted` to `target`; gives its SHA-256. `target` appears at the end, in one step.
pub async fn fetch(
    net: &Net,
    wanted: &Wanted,
    target: &Path,
    progress: &Progress,
) -> Result<String, FetchError> {
    let stop = CancellationToken::new();
    // A dropped future ends the hashing of a large file too.
    let _end = stop.clone().drop_guard();
    let mut fresh_tries = 0;
    loop {
        let resumed = attempt(net, wanted, target, progress).await?;
        match finish(wanted, target, &stop).await {
            // A part from an earlier day, or of another file: once more from the start.
            Err(FetchError::Wrong { .. }) if resumed && fresh_tries == 0 => fresh_tries += 1,
            done => return done,
        }
    }
}

/// Brings all bytes into the part; says whether some lay there before.
async fn attempt(
    net: &Net,
    wanted: &Wanted,
    target: &Path,
    progress: &Progress,
) -> Result<bool, FetchError> {
    let mut head = head(net, wanted).await?;
    let mut singles = 0;
    loop {
        let part =
            Arc::new(open_part(target, head).map_err(|source| write_error(target, source, 0))?);
        let resumed = part.done() > 0;
        space(target, &part)?;
        progress.set(part.done(), head.bytes.unwrap_or(0));
        match streams(net, &wanted.url, &part, progress).await {
            Ok(()) => return Ok(resumed),
            Err(Given::NoRanges) if singles < 2 => {
                // From the start in one piece: what came in pieces may not be what the server sends now.
                part.discard();
                head.ranges = false;
                singles += 1;
            }
            Err(Given::NoRanges) => {
                let reason = "it gives other bytes than those it was asked for".to_owned();
                return Err(super::net::odd(&wanted.url, reason).into());
            }
            Err(Given::Error(error)) => {
                part.save();
                return Err(error);
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Head {
    bytes: Option<u64>,
    ranges: bool,
}

/// Asks for the size where the hub did not say it.
async fn head(net: &Net, wanted: &Wanted) -> Result<Head, FetchError> {
    if wanted.bytes.is_some() {
        return Ok(Head {
            bytes: wanted.bytes,
            ranges: true,
        });
    }
    let mut tries = 0;
    loop {
        let ask = Ask {
            head: true,
            ..Ask::default()
        };
        match net.send(&wanted.url, ask).await {
            Ok((answer, _first)) => {
                let length = answer.headers().get(reqwest::header::CONTENT_LENGTH);
                let bytes = length
                    .and_then(|text| text.to_str().ok()?.parse().ok())
                    .filter(|bytes| *bytes > 0);
                return Ok(Head {
                    bytes,
                    ranges: bytes.is_some(),
                });
            }
            // Some servers know GET alone.
            Err(NetError::Odd { .. }) => {
                return Ok(Head {
                    bytes: None,
                    ranges: false,
                });
            }
            Err(error) if error.is_passing() && tries + 1 < net.patience.tries => {
                net.rest(&error, tries).await;
                tries += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn open_part(target: &Path, head: Head) -> io::Result<Part> {
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder)?;
    }
    let streams = if head.ranges { STREAMS } else { 1 };
    Part::open(target, head.bytes, streams)
}

fn space(target: &Path, part: &Part) -> Result<(), FetchError> {
    let Some(total) = part.bytes() else {
        return Ok(());
    };
    let done = part.done();
    let needed = total.saturating_sub(done) / 100 * (100 + SPARE_PERCENT);
    let folder = target.parent().unwrap_or(target);
    match free_bytes(folder) {
        Some(free) if free < needed => Err(FetchError::Space {
            folder: folder.to_owned(),
            free,
            needed,
            done,
        }),
        Some(_) | None => Ok(()),
    }
}

/// What an ordinary user may still write there.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

async fn streams(net: &Net, url: &Url, part: &Arc<Part>, progress: &Progress) -> Result<(), Given> {
    let mut running: FuturesUnordered<_> = (0..part.streams())
        .map(|_stream| take(net, url, part, progress))
        .collect();
    while let Some(ended) = running.next().await {
        ended?;
    }
    part.save();
    Ok(())
}

async fn finish(
    wanted: &Wanted,
    target: &Path,
    stop: &CancellationToken,
) -> Result<String, FetchError> {
    let file = part::data_of(target);
    let (path, stop) = (file.clone(), stop.clone());
    let hashed = tokio::task::spawn_blocking(move || {
        File::open(&path)?.sync_all()?;
        hash_file(&path, &stop)
    });
    let hashed = hashed
        .await
        .map_err(io::Error::other)
        .and_then(|hashed| hashed);
    let found = hashed
        .map_err(|source| write_error(&file, source, 0))?
        .ok_or(FetchError::Stopped)?;
    if let Some(promised) = &wanted.sha256
        && !promised.eq_ignore_ascii_case(&found)
    {
        part::remove(target);
        return Err(FetchError::Wrong {
            url: wanted.url.to_string(),
            wanted: promised.clone(),
            found,
        });
    }
    let moved = fs::rename(&file, target).and_then(|()| match target.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    });
    moved.map_err(|source| write_error(target, source, 0))?;
    part::remove(target);
    Ok(found)
}

const fn write_failed(path: PathBuf, source: io::Error, done: u64) -> FetchError {
    FetchError::Write { path, source, done }
}

fn write_error(path: &Path, source: io::Error, done: u64) -> FetchError {
    write_failed(path.to_owned(), source, done)
}

/// Held while one process downloads a blob; others wait.
#[derive(Debug)]
pub struct BlobLock {
    _file: File,
}

impl BlobLock {
    /// Waits until no other process downloads the same; `waiting` is called once if there is one.
    pub async fn take(path: &Path, waiting: impl FnOnce()) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        let mut waiting = Some(waiting);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) => {
                    if let Some(waiting) = waiting.take() {
                        waiting();
                    }
                    tokio::time::sleep(LOCK_EVERY).await;
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }
}
