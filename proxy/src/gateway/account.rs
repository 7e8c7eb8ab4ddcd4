//! What a person may know of themselves, and the door to `/admin/v1` for those who may administer. Decides nothing: the books
//! and the API do.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use policy::limit::{CounterState, Kind};
use policy::refusal::Refusal;
use serde_json::{Value, json};

use super::admission::Asking;
use super::exchange::{Exchange, Stop};
use super::{Call, Gateway};
use crate::admin::api::BODY_MAX;
use crate::admin::words::UsageView;
use crate::admin::{AdminError, Asked};

/// `/admin/v1/...`
pub(super) async fn administer(
    gateway: &Gateway,
    call: &Call,
    asking: Asking<'_>,
    exchange: &mut Exchange<'_>,
) -> Result<(), Stop> {
    gateway.rooms.admission.charge(asking, exchange).await?;
    let mut body = Vec::new();
    while let Some(piece) = exchange.body().await? {
        if body.len() + piece.len() > BODY_MAX {
            return Err(Refusal::BodyTooLarge {
                limit: BODY_MAX as u64,
            }
            .into());
        }
        body.extend_from_slice(&piece);
    }
    let principal = asking.principal;
    let asked = Asked {
        method: call.method.clone(),
        path: call.path.clone(),
        query: call.query.clone(),
        headers: call.headers.clone(),
        body: body.into(),
        actor: match &principal.key {
            Some(key) => format!("key:{key}"),
            None => format!("user:{}", principal.user),
        },
        from: call.ip.to_string(),
        request_id: call.request_id.clone(),
        now_unix_ms: call.unix_ms,
    };
    let answer = gateway.rooms.admin.answer(&asked).await;
    let body = if call.method == Method::HEAD {
        Bytes::new()
    } else {
        answer.body
    };
    exchange.reply(answer.status, answer.headers, body).await
}

/// `GET /v1/usage`: what the caller used.
pub(super) async fn usage(
    gateway: &Gateway,
    call: &Call,
    asking: Asking<'_>,
    exchange: &mut Exchange<'_>,
) -> Result<(), Stop> {
    let view = own(gateway, call.query.as_deref(), asking).await?;
    private(exchange, &json!(view)).await
}

/// `GET /api/user`: who asks, what is left, and what the last thirty days were.
pub(super) async fn profile(
    gateway: &Gateway,
    asking: Asking<'_>,
    exchange: &mut Exchange<'_>,
) -> Result<(), Stop> {
    let mut limits = Vec::new();
    for kind in [Kind::Text, Kind::Media] {
        let asking = Asking { kind, ..asking };
        gateway.rooms.admission.look_at_all(asking, exchange).await;
        for state in exchange.states() {
            if !limits
                .iter()
                .any(|known: &CounterState| known.name == state.name)
            {
                limits.push(*state);
            }
        }
    }
    let usage = own(gateway, None, asking).await?;
    let principal = asking.principal;
    let groups: Vec<&str> = principal.groups.iter().map(AsRef::as_ref).collect();
    let limits: Vec<Value> = limits.iter().map(|state| limit(state, asking)).collect();
    let body = json!({
        "id": principal.user,
        "subject": principal.subject(),
        "tenant": principal.tenant,
        "groups": groups,
        "key": principal.key,
        "plan": principal.plan_name,
        "scopes": principal.scopes,
        "tiers": principal.tiers,
        "models": principal.models,
        "admin": principal.admin,
        "local_only": gateway.rooms.admission.is_local_only(principal),
        "limits": limits,
        "usage": usage,
    });
    private(exchange, &body).await
}

async fn own(
    gateway: &Gateway,
    query: Option<&str>,
    asking: Asking<'_>,
) -> Result<UsageView, Refusal> {
    let who = (asking.principal.tenant(), &asking.principal.user);
    let admin = &gateway.rooms.admin;
    let view = admin.own_usage(who, query, asking.now_unix_ms).await;
    view.map_err(|error| match error {
        AdminError::Store(_) | AdminError::NotRunning => Refusal::StoreAway,
        other @ (AdminError::Invalid(_)
        | AdminError::Forbidden(_)
        | AdminError::NotFound(_)
        | AdminError::Conflict(_)
        | AdminError::Changed(_)
        | AdminError::NoCondition
        | AdminError::Method(_)
        | AdminError::MediaType
        | AdminError::TooLarge(_)) => Refusal::BadRequest {
            code: "invalid_value".into(),
            param: None,
            message: other.to_string(),
        },
    })
}

fn limit(state: &CounterState, asking: Asking<'_>) -> Value {
    let reset_ms = u64::try_from(state.reset_after.as_millis()).unwrap_or(u64::MAX);
    let resets_at = (!state.is_held()).then(|| asking.now_unix_ms.saturating_add(reset_ms) / 1_000);
    json!({
        "name": state.name.to_string(),
        "unit": format!("{:?}", state.unit).to_lowercase(),
        "limit": state.limit,
        "used": state.limit.saturating_sub(state.remaining),
        "remaining": state.remaining,
        "window_secs": state.window.as_secs(),
        "resets_at_unix": resets_at,
    })
}

/// JSON that no cache may keep.
async fn private(exchange: &mut Exchange<'_>, body: &Value) -> Result<(), Stop> {
    let bytes = serde_json::to_vec(body).map_err(|_| Refusal::Internal)?;
    let mut headers = HeaderMap::new();
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    exchange.reply(StatusCode::OK, headers, bytes.into()).await
}
