//! The node's sections.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::proxy::{BACKENDS, count};
use super::remote::is_at_home;
use super::wake::wake;
use super::{log, split_port};
use crate::settings::node::{
    EngineSettings, KvType, LoraSettings, MetricsCompat, Node, Pooling, ReasoningFormat,
    SamplingDefaults, Settings, Split, TierKind, TierSettings, ToolFormat, Upstream, Wake,
};
use crate::settings::proxy::Backend;
use crate::settings::read::{Loopback, Section};
use crate::tier::Tier;
use crate::units::{UnitError, parse_duration};

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
const KINDS: [(&str, TierKind); 3] = [
    ("chat", TierKind::Chat),
    ("embedding", TierKind::Embedding),
    ("rerank", TierKind::Rerank),
];
const POOLINGS: [(&str, Pooling); 3] = [
    ("mean", Pooling::Mean),
    ("cls", Pooling::Cls),
    ("last", Pooling::Last),
];
const SPLITS: [(&str, Split); 3] = [
    ("none", Split::None),
    ("layer", Split::Layer),
    ("row", Split::Row),
];
const TOOL_FORMATS: [(&str, ToolFormat); 6] = [
    ("hermes", ToolFormat::Hermes),
    ("gemma4", ToolFormat::Gemma4),
    ("llama3", ToolFormat::Llama3),
    ("mistral", ToolFormat::Mistral),
    ("mistral_args", ToolFormat::MistralArgs),
    ("qwen_xml", ToolFormat::QwenXml),
];
const REASONING_FORMATS: [(&str, ReasoningFormat); 5] = [
    ("none", ReasoningFormat::None),
    ("think", ReasoningFormat::Think),
    ("gemma4", ReasoningFormat::Gemma4),
    ("mistral", ReasoningFormat::Mistral),
    ("seed", ReasoningFormat::Seed),
];
/// The binding of llama.cpp replaces an adapter by the next one.
const LORAS_MAX: usize = 1;
/// Ethernet over IPv4 carries this much inside the tunnel.
const MTU_MAX: usize = 1440;
const NAME_CHARS_MAX: usize = 64;
const MODEL_NAME: &str = "1 to 128 letters, digits, _ - . : or /";
const ALIASES_MAX: usize = 16;
const SYSTEM_BYTES_MAX: usize = 64 * 1024;

/// Everything. Missing and wrong values are noted in the document; what comes back then is not used.
pub(in crate::settings) fn settings(mut root: Section<'_>) -> Settings {
    let wake = wake(root.section("wake"));
    let mut overlay = root.section("tunnel");
    let backend = overlay.one_of("backend", &BACKENDS).unwrap_or_default();
    let carrier = overlay.boolean("carrier").unwrap_or(true);
    let mtu_max = overlay
        .integer("mtu_max", 1200..=1500)
        .map_or(MTU_MAX, count);
    overlay.close();
    let node = Node {
        wake,
        backend,
        carrier,
        mtu_max,
        ..node(root.section("node"))
    };
    let mut seen = Seen::default();
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
            .parsed("bind", "an address with port such as [::]:0")
            .unwrap_or_else(|| SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))),
        admin_listen: section.loopback("admin_listen").and_then(Loopback::address),
        api_listen: section.loopback("api_listen").and_then(Loopback::address),
        memory_max: section.bytes("memory_max", 1..=u64::MAX),
        watts: watts(&mut section),
        metrics_compat: section
            .list("metrics_compat", 2, "llamacpp or vllm")
            .unwrap_or_default()
            .into_iter()
            .map(|Compat(compat)| compat)
            .collect(),
        rekey: section
            .secs("rekey_secs", 1..=604_800)
            .unwrap_or(Duration::from_hours(24)),
        refused_retry: section
            .secs("refused_retry_secs", 1..=3600)
            .unwrap_or(Duration::from_mins(1)),
        grace: section
            .secs("grace_secs", 0..=3600)
            .unwrap_or(Duration::from_secs(30)),
        wake: Wake::default(),
        backend: Backend::default(),
        carrier: true,
        mtu_max: MTU_MAX,
    };
    section.close();
    node
}

