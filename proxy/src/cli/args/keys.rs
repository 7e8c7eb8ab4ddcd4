//! The words of `key`. Parses; does nothing.

use std::time::Duration;

use clap::{Args, Subcommand};
use config::settings::proxy::Plan;
use config::tier::Tier;
use policy::identity::Scope;

use super::duration;

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
    /// What it asks never leaves the tiers at home.
    #[arg(long)]
    pub local_only: bool,
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
    /// Whether what it asks never leaves the tiers at home.
    #[arg(long)]
    pub local_only: Option<bool>,
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
    pub(in crate::cli) fn over(self, plan: Plan) -> Plan {
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
