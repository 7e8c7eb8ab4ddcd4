//! `/admin/v1`: takes a request apart, does the act, writes it into the audit log before it is done, and makes the answer. The
//! same for the public listener, the local socket and the command line without a proxy; who may ask is decided before.

mod books;
mod checks;
mod keys;
mod nodes;
mod openapi;
mod people;
mod pseudonyms;

use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use config::ids::RequestId;
use config::settings::plan::{Prices, Zone};
use config::settings::proxy::Limits;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_MATCH};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::SOCKET_NAME;
use super::explain::RouteAsk;
use super::operations::{AdminError, Operations};
use super::routes::{self, Act, Found, Param, Route};
use super::words::{Page, Problem};
use crate::store::StoreError;
use crate::store::ledger::AuditAct;

/// Bytes of an order.
pub const BODY_MAX: usize = 64 * 1024;
/// Rows of a page when nothing is said; how many at most is said in the table of routes.
const PAGE_DEFAULT: usize = 100;
/// Characters of a query parameter.
const VALUE_MAX: usize = 512;
/// Where an act comes from when no proxy runs.
pub const COMMAND_LINE: &str = "command line";
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

/// A request of an administrator.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The verb.
    pub method: Method,
    /// The path as sent.
    pub path: String,
    /// What follows the `?`.
    pub query: Option<String>,
    /// Of them: `content-type`, `if-match`, `idempotency-key`.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// For the audit log: who.
    pub actor: String,
    /// From where.
    pub from: String,
    /// As in `x-request-id`.
    pub request_id: RequestId,
    /// Now, Unix milliseconds.
    pub now_unix_ms: u64,
}

impl Asked {
    fn now_unix(&self) -> i64 {
        i64::try_from(self.now_unix_ms / 1_000).unwrap_or(i64::MAX)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Whether it came from this machine: through the socket, or from the command line without a proxy.
    fn is_local(&self) -> bool {
        [SOCKET_NAME, COMMAND_LINE].contains(&self.from.as_str())
    }

    /// The body of an order, as JSON.
    fn json(&self) -> Result<Value, AdminError> {
        if self.body.len() > BODY_MAX {
            return Err(AdminError::TooLarge(BODY_MAX));
        }
        let kind = self.header(CONTENT_TYPE.as_str()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        let is_json = ["application/json", "application/merge-patch+json"];
        if !is_json.iter().any(|json| kind.eq_ignore_ascii_case(json)) {
            return Err(AdminError::MediaType);
        }
        let mut order: Value = serde_json::from_slice(&self.body)
            .map_err(|error| AdminError::Invalid(format!("the order is wrong: {error}")))?;
        whole(&mut order);
        Ok(order)
    }

    /// The name under which a creation happens once: the caller's own, two callers may use the same.
    fn once(&self) -> Result<Option<String>, AdminError> {
        let Some(name) = self.headers.get(routes::IDEMPOTENCY_KEY.name) else {
            return Ok(None);
        };
        let name = name.to_str().unwrap_or_default();
        checks::param(&routes::IDEMPOTENCY_KEY, name)?;
        Ok(Some(format!("{} {name}", self.actor)))
    }
}

/// `7.0` is the number 7, in JSON Schema and in JavaScript.
fn whole(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let text = number.to_string();
            if let Some(integer) = text
                .strip_suffix(".0")
                .and_then(|text| text.parse::<i64>().ok())
            {
                *value = integer.into();
            }
        }
        Value::Array(values) => values.iter_mut().for_each(whole),
        Value::Object(members) => members.values_mut().for_each(whole),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// The parameters of a query that an act knows.
#[derive(Debug)]
struct Query {
    given: Vec<(String, String)>,
}

impl Query {
    /// The parameters of sums.
    fn of_sums(text: Option<&str>) -> Result<Self, AdminError> {
        Self::read(routes::SUMS, text)
    }

    fn read(asks: &[Param], text: Option<&str>) -> Result<Self, AdminError> {
        let given = routes::query(text.unwrap_or_default())
            .ok_or_else(|| AdminError::Invalid("the query is not text".into()))?;
        for (at, (name, value)) in given.iter().enumerate() {
            let chars = value.chars().count();
            if !(1..=VALUE_MAX).contains(&chars) || value.chars().any(char::is_control) {
                return Err(AdminError::Invalid(format!(
                    "{name} has {chars} characters: from 1 to {VALUE_MAX}, no control character"
                )));
            }
            let Some(param) = asks.iter().find(|param| param.name == name) else {
                let known: Vec<&str> = asks.iter().map(|param| param.name).collect();
                return Err(AdminError::Invalid(format!(
                    "no query parameter {name:?} here: {}",
                    known.join(", ")
                )));
            };
            checks::param(param, value)?;
            if given.iter().skip(at + 1).any(|(other, _)| other == name) {
                return Err(AdminError::Invalid(format!("{name} is given twice")));
            }
        }
        Ok(Self { given })
    }

    fn get(&self, name: &str) -> Option<&str> {
        let found = self.given.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    fn limit(&self) -> Result<usize, AdminError> {
        let Some(text) = self.get("limit") else {
            return Ok(PAGE_DEFAULT);
        };
        // The table says the bounds.
        text.parse()
            .map_err(|error| AdminError::Invalid(format!("limit is {text:?}: {error}")))
    }

    fn cursor(&self) -> Result<Option<String>, AdminError> {
        let Some(text) = self.get("cursor") else {
            return Ok(None);
        };
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok();
        let cursor = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        match cursor.filter(|cursor| !cursor.is_empty()) {
            Some(cursor) => Ok(Some(cursor)),
            None => Err(bad_cursor()),
        }
    }
}

fn bad_cursor() -> AdminError {
    AdminError::NotFound(
        "no such page: cursor must be the next_cursor of a page of this list".into(),
    )
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    fn of(status: StatusCode, value: &impl Serialize) -> Result<Self, AdminError> {
        let body = serde_json::to_vec(value)
            .map_err(|error| AdminError::Invalid(format!("the answer is no JSON: {error}")))?;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, JSON);
        // Some of these answers hold a secret, all of them are somebody's business.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(Self {
            status,
            headers,
            body: body.into(),
        })
    }

