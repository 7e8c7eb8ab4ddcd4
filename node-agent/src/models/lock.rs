//! The lock file: which model a name stood for when it was first served. A file, tokenizer or template that changed since is refused until
//! somebody accepts it. `models.lock` in the state folder, TOML, made to be read and kept under version control.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use config::settings::node::TierSettings;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::cache;
use super::gguf::Gguf;
use super::hashes::Hashes;
use super::{FileProblem, is_script};

/// The file's name in the state folder.
pub const FILE: &str = "models.lock";
const HEAD: &str = "# Which model each name stands for. Written when a model is first served; a change is refused until it is accepted with\n\
                    # `hearth-node models lock --update NAME`.\n\n";
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// One model as it was when it was pinned.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Where it came from: `user/repo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
    /// The commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The file's name, in the repository if there is one.
    pub file: String,
    /// SHA-256 of the whole file, hex; of a model in several files, of their hashes.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its vocabulary, hex.
    pub tokenizer_sha256: String,
    /// SHA-256 of its chat template, hex; empty if it has none.
    pub template_sha256: String,
}

impl Pin {
    /// What the file is now. `sha256` is the whole file's.
    fn of(path: &Path, gguf: &Gguf, sha256: String) -> Self {
        // The cache's names are links: the name tells more than the blob.
        let mut origin = cache::origin(path).unwrap_or_default();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        Self {
            repo: origin.remove("repo"),
            revision: origin.remove("revision"),
            file: origin.remove("file").unwrap_or(name),
            sha256,
            bytes: gguf.file_bytes,
            tokenizer_sha256: gguf.tokenizer_sha256.clone(),
            template_sha256: template_sha256(gguf),
        }
    }

    fn of_script(path: &Path) -> Self {
        let text = path.as_os_str().as_encoded_bytes();
        Self {
            repo: None,
            revision: None,
            file: "script".to_owned(),
            sha256: hex::encode(digest(&SHA256, text).as_ref()),
            bytes: 0,
            tokenizer_sha256: String::new(),
            template_sha256: String::new(),
        }
    }

    /// A word for `system_fingerprint` that changes with anything that changes answers.
    pub fn fingerprint(&self) -> String {
        let text = format!(
            "{}\0{}\0{}",
            self.sha256, self.tokenizer_sha256, self.template_sha256
        );
        hex::encode(digest(&SHA256, text.as_bytes()).as_ref())
    }
}

fn template_sha256(gguf: &Gguf) -> String {
    gguf.chat_template()
        .map(|template| hex::encode(digest(&SHA256, template.as_bytes()).as_ref()))
        .unwrap_or_default()
}

/// Why a model is not served.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The file cannot be read or is no model.
    #[error(transparent)]
    File(#[from] FileProblem),
    /// It changed.
    #[error(
        "{name} is not the model it was: its {what} was {locked} and is {found} now. If that is meant, accept it with \
         `hearth-node models lock --update {name}`; if not, fetch the model again"
    )]
    Drift {
        /// The model's name.
        name: String,
        /// What changed.
        what: &'static str,
        /// As pinned.
        locked: String,
        /// As found.
        found: String,
    },
    /// The lock file is damaged.
    #[error("{} is damaged: {reason}; correct it, or delete it to pin all models anew", path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It cannot be read or written, or the model cannot be hashed.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The node is stopping.
    #[error("stopped before the model was hashed")]
    Stopped,
}

/// All pins, by the name that clients use.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// The models.
    #[serde(default)]
    pub models: BTreeMap<String, Pin>,
}

impl Lock {
    /// Reads the file; none is an empty one.
    pub fn read(state_dir: &Path) -> Result<Self, LockError> {
        let path = state_dir.join(FILE);
        let text = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Ok(meta) if meta.len() > FILE_BYTES_MAX => Err(io::Error::other("larger than 1 MiB")),
            Ok(_) => fs::read_to_string(&path),
            Err(error) => Err(error),
        };
        let text = text.map_err(|source| LockError::Io {
            path: path.clone(),
            source,
        })?;
        toml::from_str(&text).map_err(|error| LockError::Damaged {
            path,
            reason: error.to_string().trim().to_owned(),
        })
    }

    /// Writes the file, whole or not at all.
    pub fn write(&self, state_dir: &Path) -> Result<(), LockError> {
        let path = state_dir.join(FILE);
        let text = toml::to_string_pretty(self).map_err(io::Error::other);
        let written = text.and_then(|text| {
            crate::files::make_private_dir(state_dir)?;
            crate::files::replace(&path, format!("{HEAD}{text}").as_bytes())
        });
        written.map_err(|source| LockError::Io { path, source })
    }
}

/// The name under which a tier's model is pinned: its id, and the tier where another one gives the same id to another file (two
/// quantisations of one model).
pub fn name_of<'a>(mine: &TierSettings, all: impl IntoIterator<Item = &'a TierSettings>) -> String {
    let id = &mine.model_id;
    let mut others = all.into_iter().filter(|other| other.tier != mine.tier);
    if others.any(|other| other.model_id == *id && other.model != mine.model) {
        format!("{id}@{}", mine.tier)
    } else {
        id.clone()
    }
}

/// Pins models and holds them to it; one for a process.
#[derive(Debug)]
pub struct Keeper {
    state_dir: PathBuf,
    hashes: Mutex<Hashes>,
}

