//! A copy of the whole file while it is in use. It runs on the thread that writes the file, between two commits, so the copy is
//! what a crash at that moment would leave, which redb reads by design; it is opened once to prove it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use redb::Database;

use super::records::FileError;
use crate::store::StoreError;

/// Copies the file; the bytes of the copy. Refuses to replace one.
pub(super) fn copy(from: &Path, to: &Path) -> Result<u64, FileError> {
    let failed = |error: &dyn std::fmt::Display| {
        StoreError::Unavailable(format!("the backup {}: {error}", to.display()))
    };
    let bytes = write(from, to).map_err(|error| failed(&error))?;
    // Opening repairs what a crash would have left, and closing leaves a file that needs no repair.
    match Database::open(to) {
        Ok(copy) => drop(copy),
        Err(error) => {
            // A broken copy must not look like a good one.
            drop(std::fs::remove_file(to));
            return Err(failed(&error).into());
        }
    }
    Ok(bytes)
}

fn write(from: &Path, to: &Path) -> io::Result<u64> {
    let mut copy = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    let bytes = io::copy(&mut File::open(from)?, &mut copy)?;
    copy.sync_all()?;
    Ok(bytes)
}
