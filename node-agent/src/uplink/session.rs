//! One tunnel with one key: answers the proxy's connections, reports, and repairs itself as long as it can. Two lost reports force a
//! handshake, ten seconds without one a registration, and a registration that does not help ends the session.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use config::wire::node::{NODE_PORT, Report};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tunnel::{Listener, PrivateKey, Settings, Tunnel};

use super::{REFUSED_PAUSE, Standing, Uplink};
use crate::register::{Backoff, Place};
use crate::report::{ReportError, Reporter, Reports};

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
    backoff: Backoff,
    try_count: &'a mut usize,
    _door: Door,
}

impl<'a> Session<'a> {
    pub(super) async fn start(
        uplink: &'a Uplink,
        key: PrivateKey,
        place: Place,
        try_count: &'a mut usize,
    ) -> Result<Self, tunnel::Error> {
        let settings = Settings::new(uplink.bind, key.clone(), place.address);
        let tunnel = Tunnel::start(settings).await?;
        let listener = tunnel.listen(NODE_PORT).await?;
        let hub = place.hub.address;
        tunnel.set_peer(place.hub).await?;
        let now = Instant::now();
        Ok(Self {
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
        let mut changes = self.uplink.tiers.changes();
        let mut drained = self.uplink.work.is_draining();
        loop {
            changes.mark_unchanged();
            let report = reports.next(&self.uplink.tiers, &self.uplink.work);
            let sent = stop.run_until_cancelled(self.reporter.send(&report)).await;
            let Some(sent) = sent else {
                break;
            };
            let next = match sent {
                Ok(_reply) => self.heard(&report),
                Err(error) => match stop.run_until_cancelled(self.missed(&error)).await {
                    None => break,
                    Some(Ok(next)) => next,
                    Some(Err(worn)) => {
                        self.tunnel.shutdown().await;
                        return End::Worn(worn);
                    }
                },
            };
            let waited = stop
                .run_until_cancelled(due(next, &mut changes, &self.uplink.work, &mut drained))
                .await;
            if waited.is_none() {
                break;
            }
        }
        self.close().await;
        End::Stopped
    }

    fn heard(&mut self, report: &Report) -> Instant {
        let now = Instant::now();
        if report.draining {
            self.uplink.farewell.cancel();
        }
        self.uplink.metrics.report("ok");
        self.lost = 0;
        self.repairs = 0;
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
        let stranger = matches!(error, ReportError::Stranger(_));
        if self.lost.is_multiple_of(LOST_BEFORE_HANDSHAKE) {
            self.handshake().await;
        }
        let silent = self.heard_at.elapsed() >= SILENCE_MAX;
        if (stranger || silent) && Instant::now() >= self.register_at {
            self.repair().await?;
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
                if let Err(error) = self.tunnel.set_peer(place.hub).await {
                    tracing::warn!(%error, "the tunnel did not take the hub");
                    return Err("the tunnel did not take the hub");
                }
                self.handshake().await;
                self.register_at = Instant::now() + SILENCE_MAX;
            }
            Err(lasting) => {
                let pause = if lasting {
                    REFUSED_PAUSE
                } else {
                    self.backoff.pause()
                };
                self.register_at = Instant::now() + pause;
            }
        }
        Ok(())
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
