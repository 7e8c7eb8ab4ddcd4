//! Turns a refusal into HTTP, and is the only room that does: adding a reason to say no breaks the match below and its
//! snapshot, which together are the public error contract. Adds nothing about the inside of the house.

use bytes::Bytes;
use config::ids::RequestId;
use config::wire::error::ErrorBody;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use policy::refusal::{Refusal, seconds_up};

use crate::front::gate::HeadRefusal;

/// The realm of `WWW-Authenticate`.
const REALM: &str = "Bearer realm=\"hearth\"";
/// The methods that exist anywhere in Hearth.
const METHODS: &str = "GET, HEAD, POST, PATCH, DELETE, OPTIONS";

const CALLER: &str = "invalid_request_error";
const PERMISSION: &str = "permission_error";
const REQUESTS: &str = "requests";
const SERVER: &str = "server_error";

/// What a refusal needs to know of its request.
#[derive(Clone, Debug)]
pub struct ReplyContext {
    /// Goes into the body, so that a screenshot is enough to find the log line.
    pub request_id: RequestId,
    /// The limit headers, as far as limits were already looked at.
    pub limit_headers: HeaderMap,
}

/// Status, OpenAI error type and code.
type Face = (StatusCode, &'static str, String);

/// The answer for a refusal before anything was sent.
pub fn refuse(refusal: &Refusal, context: &ReplyContext) -> (StatusCode, HeaderMap, Bytes) {
    let (status, _, _) = face(refusal);
    let mut headers = context.limit_headers.clone();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(wait) = refusal.retry_after() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds_up(wait)));
    }
    if !refusal.should_retry() {
        // measured: the one sign that stops every SDK, whatever Retry-After says
        headers.insert(
            HeaderName::from_static("x-should-retry"),
            HeaderValue::from_static("false"),
        );
    }
    if let Some((name, value)) = own_header(refusal)
        && let Ok(value) = HeaderValue::from_str(&value)
    {
        headers.insert(name, value);
    }
    let body = body(refusal).with("request_id", context.request_id.as_str());
    (status, headers, Bytes::from(body.to_bytes()))
}

/// The last event of a stream that cannot go on. SDKs raise it; a stream without it would look complete.
pub fn refuse_in_stream(refusal: &Refusal) -> Bytes {
    let json = body(refusal).to_bytes();
    let mut event = Vec::with_capacity(json.len() + 8);
    event.extend_from_slice(b"data: ");
    event.extend_from_slice(&json);
    event.extend_from_slice(b"\n\n");
    Bytes::from(event)
}

/// The answer for a head that is not a request.
pub fn refuse_head(refusal: HeadRefusal, request_id: &RequestId) -> (StatusCode, HeaderMap, Bytes) {
    let context = ReplyContext {
        request_id: request_id.clone(),
        limit_headers: HeaderMap::new(),
    };
    let plain = |status: StatusCode, code: &str, message: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(
            HeaderName::from_static("x-should-retry"),
            HeaderValue::from_static("false"),
        );
        let body = ErrorBody::new(CALLER, code, message).with("request_id", request_id.as_str());
        (status, headers, Bytes::from(body.to_bytes()))
    };
    match refusal {
        HeadRefusal::Malformed(why) => refuse(&Refusal::MalformedRequest { why }, &context),
        HeadRefusal::TooLarge(why) => plain(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "header_too_large",
            why,
        ),
        HeadRefusal::MethodNotAllowed => {
            refuse(&Refusal::MethodNotAllowed { allow: METHODS }, &context)
        }
        HeadRefusal::ContentEncoding => plain(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "compressed bodies are not accepted: send without content-encoding",
        ),
        HeadRefusal::TargetTooLong => plain(
            StatusCode::URI_TOO_LONG,
            "uri_too_long",
            "the request target is longer than 4 KiB",
        ),
        // 501 and 505 would fit these three, but SDKs repeat every 5xx, and an alarm on 5xx must not ring for what a
        // stranger sends.
        HeadRefusal::MethodUnknown => {
            refuse(&Refusal::MethodNotAllowed { allow: METHODS }, &context)
        }
        HeadRefusal::TransferCoding => plain(
            StatusCode::BAD_REQUEST,
            "transfer_coding_unknown",
            "the only transfer coding accepted is `chunked`",
        ),
        HeadRefusal::Version => plain(
            StatusCode::BAD_REQUEST,
            "version_not_supported",
            "use HTTP/1.1 or HTTP/2",
        ),
        HeadRefusal::Expectation => plain(
            StatusCode::EXPECTATION_FAILED,
            "expectation_failed",
            "the only expectation accepted is `100-continue`",
        ),
        HeadRefusal::WrongHost => plain(
            StatusCode::MISDIRECTED_REQUEST,
            "wrong_host",
            "this listener does not answer to that name: use localhost or the configured public_url",
        ),
        HeadRefusal::TooSlow => plain(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            "the request head was not complete in time",
        ),
    }
}

fn body(refusal: &Refusal) -> ErrorBody {
    let (_, kind, code) = face(refusal);
    let mut body = ErrorBody::new(kind, &code, refusal.to_string());
    body.error.param = param(refusal);
    if let Some(wait) = refusal.retry_after() {
        body = body.with("retry_after_s", seconds_up(wait));
    }
    if let Refusal::RateLimited { state, .. }
    | Refusal::QuotaExceeded { state, .. }
    | Refusal::NeverFits { state } = refusal
    {
        body = body
            .with("limit", state.limit)
            .with("limit_name", state.name.to_string())
            .with("remaining", state.remaining);
    }
    if let Refusal::TooManyOpen { limit } = refusal {
        body = body.with("limit", *limit).with("limit_name", "concurrency");
    }
    body
}

