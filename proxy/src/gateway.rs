//! What happens to a request, top to bottom: find the operation, see who asks, read, charge, choose, carry, settle, record.
//! Knows no sockets and no Pingora: requests come as a [`Call`], answers leave through a sink. Never panics, always answers.

pub mod account;
pub mod admission;
pub mod body;
pub(crate) mod classify;
pub mod dispatch;
pub mod events;
pub mod exchange;
pub mod health;
mod infer;
pub mod models;
pub mod operation;
pub mod page;
pub mod prefix;
pub mod progress;
pub mod relay;
pub mod reply;
mod tally;
pub mod waiting;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use config::ids::RequestId;
use config::settings::plan::Prices;
use config::settings::proxy::Auth;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use policy::classify::Thresholds;
use policy::identity::Principal;
use policy::limit::Kind;
use policy::record::AccessRecord;
use policy::refusal::Refusal;
use tokio::time::Instant;

use crate::admin::Api;
use crate::auth::Authenticator;
use crate::front::sink::ClientSink;
use crate::nodes::peers::Ride;
use crate::nodes::register::{self, Desk};
use crate::observe::metrics::{self, Metrics};
use admission::{Admission, Asking};
use body::Reader;
use dispatch::Dispatcher;
use exchange::{Exchange, Stop};
use health::Readiness;
use operation::{Closed, Look, Open, Operation, Resolved, resolve};

/// A request whose head has passed the gate.
#[derive(Clone, Debug)]
pub struct Call {
    /// `req_` and 32 hex digits, or the client's own.
    pub request_id: RequestId,
    /// The client's address, after trusted proxies were believed.
    pub ip: IpAddr,
    /// The verb.
    pub method: Method,
    /// The path as sent, without the query.
    pub path: String,
    /// What follows the `?`, as sent.
    pub query: Option<String>,
    /// Cleaned by the gate: nothing in them says who the client is, except its credential.
    pub headers: HeaderMap,
    /// When the head was complete.
    pub received_at: std::time::Instant,
    /// The same moment, Unix milliseconds.
    pub unix_ms: u64,
}

/// The rooms a request passes through.
pub struct Rooms {
    /// Sees who asks.
    pub authenticator: Arc<Authenticator>,
    /// Charges.
    pub admission: Admission,
    /// What tokens cost.
    pub prices: Prices,
    /// Reads bodies.
    pub reader: Reader,
    /// Carries requests to nodes.
    pub dispatcher: Dispatcher,
    /// Lets nodes in.
    pub desk: Arc<Desk>,
    /// Says whether all of this works.
    pub readiness: Readiness,
    /// Administration.
    pub admin: Arc<Api>,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// Figures of the gateway itself.
#[derive(Clone, Debug)]
pub struct Figures {
    /// The whole of one request.
    pub request_timeout: Duration,
    /// Where the classifier's score becomes a tier.
    pub thresholds: Thresholds,
    /// By what a conversation is known again.
    pub prefixes: prefix::Prefixes,
    /// For `/config.json`.
    pub auth: Auth,
    /// `created` of every model: when this proxy started, Unix seconds.
    pub started_unix: i64,
}

/// Answers requests.
pub struct Gateway {
    rooms: Rooms,
    figures: Figures,
}

impl Gateway {
    /// Opens for requests.
    pub const fn new(rooms: Rooms, figures: Figures) -> Self {
        Self { rooms, figures }
    }

    /// Answers one request and tells what happened.
    pub async fn handle(&self, call: Call, sink: &mut dyn ClientSink) -> AccessRecord {
        let _counted = self.rooms.metrics.enter();
        let resolved = resolve(&call.method, &call.path, page::is_page);
        let mut exchange = Exchange::new(&call, label(&resolved), sink);
        if let Err(stop) = self.serve(&call, resolved, &mut exchange).await {
            exchange.stop(stop).await;
        }
        let record = exchange.finish();
        tally::count(&record, &self.rooms.metrics);
        record
    }

    /// Decides about a request that asks to become a carrier of the tunnel's datagrams; otherwise the answer that it gets.
    pub async fn open_carrier(&self, call: &Call) -> Result<Ride, (StatusCode, HeaderMap, Bytes)> {
        let proof = call.headers.get(header::AUTHORIZATION);
        let proof = proof.and_then(|proof| proof.to_str().ok());
        let from = (call.ip, call.unix_ms);
        let opened = self.rooms.desk.carry(proof, from).await;
        opened.map_err(|reply| {
            if let Some(reason) = reply.refusal {
                self.rooms.metrics.node_refused(reason);
            }
            (reply.status, json_only(), reply.body)
        })
    }

    /// Waits until every settlement is in the store, so long.
    pub async fn settle(&self, patience: Duration) {
        self.rooms.admission.flush(patience).await;
    }

    async fn serve(
        &self,
        call: &Call,
        resolved: Resolved,
        exchange: &mut Exchange<'_>,
    ) -> Result<(), Stop> {
        let refusal = match resolved {
            Resolved::Found(Operation::Open(open)) => return self.open(call, open, exchange).await,
            Resolved::Found(Operation::Closed(closed)) => {
                return self.closed(call, closed, exchange).await;
            }
            Resolved::WrongMethod {
                allow,
                is_open: true,
            } => return Err(Refusal::MethodNotAllowed { allow }.into()),
            Resolved::WrongMethod {
                allow,
                is_open: false,
            } => Refusal::MethodNotAllowed { allow },
            Resolved::Unknown { hint } => Refusal::NotFound {
                hint: Some(hint.to_owned()),
            },
        };
        // Strangers do not learn which paths exist.
        let principal = self.enter(call, exchange).await?;
        let asking = Asking {
            principal: &principal,
            ip: call.ip,
            kind: Kind::Health,
            now_unix_ms: call.unix_ms,
        };
        self.rooms.admission.look(asking, exchange).await;
        Err(refusal.into())
    }

