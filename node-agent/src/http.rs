//! The node's HTTP server inside the tunnel: who may ask, what may be asked, and the answer as it is made. It listens nowhere else, and
//! whatever is not on its short list does not exist. Never logs a body.

mod asked;
mod call;
mod count;
mod ended;
mod flow;
mod infill;
mod job;
mod patience;
mod progress;
mod record;
mod remote;
mod slide;
mod slots;
mod stream;
mod vectors;
mod words;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use config::secret::Secret;
use config::wire::node::REQUESTS_PATH;
use config::wire::wake::{WAKE_PATH, WakeOrder, WakeReply};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body as HttpBody, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use subtle::ConstantTimeEq;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::metrics::Metrics;
use crate::reply::Refused;
use crate::tiers::{TierRoom, Tiers};
use crate::wake::Waker;
use crate::work::Work;

use asked::Surface;
use call::Call;
use ended::Ended;
use job::{Job, Made};
use record::Record;

/// The largest body: a long conversation. The proxy has its own bound before this one.
const BODY_BYTES_MAX: usize = 24 * 1024 * 1024;
/// Bodies of all requests together, while they are read.
const BODIES_KIB_MAX: usize = 128 * 1024;
const BODY_SECS_MAX: u64 = 30;
/// The proxy keeps idle connections for later requests.
const IDLE_SECS_MAX: u64 = 120;
const HEAD_BYTES_MAX: usize = 32 * 1024;
const HEADERS_MAX: usize = 64;
/// How long after the end of a connection's duty it may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// The body of every answer.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The body of a request, from the tunnel or read already.
pub(crate) trait Asked:
    HttpBody<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send
{
}

impl<B> Asked for B where
    B: HttpBody<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send
{
}

/// The secret of the present registration.
#[derive(Clone, Debug, Default)]
pub struct AgentToken {
    token: Arc<RwLock<Option<Secret<String>>>>,
}

impl AgentToken {
    /// Takes the token of a new registration.
    pub fn set(&self, token: Secret<String>) {
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = Some(token);
    }

    /// The header that the hub accepts.
    pub fn header(&self) -> Option<HeaderValue> {
        let token = self.token.read().unwrap_or_else(PoisonError::into_inner);
        let mut value =
            HeaderValue::from_str(&format!("Bearer {}", token.as_ref()?.expose())).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// Whether a request carries it. Takes the same time for every wrong token of a length.
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        let token = self.token.read().unwrap_or_else(PoisonError::into_inner);
        let shown = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.as_bytes().split_at_checked(7))
            .filter(|(scheme, _shown)| scheme.eq_ignore_ascii_case(b"Bearer "))
            .map(|(_scheme, shown)| shown);
        match (&*token, shown) {
            (Some(token), Some(shown)) => token.expose().as_bytes().ct_eq(shown).into(),
            (None, _) | (_, None) => false,
        }
    }
}

/// All that a connection needs.
#[derive(Debug)]
pub struct Front {
    tiers: Arc<Tiers>,
    token: AgentToken,
    work: Work,
    metrics: Arc<Metrics>,
    bodies: Arc<Semaphore>,
    ended: Arc<Ended>,
    waker: Arc<Waker>,
}

impl Front {
    /// A server over these tiers.
    pub fn new(tiers: Arc<Tiers>, token: AgentToken, work: Work, metrics: Arc<Metrics>) -> Self {
        Self {
            tiers,
            token,
            work,
            metrics,
            bodies: Arc::new(Semaphore::new(BODIES_KIB_MAX)),
            ended: Arc::default(),
            waker: Arc::default(),
        }
    }

    /// Wakes neighbours, and says how this machine is woken.
    #[must_use]
    pub fn waking(mut self, waker: Waker) -> Self {
        self.waker = Arc::new(waker);
        self
    }

    /// What wakes neighbours.
    pub(crate) const fn waker(&self) -> &Arc<Waker> {
        &self.waker
    }

    /// Serves one connection until it closes, or until the node goes down and the answer in progress is complete. When the other side
    /// leaves, the answer in progress is dropped, which cancels it in the engine.
    pub async fn serve<S>(self: Arc<Self>, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let work = self.work.clone();
        let front = self.clone();
        let service = service_fn(move |request| {
            let front = front.clone();
            async move { Ok::<_, Infallible>(front.answer(request).await) }
        });
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(IDLE_SECS_MAX))
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = work.idle() => {
                connection.as_mut().graceful_shutdown();
                timeout(GOODBYE, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection of the proxy ended");
        }
    }

    /// The tiers that answer.
    pub(crate) const fn tiers(&self) -> &Arc<Tiers> {
        &self.tiers
    }

