//! The words of the command line. Parses; does nothing.

mod books;
mod keys;
mod nodes;
mod people;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use config::tier::Tier;
use config::units::{UnitError, parse_duration};

pub(super) use books::{AuditCommand, UsageAsk};
pub(super) use keys::{Figures, KeyCommand, KeyCreate, KeySet};
pub(super) use nodes::{NodeCommand, NodeInvite};
pub(super) use people::{UserCommand, UserSet};

/// The public edge of Hearth: HTTPS in front, your own machines behind.
#[derive(Debug, Parser)]
#[command(
    name = "hearth-proxy",
    version,
    propagate_version = true,
    after_help = "Examples:
  hearth-proxy serve --config /etc/hearth/proxy.toml
  hearth-proxy config check /etc/hearth/proxy.toml
  hearth-proxy key create --name laptop
  hearth-proxy node invite
  hearth-proxy route explain 'prove that there are infinitely many primes'

Key, user, plan, node, usage, audit, store and status commands speak /admin/v1: to the running proxy through admin.sock in its state
directory, to another one with --server URL --admin-key-file FILE; when no proxy runs here they open the store themselves.
Exit codes: 0 done, 1 failed or refused, 64 the settings or the command line are wrong."
)]
pub struct Cli {
    /// The settings file; without one the defaults hold.
    #[arg(long, global = true, value_name = "FILE", env = "HEARTH_PROXY_CONFIG")]
    pub config: Option<PathBuf>,
    /// How results look.
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// The same as --output json.
    #[arg(long, global = true, conflicts_with = "output")]
    pub json: bool,
    /// Administer the proxy at this address instead of the one on this machine.
    #[arg(long, global = true, value_name = "URL", env = "HEARTH_SERVER")]
    pub server: Option<String>,
    /// An administrator's key for --server, in a file.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "HEARTH_ADMIN_KEY_FILE"
    )]
    pub admin_key_file: Option<PathBuf>,
    /// The same key from the environment; there is no flag for it, because everybody on a machine can read command lines.
    #[arg(skip = std::env::var("HEARTH_ADMIN_KEY").ok())]
    pub admin_key: Option<String>,
    /// Accept any certificate of --server or of `health --url`.
    #[arg(long, global = true)]
    pub insecure: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How results look.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For scripts.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy until SIGTERM.
    #[command(after_help = "Example:
  hearth-proxy serve --config /etc/hearth/proxy.toml

SIGTERM drains and ends, a second one ends at once; SIGHUP reads the certificate and [limits] again.")]
    Serve {
        /// Take over from the proxy that runs with the same state directory: no connection is refused, running answers finish there
        /// first. Starts as usual where none runs.
        #[arg(long)]
        upgrade: bool,
    },
    /// Look at the settings.
    #[command(
        subcommand,
        after_help = "Example:
  hearth-proxy config check /etc/hearth/proxy.toml"
    )]
    Config(ConfigCommand),
    /// Make, list and end API keys.
    #[command(
        subcommand,
        after_help = "Examples:
  hearth-proxy key create --name laptop
  hearth-proxy key list
  hearth-proxy key revoke 4fJ0aXb2Qz"
    )]
    Key(KeyCommand),
    /// Invite, list and cut off home machines.
    #[command(
        subcommand,
        after_help = "Examples:
  hearth-proxy node invite
  hearth-proxy node list
  hearth-proxy node revoke den"
    )]
    Node(NodeCommand),
    /// See who was here; change plan and limits, close accounts, shut people out.
    #[command(
        subcommand,
        after_help = "Examples:
  hearth-proxy user list
  hearth-proxy user set 'https://login.example.org|ada' --plan family --tokens-per-day 200000
  hearth-proxy user deny 'https://login.example.org|ada' --reason 'left the company'
  hearth-proxy user export ada > ada.json"
    )]
    User(UserCommand),
    /// The plans of the settings.
    #[command(subcommand)]
    Plan(PlanCommand),
    /// Look after the store.
    #[command(
        subcommand,
        after_help = "Examples:
  hearth-proxy store backup /var/backups/hearth.redb
  hearth-proxy store export house.jsonl --config embedded.toml
  hearth-proxy store import house.jsonl --config redis.toml"
    )]
    Store(StoreCommand),
    /// What was used, by whom, and what it cost.
    #[command(after_help = "Examples:
  hearth-proxy usage
  hearth-proxy usage --by model --per month --from 2026-01-01 --to 2026-12-31
  hearth-proxy usage --user ada --by model
  hearth-proxy usage --records --format csv > usage.csv")]
    Usage(UsageAsk),
    /// Who administered what.
    #[command(
        subcommand,
        after_help = "Examples:
  hearth-proxy audit list
  hearth-proxy audit verify"
    )]
    Audit(AuditCommand),
    /// Print completions for a shell.
    #[command(after_help = "Examples:
  hearth-proxy completions bash > /etc/bash_completion.d/hearth-proxy
  hearth-proxy completions zsh > ~/.zfunc/_hearth-proxy
  hearth-proxy completions fish > ~/.config/fish/completions/hearth-proxy.fish")]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// See how requests are routed.
    #[command(
        subcommand,
        after_help = "Example:
  hearth-proxy route explain 'prove that there are infinitely many primes'"
    )]
    Route(RouteCommand),
    /// Show the running proxy at a glance.
    #[command(after_help = "Example:
  hearth-proxy status --output json --config /etc/hearth/proxy.toml")]
    Status,
    /// Look at everything between a client and an answer (settings, store, HTTPS, issuers, machines, one real question) and say what is
    /// wrong and what to do. Exit code 1 if something fails.
    #[command(after_help = "Example:
  sudo hearth-proxy doctor --config /etc/hearth/proxy.toml

