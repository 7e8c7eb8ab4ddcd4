//! The proxy's HTTP/1.1 client towards nodes: dials through the tunnel, keeps idle connections, retries only what was never sent.
//! Never chooses a node, never reads a body's meaning, never repeats a request that a node may have started.

use std::collections::HashMap;
use std::io;
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use config::wire::node::NODE_PORT;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::remote::Shape;

/// An idle connection is closed after this: well below what a node keeps one open for, so that we close first.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// A pooled connection is ready within microseconds, or something is wrong with it.
const READY_MAX: Duration = Duration::from_millis(100);
/// A node's whole response head, and the largest piece of a body: a node is not trusted with our memory.
const BUFFER_MAX: usize = 64 * 1024;
/// Header lines in a node's response head.
const HEADERS_MAX: usize = 64;

/// A node in use is heard far more often: it is asked when it is silent.
const HEARD_MAX: Duration = Duration::from_secs(3);

/// A byte stream to a node.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// How a byte stream to a node comes about: the tunnel, or plain TCP in tests.
#[async_trait]
pub trait Dial: Send + Sync {
    /// Opens a stream to the node at `address` within `deadline`.
    async fn dial(&self, address: Ipv6Addr, deadline: Duration) -> io::Result<Box<dyn Wire>>;

    /// Opens a stream to another port than a node's own, where a server without an agent listens.
    async fn dial_port(
        &self,
        _to: (Ipv6Addr, u16),
        _deadline: Duration,
    ) -> io::Result<Box<dyn Wire>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether the node is surely within reach, without asking it: it was heard a moment ago, and answers when it is asked.
    fn hears(&self, _address: Ipv6Addr) -> bool {
        false
    }
}

#[async_trait]
impl Dial for tunnel::Tunnel {
    async fn dial(&self, address: Ipv6Addr, deadline: Duration) -> io::Result<Box<dyn Wire>> {
        self.dial_port((address, NODE_PORT), deadline).await
    }

    async fn dial_port(
        &self,
        (address, port): (Ipv6Addr, u16),
        deadline: Duration,
    ) -> io::Result<Box<dyn Wire>> {
        let stream = self.connect(address, port, deadline).await;
        Ok(Box::new(stream.map_err(io::Error::other)?))
    }

    fn hears(&self, address: Ipv6Addr) -> bool {
        self.peer_status(address).is_some_and(|status| {
            status.round_trip.is_some() && status.since_heard.is_some_and(|since| since < HEARD_MAX)
        })
    }
}

/// Why a node gave no answer, or half of one.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Fault {
    /// No connection: nothing was sent.
    #[error("no connection to the node")]
    Connect,
    /// The connection broke after the request had been sent: the node may have started on it.
    #[error("the connection to the node broke")]
    Lost,
    /// The node took too long.
    #[error("the node took too long")]
    Timeout,
    /// The node's answer makes no sense, or is larger than any answer can be.
    #[error("the node's answer makes no sense")]
    Nonsense,
}

/// How long one try may wait.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// For a connection.
    pub connect: Duration,
    /// For the head of the answer, from the start of the try.
    pub head: Duration,
}

/// A node's answer: its head, and the rest as it comes.
#[derive(Debug)]
pub struct Answer {
    /// As the node sent it.
    pub status: StatusCode,
    /// As the node sent them: not for the client.
    pub headers: HeaderMap,
    /// Dropping it before its end cuts the connection, which is how a node learns that nobody waits.
    pub body: AnswerBody,
}

/// The client and its pool; cheap to clone.
#[derive(Clone)]
pub struct Upstream {
    inner: Arc<Inner>,
}

struct Inner {
    dial: Arc<dyn Dial>,
    idle_per_node_max: usize,
    lanes: Mutex<HashMap<Ipv6Addr, Lane>>,
}

/// What is open to one node.
#[derive(Default)]
struct Lane {
    idle: Vec<Connection>,
    /// Cancelled when the node is cut: every connection of the lane ends at once.
    cut: CancellationToken,
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    idle_since: Instant,
    cut: CancellationToken,
    /// Owns the socket: aborted with the connection.
    _driver: AbortOnDropHandle<()>,
}

impl Connection {
    fn is_usable(&self) -> bool {
        !self.sender.is_closed() && !self.cut.is_cancelled() && self.idle_since.elapsed() < IDLE_MAX
    }

    /// The driver needs a moment after the end of an answer before it takes the next request.
    async fn becomes_ready(&mut self) -> bool {
        let ready = tokio::time::timeout(READY_MAX, self.sender.ready()).await;
        matches!(ready, Ok(Ok(())))
    }
}

