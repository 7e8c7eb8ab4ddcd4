//! Whatever sleeps is woken here before a request goes to it: a server outside by its own starter, a machine of ours by a neighbour that
//! sends the packet. Requests wait, are told how far it is, and start nothing twice. Wakes only what a node reported as its own cards.

mod memory;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use config::ids::{BackendId, NodeId};
use config::wire::node::{NODE_PORT, TierState};
use config::wire::wake::{MACS_MAX, WAKE_PATH, WakeOrder, WakeReply, WakeReport};
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Full;
use policy::router::Router;
use policy::waking::{Rules, Sleeper, Verdict, neighbours};
use tokio::time::{Instant, sleep, timeout};

use super::Starter;
use crate::gateway::progress::{Doing, Progress};
use crate::nodes::fleet::Fleet;
use crate::nodes::members::{Member, Members};
use crate::nodes::upstream::{Upstream, Waits};
use crate::observe::metrics::Metrics;

pub use memory::Memory;

/// One order to a neighbour.
const ORDER_MAX: Duration = Duration::from_secs(5);
/// Two numbers.
const REPLY_BYTES_MAX: usize = 4_096;
/// A packet may be lost: it is sent again after this.
const AGAIN: Duration = Duration::from_secs(10);
/// A machine gets this many times as long as it usually takes.
const PATIENCE: u32 = 3;
/// And never longer than this.
const PATIENCE_MAX: Duration = Duration::from_mins(10);
/// A machine that did not wake up is left alone for this long at first.
const PAUSE: Duration = Duration::from_mins(2);
/// How often it is looked whether a machine has come.
const LOOK: Duration = Duration::from_millis(100);

/// Why a request does not wait any longer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StillAsleep {
    /// It does not wake up.
    Failed,
    /// The request's own time is over.
    Late,
}

/// From which address of the internet a node was last heard.
type Heard = Box<dyn Fn(Ipv6Addr) -> Option<IpAddr> + Send + Sync>;

/// Wakes whatever sleeps.
pub struct Wakers {
    fleet: Arc<Fleet>,
    members: Arc<Members>,
    upstream: Upstream,
    metrics: Arc<Metrics>,
    heard: Heard,
    machines: Mutex<Machines>,
}

/// What is known of machines that sleep or slept.
#[derive(Default)]
struct Machines {
    /// Each tier for itself: one may answer long before another.
    tiers: HashMap<BackendId, Sleeper>,
    /// Machines that are being woken: each once, whoever waits for whichever tier.
    woken: HashSet<NodeId>,
}

impl Machines {
    fn of(&mut self, node: &NodeId) -> impl Iterator<Item = &mut Sleeper> {
        let tiers = self.tiers.iter_mut();
        tiers.filter_map(move |(backend, tier)| (backend.node == *node).then_some(tier))
    }
}

/// Where a tier of a machine stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Standing {
    /// It answers.
    Here,
    /// Its machine sleeps.
    Asleep,
    /// Its machine is there, or is about to say so, and the tier loads.
    Coming,
    /// Its machine is there, and the tier is down.
    Down,
}

impl Wakers {
    /// Wakes machines by their neighbours in the tunnel; `heard` tells where a node's packets come from.
    pub fn new(
        (fleet, members): (Arc<Fleet>, Arc<Members>),
        (upstream, metrics): (Upstream, Arc<Metrics>),
        heard: Heard,
    ) -> Self {
        Self {
            fleet,
            members,
            upstream,
            metrics,
            heard,
            machines: Mutex::default(),
        }
    }

    /// Returns when the backend answers, at once if its machine does not sleep. Tells what it waits for.
    pub async fn awake(
        self: &Arc<Self>,
        backend: &BackendId,
        until: Instant,
        progress: &Progress,
    ) -> Result<(), StillAsleep> {
        let starter = self
            .members
            .member(&backend.node)
            .and_then(|member| member.remote()?.starter().cloned());
        let woken = match starter {
            Some(starter) => wait_for(&starter, until, progress).await,
            None if self.is_to_come(backend) => {
                self.wait_for_machine(backend, until, progress).await
            }
            None => return Ok(()),
        };
        progress.clear();
        woken
    }

    /// Whether the backend's machine sleeps, or was woken and has not begun to answer.
    fn is_to_come(&self, backend: &BackendId) -> bool {
        let standing = self.standing(backend);
        let mut machines = self.machines();
        let tier = machines.tiers.get_mut(backend);
        match standing {
            Standing::Here => {
                // Whoever waited for it has gone.
                if let Some(tier) = tier.filter(|tier| tier.waking().is_some()) {
                    tier.found();
                }
                false
            }
            Standing::Asleep => true,
            Standing::Coming | Standing::Down => tier.is_some_and(|tier| tier.waking().is_some()),
        }
    }

