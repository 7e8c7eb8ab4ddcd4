//! What every answer carries, errors included: request id, timing, CORS, and the headers that keep browsers from guessing.
//! Never overwrites what the gateway set on purpose.

use std::sync::Arc;
use std::time::Instant;

use config::ids::RequestId;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::cors::Cors;

/// OpenAI's version header; SDKs log it, nothing depends on it.
const OPENAI_VERSION: HeaderValue = HeaderValue::from_static("2020-10-01");

/// What does not change from request to request.
#[derive(Debug)]
pub(super) struct House {
    pub(super) cors: Cors,
    /// Only behind a certificate browsers trust: HSTS would lock people out of a self-signed one.
    pub(super) strict_transport: bool,
}

/// What one answer gets.
#[derive(Debug)]
pub(super) struct Decoration {
    pub(super) house: Arc<House>,
    pub(super) request_id: RequestId,
    pub(super) origin: Option<HeaderValue>,
    pub(super) received_at: Instant,
    /// The methods of a path of administration, where the table knows them better than who answers.
    pub(super) allow: Option<HeaderValue>,
}

impl Decoration {
    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        if let (Some(known), Some(told)) = (&self.allow, headers.get_mut(ALLOW)) {
            told.clone_from(known);
        }
        let mut missing = |name: HeaderName, value: HeaderValue| {
            headers.entry(name).or_insert(value);
        };
        if let Ok(id) = HeaderValue::from_str(self.request_id.as_str()) {
            missing(HeaderName::from_static("x-request-id"), id);
        }
        let elapsed = u64::try_from(self.received_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        missing(
            HeaderName::from_static("openai-processing-ms"),
            HeaderValue::from(elapsed),
        );
        missing(HeaderName::from_static("openai-version"), OPENAI_VERSION);
        missing(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        missing(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        missing(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        missing(
            CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; base-uri 'none'"),
        );
        missing(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.house.strict_transport {
            missing(
                STRICT_TRANSPORT_SECURITY,
                HeaderValue::from_static("max-age=31536000"),
            );
        }
        self.house.cors.decorate(self.origin.as_ref(), headers);
    }
}