/// A name of another server's metrics.
struct Compat(MetricsCompat);

impl FromStr for Compat {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "llamacpp" => Ok(Self(MetricsCompat::Llamacpp)),
            "vllm" => Ok(Self(MetricsCompat::Vllm)),
            _other => Err(()),
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "bounded to 1..=100,000 just before"
)]
fn watts(section: &mut Section<'_>) -> Option<f32> {
    let watts = section.float("watts", 1.0..=100_000.0);
    watts.map(|watts| watts as f32)
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

/// What other sections took already.
#[derive(Default)]
struct Seen {
    tiers: BTreeSet<Tier>,
    names: BTreeSet<String>,
}

/// A name that clients write for a model.
struct ModelName(String);

impl FromStr for ModelName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        is_model_name(text).then(|| Self(text.to_owned())).ok_or(())
    }
}

fn is_model_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
    (1..=128).contains(&name.len()) && name.chars().all(plain)
}

fn aliases(section: &mut Section<'_>, seen: &mut BTreeSet<String>) -> Vec<String> {
    let names: Vec<ModelName> = section
        .list("aliases", ALIASES_MAX, MODEL_NAME)
        .unwrap_or_default();
    for ModelName(name) in &names {
        if !seen.insert(name.clone()) {
            section.problem(
                "aliases",
                format!("\"{name}\" comes twice: it would mean two things"),
            );
        } else if name == "auto" || TIERS.iter().any(|(tier, _tier)| tier == name) {
            section.problem(
                "aliases",
                format!(
                    "\"{name}\" has a meaning already: auto and the tiers are no model's names"
                ),
            );
        }
    }
    names.into_iter().map(|ModelName(name)| name).collect()
}

fn tier(mut section: Section<'_>, seen: &mut Seen) -> Option<TierSettings> {
    let tier = section.one_of("tier", &TIERS);
    section.missing("tier", "one of fast, primary, heavy");
    if let Some(tier) = tier
        && !seen.tiers.insert(tier)
    {
        section.problem("tier", format!("\"{tier}\" comes twice: one model a tier"));
    }
    let (upstream, model) = source(&mut section);
    let model_id = section.checked_text("model_id", MODEL_NAME, is_model_name);
    let aliases = aliases(&mut section, &mut seen.names);
    let system = section.checked_text("system", "1 byte to 64 KiB of text", |text| {
        (1..=SYSTEM_BYTES_MAX).contains(&text.len())
    });
    let context = section.integer("context", 64..=16_777_216);
    let slots = section.integer("slots", 1..=64).unwrap_or(4);
    let queue_max = section.integer("queue_max", 1..=100_000).unwrap_or(64);
    let threads = section.integer("threads", 1..=1024);
    let gpu_layers = section.integer("gpu_layers", 0..=10_000);
    let kv_type = section.one_of("kv_type", &KV_TYPES).unwrap_or(KvType::F16);
    let mlock = section.boolean("mlock").unwrap_or(false);
    let keep_alive = section
        .parsed("keep_alive", "a time such as \"5m\", or \"forever\"")
        .unwrap_or(KeepAlive(None));
    let load_on_demand = section.boolean("load_on_demand").unwrap_or(false);
    let (kind, pooling) = kind(&mut section, upstream.is_some());
    let lora = section.sections("lora", LORAS_MAX).into_iter();
    let lora = lora.filter_map(adapter).collect();
    let engine = engine(section.section("engine"));
    let sampling = sampling(section.section("sampling"));
    section.close();
    let named = upstream.as_ref().map(|upstream| {
        upstream
            .model
            .clone()
            .unwrap_or_else(|| "remote".to_owned())
    });
    let model = model.or_else(|| upstream.is_some().then(PathBuf::new))?;
    Some(TierSettings {
        tier: tier?,
        model_id: model_id.or(named).unwrap_or_else(|| model_id_of(&model)),
        model,
        upstream,
        aliases,
        system,
        context,
        slots,
        queue_max,
        threads,
        gpu_layers,
        kv_type,
        mlock,
        keep_alive: keep_alive.0,
        load_on_demand,
        kind,
        pooling,
        lora,
        engine,
        sampling,
    })
}