    fn standing(&self, backend: &BackendId) -> Standing {
        self.fleet.with(|router| {
            // Gone from the registry for a moment: it registers, and reports next.
            let Some(node) = router.registry().node(&backend.node) else {
                return Standing::Coming;
            };
            if node.asleep.is_some() {
                return Standing::Asleep;
            }
            let mut tiers = node.tiers.iter();
            let tier = tiers.find(|tier| tier.tier == backend.tier);
            match tier.map(|tier| tier.state) {
                Some(TierState::Ready | TierState::Sleeping) => Standing::Here,
                Some(TierState::Loading) => Standing::Coming,
                Some(TierState::Down) | None => Standing::Down,
            }
        })
    }

    async fn wait_for_machine(
        self: &Arc<Self>,
        backend: &BackendId,
        until: Instant,
        progress: &Progress,
    ) -> Result<(), StillAsleep> {
        let wake = self
            .fleet
            .with(|router| router.registry().node(&backend.node)?.wake.clone());
        // Without a word how, no packet helps; whoever it was woken for waits all the same.
        let wake = wake.unwrap_or_default();
        loop {
            match self.wants(backend, &wake) {
                Verdict::Awake => return Ok(()),
                Verdict::Wait(waking) => progress.tell(Doing::Waking(waking)),
                Verdict::Start(waking) => {
                    progress.tell(Doing::Waking(waking));
                    if self.machines().woken.insert(backend.node.clone()) {
                        // Goes on whoever leaves: the machine is about to be there.
                        tokio::spawn(Arc::clone(self).wake(backend.node.clone(), wake.clone()));
                    }
                }
                Verdict::Resting { .. } => return Err(StillAsleep::Failed),
            }
            if Instant::now() >= until {
                return Err(StillAsleep::Late);
            }
            sleep(LOOK).await;
        }
    }

    /// One look at a backend that somebody waits for, and what is to be done.
    fn wants(&self, backend: &BackendId, wake: &WakeReport) -> Verdict {
        let now = Instant::now().into_std();
        let standing = self.standing(backend);
        let rules = Rules {
            expected: takes(wake),
            pause: PAUSE,
        };
        let mut machines = self.machines();
        let is_woken = machines.woken.contains(&backend.node);
        if !machines.tiers.contains_key(backend) {
            self.prune(&mut machines);
        }
        let tier = machines.tiers.entry(backend.clone());
        let tier = tier.or_insert_with(|| Sleeper::new(rules, now));
        match standing {
            Standing::Here => {
                tier.awake(now);
                return Verdict::Awake;
            }
            // It was there before, and sleeps again.
            Standing::Asleep if tier.is_awake() || (tier.is_booting() && !is_woken) => {
                tier.slept();
            }
            Standing::Asleep => {}
            Standing::Coming => tier.here(),
            // A server that its node looks at may be down until it is up.
            Standing::Down => {
                tier.here();
                let waking = tier.waking();
                let gone = waking.map(|waking| now.saturating_duration_since(waking.since));
                if gone.is_none_or(|gone| gone >= patience(wake)) {
                    tier.slept();
                    return Verdict::Resting {
                        again_in: Duration::ZERO,
                    };
                }
            }
        }
        tier.want(now)
    }

    /// Forgets machines that are none of ours any more.
    fn prune(&self, machines: &mut Machines) {
        let woken = &machines.woken;
        let is_known = |node: &NodeId| {
            let in_registry = |router: &Router| router.registry().node(node).is_some();
            self.members.member(node).is_some() || self.fleet.with(in_registry)
        };
        machines
            .tiers
            .retain(|backend, _| woken.contains(&backend.node) || is_known(&backend.node));
    }

    /// Has packets sent until the machine reports, or for as long as is reasonable.
    async fn wake(self: Arc<Self>, node: NodeId, wake: WakeReport) {
        let patience = patience(&wake);
        let until = Instant::now() + patience;
        let mut next = Instant::now();
        tracing::info!(%node, "a machine that sleeps is woken");
        while Instant::now() < until {
            if !self.sleeps(&node) {
                return self.came(&node);
            }
            if Instant::now() >= next {
                next = Instant::now() + AGAIN;
                self.have_packets_sent(&node, &wake).await;
            }
            sleep(LOOK).await;
        }
        self.overslept(&node, patience);
    }

