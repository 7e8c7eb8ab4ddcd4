//! The commands about models: `pull`, `advise`, `models` and their parts. Says results on the standard output and everything else beside it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use super::advise::{self, Advice};
use super::cache::{self, Cache};
use super::catalogue;
use super::gguf::Gguf;
use super::lock::{Keeper, Lock, name_of};
use super::machine::Machine;
use super::memory::Shape;
use super::modelfile::{Modelfile, is_name};
use super::progress::{EVENT_EVERY, end_line, size, tell};
use super::pull::{Pulled, Puller};
use super::source::Source;
use config::settings::node::Settings;

/// What Ctrl-C leaves.
const INTERRUPTED: &str = "stopped; what came is kept, and the same command goes on from there";

/// `hearth-node pull`
#[derive(Args, Debug)]
pub struct PullArgs {
    /// `hf:USER/REPO[:QUANT]`, `https://HOST/FILE.gguf`, `ollama:NAME[:TAG]`, a name of the catalogue such as gemma4:e4b, or a file.
    pub model: String,
    /// Ask nobody: what is on the disk, or an error.
    #[arg(long)]
    pub offline: bool,
    /// Say everything about the result as JSON instead of the model's path.
    #[arg(long)]
    pub json: bool,
    /// Where standard error is no terminal, tell of the download as JSON every so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = seconds)]
    pub progress_every: f64,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_error| format!("\"{text}\" is no number of seconds"))?;
    if (0.1..=3600.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err(format!("{seconds} is not within 0.1 and 3600 seconds"))
    }
}

/// `hearth-node advise`
#[derive(Args, Debug)]
pub struct AdviseArgs {
    /// A GGUF file, or a name of the catalogue such as gemma4:e4b. Default: what suits this machine best.
    pub model: Option<String>,
    /// For programs.
    #[arg(long)]
    pub json: bool,
}

/// `hearth-node models ...`
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// Say which models are on the disk, which are pinned and which are served. Needs no network.
    List {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Say what a GGUF file is, from its header.
    Show {
        /// The file.
        file: PathBuf,
    },
    /// Show the pins, or accept what a model is now.
    Lock {
        /// The model's name, as clients write it.
        #[arg(long, value_name = "NAME")]
        update: Option<String>,
    },
    /// Read an Ollama Modelfile and print the [[tiers]] section that says the same.
    Import {
        /// The Modelfile.
        file: PathBuf,
        /// Which tier it becomes.
        #[arg(long, default_value = "primary", value_parser = ["fast", "primary", "heavy"])]
        tier: String,
        /// Ask nobody.
        #[arg(long)]
        offline: bool,
    },
}

/// Fetches a model; the text to print.
pub fn pull(args: &PullArgs) -> Result<String, String> {
    let every = Duration::from_secs_f64(args.progress_every);
    let pulled = fetch_telling(&args.model, args.offline, every)?;
    if args.json {
        return serde_json::to_string_pretty(&pulled).map_err(|error| error.to_string());
    }
    Ok(pulled.model.display().to_string())
}

/// Fetches what a name of any kind means.
pub fn fetch(name: &str, offline: bool) -> Result<Pulled, String> {
    fetch_telling(name, offline, EVENT_EVERY)
}

fn fetch_telling(name: &str, offline: bool, every: Duration) -> Result<Pulled, String> {
    let known = catalogue::find(name).map(|entry| format!("hf:{}", entry.repo));
    let source =
        Source::parse(known.as_deref().unwrap_or(name)).map_err(|error| error.to_string())?;
    block_on(async {
        // A write beyond the limit of files is then an error with a text, not the end of the process (signal(7), SIGXFSZ).
        let limit = tokio::signal::unix::SignalKind::from_raw(25);
        let _too_large = tokio::signal::unix::signal(limit);
        let puller =
            Puller::new(&cache::environment, offline).map_err(|error| error.to_string())?;
        let puller = puller.with_events(every);
        tokio::select! {
            pulled = puller.pull(&source) => pulled.map_err(|error| error.to_string()),
            _asked = tokio::signal::ctrl_c() => {
                end_line();
                Err(INTERRUPTED.to_owned())
            }
        }
    })?
}

