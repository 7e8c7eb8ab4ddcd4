//! A file that is not whole yet: its bytes, and which of them are there. Beside the final name, with an ending of its own: Hugging Face's
//! Python library takes the length of its `.incomplete` files for what is there, and ours have holes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

const DATA_END: &str = ".hearth-incomplete";
const MAP_END: &str = ".hearth-parts";
/// Pieces are about a 64th of the file, within these bounds: small enough to share evenly, large enough for few requests.
const PIECE_MIN: u64 = 8 * 1024 * 1024;
const PIECE_MAX: u64 = 256 * 1024 * 1024;
const PIECES: u64 = 64;
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// What is there, as the map file has it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Map {
    bytes: Option<u64>,
    piece: u64,
    /// Bytes from the start of each piece that are there.
    done: Vec<u64>,
}

#[derive(Debug)]
struct State {
    map: Map,
    taken: Vec<bool>,
    saved: Instant,
}

/// A file in the making.
#[derive(Debug)]
pub(super) struct Part {
    file: Arc<File>,
    target: PathBuf,
    streams: usize,
    state: Mutex<State>,
}

/// Some bytes that one request brings.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Piece {
    pub(super) index: usize,
    /// The first byte that is missing.
    pub(super) from: u64,
    /// The first byte that is no longer wanted; `None` = to the end, wherever that is.
    pub(super) end: Option<u64>,
}

fn beside(target: &Path, end: &str) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

/// Where the bytes lie until they are whole.
pub(super) fn data_of(target: &Path) -> PathBuf {
    beside(target, DATA_END)
}

/// Forgets what is there.
pub(super) fn remove(target: &Path) {
    for end in [DATA_END, MAP_END] {
        // Not there is as good.
        let _gone = fs::remove_file(beside(target, end));
    }
}

impl Part {
    /// Opens what is there, or begins.
    pub(super) fn open(target: &Path, bytes: Option<u64>, streams: usize) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(data_of(target))?;
        let fresh = Map::new(bytes, streams);
        let map = fs::read(beside(target, MAP_END))
            .ok()
            .and_then(|text| serde_json::from_slice::<Map>(&text).ok())
            .filter(|map| bytes.is_some() && streams > 1 && map.suits(&fresh, &file))
            .unwrap_or(fresh);
        if map.total() == 0 {
            file.set_len(0)?;
        }
        let taken = vec![false; map.done.len()];
        Ok(Self {
            file: Arc::new(file),
            target: target.to_owned(),
            streams,
            state: Mutex::new(State {
                map,
                taken,
                saved: Instant::now(),
            }),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) const fn streams(&self) -> usize {
        self.streams
    }

    pub(super) fn bytes(&self) -> Option<u64> {
        self.state().map.bytes
    }

    /// Bytes that are there.
    pub(super) fn done(&self) -> u64 {
        self.state().map.total()
    }

    /// A piece that nobody fetches yet.
    pub(super) fn take(&self) -> Option<Piece> {
        let mut state = self.state();
        let free = (0..state.taken.len()).find(|index| {
            let open = state.map.missing(*index);
            open && state.taken.get(*index) == Some(&false)
        })?;
        if let Some(taken) = state.taken.get_mut(free) {
            *taken = true;
        }
        Some(state.map.piece_at(free))
    }

    /// What is still missing of a piece.
    pub(super) fn rest(&self, index: usize) -> Option<Piece> {
        let state = self.state();
        state.map.missing(index).then(|| state.map.piece_at(index))
    }

    /// Keeps bytes that follow those of the piece; the map on the disk follows within a second.
    pub(super) async fn write(&self, piece: Piece, bytes: Vec<u8>) -> io::Result<()> {
        let file = self.file.clone();
        let len = u64::try_from(bytes.len()).unwrap_or(0);
        let written = tokio::task::spawn_blocking(move || file.write_all_at(&bytes, piece.from));
        written.await.map_err(io::Error::other)??;
        let due = {
            let mut state = self.state();
            if let Some(done) = state.map.done.get_mut(piece.index) {
                *done += len;
            }
            let due = state.saved.elapsed() >= SAVE_EVERY;
            if due {
                state.saved = Instant::now();
            }
            due
        };
        if due {
            self.save();
        }
        Ok(())
    }

    /// The end came: a file of unknown size is whole.
    pub(super) fn ended(&self, index: usize) {
        let mut state = self.state();
        if state.map.bytes.is_none() {
            state.map.bytes = state.map.done.get(index).copied();
            state.map.piece = state.map.bytes.unwrap_or(0).max(1);
        }
    }

    /// Forgets what a piece has, because the server starts anew.
    pub(super) fn restart(&self, index: usize) {
        if let Some(done) = self.state().map.done.get_mut(index) {
            *done = 0;
        }
    }

    pub(super) fn save(&self) {
        let map = self.state().map.clone();
        if map.bytes.is_none() {
            return;
        }
        let text = serde_json::to_vec(&map).unwrap_or_default();
        // Without it the next try begins anew: no reason to stop this one.
        if let Err(error) = fs::write(beside(&self.target, MAP_END), text) {
            tracing::debug!(%error, "the map of a download could not be written");
        }
    }

    pub(super) fn discard(&self) {
        remove(&self.target);
    }

    pub(super) fn target(&self) -> PathBuf {
        data_of(&self.target)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if data_of(&self.target).exists() {
            self.save();
        }
    }
}

impl Map {
    fn new(bytes: Option<u64>, streams: usize) -> Self {
        let all = bytes.unwrap_or(u64::MAX);
        let piece = if streams == 1 {
            all
        } else {
            (all / PIECES).clamp(PIECE_MIN, PIECE_MAX)
        };
        let piece = piece.max(1);
        let count = usize::try_from(all.div_ceil(piece)).unwrap_or(1).max(1);
        Self {
            bytes,
            piece,
            done: vec![0; count],
        }
    }

