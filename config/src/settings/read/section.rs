//! One table whose keys are taken out one by one; what is left at the end does not exist.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::given::{Given, show};
use super::{Document, UnknownKey, join, schema_of, variable_name};
use crate::settings::load::Outside;
use crate::settings::problem::{Origin, Problem};

/// One table, whose keys are taken out one by one.
pub(in crate::settings) struct Section<'d> {
    document: &'d Document<'d>,
    path: String,
    /// The path with `[]` for every index and `*` for every free name.
    schema: String,
    entries: DeTable<'d>,
    origin: Option<Origin>,
    origins: BTreeMap<&'static str, Origin>,
}

impl<'d> Section<'d> {
    /// The section without a name.
    pub(super) const fn root(document: &'d Document<'d>, entries: DeTable<'d>) -> Self {
        Self {
            document,
            path: String::new(),
            schema: String::new(),
            entries,
            origin: None,
            origins: BTreeMap::new(),
        }
    }

    /// What lies outside the file.
    pub(in crate::settings) const fn outside(&self) -> &'d Outside<'d> {
        self.document.outside
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<Given<'d>> {
        let document = self.document;
        let mut notes = document.notes.borrow_mut();
        notes.known.insert(join(&self.schema, key));
        let entry = self.entries.remove_entry(key);
        if entry.is_some() {
            notes.present.insert(join(&self.schema, key));
        }
        let variable = variable_name(document.prefix, &join(&self.path, key));
        let given = match notes.variables.remove(&variable) {
            Some(text) => Some(Given {
                value: DeValue::String(text.into()),
                origin: Origin::Environment(variable),
            }),
            None => entry.map(|(_, value)| Given {
                origin: Origin::File(value.span()),
                value: value.into_inner(),
            }),
        };
        if let Some(given) = &given {
            self.origins.insert(key, given.origin.clone());
        }
        given
    }

    /// Takes the table or tables of a key.
    fn take_tables(&mut self, key: &'static str) -> Option<Spanned<DeValue<'d>>> {
        let value = self.entries.remove(key);
        let mut notes = self.document.notes.borrow_mut();
        notes.known.insert(join(&self.schema, key));
        if value.is_some() {
            notes.present.insert(join(&self.schema, key));
        }
        value
    }

    /// Notes a problem of a key of this section, at its value if it was given, else at the section.
    pub(in crate::settings) fn problem(&self, key: &str, message: impl Into<String>) {
        let origin = self.origins.get(key).or(self.origin.as_ref());
        let path = join(&self.path, key);
        let problem = Problem::new(path, message, origin, self.document.place());
        self.document.note(problem);
    }

    /// Notes a problem of a secret without quoting it.
    pub(in crate::settings) fn secret_problem(&self, key: &str, message: &str) {
        let origin = self.origins.get(key).or(self.origin.as_ref());
        let path = join(&self.path, key);
        let problem = Problem::new(path, message, origin, self.document.place());
        self.document.note(problem.hide_value());
    }

    /// Notes that a key is missing.
    pub(in crate::settings) fn missing(&self, key: &'static str, want: &str) {
        if self.document.readable.problems.is_empty() && !self.origins.contains_key(key) {
            self.problem(key, format!("missing: {want}"));
        }
    }

    /// Whether a taken key was given.
    pub(in crate::settings) fn was_given(&self, key: &str) -> bool {
        self.origins.contains_key(key)
    }

    pub(super) fn wrong(&self, key: &str, given: &Given<'_>, want: &str) {
        let message = format!("{} is not {want}", show(&given.value));
        let path = join(&self.path, key);
        let place = self.document.place();
        let problem = Problem::new(path, message, Some(&given.origin), place);
        self.document.note(problem);
    }

    /// The value that `read` sees in a key, or a problem that says what would be right.
    pub(super) fn get<T>(
        &mut self,
        key: &'static str,
        want: &str,
        read: impl FnOnce(&Given<'d>) -> Option<T>,
    ) -> Option<T> {
        let given = self.take(key)?;
        let value = read(&given);
        if value.is_none() {
            self.wrong(key, &given, want);
        }
        value
    }

    fn inner(&self, path: String, table: Option<Spanned<DeTable<'d>>>) -> Self {
        let schema = schema_of(&path);
        let (origin, entries) = match table {
            Some(table) => (Some(Origin::File(table.span())), table.into_inner()),
            None => (None, DeTable::new()),
        };
        Self {
            document: self.document,
            path,
            schema,
            entries,
            origin,
            origins: BTreeMap::new(),
        }
    }

    fn as_table(&self, path: &str, value: Spanned<DeValue<'d>>) -> Option<Spanned<DeTable<'d>>> {
        let span = value.span();
        let value = value.into_inner();
        if let DeValue::Table(table) = value {
            return Some(Spanned::new(span, table));
        }
        let message = format!("{} is not a table", show(&value));
        let origin = Origin::File(span);
        let place = self.document.place();
        let problem = Problem::new(path, message, Some(&origin), place);
        self.document.note(problem);
        None
    }

    /// The table of a key; an empty one if it is not there, because the environment may fill it.
    pub(in crate::settings) fn section(&mut self, key: &'static str) -> Self {
        let path = join(&self.path, key);
        let table = self
            .take_tables(key)
            .and_then(|value| self.as_table(&path, value));
        self.inner(path, table)
    }

    /// The tables of a `[[key]]`.
    pub(in crate::settings) fn sections(&mut self, key: &'static str, max: usize) -> Vec<Self> {
        let path = join(&self.path, key);
        let Some(value) = self.take_tables(key) else {
            return Vec::new();
        };
        self.origins.insert(key, Origin::File(value.span()));
        let value = value.into_inner();
        let DeValue::Array(items) = value else {
            self.problem(
                key,
                format!("{} is not a list of tables: write [[{path}]]", show(&value)),
            );
            return Vec::new();
        };
        if items.len() > max {
            self.problem(key, format!("{} are too many: at most {max}", items.len()));
        }
        let mut sections = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            let table = self.as_table(&path, item);
            sections.push(self.inner(path, table));
        }
        sections
    }

    /// The tables of `[key.NAME]` for free names.
    pub(in crate::settings) fn named(
        &mut self,
        key: &'static str,
        max: usize,
    ) -> Vec<(String, Self)> {
        let path = join(&self.path, key);
        let Some(table) = self
            .take_tables(key)
            .and_then(|value| self.as_table(&path, value))
        else {
            return Vec::new();
        };
        let table = table.into_inner();
        if table.len() > max {
            self.problem(key, format!("{} are too many: at most {max}", table.len()));
        }
        let mut sections = Vec::with_capacity(table.len());
        for (name, value) in table {
            let name = name.into_inner().into_owned();
            let full = format!("{path}.{name}");
            let table = self.as_table(&full, value);
            let mut section = self.inner(full, table);
            section.schema = format!("{}.*", schema_of(&path));
            sections.push((name, section));
        }
        sections
    }

    /// Whatever was not asked for does not exist.
    pub(in crate::settings) fn close(self) {
        let mut notes = self.document.notes.borrow_mut();
        for (key, _) in self.entries {
            notes.unknown.push(UnknownKey {
                section: self.path.clone(),
                schema: self.schema.clone(),
                origin: Origin::File(key.span()),
                key: key.into_inner().into_owned(),
            });
        }
    }
}
