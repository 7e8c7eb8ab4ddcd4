//! What is wrong with the settings, all of it at once: where, which key, which value, and what would be right. Prints for people;
//! never prints a secret.

use std::fmt;
use std::ops::Range;

/// Where a value was written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Origin {
    /// Bytes of the file.
    File(Range<usize>),
    /// An environment variable.
    Environment(String),
}

/// One thing that is wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// The path of the key, as `limits.text_per_day`; empty for the file itself.
    pub key: String,
    /// What is wrong, the value, and what would be right.
    pub message: String,
    /// What was probably meant.
    pub hint: Option<String>,
    place: Option<Place>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Place {
    File(Spot),
    Environment(String),
}

/// A stretch of one line, counted from 1.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Spot {
    file: String,
    line: usize,
    column: usize,
    width: usize,
    text: String,
}

impl Problem {
    /// A problem of the file as a whole.
    pub(super) fn of_file(file: &str, message: impl Into<String>) -> Self {
        Self {
            key: String::new(),
            message: format!("{file}: {}", message.into()),
            hint: None,
            place: None,
        }
    }

    /// A problem of one key. `file` is the name and the text of the settings.
    pub(super) fn new(
        key: impl Into<String>,
        message: impl Into<String>,
        origin: Option<&Origin>,
        file: (&str, &str),
    ) -> Self {
        let place = origin.map(|origin| match origin {
            Origin::File(span) => Place::File(Spot::new(span, file)),
            Origin::Environment(name) => Place::Environment(name.clone()),
        });
        Self {
            key: key.into(),
            message: message.into(),
            hint: None,
            place,
        }
    }

    /// Adds what was probably meant.
    pub(super) fn with_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }

    /// Hides the value in the quoted line.
    pub(super) fn hide_value(mut self) -> Self {
        if let Some(Place::File(spot)) = &mut self.place {
            spot.hide();
        }
        self
    }

    pub(super) fn line(&self) -> Option<usize> {
        self.line_column().map(|(line, _)| line)
    }

    /// Line and column in the file, both from 1.
    pub fn line_column(&self) -> Option<(usize, usize)> {
        match &self.place {
            Some(Place::File(spot)) => Some((spot.line, spot.column)),
            Some(Place::Environment(_)) | None => None,
        }
    }
}

impl Spot {
    fn new(span: &Range<usize>, (file, text): (&str, &str)) -> Self {
        let start = floor(text, span.start);
        let head = text.get(..start).unwrap_or_default();
        let line_start = head.rfind('\n').map_or(0, |at| at + 1);
        let tail = text.get(line_start..).unwrap_or_default();
        let line = tail.lines().next().unwrap_or_default();
        let indent = head.get(line_start..).unwrap_or_default();
        let line_end = line_start + line.len();
        let end = floor(text, span.end).clamp(start, line_end.max(start));
        let marked = text.get(start..end).unwrap_or_default();
        Self {
            file: file.to_owned(),
            line: head.matches('\n').count() + 1,
            column: indent.chars().count() + 1,
            width: marked.chars().count().max(1),
            text: mask_password(line),
        }
    }

    fn hide(&mut self) {
        let kept: String = self.text.chars().take(self.column - 1).collect();
        self.text = format!("{kept}***");
        self.width = 3;
    }
}

/// The character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Replaces what stands between `://` and `@` by stars of the same width, so that the column stays right.
fn mask_password(line: &str) -> String {
    let Some((head, rest)) = line.split_once("://") else {
        return line.to_owned();
    };
    let Some((secret, tail)) = rest.rsplit_once('@') else {
        return line.to_owned();
    };
    let stars = "*".repeat(secret.chars().count());
    format!("{head}://{stars}@{tail}")
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            writeln!(f, "error: {}", self.message)?;
        } else {
            writeln!(f, "error: {}: {}", self.key, self.message)?;
        }
        match &self.place {
            None => {}
            Some(Place::Environment(name)) => {
                writeln!(f, "  --> environment variable {name}")?;
            }
            Some(Place::File(spot)) => write_spot(f, spot)?,
        }
        if let Some(hint) = &self.hint {
            writeln!(f, "  = help: {hint}")?;
        }
        Ok(())
    }
}

