//! Tries the steps of a route in order until a node answers: one request body, one overall deadline. Nothing has reached the
//! client yet. Never runs a request again on a node that may have started on it.

mod cold;
mod either;
mod failure;
mod hedge;
mod hope;
mod inquiry;
mod preamble;
mod told;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use config::ids::{BackendId, NodeId, RequestId};
use config::settings::proxy::Routing as Rules;
use config::wire::node::{CONTINUE, PREFIX, RESUME};
use config::wire::routing::Attempt;
use config::wire::wishes::{PRIORITY, Priority};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::Full;
use policy::identity::Subject;
use policy::refusal::Refusal;
use policy::route::warm::Link;
use policy::route::{Route, Step};
use policy::router::Outcome;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::prefix;
use super::progress::Progress;
use super::waiting::Waiting;
use crate::nodes::fleet::{Attempting, Fleet};
use crate::nodes::members::{Member, Members};
use crate::nodes::upstream::{Answer, Fault, Upstream, Waits};
use crate::observe::metrics::Metrics;
use crate::remote::wakers::{StillAsleep, Wakers};
pub use either::Begun;
use failure::Failure;
use hope::Hope;
pub use inquiry::Inquiry;
pub use told::Told;

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
    /// In what form the answer is asked for.
    pub form: Form,
    /// The links of its conversation, oldest first.
    pub chain: Arc<[Link]>,
    /// Its class in the node's queue.
    pub priority: Priority,
    /// The end of the whole request.
    pub deadline: Instant,
}

/// In what form an answer is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    /// As a stream, for a client that wants one.
    Stream,
    /// As a stream, for a client that wants it whole: so it can be carried on. A server that does not stream is believed too.
    Gathered,
    /// Whole.
    Whole,
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

impl Job {
    /// The same question with what another model has said in answer to it; `None`: it has said all that it may.
    #[must_use]
    pub fn goes_on(&self, text: &str, written: u64) -> Option<Self> {
        let left = |most: u64| most.checked_sub(written).filter(|left| *left > 0);
        let max_tokens = match self.max_tokens {
            Some(most) => Some(left(most)?),
            None => None,
        };
        let mut body: Value = serde_json::from_slice(&self.body).ok()?;
        if let Some(most) = body.get("max_tokens").and_then(Value::as_u64) {
            body["max_tokens"] = left(most)?.into();
        }
        body[CONTINUE] = serde_json::json!({"text": text});
        Some(Self {
            body: serde_json::to_vec(&body).ok()?.into(),
            max_tokens,
            ..self.clone()
        })
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
    /// Where requests wait while all are full.
    pub waiting: Arc<Waiting>,
    /// Wakes those that sleep.
    pub wakers: Arc<Wakers>,
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
    /// What its node said of its part in the head of its answer.
    pub told: Told,
    /// When it was asked.
    pub asked_at: Instant,
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

/// The steps of one route, tried one after the other.
pub struct Tries<'a> {
    dispatcher: &'a Dispatcher,
    job: &'a Job,
    route: &'a Route,
    next: usize,
    /// Nodes that may have started on the request and were lost.
    lost: Vec<NodeId>,
    outcomes: Vec<Outcome>,
    /// A connection broke under a request.
    broke: bool,
    /// Backends that failed, those that were only full not among them.
    failed: Vec<BackendId>,
    /// Backends that were asked besides another one: not again.
    besides: Vec<BackendId>,
    /// The last step that was asked: its node may be at work.
    pub asked: Option<Step>,
    /// Every try so far.
    pub trail: Vec<Attempt>,
    /// What the present try waits for.
    pub progress: Progress,
    /// How long it was waited for what slept.
    pub woke: Duration,
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
            broke: false,
            failed: Vec::new(),
            besides: Vec::new(),
            asked: None,
            trail,
            progress: Progress::default(),
            woke: Duration::ZERO,
        }
    }

    /// The whole answer of the first step that gives one.
    pub async fn whole(&mut self) -> Result<(Opened, Value), Refusal> {
        loop {
            // A node that does not stream sends its head when it is done.
            let (mut opened, hope) = self.take(Duration::MAX).await?;
            match self.asking().whole(&opened.step, hope).await {
                Ok((told, value)) => {
                    opened.told = told;
                    return Ok((opened, value));
                }
                Err(failure) => self.failed(opened, failure)?,
            }
        }
    }

    /// The next step that may be asked, and how long its node may be silent.
    async fn take(&mut self, patience: Duration) -> Result<(Opened, Hope), Refusal> {
        let route = self.route;
        while let Some(step) = route.steps.get(self.next) {
            self.next += 1;
            if self.besides.contains(&step.backend) || !self.is_awake(step).await? {
                continue;
            }
            let now = Instant::now();
            if now >= self.job.deadline {
                return Err(Refusal::Timeout);
            }
            if self.lost.contains(&step.backend.node) {
                self.note(step, Outcome::ConnectFailed);
                continue;
            }
            let fleet = &self.dispatcher.fleet;
            let Some(attempting) = fleet.begin(&step.backend, now.into_std()).await else {
                self.trail.push(attempt_at(step, "breaker_open"));
                continue;
            };
            let probe = self.dispatcher.rules.breaker_probe;
            // A whole answer may take longer than a probe: then it is lost as one, and goes on.
            let silence = if attempting.is_probe() && patience < Duration::MAX {
                patience.min(probe)
            } else {
                patience
            };
            let hope = Hope::new(now, silence, self.job.deadline);
            fleet.sent(&step.backend, &self.job.chain, now.into_std());
            if let [_, _, ..] = *self.job.chain {
                let found = step.predicted.as_str();
                self.dispatcher.metrics.routed(step.backend.tier, found);
            }
            self.asked = Some(step.clone());
            return Ok((self.opened(step, attempting), hope));
        }
        Err(self.refusal())
    }

    fn opened(&self, step: &Step, attempting: Attempting) -> Opened {
        Opened {
            step: step.clone(),
            told: Told::default(),
            asked_at: Instant::now(),
            attempting,
            metrics: Arc::clone(&self.dispatcher.metrics),
        }
    }

    const fn asking(&self) -> Asking<'a> {
        Asking {
            dispatcher: self.dispatcher,
            job: self.job,
        }
    }

    /// Waits until whatever sleeps there is awake; false: it does not wake up, and the next step may.
    async fn is_awake(&mut self, step: &Step) -> Result<bool, Refusal> {
        let Dispatcher { wakers, rules, .. } = self.dispatcher;
        // Where others are warm nobody waits longer than its class does, however long the start takes in the end.
        let others = self.route.steps.get(self.next..).unwrap_or_default();
        let patience = rules.wake.of(self.job.priority);
        let until = if others.iter().any(|other| !other.cold) {
            self.job.deadline.min(Instant::now() + patience)
        } else {
            self.job.deadline
        };
        let began = Instant::now();
        let awake = wakers.awake(&step.backend, until, &self.progress);
        let awake = awake.await;
        self.woke += began.elapsed();
        match awake {
            Ok(()) => Ok(true),
            Err(StillAsleep::Late) if Instant::now() >= self.job.deadline => Err(Refusal::Timeout),
            Err(StillAsleep::Failed | StillAsleep::Late) => {
                self.note(step, Outcome::Unavailable);
                Ok(false)
            }
        }
    }

    fn failed(&mut self, opened: Opened, failure: Failure) -> Result<(), Refusal> {
        let (Failure::Next(outcome) | Failure::Final(outcome, _) | Failure::Lost(outcome)) =
            &failure;
        let outcome = *outcome;
        tracing::debug!(backend = %opened.step.backend, outcome = outcome.as_str(), "a step did not answer");
        self.broke |= matches!(failure, Failure::Lost(Outcome::ConnectFailed));
        if matches!(failure, Failure::Lost(_)) {
            self.lost.push(opened.step.backend.node.clone());
        }
        if outcome != Outcome::Overloaded {
            self.failed.push(opened.step.backend.clone());
        }
        self.note(&opened.step, outcome);
        self.asked = None;
        opened.settle(outcome);
        match failure {
            Failure::Final(_, refusal) => Err(refusal),
            Failure::Next(_) | Failure::Lost(_) => Ok(()),
        }
    }

    fn note(&mut self, step: &Step, outcome: Outcome) {
        self.outcomes.push(outcome);
        self.trail.push(attempt_at(step, outcome.as_str()));
    }

    /// Whether somebody was only full, whatever became of the others.
    pub fn found_full(&self) -> bool {
        self.outcomes.contains(&Outcome::Overloaded)
            || matches!(self.route.refusal(), Refusal::QueueFull { .. })
    }

    /// Nodes that may have started on the request, and backends that failed: none of them is asked for it again.
    pub fn spent(self) -> (Vec<NodeId>, Vec<BackendId>) {
        (self.lost, self.failed)
    }

    /// What the caller is told when no step answered.
    fn refusal(&self) -> Refusal {
        let saw = |wanted: Outcome| self.outcomes.contains(&wanted);
        if self.outcomes.is_empty() {
            return self.route.refusal();
        }
        if saw(Outcome::ServerFault) || self.broke {
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
            local_only: self.route.stays_home(),
            retry_after: self.route.retry_after(),
        }
    }
}

