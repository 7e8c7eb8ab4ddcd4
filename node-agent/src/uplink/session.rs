//! One tunnel with one key: answers the proxy's connections, reports, and repairs itself as long as it can. Two lost reports force a
//! handshake, ten seconds without one a registration, and a registration that does not help ends the session.

use std::convert::Infallible;
use std::net::Ipv6Addr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use config::settings::proxy::Backend;
use config::wire::node::{NODE_PORT, Report, ReportReply};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tunnel::{Listener, PrivateKey, Settings, Tunnel};

use super::{Standing, Uplink, carrier};
use crate::register::{Backoff, Place};
use crate::report::{ReportError, Reporter, Reports, back_end};

/// The proxy pools its connections; more than this is a fault of its own.
const CONNECTIONS_MAX: usize = 256;
/// After every so many lost reports a handshake is forced.
const LOST_BEFORE_HANDSHAKE: u32 = 2;
/// Silence before a registration.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Pause after a report that failed at once.
const RETRY: Duration = Duration::from_secs(1);
/// Changes that come together are reported together.
const GATHER: Duration = Duration::from_millis(100);
/// A registration with the same key that brought nothing is followed by one with a new key.
const REPAIRS_MAX: u32 = 2;
/// So long a call may take to become a session: a round trip.
const CALL_PATIENCE: Duration = Duration::from_millis(150);
/// How long the last bytes may take when the node goes down.
const LINGER: Duration = Duration::from_secs(2);
/// How often that is looked at.
const EMPTIED_POLL: Duration = Duration::from_millis(20);

/// Why a session ended.
pub(super) enum End {
    Stopped,
    /// A new key may help.
    Worn(&'static str),
}

/// Ends the task with the session.
#[derive(Debug)]
struct Door(JoinHandle<()>);

impl Drop for Door {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug)]
pub(super) struct Session<'a> {
    uplink: &'a Uplink,
    key: PrivateKey,
    tunnel: Tunnel,
    hub: Ipv6Addr,
    reporter: Reporter,
    heartbeat: Duration,
    /// Registrations since the last report that got through.
    repairs: u32,
    lost: u32,
    heard_at: Instant,
    register_at: Instant,
    /// When the present key is old.
    rekey_at: Instant,
    backoff: Backoff,
    try_count: &'a mut usize,
    _door: Door,
    _carrier: Option<Door>,
}

impl<'a> Session<'a> {
    pub(super) async fn start(
        uplink: &'a Uplink,
        key: PrivateKey,
        place: Place,
        try_count: &'a mut usize,
    ) -> Result<Self, tunnel::Error> {
        let mut settings = Settings::new(uplink.bind, key.clone(), place.address);
        settings.backend = wanted(uplink.backend);
        settings.bounds.mtu_max = uplink.mtu_max;
        settings.bounds.mtu = settings.bounds.mtu.min(uplink.mtu_max);
        let tunnel = Tunnel::start(settings).await?;
        let listener = tunnel.listen(NODE_PORT).await?;
        let hub = place.hub.address;
        tunnel.set_peer(place.hub).await?;
        uplink.look_into(Some((tunnel.clone(), hub)));
        let now = Instant::now();
        let carrier = || {
            Door(tokio::spawn(carrier::keep(
                uplink.clone(),
                tunnel.clone(),
                hub,
            )))
        };
        Ok(Self {
            _carrier: uplink.carrier.then(carrier),
            rekey_at: now + uplink.rekey,
            uplink,
            key,
            reporter: Reporter::new(tunnel.clone(), hub, place.report_port, uplink.token.clone()),
            _door: Door(tokio::spawn(accept(uplink_front(uplink), listener, hub))),
            tunnel,
            hub,
            heartbeat: place.heartbeat,
            repairs: 0,
            lost: 0,
            heard_at: now,
            register_at: now,
            backoff: Backoff::default(),
            try_count,
        })
    }

    pub(super) async fn run(mut self, reports: &mut Reports, stop: &CancellationToken) -> End {
        let ended = stop.run_until_cancelled(self.live(reports)).await;
        if let Some(Err(worn)) = ended {
            return self.worn(worn).await;
        }
        self.uplink.look_into(None);
        self.close().await;
        End::Stopped
    }

