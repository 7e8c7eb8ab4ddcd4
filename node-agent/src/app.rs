//! Puts the agent together and takes it down in order: the tiers start while the proxy is dialled; at the end no new work, then the
//! running answers, then the workers, then the tunnel.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use config::settings::node::{Settings, TierSettings};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::AdminPage;
use crate::http::{AgentToken, Front};
use crate::hub::{Hub, HubError};
use crate::identity::{Identity, Member, StateError, StateLock};
use crate::join::{self, JoinError, JoinLink, Pin};
use crate::local::LocalApi;
use crate::metrics::Metrics;
use crate::models::lock::Keeper;
use crate::power::Power;
use crate::register::Backoff;
use crate::status::Teller;
use crate::tiers::{Launcher, Tiers};
use crate::uplink::house::{House, Lines};
use crate::uplink::{Standing, Uplink, Window};
use crate::wake::Waker;
use crate::work::Work;

/// The proxy must know that we go before its next request; a lost proxy must not hold us.
const FAREWELL: Duration = Duration::from_secs(2);
/// Answers that could not finish get this long to say so.
const GOODBYE: Duration = Duration::from_secs(5);

/// What comes from outside while the agent runs.
#[derive(Debug)]
pub struct Signals {
    /// Cancelled once: running answers finish, then the agent ends.
    pub stop: CancellationToken,
    /// Tiers as a settings file that was read again describes them.
    pub reload: mpsc::Receiver<Vec<TierSettings>>,
}

impl Signals {
    /// A stop and no other settings ever.
    pub fn only(stop: CancellationToken) -> Self {
        Self {
            stop,
            reload: mpsc::channel(1).1,
        }
    }
}

/// Hands new settings to the tiers as they come.
async fn reload(mut settings: mpsc::Receiver<Vec<TierSettings>>, tiers: Arc<Tiers>) {
    while let Some(settings) = settings.recv().await {
        let strange = tiers.change(settings);
        tracing::info!("the settings were read again");
        if !strange.is_empty() {
            let strange: Vec<&str> = strange.iter().map(|tier| tier.as_str()).collect();
            tracing::warn!(
                tiers = strange.join(", "),
                "tiers that came or went need a restart"
            );
        }
    }
}