impl Keeper {
    /// With the lock file and the known hashes of `state_dir`.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            hashes: Mutex::new(Hashes::open(state_dir)),
        }
    }

    /// What `path` is, if `name` may be served from it: pinned now, or as it was pinned. Blocks while a file is hashed that is new or was
    /// touched (seconds for each ten gigabytes); one of the same size and time is known. A script is what it says and is never pinned.
    pub fn admit(
        &self,
        name: &str,
        path: &Path,
        stop: &CancellationToken,
    ) -> Result<Pin, LockError> {
        if is_script(path) {
            return Ok(Pin::of_script(path));
        }
        let gguf = Gguf::open_whole(path)?;
        let mut lock = Lock::read(&self.state_dir)?;
        // What the header shows is compared before tens of gigabytes are read.
        if let Some(pin) = lock.models.get(name) {
            held(
                name,
                "tokenizer hash",
                &pin.tokenizer_sha256,
                &gguf.tokenizer_sha256,
            )?;
            held(
                name,
                "template hash",
                &pin.template_sha256,
                &template_sha256(&gguf),
            )?;
        }
        let found = self.look(path, &gguf, stop)?;
        if let Some(pin) = lock.models.get(name) {
            held(name, "SHA-256", &pin.sha256, &found.sha256)?;
            return Ok(pin.clone());
        }
        // Another tier may have written meanwhile: under the lock, from the file.
        let _turn = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        lock = Lock::read(&self.state_dir)?;
        lock.models.insert(name.to_owned(), found.clone());
        lock.write(&self.state_dir)?;
        Ok(found)
    }

    /// How `name` was pinned, if it was; looks at nothing but the lock file.
    pub fn pinned(&self, name: &str) -> Option<Pin> {
        Lock::read(&self.state_dir).ok()?.models.remove(name)
    }

    /// Accepts what `path` is now; gives the pin before, if it was another.
    pub fn update(
        &self,
        name: &str,
        path: &Path,
        stop: &CancellationToken,
    ) -> Result<(Option<Pin>, Pin), LockError> {
        let gguf = Gguf::open_whole(path)?;
        let found = self.look(path, &gguf, stop)?;
        let mut lock = Lock::read(&self.state_dir)?;
        let before = lock.models.insert(name.to_owned(), found.clone());
        lock.write(&self.state_dir)?;
        Ok((before.filter(|pin| *pin != found), found))
    }

    fn look(&self, path: &Path, gguf: &Gguf, stop: &CancellationToken) -> Result<Pin, LockError> {
        let mut hashes = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        for part in super::parts(path) {
            let sha256 = hashes.sha256(&part, stop).map_err(|source| LockError::Io {
                path: part.clone(),
                source,
            })?;
            found.push(sha256.ok_or(LockError::Stopped)?);
        }
        let sha256 = match found.as_slice() {
            [one] => one.clone(),
            // A model in several files is known by the hash of their hashes, one a line.
            parts => hex::encode(digest(&SHA256, parts.join("\n").as_bytes()).as_ref()),
        };
        Ok(Pin::of(path, gguf, sha256))
    }
}

fn held(name: &str, what: &'static str, locked: &str, found: &str) -> Result<(), LockError> {
    if locked == found {
        return Ok(());
    }
    let shown = |hash: &str| {
        if hash.is_empty() {
            "none".to_owned()
        } else {
            hash.to_owned()
        }
    };
    Err(LockError::Drift {
        name: name.to_owned(),
        what,
        locked: shown(locked),
        found: shown(found),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/models")
            .join(name)
    }

    #[test]
    fn a_model_is_pinned_when_first_served_and_another_file_is_refused_until_accepted() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("m.gguf");
        fs::copy(model("tiny-fast-q8_0.gguf"), &path).expect("copies");
        let keeper = Keeper::new(folder.path());
        let run = CancellationToken::new();
        let first = keeper.admit("m", &path, &run).expect("is new");
        assert_eq!(keeper.admit("m", &path, &run).expect("is the same"), first);
        assert!(
            fs::read_to_string(folder.path().join(FILE))
                .expect("reads")
                .contains("[models.m]")
        );

        fs::copy(model("tiny-heavy-q8_0.gguf"), &path).expect("copies");
        let text = keeper
            .admit("m", &path, &run)
            .expect_err("drifted")
            .to_string();
        let (_before, now) = keeper.update("other", &path, &run).expect("pins");
        assert!(
            text.contains(&first.sha256) && text.contains(&now.sha256),
            "{text}"
        );
        assert!(
            text.contains("hearth-node models lock --update m"),
            "{text}"
        );
        let (before, accepted) = keeper.update("m", &path, &run).expect("accepts");
        assert_eq!(before, Some(first.clone()));
        assert_eq!(
            keeper.admit("m", &path, &run).expect("is accepted"),
            accepted
        );
        assert_ne!(first.fingerprint(), accepted.fingerprint());
    }

    #[test]
    fn a_damaged_lock_file_serves_nothing_and_says_where() {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join(FILE), "[models.m]\nsha256 = 5\n").expect("writes");
        let keeper = Keeper::new(folder.path());
        let error = keeper.admit(
            "m",
            &model("tiny-fast-q8_0.gguf"),
            &CancellationToken::new(),
        );
        let text = error.expect_err("is damaged").to_string();
        assert!(text.contains(FILE) && text.contains("line 2"), "{text}");
    }

    #[test]
    fn a_pin_remembers_repository_and_commit() {
        let folder = tempfile::tempdir().expect("folder");
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let path = folder
            .path()
            .join("models--me--m/snapshots")
            .join(commit)
            .join("m.gguf");
        fs::create_dir_all(path.parent().expect("has one")).expect("makes");
        fs::copy(model("tiny-fast-q8_0.gguf"), &path).expect("copies");
        let pin = Keeper::new(folder.path())
            .admit("m", &path, &CancellationToken::new())
            .expect("pins");
        assert_eq!(
            (
                pin.repo.as_deref(),
                pin.revision.as_deref(),
                pin.file.as_str()
            ),
            (Some("me/m"), Some(commit), "m.gguf")
        );
    }
}
