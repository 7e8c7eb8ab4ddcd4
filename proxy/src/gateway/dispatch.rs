//! Tries the steps of a route in order until a node answers: one request body, one overall deadline. Nothing has reached the
//! client yet. Never runs a request again on a node that may have started on it.

mod failure;
mod inquiry;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use config::ids::{NodeId, RequestId};
use config::settings::proxy::Routing as Rules;
use config::wire::node::RESUME;
use config::wire::routing::Attempt;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::Full;
use policy::identity::Subject;
use policy::refusal::Refusal;
use policy::route::{Route, Step};
use policy::router::Outcome;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::events::{Chunk, NodeEvents, Piece};
use crate::nodes::fleet::{Attempting, Fleet};
use crate::nodes::members::{Member, Members};
use crate::nodes::upstream::{Answer, Fault, Upstream, Waits};
use crate::observe::metrics::Metrics;
use failure::Failure;
pub use inquiry::Inquiry;

/// A whole answer that is not streamed.
/// 2,048 vectors of 1,024 numbers take 24 MB.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// A node's error body.
const ERROR_BYTES_MAX: usize = 64 * 1024;
/// Chunks without content before the first one with some: one role for each of the answers asked for.
const PREAMBLE_MAX: usize = 64;
/// When queues are full and nobody said for how long.
const QUEUE_RETRY: Duration = Duration::from_secs(2);

/// What is asked of a node, the same at every step.
#[derive(Clone, Debug)]
pub struct Job {
    /// The request's id.
    pub request_id: RequestId,
    /// The node's operation.
    pub path: &'static str,
    /// The member that every whole answer to it has.
    pub answer_key: &'static str,
    /// The `id` that the answer will carry, whoever gives it.
    pub completion_id: String,
    /// For fairness on the node; says nothing about who it is.
    pub principal: Subject,
    /// Tokens that each answer may have, whatever the request says; `None`: none is generated.
    pub max_tokens: Option<u64>,
    /// Built from the typed request, never the client's own bytes.
    pub body: Bytes,
    /// When the answer began, Unix seconds: the same whoever gives it.
    pub created_unix: u64,
    /// The node is to name the tokens of its answer, so that another one can go on with it.
    pub resumable: bool,
    /// The end of the whole request.
    pub deadline: Instant,
}

impl Job {
    /// The same question with the beginning of its answer: whoever gets it goes on from there.
    #[must_use]
    pub fn resumed(&self, told: &[i32]) -> Self {
        let mut body = self.body.to_vec();
        // An object of ours, never empty: what it ends with is its brace.
        body.pop();
        let told = serde_json::to_string(told).unwrap_or_default();
        body.extend_from_slice(format!(",\"{RESUME}\":{{\"tokens\":{told}}}}}").as_bytes());
        Self {
            body: body.into(),
            ..self.clone()
        }
    }
}

/// What carries requests to nodes.
pub struct Dispatcher {
    /// Knows who can answer.
    pub fleet: Arc<Fleet>,
    /// Knows where they are.
    pub members: Arc<Members>,
    /// Speaks to them.
    pub upstream: Upstream,
    /// Timeouts.
    pub rules: Rules,
    /// Counts attempts.
    pub metrics: Arc<Metrics>,
}

/// A step that is being answered.
#[derive(Debug)]
pub struct Opened {
    /// Which.
    pub step: Step,
    /// How long the request waited for a slot, if the node said so in the head of its answer.
    pub queue_ms: Option<f64>,
    attempting: Attempting,
    metrics: Arc<Metrics>,
}

impl Opened {
    /// Ends the attempt.
    pub fn settle(self, outcome: Outcome) {
        self.metrics
            .attempt(self.step.backend.tier, outcome.as_str());
        self.attempting.settle(outcome, Instant::now().into_std());
    }
}

/// A step whose node said yes, and until when it may take to say something.
struct Open {
    opened: Opened,
    answer: Answer,
    until: Instant,
}

/// The steps of one route, tried one after the other.
pub struct Tries<'a> {
    dispatcher: &'a Dispatcher,
    job: &'a Job,
    route: &'a Route,
    next: usize,
    /// Nodes that may have started on the request and were lost.
    lost: Vec<NodeId>,
    outcomes: Vec<Outcome>,
    /// The last step that was asked: its node may be at work.
    pub asked: Option<Step>,
    /// Every try so far.
    pub trail: Vec<Attempt>,
}

