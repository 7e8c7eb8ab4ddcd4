//! `node invite`, `node list`, `node show`, `node approve`, `node drain`, `node undrain`, `node revoke`. Prints; decides nothing.

use http::Method;

use super::CliError;
use super::args::{NodeCommand, NodeInvite, Output};
use super::print::{self, Table};
use super::reach::Reach;
use crate::admin::COME_BACK;
use crate::admin::routes::encoded;
use crate::admin::words::{Invite, InviteOrder, NodeTunnel, NodeView};

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
    ))?;
    invite.warning.map_or(Ok(()), |warning| {
        print::line(&format!("\n  Warning: {warning}"))
    })
}

async fn list(reach: &mut Reach, output: Output) -> Result<(), CliError> {
    let nodes: Vec<NodeView> = reach.all("/admin/v1/nodes").await?;
    if output == Output::Json {
        return print::json(&nodes);
    }
    if nodes.is_empty() {
        return print::line("no nodes yet: hearth-proxy node invite");
    }
    let mut table = Table::new(&[
        "NAME",
        "VIA",
        "ROUND TRIP",
        "LOSS",
        "MTU",
        "BACK-END",
        "HANDSHAKE",
        "IN",
        "OUT",
        "VERSION",
        "ID",
        "STATE",
    ]);
    for node in &nodes {
        let mut row = vec![node.name.clone()];
        row.extend(tunnel_cells(node.tunnel.as_ref()));
        row.extend([
            dash(node.agent_version.clone()),
            node.id.to_string(),
            state(node),
        ]);
        table.row(row);
    }
    print::line(&table.to_string())
}

/// The tunnel in eight columns.
fn tunnel_cells(tunnel: Option<&NodeTunnel>) -> [String; 8] {
    let Some(tunnel) = tunnel.filter(|tunnel| tunnel.handshake_age_secs.is_some()) else {
        return std::array::from_fn(|_| "-".to_owned());
    };
    let or_dash = |cell: Option<String>| cell.unwrap_or_else(|| "-".to_owned());
    [
        via(tunnel).to_owned(),
        or_dash(tunnel.round_trip_ms.map(|ms| format!("{ms:.1} ms"))),
        or_dash(tunnel.loss_percent.map(|loss| format!("{loss:.1} %"))),
        tunnel.mtu.to_string(),
        or_dash(tunnel.back_end.clone()),
        or_dash(tunnel.handshake_age_secs.map(print::span)),
        print::bytes(tunnel.received_bytes),
        print::bytes(tunnel.sent_bytes),
    ]
}

fn via(tunnel: &NodeTunnel) -> &'static str {
    if tunnel.carrier == "wss" {
        "WebSocket"
    } else {
        "UDP"
    }
}

fn dash(cell: String) -> String {
    if cell.is_empty() {
        return "-".to_owned();
    }
    cell
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
    let mut lines = vec![
        ("state", state(&node)),
        ("fingerprint", dash(node.fingerprint.clone())),
        ("may serve", tiers),
        ("version", dash(node.agent_version.clone())),
        (
            "joined",
            print::date_or(Some(node.created_unix).filter(|unix| *unix > 0), "-"),
        ),
        ("registered", print::date_or(node.registered_unix, "never")),
        ("seen", seen(&node)),
    ];
    lines.extend(tunnel_lines(&node));
    let lines = lines.iter().map(|(what, said)| {
        let said = said.replace(char::is_control, "?");
        format!("\n  {what:<12} {said}")
    });
    let name = node.name.replace(char::is_control, "?");
    print::line(&format!(
        "{name} ({}){}",
        node.id,
        lines.collect::<String>()
    ))
}

fn seen(node: &NodeView) -> String {
    match &node.now {
        Some(now) if !now.asleep => format!("{} s ago", now.seen_secs_ago),
        Some(_) | None => print::date_or(node.last_seen_unix, "never"),
    }
}

/// How somebody at the machine finds out why there is no session.
fn remedy(node: &NodeView) -> &'static str {
    if is_stock(node) {
        "none: see there with `wg show`, and whether UDP to the proxy's tunnel port gets out. Its file leads to one proxy alone: of several, ask that one"
    } else {
        "none: see there with `hearth-node doctor`"
    }
}

