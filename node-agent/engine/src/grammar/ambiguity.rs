//! Refuses repetitions of something that may be empty, such as `(("a"?){40}){40}`.
//!
//! llama.cpp follows all ways through a grammar at once. Where an empty item is repeated, their number explodes, and one
//! token takes longer than anybody waits. This reads just enough of the notation to find such places; whatever it does
//! not understand it leaves to llama.cpp, which will refuse it.

use std::collections::HashMap;
use std::collections::HashSet;
use std::iter::Peekable;
use std::vec::IntoIter;

/// Says where a repetition of something empty is, if there is one. Brackets must be known not to nest deeply.
pub(super) fn check(text: &str) -> Result<(), String> {
    let Some(rules) = Reader::new(text).rules() else {
        return Ok(());
    };
    let mut empty = HashSet::new();
    loop {
        let before = empty.len();
        for (name, alternatives) in &rules {
            if may_be_empty(alternatives, &empty) {
                empty.insert(name.as_str());
            }
        }
        if empty.len() == before {
            break;
        }
    }
    for (name, alternatives) in &rules {
        if repeats_empty(alternatives, &empty) {
            return Err(format!("rule {name} repeats something that may be empty"));
        }
    }
    Ok(())
}

type Alternatives = Vec<Vec<Item>>;

#[derive(Debug)]
struct Item {
    what: What,
    /// It may be left out.
    optional: bool,
    /// It may stand more than once.
    repeated: bool,
}

#[derive(Debug)]
enum What {
    Empty,
    Solid,
    Rule(String),
    Group(Alternatives),
}

fn may_be_empty(alternatives: &Alternatives, empty: &HashSet<&str>) -> bool {
    alternatives.iter().any(|items| {
        items
            .iter()
            .all(|item| item.optional || is_empty(&item.what, empty))
    })
}

fn is_empty(what: &What, empty: &HashSet<&str>) -> bool {
    match what {
        What::Empty => true,
        What::Solid => false,
        What::Rule(name) => empty.contains(name.as_str()),
        What::Group(alternatives) => may_be_empty(alternatives, empty),
    }
}

