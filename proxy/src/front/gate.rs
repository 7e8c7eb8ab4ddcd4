//! The strict gate: the first thing a request meets, and the only place that decides which heads are requests at all.
//! Pure, one table for HTTP/1 and HTTP/2. Knows no routes and no credentials, and never repairs what it refuses.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};

/// Header fields taken at most; more is refused with 431.
const FIELDS_MAX: usize = 100;
/// Longest value of one field: a token of 8 KiB and its scheme.
const VALUE_BYTES_MAX: usize = 8 * 1024 + 64;
/// Longest request target.
const TARGET_BYTES_MAX: usize = 4 * 1024;

/// The fields the gateway may see. Everything else a client says about itself ends here.
const PASSED: [&str; 19] = [
    "accept",
    "anthropic-version",
    "api-key",
    "authorization",
    "content-length",
    "content-type",
    "idempotency-key",
    "if-match",
    "if-none-match",
    "origin",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-api-key",
    "x-hearth-continue",
    "x-hearth-local-only",
    "x-hearth-priority",
    "x-hearth-user",
    "x-stainless-retry-count",
];

/// Fields that may stand once only: two of them could be read differently by two readers.
const SINGLE: [&str; 16] = [
    "api-key",
    "authorization",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "idempotency-key",
    "origin",
    "transfer-encoding",
    "x-api-key",
    "x-hearth-continue",
    "x-hearth-local-only",
    "x-hearth-priority",
    "x-hearth-user",
    "x-request-id",
];

/// Why a head is not a request. `reply.rs` gives each its status.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HeadRefusal {
    /// Against the grammar or ambiguous; the text says what.
    Malformed(&'static str),
    /// Too many or too long header fields.
    TooLarge(&'static str),
    /// The target is longer than 4 KiB.
    TargetTooLong,
    /// A method that exists but that Hearth never serves.
    MethodNotAllowed,
    /// A method nobody knows.
    MethodUnknown,
    /// A transfer coding other than `chunked`.
    TransferCoding,
    /// Neither HTTP/1.0 nor HTTP/1.1 nor HTTP/2.
    Version,
    /// The body is compressed: refused, because a few bytes could unfold to gigabytes.
    ContentEncoding,
    /// An `Expect` other than `100-continue`.
    Expectation,
    /// A loopback listener was asked for a foreign name: DNS rebinding.
    WrongHost,
    /// The head did not arrive within `server.head_timeout`.
    TooSlow,
}

impl HeadRefusal {
    /// The label in metrics and logs; one of a closed set.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::TooLarge(_) => "header_too_large",
            Self::TargetTooLong => "target_too_long",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::MethodUnknown => "method_unknown",
            Self::TransferCoding => "transfer_coding",
            Self::Version => "version",
            Self::ContentEncoding => "content_encoding",
            Self::Expectation => "expectation",
            Self::WrongHost => "wrong_host",
            Self::TooSlow => "head_too_slow",
        }
    }
}

/// A head as it came, HTTP/1 or HTTP/2.
#[derive(Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) version: Version,
    pub(crate) method: &'a str,
    pub(crate) target: &'a str,
    /// HTTP/2's `:authority`.
    pub(crate) authority: Option<&'a str>,
    pub(crate) fields: Vec<(&'a str, &'a [u8])>,
}

/// How the request says where its body ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Framing {
    /// By nothing (HTTP/1: no body) or by HTTP/2 frames.
    Implicit,
    /// By `Content-Length`.
    Length(u64),
    /// By `Transfer-Encoding: chunked`.
    Chunked,
}

/// A request that may go on to the gateway.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) method: Method,
    /// The raw path, never normalised, without the query.
    pub(crate) path: String,
    /// What follows the `?`, as sent.
    pub(crate) query: Option<String>,
    pub(crate) framing: Framing,
    pub(crate) expects_continue: bool,
    /// The client's own request id, if it may be used.
    pub(crate) request_id: Option<String>,
    /// Only the allow-listed fields.
    pub(crate) headers: HeaderMap,
}