    /// Reports, and repairs what breaks, until nothing helps any more; then the reason.
    async fn live(&mut self, reports: &mut Reports) -> Result<Infallible, &'static str> {
        let mut changes = self.uplink.tiers.changes();
        let mut drained = self.uplink.work.is_draining();
        let (tunnel, hub) = (self.tunnel.clone(), self.hub);
        reports.through(back_end(&tunnel));
        let mut calls = tunnel.calls();
        loop {
            changes.mark_unchanged();
            let report = reports.next(&self.uplink.tiers, &self.uplink.work);
            let sent = tokio::select! {
                sent = self.reporter.send(&report) => sent,
                () = called(&mut calls, &tunnel, hub) => Err(ReportError::Called),
            };
            let next = match sent {
                Ok(reply) => self.answered(&reply, &report),
                Err(error) => self.missed(&error).await?,
            };
            self.rekey_if_due().await;
            let next = next.min(self.rekey_at);
            let is_called = tokio::select! {
                () = due(next, &mut changes, &self.uplink.work, &mut drained) => false,
                () = called(&mut calls, &tunnel, hub) => true,
            };
            if is_called {
                self.missed(&ReportError::Called).await?;
            }
        }
    }

    /// Takes what the proxy says to a report; when to report next.
    fn answered(&mut self, reply: &ReportReply, report: &Report) -> Instant {
        self.uplink.hear_of(&reply.hubs);
        self.rest(reply.drain);
        let next = self.heard(report);
        // Whoever takes over for it must hear of this node at once.
        if reply.draining {
            Instant::now() + RETRY
        } else {
            next
        }
    }

    async fn worn(self, reason: &'static str) -> End {
        self.uplink.look_into(None);
        self.tunnel.shutdown().await;
        End::Worn(reason)
    }

    /// Whether the proxy wants this node to take work.
    fn rest(&self, resting: bool) {
        if self.uplink.work.rest(resting) {
            tracing::info!(resting, "the proxy says whether this node takes work");
        }
    }

    fn heard(&mut self, report: &Report) -> Instant {
        let now = Instant::now();
        if report.draining {
            self.uplink.farewell.cancel();
            self.uplink.stirred.notify_one();
        }
        self.uplink.metrics.report("ok");
        self.lost = 0;
        self.repairs = 0;
        let (tunnel, hub) = (self.tunnel.clone(), self.hub);
        // Its answer tells the round trip.
        tokio::spawn(async move { drop(tunnel.echo(hub).await) });
        self.heard_at = now;
        self.register_at = now;
        self.backoff.reset();
        if self.uplink.stand(Standing::Connected) {
            tracing::info!("connected to the proxy");
        }
        now + self.heartbeat
    }

    /// Repairs what can be repaired; when to report next.
    async fn missed(&mut self, error: &ReportError) -> Result<Instant, &'static str> {
        self.uplink.metrics.report("lost");
        self.lost += 1;
        let news = self.uplink.stand_lost(error);
        if news {
            tracing::warn!(%error, "a report did not get through");
        } else {
            tracing::debug!(%error, lost = self.lost, "a report did not get through");
        }
        let is_called = matches!(error, ReportError::Called);
        let stranger = matches!(error, ReportError::Stranger(_));
        if self.lost.is_multiple_of(LOST_BEFORE_HANDSHAKE) {
            self.handshake().await;
        }
        let silent = self.heard_at.elapsed() >= SILENCE_MAX;
        if is_called || (stranger || silent) && Instant::now() >= self.register_at {
            self.repair().await?;
            // A proxy that has just begun knows nothing of us until it has our report.
            if is_called {
                return Ok(Instant::now());
            }
        }
        Ok(Instant::now() + RETRY)
    }

    async fn handshake(&self) {
        if let Err(error) = self.tunnel.handshake_now(self.hub).await {
            tracing::debug!(%error, "no handshake");
        }
    }

    /// Registers the same key again; the session lives on if the proxy gives the same place.
    async fn repair(&mut self) -> Result<(), &'static str> {
        if self.repairs >= REPAIRS_MAX {
            return Err("registering did not help");
        }
        match self.uplink.register(&self.key, self.try_count).await {
            Ok(place) => {
                self.repairs += 1;
                if place.address != self.tunnel.address() || place.hub.address != self.hub {
                    return Err("the proxy gave another address");
                }
                self.heartbeat = place.heartbeat;
                self.reporter = Reporter::new(
                    self.tunnel.clone(),
                    self.hub,
                    place.report_port,
                    self.uplink.token.clone(),
                );
                // If the proxy had not lost us, what runs goes on.
                if let Err(error) = self.tunnel.renew_peer(place.hub, None).await {
                    tracing::warn!(%error, "the tunnel did not take the hub");
                    return Err("the tunnel did not take the hub");
                }
                self.register_at = Instant::now() + SILENCE_MAX;
            }
            Err(lasting) => {
                let pause = if lasting {
                    self.uplink.refused_retry
                } else {
                    self.backoff.pause()
                };
                self.register_at = Instant::now() + pause;
            }
        }
        Ok(())
    }

    /// A new key for the same tunnel: what runs goes on under it, and does not notice. A proxy that is not there now gets it later.
    async fn rekey_if_due(&mut self) {
        if Instant::now() < self.rekey_at {
            return;
        }
        let key = PrivateKey::generate();
        let registered = self.uplink.register(&key, self.try_count).await;
        self.rekey_at = Instant::now() + self.uplink.rekey;
        let Ok(place) = registered else {
            self.rekey_at = Instant::now() + self.uplink.rekey.min(self.uplink.refused_retry);
            return;
        };
        if place.address != self.tunnel.address() || place.hub.address != self.hub {
            return;
        }
        match self.tunnel.renew_peer(place.hub, Some(key.clone())).await {
            Ok(()) => self.key = key,
            Err(error) => tracing::warn!(%error, "the tunnel did not take its new key"),
        }
    }

    /// Lets the last bytes out, then closes: a tunnel that is shut down resets what is under way, and a reset costs the other side
    /// even what has arrived but is not read yet.
    async fn close(self) {
        let Self {
            tunnel,
            hub,
            reporter,
            ..
        } = self;
        // Its connection would never end by itself.
        drop(reporter);
        let emptied = async {
            while tunnel
                .streams_now(hub)
                .await
                .is_ok_and(|streams| streams > 0)
            {
                tokio::time::sleep(EMPTIED_POLL).await;
            }
        };
        if timeout(LINGER, emptied).await.is_err() {
            tracing::debug!("streams were cut");
        }
        tunnel.shutdown().await;
    }
}

