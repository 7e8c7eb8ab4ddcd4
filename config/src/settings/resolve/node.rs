//! The node's sections.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::log;
use crate::settings::node::{KvType, Node, SamplingDefaults, Settings, TierSettings};
use crate::settings::read::{Loopback, Section};
use crate::tier::Tier;

const TIERS: [(&str, Tier); 3] = [
    ("fast", Tier::Fast),
    ("primary", Tier::Primary),
    ("heavy", Tier::Heavy),
];
const KV_TYPES: [(&str, KvType); 3] = [
    ("f16", KvType::F16),
    ("q8_0", KvType::Q8),
    ("q4_0", KvType::Q4),
];
const NAME_CHARS_MAX: usize = 64;

/// Everything. Missing and wrong values are noted in the document; what comes back then is not used.
pub(in crate::settings) fn settings(mut root: Section<'_>) -> Settings {
    let node = node(root.section("node"));
    let mut seen = BTreeSet::new();
    let mut tiers = Vec::new();
    let sections = root.sections("tiers", Tier::ALL.len());
    let sections_are_empty = root.was_given("tiers") && sections.is_empty();
    for section in sections {
        tiers.extend(tier(section, &mut seen));
    }
    root.missing("tiers", "at least one [[tiers]] with tier and model");
    if sections_are_empty {
        root.problem(
            "tiers",
            "empty: at least one [[tiers]] with tier and model is needed",
        );
    }
    let settings = Settings {
        node,
        tiers,
        log: log(root.section("log")),
    };
    root.close();
    settings
}

fn node(mut section: Section<'_>) -> Node {
    let machine = &section.outside().machine;
    let want = "1 to 64 printable characters";
    let name = section.checked_text("name", want, |name| {
        (1..=NAME_CHARS_MAX).contains(&name.chars().count())
            && !name.trim().is_empty()
            && !name.chars().any(char::is_control)
    });
    let state_dir = section.path("state_dir").or_else(|| {
        if let Some(folder) = &machine.state_directory {
            return Some(folder.clone());
        }
        if machine.root {
            return Some(PathBuf::from("/var/lib/hearth-node"));
        }
        Some(machine.data_home.as_ref()?.join("hearth-node"))
    });
    if state_dir.is_none() {
        section.missing(
            "state_dir",
            "a folder for the node's identity; HOME is not set either",
        );
    }
    let node = Node {
        name: name.unwrap_or_else(|| host_name(&machine.host_name)),
        state_dir: state_dir.unwrap_or_default(),
        bind: section
            .parsed("bind", "an address with port such as 0.0.0.0:0")
            .unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0))),
        admin_listen: section.loopback("admin_listen").and_then(Loopback::address),
        api_listen: section.loopback("api_listen").and_then(Loopback::address),
        grace: section
            .secs("grace_secs", 0..=3600)
            .unwrap_or(Duration::from_secs(30)),
    };
    section.close();
    node
}

/// The host's name without its domain, within the bounds of a node's name.
fn host_name(full: &str) -> String {
    let first = full.split('.').next().unwrap_or_default();
    let name: String = first
        .chars()
        .filter(|c| !c.is_control())
        .take(NAME_CHARS_MAX)
        .collect();
    if name.trim().is_empty() {
        "home".to_owned()
    } else {
        name
    }
}

