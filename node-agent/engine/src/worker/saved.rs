//! Read prompts that survive a restart of the worker, in a private folder.
//!
//! The files hold what users wrote, so only their owner may read them, and they are deleted as soon as they are read back.
//! llama.cpp parses them in C++ and trusts them, so nothing is handed to it that is not, byte for byte, what was written for
//! the same model and settings.

use std::fs;
use std::fs::DirBuilder;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use ring::digest::Context;
use ring::digest::SHA256;
use scheduler::Kept;
use scheduler::Links;
use scheduler::SlotId;
use scheduler::Slots;
use scheduler::Token;
use scheduler::Wall;
use serde::Deserialize;
use serde::Serialize;

use super::answer::Answer;
use super::reuse::Reuse;
use crate::engine::Engine;
use crate::engine::Snapshot;
use crate::spec::LoadSpec;

/// Raised when the layout changes.
const VERSION: u32 = 1;
const INDEX: &str = "prompts.json";
/// Writing may take so long; the agent waits a little longer for the end of the process.
const SAVE_MAX: Duration = Duration::from_secs(2);
/// More than this is not worth the wait at the start.
const ENTRIES_MAX: usize = 64;
/// The index of that many prompts of a million tokens.
const INDEX_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// A model is known by its length and this much at each of its ends and at places between.
const SAMPLE_BYTES: usize = 1024 * 1024;
const SAMPLES: u64 = 16;

/// A folder of read prompts.
pub(super) struct Saved {
    folder: PathBuf,
    /// The model and what else decides the meaning of a state.
    model: String,
}

#[derive(Deserialize, Serialize)]
struct Index {
    version: u32,
    model: String,
    /// Most recently used first.
    entries: Vec<Entry>,
}

#[derive(Deserialize, Serialize)]
struct Entry {
    file: String,
    wall: String,
    tokens: Vec<i32>,
    /// Which conversations they are: a link, and the tokens that it needs.
    #[serde(default)]
    links: Vec<(u64, usize)>,
    sha256: String,
}

impl Saved {
    /// The folder of `spec`; `None` if it names none or it cannot be used.
    pub(super) fn open(spec: &LoadSpec) -> Option<Self> {
        let folder = spec.state_dir.clone()?;
        let opened = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .and_then(|()| fingerprint(spec));
        match opened {
            Ok(model) => Some(Self { folder, model }),
            Err(error) => {
                tracing::warn!(%error, folder = %folder.display(), "prompts will not survive a restart");
                None
            }
        }
    }

