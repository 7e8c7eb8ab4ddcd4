//! Model files: is it a GGUF, and what is its SHA-256. Hashes are computed once, in the background, and kept next to the state,
//! because a heavy model is tens of gigabytes. Never loads a model.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

/// Runs a script instead of a model; see the engine crate.
const SCRIPT: &str = "script:";
const CACHE_FILE: &str = "model-hashes.json";
const CACHE_ENTRIES_MAX: usize = 64;
const READ_BYTES: usize = 1024 * 1024;

/// What is wrong with a model file.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    /// It cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a folder or a device.
    #[error("{} is not a file", .0.display())]
    NotAFile(PathBuf),
    /// It starts with something else.
    #[error("{} is not a GGUF file: it does not start with GGUF", .0.display())]
    NotGguf(PathBuf),
    /// It is older or newer than what can be read.
    #[error("{} is GGUF version {version}; versions 2 and 3 can be read", path.display())]
    Version {
        /// Which.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

/// Whether `path` names a script.
pub fn is_script(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.starts_with(SCRIPT))
}

/// Looks at the first bytes; gives the size.
pub fn check(path: &Path) -> Result<u64, FileProblem> {
    if is_script(path) {
        return Ok(0);
    }
    let unreadable = |source| FileProblem::Unreadable {
        path: path.to_owned(),
        source,
    };
    let meta = fs::metadata(path).map_err(unreadable)?;
    if !meta.is_file() {
        return Err(FileProblem::NotAFile(path.to_owned()));
    }
    let mut start = [0_u8; 8];
    let mut file = File::open(path).map_err(unreadable)?;
    let [g, u1, u2, f, version @ ..] = match file.read_exact(&mut start) {
        Ok(()) => start,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(FileProblem::NotGguf(path.to_owned()));
        }
        Err(error) => return Err(unreadable(error)),
    };
    if [g, u1, u2, f] != *b"GGUF" {
        return Err(FileProblem::NotGguf(path.to_owned()));
    }
    let version = u32::from_le_bytes(version);
    if !(2..=3).contains(&version) {
        return Err(FileProblem::Version {
            path: path.to_owned(),
            version,
        });
    }
    Ok(meta.len())
}

/// A file as it was when it was hashed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Seen {
    size_bytes: u64,
    modified_ns: u128,
    sha256: String,
}

impl Seen {
    fn is_of(&self, meta: &fs::Metadata) -> bool {
        self.size_bytes == meta.len() && self.modified_ns == modified_ns(meta)
    }
}

/// The hashes of files, by path.
#[derive(Debug)]
pub struct Hashes {
    cache: PathBuf,
    seen: BTreeMap<PathBuf, Seen>,
}

impl Hashes {
    /// Reads the cache in `state_dir`; a missing or broken one is an empty one.
    pub fn open(state_dir: &Path) -> Self {
        let cache = state_dir.join(CACHE_FILE);
        let seen = fs::read(&cache)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self { cache, seen }
    }

    /// The SHA-256 of a file in hex; computed only if the file is new or changed. Blocks for seconds on large files; `stop` ends it
    /// early with `None`.
    pub fn sha256(&mut self, path: &Path, stop: &CancellationToken) -> io::Result<Option<String>> {
        if is_script(path) {
            let hash = ring::digest::digest(&SHA256, path.as_os_str().as_encoded_bytes());
            return Ok(Some(hex::encode(hash.as_ref())));
        }
        let path = fs::canonicalize(path)?;
        let before = fs::metadata(&path)?;
        if let Some(seen) = self.seen.get(&path)
            && seen.is_of(&before)
        {
            return Ok(Some(seen.sha256.clone()));
        }
        let Some(sha256) = hash_file(&path, stop)? else {
            return Ok(None);
        };
        // A file that changed meanwhile is hashed again next time.
        let after = fs::metadata(&path)?;
        let seen = Seen {
            size_bytes: before.len(),
            modified_ns: modified_ns(&before),
            sha256: sha256.clone(),
        };
        if seen.is_of(&after) {
            self.remember(path, seen);
        }
        Ok(Some(sha256))
    }

    fn remember(&mut self, path: PathBuf, seen: Seen) {
        self.seen.insert(path, seen);
        self.seen.retain(|path, _seen| path.exists());
        while self.seen.len() > CACHE_ENTRIES_MAX {
            self.seen.pop_first();
        }
        let written = serde_json::to_vec_pretty(&self.seen)
            .map_err(io::Error::other)
            .and_then(|bytes| crate::files::replace(&self.cache, &bytes));
        if let Err(error) = written {
            tracing::warn!(%error, "the hashes of the models could not be kept; they will be computed again");
        }
    }
}

fn hash_file(path: &Path, stop: &CancellationToken) -> io::Result<Option<String>> {
    let mut file = File::open(path)?;
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; READ_BYTES];
    loop {
        if stop.is_cancelled() {
            return Ok(None);
        }
        let read = file.read(&mut chunk)?;
        let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else {
            return Ok(Some(hex::encode(context.finish().as_ref())));
        };
        context.update(bytes);
    }
}

fn modified_ns(meta: &fs::Metadata) -> u128 {
    meta.modified()
        .ok()
        .and_then(|modified| modified.duration_since(UNIX_EPOCH).ok())
        .map_or(0, |since| since.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn other_files_are_told_apart_from_gguf() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("model.gguf");
        let problem = |bytes: &[u8]| {
            fs::write(&path, bytes).expect("writes");
            check(&path).err().map(|problem| problem.to_string())
        };
        assert_eq!(problem(b"GGUF\x03\0\0\0rest"), None);
        assert!(problem(b"GG").is_some_and(|text| text.ends_with("it does not start with GGUF")));
        assert!(problem(b"version https://git-lfs").is_some());
        assert!(problem(b"GGUF\x01\0\0\0").is_some_and(|text| text.contains("version 1")));
        assert!(check(folder.path()).is_err(), "a folder is no model");
        assert!(check(&folder.path().join("none")).is_err());
    }

    #[test]
    fn a_hash_is_computed_once_and_again_when_the_file_changes() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("model.gguf");
        fs::write(&path, b"").expect("writes");
        let run = CancellationToken::new();
        let mut hashes = Hashes::open(folder.path());
        assert_eq!(
            hashes.sha256(&path, &run).expect("hashes").as_deref(),
            Some(EMPTY_SHA256)
        );

        let stopped = CancellationToken::new();
        stopped.cancel();
        let mut again = Hashes::open(folder.path());
        let known = again.sha256(&path, &stopped).expect("hashes");
        assert_eq!(known.as_deref(), Some(EMPTY_SHA256), "comes from the cache");

        fs::write(&path, b"changed").expect("writes");
        assert_eq!(
            again.sha256(&path, &stopped).expect("hashes"),
            None,
            "must be read anew"
        );
        let new = again
            .sha256(&path, &run)
            .expect("hashes")
            .expect("was not stopped");
        assert_ne!(new, EMPTY_SHA256);
    }
}
