//! Takes typed values out of a JSON object, each with its path for the error. `null` counts as absent, as the SDKs send it.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::{Invalid, InvalidCode, Unknown};

/// Names of unknown keys that are kept.
const NAMES_MAX: usize = 16;
const NAME_CHARS_MAX: usize = 64;
/// A wrong value is quoted up to here.
const QUOTE_CHARS_MAX: usize = 40;

/// An object whose known keys are taken out one by one.
#[derive(Debug)]
pub(in crate::wire) struct Object {
    path: String,
    map: Map<String, Value>,
}

/// The error for the value at `path`.
pub(in crate::wire) fn invalid(path: impl Into<String>, message: impl Into<String>) -> Invalid {
    Invalid {
        param: Some(path.into()),
        code: InvalidCode::InvalidValue,
        message: message.into(),
    }
}

/// The error for a field that Hearth does not offer.
pub(super) fn unsupported(path: impl Into<String>, message: impl Into<String>) -> Invalid {
    Invalid {
        param: Some(path.into()),
        code: InvalidCode::UnsupportedParameter,
        message: message.into(),
    }
}

/// The kind of a value, for messages that must not quote it.
pub(super) const fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A short quotation of a word that the caller chose from a list.
pub(in crate::wire) fn quote(word: &str) -> String {
    let short: String = word.chars().take(QUOTE_CHARS_MAX).collect();
    if short.len() < word.len() {
        format!("{short:?}...")
    } else {
        format!("{short:?}")
    }
}

fn wrong_kind(path: String, want: &str, got: &Value) -> Invalid {
    let message = format!("expected {want}, got {}", kind_of(got));
    invalid(path, message)
}

/// A value as an object.
pub(super) fn as_object(path: String, value: Value) -> Result<Object, Invalid> {
    if let Value::Object(map) = value {
        return Ok(Object { path, map });
    }
    Err(wrong_kind(path, "an object", &value))
}

/// A value as a string of at most `max` bytes.
pub(super) fn as_string(path: String, value: Value, max: usize) -> Result<String, Invalid> {
    let Value::String(text) = value else {
        return Err(wrong_kind(path, "a string", &value));
    };
    if text.len() > max {
        let message = format!("{} bytes are too long; at most {max}", text.len());
        return Err(invalid(path, message));
    }
    Ok(text)
}

/// A value as an array of at most `max` items.
pub(super) fn as_array(path: String, value: Value, max: usize) -> Result<Vec<Value>, Invalid> {
    let Value::Array(items) = value else {
        return Err(wrong_kind(path, "an array", &value));
    };
    if items.len() > max {
        let message = format!("{} items are too many; at most {max}", items.len());
        return Err(invalid(path, message));
    }
    Ok(items)
}

/// A number as an integer within bounds. `1.0` counts: some languages have one kind of number.
pub(super) fn as_integer(
    path: String,
    value: &Value,
    range: RangeInclusive<i64>,
) -> Result<i64, Invalid> {
    let Value::Number(number) = value else {
        return Err(wrong_kind(path, "an integer", value));
    };
    let integer = number.as_i64().or_else(|| whole(number.as_f64()?));
    integer.filter(|n| range.contains(n)).ok_or_else(|| {
        invalid(
            path,
            format!(
                "{number} is not an integer from {} to {}",
                range.start(),
                range.end()
            ),
        )
    })
}

/// A float that is a whole number small enough to be exact.
fn whole(number: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() <= EXACT {
        // Whole and within 2^53: the text has no fraction and parses exactly.
        format!("{number:.0}").parse().ok()
    } else {
        None
    }
}

/// A finite number within bounds.
pub(super) fn as_number(
    path: String,
    value: &Value,
    range: RangeInclusive<f64>,
) -> Result<f64, Invalid> {
    let Value::Number(number) = value else {
        return Err(wrong_kind(path, "a number", value));
    };
    number
        .as_f64()
        .filter(|n| n.is_finite() && range.contains(n))
        .ok_or_else(|| {
            invalid(
                path,
                format!(
                    "{number} is not a number from {} to {}",
                    range.start(),
                    range.end()
                ),
            )
        })
}

impl Object {
    /// The body itself: keys are their own paths.
    pub(super) const fn root(map: Map<String, Value>) -> Self {
        Self {
            path: String::new(),
            map,
        }
    }

    /// The path of a key.
    pub(in crate::wire) fn at(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// The path of the object.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Whether the key is there and not null.
    pub(super) fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|value| !value.is_null())
    }

    /// Looks at a key without taking it.
    pub(super) fn peek(&self, key: &str) -> Option<&Value> {
        self.map.get(key)
    }

    /// Takes a key out; null is absent.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    pub(in crate::wire) fn string(
        &mut self,
        key: &str,
        max: usize,
    ) -> Result<Option<String>, Invalid> {
        let path = self.at(key);
        self.take(key)
            .map(|value| as_string(path, value, max))
            .transpose()
    }

    /// A string that must be there.
    pub(super) fn required_string(&mut self, key: &str, max: usize) -> Result<String, Invalid> {
        self.string(key, max)?
            .ok_or_else(|| invalid(self.at(key), "missing; a string is required"))
    }

    pub(in crate::wire) fn boolean(&mut self, key: &str) -> Result<Option<bool>, Invalid> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_kind(self.at(key), "true or false", &other)),
        }
    }

    pub(super) fn integer(
        &mut self,
        key: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, Invalid> {
        let path = self.at(key);
        self.take(key)
            .map(|value| as_integer(path, &value, range))
            .transpose()
    }

    /// An integer whose bounds fit `u32`.
    pub(super) fn unsigned(
        &mut self,
        key: &str,
        range: RangeInclusive<u32>,
    ) -> Result<Option<u32>, Invalid> {
        let wide = i64::from(*range.start())..=i64::from(*range.end());
        let number = self.integer(key, wide)?;
        Ok(number.and_then(|number| u32::try_from(number).ok()))
    }

    pub(super) fn number(
        &mut self,
        key: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, Invalid> {
        let path = self.at(key);
        self.take(key)
            .map(|value| as_number(path, &value, range))
            .transpose()
    }

    pub(super) fn array(&mut self, key: &str, max: usize) -> Result<Option<Vec<Value>>, Invalid> {
        let path = self.at(key);
        self.take(key)
            .map(|value| as_array(path, value, max))
            .transpose()
    }

    pub(in crate::wire) fn object(&mut self, key: &str) -> Result<Option<Self>, Invalid> {
        let path = self.at(key);
        self.take(key)
            .map(|value| as_object(path, value))
            .transpose()
    }

    /// What is left as JSON, for parts that travel as they are.
    pub(super) fn into_map(self) -> Map<String, Value> {
        self.map
    }

    /// What is left after every known key was taken.
    pub(in crate::wire) fn unknown(self) -> Unknown {
        let mut names: Vec<String> = self
            .map
            .keys()
            .map(|name| name.chars().take(NAME_CHARS_MAX).collect())
            .collect();
        names.sort_unstable();
        names.truncate(NAMES_MAX);
        Unknown {
            count: self.map.len(),
            names,
        }
    }
}

/// The word that `text` is among `all`, or an error that lists them.
pub(in crate::wire) fn word<T: Copy>(
    path: String,
    text: &str,
    all: &[(&str, T)],
) -> Result<T, Invalid> {
    all.iter()
        .find(|(name, _)| *name == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
            let message = format!("{} is not one of {}", quote(text), names.join(", "));
            invalid(path, message)
        })
}
