//! Bytes to values, counted: nothing is allocated for a length that the rest of the file cannot hold. Must never trust a length.

use std::io::{ErrorKind, Read};

use ring::digest::{Context, SHA256};

use super::{
    HEADER_BYTES_MAX, KEPT_BYTES_MAX, NAME_BYTES_MAX, NUMBERS_MAX, Problem, TEXT_BYTES_MAX, Value,
    shown,
};

/// A key has a length of 8 bytes, a type of 4 and a value of 1 at least.
pub(super) const KEY_BYTES_MIN: u64 = 13;
const SKIP_BYTES: usize = 8 * 1024;

/// Types of metadata values, by their number in the file.
mod kind {
    pub(super) const U8: u32 = 0;
    pub(super) const I8: u32 = 1;
    pub(super) const U16: u32 = 2;
    pub(super) const I16: u32 = 3;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const TEXT: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;
}

/// The header's bytes, with what is left of them.
pub(super) struct Source<R> {
    input: R,
    position: u64,
    end: u64,
    kept: u64,
    tokenizer: Context,
    in_tokenizer: bool,
}

impl<R: Read> Source<R> {
    pub(super) fn new(input: R, file_bytes: u64) -> Self {
        Self {
            input,
            position: 0,
            end: file_bytes.min(HEADER_BYTES_MAX),
            kept: 0,
            tokenizer: Context::new(&SHA256),
            in_tokenizer: false,
        }
    }

    /// Bytes read so far.
    pub(super) const fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn tokenizer_sha256(&self) -> String {
        hex::encode(self.tokenizer.clone().finish().as_ref())
    }

    /// Whether `count` things of at least `bytes_each` can follow.
    pub(super) fn holds(
        &self,
        what: &'static str,
        count: u64,
        max: u64,
        bytes_each: u64,
    ) -> Result<(), Problem> {
        let left = self.end.saturating_sub(self.position);
        let room = left / bytes_each.max(1);
        let limit = if count > room {
            format!("the {left} bytes that follow hold {room} at most")
        } else if count > max {
            format!("{max} is the most that is read")
        } else {
            return Ok(());
        };
        Err(Problem::Count {
            what,
            value: count,
            limit,
        })
    }

    pub(super) fn fill(&mut self, buffer: &mut [u8], what: &'static str) -> Result<(), Problem> {
        let len = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        if len > self.end.saturating_sub(self.position) {
            return Err(Problem::Cut(what));
        }
        self.input.read_exact(buffer).map_err(|error| {
            if error.kind() == ErrorKind::UnexpectedEof {
                Problem::Cut(what)
            } else {
                Problem::Unreadable(error.to_string())
            }
        })?;
        self.position += len;
        if self.in_tokenizer {
            self.tokenizer.update(buffer);
        }
        Ok(())
    }

    pub(super) fn bytes<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Problem> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, Problem> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, Problem> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    /// A key or a tensor's name.
    pub(super) fn name(&mut self, what: &'static str) -> Result<String, Problem> {
        let len = self.u64(what)?;
        self.holds(what, len, NAME_BYTES_MAX, 1)?;
        let bytes = self.keep(len, what)?;
        String::from_utf8(bytes).map_err(|_error| Problem::Damaged(format!("{what} is not UTF-8")))
    }

    /// One key and its value.
    pub(super) fn entry(&mut self) -> Result<(String, Value), Problem> {
        let key = self.name("the name of a key")?;
        self.in_tokenizer =
            key.starts_with("tokenizer.") && !key.starts_with("tokenizer.chat_template");
        if self.in_tokenizer {
            self.tokenizer.update(key.as_bytes());
        }
        let kind = self.u32("the type of a value")?;
        let value = match kind {
            kind::TEXT => self.text()?,
            kind::ARRAY => self.array(&key)?,
            _ => self.scalar(kind, &key)?,
        };
        self.in_tokenizer = false;
        Ok((key, value))
    }

