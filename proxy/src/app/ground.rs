//! Everything behind the edge, built in order: store, authenticator, tunnel, nodes. Serves nobody; the edge comes last.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use config::settings::proxy::{Approve, Limits, Prices, Routing, Settings, Usage};
use config::wire::node::HUB_ADDRESS;
use policy::classify::Thresholds;
use policy::router::Router;
use tokio::net::TcpListener;
use tunnel::{PrivateKey, Tunnel};

use super::background::{self, Background};
use super::{AppError, Crew, EdgeFacts, tunnels};
use crate::admin::explain;
use crate::admin::server::AdminSocket;
use crate::admin::{Api, ApiFacts, Live, LookAtTunnel, Operations};
use crate::auth::Authenticator;
use crate::gateway::admission::Admission;
use crate::gateway::body::Reader;
use crate::gateway::dispatch::Dispatcher;
use crate::gateway::health::Readiness;
use crate::gateway::prefix::Prefixes;
use crate::gateway::waiting::Waiting;
use crate::gateway::{Figures, Gateway, Rooms};
use crate::nodes::endpoints::Endpoints;
use crate::nodes::fleet::Fleet;
use crate::nodes::hubs::{Hubs, name};
use crate::nodes::members::Members;
use crate::nodes::peers::{self, HubKeys, Peers};
use crate::nodes::pulse;
use crate::nodes::register::{Desk, DeskSecrets, HubFacts};
use crate::nodes::unmanaged::Stations;
use crate::nodes::upstream::Upstream;
use crate::observe::admin_http;
use crate::observe::metrics::Metrics;
use crate::remote::wakers::{Memory, Wakers};
use crate::remote::{self, Remote, Roads};
use crate::store::{self, PEPPER, Store, StoreError};

/// The key under which conversations are known again.
const PREFIX_SECRET: &str = "conversation-prefix";
/// Names of our secrets in the store.
const WIREGUARD_KEY: &str = "wireguard";
const HUB_SECRET: &str = "hub";
const NONCE_SECRET: &str = "node-nonce";
/// A store that starts together with us gets this long to answer.
const STORE_PATIENCE: Duration = Duration::from_mins(1);

/// A process that has ended lets go of its files within this, on a busy machine.
const LET_GO_MAX: Duration = Duration::from_secs(10);
const LET_GO_POLL: Duration = Duration::from_millis(20);

/// The rooms behind the edge.
pub(super) struct Ground {
    pub(super) store: Arc<dyn Store>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) limits: Arc<ArcSwap<Limits>>,
    pub(super) tunnel: Tunnel,
    pub(super) upstream: Upstream,
    pub(super) fleet: Arc<Fleet>,
    pub(super) members: Arc<Members>,
    pub(super) peers: Arc<Peers>,
    pub(super) desk: Arc<Desk>,
    pub(super) hubs: Arc<Hubs>,
    pub(super) remotes: Vec<Arc<Remote>>,
    pub(super) wakers: Arc<Wakers>,
    pub(super) prefixes: Prefixes,
}

impl Ground {
    /// Opens the store of the settings and builds the rooms on it. `after_another`: a process that had it open has ended a moment ago.
    pub(super) async fn lay(settings: &Settings, after_another: bool) -> Result<Self, AppError> {
        let metrics = Arc::new(Metrics::new());
        let began = Instant::now();
        let store = loop {
            let opened = store::open(
                &settings.store,
                (&settings.server.state_dir, settings.limits.table_max),
                Arc::clone(&metrics),
            );
            match opened.await {
                // The system takes the locks of a process back after its streams have ended, not before.
                Err(StoreError::InUse(_)) if after_another && began.elapsed() < LET_GO_MAX => {
                    tokio::time::sleep(LET_GO_POLL).await;
                }
                opened => break opened?,
            }
        };
        Self::lay_on(settings, store, metrics).await
    }

