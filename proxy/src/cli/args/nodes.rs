//! The words of `node`. Parses; does nothing.

use std::time::Duration;

use clap::{Args, Subcommand};
use config::tier::Tier;

use super::duration;

/// `node ...`
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Make a join link and print it, once.
    #[command(after_help = "Examples:
  hearth-proxy node invite
  hearth-proxy node invite --name den --tier fast --tier primary --expires 1h

On the machine at home: hearth-node join 'LINK' --config node.toml (in quotes, the link holds an &).
A server there without an agent: hearth-node config --wg-quick 'LINK' --tier heavy --port 11434 > hearth.conf. Its file leads to this proxy alone:
where several proxies share a store, the others never see that server; a machine with hearth-node is seen by all of them.")]
    Invite(NodeInvite),
    /// List all machines.
    #[command(after_help = "Example:
  hearth-proxy node list --output json")]
    List,
    /// Show one machine.
    #[command(after_help = "Example:
  hearth-proxy node show den")]
    Show {
        /// Its id, or its name if only one has it.
        node: String,
    },
    /// Let a machine in that waits for it; compare the words of `node list` with those that the machine shows first.
    #[command(after_help = "Example:
  hearth-proxy node approve den")]
    Approve {
        /// Its id, or its name if only one has it.
        node: String,
    },
    /// Give a machine no new work, until `undrain`; what runs there finishes. Before an update, a game, a restart.
    #[command(after_help = "Example:
  hearth-proxy node drain den")]
    Drain {
        /// Its id, or its name if only one has it.
        node: String,
    },
    /// Give a drained machine work again.
    #[command(after_help = "Example:
  hearth-proxy node undrain den")]
    Undrain {
        /// Its id, or its name if only one has it.
        node: String,
    },
    /// Cut a machine off, at once and for ever.
    #[command(after_help = "Example:
  hearth-proxy node revoke den

The machine cannot come back under its identity. As a new node it can: stop hearth-node there, delete identity.pem and node.json in its
state directory, and join with a new link (hearth-proxy node invite).")]
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
    /// Each machine waits for `node approve`. Default: if there may be several of them.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    pub approve: Option<bool>,
}