/// One request to one node.
#[derive(Clone, Copy)]
struct Asking<'a> {
    dispatcher: &'a Dispatcher,
    job: &'a Job,
}

impl Asking<'_> {
    async fn ask(&self, step: &Step, until: Instant) -> Result<Answer, Failure> {
        let Some(member) = self.dispatcher.members.member(&step.backend.node) else {
            return Err(Failure::Next(Outcome::ConnectFailed));
        };
        let head = until.saturating_duration_since(Instant::now());
        let remote = member.remote();
        let connect = remote.map_or(self.dispatcher.rules.connect_timeout, |remote| {
            remote.connect_timeout()
        });
        let waits = Waits {
            connect: connect.min(head),
            head,
        };
        let request = match remote {
            None => self.request(step, &member),
            // The route leaves out what it cannot do; whatever comes here all the same is nobody's failure.
            Some(remote) => remote
                .question(self.job)
                .ok_or(Failure::Next(Outcome::Overloaded))?,
        };
        let sent = self
            .dispatcher
            .upstream
            .send(member.address, request, waits);
        let mut answer = sent.await?;
        if let Some(remote) = remote {
            answer = remote.answered(answer, (self.job, step));
        }
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
            (PRIORITY, self.job.priority.as_str()),
        ] {
            put(headers, HeaderName::from_static(name), value);
        }
        let created = self.job.created_unix.to_string();
        put(
            headers,
            HeaderName::from_static("x-hearth-created"),
            &created,
        );
        if !self.job.chain.is_empty() {
            let name = HeaderName::from_static(PREFIX);
            put(headers, name, &prefix::header(&self.job.chain));
        }
        if self.job.resumable {
            put(headers, HeaderName::from_static("x-hearth-tokens"), "1");
        }
        if let Some(most) = self.job.max_tokens {
            let name = HeaderName::from_static("x-hearth-max-tokens");
            put(headers, name, &most.to_string());
        }
        request
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