    /// Builds the rooms. Nodes of the store are in the tunnel when this returns.
    pub(super) async fn lay_on(
        settings: &Settings,
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, AppError> {
        let authenticator = Authenticator::new(
            &settings.auth,
            &settings.limits.plans,
            Arc::clone(&store),
            Arc::clone(&metrics),
        )?;
        let tunnel = tunnel(settings, secret(&*store, WIREGUARD_KEY).await?).await?;
        let remotes = Remote::all(&settings.remotes)?;
        let roads = Arc::new(Roads::new(Arc::new(tunnel.clone()), &remotes));
        let dial = Arc::<Roads>::clone(&roads);
        let upstream = Upstream::new(dial, settings.routing.pool_max);
        let fleet = Arc::new(Fleet::new(router(settings)));
        let members = Arc::new(Members::default());
        let rooms = peers::Rooms {
            upstream: upstream.clone(),
            fleet: Arc::clone(&fleet),
            members: Arc::clone(&members),
        };
        let hub = HubKeys {
            secret: secret(&*store, HUB_SECRET).await?,
            public_key: tunnel.public_key().to_string(),
        };
        let peers = Peers::new(tunnel.clone(), Arc::clone(&store), rooms, hub);
        let endpoints = settings.server.state_dir.join("endpoints.json");
        let around = remote::Rooms {
            upstream: upstream.clone(),
            fleet: Arc::clone(&fleet),
            store: Arc::clone(&store),
            metrics: Arc::clone(&metrics),
        };
        let peers = peers
            .remembering(Endpoints::open(endpoints))
            .with_stations(Stations::new(roads, around));
        let peers = Arc::new(peers);
        if let Err(error) = peers.sync().await {
            tracing::warn!(%error, "nodes are not known yet; trying again");
        }
        let secrets = DeskSecrets {
            nonce: secret(&*store, NONCE_SECRET).await?,
            pepper: secret(&*store, PEPPER).await?,
        };
        let prefixes = Prefixes::new(&secret(&*store, PREFIX_SECRET).await?);
        let memory = Memory::new(&settings.server.state_dir);
        memory.recall(&fleet, &*store).await;
        for remote in &remotes {
            fleet.place_outside(remote.id(), remote.is_local());
            members.insert(Arc::new(remote.member()));
        }
        let wakers = wakers(&tunnel, (&fleet, &members), (&upstream, &metrics));
        let hubs = Arc::new(Hubs::default());
        let facts = facts(settings, &tunnel, &hubs);
        let desk = Desk::new(Arc::clone(&store), Arc::clone(&peers), &secrets, facts);
        Ok(Self {
            prefixes,
            store,
            metrics,
            authenticator: Arc::new(authenticator),
            limits: Arc::new(ArcSwap::from_pointee(settings.limits.clone())),
            tunnel,
            upstream,
            fleet,
            members,
            peers,
            desk: Arc::new(desk),
            hubs,
            remotes,
            wakers,
        })
    }

    pub(super) fn readiness(&self) -> Readiness {
        Readiness {
            store: Arc::clone(&self.store),
            authenticator: Arc::clone(&self.authenticator),
            fleet: Arc::clone(&self.fleet),
        }
    }

    /// Administration. Join links get the certificate's pin when the edge is there.
    pub(super) fn admin(&self, settings: &Settings, readiness: &Readiness) -> Arc<Api> {
        let (store, url) = (Arc::clone(&self.store), settings.server.public_url.clone());
        let operations = Operations::new(
            store,
            url,
            None,
            Some(self.live(readiness, &settings.routing)),
        )
        .warning(name::warning(&settings.server));
        let facts = ApiFacts {
            limits: Arc::clone(&self.limits),
            prices: settings.prices.clone(),
        };
        Arc::new(Api::new(operations, facts))
    }

    pub(super) fn gateway(
        &self,
        settings: &Settings,
        readiness: Readiness,
        admin: Arc<Api>,
    ) -> Gateway {
        let (store, limits, metrics) = (
            Arc::clone(&self.store),
            Arc::clone(&self.limits),
            Arc::clone(&self.metrics),
        );
        let rooms = Rooms {
            authenticator: Arc::clone(&self.authenticator),
            admission: Admission::new(store, limits, metrics),
            prices: prices(settings),
            reader: Reader::new(settings.server.body_max, settings.server.media_body_max),
            dispatcher: Dispatcher {
                fleet: Arc::clone(&self.fleet),
                members: Arc::clone(&self.members),
                upstream: self.upstream.clone(),
                wakers: Arc::clone(&self.wakers),
                waiting: Arc::new(Waiting::new(&settings.routing, Arc::clone(&self.fleet))),
                rules: settings.routing.clone(),
                metrics: Arc::clone(&self.metrics),
            },
            desk: Arc::clone(&self.desk),
            readiness,
            admin,
            metrics: Arc::clone(&self.metrics),
        };
        let figures = Figures {
            request_timeout: settings.server.request_timeout,
            thresholds: Thresholds::from(&settings.routing),
            prefixes: self.prefixes.clone(),
            auth: settings.auth.clone(),
            started_unix: unix_now(),
        };
        Gateway::new(rooms, figures)
    }

    /// Starts to look at the servers outside, and to remember what machines said that may sleep.
    pub(super) fn look_outside(&self, settings: &Settings, crew: &Crew) {
        for remote in &self.remotes {
            let rooms = remote::Rooms {
                upstream: self.upstream.clone(),
                fleet: Arc::clone(&self.fleet),
                store: Arc::clone(&self.store),
                metrics: Arc::clone(&self.metrics),
            };
            crew.employ(remote::watch(Arc::clone(remote), rooms));
        }
        crew.employ(remote::tell_strays(
            Arc::clone(&self.store),
            self.remotes.clone(),
        ));
        let memory = Memory::new(&settings.server.state_dir);
        crew.employ(memory.keep(Arc::clone(&self.fleet)));
    }

    pub(super) fn background(self, (usage, pulse_rules): (Usage, pulse::Rules)) -> Background {
        Background {
            fleet: self.fleet,
            members: self.members,
            peers: self.peers,
            upstream: self.upstream,
            tunnel: self.tunnel,
            metrics: self.metrics,
            store: self.store,
            usage,
            pulse_rules,
        }
    }

    /// Opens the two ways of management: the socket in the state directory, and metrics on loopback.
    pub(super) async fn manage(
        &self,
        settings: &Settings,
        (readiness, admin): (&Readiness, Arc<Api>),
        (edge, crew): (EdgeFacts, &Crew),
    ) -> Result<(), AppError> {
        let server = &settings.server;
        let socket = AdminSocket::bind(&server.state_dir).await;
        let socket = socket
            .map_err(|error| AppError::Admin(server.state_dir.display().to_string(), error))?;
        admin.operations().pinned(edge.certificates.pin());
        crew.employ(socket.serve(admin, crew.stop.clone()));
        self.measure(edge);
        let Some(address) = server.admin_listen else {
            return Ok(());
        };
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|error| AppError::Admin(address.to_string(), error))?;
        let failing = readiness.clone();
        let pages = admin_http::Pages {
            metrics: Arc::clone(&self.metrics),
            failing: Box::new(move || failing_of(failing.clone())),
        };
        crew.employ(admin_http::serve(
            listener,
            Arc::new(pages),
            crew.stop.clone(),
        ));
        Ok(())
    }

