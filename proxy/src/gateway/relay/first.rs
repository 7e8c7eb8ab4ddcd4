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
use policy::waking::Waking;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Relay;
use super::times::Times;
use crate::gateway::dispatch::{Begun, Dispatcher, Opened, Tries};
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
    /// Nor is it that it will take requests in a moment; see [`policy::route::Ask::past_waits`].
    pub past_waits: bool,
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
    /// When this beginning of it was first tried.
    began: Instant,
    /// The last step that was asked: its node may be at work.
    pub(super) asked: Option<Step>,
    /// Time spent waiting for room.
    waited: Duration,
    /// Time spent waiting for what slept, or was being loaded.
    woke: Duration,
}

/// Why nobody can be asked now, and when that is over.
struct Held {
    refusal: Refusal,
    /// Nobody is only full: what it waits for is a model that is loaded, or a probe that ends.
    is_passing: bool,
    ready_in: Option<Duration>,
}

impl Held {
    fn of(route: &Route, refusal: Refusal) -> Self {
        Self {
            is_passing: !matches!(refusal, Refusal::QueueFull { .. }),
            ready_in: route.ready_in(),
            refusal,
        }
    }
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
            began: Instant::now(),
            asked: None,
            waited: Duration::ZERO,
            woke: Duration::ZERO,
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

    /// Where the time of an answer went until its node was asked.
    pub(super) const fn times(&self, received_at: Instant, opened: &Opened) -> Times {
        Times::new((received_at, opened.asked_at), self.waited, self.woke)
    }

    async fn answer(&mut self) -> Result<Begun, Refusal> {
        self.began = Instant::now();
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
                // They are on their way.
                Err(refusal) if route.steps.is_empty() && route.is_worth_waiting() => refusal,
                // Who was away when it was planned may be back by now.
                Err(refusal) => {
                    route = Cow::Owned(self.planned_afresh(refusal, spent)?);
                    if !route.steps.is_empty() {
                        continue;
                    }
                    route.refusal()
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
            let held = Held::of(&route, refusal);
            route = Cow::Owned(self.wait(&mut place, held).await?);
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
        self.woke += tries.woke;
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
    /// full or on the way. Else the refusal.
    fn planned_afresh(&mut self, refusal: Refusal, spent: usize) -> Result<Route, Refusal> {
        let is_of_nodes = matches!(
            refusal,
            Refusal::UpstreamError | Refusal::Timeout | Refusal::NoTierAvailable { .. }
        );
        if !is_of_nodes || Instant::now() >= self.relay.job.deadline {
            return Err(refusal);
        }
        let mut fresh = (self.relay.queueing.again)(Pass::default());
        self.leave_out_spent(&mut fresh);
        // Where nobody failed, somebody else took the probe in between: it is waited for, and nobody is asked over and over.
        let has_new = self.failed.len() > spent;
        let is_of_use = if fresh.steps.is_empty() {
            fresh.is_worth_waiting()
        } else {
            has_new
        };
        if !is_of_use {
            return Err(refusal);
        }
        self.blamed = Some(refusal);
        Ok(fresh)
    }

    fn leave_out_spent(&self, route: &mut Route) {
        let is_spent = |backend: &BackendId| {
            self.lost.contains(&backend.node) || self.failed.contains(backend)
        };
        route.steps.retain(|step| !is_spent(&step.backend));
        // Nor are they waited for.
        route
            .skipped
            .retain(|(backend, reason)| !reason.is_passing() || !is_spent(backend));
    }

    /// Until when it waits: for room as long as the settings say, for what is on its way as long as its class does.
    fn patience(&self, held: &Held) -> Instant {
        let Dispatcher { waiting, rules, .. } = self.relay.dispatcher;
        let until = if held.is_passing {
            self.began + rules.wake.of(self.relay.job.priority)
        } else {
            self.began + waiting.patience
        };
        until.min(self.relay.job.deadline)
    }

    fn tell(&self, held: &Held, ahead: u32) {
        let doing = match held.ready_in {
            Some(ready_in) if held.is_passing => Doing::Waking(Waking {
                since: self.began.into_std(),
                expected: self.began.elapsed().saturating_add(ready_in),
            }),
            Some(_) | None => Doing::Node(Word::Queue(ahead)),
        };
        self.progress.tell(doing);
    }

    /// Waits until it is its turn and there is room somewhere.
    async fn wait(&mut self, place: &mut Option<Place>, mut held: Held) -> Result<Route, Refusal> {
        let waiting = &self.relay.dispatcher.waiting;
        let mut began = Instant::now();
        if waiting.patience.is_zero() {
            return Err(self.blamed.take().unwrap_or(held.refusal));
        }
        let place = match place {
            Some(place) => {
                place.in_vain();
                place
            }
            None => place.insert(waiting.enter(self.tier, self.relay.queueing.guest.clone())?),
        };
        loop {
            self.tell(&held, place.ahead());
            let until = self.patience(&held);
            let look = (Instant::now() + PLACE_EVERY).min(until);
            let turn = timeout_at(look, place.turn()).await;
            let since = began.elapsed();
            began += since;
            match held.ready_in {
                Some(_) if held.is_passing => self.woke += since,
                Some(_) | None => self.waited += since,
            }
            match turn {
                Ok(Ok(())) => {}
                Err(_early) if Instant::now() < until => continue,
                Err(_late) if held.is_passing => {
                    return Err(self.blamed.take().unwrap_or(held.refusal));
                }
                Ok(Err(Displaced)) | Err(_) => return Err(waiting.full(self.tier)),
            }
            let mut route = (self.relay.queueing.again)(Pass::default());
            self.leave_out_spent(&mut route);
            if !route.steps.is_empty() {
                self.progress.clear();
                return Ok(route);
            }
            held = Held::of(&route, route.refusal());
            if !route.is_worth_waiting() || Instant::now() >= self.patience(&held) {
                return Err(self.blamed.take().unwrap_or(held.refusal));
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
            stop = exchange.gone() => return Err(stop),
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
