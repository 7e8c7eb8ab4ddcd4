//! The headers that the proxy sends with a request. Each is checked; none is believed beyond its purpose.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use config::tier::Tier;
use config::wire::node::{LINKS_MAX, PREFIX};
use config::wire::wishes::{self, Priority};
use http::HeaderMap;
use rand::Rng;
use rand::distr::Alphanumeric;
use ring::digest;
use tokio::time::Instant;

use crate::reply::Refused;

const TIER: &str = "x-hearth-tier";
const DEADLINE: &str = "x-hearth-deadline-ms";
const COMPLETION_ID: &str = "x-hearth-completion-id";
const PRINCIPAL: &str = "x-hearth-principal";
const PRIORITY: &str = wishes::PRIORITY;
const MAX_TOKENS: &str = "x-hearth-max-tokens";
const TOKENS: &str = "x-hearth-tokens";
const CREATED: &str = "x-hearth-created";
const REQUEST_ID: &str = "x-request-id";
const ID_CHARS_MAX: usize = 128;
/// OpenAI's SDKs wait this long.
const DEADLINE_DEFAULT: Duration = Duration::from_mins(10);
const DEADLINE_MAX: Duration = Duration::from_hours(1);

/// What the proxy says about a request.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) tier: Tier,
    pub(super) began: Instant,
    pub(super) ends_at: Instant,
    pub(super) request_id: String,
    /// Fairness in the queue, and the wall around reused prefixes.
    pub(super) principal: u64,
    /// Its class in the queue.
    pub(super) priority: Priority,
    /// Tokens that each answer may have, whatever the body says.
    pub(super) max_tokens: Option<u32>,
    /// Name the tokens of the answer, so that another node can go on with it; the body may hold its beginning.
    pub(super) resumable: bool,
    /// The links of its conversation, oldest first.
    pub(super) links: Vec<u64>,
    /// When the answer began, Unix seconds.
    pub(super) created: Option<i64>,
    completion_id: Option<String>,
}

impl Call {
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, Refused> {
        let began = Instant::now();
        let tier = text(headers, TIER)?
            .ok_or(Refused::Header(TIER))?
            .parse()
            .map_err(|_unknown| Refused::Header(TIER))?;
        let left = match text(headers, DEADLINE)? {
            None => DEADLINE_DEFAULT,
            Some(text) => {
                let ms = text.parse().map_err(|_error| Refused::Header(DEADLINE))?;
                Duration::from_millis(ms).min(DEADLINE_MAX)
            }
        };
        let max_tokens = match text(headers, MAX_TOKENS)? {
            None => None,
            Some(text) => match text.parse() {
                Ok(0) | Err(_) => return Err(Refused::Header(MAX_TOKENS)),
                Ok(most) => Some(most),
            },
        };
        Ok(Self {
            tier,
            began,
            max_tokens,
            resumable: text(headers, TOKENS)?.is_some(),
            created: match text(headers, CREATED)? {
                None => None,
                Some(text) => Some(text.parse().map_err(|_error| Refused::Header(CREATED))?),
            },
            links: links(headers)?,
            ends_at: began + left,
            request_id: id(headers, REQUEST_ID)?.unwrap_or_default(),
            principal: text(headers, PRINCIPAL)?.map_or(0, hashed),
            priority: match text(headers, PRIORITY)? {
                None => Priority::default(),
                Some(text) => text.parse().map_err(|_unknown| Refused::Header(PRIORITY))?,
            },
            completion_id: id(headers, COMPLETION_ID)?,
        })
    }

    /// When the answer began: the same wherever it goes on, so that a template writes the same date there.
    pub(super) fn began_at(&self) -> SystemTime {
        let told = self.created.and_then(|secs| u64::try_from(secs).ok());
        let told = told.and_then(|secs| UNIX_EPOCH.checked_add(Duration::from_secs(secs)));
        told.unwrap_or_else(SystemTime::now)
    }

    /// The proxy's id for the answer.
    pub(super) const fn given_id(&self) -> Option<&str> {
        match &self.completion_id {
            Some(id) => Some(id.as_str()),
            None => None,
        }
    }

