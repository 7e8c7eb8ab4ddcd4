//! Who this machine is: an Ed25519 key that is made once and never leaves, and the proxy it belongs to. Both live in the state directory,
//! readable by their owner alone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use config::ids::NodeId;
use ring::pkcs8::Document;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::files;

const KEY_FILE: &str = "identity.pem";
const MEMBER_FILE: &str = "node.json";
const LOCK_FILE: &str = "lock";
const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----\n";
const PEM_END: &str = "-----END PRIVATE KEY-----\n";
const MEMBER_VERSION: u32 = 1;

/// What is wrong with the state directory.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The key can be read by others.
    #[error("{} can be read by others; run `chmod 600 {}`", .0.display(), .0.display())]
    Shared(PathBuf),
    /// The file holds something else.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Another agent uses the directory.
    #[error("another hearth-node runs with {}", .0.display())]
    Taken(PathBuf),
}

fn io_error(path: &Path, source: io::Error) -> StateError {
    StateError::Io {
        path: path.to_owned(),
        source,
    }
}

/// The machine's key.
#[derive(Debug)]
pub struct Identity {
    pair: Ed25519KeyPair,
    /// Where it is kept.
    path: Option<PathBuf>,
}

impl Identity {
    /// Reads the key, or makes it if there is none.
    pub fn open(state_dir: &Path) -> Result<Self, StateError> {
        let path = state_dir.join(KEY_FILE);
        files::make_private_dir(state_dir).map_err(|error| io_error(state_dir, error))?;
        match fs::read(&path).map(Zeroizing::new) {
            Ok(pem) => Self::read(&path, &pem),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::make(&path),
            Err(error) => Err(io_error(&path, error)),
        }
    }

    fn read(path: &Path, pem: &[u8]) -> Result<Self, StateError> {
        if files::is_shared(path).map_err(|error| io_error(path, error))? {
            return Err(StateError::Shared(path.to_owned()));
        }
        let damaged = |reason: String| StateError::Damaged {
            path: path.to_owned(),
            reason,
        };
        let key =
            PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|error| damaged(error.to_string()))?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.secret_pkcs8_der())
            .map_err(|error| damaged(format!("not an Ed25519 key ({error})")))?;
        Ok(Self {
            pair,
            path: Some(path.to_owned()),
        })
    }

    /// A key that is kept nowhere, for a machine without an agent: nobody registers in its name again.
    pub fn fleeting() -> io::Result<Self> {
        let odd = |reason: String| io::Error::other(reason);
        let pkcs8 = new_pkcs8()?;
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref());
        Ok(Self {
            pair: pair.map_err(|error| odd(error.to_string()))?,
            path: None,
        })
    }

    fn make(path: &Path) -> Result<Self, StateError> {
        let pkcs8 = new_pkcs8().map_err(|error| io_error(path, error))?;
        let text = Zeroizing::new(STANDARD.encode(pkcs8.as_ref()));
        let mut pem = Zeroizing::new(String::with_capacity(256));
        pem.push_str(PEM_BEGIN);
        for (at, letter) in text.chars().enumerate() {
            if at > 0 && at.is_multiple_of(64) {
                pem.push('\n');
            }
            pem.push(letter);
        }
        pem.push('\n');
        pem.push_str(PEM_END);
        files::replace(path, pem.as_bytes()).map_err(|error| io_error(path, error))?;
        Self::read(path, pem.as_bytes())
    }

    /// The files that make this machine the node it is; none for a fleeting one.
    pub fn files(&self) -> Vec<PathBuf> {
        let key = self.path.clone();
        let member = key.as_ref().map(|key| key.with_file_name(MEMBER_FILE));
        key.into_iter().chain(member).collect()
    }

    /// Base64 of the public key, as it travels.
    pub fn public(&self) -> String {
        STANDARD.encode(self.pair.public_key().as_ref())
    }

    /// Base64 of a signature.
    pub fn sign(&self, message: &[u8]) -> String {
        STANDARD.encode(self.pair.sign(message).as_ref())
    }
}

fn new_pkcs8() -> io::Result<Document> {
    let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
    made.map_err(|_unspecified| io::Error::other("the system gives no random numbers"))
}

/// The proxy that this machine belongs to.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Member {
    version: u32,
    /// `https://host:port`.
    pub proxy: String,
    /// `sha256-…` of the proxy's key, if its certificate is self-signed.
    pub pin: Option<String>,
    /// What the proxy calls this machine.
    pub node_id: NodeId,
    /// What people call it.
    pub name: String,
}

