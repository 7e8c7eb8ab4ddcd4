//! The words of the command line. Parses; does nothing.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use config::tier::Tier;
use config::units::{UnitError, parse_duration};
use policy::identity::Scope;

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

Key, node and status commands talk to the running proxy through admin.sock in its state directory; when no proxy runs they open
the store themselves. Exit codes: 0 done, 1 failed, 64 the settings or the command line are wrong."
)]
pub struct Cli {
    /// The settings file; without one the defaults hold.
    #[arg(long, global = true, value_name = "FILE", env = "HEARTH_PROXY_CONFIG")]
    pub config: Option<PathBuf>,
    /// How results look.
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,
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
    Serve,
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
    /// Exit 0 if the proxy answers; for container health checks.
    #[command(after_help = "Examples:
  hearth-proxy health --config /etc/hearth/proxy.toml
  hearth-proxy health --url https://llm.example.org/healthz")]
    Health {
        /// Ask this address instead of the admin socket: 200 is healthy.
        #[arg(long, value_name = "URL")]
        url: Option<String>,
        /// Accept any certificate of that address.
        #[arg(long, requires = "url")]
        insecure: bool,
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

/// `key ...`
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key and print it, once.
    #[command(after_help = "Examples:
  hearth-proxy key create --name laptop
  hearth-proxy key create --name ci --owner build --expires 30d --tier fast --text-per-day 1000
  hearth-proxy key create --name prometheus --scope metrics
  hearth-proxy key create --name root --admin --output json")]
    Create(KeyCreate),
    /// List all keys; their secrets are nowhere.
    #[command(after_help = "Example:
  hearth-proxy key list --output json")]
    List,
    /// End a key, at once and for ever.
    #[command(after_help = "Example:
  hearth-proxy key revoke 4fJ0aXb2Qz")]
    Revoke {
        /// Its id (ten characters), or the whole key.
        key: String,
    },
}

/// `key create`
#[derive(Args, Debug)]
pub struct KeyCreate {
    /// What people call it.
    #[arg(long)]
    pub name: String,
    /// Whose it is; default the name. Keys of one owner share their limits.
    #[arg(long)]
    pub owner: Option<String>,
    /// An administrator's key (`hearth_ak_...`): every scope.
    #[arg(long, conflicts_with = "scope")]
    pub admin: bool,
    /// What it may do: inference, models, metrics, admin. Again for more; default inference and models.
    #[arg(long)]
    pub scope: Vec<Scope>,
    /// A tier it may use: fast, primary, heavy. Again for more; default all.
    #[arg(long)]
    pub tier: Vec<Tier>,
    /// A model it may use. Again for more; default all.
    #[arg(long)]
    pub model: Vec<String>,
    /// Life, as 12h or 30d; default for ever.
    #[arg(long, value_parser = duration)]
    pub expires: Option<Duration>,
    /// Figures of a plan of the settings ([limits.plans.NAME]).
    #[arg(long)]
    pub plan: Option<String>,
    /// Text requests a minute.
    #[arg(long, value_name = "N")]
    pub text_per_minute: Option<u32>,
    /// Media requests a minute.
    #[arg(long, value_name = "N")]
    pub media_per_minute: Option<u32>,
    /// Text requests a day.
    #[arg(long, value_name = "N")]
    pub text_per_day: Option<u32>,
    /// Media requests a day.
    #[arg(long, value_name = "N")]
    pub media_per_day: Option<u32>,
    /// Open requests.
    #[arg(long, value_name = "N")]
    pub concurrent: Option<u32>,
}

/// `node ...`
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Make a join link and print it, once.
    #[command(after_help = "Examples:
  hearth-proxy node invite
  hearth-proxy node invite --name den --tier fast --tier primary --expires 1h

On the machine at home: hearth-node join 'LINK' --config node.toml (in quotes, the link holds an &).")]
    Invite(NodeInvite),
    /// List all machines.
    #[command(after_help = "Example:
  hearth-proxy node list --output json")]
    List,
    /// Cut a machine off, at once and for ever.
    #[command(after_help = "Example:
  hearth-proxy node revoke den")]
    Revoke {
        /// Its id, or its name if only one has it.
        node: String,
    },
}

/// `node invite`
#[derive(Args, Debug)]
pub struct NodeInvite {
    /// What people call the link.
    #[arg(long, default_value = "")]
    pub name: String,
    /// Machines that may join with it.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub uses: u32,
    /// Life, as 15m or 1h.
    #[arg(long, default_value = "15m", value_parser = duration)]
    pub expires: Duration,
    /// A tier those machines may serve. Again for more; default all.
    #[arg(long)]
    pub tier: Vec<Tier>,
}

/// `route ...`
#[derive(Debug, Subcommand)]
pub enum RouteCommand {
    /// Show which tier the classifier would choose, and why.
    #[command(after_help = "Examples:
  hearth-proxy route explain 'prove that there are infinitely many primes'
  hearth-proxy route explain - < prompt.txt")]
    Explain {
        /// What a user would write; `-` reads standard input.
        text: String,
    },
}

fn duration(text: &str) -> Result<Duration, UnitError> {
    parse_duration(text)
}