    /// Answers one request; every refusal becomes a body.
    pub async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        match self.route(request).await {
            Ok(response) => response,
            Err(refused) => Self::refusal(&refused),
        }
    }

    /// A refusal as an answer.
    pub(crate) fn refusal(refused: &Refused) -> Response<Body> {
        refused.response().map(whole)
    }

    async fn route(
        self: &Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refused> {
        if !self.token.admits(request.headers()) {
            return Err(Refused::Unauthorised);
        }
        // Not for programs of this machine: only the hub knows which cards belong to registered nodes.
        if request.uri().path() == WAKE_PATH {
            return self.wake(request).await;
        }
        self.admitted(request).await
    }

    /// Sends the packet that wakes a neighbour.
    async fn wake(&self, request: Request<Incoming>) -> Result<Response<Body>, Refused> {
        if request.method() != Method::POST {
            return Err(Refused::Method("POST"));
        }
        let (bytes, _held) = self.body(request.into_body()).await?;
        let order: WakeOrder =
            serde_json::from_slice(&bytes).map_err(|_error| Refused::BodyLost)?;
        let packets = self.waker.send(&order).await.map_err(Refused::NotWoken)?;
        Ok(json_response(&WakeReply { packets }))
    }

    /// Answers a request whose sender may ask: the hub with its token, or this machine ([`crate::local`]).
    pub(crate) async fn admitted<B: Asked>(
        self: &Arc<Self>,
        request: Request<B>,
    ) -> Result<Response<Body>, Refused> {
        let path = request.uri().path().to_owned();
        match (path.as_str(), request.method()) {
            ("/v1/chat/completions", &Method::POST) => self.infer(request, Surface::Chat).await,
            ("/v1/completions", &Method::POST) => self.infer(request, Surface::Text).await,
            ("/v1/embeddings" | "/embeddings", &Method::POST) => self.embeddings(request).await,
            ("/v1/rerank" | "/rerank", &Method::POST) => self.rerank(request).await,
            ("/infill", &Method::POST) => self.infill(request).await,
            ("/tokenize", &Method::POST) => self.tokenize(request).await,
            ("/detokenize", &Method::POST) => self.detokenize(request).await,
            ("/apply-template", &Method::POST) => self.apply_template(request).await,
            ("/count/v1/chat/completions", &Method::POST) => {
                self.count(request, Surface::Chat).await
            }
            ("/count/v1/completions", &Method::POST) => self.count(request, Surface::Text).await,
            ("/health", &Method::GET) => Ok(json_response(&json!({"status": "ok"}))),
            ("/props", &Method::GET) => Ok(json_response(&self.props())),
            ("/slots", &Method::GET) => Ok(self.slots(request.uri().query())),
            (
                "/v1/chat/completions"
                | "/v1/completions"
                | "/v1/embeddings"
                | "/embeddings"
                | "/v1/rerank"
                | "/rerank"
                | "/infill"
                | "/tokenize"
                | "/detokenize"
                | "/apply-template"
                | "/count/v1/chat/completions"
                | "/count/v1/completions",
                _,
            ) => Err(Refused::Method("POST")),
            ("/health" | "/props" | "/slots", _) => Err(Refused::Method("GET")),
            (path, &Method::GET) => match path.strip_prefix(REQUESTS_PATH) {
                Some(completion_id) => self.used(completion_id).await,
                None => Err(Refused::NotFound),
            },
            _ => Err(Refused::NotFound),
        }
    }

    async fn infer<B: Asked>(
        self: &Arc<Self>,
        request: Request<B>,
        surface: Surface,
    ) -> Result<Response<Body>, Refused> {
        let call = Call::read(request.headers())?;
        let record = Record::begin(&call, surface.as_str(), (&self.metrics, &self.ended));
        let prepared = self.prepare(request, surface, call).await;
        let (job, streams) = match prepared {
            Ok((job, streams)) => (job.recorded(record), streams),
            Err(refused) => return Err(record.refuse(refused)),
        };
        let (teller, listener) = progress::channel();
        let head_after = job.head_after();
        let making = job.run(teller);
        if streams {
            patience::answer(Box::pin(making), (listener, head_after)).await
        } else {
            making.await.map(Made::into_response)
        }
    }

    /// Reads and checks a request, and finds the tier for it.
    async fn prepare<B: Asked>(
        &self,
        request: Request<B>,
        surface: Surface,
        call: Call,
    ) -> Result<(Job, bool), Refused> {
        let in_flight = self.work.enter().ok_or(Refused::Draining)?;
        let room = self.room(&call)?.clone();
        let (bytes, held) = self.body(request.into_body()).await?;
        let asked = asked::Asked::read(surface, bytes).await?;
        drop(held);
        let asked = if call.resumable {
            asked.resumed()?
        } else {
            asked
        };
        let asked = asked.told(room.settings().system.as_deref());
        let streams = asked.streams();
        Ok((Job::new(asked, call, room, in_flight), streams))
    }

    fn room(&self, call: &Call) -> Result<&Arc<TierRoom>, Refused> {
        self.tiers.room(call.tier).ok_or(Refused::TierUnavailable {
            tier: call.tier,
            reason: "this node does not have it",
        })
    }

    /// Reads a body within size, time, and the memory for all bodies together.
    pub(crate) async fn body<B: Asked>(
        &self,
        body: B,
    ) -> Result<(Bytes, OwnedSemaphorePermit), Refused> {
        let too_large = Refused::BodyTooLarge {
            max: BODY_BYTES_MAX,
        };
        let announced = body.size_hint().upper().map(usize::try_from);
        let size = match announced {
            Some(Ok(size)) if size <= BODY_BYTES_MAX => size,
            Some(_) => return Err(too_large),
            None => BODY_BYTES_MAX,
        };
        let kib = u32::try_from(size.div_ceil(1024)).unwrap_or(u32::MAX);
        let held = self.bodies.clone().try_acquire_many_owned(kib);
        let held = held.map_err(|_crowded| Refused::Crowded)?;
        let reading = Limited::new(body, BODY_BYTES_MAX).collect();
        match timeout(Duration::from_secs(BODY_SECS_MAX), reading).await {
            Ok(Ok(read)) => Ok((read.to_bytes(), held)),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large),
            Ok(Err(_)) | Err(_) => Err(Refused::BodyLost),
        }
    }
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).boxed_unsync()
}

pub(crate) fn json_response<T: serde::Serialize>(value: &T) -> Response<Body> {
    // Answers are strings, numbers and lists: they always have a JSON form.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(whole(bytes.into()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