/// Where the tier's model is: in another server, or in a file.
fn source(section: &mut Section<'_>) -> (Option<Upstream>, Option<PathBuf>) {
    let upstream = upstream(section);
    let model = section.path("model");
    if upstream.is_none() {
        section.missing(
            "model",
            "the path of a GGUF file, or upstream = the address of a server",
        );
    } else if model.is_some() {
        section.problem("model", "upstream is set too: set one of them".to_owned());
    }
    (upstream, model)
}

/// What the tier's model makes.
fn kind(section: &mut Section<'_>, is_elsewhere: bool) -> (TierKind, Option<Pooling>) {
    let kind = section.one_of("kind", &KINDS).unwrap_or_default();
    let pooling = section.one_of("pooling", &POOLINGS);
    if pooling.is_some() && kind != TierKind::Embedding {
        section.problem(
            "pooling",
            "means nothing without kind = \"embedding\"".to_owned(),
        );
    }
    if kind != TierKind::Chat && is_elsewhere {
        section.problem(
            "kind",
            "a server elsewhere is asked for text alone; leave it out".to_owned(),
        );
    }
    (kind, pooling)
}

/// An adapter of a tier.
fn adapter(mut section: Section<'_>) -> Option<LoraSettings> {
    let path = section.path("path");
    section.missing("path", "the adapter's GGUF file");
    // Within these bounds an f32 holds what anybody means.
    #[expect(clippy::cast_possible_truncation, reason = "bounded to -100..=100")]
    let scale = section.float("scale", -100.0..=100.0).unwrap_or(1.0) as f32;
    section.close();
    Some(LoraSettings { path: path?, scale })
}

/// Another server that runs the tier's model.
fn upstream(section: &mut Section<'_>) -> Option<Upstream> {
    let want = "an address such as \"http://192.168.1.20:11434/v1\"";
    let url = section.checked_text("upstream", want, |url| {
        let rest = url
            .strip_prefix("http://")
            .or_else(|| url.strip_prefix("https://"));
        rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['@', '?', '#', ' ']))
    });
    let model = section.checked_text("upstream_model", "1 to 256 characters", |id| {
        (1..=256).contains(&id.len()) && !id.chars().any(char::is_control)
    });
    let key = section.secret("upstream_key", "upstream_key_file");
    let local = section.boolean("upstream_local");
    if url.is_none() {
        for (key, given) in [
            ("upstream_model", model.is_some()),
            ("upstream_key", key.is_some()),
            ("upstream_local", local.is_some()),
        ] {
            if given {
                section.problem(key, "means nothing without upstream".to_owned());
            }
        }
    }
    let url = url?;
    Some(Upstream {
        local: local.unwrap_or_else(|| is_at_home(host_of(&url))),
        url,
        model,
        key,
    })
}

/// The host of an address that begins with its scheme.
fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    split_port(authority).map_or("", |(host, _)| host)
}

/// How long an unused model stays; `None`: for ever.
struct KeepAlive(Option<Duration>);

impl FromStr for KeepAlive {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text == "forever" {
            return Ok(Self(None));
        }
        parse_duration(text).map(|duration| Self(Some(duration)))
    }
}

fn engine(mut section: Section<'_>) -> EngineSettings {
    let plain = EngineSettings::default();
    let engine = EngineSettings {
        flash_attention: section.boolean("flash_attention"),
        batch: section.integer("batch", 32..=8_192).unwrap_or(plain.batch),
        threads_batch: section.integer("threads_batch", 1..=512),
        kv_unified: section.boolean("kv_unified").unwrap_or(plain.kv_unified),
        kv_tokens: section.integer("kv_tokens", 64..=16_777_216),
        swa_full: section.boolean("swa_full").unwrap_or(plain.swa_full),
        mmap: section.boolean("mmap").unwrap_or(plain.mmap),
        main_gpu: section.integer("main_gpu", 0..=64),
        prompt_cache_bytes: section
            .bytes("prompt_cache_bytes", 0..=1_099_511_627_776)
            .unwrap_or(plain.prompt_cache_bytes),
        prompt_dir: section.path("prompt_dir"),
        draft_model: section.path("draft_model"),
        projector: section.path("projector"),
        draft_max: section
            .integer("draft_max", 1..=64)
            .unwrap_or(plain.draft_max),
        ngram: section.boolean("ngram").unwrap_or(plain.ngram),
        ubatch: section.integer("ubatch", 32..=8_192),
        split: section.one_of("split", &SPLITS),
        sandbox: section.boolean("sandbox").unwrap_or(plain.sandbox),
        chat_template_file: section.path("chat_template_file"),
        tool_format: section.one_of("tool_format", &TOOL_FORMATS),
        reasoning_format: section.one_of("reasoning_format", &REASONING_FORMATS),
    };
    section.close();
    engine
}

