//! The three tiers of a home: how they are called, ordered and parsed. Decides nothing.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A class of local model, ordered from the cheapest to the strongest.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The smallest model: greetings, short questions.
    Fast,
    /// The everyday model.
    Primary,
    /// The strongest model the home has.
    Heavy,
}

impl Tier {
    /// All tiers, cheapest first.
    pub const ALL: [Self; 3] = [Self::Fast, Self::Primary, Self::Heavy];

    /// The name used in requests, configuration, logs, metrics and `_routing`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Primary => "primary",
            Self::Heavy => "heavy",
        }
    }

    /// The tier to try when this one cannot answer: heavy, then primary, then fast.
    pub const fn fallback(self) -> Option<Self> {
        match self {
            Self::Heavy => Some(Self::Primary),
            Self::Primary => Some(Self::Fast),
            Self::Fast => None,
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text named no tier.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a tier is fast, primary or heavy")]
pub struct UnknownTier;

impl FromStr for Tier {
    type Err = UnknownTier;

    fn from_str(text: &str) -> Result<Self, UnknownTier> {
        Self::ALL
            .into_iter()
            .find(|tier| tier.as_str() == text)
            .ok_or(UnknownTier)
    }
}