    fn ok(value: &impl Serialize) -> Result<Self, AdminError> {
        Self::of(StatusCode::OK, value)
    }

    fn made(value: &impl Serialize) -> Result<Self, AdminError> {
        Self::of(StatusCode::CREATED, value)
    }

    fn tagged(mut self, tag: &str) -> Self {
        if let Ok(tag) = HeaderValue::from_str(tag) {
            self.headers.insert(ETAG, tag);
        }
        self
    }
}

/// What the API knows besides the store.
pub struct ApiFacts {
    /// Plans, as they are now.
    pub limits: Arc<ArcSwap<Limits>>,
    /// Prices and their currency.
    pub prices: Prices,
}

impl ApiFacts {
    /// Facts of the default settings, for tests of other rooms.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        let settings = config::settings::load::proxy(None).unwrap();
        Self {
            limits: Arc::new(ArcSwap::from_pointee(settings.limits)),
            prices: settings.prices,
        }
    }
}

/// `/admin/v1`.
pub struct Api {
    operations: Operations,
    facts: ApiFacts,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

impl Api {
    /// The API over these operations.
    pub const fn new(operations: Operations, facts: ApiFacts) -> Self {
        Self { operations, facts }
    }

    /// What it stands on.
    pub const fn operations(&self) -> &Operations {
        &self.operations
    }

    /// The label of all amounts.
    pub fn currency(&self) -> &str {
        &self.facts.prices.currency
    }

    /// Where the days of usage begin.
    pub fn zone(&self) -> Zone {
        self.facts.limits.load().time_zone
    }

    /// Answers. Never fails: what went wrong is an answer too.
    pub async fn answer(&self, asked: &Asked) -> Answer {
        let answered = match routes::find(&asked.method, &asked.path) {
            Found::Route(route, id) => self.act(route, &id, asked).await,
            Found::Methods(methods) => Err(AdminError::Method(methods)),
            Found::Nothing => Err(AdminError::NotFound(format!(
                "no such path; {}/openapi.json names all",
                routes::PREFIX
            ))),
        };
        answered.unwrap_or_else(|error| problem(&error, &asked.request_id))
    }

    /// Where a request would go.
    fn planned(&self, query: &Query) -> Result<Answer, AdminError> {
        let tier = |name| query.get(name).and_then(|tier| tier.parse().ok());
        let asked = RouteAsk {
            tier: tier("tier"),
            model: query.get("model").map(str::to_owned),
            class: tier("class"),
            local_only: query.get("local_only") == Some("true"),
            prompt_tokens: query
                .get("prompt_tokens")
                .and_then(|tokens| tokens.parse().ok())
                .unwrap_or(0),
        };
        Answer::ok(&self.operations.route(&asked)?)
    }

    async fn act(
        &self,
        route: &'static Route,
        id: &str,
        asked: &Asked,
    ) -> Result<Answer, AdminError> {
        let query = Query::read(route.asks, asked.query.as_deref())?;
        let at = At {
            id,
            route,
            asked,
            query: &query,
        };
        match route.act {
            Act::Describe => Answer::ok(&openapi::description()),
            Act::Status => Answer::ok(&self.operations.status().await),
            Act::Route => self.planned(&query),
            Act::PlanList => self.plans(),
            Act::Backup => self.backup(&at).await,
            Act::Key(act) => self.act_on_keys(act, &at).await,
            Act::User(act) => self.act_on_people(act, &at).await,
            Act::Denial(act) => self.act_on_denials(act, &at).await,
            Act::Invite(act) => self.act_on_invites(act, &at).await,
            Act::Node(act) => self.act_on_nodes(act, &at).await,
            Act::Book(act) => self.act_on_books(act, &at).await,
        }
    }

