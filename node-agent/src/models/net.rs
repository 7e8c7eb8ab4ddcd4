//! One HTTP client for model hubs. Follows redirects by hand, so that the token goes to the hub and to nobody else, and every answer has a
//! deadline and a bound. Must never print a token.

use std::ffi::OsString;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode, Url, redirect};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::cache::Environment;
use super::source::may_be_asked;

const HUB: &str = "https://huggingface.co";
const REDIRECTS_MAX: usize = 6;
const CONNECT_MAX: Duration = Duration::from_secs(20);
/// The longest pause that a server may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(5);
const TOKEN_CHARS_MAX: usize = 4_096;

/// How long to wait for a network that misbehaves.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A connection that brings nothing for so long is given up.
    pub stall: Duration,
    /// The first pause before another try; it doubles.
    pub pause: Duration,
    /// The longest pause.
    pub pause_max: Duration,
    /// Tries that bring nothing, one after the other.
    pub tries: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(30),
            pause: Duration::from_millis(500),
            pause_max: Duration::from_secs(30),
            tries: 8,
        }
    }
}

/// Why the hub gave nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NetError {
    /// No connection, or it broke or stalled.
    #[error("{host} cannot be reached or stopped answering: {reason}")]
    Broken {
        /// Who.
        host: String,
        /// Why.
        reason: String,
    },
    /// 429, 503 and other passing answers.
    #[error("{host} is busy (HTTP {status})")]
    Busy {
        /// Who.
        host: String,
        /// What it said.
        status: u16,
        /// When to ask again.
        after: Option<Duration>,
    },
    /// 401 or 403.
    #[error(
        "{url} may not be read (HTTP {status}): the repository is gated, private or does not exist. Accept its terms on its web page, make a token \
         with read access at {HUB}/settings/tokens, and set HF_TOKEN to it{}",
        if *had_token { " (the token that was sent does not open it)" } else { "" }
    )]
    Denied {
        /// What was asked for.
        url: String,
        /// What was said.
        status: u16,
        /// Whether a token went along.
        had_token: bool,
    },
    /// 404 and 410.
    #[error("{0} does not exist: is the name right?")]
    Missing(String),
    /// Anything else.
    #[error("{host} answered oddly: {reason}")]
    Odd {
        /// Who.
        host: String,
        /// What was wrong.
        reason: String,
    },
    /// The settings of the network are wrong.
    #[error("{0}")]
    Settings(String),
}

impl NetError {
    /// Whether asking again may help.
    pub const fn is_passing(&self) -> bool {
        match self {
            Self::Broken { .. } | Self::Busy { .. } => true,
            Self::Denied { .. } | Self::Missing(_) | Self::Odd { .. } | Self::Settings(_) => false,
        }
    }
}

/// The client.
#[derive(Clone)]
pub struct Net {
    client: Client,
    endpoint: Url,
    token: Option<Zeroizing<String>>,
    /// How long to wait.
    pub patience: Patience,
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net")
            .field("endpoint", &self.endpoint.as_str())
            .finish_non_exhaustive()
    }
}

/// What is asked of an address.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask<'a> {
    /// First and last byte.
    pub range: Option<(u64, u64)>,
    /// `Accept`.
    pub accept: Option<&'a str>,
    /// Only the head of the answer.
    pub head: bool,
}

