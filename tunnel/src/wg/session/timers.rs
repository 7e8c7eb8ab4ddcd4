//! What the passing of time does to a session, and when to look at it again.

use std::time::{Duration, Instant};

use boringtun::noise::TunnResult;

use super::{Session, UNANSWERED_MAX};
use crate::outbox::{Outbox, ROOM_MIN};
use crate::wg::message::Message;

/// A session in which something was sent is renewed before boringtun does it by itself, 120 s (`REKEY_AFTER_TIME` of the paper) after it was
/// made to the second: sessions that were made together would be renewed together for ever.
const REKEY_AFTER: Duration = Duration::from_secs(108);
/// A session that nothing goes through is renewed later: ten thousand idle peers would otherwise keep a core busy with nothing else.
/// Leaves five attempts before `REJECT_AFTER_TIME`, 180 s, ends it.
const REKEY_IDLE_AFTER: Duration = Duration::from_secs(150);
/// Spreads rekeys of peers that started together.
const REKEY_SPREAD: Duration = Duration::from_secs(10);
/// A session through which something went this lately is looked at every quarter second.
const BUSY_FOR: Duration = Duration::from_secs(1);
/// A session that we keep up is looked at this often: its renewal need not be exact.
const LOOK_EVERY: Duration = Duration::from_secs(4);
/// Any other waits for the peer.
const LOOK_EVERY_IDLE: Duration = Duration::from_secs(15);
/// `REJECT_AFTER_TIME` of the paper.
const REJECT_AFTER: Duration = Duration::from_mins(3);
/// boringtun's clock may lag by this much; it takes the time from the last look.
const LAG_MAX: Duration = Duration::from_millis(500);
/// `KEEPALIVE_TIMEOUT` of the paper: what was received is acknowledged with an empty packet if nothing else goes back.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

impl Session {
    /// Runs boringtun's timers and ours. `wanted` says that streams wait for a session; `jitter` is
    /// uniform in 0..1. [`Session::due`] says when to call it next.
    pub(crate) fn tick(&mut self, wanted: bool, jitter: f64, outbox: &mut Outbox, now: Instant) {
        self.run_timers(jitter, outbox, now);
        if self.forced && !self.peer.initiates && self.retry.is_old(now) {
            self.forced = false;
        }
        if self.wants_handshake(wanted, now) {
            if self.retry.is_due(now) {
                self.initiate(jitter, outbox, now);
            }
        } else {
            self.retry.done();
        }
        self.keep_alive(outbox, now);
    }

    /// Whether [`Session::tick`] would begin a handshake.
    pub(crate) fn calls(&self, wanted: bool, now: Instant) -> bool {
        self.wants_handshake(wanted, now) && self.retry.is_due(now)
    }

    /// When [`Session::tick`] has something to do, if nothing happens until then; `now` for the next occasion.
    pub(crate) fn due(&self, wanted: bool, now: Instant) -> Instant {
        let is_open = self.established;
        let moved = self.last_moved.map(|at| now.duration_since(at));
        let is_busy = self.forced
            || self.unanswered_since.is_some()
            || (wanted && !is_open && self.retry.next_at().is_none())
            || moved.is_some_and(|since| since < BUSY_FOR);
        if is_busy {
            return now;
        }
        let keepalive = self.peer.keepalive.filter(|_| is_open);
        let passive = self.last_moved.map(|at| at + KEEPALIVE_TIMEOUT);
        let age = self.since_handshake();
        let latest = if self.peer.initiates {
            LOOK_EVERY
        } else {
            LOOK_EVERY_IDLE
        };
        let dates = [
            self.retry.next_at(),
            keepalive.map(|after| self.last_sent + after),
            passive.filter(|at| *at > now),
            age.map(|age| now + REJECT_AFTER.saturating_sub(age)),
            age.filter(|_| self.peer.initiates)
                .map(|age| now + self.renewed_after(age, now).saturating_sub(age)),
        ];
        let first = dates.into_iter().flatten().min();
        first.map_or(now + latest, |at| at.min(now + latest))
    }

    /// boringtun takes the time from the last run of its timers: run them before anything else happens after a pause.
    pub(super) fn catch_up(&mut self, outbox: &mut Outbox, now: Instant) {
        if now.duration_since(self.looked_at) >= LAG_MAX {
            // As good as random for this: spread over the peers.
            let jitter = f64::from(self.id.index() & 0xff) / 256.0;
            self.run_timers(jitter, outbox, now);
        }
    }

    fn run_timers(&mut self, jitter: f64, outbox: &mut Outbox, now: Instant) {
        self.looked_at = now;
        let mut room = [0u8; ROOM_MIN];
        let Some(tunn) = self.noise.get_mut() else {
            return;
        };
        match tunn.update_timers(&mut room) {
            TunnResult::WriteToNetwork(datagram) => {
                let initiation = matches!(Message::parse(datagram), Ok(Message::Initiation));
                if !initiation {
                    self.transmit(datagram, outbox, now);
                } else if self.retry.is_due(now) {
                    self.transmit(datagram, outbox, now);
                    self.retry.sent(jitter, now);
                }
            }
            // ConnectionExpired is reported for ever once it happened; `wants_handshake` is
            // what brings the session back.
            TunnResult::Err(_)
            | TunnResult::Done
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => {}
        }
        self.refresh(now);
    }

    /// How old a session of this age becomes. Peers differ in it, by the random bits of their ids.
    fn renewed_after(&self, age: Duration, now: Instant) -> Duration {
        let moved = self.last_moved.map(|at| now.duration_since(at));
        let is_used = moved.is_some_and(|since| since <= age);
        let after = if is_used {
            REKEY_AFTER
        } else {
            REKEY_IDLE_AFTER
        };
        after + REKEY_SPREAD.mul_f64(f64::from(self.id.index() & 0xff) / 256.0)
    }

    fn wants_handshake(&self, wanted: bool, now: Instant) -> bool {
        if self.paths.current().is_none() {
            return false;
        }
        if self.forced || (!self.established && (self.peer.initiates || wanted)) {
            return true;
        }
        if !self.peer.initiates || !self.established {
            return false;
        }
        let unanswered = self
            .unanswered_since
            .is_some_and(|since| now.duration_since(since) >= UNANSWERED_MAX);
        let age = self.since_handshake().unwrap_or_default();
        let stale = age >= self.renewed_after(age, now);
        // A young session with a schedule still running: the peer's own initiation made it.
        let unfinished = self.retry.is_active() && age >= UNANSWERED_MAX;
        unanswered || stale || unfinished
    }

    fn keep_alive(&mut self, outbox: &mut Outbox, now: Instant) {
        let silent = now.duration_since(self.last_sent);
        if self.established && self.peer.keepalive.is_some_and(|after| silent >= after) {
            self.seal(&mut [], 0, outbox, now);
        }
    }
}