/// The settings' word for who does TCP, in the tunnel's words.
pub(crate) const fn wanted(backend: Backend) -> tunnel::Backend {
    match backend {
        Backend::Auto => tunnel::Backend::Auto,
        Backend::Netns => tunnel::Backend::Netns,
        Backend::Embedded => tunnel::Backend::Embedded,
    }
}

/// Resolves when the proxy calls and does not know us: it has restarted, and only a registration brings the tunnel back.
async fn called(calls: &mut watch::Receiver<u64>, tunnel: &Tunnel, hub: Ipv6Addr) {
    loop {
        if calls.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(CALL_PATIENCE).await;
        let heard = tunnel
            .peer_status(hub)
            .and_then(|status| status.since_heard);
        // A proxy that still has our keys has a session by now.
        if heard.is_none_or(|heard| heard > CALL_PATIENCE) {
            return;
        }
    }
}

/// Resolves when the next report is due: in time, or after a change.
async fn due(
    next: Instant,
    changes: &mut watch::Receiver<u64>,
    work: &crate::work::Work,
    drained: &mut bool,
) {
    let drains = async {
        if *drained {
            std::future::pending::<()>().await;
        }
        work.draining().await;
    };
    tokio::select! {
        () = sleep_until(next) => {}
        _changed = changes.changed() => tokio::time::sleep(GATHER).await,
        () = drains => *drained = true,
    }
}

fn uplink_front(uplink: &Uplink) -> Accepting {
    Accepting {
        front: uplink.front.clone(),
        connections: uplink.connections.clone(),
    }
}

#[derive(Debug)]
struct Accepting {
    front: Arc<crate::http::Front>,
    connections: tokio_util::task::TaskTracker,
}

/// Serves the hub's connections until the tunnel closes. Nobody else can reach the port: the tunnel has one peer.
async fn accept(accepting: Accepting, listener: Listener, hub: Ipv6Addr) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok((stream, from)) = listener.accept().await {
        let permit = room.clone().try_acquire_owned();
        match permit {
            Ok(permit) if *from.ip() == hub => {
                let front = accepting.front.clone();
                accepting.connections.spawn(async move {
                    front.serve(stream).await;
                    drop(permit);
                });
            }
            Ok(_) | Err(_) => {
                tracing::warn!(%from, "a connection was turned away");
                drop(stream);
            }
        }
    }
}

impl Uplink {
    /// What the status command sees of the tunnel.
    fn look_into(&self, tunnel: Option<(Tunnel, Ipv6Addr)>) {
        *self.window.lock().unwrap_or_else(PoisonError::into_inner) = tunnel;
    }

    fn stand_lost(&self, error: &ReportError) -> bool {
        let was_connected = *self.standing.borrow() == Standing::Connected;
        // A refusal stays what the person at the node sees.
        if !matches!(*self.standing.borrow(), Standing::Refused { .. }) {
            self.stand(Standing::Lost {
                reason: error.to_string(),
            });
        }
        was_connected
    }
}
