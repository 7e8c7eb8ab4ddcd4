//! Which web pages may read our answers (contract A2.4). Decides by the configured origins only: never reflects an unknown
//! one, never allows credentials of the browser's own.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, VARY,
};
use http::{HeaderMap, HeaderValue};

/// The `*` wildcard of the Fetch standard excludes `authorization`, so all are named.
const ALLOWED_HEADERS: [&str; 21] = [
    "accept",
    "anthropic-beta",
    "anthropic-dangerous-direct-browser-access",
    "anthropic-version",
    "api-key",
    "authorization",
    "baggage",
    "content-type",
    "idempotency-key",
    "if-match",
    "openai-beta",
    "openai-organization",
    "openai-project",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-api-key",
    "x-hearth-continue",
    "x-hearth-local-only",
    "x-hearth-priority",
    "x-request-id",
];

/// SDKs invent new ones with every release; all are harmless.
const ALLOWED_PREFIX: &str = "x-stainless-";

const EXPOSED_HEADERS: &str = "x-request-id, request-id, openai-processing-ms, openai-version, retry-after, \
    retry-after-ms, x-should-retry, x-ratelimit-limit-requests, x-ratelimit-limit-tokens, \
    x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, x-ratelimit-reset-requests, \
    x-ratelimit-reset-tokens, ratelimit, ratelimit-policy, server-timing, x-routing-tier, x-routing-model, \
    x-routing-node, x-routing-fallback, traceparent";

/// The configured origins.
#[derive(Debug)]
pub(crate) struct Cors {
    origins: Vec<String>,
    any: bool,
}

impl Cors {
    /// `own` is the public URL; `*` among the others means any origin.
    pub(crate) fn new(own: &str, others: &[String]) -> Self {
        let any = others.iter().any(|origin| origin == "*");
        let mut origins = vec![own.trim_end_matches('/').to_owned()];
        origins.extend(
            others
                .iter()
                .map(|origin| origin.trim_end_matches('/').to_owned()),
        );
        Self { origins, any }
    }

    fn allowed(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        if self.any {
            return Some(HeaderValue::from_static("*"));
        }
        let text = origin.to_str().ok()?;
        self.origins
            .iter()
            .any(|known| known == text)
            .then(|| origin.clone())
    }

    /// Adds what every answer carries, errors included: without it a page sees only "failed to fetch".
    pub(crate) fn decorate(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        headers.append(VARY, HeaderValue::from_static("Origin"));
        if let Some(origin) = origin.and_then(|origin| self.allowed(origin)) {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(
                ACCESS_CONTROL_EXPOSE_HEADERS,
                HeaderValue::from_static(EXPOSED_HEADERS),
            );
        }
    }

    /// The answer to `OPTIONS`, without its `Access-Control-Allow-Origin`, which [`Self::decorate`] adds.
    pub(crate) fn preflight(&self, origin: Option<&HeaderValue>, wanted: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let preflight_vary = "Access-Control-Request-Method, Access-Control-Request-Headers";
        headers.append(VARY, HeaderValue::from_static(preflight_vary));
        headers.insert(
            http::header::ALLOW,
            HeaderValue::from_static("GET, HEAD, POST, PATCH, DELETE, OPTIONS"),
        );
        if origin.and_then(|origin| self.allowed(origin)).is_none() {
            return headers;
        }
        let methods = HeaderValue::from_static("GET, POST, PATCH, DELETE, OPTIONS");
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
        if let Ok(allowed) = HeaderValue::from_str(&allowed_headers(wanted)) {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        }
        // Chrome keeps a preflight for two hours at most
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("7200"));
        headers
    }
}

fn allowed_headers(wanted: &[&[u8]]) -> String {
    let mut allowed = ALLOWED_HEADERS.join(", ");
    let names = wanted
        .iter()
        .filter_map(|line| std::str::from_utf8(line).ok());
    for name in names.flat_map(|line| line.split(',')).take(40) {
        let name = name.trim().to_ascii_lowercase();
        let plain = name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        if name.starts_with(ALLOWED_PREFIX) && plain && name.len() <= 64 {
            allowed.push_str(", ");
            allowed.push_str(&name);
        }
    }
    allowed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decorated(cors: &Cors, origin: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        cors.decorate(Some(&HeaderValue::from_static(origin)), &mut headers);
        headers
    }

    #[test]
    fn only_configured_origins_are_told_yes() {
        let cors = Cors::new(
            "https://llm.example.org",
            &["https://app.example.org/".to_owned()],
        );
        for known in ["https://llm.example.org", "https://app.example.org"] {
            assert_eq!(decorated(&cors, known)[ACCESS_CONTROL_ALLOW_ORIGIN], known);
        }
        for stranger in [
            "https://evil.example",
            "null",
            "https://llm.example.org.evil.example",
            "",
        ] {
            let headers = decorated(&cors, stranger);
            assert!(
                !headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN),
                "{stranger}"
            );
            assert_eq!(headers[VARY], "Origin");
        }
    }

    /// Every page of the world could ask with the reader's credentials.
    #[test]
    fn seed_defect_14_the_wildcard_is_said_as_a_wildcard_and_never_with_credentials() {
        let headers = decorated(
            &Cors::new("https://a", &["*".to_owned()]),
            "https://evil.example",
        );
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert!(!headers.contains_key(http::header::ACCESS_CONTROL_ALLOW_CREDENTIALS));
    }

    #[test]
    fn a_preflight_names_authorization_and_what_sdks_send() {
        let cors = Cors::new("https://a", &[]);
        let origin = HeaderValue::from_static("https://a");
        let wanted: [&[u8]; 1] =
            [b"authorization, X-Stainless-Read-Timeout, x-evil\r\n, x-stainless-\x7f"];
        let headers = cors.preflight(Some(&origin), &wanted);
        let allowed = headers[ACCESS_CONTROL_ALLOW_HEADERS].to_str().unwrap();
        assert!(allowed.contains("authorization") && allowed.contains("x-stainless-read-timeout"));
        assert!(!allowed.contains("x-evil"));
        let evil = HeaderValue::from_static("https://evil.example");
        assert!(
            !cors
                .preflight(Some(&evil), &wanted)
                .contains_key(ACCESS_CONTROL_ALLOW_METHODS)
        );
    }
}
