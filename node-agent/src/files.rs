//! Small files of the state directory: written whole or not at all, readable by their owner alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Makes the folder, 0700, if it is not there.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Replaces the content of a file in one step, mode 0600. After a crash the file holds the old or the new content.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let fresh = Path::new(&name);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(fresh, path)?;
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Whether group or others may read a file.
pub fn is_shared(path: &Path) -> io::Result<bool> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o077 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_private_and_whole() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("state").join("a.json");
        make_private_dir(path.parent().expect("has a parent")).expect("makes");
        for content in ["first, longer", "second"] {
            replace(&path, content.as_bytes()).expect("writes");
            assert_eq!(fs::read_to_string(&path).expect("reads"), content);
            assert!(!is_shared(&path).expect("exists"));
        }
    }
}