    /// `None` when the deadline has passed.
    pub(super) fn time_left(&self) -> Option<Duration> {
        let left = self.ends_at.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// The proxy's id for the answer, or a new one.
    pub(super) fn completion_id(&self, prefix: &str) -> String {
        self.completion_id.clone().unwrap_or_else(|| {
            let letters = rand::rng().sample_iter(Alphanumeric).take(24);
            prefix.chars().chain(letters.map(char::from)).collect()
        })
    }
}

/// Numbers of 16 hex digits with commas between them; they mean nothing here.
fn links(headers: &HeaderMap) -> Result<Vec<u64>, Refused> {
    let Some(text) = text(headers, PREFIX)? else {
        return Ok(Vec::new());
    };
    let link = |digits: &str| {
        let whole = digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let link = whole.then(|| u64::from_str_radix(digits, 16).ok());
        link.flatten().ok_or(Refused::Header(PREFIX))
    };
    // One more than allowed is enough to see that it is too many.
    let links = text.split(',').take(LINKS_MAX + 1).map(link);
    let links: Vec<u64> = links.collect::<Result<_, _>>()?;
    if links.len() > LINKS_MAX {
        return Err(Refused::Header(PREFIX));
    }
    Ok(links)
}

fn text<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<Option<&'h str>, Refused> {
    match headers.get(name).map(http::HeaderValue::to_str) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(_not_text)) => Err(Refused::Header(name)),
    }
}

/// Ids come back in answers and logs: plain letters only.
fn id(headers: &HeaderMap, name: &'static str) -> Result<Option<String>, Refused> {
    let Some(text) = text(headers, name)? else {
        return Ok(None);
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if text.is_empty() || text.len() > ID_CHARS_MAX || !text.bytes().all(plain) {
        return Err(Refused::Header(name));
    }
    Ok(Some(text.to_owned()))
}

fn hashed(text: &str) -> u64 {
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    let first = hash.as_ref().first_chunk::<8>();
    first.map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            let name = http::HeaderName::from_static(name);
            (name, http::HeaderValue::from_static(value))
        });
        pairs.collect()
    }

    #[test]
    fn wrong_headers_are_refused_by_name() {
        for (pairs, want) in [
            (&[][..], TIER),
            (&[(TIER, "huge")], TIER),
            (&[(TIER, "fast"), (DEADLINE, "-1")], DEADLINE),
            (&[(TIER, "fast"), (DEADLINE, "soon")], DEADLINE),
            (&[(TIER, "fast"), (COMPLETION_ID, "a b")], COMPLETION_ID),
            (&[(TIER, "fast"), (REQUEST_ID, "")], REQUEST_ID),
            (&[(TIER, "fast"), (MAX_TOKENS, "0")], MAX_TOKENS),
            (&[(TIER, "fast"), (CREATED, "now")], CREATED),
            (&[(TIER, "fast"), (PRIORITY, "urgent")], PRIORITY),
            (&[(TIER, "fast"), (PREFIX, "00112233445566+7")], PREFIX),
            (&[(TIER, "fast"), (PREFIX, "0011223344556677,")], PREFIX),
            (&[(TIER, "fast"), (MAX_TOKENS, "all")], MAX_TOKENS),
        ] {
            let refused = Call::read(&headers(pairs)).err();
            assert_eq!(refused, Some(Refused::Header(want)), "{pairs:?}");
        }
    }

    #[test]
    fn whoever_goes_on_writes_the_date_of_the_beginning() {
        let of = |pairs: &[(&'static str, &'static str)]| {
            let call = Call::read(&headers(pairs)).expect("headers of ours");
            call.began_at()
        };
        let midnight = UNIX_EPOCH + Duration::from_hours(20_454 * 24);
        assert_eq!(of(&[(TIER, "fast"), (CREATED, "1767225600")]), midnight);
        for without in [&[(TIER, "fast")][..], &[(TIER, "fast"), (CREATED, "-5")]] {
            assert!(of(without) > midnight, "the node's own clock");
        }
    }

    #[test]
    fn a_call_carries_what_the_proxy_said() {
        let call = Call::read(&headers(&[
            (TIER, "heavy"),
            (DEADLINE, "99999999999"),
            (COMPLETION_ID, "chatcmpl-1"),
            (PRINCIPAL, "u:0011"),
            (MAX_TOKENS, "37"),
            (PRIORITY, "batch"),
            (PREFIX, "0011223344556677,ffffffffffffffff"),
        ]))
        .expect("reads");
        assert_eq!(call.tier, Tier::Heavy);
        assert_eq!(call.ends_at - call.began, DEADLINE_MAX, "bounded");
        assert_eq!(call.completion_id("chatcmpl-"), "chatcmpl-1");
        assert_ne!(call.principal, 0);
        assert_eq!(call.priority, Priority::Batch);
        assert_eq!(call.max_tokens, Some(37));
        assert_eq!(call.links, [0x0011_2233_4455_6677, u64::MAX]);
        let many = vec!["0011223344556677"; LINKS_MAX + 1].join(",");
        let mut headers = headers(&[(TIER, "fast")]);
        headers.insert(PREFIX, many.parse().expect("visible"));
        let refused = Call::read(&headers).err();
        assert_eq!(refused, Some(Refused::Header(PREFIX)));
    }
}
