//! `node invite`, `node list`, `node revoke`.

use http::Method;

use super::CliError;
use super::args::{NodeInvite, Output};
use super::print::{self, Table};
use super::reach::Reach;
use crate::admin::routes::encoded;
use crate::admin::words::{Invite, InviteOrder, NodeView};

pub(super) async fn invite(
    reach: &mut Reach,
    wanted: NodeInvite,
    output: Output,
) -> Result<(), CliError> {
    let order = InviteOrder {
        name: wanted.name,
        uses: Some(wanted.uses),
        expires_secs: Some(wanted.expires.as_secs()),
        tiers: Some(wanted.tier).filter(|tiers| !tiers.is_empty()),
    };
    let invite: Invite = reach
        .send(Method::POST, "/admin/v1/join-tokens", Some(&order))
        .await?;
    if output == Output::Json {
        return print::json(&invite);
    }
    let machines = match invite.uses {
        1 => "one machine".to_owned(),
        many => format!("{many} machines"),
    };
    print::line(&format!(
        "{}

  Good for {machines} until {}. On the machine at home:
  hearth-node join '{}' --config node.toml",
        invite.link,
        print::date(invite.expires_unix),
        invite.link
    ))
}

pub(super) async fn list(reach: &mut Reach, output: Output) -> Result<(), CliError> {
    let nodes: Vec<NodeView> = reach.all("/admin/v1/nodes").await?;
    if output == Output::Json {
        return print::json(&nodes);
    }
    if nodes.is_empty() {
        return print::line("no nodes yet: hearth-proxy node invite");
    }
    let mut table = Table::new(&["ID", "NAME", "VERSION", "JOINED", "REGISTERED", "STATE"]);
    for node in &nodes {
        table.row(vec![
            node.id.to_string(),
            node.name.clone(),
            node.agent_version.clone(),
            print::date(node.created_unix),
            print::date_or(node.registered_unix, "never"),
            state(node),
        ]);
    }
    print::line(&table.to_string())
}

pub(super) async fn revoke(reach: &mut Reach, node: &str, output: Output) -> Result<(), CliError> {
    let revoked: NodeView = {
        let path = format!("/admin/v1/nodes/{}", encoded(node));
        reach.delete(&path).await?
    };
    if output == Output::Json {
        return print::json(&revoked);
    }
    print::line(&format!("revoked {} ({})", revoked.id, revoked.name))
}

fn state(node: &NodeView) -> String {
    if let Some(revoked) = node.revoked_unix {
        return format!("revoked {}", print::date(revoked));
    }
    match &node.now {
        Some(now) => format!("online: {}", now.tiers.join(", ")),
        None => match node.last_seen_unix {
            Some(seen) => format!("offline since {}", print::date(seen)),
            None => "offline".to_owned(),
        },
    }
}