    /// Tells the metrics where the gauges stand that nobody sets on the way.
    fn measure(&self, edge: EdgeFacts) {
        let (fleet, members, tunnel) = (
            Arc::clone(&self.fleet),
            Arc::clone(&self.members),
            self.tunnel.clone(),
        );
        self.metrics.refresh_with(move |metrics| {
            metrics.connections((edge.connections)());
            metrics.certificate_expiry(edge.certificates.expires_unix().unwrap_or_default());
            background::refresh(metrics, &fleet, &members, &tunnel);
        });
    }

    /// How the tunnel to each node is, for the administrator.
    fn tunnels(&self) -> Box<LookAtTunnel> {
        let (fleet, members) = (Arc::clone(&self.fleet), Arc::clone(&self.members));
        let tunnel = self.tunnel.clone();
        Box::new(move |id| tunnels::look(id, &fleet, &members, &tunnel))
    }

    fn live(&self, readiness: &Readiness, routing: &Routing) -> Live {
        let (fleet, authenticator) = (Arc::clone(&self.fleet), Arc::clone(&self.authenticator));
        let (peers, readiness) = (Arc::clone(&self.peers), readiness.clone());
        let members = Arc::clone(&self.members);
        let (planned, routing) = (Arc::clone(&self.fleet), routing.clone());
        Live {
            started: Instant::now(),
            nodes: Box::new(move || background::nodes_now(&fleet, &members)),
            tunnel: self.tunnels(),
            failing: Box::new(move || failing_of(readiness.clone())),
            key_revoked: Box::new(move |id| authenticator.forget_key(id)),
            route: Box::new(move |asked| explain::route(&planned, &routing, asked)),
            node_revoked: Box::new(move |id| {
                let (peers, id) = (Arc::clone(&peers), id.clone());
                tokio::spawn(async move { peers.throw_out(&id).await });
            }),
        }
    }
}

