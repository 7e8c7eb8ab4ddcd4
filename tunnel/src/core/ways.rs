//! The ways to a peer, tended whenever it is looked at: carriers that have ended, the race of UDP and a carrier, the width of the path. What to do is
//! decided by [`super::race`] and [`super::pmtu`]; here it is done.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Core;
use super::member::Member;
use super::pulse::Echo;
use super::race::{Facts, Race, Step};
use crate::carrier::{Carrier, Carriers};
use crate::error::Error;
use crate::outbox::Outbox;
use crate::path::Path;

/// A peer that chooses the way is looked at this often while a carrier brings its datagrams: it moves to another by itself, and the board
/// shows for so long one that has ended.
const CARRIED_LOOK_EVERY: Duration = Duration::from_secs(1);

impl Core {
    /// Tells whether a carrier to a peer is wanted, as long as the peer is known.
    pub(crate) fn watch_carrier(
        &mut self,
        address: Ipv6Addr,
    ) -> Result<watch::Receiver<bool>, Error> {
        let id = self.by_address.get(&address);
        let member = id.and_then(|id| self.members.get_mut(id));
        member
            .map(|member| member.race.get_or_insert_with(Race::boxed).watch())
            .ok_or(Error::UnknownPeer(address))
    }

    /// Makes a carrier to a peer. Where UDP is in doubt it is tried at once.
    pub(crate) fn open_carrier(
        &mut self,
        address: Ipv6Addr,
        remote: IpAddr,
        now: Instant,
    ) -> Result<Carrier, Error> {
        let max = self.settings.bounds.peers_max;
        let opened = self.windows.carriers.open(remote, max);
        let carrier = opened.ok_or(Error::TooManyCarriers(max))?;
        let id = self.by_address.get(&address).copied();
        let jitter = rand::Rng::random(&mut self.random);
        let (id, member) = id
            .and_then(|id| self.members.get_mut(&id).map(|member| (id, member)))
            .ok_or(Error::UnknownPeer(address))?;
        let way = carrier.id();
        member.session.paths_mut().attach(way);
        if let Some(next) = &mut member.next {
            next.paths_mut().attach(way);
        }
        let session = &mut member.session;
        if session.peer().initiates && (!session.is_established() || !session.doubt(now).is_zero())
        {
            session.force(jitter, &mut self.outbox, now);
        }
        self.wheel.schedule(&mut member.place, id, now);
        Ok(carrier)
    }
}

impl Member {
    /// An echo came back.
    pub(super) fn measured(&mut self, echo: Option<Echo>, now: Instant) {
        if let Some(Echo { round, size }) = echo
            && round > 0
        {
            self.pmtu.answered(round, size, now);
            self.narrow();
        }
    }

    /// Says again what a path that has become narrower has lost: the kernel would only after a pause, which doubles.
    pub(super) fn heal(&mut self, outbox: &mut Outbox, now: Instant) {
        if std::mem::take(&mut self.narrowed)
            && let Some(kernel) = self.inside.kernel_mut()
        {
            kernel.say_again(&mut self.session, outbox, now);
        }
    }

    /// When [`Member::tend`] has something to do, if nothing happens until then.
    pub(super) fn ways_due(&self, now: Instant) -> Option<Instant> {
        let paths = self.session.paths();
        let is_carried = matches!(paths.current(), Some(Path::Carried(_)));
        let race = if self.session.peer().initiates {
            let race = self.race.as_ref();
            race.map_or(Some(now), |race| race.due(self.facts(now), now))
        } else {
            is_carried.then_some(now + CARRIED_LOOK_EVERY)
        };
        let path = paths.current().filter(|_| self.session.is_established());
        let width = self.pmtu.due(path, self.session.wide_at(), now);
        [race, width].into_iter().flatten().min()
    }

    pub(super) fn tend(
        &mut self,
        carriers: &Carriers,
        (own, jitter): (Ipv6Addr, f64),
        (outbox, now): (&mut Outbox, Instant),
    ) {
        self.let_go_of_ended(carriers, jitter, (outbox, now));
        if self.session.peer().initiates {
            self.run_race(carriers, jitter, (outbox, now));
        }
        self.measure(own, (outbox, now));
    }

    /// A carrier whose stream has ended is no path any more.
    fn let_go_of_ended(
        &mut self,
        carriers: &Carriers,
        jitter: f64,
        (outbox, now): (&mut Outbox, Instant),
    ) {
        let paths = self.session.paths();
        let used = match paths.current() {
            Some(Path::Carried(id)) => Some(id),
            Some(Path::Udp(_)) | None => None,
        };
        let ended = [used, paths.carrier()].into_iter().flatten();
        for id in ended.filter(|id| !carriers.is_open(*id)) {
            if let Some(next) = &mut self.next {
                next.paths_mut().detach(id);
            }
            let was_used = self.session.paths_mut().detach(id);
            if was_used && self.session.peer().initiates {
                self.session.force(jitter, outbox, now);
            }
        }
    }

    fn run_race(
        &mut self,
        carriers: &Carriers,
        jitter: f64,
        (outbox, now): (&mut Outbox, Instant),
    ) {
        let facts = self.facts(now);
        let race = self.race.get_or_insert_with(Race::boxed);
        match race.tick(facts, jitter, now) {
            Step::Stay => {}
            Step::TryUdp => self.session.try_udp(outbox),
            Step::Close(id) => {
                carriers.close(id);
                self.session.paths_mut().detach(id);
            }
        }
    }

    fn facts(&self, now: Instant) -> Facts {
        let paths = self.session.paths();
        Facts {
            on: paths.current().map(Path::kind).unwrap_or_default(),
            doubt: self.session.doubt(now),
            carrier: paths.carrier(),
        }
    }

    fn measure(&mut self, own: Ipv6Addr, (outbox, now): (&mut Outbox, Instant)) {
        let path = self.session.paths().current();
        let path = path.filter(|_| self.session.is_established());
        let known = (self.session.wide_at(), self.pulse.round_trip());
        let question = self.pmtu.tick(path, known, now);
        self.narrow();
        let Some(question) = question else {
            return;
        };
        let round = question.round;
        for size in question.sizes().chain([0]) {
            let echo = Echo { round, size };
            self.pulse
                .measure(&mut self.session, own, echo, (&mut *outbox, now));
        }
    }

    /// What is sent from here on keeps to what is known of the path.
    fn narrow(&mut self) {
        let (before, size) = (self.session.mtu(), self.pmtu.size());
        if before != size {
            let peer = self.session.peer().address;
            tracing::debug!(%peer, from = before, to = size, "the path to the peer carries packets of another size");
            self.session.set_mtu(size);
            self.narrowed |= size < before;
        }
    }
}
