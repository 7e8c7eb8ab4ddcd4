//! The words of the command line. Parses; does nothing.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use config::settings::proxy::Plan;
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
    /// Show one key.
    Show {
        /// Its id (ten characters), or the whole key.
        key: String,
    },
    /// Change what a key may do.
    #[command(after_help = "Examples:
  hearth-proxy key set 4fJ0aXb2Qz --name phone --tier fast
  hearth-proxy key set 4fJ0aXb2Qz --all-tiers --act-as true")]
    Set(KeySet),
    /// Give a key a new secret and print it, once; the old one stays good for a while.
    #[command(after_help = "Example:
  hearth-proxy key rotate 4fJ0aXb2Qz --grace 1h")]
    Rotate {
        /// Its id (ten characters), or the whole key.
        key: String,
        /// How long the old secret stays good; 0s ends it now.
        #[arg(long, default_value = "24h", value_parser = duration)]
        grace: Duration,
    },
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
    /// A group of the owner that its requests count for. Again for more.
    #[arg(long)]
    pub group: Vec<String>,
    /// Whose house it belongs to; default home.
    #[arg(long)]
    pub tenant: Option<String>,
    /// It may name end users (x-hearth-user).
    #[arg(long)]
    pub act_as: bool,
    /// Making it again with the same name for the request makes nothing new.
    #[arg(long, value_name = "TEXT")]
    pub idempotency_key: Option<String>,
    /// Figures of a plan of the settings ([limits.plans.NAME]).
    #[arg(long)]
    pub plan: Option<String>,
    /// The figures below bound this key alone, besides its owner's; otherwise they are its owner's.
    #[arg(long)]
    pub key_alone: bool,
    /// Figures.
    #[command(flatten)]
    pub figures: Figures,
}

/// `key set`
#[derive(Args, Debug)]
pub struct KeySet {
    /// Its id (ten characters), or the whole key.
    pub key: String,
    /// What people call it.
    #[arg(long)]
    pub name: Option<String>,
    /// What it may do. Again for more.
    #[arg(long)]
    pub scope: Vec<Scope>,
    /// A tier it may use. Again for more.
    #[arg(long)]
    pub tier: Vec<Tier>,
    /// It may use every tier.
    #[arg(long, conflicts_with = "tier")]
    pub all_tiers: bool,
    /// A model it may use. Again for more.
    #[arg(long)]
    pub model: Vec<String>,
    /// It may use every model.
    #[arg(long, conflicts_with = "model")]
    pub all_models: bool,
    /// A group that its requests count for. Again for more.
    #[arg(long)]
    pub group: Vec<String>,
    /// Whether it may name end users.
    #[arg(long)]
    pub act_as: Option<bool>,
    /// When it ends, Unix seconds.
    #[arg(long, value_name = "SECONDS")]
    pub expires_unix: Option<i64>,
    /// The figures below bound this key alone, besides its owner's; otherwise they are its owner's.
    #[arg(long)]
    pub key_alone: bool,
    /// Figures; they replace all that the key had.
    #[command(flatten)]
    pub figures: Figures,
}

/// Figures of a plan.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Figures {
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
    /// Tokens a minute.
    #[arg(long, value_name = "N")]
    pub tokens_per_minute: Option<u64>,
    /// Tokens a day.
    #[arg(long, value_name = "N")]
    pub tokens_per_day: Option<u64>,
    /// Tokens a month.
    #[arg(long, value_name = "N")]
    pub tokens_per_month: Option<u64>,
}

impl Figures {
    /// These figures, and those of a plan where there are none.
    pub(super) fn over(self, plan: Plan) -> Plan {
        Plan {
            text_per_minute: self.text_per_minute,
            media_per_minute: self.media_per_minute,
            text_per_day: self.text_per_day,
            media_per_day: self.media_per_day,
            concurrent: self.concurrent,
            tokens_per_minute: self.tokens_per_minute,
            tokens_per_day: self.tokens_per_day,
            tokens_per_month: self.tokens_per_month,
            ..Plan::default()
        }
        .over(plan)
    }
}

