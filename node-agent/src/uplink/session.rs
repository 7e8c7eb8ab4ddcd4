//! One tunnel with one key: answers the proxy's connections, reports, and repairs itself as long as it can. Two lost reports force a
//! handshake, ten seconds without one a registration, and a registration that does not help ends the session.

use std::convert::Infallible;
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use config::settings::proxy::Backend;
use config::wire::node::{NODE_PORT, Report, ReportReply};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tunnel::{PathKind, PrivateKey, Settings, Tunnel};

use super::{Standing, Turn, Uplink, carrier, door};
use crate::register::{Backoff, Place};
use crate::report::{ReportError, Reporter, Reports, back_end};

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
/// So long a call may take to become a session: two round trips, and this where that is not known or less.
const CALL_PATIENCE_MIN: Duration = Duration::from_millis(150);
const CALL_PATIENCE_MAX: Duration = Duration::from_secs(1);
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
    /// The one that the tunnel has.
    key: Arc<Mutex<PrivateKey>>,
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
    rekeying: Option<Door>,
    backoff: Backoff,
    turn: &'a mut Turn,
    _door: Door,
    _carrier: Option<Door>,
}

impl<'a> Session<'a> {
    pub(super) async fn start(
        uplink: &'a Uplink,
        key: PrivateKey,
        place: Place,
        turn: &'a mut Turn,
    ) -> Result<Self, tunnel::Error> {
        let mut settings = Settings::new(uplink.bind, key.clone(), place.address);
        settings.backend = wanted(uplink.backend);
        settings.bounds.mtu_max = uplink.mtu_max;
        settings.bounds.mtu = settings.bounds.mtu.min(uplink.mtu_max);
        let tunnel = Tunnel::start(settings).await?;
        let listener = tunnel.listen(NODE_PORT).await?;
        let hub = place.hub.address;
        tunnel.set_peer(place.hub).await?;
        turn.dialled();
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
            rekeying: None,
            uplink,
            key: Arc::new(Mutex::new(key)),
            reporter: Reporter::new(tunnel.clone(), hub, place.report_port, uplink.token.clone()),
            _door: Door(tokio::spawn(door::accept(uplink.into(), listener, hub))),
            tunnel,
            hub,
            heartbeat: place.heartbeat,
            repairs: 0,
            lost: 0,
            heard_at: now,
            register_at: now,
            backoff: Backoff::default(),
            turn,
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
            self.rekey_if_due();
            let next = next.min(self.rekey_at);
            let uplink = self.uplink;
            tokio::select! {
                () = due(next, &mut changes, &uplink.work, &mut drained) => {}
                () = called(&mut calls, &tunnel, hub) => {
                    self.missed(&ReportError::Called).await?;
                }
                () = uplink.again.notified() => self.repair().await?,
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
        self.note_path();
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

    /// An address from which datagrams come stays the one that is dialled.
    fn note_path(&mut self) {
        let status = self.tunnel.peer_status(self.hub);
        if status.is_some_and(|status| status.path != PathKind::Carried) {
            self.turn.heard();
        }
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
        if is_called || stranger {
            self.note_path();
        }
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
        self.stop_rekeying();
        let key = lock(&self.key).clone();
        match self.uplink.register(&key, self.turn.next()).await {
            Ok(place) => {
                self.repairs += 1;
                self.turn.dialled();
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

    /// A new key for the same tunnel: what runs goes on under it, and does not notice. Reports go on meanwhile, and a proxy that does not
    /// answer is asked again later.
    fn rekey_if_due(&mut self) {
        if Instant::now() < self.rekey_at {
            return;
        }
        self.rekey_at = Instant::now() + self.uplink.rekey;
        let rekeying = rekey(
            self.uplink.clone(),
            (self.tunnel.clone(), self.hub),
            self.key.clone(),
            self.turn.next(),
        );
        self.rekeying = Some(Door(tokio::spawn(rekeying)));
    }

    /// The proxy keeps one key of a node: the present one is about to be registered again.
    fn stop_rekeying(&mut self) {
        let stopped = self.rekeying.take();
        if stopped.is_some_and(|door| !door.0.is_finished()) {
            self.rekey_at = Instant::now() + self.uplink.rekey_retry();
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

/// Registers a new key and gives it to the tunnel, however often that must be tried.
async fn rekey(
    uplink: Uplink,
    (tunnel, hub): (Tunnel, Ipv6Addr),
    present: Arc<Mutex<PrivateKey>>,
    turn: usize,
) {
    let key = PrivateKey::generate();
    let place = loop {
        match uplink.ask(&key, turn).await {
            Ok(place) => break place,
            Err(error) => {
                tracing::info!(%error, "no new key for the tunnel now; the present one goes on");
                tokio::time::sleep(uplink.rekey_retry()).await;
            }
        }
    };
    // Another place: the reports find out, and the tunnel is built anew.
    if place.address != tunnel.address() || place.hub.address != hub {
        return;
    }
    match tunnel.renew_peer(place.hub, Some(key.clone())).await {
        Ok(()) => *lock(&present) = key,
        Err(error) => tracing::warn!(%error, "the tunnel did not take its new key"),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        let status = tunnel.peer_status(hub);
        let patience = patience(status.and_then(|status| status.round_trip));
        tokio::time::sleep(patience).await;
        let heard = tunnel
            .peer_status(hub)
            .and_then(|status| status.since_heard);
        // A proxy that still has our keys has a session by now.
        if heard.is_none_or(|heard| heard > patience) {
            return;
        }
    }
}

/// How long a call may take to become a session.
fn patience(round_trip: Option<Duration>) -> Duration {
    let twice = round_trip.unwrap_or_default().saturating_mul(2);
    twice.clamp(CALL_PATIENCE_MIN, CALL_PATIENCE_MAX)
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

impl Uplink {
    /// What the status command sees of the tunnel.
    fn look_into(&self, tunnel: Option<(Tunnel, Ipv6Addr)>) {
        *lock(&self.window) = tunnel;
    }

    /// Pause between two tries to change the key.
    fn rekey_retry(&self) -> Duration {
        self.rekey.min(self.refused_retry)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_two_round_trips_of_a_long_path_to_become_a_session() {
        let ms = Duration::from_millis;
        assert_eq!(patience(None), ms(150));
        assert_eq!(patience(Some(ms(20))), ms(150));
        assert_eq!(patience(Some(ms(300))), ms(600));
        assert_eq!(patience(Some(ms(3_000))), ms(1_000));
    }
}