impl Member {
    /// A new membership.
    pub const fn new(proxy: String, pin: Option<String>, node_id: NodeId, name: String) -> Self {
        Self {
            version: MEMBER_VERSION,
            proxy,
            pin,
            node_id,
            name,
        }
    }

    /// Reads the membership; `None` if this machine has not joined yet.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, StateError> {
        let path = state_dir.join(MEMBER_FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(&path, error)),
        };
        let damaged = |reason: String| StateError::Damaged {
            path: path.clone(),
            reason,
        };
        let member: Self =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if member.version != MEMBER_VERSION {
            return Err(damaged(format!(
                "version {}, expected {MEMBER_VERSION}",
                member.version
            )));
        }
        Ok(Some(member))
    }

    /// Keeps the membership.
    pub fn save(&self, state_dir: &Path) -> Result<(), StateError> {
        let path = state_dir.join(MEMBER_FILE);
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| io_error(&path, io::Error::other(error)))?;
        files::replace(&path, &bytes).map_err(|error| io_error(&path, error))
    }
}

/// Keeps a second agent away from the same state; ends with the process.
#[derive(Debug)]
pub struct StateLock {
    _file: fs::File,
}

impl StateLock {
    /// Takes the lock.
    pub fn take(state_dir: &Path) -> Result<Self, StateError> {
        files::make_private_dir(state_dir).map_err(|error| io_error(state_dir, error))?;
        let path = state_dir.join(LOCK_FILE);
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| io_error(&path, error))?;
        Self::hold(file, state_dir, &path)
    }

    /// Takes the lock where an agent ran before, and makes nothing: a file that somebody else makes here may keep the agent out for ever.
    pub fn take_existing(state_dir: &Path) -> Result<Option<Self>, StateError> {
        let path = state_dir.join(LOCK_FILE);
        match fs::File::open(&path) {
            Ok(file) => Self::hold(file, state_dir, &path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error(&path, error)),
        }
    }

    fn hold(file: fs::File, state_dir: &Path, path: &Path) -> Result<Self, StateError> {
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(fs::TryLockError::WouldBlock) => Err(StateError::Taken(state_dir.to_owned())),
            Err(fs::TryLockError::Error(error)) => Err(io_error(path, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use ring::signature::{ED25519, UnparsedPublicKey};

    use super::*;

    #[test]
    fn the_key_is_made_once_and_signs_the_same_way_after_a_restart() {
        let folder = tempfile::tempdir().expect("folder");
        let first = Identity::open(folder.path()).expect("makes");
        let again = Identity::open(folder.path()).expect("reads");
        assert_eq!(first.public(), again.public());
        let decode = |text: String| STANDARD.decode(text).expect("base64");
        let public = UnparsedPublicKey::new(&ED25519, decode(first.public()));
        let signature = decode(again.sign(b"message"));
        public
            .verify(b"message", &signature)
            .expect("the signature is right");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().expect("folder");
        let made = Identity::open(folder.path());
        assert!(made.is_ok(), "{made:?}");
        let path = folder.path().join(KEY_FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("changes");
        let error = Identity::open(folder.path()).expect_err("refused");
        assert!(error.to_string().contains("chmod 600"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changes");
        fs::write(&path, "nonsense").expect("writes");
        let error = Identity::open(folder.path()).expect_err("damaged");
        assert!(matches!(error, StateError::Damaged { .. }), "{error}");
    }

    #[test]
    fn a_membership_survives_and_a_second_agent_is_kept_out() {
        let folder = tempfile::tempdir().expect("folder");
        assert_eq!(Member::load(folder.path()).expect("no file"), None);
        let member = Member::new(
            "https://a".to_owned(),
            None,
            NodeId::new("node_1"),
            "den".to_owned(),
        );
        member.save(folder.path()).expect("writes");
        assert_eq!(Member::load(folder.path()).expect("reads"), Some(member));

        let lock = StateLock::take(folder.path()).expect("free");
        assert!(matches!(
            StateLock::take(folder.path()),
            Err(StateError::Taken(_))
        ));
        drop(lock);
        StateLock::take(folder.path()).expect("free again");
        let existing = StateLock::take_existing(folder.path()).expect("free");
        assert!(existing.is_some() && StateLock::take(folder.path()).is_err());
        let empty = tempfile::tempdir().expect("folder");
        let none = StateLock::take_existing(empty.path()).expect("no file");
        assert!(none.is_none() && !empty.path().join(LOCK_FILE).exists());
    }
}
