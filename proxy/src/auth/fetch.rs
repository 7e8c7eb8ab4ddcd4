//! Brings an issuer's key set from where it lies: discovery, a URL, a file. Follows no redirect, speaks HTTPS (HTTP on
//! loopback only), reads a bounded body within a deadline, and believes nothing it has not checked.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use config::settings::proxy::IssuerKeys;
use reqwest::header::CACHE_CONTROL;
use reqwest::{Client, Url, redirect};
use serde::Deserialize;

/// A key set or discovery document at most (contract A3.2).
const BODY_BYTES_MAX: usize = 256 * 1024;
/// Connecting to an issuer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// One request to an issuer, body included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Why no document came.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("{0} is neither https nor http on loopback")]
    Insecure(String),
    #[error("{url}: {reason}")]
    Request { url: String, reason: String },
    #[error("{url} answered {status}")]
    Status { url: String, status: u16 },
    #[error("{0} sent more than {BODY_BYTES_MAX} bytes")]
    TooLarge(String),
    #[error("{0} holds no discovery document")]
    NoDiscovery(String),
    #[error("{url} speaks for the issuer {found:?}")]
    OtherIssuer { url: String, found: String },
    #[error("{path}: {reason}")]
    File { path: String, reason: String },
}

/// What came.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) body: Vec<u8>,
    /// As the server allowed in `Cache-Control`.
    pub(super) max_age: Option<Duration>,
    /// The file's time, for a file.
    pub(super) modified: Option<SystemTime>,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

/// The client for all issuers.
pub(super) fn client() -> Result<Client, reqwest::Error> {
    Client::builder()
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(REQUEST_TIMEOUT)
        .user_agent(concat!("hearth-proxy/", env!("CARGO_PKG_VERSION")))
        .no_proxy()
        .build()
}

/// The key set of an issuer, unparsed.
pub(super) async fn key_set(
    client: &Client,
    issuer: &str,
    keys: &IssuerKeys,
) -> Result<Document, FetchError> {
    match keys {
        IssuerKeys::File(path) => file(path).await,
        IssuerKeys::Url(url) => get(client, url).await,
        IssuerKeys::Discovery => {
            let url = format!(
                "{}/.well-known/openid-configuration",
                issuer.trim_end_matches('/')
            );
            let found = get(client, &url).await?;
            let Ok(discovery) = serde_json::from_slice::<Discovery>(&found.body) else {
                return Err(FetchError::NoDiscovery(url));
            };
            if discovery.issuer != issuer {
                return Err(FetchError::OtherIssuer {
                    url,
                    found: discovery.issuer.chars().take(200).collect(),
                });
            }
            get(client, &discovery.jwks_uri).await
        }
    }
}

/// When a file changed last.
pub(super) async fn modified(path: &Path) -> Option<SystemTime> {
    tokio::fs::metadata(path).await.ok()?.modified().ok()
}

async fn file(path: &Path) -> Result<Document, FetchError> {
    let failed = |reason: String| FetchError::File {
        path: path.display().to_string(),
        reason,
    };
    let metadata = tokio::fs::metadata(path)
        .await
        .map_err(|error| failed(error.to_string()))?;
    if metadata.len() > BODY_BYTES_MAX as u64 {
        return Err(FetchError::TooLarge(path.display().to_string()));
    }
    let body = tokio::fs::read(path)
        .await
        .map_err(|error| failed(error.to_string()))?;
    Ok(Document {
        body,
        max_age: None,
        modified: metadata.modified().ok(),
    })
}

async fn get(client: &Client, url: &str) -> Result<Document, FetchError> {
    let checked = Url::parse(url).ok().filter(is_safe);
    let Some(checked) = checked else {
        return Err(FetchError::Insecure(url.chars().take(200).collect()));
    };
    let failed = |error: reqwest::Error| FetchError::Request {
        url: url.to_owned(),
        reason: causes(&error.without_url()),
    };
    let mut response = client.get(checked).send().await.map_err(failed)?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(FetchError::Status {
            url: url.to_owned(),
            status: response.status().as_u16(),
        });
    }
    let max_age = response
        .headers()
        .get(CACHE_CONTROL)
        .and_then(|value| value.to_str().ok())
        .and_then(max_age);
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(failed)? {
        if body.len() + piece.len() > BODY_BYTES_MAX {
            return Err(FetchError::TooLarge(url.to_owned()));
        }
        body.extend_from_slice(&piece);
    }
    Ok(Document {
        body,
        max_age,
        modified: None,
    })
}

fn is_safe(url: &Url) -> bool {
    match url.scheme() {
        "https" => true,
        "http" => is_loopback(url),
        _ => false,
    }
}

fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else {
        return false;
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn max_age(header: &str) -> Option<Duration> {
    header
        .split(',')
        .filter_map(|directive| directive.trim().strip_prefix("max-age="))
        .find_map(|seconds| seconds.parse().ok())
        .map(Duration::from_secs)
}

/// An error with its causes, because reqwest's own text stops at "error sending request".
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