impl Net {
    /// A client with the endpoint and token of the environment: `HF_ENDPOINT` or `MODEL_ENDPOINT`; `HF_TOKEN`, else the file `token` in
    /// `HF_HOME`.
    pub fn new(variable: Environment<'_>) -> Result<Self, NetError> {
        let text = |name: &str| variable(name).and_then(|value| value.into_string().ok());
        let endpoint = text("HF_ENDPOINT").or_else(|| text("MODEL_ENDPOINT"));
        let endpoint = endpoint.as_deref().unwrap_or(HUB);
        let url = Url::parse(&format!("{}/", endpoint.trim_end_matches('/')))
            .ok()
            .filter(may_be_asked)
            .ok_or_else(|| {
                NetError::Settings(format!(
                    "HF_ENDPOINT is {endpoint}; it must be an https:// address"
                ))
            })?;
        let client = Client::builder()
            .connect_timeout(CONNECT_MAX)
            .redirect(redirect::Policy::none())
            .user_agent(concat!("hearth-node/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| NetError::Settings(error.to_string()))?;
        Ok(Self {
            client,
            endpoint: url,
            token: token(variable)?,
            patience: Patience::default(),
        })
    }

    /// The hub's origin, with a slash at its end.
    pub const fn endpoint(&self) -> &Url {
        &self.endpoint
    }

    /// Asks, follows redirects, and gives an answer with status 200 or 206. The token goes to the endpoint's origin alone.
    pub async fn send(&self, url: &Url, ask: Ask<'_>) -> Result<(Response, HeaderMap), NetError> {
        let mut next = url.clone();
        let mut first = HeaderMap::new();
        for hop in 0..REDIRECTS_MAX {
            let answer = self.once(&next, ask).await?;
            if hop == 0 {
                first.clone_from(answer.headers());
            }
            if !answer.status().is_redirection() {
                return self
                    .judged(answer, &next, hop > 0)
                    .map(|answer| (answer, first));
            }
            next = moved(&answer, &next)?;
        }
        Err(odd(
            &next,
            format!("it redirects more than {REDIRECTS_MAX} times"),
        ))
    }

    async fn once(&self, url: &Url, ask: Ask<'_>) -> Result<Response, NetError> {
        let method = if ask.head { Method::HEAD } else { Method::GET };
        let mut request = self.client.request(method, url.clone());
        if let Some((from, to)) = ask.range {
            request = request.header(RANGE, format!("bytes={from}-{to}"));
        }
        if let Some(accept) = ask.accept {
            request = request.header(reqwest::header::ACCEPT, accept);
        }
        if let Some(token) = self.token_for(url) {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_error| {
                    NetError::Settings("HF_TOKEN holds characters that no token has".to_owned())
                })?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        match timeout(self.patience.stall, request.send()).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(broken(url, cause(&error))),
            Err(_elapsed) => Err(broken(url, "no answer in time".to_owned())),
        }
    }

    fn token_for(&self, url: &Url) -> Option<&str> {
        let token = self.token.as_ref()?;
        (url.origin() == self.endpoint.origin()).then(|| token.as_str())
    }

    fn judged(&self, answer: Response, url: &Url, redirected: bool) -> Result<Response, NetError> {
        let status = answer.status();
        let host = host(url);
        match status.as_u16() {
            200 | 206 => Ok(answer),
            // The signature in a redirect's address ends after minutes; the next try gets a new one.
            403 if redirected => Err(broken(
                url,
                "the address that the hub gave has expired".to_owned(),
            )),
            401 | 403 => Err(NetError::Denied {
                url: bare(url),
                status: status.as_u16(),
                had_token: self.token_for(url).is_some(),
            }),
            404 | 410 => Err(NetError::Missing(bare(url))),
            408 | 425 | 429 | 500..=599 => Err(NetError::Busy {
                host,
                status: status.as_u16(),
                after: retry_after(answer.headers()),
            }),
            _ => Err(odd(url, format!("HTTP {}", status.as_u16()))),
        }
    }

    /// Asks for a small answer, again and again while that may help.
    pub async fn body(
        &self,
        url: &Url,
        ask: Ask<'_>,
        bytes_max: usize,
    ) -> Result<(Vec<u8>, HeaderMap), NetError> {
        let mut tries = 0;
        loop {
            let result = self.body_once(url, ask, bytes_max).await;
            match result {
                Err(error) if error.is_passing() && tries + 1 < self.patience.tries => {
                    self.rest(&error, tries).await;
                    tries += 1;
                }
                Ok(_) | Err(_) => return result,
            }
        }
    }

    async fn body_once(
        &self,
        url: &Url,
        ask: Ask<'_>,
        bytes_max: usize,
    ) -> Result<(Vec<u8>, HeaderMap), NetError> {
        let (answer, _first) = self.send(url, ask).await?;
        let headers = answer.headers().clone();
        let mut stream = answer.bytes_stream();
        let mut body = Vec::new();
        while let Some(part) = timeout(self.patience.stall, stream.next())
            .await
            .map_err(|_elapsed| broken(url, "it stalled".to_owned()))?
        {
            let part = part.map_err(|error| broken(url, cause(&error)))?;
            if body.len() + part.len() > bytes_max {
                return Err(odd(
                    url,
                    format!("its answer is larger than {bytes_max} bytes"),
                ));
            }
            body.extend_from_slice(&part);
        }
        Ok((body, headers))
    }

    /// Waits before the next try: as long as the server asked for, else longer each time.
    pub async fn rest(&self, error: &NetError, tries: u32) {
        let asked = match error {
            NetError::Busy { after, .. } => *after,
            NetError::Broken { .. }
            | NetError::Denied { .. }
            | NetError::Missing(_)
            | NetError::Odd { .. }
            | NetError::Settings(_) => None,
        };
        let pause = self
            .patience
            .pause
            .saturating_mul(1 << tries.min(10))
            .min(self.patience.pause_max);
        tokio::time::sleep(asked.map_or(pause, |asked| asked.min(RETRY_AFTER_MAX))).await;
    }
}

fn token(variable: Environment<'_>) -> Result<Option<Zeroizing<String>>, NetError> {
    let home = variable("HF_HOME")
        .map(std::path::PathBuf::from)
        .or_else(|| {
            let cache = variable("XDG_CACHE_HOME").map(std::path::PathBuf::from);
            let cache = cache.or_else(|| {
                variable("HOME").map(|home: OsString| std::path::PathBuf::from(home).join(".cache"))
            });
            cache.map(|cache| cache.join("huggingface"))
        });
    let written = variable("HF_TOKEN").and_then(|value| value.into_string().ok());
    let text = match (written, home) {
        (Some(text), _) => text,
        (None, Some(home)) => std::fs::read_to_string(home.join("token")).unwrap_or_default(),
        (None, None) => String::new(),
    };
    let text = Zeroizing::new(text);
    let token = text.trim();
    if token.is_empty() {
        return Ok(None);
    }
    // Never quoted: it is a secret.
    if token.len() > TOKEN_CHARS_MAX || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(NetError::Settings(
            "the token of HF_TOKEN (or of the file token in HF_HOME) is damaged; it reads hf_ and 34 letters or digits".to_owned(),
        ));
    }
    Ok(Some(Zeroizing::new(token.to_owned())))
}

