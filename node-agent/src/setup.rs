//! `hearth-node setup`: from nothing to a machine that serves. Looks at the machine, advises, fetches the model, pins it, measures it,
//! writes node.toml and joins. Each step sees what is done already, so that the same command goes on where the last one stopped. Asks only
//! on a terminal; changes no section that it did not write.

mod steps;

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use config::settings::load;
use config::settings::node::{Settings, TierSettings};
use config::tier::Tier;
use tokio_util::sync::CancellationToken;

use crate::bench::{self, BenchArgs};
use crate::identity::{Identity, Member};
use crate::join::{self, JoinLink};
use crate::models::catalogue;
use crate::models::commands;
use crate::models::lock::{Keeper, name_of};
use crate::models::machine::Machine;
use crate::models::progress::tell;
use crate::tiers::Launcher;
use steps::{Served, Written};

/// `hearth-node setup`
#[derive(Args, Clone, Debug)]
pub struct SetupArgs {
    /// A GGUF file, hf:USER/REPO[:QUANT], or a name of the catalogue such as gemma4:e4b. Default: what suits this machine.
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// The tier that it serves. Default: by its size.
    #[arg(long, value_name = "TIER")]
    pub tier: Option<Tier>,
    /// The settings to write, or to add to.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "node.toml",
        env = "HEARTH_NODE_CONFIG"
    )]
    pub config: PathBuf,
    /// The folder for identity and pins, when the settings are new. Default: that of the settings.
    #[arg(long, value_name = "FOLDER")]
    pub state_dir: Option<PathBuf>,
    /// The link that `hearth-proxy node invite` prints, in quotes.
    #[arg(
        long,
        value_name = "LINK",
        env = "HEARTH_NODE_JOIN",
        hide_env_values = true,
        conflicts_with = "no_join"
    )]
    pub join: Option<String>,
    /// Join no proxy: serve this machine alone.
    #[arg(long)]
    pub no_join: bool,
    /// Measure nothing.
    #[arg(long)]
    pub no_bench: bool,
    /// Ask nobody on the network for the model.
    #[arg(long)]
    pub offline: bool,
    /// Ask no questions: take what is advised.
    #[arg(long)]
    pub yes: bool,
}

/// Does it all; the last words.
pub fn run(args: &SetupArgs, launcher: &Launcher) -> Result<String, String> {
    let asks = !args.yes && io::stdin().is_terminal() && io::stderr().is_terminal();
    if !asks && !args.yes {
        return Err("nobody can be asked here: say --yes to take what is advised, and --model, --tier, --join for what is not".to_owned());
    }
    let guide = Guide { args, asks };
    let machine = Machine::this();
    step("machine", &commands::machine_text(&machine));
    let served = guide.served()?;
    let (model, tier, written) = match served {
        Served::Already(tier) => {
            step(
                "model",
                &format!("{} serves {} already", args.config.display(), tier.model_id),
            );
            (tier.model.clone(), tier.tier, None)
        }
        Served::Not(present) => {
            let name = guide.choose(&machine)?;
            let model = commands::fetch(&name, args.offline)?.model;
            step("pull", &model.display().to_string());
            let (tier, section) = steps::section(&model, &name, &machine, args.tier)?;
            let written = Written::plan(args, present.as_deref(), tier, &section)?;
            (model, tier, Some(written))
        }
    };
    let settings = match &written {
        Some(written) => written.settings(&args.config)?,
        None => settings_of(&args.config)?,
    };
    let tier_settings = settings.tiers.iter().find(|one| one.tier == tier);
    let tier_settings = tier_settings.ok_or("the tier is missing in the settings")?;
    pin(&settings, tier_settings, &model)?;
    if !args.no_bench {
        guide.bench(&settings, tier, launcher)?;
    }
    if let Some(written) = &written {
        written.write(&args.config)?;
        step("settings", &format!("{} is written", args.config.display()));
    }
    guide.join(&settings)
}

struct Guide<'a> {
    args: &'a SetupArgs,
    asks: bool,
}

