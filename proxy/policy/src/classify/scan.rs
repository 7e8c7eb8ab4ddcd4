//! The one pass over a text: counts words, signs and lines into [`Features`]. Allocates nothing.

use super::words::{self, Hint};
use super::{Category, Features};

/// Bytes read of the last message. What a person wants stands at its head or its tail; the middle is material.
pub(crate) const BYTES_MAX: usize = 6 * 1_024;
/// Of these, for the tail.
const TAIL: usize = 2 * 1_024;

/// Reads at most `budget` bytes of the text and returns what is left of the budget.
pub(crate) fn scan(text: &str, budget: usize, features: &mut Features) -> usize {
    if text.len() <= budget {
        pass(text, features);
        return budget - text.len();
    }
    let tail_len = TAIL.min(budget / 4);
    let head_end = text.floor_char_boundary(budget - tail_len);
    let tail_start = text.ceil_char_boundary(text.len() - tail_len);
    if let (Some(head), Some(tail)) = (text.get(..head_end), text.get(tail_start..)) {
        pass(head, features);
        pass(tail, features);
    }
    0
}

fn pass(text: &str, features: &mut Features) {
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut line_start = true;
    while let Some(byte) = bytes.get(at).copied() {
        if byte == b' ' {
            at += 1;
            line_start = false;
            continue;
        }
        let rest = bytes.get(at..).unwrap_or_default();
        if line_start && is_item(rest) {
            features.items += 1;
        }
        line_start = byte == b'\n';
        at += if byte == 0xC2 {
            latin_sign(rest, features)
        } else if words::is_letter(byte) {
            word(text, at, rest, features)
        } else {
            sign(byte, rest, features)
        };
    }
}

/// One word, phrase or CJK character at `at`; returns its bytes.
fn word(text: &str, at: usize, rest: &[u8], features: &mut Features) -> usize {
    if rest.first().is_some_and(|byte| *byte >= 0xE2) {
        let first = three_bytes(rest).or_else(|| text.get(at..)?.chars().next());
        return first.map_or(1, |first| wide(first, rest, features));
    }
    features.words += 1;
    features.numbers += usize::from(rest.first().is_some_and(u8::is_ascii_digit));
    if let Some((hint, len)) = words::word(rest) {
        count(hint, features);
        return len + letters(rest.get(len..).unwrap_or_default());
    }
    letters(rest).max(1)
}

/// The character of three bytes at the start of a text that is UTF-8; most of a Chinese or Japanese one are.
fn three_bytes(rest: &[u8]) -> Option<char> {
    let [first @ 0xE2..=0xEF, second, third, ..] = rest else {
        return None;
    };
    let bits = |byte: u8, mask: u8| u32::from(byte & mask);
    char::from_u32(bits(*first, 0x0F) << 12 | bits(*second, 0x3F) << 6 | bits(*third, 0x3F))
}

/// A character of three or four bytes: a CJK term, a sign of mathematics, or just a character.
fn wide(first: char, rest: &[u8], features: &mut Features) -> usize {
    if is_cjk(first) {
        features.words += 1;
        if let Some((hint, len)) = words::cjk(first, rest) {
            count(hint, features);
            return len;
        }
    } else if is_maths(first) {
        features.maths += 1;
    } else if first == '？' {
        features.questions += 1;
    }
    first.len_utf8()
}

/// How many bytes of a word come first. A character from U+2000 on ends it: it is looked at on its own.
fn letters(rest: &[u8]) -> usize {
    rest.iter()
        .position(|byte| !words::is_spaced(*byte))
        .unwrap_or(rest.len())
}

fn sign(byte: u8, rest: &[u8], features: &mut Features) -> usize {
    match byte {
        b'?' => features.questions += 1,
        b'`' if rest.starts_with(b"```") => {
            features.fences += 1;
            features.code += 1;
            return 3;
        }
        b'{' | b'}' | b';' if rest.get(1).is_none_or(|next| *next == b'\n') => features.code += 1,
        b'-' | b'=' if rest.get(1) == Some(&b'>') => {
            features.code += 1;
            return 2;
        }
        b'=' if rest.get(1) == Some(&b'=') => {
            features.code += 1;
            return 2;
        }
        b'$' if rest.get(1) == Some(&b'$') => {
            features.maths += 1;
            return 2;
        }
        b'\\' if is_tex(rest) => features.maths += 1,
        b'^' => features.maths += 1,
        _ => {}
    }
    1
}

/// U+0080 to U+00BF, two bytes: signs, no letters.
fn latin_sign(rest: &[u8], features: &mut Features) -> usize {
    // ±, ² and ³
    if matches!(rest.get(1), Some(0xB1..=0xB3)) {
        features.maths += 1;
    }
    2
}

fn is_tex(rest: &[u8]) -> bool {
    [
        b"\\frac".as_slice(),
        b"\\sum",
        b"\\int",
        b"\\sqrt",
        b"\\begin{",
        b"\\mathbb",
        b"\\lim",
    ]
    .iter()
    .any(|command| rest.starts_with(command))
}

/// `- `, `* `, `1. `, `2) ` at the start of a line.
fn is_item(rest: &[u8]) -> bool {
    let digits = rest
        .iter()
        .take(3)
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    match rest.get(digits..) {
        Some([b'-' | b'*', b' ', ..]) => digits == 0,
        Some([b'.' | b')', b' ', ..]) => (1..=2).contains(&digits),
        Some(_) | None => false,
    }
}

const fn is_cjk(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30FF}' | '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}')
}

/// Mathematical operators, arrows of logic, superscripts.
const fn is_maths(c: char) -> bool {
    matches!(c, '\u{2200}'..='\u{22FF}' | '\u{2070}'..='\u{209F}' | '\u{21D2}' | '\u{21D4}' | '\u{2102}'..='\u{2124}')
}

fn count(hint: Hint, features: &mut Features) {
    let counter = match hint {
        Hint::Reason => &mut features.reason,
        Hint::Explain => &mut features.explain,
        Hint::Maths => &mut features.maths,
        Hint::Code => &mut features.code,
        Hint::Compose => &mut features.compose,
        Hint::Thorough => &mut features.thorough,
        Hint::Brief => &mut features.brief,
        Hint::Lookup => &mut features.lookup,
        Hint::Rewrite => &mut features.rewrite,
        Hint::Summarize => &mut features.summarize,
        Hint::Notice => &mut features.notice,
        Hint::Greeting => &mut features.greeting,
        Hint::Nothing => return,
    };
    *counter += 1;
    if features.first.is_none() {
        features.first = Category::named_by(hint);
    }
}
