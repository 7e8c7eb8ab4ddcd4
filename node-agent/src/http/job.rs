//! One request from its tier to its answer. Holds its place in the tier as long as anything of the answer is left.

use std::sync::Arc;
use std::time::Duration;

use http::Response;
use tokio::time::timeout_at;

use super::Body;
use super::asked::{Asked, Gatherer, Output, Task};
use super::call::Call;
use super::flow::Flow;
use super::progress::Teller;
use super::record::Record;
use super::stream::Live;
use crate::reply::Refused;
use crate::tiers::{InUse, Serving, TierRoom};
use crate::work::InFlight;

/// A dead tier can still become a real status until then.
const HEAD_AFTER: Duration = Duration::from_secs(3);
const HEAD_AFTER_FOR_PROXY: Duration = Duration::from_secs(1);

/// A checked request whose tier is known.
pub(super) struct Job {
    asked: Asked,
    call: Call,
    room: Arc<TierRoom>,
    in_flight: InFlight,
}

/// The same with the line that it leaves in the log.
pub(super) struct Recorded {
    job: Job,
    record: Record,
}

/// What an answer keeps from being swept away under it.
#[derive(Debug)]
pub(super) struct Held {
    _in_flight: InFlight,
    in_use: InUse,
}

impl Held {
    /// How long the model was loaded for it; `None`: it was loaded.
    pub(super) const fn loaded(&self) -> Option<Duration> {
        self.in_use.loaded()
    }
}

/// An answer, or the beginning of one.
pub(super) enum Made {
    Whole(Response<Body>),
    Streaming(Box<Live>),
}

impl Made {
    pub(super) fn into_response(self) -> Response<Body> {
        match self {
            Self::Whole(response) => response,
            Self::Streaming(live) => live.into_response(),
        }
    }
}

impl Job {
    pub(super) const fn new(
        asked: Asked,
        call: Call,
        room: Arc<TierRoom>,
        in_flight: InFlight,
    ) -> Self {
        Self {
            asked,
            call,
            room,
            in_flight,
        }
    }

    pub(super) const fn recorded(self, record: Record) -> Recorded {
        Recorded { job: self, record }
    }

    async fn generate(self, record: &mut Record, teller: &Teller) -> Result<Made, Refused> {
        let Self {
            asked,
            call,
            room,
            in_flight,
        } = self;
        let ends_at = call.ends_at;
        // A sleeping model is loaded first.
        let loading = teller.while_loading(&room, room.acquire());
        let in_use = timeout_at(ends_at, loading).await;
        let in_use = in_use.map_err(|_elapsed| Refused::Deadline)??;
        let (serving, loaded) = (in_use.serving().clone(), in_use.loaded());
        let held = Held {
            _in_flight: in_flight,
            in_use,
        };
        let ready = match serving {
            Serving::Worker(ready) => ready,
            Serving::Remote(remote) => {
                record.counted_elsewhere();
                let answer = asked.forward().run(remote, &room, (&call, held)).await?;
                record.complete();
                return Ok(Made::Whole(answer));
            }
        };
        let task = Task {
            asked: Arc::new(asked),
            call,
            room,
            ready: ready.clone(),
            loaded,
        };
        record.choices(task.asked.choices());
        let (plan, output) = task.prepare().await?;
        let (form_param, places) = (plan.form_param, plan.media_places);
        let about = |refused: Refused| refused.about_form(form_param).about_media(&places);
        let flow = Flow::start(ready, plan.specs, (ends_at, record.unsettled())).await;
        let flow = flow.map_err(about)?;
        let made = match output {
            Output::Stream(writer) => {
                let live = Live::open(flow, writer, held, (record, teller)).await;
                live.map(|live| Made::Streaming(Box::new(live)))
            }
            Output::Whole(gatherer) => gather(flow, gatherer, record).await.map(Made::Whole),
        };
        made.map_err(about)
    }
}

impl Recorded {
    /// How long its head waits for its first token: the proxy can still answer with a status when a node's head is out.
    pub(super) const fn head_after(&self) -> Duration {
        if self.job.call.given_id().is_some() {
            HEAD_AFTER_FOR_PROXY
        } else {
            HEAD_AFTER
        }
    }

    /// The answer, and its line in the log however it ends.
    pub(super) async fn run(self, teller: Teller) -> Result<Made, Refused> {
        let Self { job, mut record } = self;
        match job.generate(&mut record, &teller).await {
            Ok(Made::Whole(response)) => Ok(Made::Whole(response)),
            Ok(Made::Streaming(mut live)) => {
                live.attach(record);
                Ok(Made::Streaming(live))
            }
            Err(refused) => Err(record.refuse(refused)),
        }
    }
}

async fn gather(
    mut flow: Flow,
    mut gatherer: Gatherer,
    record: &mut Record,
) -> Result<Response<Body>, Refused> {
    while let Some((choice, event)) = flow.next().await {
        record.see(choice, &event);
        if let engine::Event::Refused(refusal) = event {
            return Err(Refused::Engine(refusal));
        }
        gatherer.take(choice, &event);
    }
    record.complete();
    Ok(gatherer.response())
}