impl<'a> Tries<'a> {
    /// Nothing tried yet. Backends that the route left out are the start of the trail.
    pub fn new(dispatcher: &'a Dispatcher, job: &'a Job, route: &'a Route) -> Self {
        let mut trail: Vec<Attempt> = Vec::new();
        for (backend, reason) in &route.skipped {
            let attempt = Attempt {
                tier: backend.tier,
                node: None,
                outcome: reason.as_str().to_owned(),
            };
            if !trail.contains(&attempt) {
                trail.push(attempt);
            }
        }
        Self {
            dispatcher,
            job,
            route,
            next: 0,
            lost: Vec::new(),
            outcomes: Vec::new(),
            asked: None,
            trail,
        }
    }

    /// The whole answer of the first step that gives one.
    pub async fn whole(&mut self) -> Result<(Opened, Value), Refusal> {
        loop {
            // A node that does not stream sends its head when it is done.
            let Open {
                opened,
                mut answer,
                until,
            } = self.open(Duration::MAX).await?;
            match read_whole(&mut answer, self.job.answer_key, until).await {
                Ok(value) => return Ok((opened, value)),
                Err(failure) => self.failed(opened, failure)?,
            }
        }
    }

    /// The stream of the first step that gives content, and its chunks up to the first with content.
    pub async fn stream(&mut self) -> Result<(Opened, NodeEvents, Vec<Piece>), Refusal> {
        loop {
            let patience = self.dispatcher.rules.first_byte_timeout;
            let Open {
                opened,
                answer,
                until,
            } = self.open(patience).await?;
            let mut events = NodeEvents::new(answer.body);
            match preamble(&mut events, &answer.headers, until).await {
                Ok(first) => return Ok((opened, events, first)),
                Err(failure) => self.failed(opened, failure)?,
            }
        }
    }

    /// The next step whose node says yes.
    async fn open(&mut self, patience: Duration) -> Result<Open, Refusal> {
        let route = self.route;
        while let Some(step) = route.steps.get(self.next) {
            self.next += 1;
            let now = Instant::now();
            let until = now
                .checked_add(patience)
                .map_or(self.job.deadline, |until| until.min(self.job.deadline));
            if now >= self.job.deadline {
                return Err(Refusal::Timeout);
            }
            if self.lost.contains(&step.backend.node) {
                self.note(step, Outcome::ConnectFailed);
                continue;
            }
            let Some(attempting) = self.dispatcher.fleet.begin(&step.backend, now.into_std())
            else {
                self.trail.push(attempt_at(step, "breaker_open"));
                continue;
            };
            let mut opened = Opened {
                step: step.clone(),
                queue_ms: None,
                attempting,
                metrics: Arc::clone(&self.dispatcher.metrics),
            };
            self.asked = Some(step.clone());
            match self.ask(step, until).await {
                Ok(answer) => {
                    opened.queue_ms = queue_ms(&answer.headers);
                    return Ok(Open {
                        opened,
                        answer,
                        until,
                    });
                }
                Err(failure) => self.failed(opened, failure)?,
            }
        }
        Err(self.refusal())
    }

    async fn ask(&self, step: &Step, until: Instant) -> Result<Answer, Failure> {
        let Some(member) = self.dispatcher.members.member(&step.backend.node) else {
            return Err(Failure::Next(Outcome::ConnectFailed));
        };
        let head = until.saturating_duration_since(Instant::now());
        let waits = Waits {
            connect: self.dispatcher.rules.connect_timeout.min(head),
            head,
        };
        let request = self.request(step, &member);
        let mut answer = self
            .dispatcher
            .upstream
            .send(member.address, request, waits)
            .await?;
        if answer.status == StatusCode::OK {
            return Ok(answer);
        }
        let body = timeout_at(until, answer.body.collect(ERROR_BYTES_MAX)).await;
        let body = body.map_err(|_| Fault::Timeout)??;
        Err(Failure::of_status(answer.status, &body))
    }

    fn request(&self, step: &Step, member: &Member) -> Request<Full<Bytes>> {
        let remaining = self.job.deadline.saturating_duration_since(Instant::now());
        let mut request = to(member, http::Method::POST, self.job.body.clone());
        *request.uri_mut() = http::Uri::from_static(self.job.path);
        let headers = request.headers_mut();
        for (name, value) in [
            ("x-request-id", self.job.request_id.as_str()),
            ("x-hearth-tier", step.backend.tier.as_str()),
            ("x-hearth-deadline-ms", &remaining.as_millis().to_string()),
            ("x-hearth-completion-id", &self.job.completion_id),
            ("x-hearth-principal", self.job.principal.as_str()),
        ] {
            put(headers, HeaderName::from_static(name), value);
        }
        let created = self.job.created_unix.to_string();
        put(
            headers,
            HeaderName::from_static("x-hearth-created"),
            &created,
        );
        if self.job.resumable {
            put(headers, HeaderName::from_static("x-hearth-tokens"), "1");
        }
        if let Some(most) = self.job.max_tokens {
            let name = HeaderName::from_static("x-hearth-max-tokens");
            put(headers, name, &most.to_string());
        }
        request
    }

