//! Reads the header of a GGUF file: metadata and tensor infos, never a weight. The file is a stranger's: every count is held against the
//! bytes that are left before anything is allocated for it, what is kept is bounded, and nothing here can panic.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod file_type;
mod read;
mod tensor;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use super::FileProblem;
use read::Source;
pub use tensor::{Tensor, TensorType};

/// A tensor's data begins at a multiple of this, unless `general.alignment` says otherwise.
const ALIGNMENT_DEFAULT: u64 = 32;
const ALIGNMENT_KEY: &str = "general.alignment";
/// The largest header seen (a vocabulary of 262,144 words with its merges) has 16 MB.
const HEADER_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Real files have some 40 keys and some 2,000 tensors; a mixture of experts stored one by one, 40,000.
const KEYS_MAX: u64 = 65_536;
const TENSORS_MAX: u64 = 262_144;
/// A key, and a tensor's name.
const NAME_BYTES_MAX: u64 = 65_535;
/// Texts are kept up to this size: chat templates reach 60 KB.
const TEXT_BYTES_MAX: u64 = 1024 * 1024;
/// All that is kept of one file.
const KEPT_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Numbers of an array are kept up to this count: one a layer, not one a word.
const NUMBERS_MAX: u64 = 4_096;

/// What is wrong with a GGUF file. Reads after the file's name.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Problem {
    /// It starts with something else.
    #[error("is not a GGUF file: it does not start with GGUF")]
    NotGguf,
    /// A pointer of Git LFS instead of the file.
    #[error(
        "is not a GGUF file but the pointer of Git LFS to one: fetch it with `git lfs pull`, or with `hearth-node pull`"
    )]
    LfsPointer,
    /// It is older or newer than what can be read.
    #[error("is GGUF version {0}; versions 2 and 3 can be read")]
    Version(u32),
    /// It is written for machines of the other byte order.
    #[error("is a big-endian GGUF file; this machine needs the little-endian one")]
    BigEndian,
    /// It ends too early.
    #[error("ends within {0}: the file is cut short; download it again")]
    Cut(&'static str),
    /// A count or a length cannot be true.
    #[error("is damaged: {what} is {value}, but {limit}")]
    Count {
        /// Of what.
        what: &'static str,
        /// As the file has it.
        value: u64,
        /// Why that cannot be.
        limit: String,
    },
    /// A value is not what it has to be.
    #[error("is damaged: {0}")]
    Damaged(String),
    /// The file could not be read further.
    #[error("cannot be read: {0}")]
    Unreadable(String),
}

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any whole number that is not negative.
    Number(u64),
    /// A whole number below 0.
    Negative(i64),
    /// A float of either size.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A text; bytes that are not UTF-8 were replaced.
    Text(String),
    /// A text that is too long to be kept, and its bytes.
    LongText(u64),
    /// Numbers or booleans, few enough to be kept.
    Numbers(Vec<u64>),
    /// Anything else with several entries: how many.
    Array(u64),
}

/// The header of a GGUF file.
#[derive(Clone, Debug, PartialEq)]
pub struct Gguf {
    /// 2 or 3.
    pub version: u32,
    /// All keys.
    pub metadata: BTreeMap<String, Value>,
    /// All tensors, in the file's order.
    pub tensors: Vec<Tensor>,
    /// Where the first tensor's data begins, bytes from the start.
    pub data_offset: u64,
    /// The file's size.
    pub file_bytes: u64,
    /// SHA-256 over all keys and values of `tokenizer.` except the chat template, hex: two files with the same hash count tokens alike.
    pub tokenizer_sha256: String,
}

impl Gguf {
    /// Reads the header of a file.
    pub fn open(path: &Path) -> Result<Self, FileProblem> {
        let unreadable = |source| FileProblem::Unreadable {
            path: path.to_owned(),
            source,
        };
        let meta = std::fs::metadata(path).map_err(unreadable)?;
        if !meta.is_file() {
            return Err(FileProblem::NotAFile(path.to_owned()));
        }
        let file = File::open(path).map_err(unreadable)?;
        Self::read(BufReader::with_capacity(256 * 1024, file), meta.len()).map_err(|problem| {
            FileProblem::Gguf {
                path: path.to_owned(),
                problem,
            }
        })
    }

    /// Reads the headers of a model that may lie in several files; its tensors and bytes are those of all of them. Their places within a
    /// file mean nothing then.
    pub fn open_whole(path: &Path) -> Result<Self, FileProblem> {
        let mut whole = Self::open(path)?;
        for part in super::parts(path).iter().filter(|part| *part != path) {
            let more = Self::open(part)?;
            whole.tensors.extend(more.tensors);
            whole.file_bytes = whole.file_bytes.saturating_add(more.file_bytes);
        }
        Ok(whole)
    }

