//! Who can send a packet to a machine that sleeps: nodes of the same place that are awake and said that they would.

use std::net::IpAddr;
use std::time::Instant;

use config::ids::NodeId;
use config::wire::wake::WakeReport;

use crate::registry::{Node, Registry};

/// Neighbours that are asked, one after the other.
const NEIGHBOURS_MAX: usize = 3;

/// Nodes that can wake `sleeper`, the one heard of last first. `public` tells from which address of the internet a node was last heard.
pub fn neighbours(
    sleeper: &Node,
    registry: &Registry,
    public: impl Fn(&NodeId) -> Option<IpAddr>,
    now: Instant,
) -> Vec<NodeId> {
    let Some(wake) = sleeper.wake.as_ref().filter(|wake| wake.can_be_woken()) else {
        return Vec::new();
    };
    let home = public(&sleeper.id);
    let is_neighbour = |node: &&Node| {
        let is_here = node.asleep.is_none() && !registry.is_silent(node, now);
        let others = node.wake.as_ref().filter(|wake| wake.wakes_others);
        node.id != sleeper.id
            && is_here
            && others.is_some_and(|other| is_one_place(wake, other, (home, public(&node.id))))
    };
    let mut all: Vec<&Node> = registry.nodes().filter(is_neighbour).collect();
    all.sort_by_key(|node| std::cmp::Reverse(node.reported_at));
    all.truncate(NEIGHBOURS_MAX);
    all.into_iter().map(|node| node.id.clone()).collect()
}

/// Whether two nodes are in one place: as the settings say, or else in one network behind one address. `192.168.1.0/24` alone says
/// little: half of the world's homes have it.
fn is_one_place(
    sleeper: &WakeReport,
    other: &WakeReport,
    public: (Option<IpAddr>, Option<IpAddr>),
) -> bool {
    match (&sleeper.site, &other.site) {
        (Some(sleeper), Some(other)) => return sleeper == other,
        (Some(_), None) | (None, Some(_)) => return false,
        (None, None) => {}
    }
    let (Some(home), Some(there)) = public else {
        return false;
    };
    let shares = sleeper
        .networks
        .iter()
        .any(|network| other.networks.contains(network));
    home == there && shares
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use config::tier::Tier;

    use super::*;
    use crate::testing::{node_id, report, start, tier};

    const SILENT: Duration = Duration::from_secs(15);

    fn wake(site: Option<&str>, network: &str, wakes_others: bool) -> WakeReport {
        WakeReport {
            macs: vec!["3c:7c:3f:12:34:56".parse().expect("a card")],
            takes_secs: 20,
            wakes_others,
            site: site.map(str::to_owned),
            networks: vec![network.to_owned()],
            ..WakeReport::default()
        }
    }

    fn registry(all: &[(&str, WakeReport)], now: Instant) -> Registry {
        let mut registry = Registry::new(SILENT, 10);
        for (name, wake) in all {
            let mut report = report(name, 1, vec![tier(Tier::Heavy)]);
            report.wake = Some(wake.clone());
            registry.report(name, report, now).expect("a good report");
        }
        registry
    }

    fn of(registry: &Registry, now: Instant) -> Vec<NodeId> {
        let sleeper = registry.node(&node_id("sleeper")).expect("it is known");
        let one_address = |_: &NodeId| Some(IpAddr::from([203, 0, 113, 7]));
        neighbours(sleeper, registry, one_address, now)
    }

    #[test]
    fn only_nodes_of_one_place_that_offer_it_are_asked() {
        let now = start();
        let lan = "192.168.1.0/24";
        let all = registry(
            &[
                ("sleeper", wake(None, lan, false)),
                ("same", wake(None, lan, true)),
                ("silent", wake(None, lan, false)),
                ("other", wake(None, "10.0.0.0/8", true)),
                ("named", wake(Some("attic"), lan, true)),
            ],
            now,
        );
        assert_eq!(of(&all, now), [node_id("same")]);
        let sleeper = all.node(&node_id("sleeper")).expect("it is known");
        let apart = |id: &NodeId| Some(IpAddr::from([203, 0, 113, u8::from(*id == sleeper.id)]));
        assert!(
            neighbours(sleeper, &all, apart, now).is_empty(),
            "the same network behind another address is another house"
        );
    }

    #[test]
    fn a_name_of_the_place_settles_it() {
        let now = start();
        let all = registry(
            &[
                ("sleeper", wake(Some("attic"), "10.1.0.0/16", false)),
                ("there", wake(Some("attic"), "10.2.0.0/16", true)),
                ("elsewhere", wake(Some("cellar"), "10.1.0.0/16", true)),
            ],
            now,
        );
        assert_eq!(of(&all, now), [node_id("there")]);
    }

    #[test]
    fn whoever_sleeps_wakes_nobody() {
        let now = start();
        let lan = "192.168.1.0/24";
        let mut all = registry(
            &[
                ("sleeper", wake(None, lan, true)),
                ("too", wake(None, lan, true)),
            ],
            now,
        );
        all.expire(now + SILENT);
        assert!(of(&all, now + SILENT).is_empty());
    }
}