fn write_spot(f: &mut fmt::Formatter<'_>, spot: &Spot) -> fmt::Result {
    let number = spot.line.to_string();
    let gutter = " ".repeat(number.len());
    // A tab is one column wide in the count, so the caret line repeats it.
    let indent: String = spot
        .text
        .chars()
        .take(spot.column - 1)
        .map(|c| if c == '\t' { '\t' } else { ' ' })
        .collect();
    writeln!(f, "{gutter}--> {}:{}:{}", spot.file, spot.line, spot.column)?;
    writeln!(f, "{gutter} |")?;
    writeln!(f, "{number} | {}", spot.text)?;
    writeln!(f, "{gutter} | {indent}{}", "^".repeat(spot.width))
}

/// Everything that is wrong, in the order of the file. Never empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Sorts them: file first, from top to bottom.
    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.line_column().unwrap_or((usize::MAX, 0)));
        Self(problems)
    }

    /// Each one.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(f, "{problem}")?;
        }
        match self.0.len() {
            1 => write!(f, "1 problem in the settings"),
            many => write!(f, "{many} problems in the settings"),
        }
    }
}

impl std::error::Error for Problems {}

/// The candidate that `text` was probably meant to be: few edits away, or the same word with a unit behind it.
pub(crate) fn nearest<'a>(
    text: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let budget = (text.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .filter_map(|candidate| {
            let cost = distance(text, candidate);
            let longer = text.len() >= 3 && candidate.starts_with(&format!("{text}_"));
            if longer {
                Some((0, candidate))
            } else {
                (cost <= budget).then_some((cost, candidate))
            }
        })
        .min()
        .map(|(_, candidate)| candidate)
}

/// Edits between two words: insert, delete, replace, and swap of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    let mut last = None;
    for (i, x) in a.chars().enumerate() {
        let mut next = Vec::with_capacity(row.len());
        next.push(i + 1);
        for (j, y) in b.iter().enumerate() {
            let mut cost = (row[j] + usize::from(x != *y))
                .min(row[j + 1] + 1)
                .min(next[j] + 1);
            if j > 0 && last == Some(*y) && b[j - 1] == x {
                cost = cost.min(before[j - 1] + 1);
            }
            next.push(cost);
        }
        before = std::mem::replace(&mut row, next);
        last = Some(x);
    }
    row.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_found() {
        let keys = ["listen", "grace_secs", "text_per_day", "media_per_day"];
        let cases = [
            ("listne", Some("listen")),
            ("grace", Some("grace_secs")),
            ("grace_sec", Some("grace_secs")),
            ("text_pre_day", Some("text_per_day")),
            ("colour", None),
            ("x", None),
        ];
        for (text, want) in cases {
            assert_eq!(nearest(text, keys), want, "{text}");
        }
    }

    #[test]
    fn a_password_in_a_quoted_line_is_hidden_and_the_caret_stays() {
        let text = "url = \"redis://me:hunter2@host:6379\" x\n";
        let at = text.find(" x").expect("there") + 1;
        let origin = Origin::File(at..at + 1);
        let printed = Problem::new("store.url", "wrong", Some(&origin), ("f", text)).to_string();
        assert!(!printed.contains("hunter2"), "{printed}");
        assert!(printed.contains("f:1:38"), "{printed}");
    }

    #[test]
    fn spans_past_the_end_or_within_a_character_do_not_panic() {
        let text = "a = \"é\"";
        for start in 0..12 {
            let origin = Origin::File(start..start + 3);
            let problem = Problem::new("a", "wrong", Some(&origin), ("f", text));
            assert!(!problem.to_string().is_empty());
        }
    }
}
