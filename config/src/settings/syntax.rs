//! A text that should be TOML: what is not, all of it, and the rest in a form that parses.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use toml::de::DeTable;

use super::problem::{Origin, Problem};

/// The parser gives up at some mistakes, so each round blanks the lines it stumbled over; more rounds than this help nobody.
const ROUNDS_MAX: usize = 32;
/// Open brackets whose contents may go on over many lines.
const SPREADING: [&str; 2] = ["unclosed array", "unclosed inline table"];
const UNCLOSED_HINT: &str = "an array or a table that starts above may not be closed";

/// A text, the mistakes in its syntax, and what can be read of it.
pub(super) struct Readable<'d> {
    /// The text with unreadable lines blanked, so that every place stays where it was.
    pub(super) text: Cow<'d, str>,
    /// What is not TOML, at most one problem a line.
    pub(super) problems: Vec<Problem>,
    lines: BTreeSet<usize>,
    and_below: bool,
}

impl Readable<'_> {
    /// Whether a problem lies where nothing can be trusted.
    pub(super) fn hides(&self, problem: &Problem) -> bool {
        let Some(line) = problem.line() else {
            return false;
        };
        let below = self.and_below && self.lines.first().is_some_and(|first| line >= *first);
        below || self.lines.contains(&line)
    }
}

/// Finds every mistake of syntax.
pub(super) fn readable<'d>(name: &str, text: &'d str) -> Readable<'d> {
    let mut found = Readable {
        text: Cow::Borrowed(text),
        problems: Vec::new(),
        lines: BTreeSet::new(),
        and_below: false,
    };
    for _ in 0..ROUNDS_MAX {
        let (_, errors) = DeTable::parse_recoverable(&found.text);
        if errors.is_empty() {
            break;
        }
        found.and_below = errors.iter().any(|error| {
            let what = error.message().lines().next().unwrap_or_default();
            SPREADING.contains(&what)
        });
        let mut problems: Vec<Problem> = errors
            .iter()
            .map(|error| problem(error, (name, text)))
            .collect();
        problems.sort_by_key(Problem::line_column);
        // The recovery of one mistake stumbles over the rest of its line.
        problems.dedup_by_key(|problem| problem.line());
        if found.and_below && problems.len() > 1 {
            // And that of an open bracket over the rest of the file.
            problems.truncate(1);
            problems = problems
                .into_iter()
                .map(|problem| problem.with_hint(Some(UNCLOSED_HINT.to_owned())))
                .collect();
        }
        let before = found.lines.len();
        found
            .lines
            .extend(problems.iter().filter_map(Problem::line));
        found.problems.extend(problems);
        if found.and_below || found.lines.len() == before {
            break;
        }
        found.text = Cow::Owned(blank(&found.text, &found.lines));
    }
    found
}

fn problem(error: &toml::de::Error, file: (&str, &str)) -> Problem {
    let at: Range<usize> = error.span().unwrap_or_default();
    let message = format!("not TOML: {}", error.message().replace('\n', ", "));
    Problem::new("", message, Some(&Origin::File(at)), file)
}

/// Replaces lines (counted from 1) by as many spaces as they have bytes.
fn blank(text: &str, lines: &BTreeSet<usize>) -> String {
    let mut out = String::with_capacity(text.len());
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if lines.contains(&(index + 1)) {
            let end = line.trim_end_matches(['\n', '\r']);
            out.push_str(&" ".repeat(end.len()));
            out.push_str(line.strip_prefix(end).unwrap_or_default());
        } else {
            out.push_str(line);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn mistakes_below_the_first_are_found_too() {
        let text = "a = one\nb 2\nc = \"x\nd = 1\nd = 2\n[e\nf = 3\n";
        let found = readable("f", text);
        let lines: BTreeSet<usize> = found.problems.iter().filter_map(Problem::line).collect();
        assert_eq!(lines, BTreeSet::from([1, 2, 3, 5, 6]));
    }

    proptest! {
        #[test]
        fn every_place_stays_where_it_was(text in "[a-cé=\"\\[\\] \n]{0,60}") {
            let found = readable("f", &text);
            prop_assert_eq!(found.text.len(), text.len());
        }
    }
}