fn repeats_empty(alternatives: &Alternatives, empty: &HashSet<&str>) -> bool {
    alternatives.iter().flatten().any(|item| {
        let inside = match &item.what {
            What::Group(alternatives) => repeats_empty(alternatives, empty),
            What::Empty | What::Solid | What::Rule(_) => false,
        };
        inside || (item.repeated && is_empty(&item.what, empty))
    })
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Word {
    Name(String),
    Defines,
    Text { empty: bool },
    Open,
    Close,
    Or,
    Repeat { optional: bool, repeated: bool },
}

struct Reader {
    words: Peekable<IntoIter<Word>>,
}

impl Reader {
    fn new(text: &str) -> Self {
        Self {
            words: words(text).unwrap_or_default().into_iter().peekable(),
        }
    }

    /// All rules by name; `None` if the text is no grammar.
    fn rules(mut self) -> Option<HashMap<String, Alternatives>> {
        let mut rules = HashMap::new();
        let mut name = match (self.words.next()?, self.words.next()?) {
            (Word::Name(name), Word::Defines) => name,
            _other => return None,
        };
        loop {
            let (alternatives, next) = self.alternatives()?;
            rules.insert(name, alternatives);
            match next {
                Some(next) => name = next,
                None => return Some(rules),
            }
        }
    }

    /// Reads to the end of a group or rule, and returns the name of the rule that begins there.
    fn alternatives(&mut self) -> Option<(Alternatives, Option<String>)> {
        let mut all = Vec::new();
        let mut items: Vec<Item> = Vec::new();
        loop {
            let what = match self.words.next() {
                None | Some(Word::Close) => {
                    all.push(items);
                    return Some((all, None));
                }
                Some(Word::Or) => {
                    all.push(std::mem::take(&mut items));
                    continue;
                }
                Some(Word::Repeat { optional, repeated }) => {
                    let last = items.last_mut()?;
                    last.optional |= optional;
                    last.repeated |= repeated;
                    continue;
                }
                Some(Word::Name(name)) => {
                    if self.words.next_if_eq(&Word::Defines).is_some() {
                        all.push(items);
                        return Some((all, Some(name)));
                    }
                    What::Rule(name)
                }
                Some(Word::Text { empty: true }) => What::Empty,
                Some(Word::Text { empty: false }) => What::Solid,
                Some(Word::Open) => match self.alternatives()? {
                    (group, None) => What::Group(group),
                    (_group, Some(_rule)) => return None,
                },
                Some(Word::Defines) => return None,
            };
            items.push(Item {
                what,
                optional: false,
                repeated: false,
            });
        }
    }
}

/// Splits a grammar into words; `None` at anything unknown.
fn words(text: &str) -> Option<Vec<Word>> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (word, length) = match first {
            '"' => {
                let length = quoted(rest, '"')?;
                (Word::Text { empty: length == 2 }, length)
            }
            '[' => (Word::Text { empty: false }, quoted(rest, ']')?),
            '<' => (Word::Text { empty: false }, rest.find('>')? + 1),
            '!' if rest.starts_with("!<") => (Word::Text { empty: false }, rest.find('>')? + 1),
            '.' => (Word::Text { empty: false }, 1),
            '(' => (Word::Open, 1),
            ')' => (Word::Close, 1),
            '|' => (Word::Or, 1),
            ':' if rest.starts_with("::=") => (Word::Defines, 3),
            '*' => (repeat(true, true), 1),
            '+' => (repeat(false, true), 1),
            '?' => (repeat(true, false), 1),
            '{' => {
                let length = rest.find('}')? + 1;
                (counted(rest.get(1..length - 1)?), length)
            }
            '#' => {
                rest = rest
                    .split_once('\n')
                    .map_or("", |(_comment, after)| after)
                    .trim_start();
                continue;
            }
            letter if letter.is_ascii_alphanumeric() || letter == '-' => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-');
                let length = end.unwrap_or(rest.len());
                (Word::Name(rest.get(..length)?.to_owned()), length)
            }
            _unknown => return None,
        };
        words.push(word);
        rest = rest.get(length..)?.trim_start();
    }
    Some(words)
}

fn repeat(optional: bool, repeated: bool) -> Word {
    Word::Repeat { optional, repeated }
}

/// Reads the inside of `{m}`, `{m,}` or `{m,n}`.
fn counted(inside: &str) -> Word {
    let (least, most) = match inside.split_once(',') {
        Some((least, most)) => (least.trim(), most.trim()),
        None => (inside.trim(), inside.trim()),
    };
    let is_one = |number: &str| matches!(number.trim_start_matches('0'), "" | "1");
    repeat(
        least.trim_start_matches('0').is_empty(),
        most.is_empty() || !is_one(most),
    )
}

/// The length in bytes of a quoted text that begins here, with its quotes.
fn quoted(text: &str, end: char) -> Option<usize> {
    let mut escaped = false;
    for (place, character) in text.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if character == '\\' {
            escaped = true;
        } else if character == end {
            return Some(place + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_of_nothing_are_found() {
        for bad in [
            "root ::= ((\"a\"?){40}){40} \"b\"",
            "root ::= ([a-z]* [a-z]*)*",
            "root ::= (\"\" | \"a\")+",
            "root ::= x{2,}\nx ::= y # here\ny ::= \"a\"* | \"b\"",
            "root ::= (<think>? !<[7]>{0,3})*",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ordinary_grammars_pass() {
        for good in [
            "root ::= \"yes\" | \"no\"",
            "root ::= (\"a\"? \"b\")* [x\\]]{0,20}",
            "root ::= ([a-z]*)? x{1}\nx ::= \"\"",
            "root ::= \"[\" ws ( item (\",\" ws item)* )? \"]\"\nws ::= | \" \" | \"\\n\"{1,2} [ \\t]{0,20}\nitem ::= [0-9]+",
            "this is no grammar (",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }
}
