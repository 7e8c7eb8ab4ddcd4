//! The way to the proxy: registers, holds the tunnel, reports, and comes back by itself after every kind of loss. One WireGuard key per
//! session; a session that cannot be repaired is replaced by one with a new key.

mod carrier;
mod door;
pub mod house;
mod roster;
mod session;
mod turn;

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use config::wire::node::HubPlace;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tunnel::{PrivateKey, Tunnel};

use crate::http::{AgentToken, Front};
use crate::hub::{Hub, HubError};
use crate::identity::{Identity, Member};
use crate::metrics::Metrics;
use crate::register::{Backoff, Place, PlaceError};
use crate::report::Reports;
use crate::tiers::Tiers;
use crate::work::Work;

use session::{End, Session};
use turn::Turn;

pub(crate) use session::wanted;

/// How the node stands with its proxy.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Standing {
    /// Not registered yet, or being registered anew.
    #[default]
    Registering,
    /// Reports get through.
    Connected,
    /// The last reports were lost.
    Lost {
        /// Why.
        reason: String,
    },
    /// The proxy does not want this node.
    Refused {
        /// Why.
        reason: String,
    },
}

impl Standing {
    /// The word for the status command.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Registering => "registering",
            Self::Connected => "connected",
            Self::Lost { .. } => "lost",
            Self::Refused { .. } => "refused",
        }
    }

    /// Why it is not connected.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Registering | Self::Connected => None,
            Self::Lost { reason } | Self::Refused { reason } => Some(reason),
        }
    }
}

