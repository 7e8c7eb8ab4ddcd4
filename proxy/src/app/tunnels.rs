//! How the tunnel to a node is, in words for the administrator. Looks; changes nothing.

use config::ids::NodeId;
use tunnel::{PeerStatus, Tunnel};

use crate::admin::words::NodeTunnel;
use crate::nodes::fleet::Fleet;
use crate::nodes::members::{Member, Members};

/// What a node without an agent speaks.
const STOCK: &str = "stock";

/// The tunnel to this node; `None`: it is not in it.
pub(super) fn look(
    id: &NodeId,
    fleet: &Fleet,
    members: &Members,
    tunnel: &Tunnel,
) -> Option<NodeTunnel> {
    let member = members.member(id)?;
    let status = tunnel.peer_status(member.address)?;
    Some(told(
        &status,
        (back_end(&member, fleet), tunnel.backend().name()),
    ))
}

fn told(status: &PeerStatus, (theirs, ours): (Option<&'static str>, &str)) -> NodeTunnel {
    let by_udp = status.endpoint.map(|endpoint| endpoint.to_string());
    let carried = || {
        status
            .remote
            .map(|remote| remote.to_canonical().to_string())
    };
    let rejected = status.rejected.each().into_iter();
    NodeTunnel {
        carrier: status.path.as_str().to_owned(),
        address: by_udp.or_else(carried),
        mtu: status.mtu,
        back_end: theirs.map(str::to_owned),
        proxy_back_end: ours.to_owned(),
        handshake_age_secs: status
            .since_handshake
            .map(|age| thousandths(age.as_secs_f64())),
        heard_secs_ago: status.since_heard.map(|age| thousandths(age.as_secs_f64())),
        round_trip_ms: status
            .round_trip
            .map(|time| thousandths(time.as_secs_f64() * 1_000.0)),
        loss_percent: status.loss_per_mille.map(|loss| f64::from(loss) / 10.0),
        received_bytes: status.rx_bytes,
        sent_bytes: status.tx_bytes,
        rejected: rejected
            .filter(|(_, packets)| *packets > 0)
            .map(|(reason, packets)| (reason.to_owned(), packets))
            .collect(),
    }
}

/// As exact as anybody reads it.
fn thousandths(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

/// Who does TCP at its end, as far as it told.
fn back_end(member: &Member, fleet: &Fleet) -> Option<&'static str> {
    if member.remote().is_some() {
        return Some(STOCK);
    }
    fleet.with(|router| {
        let mut nodes = router.registry().nodes();
        let node = nodes.find(|node| node.id == member.id)?;
        Some(node.back_end?.as_str())
    })
}