    /// Reads back what was saved, through a slot that is idle and empty, and deletes the files.
    pub(super) fn restore(&self, engine: &mut dyn Engine, reuse: &mut Reuse) {
        let path = self.folder.join(INDEX);
        let index = match read_index(&path) {
            Ok(Some(index)) => index,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, file = %path.display(), "saved prompts are ignored: their index cannot be read");
                self.delete(&[]);
                return;
            }
        };
        if index.version != VERSION || index.model != self.model {
            tracing::info!(file = %path.display(), "saved prompts are ignored: they are of another model or other settings");
        } else {
            let restored = index
                .entries
                .iter()
                .rev()
                .filter(|entry| self.restore_one(engine, reuse, entry))
                .count();
            tracing::info!(restored, of = index.entries.len(), "saved prompts are back");
        }
        self.delete(&index.entries);
    }

    /// Writes the caches of all slots and what host memory holds, as much as time allows; `engine` is not used afterwards.
    pub(super) fn save(&self, engine: &mut dyn Engine, slots: &Slots<Answer>, reuse: &mut Reuse) {
        let begun = Instant::now();
        for slot in slots.iter() {
            reuse.keep(engine, slots, slot.id());
        }
        let mut entries = Vec::new();
        // What stands for a picture means something only together with this projector.
        let plain = |kept: &&Kept<Snapshot>| kept.tokens.iter().all(|token| token.0 >= 0);
        let kept = reuse.iter().filter(plain).take(ENTRIES_MAX);
        for (number, kept) in kept.enumerate() {
            if begun.elapsed() > SAVE_MAX {
                break;
            }
            if !engine.restore(SlotId(0), &kept.state) {
                continue;
            }
            let file = format!("{number}.state");
            match self.save_one(engine, &kept.tokens, &file) {
                Ok(sha256) => entries.push(Entry {
                    file,
                    wall: format!("{:032x}", kept.wall.0),
                    tokens: kept.tokens.iter().map(|token| token.0).collect(),
                    links: kept.links.iter().collect(),
                    sha256,
                }),
                Err(error) => tracing::warn!(%error, file, "a read prompt could not be saved"),
            }
        }
        let index = Index {
            version: VERSION,
            model: self.model.clone(),
            entries,
        };
        if let Err(error) = self.write_index(&index) {
            tracing::warn!(%error, "read prompts could not be saved");
            self.delete(&index.entries);
        }
    }

    fn save_one(&self, engine: &dyn Engine, tokens: &[Token], file: &str) -> io::Result<String> {
        let path = self.folder.join(file);
        // llama.cpp writes into what is there, so it is private from the first byte.
        drop(private(&path)?);
        let saved = engine.save(SlotId(0), tokens, &path);
        saved.map_err(io::Error::other)?;
        sha256(&path)
    }

    fn write_index(&self, index: &Index) -> io::Result<()> {
        let new = self.folder.join("prompts.json.new");
        let mut file = private(&new)?;
        serde_json::to_writer(&mut file, index)?;
        file.flush()?;
        fs::rename(new, self.folder.join(INDEX))
    }

    fn restore_one(&self, engine: &mut dyn Engine, reuse: &mut Reuse, entry: &Entry) -> bool {
        let restored = self.check(entry).and_then(|(path, wall)| {
            let n_vocab = engine.card().n_vocab;
            let known = |token: &i32| u32::try_from(*token).is_ok_and(|id| id < n_vocab);
            if !entry.tokens.iter().all(known) {
                return Err("it has tokens that the model does not know".to_owned());
            }
            let tokens: Vec<Token> = entry.tokens.iter().copied().map(Token).collect();
            engine.load(SlotId(0), &tokens, &path)?;
            let taken = engine.snapshot(SlotId(0), &tokens);
            engine.keep_prefix(SlotId(0), 0);
            let state = taken.ok_or("its state cannot be copied")?;
            let links = Links::saved(&entry.links);
            reuse.insert(wall, (tokens, links), state);
            Ok(())
        });
        if let Err(reason) = &restored {
            tracing::warn!(file = entry.file, reason, "a saved prompt is ignored");
        }
        restored.is_ok()
    }

    /// Whether a file is what was written.
    fn check(&self, entry: &Entry) -> Result<(PathBuf, Wall), String> {
        let plain = entry
            .file
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'.');
        if !plain || entry.file.starts_with('.') {
            return Err("it has no plain name".to_owned());
        }
        let wall = u128::from_str_radix(&entry.wall, 16).map_err(|error| error.to_string())?;
        let path = self.folder.join(&entry.file);
        let found = sha256(&path).map_err(|error| error.to_string())?;
        if found != entry.sha256 {
            return Err("it is not as it was written: the SHA-256 differs".to_owned());
        }
        Ok((path, Wall(wall)))
    }

    fn delete(&self, entries: &[Entry]) {
        let files = entries.iter().map(|entry| entry.file.as_str());
        for file in files.chain([INDEX]) {
            if let Err(error) = fs::remove_file(self.folder.join(file))
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, file, "a saved prompt cannot be deleted");
            }
        }
    }
}

fn read_index(path: &Path) -> io::Result<Option<Index>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(INDEX_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(Some(serde_json::from_slice(&bytes)?))
}

/// A new or emptied file that only its owner may read.
fn private(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Context::new(&SHA256);
    let mut chunk = vec![0; SAMPLE_BYTES];
    loop {
        let read = file.read(&mut chunk)?;
        match chunk.get(..read).filter(|bytes| !bytes.is_empty()) {
            Some(bytes) => hash.update(bytes),
            None => return Ok(hex(hash)),
        }
    }
}

/// Names the model, and the settings that decide what the numbers in a state mean.
///
/// A whole model is tens of gigabytes, so only its length and places spread over it are hashed.
fn fingerprint(spec: &LoadSpec) -> io::Result<String> {
    use std::os::unix::fs::FileExt;

    let file = File::open(&spec.model_path)?;
    let length = file.metadata()?.len();
    let mut hash = Context::new(&SHA256);
    hash.update(&length.to_le_bytes());
    let mut sample = vec![0; SAMPLE_BYTES];
    let last = length.saturating_sub(u64::try_from(SAMPLE_BYTES).unwrap_or(u64::MAX));
    for place in 0..=SAMPLES {
        let read = file.read_at(&mut sample, last / SAMPLES * place)?;
        hash.update(sample.get(..read).unwrap_or_default());
    }
    let settings = format!(
        "{:?} {:?} {} {} {}",
        spec.kv_type,
        spec.flash_attention,
        spec.n_ctx,
        spec.swa_full,
        env!("CARGO_PKG_VERSION")
    );
    hash.update(settings.as_bytes());
    Ok(hex(hash))
}

fn hex(hash: Context) -> String {
    let digit = |half: u8| char::from_digit(u32::from(half), 16).unwrap_or('0');
    let hash = hash.finish();
    let bytes = hash.as_ref().iter();
    bytes
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}