/// Runs one command's work to its end.
pub fn block_on<F: Future>(work: F) -> Result<F::Output, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let done = runtime.block_on(work);
    // A hash of a large file may still be running.
    runtime.shutdown_background();
    Ok(done)
}

/// Advises; the text to print.
pub fn advise(args: &AdviseArgs) -> Result<String, String> {
    let machine = Machine::this();
    let (scenario, suits) = advise::scenario(&machine);
    let name = args.model.as_deref().unwrap_or(suits);
    let advice = match catalogue::find(name) {
        Some(entry) => advise::for_entry(entry, &machine).map_err(|refusal| refusal.to_string())?,
        None => advice_for_file(Path::new(name), &machine)?,
    };
    if args.json {
        let all = serde_json::json!({"machine": machine, "scenario": scenario, "suits": suits, "advice": advice});
        return serde_json::to_string_pretty(&all).map_err(|error| error.to_string());
    }
    Ok(format!(
        "this machine: {}\nlike: {scenario} (suits {suits})\n\n{}",
        machine_text(&machine),
        advice.text()
    ))
}

/// A machine in one line.
pub fn machine_text(machine: &Machine) -> String {
    let gpus: Vec<String> = machine
        .gpus
        .iter()
        .map(|gpu| format!("{} ({} free)", gpu.name, size(gpu.free_bytes)))
        .collect();
    format!(
        "{} of {} memory free, {} cores, reads {}/s, {}",
        size(machine.ram_available_bytes),
        size(machine.ram_total_bytes),
        machine.cores,
        size(machine.memory_bytes_per_second),
        if gpus.is_empty() {
            "no GPU with memory of its own".to_owned()
        } else {
            gpus.join(", ")
        },
    )
}

/// Advice for a file that is here.
pub fn advice_for_file(path: &Path, machine: &Machine) -> Result<Advice, String> {
    let gguf = Gguf::open_whole(path).map_err(|problem| problem.to_string())?;
    let shape = Shape::of(&gguf).map_err(|reason| format!("{}: {reason}", path.display()))?;
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let quantisation = gguf
        .quantisation()
        .or_else(|| super::choose::quant_of(&name))
        .unwrap_or("unknown");
    advise::for_file(&name, quantisation, &shape, machine).map_err(|refusal| refusal.to_string())
}

/// The commands under `models`; the text to print. `settings` are asked for only where they are needed.
pub fn models(
    command: &ModelsCommand,
    settings: impl FnOnce() -> Result<Settings, String>,
) -> Result<String, String> {
    match command {
        ModelsCommand::List { json } => list(settings().ok().as_ref(), *json),
        ModelsCommand::Show { file } => show(file),
        ModelsCommand::Lock { update: None } => pins(&settings()?),
        ModelsCommand::Lock { update: Some(name) } => accept(&settings()?, name),
        ModelsCommand::Import {
            file,
            tier,
            offline,
        } => import(file, tier, *offline),
    }
}

fn list(settings: Option<&Settings>, json: bool) -> Result<String, String> {
    let cached = Cache::find(&cache::environment)
        .map(|cache| cache.all())
        .unwrap_or_default();
    let lock = settings
        .map(|settings| Lock::read(&settings.node.state_dir))
        .transpose()
        .map_err(|error| error.to_string())?;
    let lock = lock.unwrap_or_default();
    let served: Vec<(&str, &str, &Path)> = settings
        .iter()
        .flat_map(|settings| &settings.tiers)
        .map(|tier| {
            (
                tier.tier.as_str(),
                tier.model_id.as_str(),
                tier.model.as_path(),
            )
        })
        .collect();
    if json {
        let served: Vec<_> = served
            .iter()
            .map(|(tier, id, path)| serde_json::json!({"tier": tier, "model": id, "path": path}))
            .collect();
        let all = serde_json::json!({"cached": cached, "locked": lock.models, "served": served});
        return serde_json::to_string_pretty(&all).map_err(|error| error.to_string());
    }
    let mut lines = vec![format!("on the disk ({}):", cached.len())];
    lines.extend(cached.iter().map(|file| {
        format!(
            "  {} {} ({}, {})",
            file.repo,
            file.file,
            size(file.bytes),
            file.revision.get(..7).unwrap_or_default()
        )
    }));
    lines.push(format!("pinned ({}):", lock.models.len()));
    lines.extend(
        lock.models
            .iter()
            .map(|(name, pin)| format!("  {name}: {} sha256:{}", pin.file, pin.sha256)),
    );
    lines.push(format!("served ({}):", served.len()));
    lines.extend(
        served
            .iter()
            .map(|(tier, id, path)| format!("  {tier}: {id} from {}", path.display())),
    );
    Ok(lines.join("\n"))
}

