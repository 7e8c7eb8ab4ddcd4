//! Until an answer begins: tries, waits for room where all are full, and tells a client that streams that somebody is at work. Until
//! `commit_after` a refusal can still be a real status.

use std::borrow::Cow;
use std::future::ready;
use std::time::Duration;

use bytes::Bytes;
use config::ids::{BackendId, NodeId};
use config::settings::proxy::Routing as Rules;
use config::tier::Tier;
use config::wire::progress::Progress as Word;
use config::wire::routing::Attempt;
use http::HeaderMap;
use policy::refusal::Refusal;
use policy::route::{Route, Step};
use policy::waiting::Guest;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Relay;
use crate::gateway::dispatch::{Begun, Tries};
use crate::gateway::exchange::{Exchange, Stop};
use crate::gateway::progress::{Doing, Progress};
use crate::gateway::waiting::{Displaced, Place, Present};

/// So often its place is looked at, for the comments.
const PLACE_EVERY: Duration = Duration::from_secs(1);

/// What another plan of the same request may do besides.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Pass {
    /// Full queues are no reason to leave a backend out.
    pub past_queues: bool,
    /// Only nodes of ours: it is not in the `OpenAI` API.
    pub native: bool,
}

/// How a request waits for room.
pub struct Queueing<'a> {
    /// Plans the request again, as things are then.
    pub again: &'a (dyn Fn(Pass) -> Route + Sync),
    /// Who waits.
    pub guest: Guest,
}

/// The tries of one request until its answer begins.
pub(super) struct First<'a> {
    relay: &'a Relay<'a>,
    tier: Tier,
    present: Present,
    /// What it waits for.
    progress: Progress,
    /// Nodes that may have started on it and are not asked again.
    pub(super) lost: Vec<NodeId>,
    /// Backends that failed on it and are not asked again.
    failed: Vec<BackendId>,
    /// What they would have the client told, where others were only full.
    blamed: Option<Refusal>,
    pub(super) trail: Vec<Attempt>,
    /// The last step that was asked: its node may be at work.
    pub(super) asked: Option<Step>,
    /// Time spent waiting for room.
    pub(super) waited: Duration,
}

impl<'a> First<'a> {
    pub(super) fn new(relay: &'a Relay<'a>) -> Self {
        let skipped = || relay.route.skipped.first().map(|(backend, _)| backend.tier);
        let tier = relay.route.wanted.or_else(skipped).unwrap_or(Tier::Primary);
        let waiting = &relay.dispatcher.waiting;
        Self {
            relay,
            tier,
            present: waiting.arrive(tier, &relay.queueing.guest.subject),
            progress: Progress::default(),
            lost: Vec::new(),
            failed: Vec::new(),
            blamed: None,
            trail: Vec::new(),
            asked: None,
            waited: Duration::ZERO,
        }
    }

    /// The beginning of the answer, while the client is told what it waits for if it streams.
    pub(super) async fn begin(
        &mut self,
        exchange: &mut Exchange<'_>,
        streams: bool,
    ) -> Result<Begun, Stop> {
        let (rules, progress) = (&self.relay.dispatcher.rules, self.progress.clone());
        while_waiting(self.answer(), exchange, (rules, &progress, streams)).await
    }

    async fn answer(&mut self) -> Result<Begun, Refusal> {
        let until = Instant::now() + self.relay.dispatcher.waiting.patience;
        let until = until.min(self.relay.job.deadline);
        let mut route = Cow::Borrowed(self.relay.route);
        if !self.lost.is_empty() {
            route = Cow::Owned((self.relay.queueing.again)(Pass::default()));
        }
        let mut place: Option<Place> = None;
        let mut is_guest = false;
        loop {
            if !self.lost.is_empty() || !self.failed.is_empty() {
                self.leave_out_spent(route.to_mut());
            }
            let spent = self.failed.len();
            let refusal = match self.try_all(&route, place.as_ref()).await {
                Ok(begun) => {
                    if let Some(place) = place {
                        place.go();
                    }
                    return Ok(begun);
                }
                Err(refusal @ Refusal::QueueFull { .. }) => refusal,
                // Who was away when it was planned may be back by now.
                Err(refusal) => {
                    let fresh = self.planned_afresh(refusal, spent)?;
                    if !fresh.steps.is_empty() {
                        route = Cow::Owned(fresh);
                        continue;
                    }
                    fresh.refusal()
                }
            };
            // Whoever has nothing there yet is not shut out by those who have much: the node makes room for it.
            if !is_guest && route.steps.is_empty() && self.present.is_alone() {
                is_guest = true;
                let mut past = (self.relay.queueing.again)(Pass {
                    past_queues: true,
                    ..Pass::default()
                });
                self.leave_out_spent(&mut past);
                if !past.steps.is_empty() {
                    route = Cow::Owned(past);
                    continue;
                }
            }
            route = Cow::Owned(self.wait(&mut place, (until, refusal)).await?);
        }
    }

