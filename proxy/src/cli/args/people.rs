//! The words of `user`. Parses; does nothing.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{Figures, duration};

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
    /// Whether what the person asks never leaves the tiers at home.
    #[arg(long)]
    pub local_only: Option<bool>,
    /// Figures that win over every plan; they replace all that the person had.
    #[command(flatten)]
    pub figures: Figures,
}