impl Guide<'_> {
    /// What the settings have already.
    fn served(&self) -> Result<Served, String> {
        if !self.args.config.exists() {
            return Ok(Served::Not(None));
        }
        let settings = settings_of(&self.args.config)?;
        let wanted = self.args.model.as_deref();
        let same = |tier: &&TierSettings| match wanted {
            None => self.args.tier.is_none_or(|wanted| wanted == tier.tier),
            Some(name) => steps::is_same(tier, name),
        };
        let found = settings.tiers.iter().find(same).cloned();
        Ok(found.map_or_else(
            || Served::Not(Some(Box::new(settings))),
            |tier| Served::Already(Box::new(tier)),
        ))
    }

    /// The model's name: as given, as answered, or as advised.
    fn choose(&self, machine: &Machine) -> Result<String, String> {
        let suits = steps::advised(machine);
        if let Some(model) = &self.args.model {
            return steps::checked(model, machine);
        }
        let name = if self.asks {
            for entry in catalogue::entries() {
                tell(&format!(
                    "  {:<16} {}\n",
                    entry.name,
                    steps::verdict(entry, machine)
                ));
            }
            let question = "Which model? A name from above, hf:USER/REPO[:QUANT] or a file";
            ask(question, suits)?
        } else {
            suits.to_owned()
        };
        steps::checked(&name, machine)
    }

    fn bench(&self, settings: &Settings, tier: Tier, launcher: &Launcher) -> Result<(), String> {
        if self.asks && !is_yes(&ask("Measure it now (some seconds)?", "yes")?) {
            return Ok(());
        }
        let mut args = BenchArgs::short(tier);
        args.json = false;
        let settings = settings.clone();
        let outcome = commands::block_on(bench::run(&args, || Ok(settings), launcher))??;
        step("bench", &format!("\n{}", outcome.text));
        Ok(())
    }

    /// Joins unless that was done or is not wanted; the last words.
    fn join(&self, settings: &Settings) -> Result<String, String> {
        let config = self.args.config.display();
        let alone = format!(
            "ready: serve this machine with `hearth-node serve --config {config}`, or join a proxy with `hearth-node join LINK --config {config}`"
        );
        if self.args.no_join {
            return Ok(alone);
        }
        let node = &settings.node;
        let before = Member::load(&node.state_dir).map_err(|error| error.to_string())?;
        let link = match &self.args.join {
            Some(link) => link.clone(),
            None if before.is_some() => String::new(),
            None if self.asks => ask(
                "The link of `hearth-proxy node invite` (empty: none now)",
                "",
            )?,
            None => String::new(),
        };
        let run = format!("start the agent with `hearth-node run --config {config}`");
        if link.is_empty() {
            return Ok(before.map_or(alone, |member| {
                format!("ready: this machine has joined {}; {run}", member.proxy)
            }));
        }
        let link = JoinLink::parse(&link).map_err(|error| error.to_string())?;
        if before
            .as_ref()
            .is_some_and(|member| member.proxy == link.proxy)
        {
            return Ok(format!(
                "ready: this machine has joined {} before; {run}",
                link.proxy
            ));
        }
        let identity = Identity::open(&node.state_dir).map_err(|error| error.to_string())?;
        let joining = join::join(&link, &identity, &node.name, &node.state_dir);
        let joined = commands::block_on(joining)?.map_err(|error| error.to_string())?;
        let member = joined.member;
        step("join", &format!("{} as {}", member.proxy, member.name));
        if !joined.approved {
            let wait = crate::hub::waiting_words(&member.node_id);
            return Ok(format!("{wait}\nthen {run}"));
        }
        Ok(format!("ready: {run}"))
    }
}

fn pin(settings: &Settings, tier: &TierSettings, model: &Path) -> Result<(), String> {
    let keeper = Keeper::new(&settings.node.state_dir);
    crate::files::make_private_dir(&settings.node.state_dir).map_err(|error| error.to_string())?;
    let name = name_of(tier, &settings.tiers);
    let pin = keeper
        .admit(&name, model, &CancellationToken::new())
        .map_err(|error| error.to_string())?;
    step("lock", &format!("{name} is sha256:{}", pin.sha256));
    Ok(())
}

fn settings_of(path: &Path) -> Result<Settings, String> {
    load::node(Some(path)).map_err(|problems| problems.to_string())
}

/// What is being done; beside the result, so that a script can read that alone.
fn step(name: &str, what: &str) {
    tell(&format!("{name:<9} {what}\n"));
}

/// Asks on the terminal; an empty answer is the default.
fn ask(question: &str, default: &str) -> Result<String, String> {
    let shown = if default.is_empty() {
        String::new()
    } else {
        format!(" [{default}]")
    };
    let mut out = io::stderr().lock();
    write!(out, "{question}{shown}: ")
        .and_then(|()| out.flush())
        .map_err(|error| error.to_string())?;
    drop(out);
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    match read.map_err(|error| error.to_string())? {
        0 => Err("stopped; the same command goes on from here".to_owned()),
        _ if line.trim().is_empty() => Ok(default.to_owned()),
        _ => Ok(line.trim().to_owned()),
    }
}

fn is_yes(answer: &str) -> bool {
    matches!(
        answer.to_ascii_lowercase().as_str(),
        "y" | "yes" | "j" | "ja"
    )
}