fn moved(answer: &Response, url: &Url) -> Result<Url, NetError> {
    let place = answer
        .headers()
        .get(LOCATION)
        .and_then(|place| place.to_str().ok());
    let next = place.and_then(|place| url.join(place).ok());
    let next = next.ok_or_else(|| odd(url, "it redirects to nowhere".to_owned()))?;
    if !may_be_asked(&next) || (url.scheme() == "https" && next.scheme() != "https") {
        return Err(odd(
            url,
            "it redirects to an address that is not encrypted".to_owned(),
        ));
    }
    Ok(next)
}

/// Seconds, or a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let then = httpdate::parse_http_date(text).ok()?;
    // A moment that has passed is now.
    Some(then.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Who was asked.
pub fn host(url: &Url) -> String {
    url.host_str().unwrap_or("the server").to_owned()
}

/// Without what may be a signature.
fn bare(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.into()
}

pub(super) fn broken(url: &Url, reason: String) -> NetError {
    NetError::Broken {
        host: host(url),
        reason,
    }
}

pub(super) fn odd(url: &Url, reason: String) -> NetError {
    NetError::Odd {
        host: host(url),
        reason,
    }
}

/// The innermost cause; the outer ones repeat the address, which may hold a signature.
pub(super) fn cause(error: &reqwest::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    if std::ptr::addr_eq(inner, error) {
        return "the connection broke".to_owned();
    }
    inner.to_string()
}

/// Whether a status says that a range was given.
pub fn is_partial(status: StatusCode) -> bool {
    status == StatusCode::PARTIAL_CONTENT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_may_say_when_in_seconds_or_as_a_date() {
        let after = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(text).expect("a value"));
            retry_after(&headers)
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(90));
        let asked = after(&soon).expect("a date");
        assert!((80..=90).contains(&asked.as_secs()), "{asked:?}");
        assert_eq!(after("later"), None);
    }
}