/// Why there is no place.
#[derive(Debug, thiserror::Error)]
enum NoPlace {
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Odd(#[from] PlaceError),
}

/// The tunnel to a proxy while there is one, and the proxy's address inside.
pub type Window = Arc<Mutex<Option<(Tunnel, Ipv6Addr)>>>;

/// All that the way to one proxy needs.
#[derive(Clone, Debug)]
pub struct Uplink {
    /// The proxy.
    pub hub: Hub,
    /// Our key.
    pub identity: Arc<Identity>,
    /// Our membership.
    pub member: Member,
    /// Local UDP address.
    pub bind: std::net::SocketAddr,
    /// Who does TCP inside the tunnel.
    pub backend: config::settings::proxy::Backend,
    /// The tunnel may go over HTTPS where no UDP gets through.
    pub carrier: bool,
    /// Largest packet inside the tunnel, in bytes.
    pub mtu_max: usize,
    /// Answers the proxy's requests.
    pub front: Arc<Front>,
    /// Shared with `front`.
    pub token: AgentToken,
    /// What is reported.
    pub tiers: Arc<Tiers>,
    /// Whether we take work.
    pub work: Work,
    /// Counts registrations and reports.
    pub metrics: Arc<Metrics>,
    /// For the status command.
    pub standing: watch::Sender<Standing>,
    /// Connections of the proxy.
    pub connections: TaskTracker,
    /// Cancelled when the proxy knows that we are going down.
    pub farewell: CancellationToken,
    /// This start of the agent, 32 hex digits: the proxy goes on with the same streams when keys change within it.
    pub start: String,
    /// Life of a WireGuard key.
    pub rekey: Duration,
    /// A proxy that says no is asked again only this often.
    pub refused_retry: Duration,
    /// The proxies of the house, as each of them told last, by who told it.
    pub hubs: watch::Sender<BTreeMap<String, Vec<HubPlace>>>,
    /// Which proxy this line has reached; empty while that is not known.
    pub proxy: watch::Sender<String>,
    /// Told when this line is to register again: another one took its registration over.
    pub again: Arc<Notify>,
    /// Told whenever `standing` or `farewell` changed.
    pub stirred: Arc<Notify>,
    /// For the status command.
    pub window: Window,
}

impl Uplink {
    /// Runs until `stop`; then the tunnel closes.
    pub async fn run(self, stop: CancellationToken) {
        let mut reports = Reports::new(self.member.node_id.clone(), self.front.waker().clone());
        let mut turn = Turn::default();
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            let key = PrivateKey::generate();
            let registered = self.registered(&key, &mut turn);
            let Some(place) = stop.run_until_cancelled(registered).await else {
                return;
            };
            match Session::start(&self, key, place, &mut turn).await {
                Ok(session) => {
                    backoff.reset();
                    match session.run(&mut reports, &stop).await {
                        End::Stopped => return,
                        End::Worn(reason) => {
                            tracing::info!(%reason, "the tunnel is built anew with a new key");
                        }
                    }
                }
                Err(error) => {
                    let pause = backoff.pause();
                    tracing::warn!(%error, again_in_ms = pause.as_millis(), "the tunnel did not start");
                    self.stand(Standing::Lost {
                        reason: error.to_string(),
                    });
                    if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// Registers `key`, however often that must be tried.
    async fn registered(&self, key: &PrivateKey, turn: &mut Turn) -> Place {
        let mut backoff = Backoff::default();
        loop {
            match self.register(key, turn.next()).await {
                Ok(place) => return place,
                Err(lasting) => {
                    let pause = if lasting {
                        self.refused_retry
                    } else {
                        backoff.pause()
                    };
                    sleep(pause).await;
                }
            }
        }
    }

    /// Registers once. Logs and tells a failure; `Err(true)` if the proxy does not want us.
    async fn register(&self, key: &PrivateKey, turn: usize) -> Result<Place, bool> {
        match self.ask(key, turn).await {
            Ok(place) => Ok(place),
            Err(NoPlace::Hub(error)) => Err(self.not_registered(&error)),
            Err(NoPlace::Odd(error)) => {
                self.stand(Standing::Lost {
                    reason: error.to_string(),
                });
                tracing::warn!(%error, "the registration cannot be used");
                Err(false)
            }
        }
    }

    /// Registers once; how the node stands is another matter.
    async fn ask(&self, key: &PrivateKey, turn: usize) -> Result<Place, NoPlace> {
        let public = key.public_key();
        let began = Instant::now();
        let who = (&self.member.node_id, self.start.as_str());
        let registered = self.hub.register(&self.identity, who, public).await;
        let (reply, shared) = registered.inspect_err(|error| {
            self.metrics.registration(error.label());
        })?;
        self.reached(&reply.proxy);
        self.hear_of(&reply.hubs);
        let host = self.hub.host().unwrap_or_default();
        let place = Place::from_reply(reply, (&shared, public), &host, self.bind, turn).await;
        let place = place.inspect_err(|_odd| self.metrics.registration("odd"))?;
        self.metrics.registration("ok");
        self.token.set(place.agent_token.clone());
        tracing::info!(
            node_id = %self.member.node_id,
            address = %place.address,
            ms = began.elapsed().as_millis(),
            "registered with the proxy"
        );
        Ok(place)
    }

    /// Notes which proxy this is, before what it tells of the others is looked at.
    fn reached(&self, proxy: &str) {
        self.proxy.send_if_modified(|known| {
            let changed = known != proxy;
            if changed {
                proxy.clone_into(known);
            }
            changed
        });
    }

    /// Says once what is wrong; true if it will not pass by itself.
    fn not_registered(&self, error: &HubError) -> bool {
        let reason = error.to_string();
        let standing = if error.is_passing() {
            Standing::Lost { reason }
        } else {
            Standing::Refused { reason }
        };
        let news = self.stand(standing);
        if error.is_passing() {
            if news {
                tracing::warn!(%error, "not registered; trying again");
            } else {
                tracing::debug!(%error, "not registered; trying again");
            }
            return false;
        }
        if news {
            tracing::error!(%error, again_in_secs = self.refused_retry.as_secs(), "the proxy does not take this node");
        }
        true
    }

    /// Tells how we stand; true if that is new.
    fn stand(&self, standing: Standing) -> bool {
        let changed = self.standing.send_if_modified(|present| {
            let changed = *present != standing;
            *present = standing;
            changed
        });
        if changed {
            self.stirred.notify_one();
        }
        changed
    }

    /// Notes which proxies the house has; none is no news.
    fn hear_of(&self, hubs: &[HubPlace]) {
        if hubs.is_empty() {
            return;
        }
        let mut hubs = hubs.to_vec();
        for place in &mut hubs {
            place.url.truncate(place.url.trim_end_matches('/').len());
        }
        hubs.sort();
        self.hubs.send_if_modified(|known| {
            let changed = known.get(self.hub.url()) != Some(&hubs);
            if changed {
                known.insert(self.hub.url().to_owned(), hubs);
            }
            changed
        });
    }
}