    /// Whether an older map is of the same file, and the bytes it promises can be there.
    fn suits(&self, fresh: &Self, file: &File) -> bool {
        let same = self.bytes == fresh.bytes
            && self.piece == fresh.piece
            && self.done.len() == fresh.done.len();
        let len = file.metadata().map_or(0, |meta| meta.len());
        same && (0..self.done.len()).all(|index| {
            let done = self.done.get(index).copied().unwrap_or(0);
            let start = self.start(index);
            done == 0 || (done <= self.len(index) && start + done <= len)
        })
    }

    fn start(&self, index: usize) -> u64 {
        u64::try_from(index).unwrap_or(0).saturating_mul(self.piece)
    }

    fn len(&self, index: usize) -> u64 {
        let all = self.bytes.unwrap_or(u64::MAX);
        all.saturating_sub(self.start(index)).min(self.piece)
    }

    fn missing(&self, index: usize) -> bool {
        self.done.get(index).copied().unwrap_or(0) < self.len(index)
    }

    fn piece_at(&self, index: usize) -> Piece {
        let start = self.start(index);
        Piece {
            index,
            from: start + self.done.get(index).copied().unwrap_or(0),
            end: self.bytes.map(|_all| start + self.len(index)),
        }
    }

    fn total(&self) -> u64 {
        self.done.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_written_is_known_after_a_restart() {
        let folder = tempfile::tempdir().expect("folder");
        let target = folder.path().join("blob");
        let bytes = Some(3 * PIECE_MIN);
        let part = Part::open(&target, bytes, 8).expect("opens");
        let piece = part.take().expect("free");
        part.write(piece, vec![7; 100]).await.expect("writes");
        let second = part.take().expect("free");
        assert_eq!((second.index, second.from), (1, PIECE_MIN));
        drop(part);
        let again = Part::open(&target, bytes, 8).expect("opens");
        assert_eq!(again.done(), 100);
        assert_eq!(again.take().map(|piece| piece.from), Some(100));
        drop(again);
        let other = Part::open(&target, Some(5 * PIECE_MIN), 8).expect("opens");
        assert_eq!(other.done(), 0, "another size is another file");
    }

    #[test]
    fn a_map_that_promises_more_than_the_file_has_is_not_believed() {
        let folder = tempfile::tempdir().expect("folder");
        let target = folder.path().join("blob");
        let map = Map {
            bytes: Some(PIECE_MIN),
            piece: PIECE_MIN,
            done: vec![500],
        };
        fs::write(
            beside(&target, MAP_END),
            serde_json::to_vec(&map).expect("is JSON"),
        )
        .expect("writes");
        fs::write(data_of(&target), [0; 10]).expect("writes");
        assert_eq!(Part::open(&target, map.bytes, 8).expect("opens").done(), 0);
    }
}
