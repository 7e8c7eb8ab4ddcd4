//! Small files of JSON that this proxy keeps for its next start: bounded when read, whole when written, and nobody else's business.

use std::io::{self, Write as _};
use std::path::Path;

use serde::de::DeserializeOwned;

/// What stands in a file of at most `bytes_max`.
pub fn read<T: DeserializeOwned>(file: &Path, bytes_max: u64) -> io::Result<T> {
    let bytes = std::fs::metadata(file)?.len();
    if bytes > bytes_max {
        let text = format!("it has {bytes} bytes, more than {bytes_max}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    serde_json::from_slice(&std::fs::read(file)?).map_err(io::Error::from)
}

/// A crash leaves the old file or the new one. Readable by its owner alone: 0600.
pub fn write(file: &Path, text: &[u8]) -> io::Result<()> {
    let fresh = file.with_extension("json.new");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut open = options.open(&fresh)?;
    open.write_all(text)?;
    open.sync_all()?;
    std::fs::rename(&fresh, file)
}
