//! One value and where it was written; converts, judges nothing.

use toml::de::DeValue;

use crate::settings::problem::Origin;

/// One value and where it was written.
pub(super) struct Given<'d> {
    pub(super) value: DeValue<'d>,
    pub(super) origin: Origin,
}

/// A value for a message: short, and without the password of a URL.
pub(super) fn show(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => {
            let short: String = text.chars().take(60).collect();
            // Looked for in the whole text: a long password must not slip out with its beginning.
            match text.split_once("://") {
                Some((scheme, rest)) if rest.contains('@') => format!("\"{scheme}://***\""),
                Some(_) | None => format!("{short:?}"),
            }
        }
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

impl Given<'_> {
    pub(super) fn is_of_environment(&self) -> bool {
        matches!(self.origin, Origin::Environment(_))
    }

    pub(super) fn text(&self) -> Option<&str> {
        self.value.as_str()
    }

    /// The text of an environment variable, which has no type of its own.
    fn variable(&self) -> Option<&str> {
        self.text().filter(|_| self.is_of_environment())
    }

    pub(super) fn integer(&self) -> Option<i64> {
        if let DeValue::Integer(number) = &self.value {
            return i64::from_str_radix(number.as_str(), number.radix()).ok();
        }
        self.variable()?.parse().ok()
    }

    pub(super) fn float(&self) -> Option<f64> {
        if let DeValue::Float(number) = &self.value {
            return number.as_str().parse().ok();
        }
        if let DeValue::Integer(number) = &self.value {
            return number.as_str().parse().ok();
        }
        self.variable()?.parse().ok()
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        match self.value.as_bool() {
            Some(value) => Some(value),
            None => self.variable()?.parse().ok(),
        }
    }
}