/// Why the agent did not run.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The state directory is broken.
    #[error(transparent)]
    State(#[from] StateError),
    /// The machine belongs to no proxy.
    #[error(
        "this machine has not joined a proxy yet; run `hearth-node join LINK` with the link that `hearth-proxy node invite` prints"
    )]
    NotJoined,
    /// The join failed.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The proxy's address in the state directory is useless.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The metrics port is taken.
    #[error("the metrics cannot be served on {address}: {source}")]
    Admin {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The port of the local API is taken.
    #[error(
        "the local API cannot be served on {address}: {source}; choose another api_listen or --listen"
    )]
    LocalApi {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// Serves the models on a loopback address alone, without a proxy, until `stop` is cancelled.
pub async fn serve(
    settings: Settings,
    address: SocketAddr,
    launcher: Launcher,
    signals: Signals,
) -> Result<(), AppError> {
    let node = settings.node;
    std::fs::create_dir_all(&node.state_dir)
        .map_err(|source| AppError::LocalApi { address, source })?;
    let keeper = Arc::new(Keeper::new(&node.state_dir));
    let tiers = Arc::new(Tiers::locked(
        settings.tiers,
        node.memory_max,
        &launcher,
        &keeper,
    ));
    tiers.set_power(Power::new("/", node.watts));
    let metrics = Arc::new(Metrics::new(tiers.clone()).also_as(&node.metrics_compat));
    let work = Work::default();
    let front = Arc::new(Front::new(
        tiers.clone(),
        AgentToken::default(),
        work.clone(),
        metrics.clone(),
    ));
    let connections = TaskTracker::new();
    let mut background = vec![local_api(address, front, &connections).await?];
    background.push(tokio::spawn(reload(signals.reload, tiers.clone())));
    if let Some(address) = node.admin_listen {
        background.push(admin_page(address, metrics).await?);
    }
    signals.stop.cancelled().await;
    work.drain();
    if timeout(node.grace, work.idle()).await.is_err() {
        tracing::warn!(
            requests_running = work.running(),
            "the grace is over; answers are cut"
        );
    }
    tiers.shutdown().await;
    for part in background {
        part.abort();
    }
    tracing::info!("stopped");
    Ok(())
}

async fn local_api(
    address: SocketAddr,
    front: Arc<Front>,
    connections: &TaskTracker,
) -> Result<tokio::task::JoinHandle<()>, AppError> {
    let taken = |source| AppError::LocalApi { address, source };
    let api = LocalApi::bind(address, front).await.map_err(taken)?;
    let address = api.local_addr().map_err(taken)?;
    tracing::info!(%address, "the local API answers");
    Ok(tokio::spawn(api.serve(connections.clone())))
}

async fn admin_page(
    address: SocketAddr,
    metrics: Arc<Metrics>,
) -> Result<tokio::task::JoinHandle<()>, AppError> {
    let page = AdminPage::bind(address, metrics)
        .await
        .map_err(|source| AppError::Admin { address, source })?;
    Ok(tokio::spawn(page.serve()))
}

/// Runs the agent until `stop` is cancelled; then running answers finish within the grace.
pub async fn run(
    settings: Settings,
    link: Option<JoinLink>,
    launcher: Launcher,
    signals: Signals,
) -> Result<(), AppError> {
    let _lock = StateLock::take(&settings.node.state_dir)?;
    let identity = Identity::open(&settings.node.state_dir)?;
    let Signals {
        stop,
        reload: settings_again,
    } = signals;
    let Some(member) = stop
        .run_until_cancelled(membership(&settings, link, &identity))
        .await
    else {
        return Ok(());
    };
    let mut agent = Agent::start(settings, identity, member?, &launcher).await?;
    let reloading = reload(settings_again, agent.tiers.clone());
    agent.background.push(tokio::spawn(reloading));
    stop.cancelled().await;
    agent.stop().await;
    Ok(())
}

/// The membership of this machine; redeems the link if there is none with its proxy yet.
async fn membership(
    settings: &Settings,
    link: Option<JoinLink>,
    identity: &Identity,
) -> Result<Member, AppError> {
    let node = &settings.node;
    let present = Member::load(&node.state_dir)?;
    let link = match (present, link) {
        (Some(member), None) => return Ok(member),
        (Some(member), Some(link)) if member.proxy == link.proxy => {
            let pin = link.pin.map(|pin| pin.to_string());
            if member.pin == pin {
                return Ok(member);
            }
            link
        }
        (_, Some(link)) => link,
        (None, None) => return Err(AppError::NotJoined),
    };
    let mut backoff = Backoff::default();
    loop {
        match join::join(&link, identity, &node.name, &node.state_dir).await {
            Ok(joined) => {
                let member = joined.member;
                tracing::info!(node_id = %member.node_id, proxy = %member.proxy, "joined");
                return Ok(member);
            }
            Err(JoinError::Hub(error)) if error.is_passing() => {
                let pause = backoff.pause();
                tracing::warn!(%error, again_in_ms = pause.as_millis(), "not joined yet");
                sleep(pause).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The way to the proxy that this machine joined; those to the others are made after it.
fn uplink(
    node: &config::settings::node::Node,
    (hub, identity, member): (Hub, Identity, Member),
    (front, token, metrics): (Arc<Front>, AgentToken, Arc<Metrics>),
    (tiers, work, connections): (&Arc<Tiers>, &Work, &TaskTracker),
    (standing, farewell): (watch::Sender<Standing>, CancellationToken),
) -> Uplink {
    Uplink {
        hub,
        identity: Arc::new(identity),
        member,
        bind: node.bind,
        backend: node.backend,
        carrier: node.carrier,
        mtu_max: node.mtu_max,
        front,
        token,
        tiers: Arc::clone(tiers),
        work: work.clone(),
        metrics,
        standing,
        connections: connections.clone(),
        farewell,
        start: format!("{:032x}", rand::random::<u128>()),
        rekey: node.rekey,
        refused_retry: node.refused_retry,
        hubs: watch::Sender::default(),
        proxy: watch::Sender::default(),
        again: Arc::default(),
        stirred: Arc::default(),
        window: Window::default(),
    }
}

/// The running parts.
struct Agent {
    grace: Duration,
    work: Work,
    tiers: Arc<Tiers>,
    connections: TaskTracker,
    farewell: CancellationToken,
    standing: watch::Receiver<Standing>,
    uplink_stop: CancellationToken,
    uplink: tokio::task::JoinHandle<()>,
    /// Parts without an end of their own.
    background: Vec<tokio::task::JoinHandle<()>>,
}

impl Agent {
    async fn start(
        settings: Settings,
        identity: Identity,
        member: Member,
        launcher: &Launcher,
    ) -> Result<Self, AppError> {
        let node = settings.node;
        let pin = member.pin.as_deref().and_then(Pin::parse);
        let hub = Hub::new(&member.proxy, pin)?;
        let keeper = Arc::new(Keeper::new(&node.state_dir));
        let tiers = Arc::new(Tiers::locked(
            settings.tiers,
            node.memory_max,
            launcher,
            &keeper,
        ));
        tiers.set_power(Power::new("/", node.watts));
        let metrics = Arc::new(Metrics::new(tiers.clone()).also_as(&node.metrics_compat));
        let work = Work::default();
        let token = AgentToken::default();
        let (standing, present) = watch::channel(Standing::default());
        let mut background = Vec::new();
        if let Some(address) = node.admin_listen {
            background.push(admin_page(address, metrics.clone()).await?);
        }
        let front = Front::new(tiers.clone(), token.clone(), work.clone(), metrics.clone())
            .waking(Waker::new(node.wake.clone()));
        let front = Arc::new(front);
        let connections = TaskTracker::new();
        if let Some(address) = node.api_listen {
            background.push(local_api(address, front.clone(), &connections).await?);
        }
        let lines = Lines::default();
        let teller = Teller {
            member: member.clone(),
            standing: standing.subscribe(),
            lines: lines.clone(),
            tiers: tiers.clone(),
            work: work.clone(),
        };
        background.push(tokio::spawn(teller.serve(node.state_dir.clone())));
        let uplink_stop = CancellationToken::new();
        let farewell = CancellationToken::new();
        let uplink = uplink(
            &node,
            (hub, identity, member),
            (front, token, metrics),
            (&tiers, &work, &connections),
            (standing, farewell.clone()),
        );
        let house = House::new(uplink, &node.state_dir, lines);
        let uplink = tokio::spawn(house.run(uplink_stop.clone()));
        Ok(Self {
            grace: node.grace,
            work,
            tiers,
            connections,
            farewell,
            standing: present,
            uplink_stop,
            uplink,
            background,
        })
    }

    async fn stop(self) {
        self.drain().await;
        // Answers still running end with an error event now, which the connections below still carry.
        self.tiers.shutdown().await;
        self.connections.close();
        if timeout(GOODBYE, self.connections.wait()).await.is_err() {
            tracing::debug!("connections of the proxy were cut");
        }
        self.uplink_stop.cancel();
        if timeout(GOODBYE, self.uplink).await.is_err() {
            tracing::debug!("the tunnel did not close in time");
        }
        for part in self.background {
            part.abort();
        }
        tracing::info!("stopped");
    }

    /// Tells the proxy and waits for running answers.
    async fn drain(&self) {
        self.work.drain();
        tracing::info!(
            requests_running = self.work.running(),
            grace_secs = self.grace.as_secs(),
            "going down: no new work, running answers finish"
        );
        let connected = *self.standing.borrow() == Standing::Connected;
        if connected && timeout(FAREWELL, self.farewell.cancelled()).await.is_err() {
            tracing::debug!("the proxy could not be told");
        }
        if timeout(self.grace, self.work.idle()).await.is_err() {
            let requests_running = self.work.running();
            tracing::warn!(requests_running, "the grace is over; answers are cut");
        }
    }
}