/// The public error contract: one line per reason.
fn face(refusal: &Refusal) -> Face {
    let (status, kind, code) = match refusal {
        Refusal::MissingCredential => (StatusCode::UNAUTHORIZED, CALLER, "missing_api_key"),
        Refusal::InvalidCredential { .. } => (StatusCode::UNAUTHORIZED, CALLER, "invalid_api_key"),
        Refusal::ExpiredCredential => (StatusCode::UNAUTHORIZED, CALLER, "token_expired"),
        Refusal::RevokedCredential => (StatusCode::UNAUTHORIZED, CALLER, "token_revoked"),
        Refusal::AmbiguousCredential => (StatusCode::BAD_REQUEST, CALLER, "ambiguous_credential"),
        Refusal::PlainHttp => (StatusCode::FORBIDDEN, PERMISSION, "plain_http"),
        Refusal::MissingScope { .. } => (StatusCode::FORBIDDEN, PERMISSION, "insufficient_scope"),
        Refusal::ModelNotAllowed { .. } => (StatusCode::FORBIDDEN, PERMISSION, "model_not_allowed"),
        Refusal::AccountNotAllowed { .. } => {
            (StatusCode::FORBIDDEN, PERMISSION, "account_not_allowed")
        }
        Refusal::UnknownModel { .. } => (StatusCode::NOT_FOUND, CALLER, "model_not_found"),
        Refusal::BadRequest { code, .. } => {
            return (StatusCode::BAD_REQUEST, CALLER, code.to_string());
        }
        Refusal::MalformedRequest { .. } => (StatusCode::BAD_REQUEST, CALLER, "malformed_request"),
        Refusal::ContextTooLong { .. } => {
            (StatusCode::BAD_REQUEST, CALLER, "context_length_exceeded")
        }
        Refusal::BodyTooLarge { .. } => {
            (StatusCode::PAYLOAD_TOO_LARGE, CALLER, "request_too_large")
        }
        Refusal::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, CALLER, "request_timeout"),
        Refusal::UnsupportedMediaType => (
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            CALLER,
            "unsupported_media_type",
        ),
        Refusal::MethodNotAllowed { .. } => {
            (StatusCode::METHOD_NOT_ALLOWED, CALLER, "method_not_allowed")
        }
        Refusal::NotFound { .. } => (StatusCode::NOT_FOUND, CALLER, "not_found"),
        Refusal::HeaderTooLarge => (
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            CALLER,
            "header_too_large",
        ),
        Refusal::QuotaExceeded { .. } | Refusal::NeverFits { .. } => (
            StatusCode::TOO_MANY_REQUESTS,
            "insufficient_quota",
            "insufficient_quota",
        ),
        Refusal::RateLimited { .. } | Refusal::Guarded { .. } | Refusal::TooManyOpen { .. } => (
            StatusCode::TOO_MANY_REQUESTS,
            REQUESTS,
            "rate_limit_exceeded",
        ),
        Refusal::QueueFull { .. } => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "overloaded"),
        Refusal::NoTierAvailable { .. } => {
            (StatusCode::SERVICE_UNAVAILABLE, SERVER, "no_tier_available")
        }
        Refusal::UpstreamError => (StatusCode::BAD_GATEWAY, SERVER, "upstream_error"),
        Refusal::UpstreamBroken => (StatusCode::BAD_GATEWAY, SERVER, "upstream_error"),
        Refusal::Timeout => (StatusCode::GATEWAY_TIMEOUT, SERVER, "timeout"),
        Refusal::StoreAway => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "store_unavailable"),
        Refusal::IssuerAway => (
            StatusCode::SERVICE_UNAVAILABLE,
            SERVER,
            "issuer_unavailable",
        ),
        Refusal::Draining => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "draining"),
        Refusal::Internal => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, "internal_error"),
    };
    (status, kind, code.to_owned())
}

/// The field at fault. `if let` chains and not a match: most reasons have none.
fn param(refusal: &Refusal) -> Option<String> {
    if let Refusal::BadRequest { param, .. } = refusal {
        return param.clone();
    }
    let names_model = matches!(
        refusal,
        Refusal::UnknownModel { .. } | Refusal::ModelNotAllowed { .. }
    );
    names_model.then(|| "model".to_owned())
}

/// The header that belongs to one reason alone (RFC 6750 section 3, RFC 9110 section 15.5.6).
fn own_header(refusal: &Refusal) -> Option<(HeaderName, String)> {
    if let Refusal::MethodNotAllowed { allow } = refusal {
        return Some((ALLOW, (*allow).to_owned()));
    }
    if let Refusal::MissingScope { scope } = refusal {
        return Some((
            WWW_AUTHENTICATE,
            format!("{REALM}, error=\"insufficient_scope\", scope=\"{scope}\""),
        ));
    }
    let (status, _, _) = face(refusal);
    if status != StatusCode::UNAUTHORIZED {
        return None;
    }
    // no error attribute when nothing was shown (RFC 6750 section 3.1)
    let value = if matches!(refusal, Refusal::MissingCredential) {
        REALM.to_owned()
    } else {
        let why: String = refusal
            .to_string()
            .chars()
            .filter(|&c| (' '..='~').contains(&c) && c != '"' && c != '\\')
            .collect();
        format!("{REALM}, error=\"invalid_token\", error_description=\"{why}\"")
    };
    Some((WWW_AUTHENTICATE, value))
}

#[cfg(test)]
mod tests;