/// It has no agent.
fn is_stock(node: &NodeView) -> bool {
    node.agent_version == "unmanaged"
}

/// The tunnel in words.
fn tunnel_lines(node: &NodeView) -> Vec<(&'static str, String)> {
    let none = || vec![("tunnel", remedy(node).to_owned())];
    let Some(tunnel) = &node.tunnel else {
        return if node.state == "approved" {
            none()
        } else {
            Vec::new()
        };
    };
    let Some(age) = tunnel.handshake_age_secs else {
        return none();
    };
    let from = tunnel.address.as_deref().unwrap_or("an unknown address");
    let way = if tunnel.carrier == "wss" {
        format!("by WebSocket from {from}, because no UDP gets through")
    } else {
        format!("by UDP from {from}")
    };
    let measured = |value: Option<f64>, unit: &str| {
        value.map_or_else(
            || "not measured yet".to_owned(),
            |value| format!("{value:.1} {unit}"),
        )
    };
    let there = tunnel.back_end.as_deref().unwrap_or("not told");
    let rejected: Vec<String> = tunnel
        .rejected
        .iter()
        .map(|(reason, packets)| format!("{reason} {packets}"))
        .collect();
    let rejected = if rejected.is_empty() {
        "none".to_owned()
    } else {
        rejected.join(", ")
    };
    vec![
        ("tunnel", way),
        ("handshake", format!("{} ago", print::span(age))),
        ("round trip", measured(tunnel.round_trip_ms, "ms")),
        ("loss", measured(tunnel.loss_percent, "%")),
        ("packets", format!("up to {} bytes", tunnel.mtu)),
        (
            "back-end",
            format!("{there} there, {} here", tunnel.proxy_back_end),
        ),
        (
            "bytes",
            format!(
                "{} in, {} out",
                print::bytes(tunnel.received_bytes),
                print::bytes(tunnel.sent_bytes)
            ),
        ),
        ("rejected", rejected),
    ]
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
    print::line(&revocation(&revoked))
}

/// What became of a node, and how its machine is one again.
fn revocation(node: &NodeView) -> String {
    let come_back = if is_stock(node) {
        "to come back as a new node, the machine needs a new file: `hearth-node config --wg-quick LINK` with a link of `hearth-proxy node invite`"
    } else {
        COME_BACK
    };
    format!(
        "revoked {} ({}): its sessions and running answers are cut at every proxy, and it cannot come back under this identity; {come_back}",
        node.id, node.name
    )
}

fn state(node: &NodeView) -> String {
    if let Some(revoked) = node.revoked_unix {
        return format!("revoked {}", print::date(revoked));
    }
    if node.state == "pending" {
        return format!("waits for approval: {}", node.fingerprint);
    }
    let has_session = |tunnel: &NodeTunnel| tunnel.handshake_age_secs.is_some();
    if is_stock(node) && !node.tunnel.as_ref().is_some_and(has_session) {
        return "offline: no WireGuard session with it".to_owned();
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

#[cfg(test)]
mod tests {
    use config::ids::NodeId;

    use super::*;
    use crate::admin::words::NodeNow;

    fn view(agent_version: &str) -> NodeView {
        let now = NodeNow {
            id: NodeId::new("node_den"),
            seen_secs_ago: 1,
            asleep: false,
            outside: false,
            tiers: Vec::new(),
        };
        NodeView {
            agent_version: agent_version.to_owned(),
            ..NodeView::outside(now)
        }
    }

    #[test]
    fn whoever_revokes_a_machine_hears_how_it_comes_back() {
        let said = revocation(&view("0.1.0"));
        for word in ["node_den", "identity.pem", "node.json", "node invite"] {
            assert!(said.contains(word), "{said}");
        }
        let said = revocation(&view("unmanaged"));
        assert!(said.contains("config --wg-quick"), "{said}");
        assert!(!said.contains("identity.pem"), "it has none: {said}");
    }

    #[test]
    fn a_server_without_an_agent_is_looked_for_at_the_proxy_of_its_file() {
        let said = remedy(&view("unmanaged"));
        assert!(said.contains("one proxy alone"), "{said}");
    }
}