    /// Writes the act down before it happens: what is not written down does not happen.
    async fn note(
        &self,
        at: &At<'_>,
        target: &str,
        (before, after): (Value, Value),
    ) -> Result<(), AdminError> {
        let act = pseudonyms::hidden(AuditAct {
            at_unix_ms: at.asked.now_unix_ms,
            actor: at.asked.actor.clone(),
            from: at.asked.from.clone(),
            request_id: at.asked.request_id.clone(),
            action: at.route.name.to_owned(),
            target: target.to_owned(),
            before,
            after,
        });
        self.operations.store().note(&act).await?;
        tracing::info!(
            action = act.action,
            of = act.target,
            actor = act.actor,
            "administration"
        );
        Ok(())
    }
}

/// One act on its way.
struct At<'a> {
    id: &'a str,
    route: &'static Route,
    asked: &'a Asked,
    query: &'a Query,
}

impl At<'_> {
    /// The order in the body, as the description of the route has it.
    fn order<T: DeserializeOwned>(&self) -> Result<T, AdminError> {
        let order = self.asked.json()?;
        checks::order(self.route, &order)?;
        serde_json::from_value(order)
            .map_err(|error| AdminError::Invalid(format!("the order is wrong: {error}")))
    }

    /// The same where no body means the defaults.
    fn order_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, AdminError> {
        if self.asked.body.is_empty() {
            return Ok(T::default());
        }
        self.order()
    }

    /// Refuses unless the caller read what stands there.
    fn check_tag(&self, tag: &str) -> Result<(), AdminError> {
        let Some(known) = self.asked.header(IF_MATCH.as_str()) else {
            return Err(AdminError::NoCondition);
        };
        let is_same = known
            .split(',')
            .map(str::trim)
            .any(|known| known == "*" || known == tag);
        if is_same {
            return Ok(());
        }
        Err(AdminError::Changed(format!(
            "{} was changed since it was read: its ETag is {tag}; read it again and repeat the change",
            self.id
        )))
    }

    /// A page of rows that are all at hand, in the order of their names.
    fn page<T>(&self, rows: Vec<T>, name: impl Fn(&T) -> String) -> Result<Page<T>, AdminError> {
        let (limit, cursor) = (self.query.limit()?, self.query.cursor()?);
        let mut rows: Vec<T> = rows
            .into_iter()
            .filter(|row| cursor.as_ref().is_none_or(|cursor| name(row) > *cursor))
            .collect();
        rows.sort_by_key(|row| name(row));
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(name);
        Ok(Page {
            data: rows,
            next_cursor: next.map(|name| sealed(&name)),
        })
    }
}

fn sealed(cursor: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(cursor)
}

fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// The `ETag` of a value: the first 16 bytes of its SHA-256.
fn tag(value: &impl Serialize) -> String {
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
    let (first, _) = digest.as_ref().split_at(16);
    format!("\"{}\"", hex::encode(first))
}

/// Why it did not work, as RFC 9457 has it.
pub fn problem(error: &AdminError, request_id: &RequestId) -> Answer {
    let status = match error {
        AdminError::Invalid(_) => StatusCode::BAD_REQUEST,
        AdminError::Forbidden(_) => StatusCode::FORBIDDEN,
        AdminError::NotFound(_) => StatusCode::NOT_FOUND,
        AdminError::Conflict(_) => StatusCode::CONFLICT,
        AdminError::Changed(_) => StatusCode::PRECONDITION_FAILED,
        AdminError::NoCondition => StatusCode::PRECONDITION_REQUIRED,
        AdminError::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
        AdminError::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        AdminError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
        AdminError::NotRunning => StatusCode::SERVICE_UNAVAILABLE,
        AdminError::Store(
            StoreError::Unavailable(_)
            | StoreError::Overloaded
            | StoreError::Corrupt(_)
            | StoreError::InUse(_),
        ) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut answer = told(status, &error.to_string(), request_id);
    if let AdminError::Method(methods) = error
        && let Ok(methods) = HeaderValue::from_str(methods)
    {
        answer.headers.insert(ALLOW, methods);
    }
    answer
}

/// A problem with this status.
pub fn told(status: StatusCode, detail: &str, request_id: &RequestId) -> Answer {
    let problem = Problem {
        kind: "about:blank".into(),
        title: status.canonical_reason().unwrap_or("problem").to_owned(),
        status: status.as_u16(),
        detail: detail.to_owned(),
        request_id: Some(request_id.to_string()),
    };
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, PROBLEM);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Answer {
        status,
        headers,
        body: serde_json::to_vec(&problem).unwrap_or_default().into(),
    }
}
