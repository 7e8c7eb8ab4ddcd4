//! Looks at one server outside the tunnel and reports it like a node; has [`burst`] start it when it is wanted and stop it when it is not.
//! One task a server. What a look costs the other side is one list of models.

mod burst;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use config::ids::BackendId;
use config::wire::models::{LIST_BYTES_MAX, Listing};
use config::wire::node::TierState;
use http::StatusCode;
use tokio::time::{sleep, timeout};

use super::lease::Hold;
use super::starter::Starter;
use super::{Found, Remote, question};
use crate::nodes::fleet::Fleet;
use crate::nodes::members::Member;
use crate::nodes::upstream::{Fault, Upstream, Waits};
use crate::observe::metrics::Metrics;
use crate::store::Store;
use burst::Paid;

/// Between two reports; a registry forgets who is silent.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// So many looks without an answer, and a server that stops by itself counts as asleep.
const LOST_LOOKS: u32 = 3;

/// What the task works with.
#[derive(Clone)]
pub struct Rooms {
    /// Reaches it.
    pub upstream: Upstream,
    /// Hears of it.
    pub fleet: Arc<Fleet>,
    /// Knows whether another proxy starts or uses it.
    pub store: Arc<dyn Store>,
    /// Counts starts.
    pub metrics: Arc<Metrics>,
}

/// Watches one server for ever.
pub async fn watch(remote: Arc<Remote>, rooms: Rooms) {
    let member = remote.member();
    let mut watcher = Watcher {
        member,
        rooms,
        seq: AtomicU64::new(0),
        state: (TierState::Loading, None),
        next_look: Instant::now(),
        lost: 0,
        usage: None,
        paid: Paid::default(),
        remote,
    };
    watcher.run().await;
}

struct Watcher {
    remote: Arc<Remote>,
    member: Member,
    rooms: Rooms,
    seq: AtomicU64,
    state: (TierState, Option<String>),
    next_look: Instant,
    /// Looks without an answer, in a row.
    lost: u32,
    /// Held while this proxy uses a server that somebody must stop.
    usage: Option<Hold>,
    /// What this proxy knows of who pays for it.
    paid: Paid,
}

impl Watcher {
    async fn run(&mut self) {
        loop {
            if Instant::now() >= self.next_look {
                self.look().await;
                self.next_look = Instant::now() + self.remote.settings.health_every;
            }
            if let Some(starter) = self.remote.starter().cloned() {
                self.keep(&starter).await;
                self.report();
                let pause = REPORT_EVERY.min(Hold::keep_every(starter.lease()));
                tokio::select! {
                    () = sleep(pause) => {}
                    () = starter.wanted() => self.start(&starter).await,
                }
            } else {
                self.report();
                sleep(REPORT_EVERY).await;
            }
        }
    }

    fn report(&self) {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed) + 1;
        let report = self.remote.report(self.state.clone(), seq);
        let taken = self
            .rooms
            .fleet
            .report(&self.member, report, Instant::now());
        if let Err(refusal) = taken {
            tracing::warn!(remote = self.remote.name(), %refusal, "a server outside is not taken into the registry");
        }
    }

    /// Reports while something takes its time: whoever is silent is forgotten.
    async fn reporting<T>(&self, task: impl Future<Output = T>) -> T {
        self.working(None, task).await
    }

    /// The same, and holds on to what it holds: the lever, and its use.
    async fn working<T>(&self, lever: Option<&Hold>, task: impl Future<Output = T>) -> T {
        let mut task = std::pin::pin!(task);
        let starter = self.remote.starter();
        let pause = starter.map_or(REPORT_EVERY, |starter| {
            REPORT_EVERY.min(Hold::keep_every(starter.lease()))
        });
        loop {
            tokio::select! {
                done = &mut task => return done,
                () = sleep(pause) => self.report(),
            }
            for hold in lever.into_iter().chain(&self.usage) {
                hold.keep().await;
            }
        }
    }

    /// One look; at a server that sleeps only if somebody may be paying for it, because a look might wake it.
    async fn look(&mut self) {
        let Some(starter) = self.remote.starter().cloned() else {
            return match self.reporting(self.ask()).await {
                Ok(found) => self.sees(found),
                Err(why) => self.enter(TierState::Down, Some(why)),
            };
        };
        match self.state.0 {
            TierState::Loading | TierState::Sleeping => self.look_for(&starter).await,
            TierState::Ready | TierState::Down => match self.reporting(self.ask()).await {
                Ok(found) => self.sees(found),
                Err(why) => self.misses(&starter, why).await,
            },
        }
    }

    fn sees(&mut self, found: Found) {
        self.remote.see(found);
        self.lost = 0;
        self.enter(TierState::Ready, None);
    }

    async fn misses(&mut self, starter: &Starter, why: String) {
        self.lost += 1;
        if self.lost < LOST_LOOKS {
            return self.enter(TierState::Down, Some(why));
        }
        starter.slept();
        self.release().await;
        self.enter(TierState::Sleeping, None);
    }

    fn enter(&mut self, state: TierState, reason: Option<String>) {
        let next = (state, reason);
        if next == self.state {
            return;
        }
        if let Some(reason) = &next.1 {
            tracing::warn!(remote = self.remote.name(), %reason, "a server outside is down");
        }
        self.state = next;
    }

    /// Its model, or why there is none.
    async fn ask(&self) -> Result<Found, String> {
        let settings = &self.remote.settings;
        let request = question::look(&self.remote).ok_or("its address makes no request")?;
        let waits = Waits {
            connect: settings.connect_timeout.min(settings.health_timeout),
            head: settings.health_timeout,
        };
        let asked = async {
            let mut answer = self
                .rooms
                .upstream
                .send(self.member.address, request, waits)
                .await?;
            let body = answer.body.collect(LIST_BYTES_MAX).await?;
            Ok::<_, Fault>((answer.status, body))
        };
        let asked = timeout(settings.health_timeout, asked).await;
        let (status, body) = match asked {
            Ok(Ok(answer)) => answer,
            Ok(Err(fault)) => return Err(fault_of(fault).to_owned()),
            Err(_late) => return Err(fault_of(Fault::Timeout).to_owned()),
        };
        match status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err("it refuses our key: check key or key_file".to_owned());
            }
            other => {
                return Err(format!(
                    "it answers {} instead of a list of models: url ends in /v1 with most servers",
                    other.as_u16()
                ));
            }
        }
        let list =
            Listing::read(&body).ok_or("it answers with something else than a list of models")?;
        self.find(&list)
    }

    fn find(&self, list: &Listing) -> Result<Found, String> {
        let wanted = self.remote.settings.model.as_deref();
        let Some(found) = list.find(wanted) else {
            return Err(format!(
                "it has no model {:?}: check model",
                wanted.unwrap_or("at all")
            ));
        };
        if found.is_on_its_way() {
            return Err("its model is still loading".to_owned());
        }
        Ok(Found {
            n_ctx: found.n_ctx(),
            model: found.id.clone(),
        })
    }

    fn backend(&self) -> BackendId {
        BackendId {
            node: self.member.id.clone(),
            tier: self.remote.settings.tier,
        }
    }
}

const fn fault_of(fault: Fault) -> &'static str {
    match fault {
        Fault::Connect => "it does not answer",
        Fault::Lost => "its connection broke",
        Fault::Timeout => "it took too long",
        Fault::Nonsense => "its answer makes no sense",
    }
}