    fn failed(&mut self, opened: Opened, failure: Failure) -> Result<(), Refusal> {
        let outcome = match &failure {
            Failure::Next(outcome) | Failure::Final(outcome, _) => *outcome,
            Failure::Lost => Outcome::ConnectFailed,
        };
        tracing::debug!(backend = %opened.step.backend, outcome = outcome.as_str(), "a step did not answer");
        if matches!(failure, Failure::Lost) {
            self.lost.push(opened.step.backend.node.clone());
        }
        self.note(&opened.step, outcome);
        self.asked = None;
        opened.settle(outcome);
        match failure {
            Failure::Final(_, refusal) => Err(refusal),
            Failure::Next(_) | Failure::Lost => Ok(()),
        }
    }

    fn note(&mut self, step: &Step, outcome: Outcome) {
        self.outcomes.push(outcome);
        self.trail.push(attempt_at(step, outcome.as_str()));
    }

    /// What the caller is told when no step answered.
    fn refusal(&self) -> Refusal {
        let saw = |wanted: Outcome| self.outcomes.contains(&wanted);
        if self.outcomes.is_empty() {
            return self.route.refusal();
        }
        if saw(Outcome::ServerFault) || !self.lost.is_empty() {
            return Refusal::UpstreamError;
        }
        if saw(Outcome::TimedOut) {
            return Refusal::Timeout;
        }
        if saw(Outcome::Overloaded) {
            return Refusal::QueueFull {
                retry_after: QUEUE_RETRY,
            };
        }
        Refusal::NoTierAvailable {
            wanted: self.route.wanted,
            retry_after: self.route.retry_after(),
        }
    }
}

/// One entry of a trail.
pub fn attempt_at(step: &Step, outcome: &str) -> Attempt {
    Attempt {
        tier: step.backend.tier,
        node: Some(step.node_name.clone()),
        outcome: outcome.to_owned(),
    }
}

/// `server-timing: queue;dur=12` of a node.
fn queue_ms(headers: &HeaderMap) -> Option<f64> {
    let timing = headers.get("server-timing")?.to_str().ok()?;
    let ms: f64 = timing.strip_prefix("queue;dur=")?.parse().ok()?;
    (ms.is_finite() && ms >= 0.0).then_some(ms)
}

async fn read_whole(answer: &mut Answer, key: &str, until: Instant) -> Result<Value, Failure> {
    let body = timeout_at(until, answer.body.collect(ANSWER_BYTES_MAX)).await;
    let body = body.map_err(|_| Fault::Timeout)??;
    let value: Value = serde_json::from_slice(&body).map_err(|_| Fault::Nonsense)?;
    if value
        .get(key)
        .is_some_and(|member| member.is_array() || member.is_string())
    {
        return Ok(value);
    }
    Err(Fault::Nonsense.into())
}

/// Reads until there is content: before that another tier may still answer.
async fn preamble(
    events: &mut NodeEvents,
    headers: &HeaderMap,
    until: Instant,
) -> Result<Vec<Piece>, Failure> {
    let is_stream = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("text/event-stream"));
    if !is_stream {
        return Err(Fault::Nonsense.into());
    }
    let mut pieces = Vec::new();
    loop {
        let chunks = timeout_at(until, events.next())
            .await
            .map_err(|_| Fault::Timeout)??;
        // An end without content is no answer.
        let mut chunks = chunks.ok_or(Fault::Nonsense)?.into_iter();
        for chunk in &mut chunks {
            match chunk {
                Chunk::Piece(piece) => pieces.push(piece),
                Chunk::Error(detail) => return Err(Failure::of_error(detail)),
                Chunk::Usage(_) | Chunk::Done | Chunk::Nonsense => {
                    return Err(Fault::Nonsense.into());
                }
            }
            let last = pieces.last();
            if last.is_some_and(|piece| piece.has_content || piece.finishes)
                || pieces.len() >= PREAMBLE_MAX
            {
                events.put_back(chunks);
                return Ok(pieces);
            }
        }
    }
}

/// A request that the node knows to be ours.
fn to(member: &Member, method: http::Method, body: Bytes) -> Request<Full<Bytes>> {
    let host = format!("[{}]:{}", member.address, config::wire::node::NODE_PORT);
    let bearer = format!("Bearer {}", member.agent_token.expose());
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    let headers = request.headers_mut();
    put(headers, header::HOST, &host);
    put(headers, header::CONTENT_TYPE, "application/json");
    put(headers, header::AUTHORIZATION, &bearer);
    request
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // Ids, tokens and numbers of ours: always visible ASCII.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