/// `user ...`
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// List everybody who came through an issuer or owns a key.
    List,
    /// Show one person.
    Show {
        /// As the list shows it.
        user: String,
    },
    /// Change plan, limits or groups, close or open the account.
    Set(UserSet),
    /// Shut a person out of every proxy, whatever the issuer says.
    Deny {
        /// As the list shows it.
        user: String,
        /// For administrators.
        #[arg(long, default_value = "")]
        reason: String,
        /// Only what was signed in before now: whoever signs in again enters.
        #[arg(long)]
        sessions: bool,
        /// Life, as 12h or 30d; default until it is taken back.
        #[arg(long, value_parser = duration)]
        expires: Option<Duration>,
    },
    /// Let a person in again.
    Undeny {
        /// As the list shows it.
        user: String,
    },
    /// The deny list.
    Denials,
    /// Print everything that is kept about a person, as JSON.
    Export {
        /// As the list shows it.
        user: String,
    },
    /// Forget a person: account, keys and usage. There is no way back.
    Erase {
        /// As the list shows it.
        user: String,
        /// Yes.
        #[arg(long, required = true)]
        yes: bool,
    },
}

/// `user set`
#[derive(Args, Debug)]
pub struct UserSet {
    /// As the list shows it.
    pub user: String,
    /// A plan of the settings.
    #[arg(long, conflicts_with = "no_plan")]
    pub plan: Option<String>,
    /// The issuer's plan again, or the defaults.
    #[arg(long)]
    pub no_plan: bool,
    /// A group. Again for more.
    #[arg(long)]
    pub group: Vec<String>,
    /// Close the account.
    #[arg(long, conflicts_with = "enable")]
    pub disable: bool,
    /// Open it again.
    #[arg(long)]
    pub enable: bool,
    /// Take all figures of this person back.
    #[arg(long)]
    pub no_figures: bool,
    /// Figures that win over every plan; they replace all that the person had.
    #[command(flatten)]
    pub figures: Figures,
}

/// `plan ...`
#[derive(Debug, Subcommand)]
pub enum PlanCommand {
    /// List the plans of the settings.
    List,
}

/// `audit ...`
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// List every administrative act, the oldest first.
    List,
    /// Look whether a line was changed or removed; exit 1 if so.
    Verify,
}

/// `usage`
#[derive(Args, Debug)]
pub struct UsageAsk {
    /// The first day; default 29 days before the last.
    #[arg(long, value_name = "DAY")]
    pub from: Option<String>,
    /// The last day; default today.
    #[arg(long, value_name = "DAY")]
    pub to: Option<String>,
    /// A row for each day, month, or one for all: day, month, total.
    #[arg(long, value_name = "TIME")]
    pub per: Option<String>,
    /// A row for each user, key, model, tier or node; `day` and `month` are the same as with --per.
    #[arg(long, value_name = "WHAT", value_parser = ["day", "month", "user", "key", "model", "tier", "node"])]
    pub by: Option<String>,
    /// Only this person.
    #[arg(long)]
    pub user: Option<String>,
    /// Only this key.
    #[arg(long)]
    pub key: Option<String>,
    /// Only this model.
    #[arg(long)]
    pub model: Option<String>,
    /// Only this tier.
    #[arg(long)]
    pub tier: Option<Tier>,
    /// Only this node.
    #[arg(long)]
    pub node: Option<String>,
    /// Whose house; default home.
    #[arg(long)]
    pub tenant: Option<String>,
    /// Request by request.
    #[arg(long, conflicts_with_all = ["per", "by"])]
    pub records: bool,
    /// Lines for a spreadsheet, the same as --format csv.
    #[arg(long, conflicts_with = "format")]
    pub csv: bool,
    /// Lines for a spreadsheet instead of a table: csv.
    #[arg(long, value_name = "FORMAT", value_parser = ["csv", "json"])]
    pub format: Option<String>,
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
