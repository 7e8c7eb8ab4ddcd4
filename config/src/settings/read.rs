//! Takes typed values out of a TOML document with their places. A wrong value is noted and reading goes on with a default, so that
//! one pass finds every problem; the keys that were asked for are the keys that exist.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use toml::de::DeTable;

use super::load::Outside;
use super::problem::{Origin, Problem, Problems, nearest};
use super::syntax::{Readable, readable};

mod given;
mod section;
mod values;

pub(super) use section::Section;
pub(super) use values::Loopback;

/// The file's text and the environment, with all that was found out about them.
pub(super) struct Document<'d> {
    name: &'d str,
    text: &'d str,
    prefix: &'static str,
    outside: &'d Outside<'d>,
    readable: Readable<'d>,
    notes: RefCell<Notes>,
}

#[derive(Default)]
struct Notes {
    problems: Vec<Problem>,
    unknown: Vec<UnknownKey>,
    known: BTreeSet<String>,
    present: BTreeSet<String>,
    variables: BTreeMap<String, String>,
}

struct UnknownKey {
    section: String,
    schema: String,
    key: String,
    origin: Origin,
}

impl<'d> Document<'d> {
    pub(super) fn new(
        name: &'d str,
        text: &'d str,
        prefix: &'static str,
        outside: &'d Outside<'d>,
    ) -> Self {
        let variables = outside
            .variables
            .iter()
            .filter(|(name, _)| name.starts_with(prefix))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let readable = readable(name, text);
        let notes = Notes {
            problems: readable.problems.clone(),
            variables,
            ..Notes::default()
        };
        Self {
            name,
            text,
            prefix,
            outside,
            readable,
            notes: RefCell::new(notes),
        }
    }

    /// The whole document as a section. What is not TOML was noted already; the rest is still read.
    pub(super) fn root(&'d self) -> Section<'d> {
        let (table, _) = DeTable::parse_recoverable(&self.readable.text);
        Section::root(self, table.into_inner())
    }

    fn note(&self, problem: Problem) {
        let mut notes = self.notes.borrow_mut();
        if !self.readable.hides(&problem) {
            notes.problems.push(problem);
        }
    }

    fn place(&self) -> (&str, &str) {
        (self.name, self.text)
    }

    /// Everything that is wrong, or nothing. Called once, after the last key was taken.
    pub(super) fn finish(&self) -> Result<(), Problems> {
        let notes = std::mem::take(&mut *self.notes.borrow_mut());
        let mut problems = notes.problems;
        for unknown in notes.unknown {
            let hint = unknown_hint(&unknown, &notes.known);
            let path = join(&unknown.section, &unknown.key);
            let problem = Problem::new(path, "no such key", Some(&unknown.origin), self.place());
            if !self.readable.hides(&problem) {
                problems.push(problem.with_hint(hint));
            }
        }
        let names: Vec<String> = notes
            .known
            .iter()
            .map(|key| variable_name(self.prefix, key))
            .collect();
        for variable in notes.variables.into_keys() {
            let meant = nearest(&variable, names.iter().map(String::as_str));
            let hint = meant.map(|name| format!("did you mean {name}"));
            let origin = Origin::Environment(variable);
            let problem = Problem::new("", "no such setting", Some(&origin), self.place());
            problems.push(problem.with_hint(hint));
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Problems::new(problems))
        }
    }

    /// The keys that exist and those that the document has.
    #[cfg(test)]
    pub(super) fn keys(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let notes = self.notes.borrow();
        (notes.known.clone(), notes.present.clone())
    }
}

/// What an unknown key was probably meant to be: a key of the same section, or the same key of another one.
fn unknown_hint(unknown: &UnknownKey, known: &BTreeSet<String>) -> Option<String> {
    let split = |path: &str| match path.rsplit_once('.') {
        Some((section, key)) => (section.to_owned(), key.to_owned()),
        None => (String::new(), path.to_owned()),
    };
    let here: Vec<String> = known
        .iter()
        .map(|path| split(path))
        .filter(|(other, _)| *other == unknown.schema)
        .map(|(_, key)| key)
        .collect();
    if let Some(key) = nearest(&unknown.key, here.iter().map(String::as_str)) {
        return Some(format!("did you mean {key}"));
    }
    known
        .iter()
        .map(|path| split(path))
        .filter(|(_, key)| *key == unknown.key)
        // A plain section before one of many tables.
        .min_by_key(|(section, _)| section.contains(['*', '[']))
        .map(|(section, key)| format!("{key} is a key of [{section}]"))
}

/// `auth.issuers[3]` becomes `auth.issuers[]`.
fn schema_of(path: &str) -> String {
    let mut schema = String::with_capacity(path.len());
    let mut inside = false;
    for c in path.chars() {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            _ => {}
        }
        if !inside || c == '[' {
            schema.push(c);
        }
    }
    schema
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// `limits.text_per_day` becomes `HEARTH_PROXY__LIMITS__TEXT_PER_DAY`.
fn variable_name(prefix: &str, path: &str) -> String {
    let name = path
        .replace('[', "__")
        .replace(']', "")
        .replace('.', "__")
        .replace('-', "_")
        .to_uppercase();
    format!("{prefix}{name}")
}