impl Candidate<'_> {
    /// Checks everything; `hosts` are the only names accepted, where there is a choice (loopback listeners).
    pub(crate) fn admit(&self, hosts: Option<&[String]>) -> Result<Admitted, HeadRefusal> {
        self.check_fields()?;
        let method = self.method()?;
        let host = self.host()?;
        let path = self.path(host)?;
        if let Some(known) = hosts
            && !known
                .iter()
                .any(|name| name.eq_ignore_ascii_case(host_name(host)))
        {
            return Err(HeadRefusal::WrongHost);
        }
        let framing = self.framing()?;
        if self
            .one("content-encoding")
            .is_some_and(|coding| !coding.eq_ignore_ascii_case(b"identity"))
        {
            return Err(HeadRefusal::ContentEncoding);
        }
        Ok(Admitted {
            method,
            path: path.to_owned(),
            query: self.query(),
            framing,
            expects_continue: self.expects_continue()?,
            request_id: self.request_id(),
            headers: self.passed(),
        })
    }

    fn one(&self, name: &str) -> Option<&[u8]> {
        self.fields
            .iter()
            .find(|field| field.0.eq_ignore_ascii_case(name))
            .map(|field| field.1)
    }

    fn check_fields(&self) -> Result<(), HeadRefusal> {
        if self.fields.len() > FIELDS_MAX {
            return Err(HeadRefusal::TooLarge("more than 100 header fields"));
        }
        let mut bytes = self.target.len();
        let mut seen = [false; SINGLE.len()];
        for (name, value) in &self.fields {
            if name.contains('_') {
                return Err(HeadRefusal::Malformed(
                    "a header name contains an underscore",
                ));
            }
            if value.len() > VALUE_BYTES_MAX {
                return Err(HeadRefusal::TooLarge("a header value is longer than 8 KiB"));
            }
            bytes += name.len() + value.len() + 4;
            let single = SINGLE
                .iter()
                .zip(&mut seen)
                .find(|pair| pair.0.eq_ignore_ascii_case(name));
            if let Some((_, seen)) = single
                && std::mem::replace(seen, true)
            {
                return Err(HeadRefusal::Malformed(
                    "a header that may stand once is repeated",
                ));
            }
        }
        if bytes > super::head::HEAD_BYTES_MAX {
            return Err(HeadRefusal::TooLarge(
                "the request head is larger than 32 KiB",
            ));
        }
        Ok(())
    }

    fn method(&self) -> Result<Method, HeadRefusal> {
        match self.method {
            "GET" => Ok(Method::GET),
            "HEAD" => Ok(Method::HEAD),
            "POST" => Ok(Method::POST),
            "DELETE" => Ok(Method::DELETE),
            "PATCH" => Ok(Method::PATCH),
            "OPTIONS" => Ok(Method::OPTIONS),
            "PUT" | "TRACE" | "CONNECT" => Err(HeadRefusal::MethodNotAllowed),
            _ => Err(HeadRefusal::MethodUnknown),
        }
    }

    /// The one authority the request is for. HTTP/2 may say it twice, then both must agree.
    fn host(&self) -> Result<&str, HeadRefusal> {
        let field = match self.one("host") {
            Some(host) => {
                let text = std::str::from_utf8(host);
                Some(text.map_err(|_| HeadRefusal::Malformed("the Host header is not ASCII"))?)
            }
            None => None,
        };
        let host = match (self.authority, field) {
            (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
                return Err(HeadRefusal::Malformed(
                    "the Host header and :authority differ",
                ));
            }
            (Some(host), _) | (None, Some(host)) => host,
            (None, None) => return Err(HeadRefusal::Malformed("the Host header is missing")),
        };
        if is_authority(host) {
            Ok(host)
        } else {
            Err(HeadRefusal::Malformed(
                "the Host header is not a host and port",
            ))
        }
    }

    /// The raw path without its query. Absolute-form counts only for the very host of the request.
    fn path(&self, host: &str) -> Result<&str, HeadRefusal> {
        if self.target.len() > TARGET_BYTES_MAX {
            return Err(HeadRefusal::TargetTooLong);
        }
        let target = match self.target.split_once("://") {
            Some((scheme, rest)) if !self.target.starts_with('/') => {
                let same = matches!(scheme, "http" | "https") && self.version != Version::HTTP_2;
                let at = rest.find(['/', '?']).unwrap_or(rest.len());
                let (authority, path) = rest.split_at(at);
                if !same || !authority.eq_ignore_ascii_case(host) {
                    return Err(HeadRefusal::Malformed(
                        "the request target names another host",
                    ));
                }
                path
            }
            _ => self.target,
        };
        if !target.starts_with('/') || !is_target(target) {
            return Err(HeadRefusal::Malformed("the request target is not a path"));
        }
        Ok(target.split_once('?').map_or(target, |(path, _)| path))
    }

    fn query(&self) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        Some(query.to_owned())
    }

    fn framing(&self) -> Result<Framing, HeadRefusal> {
        let length = match self.one("content-length") {
            None => None,
            Some(digits) => Some(
                content_length(digits)
                    .ok_or(HeadRefusal::Malformed("the Content-Length is not a number"))?,
            ),
        };
        match (self.one("transfer-encoding"), length) {
            (None, None) => Ok(Framing::Implicit),
            (None, Some(length)) => Ok(Framing::Length(length)),
            (Some(_), _) if self.version != Version::HTTP_11 => Err(HeadRefusal::Malformed(
                "Transfer-Encoding exists in HTTP/1.1 only",
            )),
            (Some(_), Some(_)) => Err(HeadRefusal::Malformed(
                "Content-Length and Transfer-Encoding exclude each other",
            )),
            (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
            (Some(_), None) => Err(HeadRefusal::TransferCoding),
        }
    }

    fn expects_continue(&self) -> Result<bool, HeadRefusal> {
        match self.one("expect") {
            None => Ok(false),
            Some(value) if value.eq_ignore_ascii_case(b"100-continue") => {
                // RFC 9110 section 10.1.1: an HTTP/1.0 client cannot read the interim answer
                Ok(self.version != Version::HTTP_10)
            }
            Some(_) => Err(HeadRefusal::Expectation),
        }
    }

    fn request_id(&self) -> Option<String> {
        let id = std::str::from_utf8(self.one("x-request-id")?).ok()?;
        let fits = (8..=128).contains(&id.len());
        let plain = id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        (fits && plain).then(|| id.to_owned())
    }

    fn passed(&self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(PASSED.len());
        for (name, value) in &self.fields {
            let Some(passed) = PASSED
                .iter()
                .find(|passed| passed.eq_ignore_ascii_case(name))
            else {
                continue;
            };
            if let Ok(value) = HeaderValue::from_bytes(value) {
                headers.append(HeaderName::from_static(passed), value);
            }
        }
        for secret in [
            header::AUTHORIZATION,
            HeaderName::from_static("x-api-key"),
            HeaderName::from_static("api-key"),
        ] {
            if let Some(value) = headers.get_mut(secret) {
                value.set_sensitive(true);
            }
        }
        headers
    }
}

/// Digits only, no sign, no list, no blank (RFC 9110 section 8.6).
fn content_length(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// `host [":" port]` with a registered name of the usual characters, IPv4, or IPv6 in brackets.
fn is_authority(text: &str) -> bool {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => ("v6", port),
            _ => return false,
        },
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let name_fits = !name.is_empty()
        && name.len() <= 253
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    let port_fits = match port.strip_prefix(':') {
        Some(digits) => {
            digits.parse::<u16>().is_ok() && digits.bytes().all(|byte| byte.is_ascii_digit())
        }
        None => port.is_empty(),
    };
    name_fits && port_fits
}

/// The authority without its port.
fn host_name(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => authority,
    }
}

/// Visible ASCII without the characters RFC 3986 forbids, and only whole percent-encodings, none of them a zero byte.
fn is_target(target: &str) -> bool {
    let mut bytes = target.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let (Some(high), Some(low)) = (bytes.next(), bytes.next()) else {
                return false;
            };
            if !high.is_ascii_hexdigit() || !low.is_ascii_hexdigit() || (high, low) == (b'0', b'0')
            {
                return false;
            }
        } else if !(0x21..0x7f).contains(&byte) || b"\"#<>\\^`{|}".contains(&byte) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests;
