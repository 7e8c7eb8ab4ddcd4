//! A model file with 262,144 tokens and no weights: enough for a grammar to be followed.

use std::fs::File;
use std::io;
use std::io::BufWriter;
use std::io::Write;
use std::path::Path;

/// As many as Gemma has.
pub(super) const TOKENS: u32 = 262_144;

const STRING: u32 = 8;
const ARRAY: u32 = 9;
const UINT: u32 = 4;
const FLOAT: u32 = 6;
const INT: u32 = 5;

/// The text of a token: bytes first, then the characters of JSON, then words.
fn text(id: u32) -> String {
    match id {
        0 => "<unk>".to_owned(),
        1 => "<s>".to_owned(),
        2 => "</s>".to_owned(),
        3..=258 => format!("<0x{:02X}>", id - 3),
        259..=353 => char::from_u32(id - 259 + 32).unwrap_or('?').to_string(),
        word => {
            let letters = (0..4_u32).map(|place| (word >> (place * 4)) & 15);
            let letters = letters.filter_map(|letter| char::from_u32(u32::from('a') + letter));
            let text: String = letters.collect();
            format!("{text}{}", word >> 16)
        }
    }
}

/// 2 is unknown, 3 control, 6 a byte, 1 a word.
const fn kind(id: u32) -> u32 {
    match id {
        0 => 2,
        1 | 2 => 3,
        3..=258 => 6,
        _ => 1,
    }
}

struct Writer(BufWriter<File>);

impl Writer {
    fn number(&mut self, value: u32) -> io::Result<()> {
        self.0.write_all(&value.to_le_bytes())
    }

    fn string(&mut self, text: &str) -> io::Result<()> {
        let length = u64::try_from(text.len()).unwrap_or(0);
        self.0.write_all(&length.to_le_bytes())?;
        self.0.write_all(text.as_bytes())
    }

    fn key(&mut self, key: &str, kind: u32) -> io::Result<()> {
        self.string(key)?;
        self.number(kind)
    }

    fn list(&mut self, key: &str, kind: u32) -> io::Result<()> {
        self.key(key, ARRAY)?;
        self.number(kind)?;
        self.0.write_all(&u64::from(TOKENS).to_le_bytes())
    }
}

/// Writes the file.
pub(super) fn write(path: &Path) -> io::Result<()> {
    let texts = [
        ("general.architecture", "llama"),
        ("tokenizer.ggml.model", "llama"),
    ];
    let numbers = [
        ("llama.context_length", 64),
        ("llama.embedding_length", 64),
        ("llama.block_count", 1),
        ("llama.feed_forward_length", 64),
        ("llama.attention.head_count", 1),
        ("tokenizer.ggml.bos_token_id", 1),
        ("tokenizer.ggml.eos_token_id", 2),
        ("tokenizer.ggml.unknown_token_id", 0),
    ];
    let mut file = Writer(BufWriter::new(File::create(path)?));
    file.0.write_all(b"GGUF")?;
    file.number(3)?;
    file.0.write_all(&0_u64.to_le_bytes())?;
    let keys = texts.len() + numbers.len() + 4;
    file.0
        .write_all(&u64::try_from(keys).unwrap_or(0).to_le_bytes())?;
    for (key, value) in texts {
        file.key(key, STRING)?;
        file.string(value)?;
    }
    for (key, value) in numbers {
        file.key(key, UINT)?;
        file.number(value)?;
    }
    file.key("llama.attention.layer_norm_rms_epsilon", FLOAT)?;
    file.number(1e-5_f32.to_bits())?;
    file.list("tokenizer.ggml.tokens", STRING)?;
    for id in 0..TOKENS {
        file.string(&text(id))?;
    }
    file.list("tokenizer.ggml.scores", FLOAT)?;
    for _id in 0..TOKENS {
        file.number(0)?;
    }
    file.list("tokenizer.ggml.token_type", INT)?;
    for id in 0..TOKENS {
        file.number(kind(id))?;
    }
    file.0.flush()
}
