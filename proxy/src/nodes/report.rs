//! The report service inside the tunnel: nodes say every few seconds what they can do. Answers only to the address and
//! the token of the node that a report names. Never routes, never believes a tier that the node may not serve.

use std::convert::Infallible;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use config::wire::node::{Report, ReportReply, VERSION};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use subtle::ConstantTimeEq;
use tokio::io::{AsyncRead, AsyncWrite};
use tunnel::Listener;

use super::fleet::Fleet;
use super::hubs::Hubs;
use super::members::{Member, Members};
use places::Places;

mod places;

/// A report of three tiers is about 2 KiB.
const BODY_MAX: usize = 64 * 1024;
/// Between the start of a request and its end; also the longest a connection may idle.
const CONNECTION_IDLE_MAX: Duration = Duration::from_mins(1);
/// Other names of one model.
const ALIASES_MAX: usize = 16;
/// Characters of a text in a report that somebody may see.
const TEXT_MAX: usize = 200;

/// What the service needs to judge a report.
pub struct ReportDesk {
    members: Arc<Members>,
    fleet: Arc<Fleet>,
    draining: AtomicBool,
    hubs: Arc<Hubs>,
}

impl ReportDesk {
    /// A desk that believes members of the tunnel and tells the fleet.
    pub fn new(members: Arc<Members>, fleet: Arc<Fleet>) -> Self {
        Self {
            members,
            fleet,
            draining: AtomicBool::new(false),
            hubs: Arc::default(),
        }
    }

    /// Tells nodes which proxies of the house live.
    #[must_use]
    pub fn telling(mut self, hubs: Arc<Hubs>) -> Self {
        self.hubs = hubs;
        self
    }

    /// From now on every answer says that this proxy is going away.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Serves what comes to the report port inside the tunnel.
    pub async fn serve(self: Arc<Self>, listener: Listener) {
        let places = Arc::new(Places::default());
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                // The tunnel went down, which it does once: when this proxy ends.
                Err(error) => {
                    tracing::debug!(%error, "the report service stopped listening");
                    return;
                }
            };
            // Too many: the stream is dropped, which resets it; the node tries again.
            let Some(place) = places.take(*from.ip()) else {
                continue;
            };
            let desk = Arc::clone(&self);
            tokio::spawn(async move {
                desk.connection(stream, *from.ip()).await;
                drop(place);
            });
        }
    }

    /// Serves one connection that came from `from`.
    pub async fn connection<S>(self: Arc<Self>, stream: S, from: Ipv6Addr)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let desk = Arc::clone(&self);
            async move { Ok::<_, Infallible>(desk.answer(request, from).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(CONNECTION_IDLE_MAX)
            .max_buf_size(BODY_MAX)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = connection.await {
            tracing::debug!(%from, %error, "a report connection ended");
        }
    }

    async fn answer<B>(&self, request: Request<B>, from: Ipv6Addr) -> Response<Full<Bytes>>
    where
        B: hyper::body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
    {
        match (request.method(), request.uri().path()) {
            (&Method::POST, "/v1/report") => {}
            (_, "/v1/report") => return status(StatusCode::METHOD_NOT_ALLOWED),
            _ => return status(StatusCode::NOT_FOUND),
        }
        // 401: the node registers again and comes back with the right token.
        let Some(member) = self.authorise(request.headers(), from) else {
            return status(StatusCode::UNAUTHORIZED);
        };
        let body = Limited::new(request.into_body(), BODY_MAX).collect();
        let Ok(Ok(body)) = tokio::time::timeout(CONNECTION_IDLE_MAX, body).await else {
            return status(StatusCode::BAD_REQUEST);
        };
        let report: Report = match serde_json::from_slice(&body.to_bytes()) {
            Ok(report) => report,
            Err(error) => {
                tracing::warn!(node = %member.id, %error, "a report could not be read");
                return status(StatusCode::BAD_REQUEST);
            }
        };
        if report.version != VERSION {
            return status(StatusCode::BAD_REQUEST);
        }
        if report.node_id != member.id {
            tracing::warn!(node = %member.id, "a node reported in another node's name");
            return status(StatusCode::FORBIDDEN);
        }
        if let Err(refusal) = self
            .fleet
            .report(&member, allowed(report, &member), Instant::now())
        {
            tracing::warn!(node = %member.id, %refusal, "a report was not taken");
            return status(StatusCode::CONFLICT);
        }
        self.reply(&member)
    }

    fn authorise(&self, headers: &HeaderMap, from: Ipv6Addr) -> Option<Arc<Member>> {
        let shown = headers
            .get(header::AUTHORIZATION)?
            .to_str()
            .ok()?
            .strip_prefix("Bearer ")?;
        let member = self.members.at(from)?;
        if member.remote().is_some() {
            // It has no agent, and so no token: nothing that it could show is right.
            return None;
        }
        let same: bool = shown
            .as_bytes()
            .ct_eq(member.agent_token.expose().as_bytes())
            .into();
        same.then_some(member)
    }

    fn reply(&self, member: &Member) -> Response<Full<Bytes>> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let reply = ReportReply {
            server_time_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            draining: self.draining.load(Ordering::Relaxed),
            drain: member.is_draining(),
            hubs: self.hubs.list(tokio::time::Instant::now()),
        };
        let body = serde_json::to_vec(&reply).unwrap_or_default();
        let mut response = Response::new(Full::new(body.into()));
        let json = header::HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        response
    }
}

/// Leaves out what the node may not say: tiers it was not invited for, tiers twice, texts without end.
fn allowed(mut report: Report, member: &Member) -> Report {
    let mut seen = Vec::new();
    report.tiers.retain(|entry| {
        let invited = member
            .tiers
            .as_ref()
            .is_none_or(|tiers| tiers.contains(&entry.tier));
        let first = !seen.contains(&entry.tier);
        seen.push(entry.tier);
        invited && first
    });
    for entry in &mut report.tiers {
        if let Some(reason) = &mut entry.reason {
            shorten(reason);
        }
        if let Some(model) = &mut entry.model {
            for text in [
                &mut model.id,
                &mut model.file_sha256,
                &mut model.quantization,
                &mut model.architecture,
            ] {
                shorten(text);
            }
            model.aliases.truncate(ALIASES_MAX);
            model.aliases.iter_mut().for_each(shorten);
            model.modalities.truncate(8);
            model.modalities.iter_mut().for_each(shorten);
        }
    }
    report
}

fn shorten(text: &mut String) {
    if text.len() > TEXT_MAX || text.chars().any(char::is_control) {
        *text = text
            .chars()
            .filter(|letter| !letter.is_control())
            .take(TEXT_MAX)
            .collect();
    }
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::new()));
    *response.status_mut() = status;
    response
}