On the proxy's machine. The question is asked over HTTPS with a key of its own, which lives for a minute and is revoked at once.")]
    Doctor,
    /// Exit 0 if the proxy answers; for container health checks.
    #[command(after_help = "Examples:
  hearth-proxy health --config /etc/hearth/proxy.toml
  hearth-proxy health --url https://llm.example.org/healthz")]
    Health {
        /// Ask this address instead of the admin socket: 200 is healthy.
        #[arg(long, value_name = "URL")]
        url: Option<String>,
    },
}

/// `config ...`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every problem with its place and what would be right; exit 64 if there is one.
    #[command(after_help = "Example:
  hearth-proxy config check /etc/hearth/proxy.toml")]
    Check {
        /// The settings file; default: --config.
        file: Option<PathBuf>,
    },
}

/// `store ...`
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Copy the embedded store into a new file, as one moment, while the proxy runs. The copy is a store of its own: put it in
    /// place of the store's file of a stopped proxy.
    Backup {
        /// Where; on the proxy's machine, readable for its user alone.
        file: PathBuf,
    },
    /// Write everything into a new file: keys, people, nodes, secrets, counters and the books. For a store that no proxy uses
    /// meanwhile; with it, a house moves from the embedded store to Redis and back. Whoever reads the file has all secrets.
    Export {
        /// Where; readable for its owner alone.
        file: PathBuf,
    },
    /// Fill an empty store from such a file.
    Import {
        /// The file.
        file: PathBuf,
    },
}

/// `plan ...`
#[derive(Debug, Subcommand)]
pub enum PlanCommand {
    /// List the plans of the settings.
    List,
}

/// `route ...`
#[derive(Debug, Subcommand)]
pub enum RouteCommand {
    /// Show which tier the classifier would choose, and why, and where the running proxy would send it.
    #[command(after_help = "Examples:
  hearth-proxy route explain 'prove that there are infinitely many primes'
  hearth-proxy route explain --tier heavy --local-only 'hello'
  hearth-proxy route explain --json - < prompt.txt")]
    Explain {
        /// What a user would write; `-` reads standard input.
        text: String,
        /// The request asks for this tier.
        #[arg(long)]
        tier: Option<Tier>,
        /// The request asks for this model; `auto` leaves it to the classifier.
        #[arg(long)]
        model: Option<String>,
        /// The request must stay at home.
        #[arg(long)]
        local_only: bool,
    },
}

fn duration(text: &str) -> Result<Duration, UnitError> {
    parse_duration(text)
}
