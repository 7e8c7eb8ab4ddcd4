//! `node invite`, `node list`, `node drain`, `node undrain`, `node revoke`.

use http::Method;

use super::CliError;
use super::args::{NodeCommand, NodeInvite, Output};
use super::print::{self, Table};
use super::reach::Reach;
use crate::admin::routes::encoded;
use crate::admin::words::{Invite, InviteOrder, NodeView};

pub(super) async fn run(
    reach: &mut Reach,
    command: NodeCommand,
    output: Output,
) -> Result<(), CliError> {
    match command {
        NodeCommand::Invite(wanted) => invite(reach, wanted, output).await,
        NodeCommand::List => list(reach, output).await,
        NodeCommand::Show { node } => show(reach, &node, output).await,
        NodeCommand::Approve { node } => approve(reach, &node, output).await,
        NodeCommand::Drain { node } => drain(reach, (&node, "drain"), output).await,
        NodeCommand::Undrain { node } => drain(reach, (&node, "undrain"), output).await,
        NodeCommand::Revoke { node } => revoke(reach, &node, output).await,
    }
}

async fn invite(reach: &mut Reach, wanted: NodeInvite, output: Output) -> Result<(), CliError> {
    let order = InviteOrder {
        name: wanted.name,
        uses: Some(wanted.uses),
        expires_secs: Some(wanted.expires.as_secs()),
        tiers: Some(wanted.tier).filter(|tiers| !tiers.is_empty()),
        approve: wanted.approve,
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

async fn list(reach: &mut Reach, output: Output) -> Result<(), CliError> {
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
            print::date_or(Some(node.created_unix).filter(|unix| *unix > 0), "-"),
            print::date_or(node.registered_unix, "never"),
            state(node),
        ]);
    }
    print::line(&table.to_string())
}

async fn show(reach: &mut Reach, node: &str, output: Output) -> Result<(), CliError> {
    let path = format!("/admin/v1/nodes/{}", encoded(node));
    let node: NodeView = reach.get(&path).await?;
    if output == Output::Json {
        return print::json(&node);
    }
    let tiers = node.tiers.as_ref().map_or_else(
        || "all".to_owned(),
        |tiers| {
            let names: Vec<&str> = tiers.iter().map(|tier| tier.as_str()).collect();
            names.join(", ")
        },
    );
    print::line(&format!(
        "{} ({})\n  state        {}\n  fingerprint  {}\n  may serve    {tiers}\n  version      {}\n  joined       {}\n  registered   {}\n  seen         {}",
        node.name,
        node.id,
        state(&node),
        node.fingerprint,
        node.agent_version,
        print::date_or(Some(node.created_unix).filter(|unix| *unix > 0), "-"),
        print::date_or(node.registered_unix, "never"),
        print::date_or(node.last_seen_unix, "never"),
    ))
}

async fn approve(reach: &mut Reach, node: &str, output: Output) -> Result<(), CliError> {
    let path = format!("/admin/v1/nodes/{}/approve", encoded(node));
    let node: NodeView = reach.send(Method::POST, &path, None::<&()>).await?;
    if output == Output::Json {
        return print::json(&node);
    }
    print::line(&format!(
        "approved {} ({}): {}; it comes in when it asks again, within a minute",
        node.name, node.id, node.fingerprint
    ))
}

async fn drain(
    reach: &mut Reach,
    (node, verb): (&str, &str),
    output: Output,
) -> Result<(), CliError> {
    let path = format!("/admin/v1/nodes/{}/{verb}", encoded(node));
    let node: NodeView = reach.send(Method::POST, &path, None::<&()>).await?;
    if output == Output::Json {
        return print::json(&node);
    }
    let (name, id) = (&node.name, &node.id);
    print::line(&if node.draining {
        format!("{name} ({id}) gets no new work; `hearth-proxy node undrain {name}` ends that")
    } else {
        format!("{name} ({id}) gets work")
    })
}

async fn revoke(reach: &mut Reach, node: &str, output: Output) -> Result<(), CliError> {
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
    if node.state == "pending" {
        return format!("waits for approval: {}", node.fingerprint);
    }
    match &node.now {
        Some(now) if now.asleep => format!("asleep: {}", now.tiers.join(", ")),
        Some(now) if now.outside => format!("outside: {}", now.tiers.join(", ")),
        Some(now) if node.draining => format!("drained: {}", now.tiers.join(", ")),
        Some(now) => format!("online: {}", now.tiers.join(", ")),
        None => match node.last_seen_unix {
            Some(seen) => format!("offline since {}", print::date(seen)),
            None => "offline".to_owned(),
        },
    }
}