    /// Tries a route. Whoever waits behind it may try as soon as this one is at a node.
    async fn try_all(&mut self, route: &Route, place: Option<&Place>) -> Result<Begun, Refusal> {
        let mut tries = Tries::new(self.relay.dispatcher, self.relay.job, route);
        tries.progress = self.progress.clone();
        let answered = {
            let mut answered = Box::pin(tries.either());
            let at_once = tokio::select! {
                biased;
                answered = &mut answered => Some(answered),
                () = ready(()) => None,
            };
            if let Some(place) = place {
                place.tries();
            }
            match at_once {
                Some(answered) => answered,
                None => answered.await,
            }
        };
        self.asked = tries.asked.take();
        self.trail.append(&mut tries.trail);
        let found_full = tries.found_full();
        let (mut lost, mut failed) = tries.spent();
        self.lost.append(&mut lost);
        self.failed.append(&mut failed);
        match answered {
            // Those that failed are out of it; those that were only full may have room in a moment.
            Err(
                refusal @ (Refusal::UpstreamError
                | Refusal::Timeout
                | Refusal::NoTierAvailable { .. }),
            ) if found_full && Instant::now() < self.relay.job.deadline => {
                self.blamed = Some(refusal);
                Err(self.relay.dispatcher.waiting.full(self.tier))
            }
            answered => answered,
        }
    }

    /// A new plan after all steps of one have failed, more than `spent` by now: with steps that were not tried, or with somebody who is only
    /// full. Else the refusal.
    fn planned_afresh(&mut self, refusal: Refusal, spent: usize) -> Result<Route, Refusal> {
        let is_of_nodes = matches!(
            refusal,
            Refusal::UpstreamError | Refusal::Timeout | Refusal::NoTierAvailable { .. }
        );
        let has_new = self.failed.len() > spent;
        if !is_of_nodes || !has_new || Instant::now() >= self.relay.job.deadline {
            return Err(refusal);
        }
        let mut fresh = (self.relay.queueing.again)(Pass::default());
        self.leave_out_spent(&mut fresh);
        if fresh.steps.is_empty() && !matches!(fresh.refusal(), Refusal::QueueFull { .. }) {
            return Err(refusal);
        }
        self.blamed = Some(refusal);
        Ok(fresh)
    }

    fn leave_out_spent(&self, route: &mut Route) {
        route.steps.retain(|step| {
            !self.lost.contains(&step.backend.node) && !self.failed.contains(&step.backend)
        });
    }

    /// Waits until it is its turn and there is room somewhere.
    async fn wait(
        &mut self,
        place: &mut Option<Place>,
        (until, refusal): (Instant, Refusal),
    ) -> Result<Route, Refusal> {
        let waiting = &self.relay.dispatcher.waiting;
        let (began, waited) = (Instant::now(), self.waited);
        if waiting.patience.is_zero() {
            return Err(self.blamed.take().unwrap_or(refusal));
        }
        let place = match place {
            Some(place) => {
                place.in_vain();
                place
            }
            None => place.insert(waiting.enter(self.tier, self.relay.queueing.guest.clone())?),
        };
        loop {
            self.progress.tell(Doing::Node(Word::Queue(place.ahead())));
            let look = (Instant::now() + PLACE_EVERY).min(until);
            let turn = timeout_at(look, place.turn()).await;
            self.waited = waited + began.elapsed();
            match turn {
                Ok(Ok(())) => {}
                Err(_early) if Instant::now() < until => continue,
                Ok(Err(Displaced)) | Err(_) => return Err(waiting.full(self.tier)),
            }
            let mut route = (self.relay.queueing.again)(Pass::default());
            self.leave_out_spent(&mut route);
            if !route.steps.is_empty() {
                self.progress.clear();
                return Ok(route);
            }
            let refusal = route.refusal();
            if !matches!(refusal, Refusal::QueueFull { .. }) {
                return Err(self.blamed.take().unwrap_or(refusal));
            }
            place.in_vain();
        }
    }
}

/// Waits for something that ends with an answer or a refusal. A client that streams is told so from `commit_after` on.
pub(super) async fn while_waiting<T>(
    doing: impl Future<Output = Result<T, Refusal>>,
    exchange: &mut Exchange<'_>,
    (rules, progress, streams): (&Rules, &Progress, bool),
) -> Result<T, Stop> {
    tokio::pin!(doing);
    let mut beat = Instant::now() + rules.commit_after;
    loop {
        tokio::select! {
            answered = &mut doing => return answered.map_err(Stop::Refused),
            () = sleep_until(beat), if streams => {
                exchange.start_stream(HeaderMap::new()).await?;
                exchange.send(keep_alive(progress)).await?;
                beat = Instant::now() + rules.keepalive;
            }
            () = exchange.gone() => return Err(Stop::ClientGone),
        }
    }
}

/// A comment, with what the request waits for if anybody knows.
fn keep_alive(progress: &Progress) -> Bytes {
    match progress.words(Instant::now().into_std()) {
        Some(words) => format!(": keep-alive {words}\n\n").into(),
        None => Word::keep_alive(None).into(),
    }
}