impl Upstream {
    /// A client that dials with `dial` and keeps at most `idle_per_node_max` idle connections to each node.
    pub fn new(dial: Arc<dyn Dial>, idle_per_node_max: usize) -> Self {
        let lanes = Mutex::default();
        let inner = Inner {
            dial,
            idle_per_node_max,
            lanes,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Sends one request and waits for the head of its answer.
    pub async fn send(
        &self,
        to: Ipv6Addr,
        request: Request<Full<Bytes>>,
        waits: Waits,
    ) -> Result<Answer, Fault> {
        let attempt = self.attempt(to, request, waits.connect);
        tokio::time::timeout(waits.head, attempt)
            .await
            .unwrap_or(Err(Fault::Timeout))
    }

    /// Whether the node is surely within reach, without asking it.
    pub fn hears(&self, node: Ipv6Addr) -> bool {
        self.inner.dial.hears(node)
    }

    /// Ends every connection to a node, running answers included: it was revoked, went silent or has a new key.
    pub fn cut(&self, node: Ipv6Addr) {
        let lane = self.inner.lanes().remove(&node);
        if let Some(lane) = lane {
            lane.cut.cancel();
        }
    }

    /// Closes connections that nobody used for a while.
    pub fn sweep(&self) {
        let mut expired = Vec::new();
        for lane in self.inner.lanes().values_mut() {
            expired.extend(
                lane.idle
                    .extract_if(.., |connection| !connection.is_usable()),
            );
        }
        // The lock is released: closing takes its time.
        drop(expired);
    }

    /// Idle connections to a node, for tests and metrics.
    pub fn idle(&self, node: Ipv6Addr) -> usize {
        self.inner
            .lanes()
            .get(&node)
            .map_or(0, |lane| lane.idle.len())
    }

    async fn attempt(
        &self,
        to: Ipv6Addr,
        request: Request<Full<Bytes>>,
        connect: Duration,
    ) -> Result<Answer, Fault> {
        let mut request = request;
        while let Some(mut connection) = self.inner.checkout(to) {
            if !connection.becomes_ready().await {
                continue;
            }
            match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok(self.answer(to, connection, response)),
                // A pooled connection that the node had closed: the request never left.
                Err(mut refused) => request = refused.take_message().ok_or(Fault::Lost)?,
            }
        }
        let mut connection = self.connect(to, connect).await?;
        match connection.sender.try_send_request(request).await {
            Ok(response) => Ok(self.answer(to, connection, response)),
            Err(mut refused) => Err(if refused.take_message().is_some() {
                Fault::Connect
            } else {
                Fault::Lost
            }),
        }
    }

    async fn connect(&self, to: Ipv6Addr, deadline: Duration) -> Result<Connection, Fault> {
        let cut = self.inner.cut_of(to);
        let dialled = tokio::time::timeout(deadline, self.inner.dial.dial(to, deadline));
        let wire = match cut.run_until_cancelled(dialled).await {
            Some(Ok(Ok(wire))) => wire,
            Some(Ok(Err(error))) => {
                tracing::debug!(node = %to, %error, "dialling a node failed");
                return Err(Fault::Connect);
            }
            // Too late, or the node is gone.
            Some(Err(_)) | None => return Err(Fault::Connect),
        };
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(BUFFER_MAX)
            .max_headers(HEADERS_MAX)
            .handshake(TokioIo::new(wire))
            .await
            .map_err(|_| Fault::Connect)?;
        let until = cut.clone();
        let driver = tokio::spawn(async move {
            // How a connection ended is told to whoever waits on it.
            let _ended = until.run_until_cancelled(driver).await;
        });
        Ok(Connection {
            sender,
            idle_since: Instant::now(),
            cut,
            _driver: AbortOnDropHandle::new(driver),
        })
    }

    fn answer(
        &self,
        from: Ipv6Addr,
        connection: Connection,
        response: http::Response<Incoming>,
    ) -> Answer {
        let (head, body) = response.into_parts();
        let pool = Arc::clone(&self.inner);
        let body = AnswerBody {
            body,
            from,
            pool,
            connection: Some(connection),
            shape: None,
        };
        Answer {
            status: head.status,
            headers: head.headers,
            body,
        }
    }
}

impl Inner {
    fn lanes(&self) -> MutexGuard<'_, HashMap<Ipv6Addr, Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut_of(&self, node: Ipv6Addr) -> CancellationToken {
        self.lanes().entry(node).or_default().cut.clone()
    }

    /// The most recently used connection first: it is the least likely to have been closed.
    fn checkout(&self, node: Ipv6Addr) -> Option<Connection> {
        let mut lanes = self.lanes();
        let lane = lanes.get_mut(&node)?;
        while let Some(connection) = lane.idle.pop() {
            if connection.is_usable() {
                return Some(connection);
            }
        }
        None
    }

    fn checkin(&self, node: Ipv6Addr, mut connection: Connection) {
        connection.idle_since = Instant::now();
        if !connection.is_usable() {
            return;
        }
        let mut lanes = self.lanes();
        let Some(lane) = lanes.get_mut(&node) else {
            return;
        };
        if lane.idle.len() < self.idle_per_node_max {
            lane.idle.push(connection);
        }
    }
}

/// The rest of a node's answer.
pub struct AnswerBody {
    body: Incoming,
    from: Ipv6Addr,
    pool: Arc<Inner>,
    connection: Option<Connection>,
    /// Turns a foreign answer into ours.
    shape: Option<Shape>,
}

impl std::fmt::Debug for AnswerBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnswerBody")
            .field("from", &self.from)
            .finish_non_exhaustive()
    }
}

impl AnswerBody {
    /// From now on the body is read in our words.
    pub(crate) fn shaped(&mut self, shape: Shape) {
        self.shape = Some(shape);
    }

    /// The next piece; `None` at the clean end, after which the connection is back in the pool.
    /// Cancel-safe. The caller sets the deadline.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    // Nothing in trailers is for us.
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    let Some(shape) = &mut self.shape else {
                        return Ok(Some(data));
                    };
                    let ours = shape.push(&data)?;
                    if !ours.is_empty() {
                        return Ok(Some(ours.into()));
                    }
                }
                Some(Err(_)) => {
                    self.connection = None;
                    return Err(Fault::Lost);
                }
                None => {
                    if let Some(connection) = self.connection.take() {
                        self.pool.checkin(self.from, connection);
                    }
                    let last = self.shape.take().map(Shape::end).transpose()?;
                    return Ok(last.filter(|last| !last.is_empty()).map(Into::into));
                }
            }
        }
    }

    /// Everything that is left, if it is at most `max` bytes.
    pub async fn collect(&mut self, max: usize) -> Result<Vec<u8>, Fault> {
        let mut all = Vec::new();
        while let Some(piece) = self.next().await? {
            if all.len() + piece.len() > max {
                return Err(Fault::Nonsense);
            }
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }
}
