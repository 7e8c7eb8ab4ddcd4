//! Reports to the hub, through the tunnel: what they say, and one kept connection to say it over. When to report is decided elsewhere.

use std::fs;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use config::ids::NodeId;
use config::wire::node::{BackEnd, Memory, Report, ReportReply, VERSION};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tunnel::Tunnel;

use crate::http::AgentToken;
use crate::tiers::Tiers;
use crate::wake::Waker;
use crate::work::Work;

/// From the first byte to the answer: a handshake, a lost packet and a slow link fit in.
pub(crate) const REPORT_MAX: Duration = Duration::from_millis(2_500);
const REPLY_BYTES_MAX: usize = 16 * 1024;
const PATH: &str = "/v1/report";

/// Why a report did not get through.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The hub does not know this registration.
    #[error("the hub answers {0}")]
    Stranger(StatusCode),
    /// The hub answered with something else.
    #[error("the hub answers {0}")]
    Status(StatusCode),
    /// No way through the tunnel.
    #[error("{0}")]
    Tunnel(#[from] tunnel::Error),
    /// The connection broke, or the answer makes no sense.
    #[error("{0}")]
    Broken(String),
    /// No answer in time.
    #[error("no answer in time")]
    Late,
    /// The proxy itself called: it has restarted and lost what it knew.
    #[error("the proxy has restarted")]
    Called,
}

/// Makes reports.
#[derive(Debug)]
pub struct Reports {
    node_id: NodeId,
    seq: u64,
    waker: Arc<Waker>,
    back_end: Option<BackEnd>,
}

impl Reports {
    /// Reports of this start, with what the settings say about sleep.
    pub const fn new(node_id: NodeId, waker: Arc<Waker>) -> Self {
        Self {
            node_id,
            seq: 0,
            waker,
            back_end: None,
        }
    }

    /// From now on reports go through a tunnel whose TCP is done by this.
    pub const fn through(&mut self, back_end: BackEnd) {
        self.back_end = Some(back_end);
    }

    /// The next one.
    pub fn next(&mut self, tiers: &Tiers, work: &Work) -> Report {
        self.seq += 1;
        Report {
            version: VERSION,
            node_id: self.node_id.clone(),
            seq: self.seq,
            draining: work.is_draining(),
            memory: memory(),
            tiers: tiers.rooms().iter().map(|room| room.report()).collect(),
            wake: self.waker.report(),
            back_end: self.back_end,
        }
    }
}

/// Who does TCP at this end of a tunnel.
pub(crate) fn back_end(tunnel: &Tunnel) -> BackEnd {
    match tunnel.backend() {
        tunnel::Backend::Netns => BackEnd::Netns,
        tunnel::Backend::Embedded => BackEnd::Embedded,
        // A tunnel that runs has chosen.
        tunnel::Backend::Auto => BackEnd::Other,
    }
}

/// Zeros where the system does not tell.
fn memory() -> Memory {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    memory_of(&text)
}

fn memory_of(meminfo: &str) -> Memory {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    Memory {
        total_bytes: field("MemTotal:").unwrap_or(0),
        available_bytes: field("MemAvailable:").unwrap_or(0),
    }
}

/// A connection to the hub's report service, opened when needed.
#[derive(Debug)]
pub struct Reporter {
    tunnel: Tunnel,
    hub: Ipv6Addr,
    port: u16,
    token: AgentToken,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Reporter {
    /// A reporter without a connection yet.
    pub const fn new(tunnel: Tunnel, hub: Ipv6Addr, port: u16, token: AgentToken) -> Self {
        Self {
            tunnel,
            hub,
            port,
            token,
            connection: None,
        }
    }

    /// Sends one report. After a failure the connection is given up.
    pub async fn send(&mut self, report: &Report) -> Result<ReportReply, ReportError> {
        let sent = timeout(REPORT_MAX, self.exchange(report)).await;
        let sent = sent.unwrap_or(Err(ReportError::Late));
        if sent.is_err() {
            self.connection = None;
        }
        sent
    }

    async fn exchange(&mut self, report: &Report) -> Result<ReportReply, ReportError> {
        let request = self.request(report)?;
        let response = match self.kept(request).await? {
            Ok(response) => response,
            // The hub had closed the kept connection.
            Err(request) => {
                self.connection = None;
                self.open()
                    .await?
                    .send_request(*request)
                    .await
                    .map_err(|error| broken(&error))?
            }
        };
        let status = response.status();
        let body = Limited::new(response.into_body(), REPLY_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| ReportError::Broken(error.to_string()))?
            .to_bytes();
        match status {
            StatusCode::OK => serde_json::from_slice(&body)
                .map_err(|error| ReportError::Broken(error.to_string())),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
                Err(ReportError::Stranger(status))
            }
            other => Err(ReportError::Status(other)),
        }
    }

    /// Tries the kept connection; gives the request back if it never left.
    async fn kept(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Result<http::Response<hyper::body::Incoming>, Box<Request<Full<Bytes>>>>, ReportError>
    {
        let sender = self.open().await?;
        if sender.ready().await.is_err() {
            return Ok(Err(Box::new(request)));
        }
        match sender.try_send_request(request).await {
            Ok(response) => Ok(Ok(response)),
            Err(mut error) => match error.take_message() {
                Some(request) => Ok(Err(Box::new(request))),
                None => Err(broken(&error.into_error())),
            },
        }
    }

    async fn open(&mut self) -> Result<&mut SendRequest<Full<Bytes>>, ReportError> {
        let kept = self.connection.take().filter(|sender| !sender.is_closed());
        let sender = if let Some(sender) = kept {
            sender
        } else {
            let stream = self.tunnel.connect(self.hub, self.port, REPORT_MAX).await?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|error| broken(&error))?;
            // Ends with the sender.
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "the report connection ended");
                }
            });
            sender
        };
        Ok(self.connection.insert(sender))
    }

    fn request(&self, report: &Report) -> Result<Request<Full<Bytes>>, ReportError> {
        let body =
            serde_json::to_vec(report).map_err(|error| ReportError::Broken(error.to_string()))?;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(PATH)
            .header(HOST, format!("[{}]:{}", self.hub, self.port))
            .header(CONTENT_TYPE, "application/json");
        if let Some(token) = self.token.header() {
            request = request.header(AUTHORIZATION, token);
        }
        request
            .body(Full::new(body.into()))
            .map_err(|error| ReportError::Broken(error.to_string()))
    }
}

fn broken(error: &hyper::Error) -> ReportError {
    ReportError::Broken(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernels_table() {
        let text = "MemTotal:       16384 kB\nMemFree:  1 kB\nMemAvailable:    8192 kB\n";
        let memory = memory_of(text);
        assert_eq!(memory.total_bytes, 16 << 20);
        assert_eq!(memory.available_bytes, 8 << 20);
        assert_eq!(memory_of("").total_bytes, 0);
    }
}
