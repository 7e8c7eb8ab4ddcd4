//! Models: from a name to a file that is whole, known and fits this machine. Reads GGUF headers ([`gguf`]), downloads ([`pull`]), pins
//! ([`lock`]), predicts memory ([`memory`]) and advises ([`advise`]). Never loads a model into this process.

pub mod advise;
pub mod cache;
pub mod catalogue;
pub mod choose;
pub mod commands;
pub mod fetch;
pub mod gguf;
pub mod hashes;
pub mod lock;
pub mod machine;
pub mod memory;
pub mod modelfile;
pub mod net;
pub mod progress;
pub mod pull;
pub mod registry;
pub mod source;

use std::io;
use std::path::{Path, PathBuf};

pub use gguf::Gguf;
pub use hashes::Hashes;

/// Runs a script instead of a model; see the engine crate.
const SCRIPT: &str = "script:";

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
    /// It is no GGUF file, or one that is damaged.
    #[error("{} {problem}", path.display())]
    Gguf {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: gguf::Problem,
    },
}

/// Whether `path` names a script.
pub fn is_script(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.starts_with(SCRIPT))
}

/// All files of the model that begins in `path`: itself, and the other parts if it is the first of several.
pub fn parts(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str());
    match name.and_then(choose::split_of) {
        Some((stem, _part, total)) => (1..=total)
            .map(|part| path.with_file_name(format!("{stem}-{part:05}-of-{total:05}.gguf")))
            .collect(),
        None => vec![path.to_owned()],
    }
}

/// Reads the header of a model file, all of it within bounds, before anything else opens the file; gives the file's size in bytes.
pub fn check(path: &Path) -> Result<u64, FileProblem> {
    if is_script(path) {
        return Ok(0);
    }
    Gguf::open_whole(path).map(|gguf| gguf.file_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_are_told_apart_from_gguf() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("model.gguf");
        let problem = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("writes");
            check(&path).err().map(|problem| problem.to_string())
        };
        let empty = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(problem(empty), None);
        assert!(problem(b"GG").is_some_and(|text| text.ends_with("it does not start with GGUF")));
        assert!(problem(b"version https://git-lfs").is_some_and(|text| text.contains("Git LFS")));
        assert!(problem(b"GGUF\x01\0\0\0").is_some_and(|text| text.contains("version 1")));
        assert!(check(folder.path()).is_err(), "a folder is no model");
        assert!(check(&folder.path().join("none")).is_err());
    }
}
