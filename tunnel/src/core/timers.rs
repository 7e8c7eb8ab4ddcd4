//! What the passing of time does to the peers of the core.

use std::time::Instant;

use rand::Rng;

use super::{Core, SESSIONLESS_MAX};
use crate::netstack::conn::End;
use crate::netstack::link::Link;
use crate::wg::PeerId;

/// So that what waits to be sent fits into the buffers that are kept.
const LOOKS_PER_ROUND: usize = 8;

impl Core {
    /// Looks at peers whose time has come, a few at a time: each may want to send a whole survey of its path, to an address of its own. The rest
    /// is [work](Core::has_work).
    pub(super) fn turn(&mut self, now: Instant) {
        self.wheel.turn(now, &mut self.due);
        for _ in 0..LOOKS_PER_ROUND {
            let Some(one) = self.due.pop_front() else {
                return;
            };
            let member = self.members.get_mut(&one.id);
            if member.is_some_and(|member| member.place.came(one)) {
                self.look(one.id, now);
            }
        }
    }

    /// Runs one peer's timers, and says when to look again.
    fn look(&mut self, id: PeerId, now: Instant) {
        let jitter = self.random.random();
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let wanted = member.inside.is_wanted();
        // Whoever finds the budget empty comes again with the next slot.
        let is_put_off = member.session.calls(wanted, now) && !self.calls.take(now);
        if !is_put_off {
            member.session.tick(wanted, jitter, &mut self.outbox, now);
        }
        if let Some(next) = &mut member.next {
            next.tick(false, jitter, &mut self.outbox, now);
        }
        let expired = member.expired(now);
        let carriers = &self.windows.carriers;
        let own = self.settings.address;
        member.tend(carriers, (own, jitter), (&mut self.outbox, now));
        member.heal(&mut self.outbox, now);
        let is_lost = wanted && member.session.sessionless(now) >= SESSIONLESS_MAX;
        let established = member.session.is_established();
        if established && !member.open {
            let mtu = self.settings.bounds.mtu_max;
            let mut link = Link::idle(&mut member.session, &mut self.outbox, mtu, now);
            member.inside.session_came(&mut link, &mut self.agenda);
        }
        member.open = established;
        let due = if is_put_off { now } else { member.due(now) };
        self.wheel.schedule(&mut member.place, id, due);
        let notice = member.notice(now);
        let address = member.session.peer().address;
        self.windows.board.post(address, notice);
        if is_lost {
            self.cut(id, End::SessionLost, now);
        }
        if let Some(old) = expired {
            self.forget_session(&old.0);
        }
    }

    /// Runs one peer's timers now: something about it has changed.
    pub(super) fn nudge(&mut self, id: PeerId, now: Instant) {
        let jitter = self.random.random();
        if let Some(member) = self.members.get_mut(&id) {
            let wanted = member.inside.is_wanted();
            member.session.tick(wanted, jitter, &mut self.outbox, now);
            let due = member.due(now);
            self.wheel.schedule(&mut member.place, id, due);
        }
        self.note_session(id, now);
    }
}
