//! Finds the words of the lexicon in a text: an index over it, built once. Knows no language.

use std::collections::BTreeMap;
use std::sync::LazyLock;

pub(super) use super::lexicon::Hint;
use super::lexicon::{CJK, WORDS};

#[derive(Debug)]
struct Entry {
    text: &'static [u8],
    open_end: bool,
    hint: Hint,
}

/// Entries that begin with the same two letters, by the third: most words end here, after a look at a few bytes that lie together.
#[derive(Debug, Default)]
struct Bucket {
    /// The third bytes that there are, each once.
    thirds: Vec<u8>,
    /// For each of these its entries.
    entries: Vec<Vec<Entry>>,
    /// Those that have no third letter.
    short: Vec<Entry>,
}

impl Bucket {
    /// Of entries that come longest first.
    fn of(entries: Vec<Entry>) -> Self {
        let mut bucket = Self::default();
        for entry in entries {
            let Some(third) = entry.text.get(2).copied() else {
                bucket.short.push(entry);
                continue;
            };
            let place = bucket.thirds.iter().position(|known| *known == third);
            if let Some(same) = place.and_then(|place| bucket.entries.get_mut(place)) {
                same.push(entry);
            } else {
                bucket.thirds.push(third);
                bucket.entries.push(vec![entry]);
            }
        }
        bucket
    }

    /// Whatever may begin with a word whose third letter is this.
    fn with(&self, third: u8) -> impl Iterator<Item = &Entry> {
        let place = self.thirds.iter().position(|known| *known == third);
        let longer = place.and_then(|place| self.entries.get(place));
        longer.into_iter().flatten().chain(&self.short)
    }
}

/// The entries by the first two letters of a word, or the first character of a CJK term; longest first, so that
/// `step by step plan` wins over `step by step`.
#[derive(Debug)]
struct Index {
    /// For each pair of letters one more than the bucket's number, or 0: most words of a text end here, after one look.
    pairs: Vec<u16>,
    buckets: Vec<Bucket>,
    /// The same for the first character of a CJK term; they all lie below U+10000.
    characters: Vec<u16>,
    terms: Vec<Vec<Entry>>,
}

static INDEX: LazyLock<Index> = LazyLock::new(Index::build);

impl Index {
    fn build() -> Self {
        let (pairs, buckets) = bucketed(WORDS, |entry| pair(entry.text));
        let (characters, terms) = bucketed(CJK, |entry| {
            let text = std::str::from_utf8(entry.text).unwrap_or_default();
            text.chars().next().map_or(0, place)
        });
        Self {
            pairs,
            buckets: buckets.into_iter().map(Bucket::of).collect(),
            characters,
            terms,
        }
    }
}

/// Every entry in the bucket of its key; for each key the number of its bucket, or 0.
fn bucketed(
    table: &'static [(Hint, &'static str)],
    key: impl Fn(&Entry) -> usize,
) -> (Vec<u16>, Vec<Vec<Entry>>) {
    let mut by_key: BTreeMap<usize, Vec<Entry>> = BTreeMap::new();
    for (hint, text) in flat(table) {
        let entry = Entry::new(hint, text);
        by_key.entry(key(&entry)).or_default().push(entry);
    }
    let mut numbers = vec![0; 1 << 16];
    for (number, key) in by_key.keys().enumerate() {
        if let (Some(slot), Ok(number)) = (numbers.get_mut(*key), u16::try_from(number + 1)) {
            *slot = number;
        }
    }
    let mut buckets: Vec<Vec<Entry>> = by_key.into_values().collect();
    for bucket in &mut buckets {
        bucket.sort_by_key(|entry| std::cmp::Reverse(entry.text.len()));
    }
    (numbers, buckets)
}

/// Where a character stands in the index.
fn place(character: char) -> usize {
    usize::try_from(u32::from(character)).unwrap_or(usize::MAX)
}

impl Entry {
    fn new(hint: Hint, text: &'static str) -> Self {
        let stem = text.strip_suffix('*');
        Self {
            text: stem.unwrap_or(text).as_bytes(),
            open_end: stem.is_some(),
            hint,
        }
    }
}

fn flat(table: &'static [(Hint, &'static str)]) -> impl Iterator<Item = (Hint, &'static str)> {
    table
        .iter()
        .flat_map(|(hint, list)| list.split('|').map(move |text| (*hint, text)))
}

/// The hint of the phrase that starts at the start of `rest`, which is the start of a word, and the phrase's bytes.
pub(crate) fn word(rest: &[u8]) -> Option<(Hint, usize)> {
    let number = usize::from(*INDEX.pairs.get(pair(rest))?);
    let bucket = INDEX.buckets.get(number.checked_sub(1)?)?;
    let second = rest.get(1).copied().map_or(0, |byte| fold(0, byte));
    let third = rest.get(2).copied().map_or(0, |byte| fold(second, byte));
    let entry = bucket.with(third).find(|entry| {
        rest.get(..entry.text.len())
            .is_some_and(|head| same_letters(head, entry.text))
            && (entry.open_end || !rest.get(entry.text.len()).copied().is_some_and(is_spaced))
    })?;
    Some((entry.hint, entry.text.len()))
}

/// The first two letters as one number.
fn pair(text: &[u8]) -> usize {
    let first = text.first().copied().map_or(0, |byte| fold(0, byte));
    let second = text.get(1).copied().map_or(0, |byte| fold(first, byte));
    usize::from(first) << 8 | usize::from(second)
}

/// Lower case of ASCII and Latin-1 letters (`É` is C3 89, `é` C3 A9).
const fn fold(before: u8, byte: u8) -> u8 {
    match byte {
        0x80..=0x9E if before == 0xC3 => byte | 0x20,
        other => other.to_ascii_lowercase(),
    }
}

/// Whether two texts of one length are the same without regard to case.
fn same_letters(text: &[u8], lower: &[u8]) -> bool {
    let mut before = 0;
    text.iter().zip(lower).all(|(byte, wanted)| {
        let same = fold(before, *byte) == *wanted;
        before = *byte;
        same
    })
}

/// The hint of the term that starts at the start of `rest` with the character `first`, and the term's bytes.
pub(crate) fn cjk(first: char, rest: &[u8]) -> Option<(Hint, usize)> {
    let number = usize::from(*INDEX.characters.get(place(first))?);
    let bucket = INDEX.terms.get(number.checked_sub(1)?)?;
    let entry = bucket.iter().find(|entry| rest.starts_with(entry.text))?;
    Some((entry.hint, entry.text.len()))
}

/// Whether the byte belongs to a word: ASCII letters and digits, and every byte of a character beyond ASCII but the signs of Latin-1
/// (`²`, `«`, the space that does not break), which all begin with C2.
pub(crate) const fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || (byte >= 0x80 && byte != 0xC2)
}

/// Whether the byte belongs to a word of a script with spaces. A character from U+2000 on ends such a word: `CSS里` is two.
pub(crate) fn is_spaced(byte: u8) -> bool {
    SPACED[usize::from(byte)]
}

/// [`is_spaced`] of every byte: the scan asks for each one.
static SPACED: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    loop {
        table[byte as usize] = is_letter(byte) && byte < 0xE2;
        if byte == u8::MAX {
            break table;
        }
        byte += 1;
    }
};
