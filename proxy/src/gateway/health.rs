//! Is anybody there: for load balancers, monitors and clients. Wakes nothing and tells no more than it must.

use std::sync::Arc;
use std::time::Duration;

use config::settings::proxy::Auth;
use http::StatusCode;
use policy::registry::{Listed, ListedState};
use serde_json::{Value, json};

use super::exchange::{Exchange, Stop};
use crate::auth::Authenticator;
use crate::nodes::fleet::Fleet;
use crate::store::Store;

/// A store that needs longer is not ready.
const PING_MAX: Duration = Duration::from_secs(2);

/// `GET /healthz`: answered by every proxy that can answer at all.
pub async fn alive(exchange: &mut Exchange<'_>) -> Result<(), Stop> {
    exchange.text(StatusCode::OK, "ok").await
}

/// `GET /readyz`: 200 only if a request could be served; the body names what is missing.
pub async fn ready(exchange: &mut Exchange<'_>, readiness: &Readiness) -> Result<(), Stop> {
    let failing = readiness.failing().await;
    let body = json!({"ready": failing.is_empty(), "failing": failing});
    exchange.json(status(failing.is_empty()), &body).await
}

/// What must work for a request to be served.
#[derive(Clone)]
pub struct Readiness {
    /// Counters and keys.
    pub store: Arc<dyn Store>,
    /// Issuers' keys.
    pub authenticator: Arc<Authenticator>,
    /// Somebody who answers.
    pub fleet: Arc<Fleet>,
}

impl Readiness {
    /// The checks that fail now; none: ready.
    pub async fn failing(&self) -> Vec<&'static str> {
        let store = tokio::time::timeout(PING_MAX, self.store.ping()).await;
        let checks = [
            ("store", matches!(store, Ok(Ok(())))),
            ("issuer_keys", self.authenticator.is_ready()),
            ("tiers", has_ready_tier(&self.fleet)),
        ];
        checks
            .into_iter()
            .filter(|check| !check.1)
            .map(|check| check.0)
            .collect()
    }
}

/// `GET /health` in llama-server's form.
pub async fn health(exchange: &mut Exchange<'_>, listed: &[Listed]) -> Result<(), Stop> {
    let is_ready = listed.iter().any(|one| one.state == ListedState::Ready);
    let body: Value = if is_ready {
        json!({"status": "ok"})
    } else {
        json!({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}})
    };
    exchange.json(status(is_ready), &body).await
}

/// `GET /config.json`: how people sign in here. Public identifiers alone; never a secret.
pub async fn page_config(exchange: &mut Exchange<'_>, auth: &Auth) -> Result<(), Stop> {
    let issuers: Vec<&str> = auth
        .issuers
        .iter()
        .map(|issuer| issuer.issuer.as_str())
        .collect();
    let body =
        json!({"name": "Hearth", "api_base": "/v1", "sign_in": ["api_key"], "issuers": issuers});
    exchange.json(StatusCode::OK, &body).await
}

fn has_ready_tier(fleet: &Fleet) -> bool {
    fleet.with(|router| {
        router
            .registry()
            .backends()
            .any(|backend| backend.tier.state.answers() && !backend.node.draining)
    })
}

const fn status(is_ready: bool) -> StatusCode {
    if is_ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}