    fn scalar(&mut self, kind: u32, key: &str) -> Result<Value, Problem> {
        let what = "a value";
        let whole =
            |number: i64| u64::try_from(number).map_or(Value::Negative(number), Value::Number);
        Ok(match kind {
            kind::U8 => Value::Number(u64::from(u8::from_le_bytes(self.bytes(what)?))),
            kind::I8 => whole(i64::from(i8::from_le_bytes(self.bytes(what)?))),
            kind::U16 => Value::Number(u64::from(u16::from_le_bytes(self.bytes(what)?))),
            kind::I16 => whole(i64::from(i16::from_le_bytes(self.bytes(what)?))),
            kind::U32 => Value::Number(u64::from(self.u32(what)?)),
            kind::I32 => whole(i64::from(i32::from_le_bytes(self.bytes(what)?))),
            kind::U64 => Value::Number(self.u64(what)?),
            kind::I64 => whole(i64::from_le_bytes(self.bytes(what)?)),
            kind::F32 => Value::Float(f64::from(f32::from_le_bytes(self.bytes(what)?))),
            kind::F64 => Value::Float(f64::from_le_bytes(self.bytes(what)?)),
            kind::BOOL => Value::Bool(self.bytes::<1>(what)? != [0]),
            _ => {
                return Err(Problem::Damaged(format!(
                    "the key {} has a value of the unknown type {kind}",
                    shown(key)
                )));
            }
        })
    }

    fn text(&mut self) -> Result<Value, Problem> {
        let what = "the length of a text";
        let len = self.u64(what)?;
        self.holds(what, len, u64::MAX, 1)?;
        if len > TEXT_BYTES_MAX {
            self.skip(len, "a text")?;
            return Ok(Value::LongText(len));
        }
        let bytes = self.keep(len, "a text")?;
        Ok(Value::Text(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn array(&mut self, key: &str) -> Result<Value, Problem> {
        let kind = self.u32("the type of a list")?;
        let what = "the length of a list";
        let count = self.u64(what)?;
        let size = match kind {
            kind::U8 | kind::I8 | kind::BOOL => 1,
            kind::U16 | kind::I16 => 2,
            kind::U32 | kind::I32 | kind::F32 => 4,
            kind::U64 | kind::I64 | kind::F64 | kind::TEXT => 8,
            kind::ARRAY => {
                return Err(Problem::Damaged(format!(
                    "the key {} is a list of lists, which GGUF readers do not take",
                    shown(key)
                )));
            }
            _ => {
                return Err(Problem::Damaged(format!(
                    "the key {} is a list of the unknown type {kind}",
                    shown(key)
                )));
            }
        };
        self.holds(what, count, u64::MAX, size)?;
        if kind == kind::TEXT {
            for _text in 0..count {
                let len = self.u64("the length of a word")?;
                self.holds("the length of a word", len, u64::MAX, 1)?;
                self.skip(len, "a word")?;
            }
            return Ok(Value::Array(count));
        }
        let floats = matches!(kind, kind::F32 | kind::F64);
        if floats || count > NUMBERS_MAX {
            self.skip(count * size, "a list")?;
            return Ok(Value::Array(count));
        }
        let mut numbers = Vec::new();
        for _number in 0..count {
            numbers.push(match self.scalar(kind, key)? {
                Value::Number(number) => number,
                Value::Bool(yes) => u64::from(yes),
                Value::Negative(_)
                | Value::Float(_)
                | Value::Text(_)
                | Value::LongText(_)
                | Value::Numbers(_)
                | Value::Array(_) => 0,
            });
        }
        self.kept(count * 8)?;
        Ok(Value::Numbers(numbers))
    }

    /// Reads `len` bytes that were held against the rest of the file already.
    fn keep(&mut self, len: u64, what: &'static str) -> Result<Vec<u8>, Problem> {
        self.kept(len)?;
        let mut bytes = vec![0; usize::try_from(len).map_err(|_error| Problem::Cut(what))?];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn kept(&mut self, bytes: u64) -> Result<(), Problem> {
        self.kept = self.kept.saturating_add(bytes);
        if self.kept > KEPT_BYTES_MAX {
            return Err(Problem::Count {
                what: "the size of its names and texts",
                value: self.kept,
                limit: format!("{KEPT_BYTES_MAX} bytes is the most that is read"),
            });
        }
        Ok(())
    }

    fn skip(&mut self, len: u64, what: &'static str) -> Result<(), Problem> {
        let mut left = len;
        let mut buffer = [0; SKIP_BYTES];
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(SKIP_BYTES).min(SKIP_BYTES);
            let part = buffer.get_mut(..step).ok_or(Problem::Cut(what))?;
            self.fill(part, what)?;
            left = left.saturating_sub(u64::try_from(step).unwrap_or(0));
        }
        Ok(())
    }
}
