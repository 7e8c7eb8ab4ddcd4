//! The composition root: builds every room from its section of the settings, in order, and takes them down in order. Nobody
//! holds the whole settings after this file; no request passes through it.

mod background;
mod ground;
mod tunnels;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use config::settings::proxy::{Limits, Settings, Store as StoreSettings};
use config::wire::node::REPORT_PORT;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tunnel::Tunnel;

use crate::auth::AuthError;
use crate::front::handover::{self, Inherited, Offer};
use crate::front::lifecycle::{Drained, Phase, Signals, reached};
use crate::front::sink::ClientSink;
use crate::front::tls::Certificates;
use crate::front::{Answer, Front, FrontError, FrontSettings, Handler};
use crate::gateway::{Call, Gateway};
use crate::nodes::fleet::Fleet;
use crate::nodes::hubs::{Hubs, name};
use crate::nodes::peers::{Peers, Ride};
use crate::nodes::pulse;
use crate::nodes::report::ReportDesk;
use crate::observe::log;
use crate::observe::metrics::Metrics;
use crate::store::{Store, StoreError};
use ground::Ground;

/// Tasks end when they are told to; one that does not keeps nobody waiting.
const FAREWELL: Duration = Duration::from_secs(2);

/// A node that reports every few seconds is back by then.
const NODES_BACK_MAX: Duration = Duration::from_secs(8);

