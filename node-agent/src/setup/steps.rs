//! What the guided start decides: which model, which section, and how it gets into the settings. No step of it is done here but writing
//! the settings.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use config::settings::load;
use config::settings::node::{Settings, TierSettings};
use config::tier::Tier;

use super::SetupArgs;
use crate::files;
use crate::models::advise::{self, Advice};
use crate::models::catalogue::{self, Entry};
use crate::models::commands;
use crate::models::machine::Machine;

/// What the settings have of what is wanted.
pub(super) enum Served {
    /// This tier is it.
    Already(Box<TierSettings>),
    /// Nothing; the settings as they are, if there are any.
    Not(Option<Box<Settings>>),
}

/// Whether a tier serves what `name` names.
pub(super) fn is_same(tier: &TierSettings, name: &str) -> bool {
    let path = Path::new(name);
    let file = match (fs::canonicalize(path), fs::canonicalize(&tier.model)) {
        (Ok(a), Ok(b)) => a == b || same_content(&a, &b),
        (Ok(_) | Err(_), _) => false,
    };
    file || tier.answers_to(name)
}

/// A file that was imported has another name in the cache, and is the same file there where the disk allows it.
fn same_content(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.ino(), a.dev()) == (b.ino(), b.dev()),
        (Ok(_) | Err(_), _) => false,
    }
}

/// The largest model of the catalogue that fits, beginning with the one for machines like this.
pub(super) fn advised(machine: &Machine) -> &'static str {
    let (_scenario, suits) = advise::scenario(machine);
    let below = catalogue::entries()
        .iter()
        .take_while(|entry| entry.name != suits);
    let smaller: Vec<&Entry> = below.collect();
    let first = catalogue::find(suits);
    let fitting = first
        .into_iter()
        .chain(smaller.into_iter().rev())
        .find(|entry| advise::for_entry(entry, machine).is_ok());
    fitting.map_or(suits, |entry| entry.name.as_str())
}

/// One line about a model on this machine.
pub(super) fn verdict(entry: &Entry, machine: &Machine) -> String {
    match advise::for_entry(entry, machine) {
        Ok(advice) => format!(
            "{} as {}, {} tokens of context for each of {} slots",
            entry.title, advice.quantisation, advice.context, advice.slots
        ),
        Err(refusal) => refusal.to_string(),
    }
}

/// What to fetch for a name: of the catalogue's models, the quantisation that suits the machine.
pub(super) fn checked(name: &str, machine: &Machine) -> Result<String, String> {
    match catalogue::find(name) {
        None => Ok(name.to_owned()),
        Some(entry) => {
            let advice =
                advise::for_entry(entry, machine).map_err(|refusal| refusal.to_string())?;
            super::step("advice", &advice.text());
            Ok(advice.pull.unwrap_or_else(|| name.to_owned()))
        }
    }
}

/// The section for a file that is here.
pub(super) fn section(
    model: &Path,
    name: &str,
    machine: &Machine,
    tier: Option<Tier>,
) -> Result<(Tier, String), String> {
    let mut advice: Advice = commands::advice_for_file(model, machine)?;
    if let Some(tier) = tier {
        tier.as_str().clone_into(&mut advice.tier);
    }
    super::step("advice", &advice.text());
    let tier = advice
        .tier
        .parse()
        .map_err(|_unknown| format!("{} is no tier: fast, primary and heavy are", advice.tier))?;
    let mut text = advice.section(&model.display().to_string());
    if let Some(entry) = catalogue::entries()
        .iter()
        .find(|entry| name.contains(&entry.repo))
    {
        let alias = toml::Value::String(entry.name.clone());
        let _written = writeln!(text, "aliases = [{alias}]");
    }
    Ok((tier, text))
}

/// The settings as they will be.
#[derive(Debug)]
pub(super) struct Written {
    text: String,
}

impl Written {
    /// Adds the section to what is there.
    pub(super) fn plan(
        args: &SetupArgs,
        present: Option<&Settings>,
        tier: Tier,
        section: &str,
    ) -> Result<Self, String> {
        let config = args.config.display();
        let Some(present) = present else {
            let state = args.state_dir.as_ref().map_or_else(String::new, |folder| {
                let folder = toml::Value::String(folder.display().to_string());
                format!("state_dir = {folder}\n")
            });
            let text = format!(
                "# Written by `hearth-node setup`; every key is explained in node.example.toml.\n[node]\n{state}\n{section}"
            );
            return Ok(Self { text });
        };
        if let Some(other) = present.tiers.iter().find(|one| one.tier == tier) {
            return Err(format!(
                "{config} serves {} in tier {tier} already: choose another --tier, or remove that section first",
                other.model_id
            ));
        }
        let before = fs::read_to_string(&args.config)
            .map_err(|error| format!("{config} cannot be read: {error}"))?;
        Ok(Self {
            text: format!("{}\n\n{section}", before.trim_end()),
        })
    }

    /// Reads them before anything is written.
    pub(super) fn settings(&self, config: &Path) -> Result<Settings, String> {
        let outside = load::Outside::this();
        load::parse_node(&config.display().to_string(), &self.text, &outside)
            .map_err(|problems| problems.to_string())
    }

    /// Whole or not at all.
    pub(super) fn write(&self, config: &Path) -> Result<(), String> {
        files::replace(config, self.text.as_bytes())
            .map_err(|error| format!("{} cannot be written: {error}", config.display()))
    }
}