    fn sleeps(&self, node: &NodeId) -> bool {
        self.fleet
            .with(|router| router.registry().node(node)?.asleep)
            .is_some()
    }

    /// The machine is there; its tiers may still load.
    fn came(&self, node: &NodeId) {
        self.metrics.wake(&self.name(node), "packet", "ok");
        let mut machines = self.machines();
        machines.woken.remove(node);
        machines.of(node).for_each(Sleeper::here);
    }

    fn overslept(&self, node: &NodeId, patience: Duration) {
        self.metrics.wake(&self.name(node), "packet", "failed");
        tracing::warn!(%node, secs = patience.as_secs(), "a machine that sleeps did not wake up: check Wake-on-LAN in its firmware, and [wake] of its settings");
        let now = Instant::now().into_std();
        let until = {
            let mut machines = self.machines();
            machines.woken.remove(node);
            machines.of(node).map(|tier| tier.failed(now)).max()
        };
        if let Some(until) = until {
            self.fleet.overslept(node, until);
        }
    }

    /// Asks neighbours one after the other until one has sent packets.
    async fn have_packets_sent(&self, node: &NodeId, wake: &WakeReport) {
        let now = Instant::now().into_std();
        let of = |id: &NodeId| {
            let member = self.members.member(id)?;
            (self.heard)(member.address)
        };
        let all = self.fleet.with(|router| {
            let registry = router.registry();
            let sleeper = registry.node(node);
            sleeper.map(|sleeper| neighbours(sleeper, registry, of, now))
        });
        let all = all.unwrap_or_default();
        if all.is_empty() {
            tracing::warn!(%node, "nobody can wake a machine that sleeps: a node of its site must be awake and have wakes_others = true");
        }
        let order = WakeOrder {
            node_id: node.clone(),
            macs: wake.macs.iter().copied().take(MACS_MAX).collect(),
            broadcast: wake.broadcast,
            port: wake.port(),
            secure_on: wake.secure_on,
        };
        for neighbour in all {
            let Some(member) = self.members.member(&neighbour) else {
                continue;
            };
            match timeout(ORDER_MAX, self.order(&member, &order)).await {
                Ok(Some(packets)) => {
                    return tracing::info!(%node, neighbour = member.name, packets, "a neighbour sent the packets");
                }
                Ok(None) | Err(_) => {
                    tracing::warn!(%node, neighbour = member.name, "a neighbour did not send the packets");
                }
            }
        }
    }

    async fn order(&self, member: &Member, order: &WakeOrder) -> Option<u32> {
        let body = serde_json::to_vec(order).ok()?;
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static(WAKE_PATH);
        let host = format!("[{}]:{NODE_PORT}", member.address);
        let bearer = format!("Bearer {}", member.agent_token.expose());
        let headers = request.headers_mut();
        headers.insert(header::HOST, HeaderValue::from_str(&host).ok()?);
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(&bearer).ok()?);
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        let waits = Waits {
            connect: ORDER_MAX,
            head: ORDER_MAX,
        };
        let sent = self.upstream.send(member.address, request, waits).await;
        let mut answer = sent.ok()?;
        let body = answer.body.collect(REPLY_BYTES_MAX).await.ok()?;
        if answer.status != StatusCode::OK {
            return None;
        }
        let reply: WakeReply = serde_json::from_slice(&body).ok()?;
        (reply.packets > 0).then_some(reply.packets)
    }

    fn name(&self, node: &NodeId) -> String {
        let member = self.members.member(node);
        member.map_or_else(|| node.to_string(), |member| member.name.clone())
    }

    fn machines(&self) -> MutexGuard<'_, Machines> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for a server outside.
async fn wait_for(
    starter: &Starter,
    until: Instant,
    progress: &Progress,
) -> Result<(), StillAsleep> {
    loop {
        match starter.want() {
            Verdict::Awake => return Ok(()),
            Verdict::Start(waking) | Verdict::Wait(waking) => progress.tell(Doing::Waking(waking)),
            Verdict::Resting { .. } => return Err(StillAsleep::Failed),
        }
        if Instant::now() >= until {
            return Err(StillAsleep::Late);
        }
        starter.changed().await;
    }
}

/// How long a machine gets to wake up.
fn patience(wake: &WakeReport) -> Duration {
    (takes(wake) * PATIENCE).min(PATIENCE_MAX)
}

fn takes(wake: &WakeReport) -> Duration {
    Duration::from_secs(u64::from(wake.takes_secs.max(1)))
}

#[cfg(test)]
mod tests;
