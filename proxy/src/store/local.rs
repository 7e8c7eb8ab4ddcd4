//! Secrets in files of the state directory, readable by the owner alone. Shows none of them to anyone but its caller.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use config::secret::Secret;

use super::StoreError;

/// The folder inside the state directory.
const FOLDER: &str = "secrets";

/// 32 random bytes under this name in the state directory: made on the first call, the same ever after. For secrets that
/// belong to this machine; those that all proxies share come from the store.
pub fn local_secret(state_dir: &Path, name: &str) -> Result<Secret<[u8; 32]>, StoreError> {
    let folder = state_dir.join(FOLDER);
    private_folder(&folder)?;
    let path = folder.join(name);
    match read(&path) {
        Ok(secret) => Ok(secret),
        Err(error) if error.kind() == ErrorKind::NotFound => make(&folder, &path),
        Err(error) => Err(unavailable(&path, &error)),
    }
}

/// Creates a folder that only its owner may enter.
pub(crate) fn private_folder(path: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| unavailable(path, &error))
}

/// Random bytes, good for keys.
pub(super) fn random() -> Result<Secret<[u8; 32]>, StoreError> {
    let mut bytes = [0_u8; 32];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .map_err(|_| StoreError::Unavailable("the system has no random numbers".into()))?;
    Ok(Secret::new(bytes))
}

/// Writes to a name of its own and links it into place: of two processes that start together one wins, and a crash leaves
/// no half secret.
fn make(folder: &Path, path: &Path) -> Result<Secret<[u8; 32]>, StoreError> {
    let secret = random()?;
    let draft = folder.join(format!(".draft-{}", hex::encode(random()?.expose())));
    let written = write(&draft, &secret)
        .and_then(|()| match fs::hard_link(&draft, path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        })
        .and_then(|()| File::open(folder)?.sync_all());
    let removed = fs::remove_file(&draft);
    written
        .and(removed)
        .and_then(|()| read(path))
        .map_err(|error| unavailable(path, &error))
}

fn write(path: &Path, secret: &Secret<[u8; 32]>) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(secret.expose())?;
    file.sync_all()
}

fn read(path: &Path) -> std::io::Result<Secret<[u8; 32]>> {
    let mut file = File::open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        // Copied by hand or restored from a backup: close it before use.
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    let mut bytes = [0_u8; 32];
    file.read_exact(&mut bytes)?;
    Ok(Secret::new(bytes))
}

fn unavailable(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Unavailable(format!("{}: {error}", path.display()))
}