    /// What everybody may ask for.
    async fn open(&self, call: &Call, open: Open, exchange: &mut Exchange<'_>) -> Result<(), Stop> {
        let rooms = &self.rooms;
        let desk = &rooms.desk;
        let small = |exchange| Reader::small(exchange, &call.headers, register::BODY_MAX);
        let reply = match open {
            Open::Alive => return health::alive(exchange).await,
            Open::Ready => return health::ready(exchange, &rooms.readiness).await,
            Open::PageConfig => return health::page_config(exchange, &self.figures.auth).await,
            Open::Page(path) => {
                let page =
                    page::page(&path, &call.headers).ok_or(Refusal::NotFound { hint: None })?;
                return exchange.reply(page.0, page.1, page.2).await;
            }
            Open::NodeNonce => desk.nonce(call.unix_ms),
            Open::NodeEnroll => desk.enroll(&small(exchange).await?, call.unix_ms).await,
            Open::NodeCarrier => desk.carry_plainly(),
            Open::NodeRegister => desk.register(&small(exchange).await?, call.unix_ms).await,
        };
        let headers = json_only();
        exchange.record.refusal = reply.refusal;
        if let Some(reason) = reply.refusal {
            rooms.metrics.node_refused(reason);
        }
        exchange.reply(reply.status, headers, reply.body).await
    }

    /// What takes a credential with the operation's scope.
    async fn closed(
        &self,
        call: &Call,
        closed: Closed,
        exchange: &mut Exchange<'_>,
    ) -> Result<(), Stop> {
        let principal = self.enter(call, exchange).await?;
        let asking = |kind| Asking {
            principal: &principal,
            ip: call.ip,
            kind,
            now_unix_ms: call.unix_ms,
        };
        let allowed = principal.require(closed.scope());
        let (kind, answered) = match (allowed, closed) {
            (Err(refusal), _) => (Kind::Health, Err(refusal.into())),
            (Ok(()), Closed::Look(look)) => (
                Kind::Health,
                self.look_up((call, asking(Kind::Health)), look, exchange)
                    .await,
            ),
            (Ok(()), Closed::Admin) => (
                Kind::Health,
                account::administer(self, call, asking(Kind::Health), exchange).await,
            ),
            (Ok(()), Closed::Ask(surface)) => (
                Kind::Text,
                self.infer(call, &principal, surface, exchange).await,
            ),
        };
        if matches!(answered, Err(Stop::Refused(_))) && !exchange.knows_limits() {
            self.rooms.admission.look(asking(kind), exchange).await;
        }
        answered
    }

    /// Sees who asks.
    async fn enter(&self, call: &Call, exchange: &mut Exchange<'_>) -> Result<Principal, Refusal> {
        let started = Instant::now();
        let now_unix = i64::try_from(call.unix_ms / 1_000).unwrap_or(i64::MAX);
        let seen = self
            .rooms
            .authenticator
            .authenticate(&call.headers, now_unix);
        let principal = match seen.await {
            Ok(principal) => principal,
            Err(refusal) => {
                self.rooms.admission.look_at_address(call, exchange).await;
                return Err(refusal);
            }
        };
        exchange.took("auth", started);
        exchange.record.user = Some(principal.subject());
        exchange.record.key.clone_from(&principal.key);
        Ok(principal)
    }

    /// Lists and health: nothing runs on a node.
    async fn look_up(
        &self,
        (call, asking): (&Call, Asking<'_>),
        look: Look,
        exchange: &mut Exchange<'_>,
    ) -> Result<(), Stop> {
        self.rooms.admission.charge(asking, exchange).await?;
        let listed = || self.rooms.dispatcher.fleet.list(asking.principal);
        let created = self.figures.started_unix;
        match look {
            Look::Models => {
                exchange
                    .json(StatusCode::OK, &models::list(listed(), created))
                    .await
            }
            Look::Model(id) => {
                exchange
                    .json(StatusCode::OK, &models::one(listed(), &id, created)?)
                    .await
            }
            Look::Health => health::health(exchange, &listed()).await,
            Look::Profile => account::profile(self, asking, exchange).await,
            Look::Usage => account::usage(self, call, asking, exchange).await,
            Look::Classify => classify::answer(call, self.figures.thresholds, exchange).await,
            Look::Metrics => {
                let mut headers = HeaderMap::new();
                headers.insert(
                    header::CONTENT_TYPE,
                    HeaderValue::from_static(metrics::CONTENT_TYPE),
                );
                exchange
                    .reply(StatusCode::OK, headers, self.rooms.metrics.render().into())
                    .await
            }
        }
    }
}

fn json_only() -> HeaderMap {
    let json = HeaderValue::from_static("application/json");
    HeaderMap::from_iter([(header::CONTENT_TYPE, json)])
}

fn label(resolved: &Resolved) -> &'static str {
    match resolved {
        Resolved::Found(operation) => operation.label(),
        Resolved::WrongMethod { .. } => "wrong_method",
        Resolved::Unknown { .. } => "not_found",
    }
}

#[cfg(test)]
mod tests;