    /// Reads a header from the first bytes of `file_bytes`.
    pub fn read(input: impl std::io::Read, file_bytes: u64) -> Result<Self, Problem> {
        let mut source = Source::new(input, file_bytes);
        let version = version(&mut source)?;
        let tensor_count = source.u64("the count of tensors")?;
        let key_count = source.u64("the count of keys")?;
        source.holds(
            "the count of keys",
            key_count,
            KEYS_MAX,
            read::KEY_BYTES_MIN,
        )?;
        source.holds(
            "the count of tensors",
            tensor_count,
            TENSORS_MAX,
            tensor::BYTES_MIN,
        )?;
        let mut metadata = BTreeMap::new();
        for _key in 0..key_count {
            let (key, value) = source.entry()?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(Problem::Damaged(format!(
                    "the key {} comes twice",
                    shown(&key)
                )));
            }
        }
        let alignment = alignment(&metadata)?;
        let tensors = tensor::read_all(&mut source, tensor_count)?;
        let data_offset = source
            .position()
            .checked_next_multiple_of(alignment)
            .ok_or(Problem::Cut("the padding after the header"))?;
        let gguf = Self {
            version,
            metadata,
            tensors,
            data_offset,
            file_bytes,
            tokenizer_sha256: source.tokenizer_sha256(),
        };
        gguf.check_places(alignment)?;
        Ok(gguf)
    }

    /// A text of the metadata.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key)? {
            Value::Text(text) => Some(text),
            Value::Number(_)
            | Value::Negative(_)
            | Value::Float(_)
            | Value::Bool(_)
            | Value::LongText(_)
            | Value::Numbers(_)
            | Value::Array(_) => None,
        }
    }

    /// A whole number of the metadata; for an array, its largest entry.
    pub fn number(&self, key: &str) -> Option<u64> {
        match self.metadata.get(key)? {
            Value::Number(number) => Some(*number),
            Value::Bool(yes) => Some(u64::from(*yes)),
            Value::Numbers(numbers) => numbers.iter().copied().max(),
            Value::Negative(_)
            | Value::Float(_)
            | Value::Text(_)
            | Value::LongText(_)
            | Value::Array(_) => None,
        }
    }

    /// An entry for each layer: one number stands for all.
    pub fn per_layer(&self, key: &str, layer: usize) -> Option<u64> {
        match self.metadata.get(key)? {
            Value::Numbers(numbers) => numbers.get(layer).copied(),
            Value::Number(_)
            | Value::Negative(_)
            | Value::Float(_)
            | Value::Bool(_)
            | Value::Text(_)
            | Value::LongText(_)
            | Value::Array(_) => self.number(key),
        }
    }

    /// How many entries an array has.
    pub fn array_len(&self, key: &str) -> Option<u64> {
        match self.metadata.get(key)? {
            Value::Array(len) => Some(*len),
            Value::Numbers(numbers) => u64::try_from(numbers.len()).ok(),
            Value::Number(_)
            | Value::Negative(_)
            | Value::Float(_)
            | Value::Bool(_)
            | Value::Text(_)
            | Value::LongText(_) => None,
        }
    }

    /// `general.architecture`, such as `gemma4`.
    pub fn architecture(&self) -> Option<&str> {
        self.text("general.architecture")
    }

    /// A number of the architecture: `key` is what follows `gemma4.`.
    pub fn arch_number(&self, key: &str) -> Option<u64> {
        self.number(&format!("{}.{key}", self.architecture()?))
    }

    /// How the weights are quantised, as llama.cpp names it, such as `Q4_K_M`; from `general.file_type`.
    pub fn quantisation(&self) -> Option<&'static str> {
        file_type::name(self.number("general.file_type")?)
    }

    /// The chat template, if there is one.
    pub fn chat_template(&self) -> Option<&str> {
        self.text("tokenizer.chat_template")
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors
            .iter()
            .fold(0, |sum, tensor| sum.saturating_add(tensor.bytes))
    }

    /// Numbers in all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors
            .iter()
            .fold(0, |sum, tensor| sum.saturating_add(tensor.elements))
    }

    /// Every tensor lies within the file.
    fn check_places(&self, alignment: u64) -> Result<(), Problem> {
        for tensor in &self.tensors {
            let name = shown(&tensor.name);
            if tensor.offset % alignment != 0 {
                return Err(Problem::Damaged(format!(
                    "the tensor {name} begins at {}, which is no multiple of {alignment}",
                    tensor.offset
                )));
            }
            let end = self
                .data_offset
                .checked_add(tensor.offset)
                .and_then(|start| start.checked_add(tensor.bytes));
            if end.is_none_or(|end| end > self.file_bytes) {
                return Err(Problem::Damaged(format!(
                    "the tensor {name} ends beyond the file, which has {} bytes: the file is cut short; download it again",
                    self.file_bytes
                )));
            }
        }
        Ok(())
    }
}

fn version<R: std::io::Read>(source: &mut Source<R>) -> Result<u32, Problem> {
    let magic: [u8; 4] = source
        .bytes("its first bytes")
        .map_err(|_cut| Problem::NotGguf)?;
    if &magic == b"vers" {
        return Err(Problem::LfsPointer);
    }
    if &magic != b"GGUF" {
        return Err(Problem::NotGguf);
    }
    let version = source.u32("its version")?;
    match version {
        2 | 3 => Ok(version),
        _ if matches!(version.swap_bytes(), 1..=3) => Err(Problem::BigEndian),
        _ => Err(Problem::Version(version)),
    }
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, Problem> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(ALIGNMENT_DEFAULT),
        Some(Value::Number(alignment)) if alignment.is_power_of_two() && *alignment <= 1 << 20 => {
            Ok(*alignment)
        }
        Some(other) => Err(Problem::Damaged(format!(
            "{ALIGNMENT_KEY} is {other:?}; it must be a power of two up to 1048576"
        ))),
    }
}

/// A name from the file, short and harmless on a terminal.
fn shown(name: &str) -> String {
    let mut short: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
    if short.len() < name.len() {
        short.push('…');
    }
    short
}
