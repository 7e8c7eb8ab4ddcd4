//! The words of `audit` and `usage`. Parses; does nothing.

use clap::{Args, Subcommand};
use config::tier::Tier;

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
