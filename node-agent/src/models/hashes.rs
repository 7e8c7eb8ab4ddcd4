//! SHA-256 of model files: computed once, in the background, and kept next to the state, because a heavy model is tens of gigabytes.
//! Never loads a model.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::is_script;

const CACHE_FILE: &str = "model-hashes.json";
const CACHE_ENTRIES_MAX: usize = 64;
const READ_BYTES: usize = 1024 * 1024;

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

/// Reads a whole file; `stop` ends it early with `None`.
pub(crate) fn hash_file(path: &Path, stop: &CancellationToken) -> io::Result<Option<String>> {
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