/// Wakes machines of the tunnel; where a node is, its packets tell.
fn wakers(
    tunnel: &Tunnel,
    (fleet, members): (&Arc<Fleet>, &Arc<Members>),
    (upstream, metrics): (&Upstream, &Arc<Metrics>),
) -> Arc<Wakers> {
    let tunnel = tunnel.clone();
    let heard = move |address| {
        let remote = tunnel.peer_status(address)?.remote?;
        Some(remote.to_canonical())
    };
    Arc::new(Wakers::new(
        (Arc::clone(fleet), Arc::clone(members)),
        (upstream.clone(), Arc::clone(metrics)),
        Box::new(heard),
    ))
}

/// The prices of the settings, and those of servers outside where these say none: what they cost us bounds budgets and stands in the
/// books.
fn prices(settings: &Settings) -> Prices {
    let mut prices = settings.prices.clone();
    for remote in &settings.remotes {
        let model = remote.model_id.as_ref().or(remote.model.as_ref());
        let (Some(model), Some(price)) = (model, remote.price) else {
            continue;
        };
        prices.models.entry(model.clone()).or_insert(price);
        prices.cloud.entry(model.clone()).or_insert(price);
    }
    prices
}

async fn tunnel(settings: &Settings, key: [u8; 32]) -> Result<Tunnel, tunnel::Error> {
    let key = PrivateKey::from_bytes(key);
    let mut tunnel = tunnel::Settings::new(settings.tunnel.listen, key, HUB_ADDRESS);
    tunnel.bounds.peers_max = settings.tunnel.nodes_max;
    tunnel.bounds.mtu_max = settings.tunnel.mtu_max;
    tunnel.bounds.mtu = tunnel.bounds.mtu.min(settings.tunnel.mtu_max);
    tunnel.backend = match settings.tunnel.backend {
        config::settings::proxy::Backend::Auto => tunnel::Backend::Auto,
        config::settings::proxy::Backend::Netns => tunnel::Backend::Netns,
        config::settings::proxy::Backend::Embedded => tunnel::Backend::Embedded,
    };
    Tunnel::start(tunnel).await
}

fn router(settings: &Settings) -> Router {
    let tunnel = &settings.tunnel;
    Router::new(&settings.routing, tunnel.silent_after, tunnel.nodes_max)
}

fn facts(settings: &Settings, tunnel: &Tunnel, hubs: &Arc<Hubs>) -> HubFacts {
    let port = tunnel.local_addr().port();
    let endpoint = settings.tunnel.endpoint.clone();
    HubFacts {
        public_key: tunnel.public_key().to_string(),
        endpoint: endpoint.unwrap_or_else(|| format!(":{port}")),
        heartbeat: settings.tunnel.heartbeat,
        nodes_max: settings.tunnel.nodes_max,
        approves_all: settings.tunnel.approve == Approve::Manual,
        carriers: settings.tunnel.carrier,
        unseen_max: Duration::from_hours(24) * settings.tunnel.unseen_days,
        hubs: Arc::clone(hubs),
    }
}

fn failing_of(readiness: Readiness) -> futures_util::future::BoxFuture<'static, Vec<&'static str>> {
    Box::pin(async move { readiness.failing().await })
}

/// A secret of the store, which may need a moment to start.
async fn secret(store: &dyn Store, name: &str) -> Result<[u8; 32], StoreError> {
    let begun = Instant::now();
    loop {
        match store.secret(name).await {
            Ok(secret) => return Ok(*secret.expose()),
            Err(error @ StoreError::Unavailable(_)) if begun.elapsed() < STORE_PATIENCE => {
                tracing::warn!(%error, "waiting for the store");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

fn unix_now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