fn sampling(mut section: Section<'_>) -> SamplingDefaults {
    let mut number = |key: &'static str, least: f64, most: f64| {
        // Bounds are narrow enough that an f32 holds what anybody means.
        #[expect(
            clippy::cast_possible_truncation,
            reason = "bounded to -2..=100 just before"
        )]
        let narrow = |number: f64| number as f32;
        section.float(key, least..=most).map(narrow)
    };
    let mut defaults = SamplingDefaults {
        temperature: number("temperature", 0.0, 2.0),
        dynatemp_range: number("dynatemp_range", 0.0, 2.0),
        dynatemp_exponent: number("dynatemp_exponent", 0.0, 10.0),
        top_p: number("top_p", 0.0, 1.0),
        min_p: number("min_p", 0.0, 1.0),
        typical_p: number("typical_p", 0.0, 1.0),
        top_n_sigma: number("top_n_sigma", 0.0, 100.0),
        xtc_probability: number("xtc_probability", 0.0, 1.0),
        xtc_threshold: number("xtc_threshold", 0.0, 1.0),
        repeat_penalty: number("repeat_penalty", 0.01, 2.0),
        presence_penalty: number("presence_penalty", -2.0, 2.0),
        frequency_penalty: number("frequency_penalty", -2.0, 2.0),
        dry_multiplier: number("dry_multiplier", 0.0, 100.0),
        dry_base: number("dry_base", 1.0, 10.0),
        mirostat_tau: number("mirostat_tau", 0.0, 100.0),
        mirostat_eta: number("mirostat_eta", 0.0, 1.0),
        ..SamplingDefaults::default()
    };
    defaults.top_k = section.integer("top_k", 1..=1_000_000);
    defaults.repeat_last_n = section.integer("repeat_last_n", 0..=16_777_216);
    defaults.dry_allowed_length = section.integer("dry_allowed_length", 0..=16_777_216);
    defaults.dry_penalty_last_n = section.integer("dry_penalty_last_n", 0..=16_777_216);
    defaults.mirostat = section.integer("mirostat", 0..=2);
    defaults.dry_sequence_breakers = section.list("dry_sequence_breakers", 64, "a text");
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

    #[test]
    fn other_names_are_taken_once_and_mean_no_tier() {
        use crate::settings::load::{Outside, parse_node};
        let parse = |more: &str| {
            let text = format!(
                "[node]\nstate_dir = \"/s\"\n[[tiers]]\ntier = \"fast\"\nmodel = \"/m.gguf\"\naliases = [\"gemma4:e2b\"]\n{more}"
            );
            parse_node("node.toml", &text, &Outside::this())
                .map_err(|problems| problems.to_string())
        };
        let settings = parse("system = \"Be brief.\"\n").expect("is right");
        let fast = settings.tiers.first().expect("one");
        assert!(fast.answers_to("gemma4:e2b") && fast.answers_to("m") && !fast.answers_to("x"));
        assert_eq!(fast.system.as_deref(), Some("Be brief."));
        let second = "[[tiers]]\ntier = \"heavy\"\nmodel = \"/h.gguf\"\naliases = ";
        for (names, want) in [
            ("[\"gemma4:e2b\"]", "comes twice"),
            ("[\"primary\"]", "has a meaning already"),
            ("[\"a b\"]", "1 to 128 letters"),
        ] {
            let problems = parse(&format!("{second}{names}\n")).expect_err(names);
            assert!(problems.contains(want), "{problems}");
        }
    }
}