fn show(file: &Path) -> Result<String, String> {
    let gguf = Gguf::open_whole(file).map_err(|problem| problem.to_string())?;
    let mut lines = vec![
        format!(
            "architecture   {}",
            gguf.architecture().unwrap_or("unknown")
        ),
        format!(
            "name           {}",
            gguf.text("general.name").unwrap_or("unknown")
        ),
        format!(
            "licence        {}",
            gguf.text("general.license").unwrap_or("not said")
        ),
        format!(
            "quantisation   {}",
            gguf.quantisation().unwrap_or("unknown")
        ),
        format!("parameters     {}", gguf.parameters()),
        format!(
            "tensors        {} ({})",
            gguf.tensors.len(),
            size(gguf.tensor_bytes())
        ),
        format!("tokenizer      sha256:{}", gguf.tokenizer_sha256),
        format!(
            "chat template  {}",
            gguf.chat_template().map_or_else(
                || "none".to_owned(),
                |text| format!("{} characters", text.chars().count())
            )
        ),
    ];
    if let Ok(shape) = Shape::of(&gguf) {
        lines.push(format!(
            "layers         {}, trained for {} tokens, vocabulary of {}",
            shape.layers, shape.context_max, shape.vocabulary
        ));
    }
    Ok(lines.join("\n"))
}

fn pins(settings: &Settings) -> Result<String, String> {
    let lock = Lock::read(&settings.node.state_dir).map_err(|error| error.to_string())?;
    toml::to_string_pretty(&lock).map_err(|error| error.to_string())
}

fn accept(settings: &Settings, name: &str) -> Result<String, String> {
    let tier = settings.tiers.iter().find(|tier| {
        name_of(tier, &settings.tiers) == name
            || tier.answers_to(name)
            || tier.tier.as_str() == name
    });
    let tier = tier.ok_or_else(|| {
        let known: Vec<&str> = settings
            .tiers
            .iter()
            .map(|tier| tier.model_id.as_str())
            .collect();
        format!(
            "no tier serves {name}; the settings serve {}",
            known.join(", ")
        )
    })?;
    let keeper = Keeper::new(&settings.node.state_dir);
    let name = name_of(tier, &settings.tiers);
    let (before, now) = keeper
        .update(&name, &tier.model, &CancellationToken::new())
        .map_err(|error| error.to_string())?;
    Ok(match before {
        Some(before) => format!(
            "{name}: sha256:{} is accepted instead of sha256:{}",
            now.sha256, before.sha256
        ),
        None => format!("{name}: sha256:{} is pinned", now.sha256),
    })
}

fn import(file: &Path, tier: &str, offline: bool) -> Result<String, String> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
    let modelfile =
        Modelfile::parse(&text).map_err(|error| format!("{}: {error}", file.display()))?;
    if let Some(adapter) = modelfile.adapters.first() {
        tell(&format!(
            "ADAPTER {adapter} is not carried over yet: add it to the tier yourself\n"
        ));
    }
    let from = &modelfile.from;
    let name = match catalogue::find(from) {
        Some(entry) => format!("hf:{}", entry.repo),
        None if is_name(from) => format!("ollama:{from}"),
        None => from.clone(),
    };
    let model = fetch(&name, offline)?.model;
    Ok(modelfile.section(tier, &model.display().to_string()))
}