/// Settlements take one write each; a store that does not answer keeps nobody waiting for longer.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// Why the proxy cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// No store.
    #[error("the store cannot be used: {0}")]
    Store(#[from] StoreError),
    /// No tunnel.
    #[error("the tunnel cannot start: {0}")]
    Tunnel(#[from] tunnel::Error),
    /// No edge.
    #[error(transparent)]
    Front(#[from] FrontError),
    /// No authenticator.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// No management.
    #[error("cannot listen for management on {0}: {1}")]
    Admin(String, std::io::Error),
    /// A server outside that cannot be used.
    #[error(transparent)]
    Remote(#[from] crate::remote::RemoteError),
    /// Nothing can be taken over or handed over.
    #[error("no taking over from another process: {0}")]
    Upgrade(std::io::Error),
    /// No signals.
    #[error("signals cannot be taken over: {0}")]
    Signals(std::io::Error),
}

/// Runs the proxy until a signal ends it. `reload` reads the settings again on SIGHUP; `None` keeps the old ones.
/// With `upgrade` it takes over from the proxy that runs with the same state directory, if one does.
pub async fn serve(
    settings: Settings,
    upgrade: bool,
    reload: impl Fn() -> Option<Settings>,
) -> Result<Drained, AppError> {
    let inherited = if upgrade {
        take_over(&settings).await?
    } else {
        Inherited::default()
    };
    let signals = Signals::install().map_err(AppError::Signals)?;
    let nodes = inherited.nodes;
    let app = App::start_inheriting(settings, inherited).await?;
    app.nodes_are_back(nodes).await;
    let phase = app.phase();
    let (certificates, limits) = (Arc::clone(&app.certificates), Arc::clone(&app.limits));
    let renew = || {
        certificates.reload_and_log();
        if let Some(settings) = reload() {
            limits.store(Arc::new(settings.limits));
            tracing::info!("limits reloaded; other settings need a restart");
        }
    };
    let follow = async {
        signals.follow(&phase, renew).await;
        // The run ends by itself now; this arm only moves the phase.
        std::future::pending::<Drained>().await
    };
    tokio::select! {
        drained = app.run() => drained,
        drained = follow => Ok(drained),
    }
}

/// Waits for the end of the proxy that runs, and takes its listeners.
async fn take_over(settings: &Settings) -> Result<Inherited, AppError> {
    let (state_dir, grace) = (settings.server.state_dir.clone(), settings.server.grace);
    let taken = spawn_blocking(move || handover::take_over(&state_dir, grace)).await;
    let taken = taken
        .map_err(std::io::Error::other)
        .and_then(|taken| taken)
        .map_err(AppError::Upgrade)?;
    if taken.is_none() {
        tracing::info!("no proxy runs here that could be taken over from: starting as usual");
    }
    Ok(taken.unwrap_or_default())
}

/// A proxy that is bound and ready to run.
pub struct App {
    front: Front,
    fleet: Arc<Fleet>,
    gateway: Arc<Gateway>,
    certificates: Arc<Certificates>,
    limits: Arc<ArcSwap<Limits>>,
    phase: watch::Sender<Phase>,
    reports: Arc<ReportDesk>,
    house: House,
    tunnel: Tunnel,
    crew: Crew,
}

impl App {
    /// Builds everything and binds every listener: store, authenticator, tunnel, nodes, edge. Serves nobody yet.
    pub async fn start(settings: Settings) -> Result<Self, AppError> {
        Self::start_inheriting(settings, Inherited::default()).await
    }

    /// The same with what another process handed over.
    pub async fn start_inheriting(
        settings: Settings,
        inherited: Inherited,
    ) -> Result<Self, AppError> {
        let has_taken_over = !inherited.listeners.is_empty();
        let ground = Ground::lay(&settings, has_taken_over).await?;
        Self::raise(settings, ground, inherited).await
    }

    /// Waits until so many nodes have reported, or for a while: whoever waits in the queue of a listener waits for them too.
    pub async fn nodes_are_back(&self, nodes: usize) {
        let back = async {
            let mut changes = self.fleet.changes();
            let count = || self.fleet.with(|router| router.registry().nodes().count());
            while count() < nodes && changes.changed().await.is_ok() {}
        };
        if timeout(NODES_BACK_MAX, back).await.is_err() {
            tracing::warn!(nodes, "not all nodes are back yet");
        }
    }

    /// The same on a store that is open already, whatever the settings name.
    pub async fn start_on(settings: Settings, store: Arc<dyn Store>) -> Result<Self, AppError> {
        let ground = Ground::lay_on(&settings, store, Arc::new(Metrics::new())).await?;
        Self::raise(settings, ground, Inherited::default()).await
    }

    async fn raise(
        settings: Settings,
        ground: Ground,
        inherited: Inherited,
    ) -> Result<Self, AppError> {
        let (phase, seen) = watch::channel(Phase::default());
        let crew = Crew::default();
        let readiness = ground.readiness();
        let admin = ground.admin(&settings, &readiness);
        let gateway = ground.gateway(&settings, readiness.clone(), Arc::clone(&admin));
        let gateway = Arc::new(gateway);
        let metrics = Arc::clone(&ground.metrics);
        let handler = Arc::new(Entrance {
            gateway: Arc::clone(&gateway),
            metrics,
        });
        let limits = &settings.limits;
        let front = FrontSettings {
            server: settings.server.clone(),
            tls: settings.tls.clone(),
            guard_per_minute: limits.guard_per_minute,
            guard_burst: limits.guard_burst,
            table_max: limits.table_max,
        };
        if let Some(proxy) = ground.peers.inherit(&inherited.estate).await {
            ground.hubs.go_on_as(proxy);
        }
        let front = Front::inheriting(front, inherited.listeners, handler, seen)?;
        let fleet = Arc::clone(&ground.fleet);
        let offer = Offer::bind(&settings.server.state_dir)
            .and_then(|offer| Ok((offer, front.listeners_again()?)))
            .map_err(AppError::Upgrade)?;
        let count = {
            let fleet = Arc::clone(&fleet);
            move || fleet.with(|router| router.registry().nodes().count())
        };
        crew.employ(offer.0.serve(offer.1, count, phase.clone()));
        let certificates = Arc::clone(front.certificates());
        let edge = EdgeFacts {
            certificates: Arc::clone(&certificates),
            connections: Box::new(front.open_connections()),
        };
        let told = (&readiness, admin);
        ground.manage(&settings, told, (edge, &crew)).await?;
        let members = Arc::clone(&ground.members);
        let hubs = Arc::clone(&ground.hubs);
        introduce(&hubs, &settings, certificates.pin());
        let (store, peers) = (Arc::clone(&ground.store), Arc::clone(&ground.peers));
        crew.employ(Arc::clone(&hubs).keep(Arc::clone(&store)));
        let reports = ReportDesk::new(members, Arc::clone(&fleet)).telling(Arc::clone(&hubs));
        let reports = Arc::new(reports);
        let listener = ground.tunnel.listen(REPORT_PORT).await?;
        crew.employ(Arc::clone(&reports).serve(listener));
        let limits = Arc::clone(&ground.limits);
        let tunnel = ground.tunnel.clone();
        let pulse = pulse::Rules::from(&settings.routing);
        ground.look_outside(&settings, &crew);
        ground.background((settings.usage, pulse)).start(&crew);
        tracing::info!(udp = %tunnel.local_addr(), "the tunnel is up");
        Ok(Self {
            front,
            fleet,
            gateway,
            certificates,
            limits,
            phase,
            reports,
            house: House { hubs, store, peers },
            tunnel,
            crew,
        })
    }

    /// Where HTTPS is served: port 0 has become a port.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.front.addresses()
    }

    /// Where nodes dial in.
    pub fn tunnel_address(&self) -> SocketAddr {
        self.tunnel.local_addr()
    }

    /// Ends the run: draining first, or at once.
    pub fn phase(&self) -> watch::Sender<Phase> {
        self.phase.clone()
    }

    /// The pin of the certificate, if it is our own.
    pub fn pin(&self) -> Option<String> {
        self.certificates.pin()
    }

    /// Serves until the phase says otherwise, lets running answers finish, then takes the rooms down.
    pub async fn run(self) -> Result<Drained, AppError> {
        let Self {
            front,
            gateway,
            phase,
            reports,
            house,
            tunnel,
            crew,
            ..
        } = self;
        house.peers.open();
        let mut seen = phase.subscribe();
        let farewell = async {
            reached(&mut seen, Phase::Draining).await;
            reports.drain();
            house.hubs.say(&*house.store, true).await;
            house.hubs.leave();
            std::future::pending::<()>().await;
        };
        let drained = tokio::select! {
            drained = front.run() => drained,
            () = farewell => Ok(Drained { cut: 0 }),
        };
        // What the last answers used is charged before the store closes.
        gateway.settle(SETTLE_MAX).await;
        let estate = house.peers.estate(house.hubs.proxy()).await;
        crew.dismiss().await;
        tunnel.shutdown().await;
        handover::bequeath(&estate);
        Ok(drained?)
    }
}

/// Has the other proxies name this one to their nodes, unless its address would lead those to themselves.
fn introduce(hubs: &Hubs, settings: &Settings, pin: Option<String>) {
    match name::warning(&settings.server) {
        None => hubs.be(settings.server.public_url.clone(), pin),
        Some(warning) if matches!(settings.store, StoreSettings::Redis(_)) => {
            tracing::warn!("the other proxies of this store do not hear of this one: {warning}");
        }
        // Nobody else would hear.
        Some(_warning) => {}
    }
}

/// What concerns the other proxies and the nodes at the start and the end of this one.
struct House {
    hubs: Arc<Hubs>,
    store: Arc<dyn Store>,
    peers: Arc<Peers>,
}

/// What the management wants to know of the edge.
struct EdgeFacts {
    certificates: Arc<Certificates>,
    /// Open now.
    connections: Box<dyn Fn() -> usize + Send + Sync>,
}

/// What runs beside the requests, and its end.
#[derive(Default)]
struct Crew {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Crew {
    /// Runs a task until it ends or everything does.
    fn employ(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        let task = stop.run_until_cancelled_owned(task);
        self.tasks.spawn(task);
    }

    /// Ends all tasks and waits until what they held is free.
    async fn dismiss(self) {
        self.stop.cancel();
        self.tasks.close();
        if timeout(FAREWELL, self.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.tasks.len(), "tasks do not end");
        }
    }
}

/// Where the front's requests enter.
struct Entrance {
    gateway: Arc<Gateway>,
    metrics: Arc<Metrics>,
}

#[async_trait]
impl Handler for Entrance {
    async fn handle(&self, call: Call, sink: &mut dyn ClientSink) {
        let record = self.gateway.handle(call, sink).await;
        log::request(&record);
    }

    async fn carry(&self, call: Call) -> Result<Ride, Answer> {
        self.gateway.open_carrier(&call).await
    }

    fn turned_away(&self, address: IpAddr, reason: &'static str) {
        tracing::debug!(%address, reason, "a request was turned away");
        self.metrics.limit_rejection(reason);
    }
}

#[cfg(test)]
mod tests;