fn tier(mut section: Section<'_>, seen: &mut BTreeSet<Tier>) -> Option<TierSettings> {
    let tier = section.one_of("tier", &TIERS);
    section.missing("tier", "one of fast, primary, heavy");
    if let Some(tier) = tier
        && !seen.insert(tier)
    {
        section.problem("tier", format!("\"{tier}\" comes twice: one model a tier"));
    }
    let model = section.path("model");
    section.missing("model", "the path of a GGUF file");
    let want = "1 to 128 letters, digits, _ - . : or /";
    let model_id = section.checked_text("model_id", want, |id| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
        (1..=128).contains(&id.len()) && id.chars().all(plain)
    });
    let context = section.integer("context", 64..=16_777_216);
    let slots = section.integer("slots", 1..=256).unwrap_or(4);
    let queue_max = section.integer("queue_max", 1..=100_000).unwrap_or(64);
    let threads = section.integer("threads", 1..=1024);
    let gpu_layers = section.integer("gpu_layers", 0..=10_000);
    let kv_type = section.one_of("kv_type", &KV_TYPES).unwrap_or(KvType::F16);
    let mlock = section.boolean("mlock").unwrap_or(false);
    let sampling = sampling(section.section("sampling"));
    section.close();
    let model = model?;
    Some(TierSettings {
        tier: tier?,
        model_id: model_id.unwrap_or_else(|| model_id_of(&model)),
        model,
        context,
        slots,
        queue_max,
        threads,
        gpu_layers,
        kv_type,
        mlock,
        sampling,
    })
}

fn sampling(mut section: Section<'_>) -> SamplingDefaults {
    // Bounds are narrow enough that an f32 holds what anybody means.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "bounded to 0..=2 just before"
    )]
    let narrow = |number: f64| number as f32;
    let defaults = SamplingDefaults {
        temperature: section.float("temperature", 0.0..=2.0).map(narrow),
        top_k: section.integer("top_k", 1..=1_000_000),
        top_p: section.float("top_p", 0.0..=1.0).map(narrow),
        min_p: section.float("min_p", 0.0..=1.0).map(narrow),
        repeat_penalty: section.float("repeat_penalty", 0.01..=2.0).map(narrow),
    };
    section.close();
    defaults
}

/// `gemma-3-4b-it-Q4_K_M-00001-of-00002.gguf` becomes `gemma-3-4b-it`.
fn model_id_of(model: &Path) -> String {
    let stem = model
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default();
    let mut id = stem.as_str();
    if let Some((head, total)) = id.rsplit_once("-of-")
        && total.bytes().all(|byte| byte.is_ascii_digit())
        && let Some((name, part)) = head.rsplit_once('-')
        && part.bytes().all(|byte| byte.is_ascii_digit())
    {
        id = name;
    }
    if let Some((name, quantisation)) = id.rsplit_once(['-', '.'])
        && is_quantisation(quantisation)
        && !name.is_empty()
    {
        id = name.strip_suffix("-UD").unwrap_or(name);
    }
    let clean: String = id
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':') {
                c
            } else {
                '-'
            }
        })
        .take(128)
        .collect();
    if clean.is_empty() {
        "model".to_owned()
    } else {
        clean
    }
}

/// `Q4_K_M`, `IQ2_XXS`, `q8_0`, `f16`, `BF16`, `MXFP4`.
fn is_quantisation(word: &str) -> bool {
    let word = word.to_ascii_uppercase();
    if matches!(word.as_str(), "F16" | "BF16" | "F32") || word.starts_with("MXFP4") {
        return true;
    }
    let digits = word
        .strip_prefix("IQ")
        .or_else(|| word.strip_prefix("TQ"))
        .or_else(|| word.strip_prefix('Q'));
    digits.is_some_and(|rest| {
        rest.starts_with(|c: char| c.is_ascii_digit())
            && rest
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_id_is_the_stem_without_quantisation() {
        let cases = [
            ("/m/tiny-fast-q8_0.gguf", "tiny-fast"),
            ("gemma-3-4b-it-Q4_K_M.gguf", "gemma-3-4b-it"),
            ("gemma-3-4b-it-UD-Q4_K_XL.gguf", "gemma-3-4b-it"),
            ("big-IQ2_XXS-00001-of-00003.gguf", "big"),
            ("Llama-3.2-1B.F16.gguf", "Llama-3.2-1B"),
            ("gpt-oss-20b-mxfp4.gguf", "gpt-oss-20b"),
            ("qwen2.5.gguf", "qwen2.5"),
            ("my model.gguf", "my-model"),
            ("", "model"),
        ];
        for (file, want) in cases {
            assert_eq!(model_id_of(Path::new(file)), want, "{file}");
        }
    }
}
