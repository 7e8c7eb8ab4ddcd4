//! The models known before they are on the disk, from `catalogue.toml`, and the names that others use for them. A table with readers.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

/// One model.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// As Ollama writes it.
    pub name: String,
    /// For people.
    pub title: String,
    /// Where its GGUF files are.
    pub repo: String,
    /// All numbers; all of them are resident.
    pub parameters: u64,
    /// Numbers that compute one token.
    pub active: u64,
    /// Tokens it was trained for.
    pub context: u64,
    /// Memory of one token of context at 16 bits, in bytes; estimated.
    pub kv_bytes_per_token: u64,
    /// What it understands.
    pub modalities: Vec<String>,
    /// The tier it suits.
    pub tier: String,
    /// Figures that others published, unmeasured.
    pub claimed: Claimed,
}

/// Figures that others published.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Claimed {
    /// Video memory, GB.
    pub vram_gb: String,
    /// On a GTX 1650.
    pub tokens_per_second: u32,
    /// Arena.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arena_elo: Option<u32>,
    /// Percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub livecodebench_v6: Option<f64>,
    /// Percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aime_2026: Option<f64>,
}

#[derive(Deserialize)]
struct Catalogue {
    models: Vec<Entry>,
}

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let parsed: Result<Catalogue, _> = toml::from_str(include_str!("catalogue.toml"));
    parsed.map(|catalogue| catalogue.models).unwrap_or_default()
});

/// From small to large.
pub fn entries() -> &'static [Entry] {
    &ENTRIES
}

/// The entry that a name means: `gemma4:26b-moe`, `gemma4:26b` and `Gemma4:26B-A4B` are one model.
pub fn find(name: &str) -> Option<&'static Entry> {
    let name = name.to_ascii_lowercase();
    let name = match name.as_str() {
        "gemma4:26b" | "gemma4:26b-moe" => "gemma4:26b-a4b",
        "gemma4" | "gemma4:latest" => "gemma4:e4b",
        other => other,
    };
    entries().iter().find(|entry| entry.name == name)
}

/// Quantisations from the best that home machines use to the last resort, with the bits that one number takes on average.
pub const LADDER: [(&str, f64); 6] = [
    ("Q8_0", 8.5),
    ("Q6_K", 6.6),
    ("Q5_K_M", 5.7),
    ("Q4_K_M", 4.9),
    ("Q3_K_M", 4.0),
    ("Q2_K", 3.2),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_reads_and_its_names_are_found() {
        assert_eq!(entries().len(), 4);
        assert_eq!(
            find("gemma4:26b-moe").map(|entry| entry.claimed.arena_elo),
            Some(Some(1441))
        );
        for name in ["gemma4:e2b", "gemma4:e4b", "gemma4:31b"] {
            assert!(find(name).is_some(), "{name}");
        }
        assert!(find("llama3").is_none());
    }
}
