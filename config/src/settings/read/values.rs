//! Typed values of a section: each getter takes one key out, checks it, and notes what would be right.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use toml::de::DeValue;

use super::Section;
use super::given::Given;
use crate::secret::Secret;
use crate::settings::problem::Origin;
use crate::units::{ByteSize, parse_duration};

/// Where metrics are served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::settings) enum Loopback {
    /// Nowhere.
    Off,
    /// On this address.
    At(SocketAddr),
}

impl Loopback {
    /// The address, if there is one.
    pub(in crate::settings) const fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Off => None,
            Self::At(address) => Some(address),
        }
    }
}

impl<'d> Section<'d> {
    pub(in crate::settings) fn integer<T>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<T>,
    ) -> Option<T>
    where
        T: Copy + Display + PartialOrd + TryFrom<i64>,
    {
        let want = format!("an integer from {} to {}", range.start(), range.end());
        self.get(key, &want, |given| {
            T::try_from(given.integer()?)
                .ok()
                .filter(|number| range.contains(number))
        })
    }

    pub(in crate::settings) fn float(
        &mut self,
        key: &'static str,
        range: RangeInclusive<f64>,
    ) -> Option<f64> {
        let want = format!("a number from {} to {}", range.start(), range.end());
        self.get(key, &want, |given| {
            given.float().filter(|number| range.contains(number))
        })
    }

    pub(in crate::settings) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        self.get(key, "true or false", Given::boolean)
    }

    /// Seconds as a number, or a text with its unit.
    pub(in crate::settings) fn secs(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Option<Duration> {
        self.duration(key, range, 1000, "seconds")
    }

    /// Milliseconds as a number, or a text with its unit.
    pub(in crate::settings) fn millis(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Option<Duration> {
        self.duration(key, range, 1, "milliseconds")
    }

    fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        unit_ms: u64,
        unit: &str,
    ) -> Option<Duration> {
        let want = format!(
            "a number of {unit} from {} to {}, or a text such as \"30s\"",
            range.start(),
            range.end()
        );
        let bounds = Duration::from_millis(range.start().saturating_mul(unit_ms))
            ..=Duration::from_millis(range.end().saturating_mul(unit_ms));
        self.get(key, &want, |given| {
            let duration = match given.integer() {
                Some(count) => {
                    Duration::from_millis(u64::try_from(count).ok()?.checked_mul(unit_ms)?)
                }
                None => parse_duration(given.text()?).ok()?,
            };
            bounds.contains(&duration).then_some(duration)
        })
    }

    /// Bytes as a number, or a text with its unit.
    pub(in crate::settings) fn bytes(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let want = format!(
            "a number of bytes from {} to {}, or a text such as \"4MiB\"",
            range.start(),
            range.end()
        );
        self.get(key, &want, |given| {
            let bytes = match given.integer() {
                Some(count) => u64::try_from(count).ok()?,
                None => given.text()?.parse::<ByteSize>().ok()?.0,
            };
            range.contains(&bytes).then_some(bytes)
        })
    }

    /// A text that is not empty.
    pub(in crate::settings) fn text(&mut self, key: &'static str) -> Option<String> {
        self.get(key, "a text with at least one character", |given| {
            given
                .text()
                .filter(|text| !text.trim().is_empty())
                .map(str::to_owned)
        })
    }

    /// A text for which `check` has no objection.
    pub(in crate::settings) fn checked_text(
        &mut self,
        key: &'static str,
        want: &str,
        check: impl FnOnce(&str) -> bool,
    ) -> Option<String> {
        self.get(key, want, |given| {
            given.text().filter(|text| check(text)).map(str::to_owned)
        })
    }

    pub(in crate::settings) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    /// A text that parses.
    pub(in crate::settings) fn parsed<T: FromStr>(
        &mut self,
        key: &'static str,
        want: &str,
    ) -> Option<T> {
        self.get(key, want, |given| given.text()?.parse().ok())
    }

    /// One of a few words.
    pub(in crate::settings) fn one_of<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&'static str, T)],
    ) -> Option<T> {
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        let want = format!("one of {}", names.join(", "));
        self.get(key, &want, |given| {
            let text = given.text()?;
            words
                .iter()
                .find(|(name, _)| *name == text)
                .map(|(_, value)| *value)
        })
    }

    /// A loopback address, or `off`. `None`: not given or wrong.
    pub(in crate::settings) fn loopback(&mut self, key: &'static str) -> Option<Loopback> {
        let want = "a loopback address with port such as 127.0.0.1:9464, or off";
        self.get(key, want, |given| match given.text()? {
            "off" => Some(Loopback::Off),
            text => text
                .parse::<SocketAddr>()
                .ok()
                .filter(|address| address.ip().is_loopback())
                .map(Loopback::At),
        })
    }

    /// A list of texts that parse; wrong items are noted one by one. From the environment: separated by commas.
    pub(in crate::settings) fn list<T: FromStr>(
        &mut self,
        key: &'static str,
        max: usize,
        want: &str,
    ) -> Option<Vec<T>> {
        let given = self.take(key)?;
        let items: Vec<Given<'d>> = if given.is_of_environment() {
            let text = given.text().unwrap_or_default();
            text.split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| Given {
                    value: DeValue::String(item.to_owned().into()),
                    origin: given.origin.clone(),
                })
                .collect()
        } else if let DeValue::Array(array) = given.value {
            array
                .into_iter()
                .map(|item| Given {
                    origin: Origin::File(item.span()),
                    value: item.into_inner(),
                })
                .collect()
        } else {
            self.wrong(key, &given, &format!("a list, each item {want}"));
            return None;
        };
        if items.len() > max {
            let message = format!("{} items are too many: at most {max}", items.len());
            self.problem(key, message);
        }
        let mut list = Vec::with_capacity(items.len());
        for item in &items {
            match item.text().and_then(|text| text.parse().ok()) {
                Some(value) => list.push(value),
                None => self.wrong(key, item, want),
            }
        }
        Some(list)
    }

    /// A secret: the text itself, `env:NAME`, or the first line of the file that `<key>_file` names.
    pub(in crate::settings) fn secret(
        &mut self,
        key: &'static str,
        file_key: &'static str,
    ) -> Option<Secret<String>> {
        let outside = self.outside();
        let given = self.take(key);
        let file = self.path(file_key);
        if let Some(path) = file {
            if given.is_some() {
                self.problem(file_key, format!("{key} is set too: set one of them"));
            }
            return match (outside.read)(&path) {
                Ok(text) => Some(Secret::new(text.trim().to_owned())),
                Err(error) => {
                    self.problem(file_key, format!("cannot read {}: {error}", path.display()));
                    None
                }
            };
        }
        let given = given?;
        let Some(text) = given.text() else {
            self.secret_problem(key, "not a text");
            return None;
        };
        let Some(name) = text.strip_prefix("env:") else {
            return Some(Secret::new(text.to_owned()));
        };
        let value = outside.variables.get(name).cloned();
        if value.is_none() {
            self.problem(key, format!("the environment variable {name} is not set"));
        }
        value.map(Secret::new)
    }
}
