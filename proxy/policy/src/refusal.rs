//! Every reason for which Hearth says no, with a label for metrics, whose fault it is and when to come back. Knows no HTTP:
//! `gateway/reply.rs` turns it into a status, a body and headers, and nobody else does.

use std::borrow::Cow;
use std::time::Duration;

use config::tier::Tier;
use config::wire::valid::Invalid;

use crate::identity::Scope;
use crate::limit::{CounterState, Measure, Name, Span, Unit};

/// On whom a refusal reflects.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Blame {
    /// The caller sent something it should not repeat unchanged.
    Caller,
    /// The caller is fine but has used up its share.
    Limit,
    /// Everybody is fine, there is too little room.
    Capacity,
    /// A backend failed.
    Backend,
    /// The proxy or its store failed.
    Ours,
}

impl Blame {
    /// The label in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Limit => "limit",
            Self::Capacity => "capacity",
            Self::Backend => "backend",
            Self::Ours => "ours",
        }
    }
}

/// Why an account that proved itself may not enter.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, thiserror::Error)]
pub enum AccountFault {
    /// `email_verified` is not true.
    #[error("the e-mail address of this account is not verified")]
    EmailNotVerified,
    /// The address is on no list.
    #[error("this account is not on the list of allowed accounts")]
    NotOnList,
    /// A key without the right named an end user.
    #[error(
        "this key may not name end users (`x-hearth-user`): an administrator can give it the right"
    )]
    MayNotActAs,
    /// An administrator closed it.
    #[error("this account was disabled by an administrator")]
    Disabled,
}

/// Our no. `Display` is the sentence for the caller; it holds nothing secret and nothing internal.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Nothing was shown.
    #[error("no credential: send an API key or a token as `authorization: Bearer ...`")]
    MissingCredential,
    /// What was shown is wrong; `why` is safe to tell.
    #[error("the key or token is not valid: {why}")]
    InvalidCredential {
        /// What is wrong with it.
        why: Cow<'static, str>,
    },
    /// It was right once.
    #[error("the credential has expired: sign in again or create a new key")]
    ExpiredCredential,
    /// It was taken back.
    #[error("the credential was revoked")]
    RevokedCredential,
    /// Two different credentials in one request.
    #[error("two different credentials were sent: send one")]
    AmbiguousCredential,
    /// A credential over plain HTTP: it must count as leaked.
    #[error("a credential was sent without TLS: replace it, then use https")]
    PlainHttp,
    /// Known, but not for this.
    #[error("this credential lacks the scope `{scope}`")]
    MissingScope {
        /// The missing one.
        scope: Scope,
    },
    /// Known, but not for this model or tier.
    #[error("this credential may not use `{model}`")]
    ModelNotAllowed {
        /// The tier or model asked for.
        model: String,
    },
    /// Proven, but not welcome.
    #[error("{why}")]
    AccountNotAllowed {
        /// Which rule.
        why: AccountFault,
    },
    /// No such model or tier.
    #[error("{}", unknown_model(model, nearest))]
    UnknownModel {
        /// The one asked for.
        model: String,
        /// At most five ids that exist, the most similar first.
        nearest: Vec<String>,
    },
    /// The request says something wrong; from the validator, or passed on from a node.
    #[error("{message}")]
    BadRequest {
        /// `invalid_json`, `invalid_value`, `unsupported_parameter`, ...
        code: Cow<'static, str>,
        /// Path of the field: `messages[2].content[0].image_url`.
        param: Option<String>,
        /// What is wrong and what would be right.
        message: String,
    },
    /// Not HTTP as we accept it (desync attempts, bad host, ...).
    #[error("malformed request: {why}")]
    MalformedRequest {
        /// Which rule of the gate.
        why: &'static str,
    },
    /// Prompt and answer do not fit, as the node said.
    #[error("{message}")]
    ContextTooLong {
        /// With the numbers.
        message: String,
    },
    /// Too many bytes.
    #[error("the body is larger than {limit} bytes")]
    BodyTooLarge {
        /// The most that is accepted.
        limit: u64,
    },
    /// The body came too slowly.
    #[error("the body was not complete in time")]
    BodyTimeout,
    /// Not JSON.
    #[error("unsupported media type: send `content-type: application/json`")]
    UnsupportedMediaType,
    /// Wrong verb.
    #[error("method not allowed here: use {allow}")]
    MethodNotAllowed {
        /// For the `Allow` header.
        allow: &'static str,
    },
    /// No such path.
    #[error("{}", not_found(hint.as_deref()))]
    NotFound {
        /// The path that was probably meant.
        hint: Option<String>,
    },
    /// Too many header bytes or lines.
    #[error("the request's headers are too large")]
    HeaderTooLarge,
    /// Too many in a short window.
    #[error("{}", rate_limited(state, *retry_after))]
    RateLimited {
        /// Until the same request would be admitted.
        retry_after: Duration,
        /// The limit that refused.
        state: CounterState,
    },
    /// Too many today or this month.
    #[error("{}", quota_exceeded(state, *retry_after))]
    QuotaExceeded {
        /// Until the quota resets.
        retry_after: Duration,
        /// The quota that refused.
        state: CounterState,
    },
    /// More than a limit allows at all: waiting does not help.
    #[error("{}", never_fits(state))]
    NeverFits {
        /// The limit that refused.
        state: CounterState,
    },
    /// Too many connections or requests before anyone was identified.
    #[error("too many requests from this address")]
    Guarded {
        /// Until the next is accepted.
        retry_after: Duration,
    },
    /// The user has too many requests open.
    #[error("{limit} requests of this user are already running: wait for one to finish")]
    TooManyOpen {
        /// The most at once.
        limit: u64,
    },
    /// Backends exist but all queues are full.
    #[error("all queues are full: try again in {} s", seconds_up(*retry_after))]
    QueueFull {
        /// A guess from queue and speed, 1 to 5 s.
        retry_after: Duration,
    },
    /// Nobody can answer now.
    #[error("{}", no_tier(*wanted, *local_only))]
    NoTierAvailable {
        /// The tier wanted, if the request came to that.
        wanted: Option<Tier>,
        /// Somebody else could, but the request must stay at home.
        local_only: bool,
        /// When a breaker lets a probe through, at the earliest.
        retry_after: Duration,
    },
    /// Every attempt failed before the first byte.
    #[error("the model's machine failed to answer")]
    UpstreamError,
    /// The answer broke off after its first byte.
    #[error("the answer broke off: the model's machine was lost")]
    UpstreamBroken,
    /// Nothing came in time.
    #[error("the answer took too long")]
    Timeout,
    /// Counters or keys cannot be read.
    #[error("the proxy cannot reach its store: try again shortly")]
    StoreAway,
    /// A token cannot be checked: its issuer's keys were never fetched, or not for too long.
    #[error("the keys of this token's issuer cannot be fetched now: try again shortly")]
    IssuerAway,
    /// The proxy is stopping.
    #[error("the proxy is restarting: try again shortly")]
    Draining,
    /// A defect of ours.
    #[error("internal error")]
    Internal,
}

impl Refusal {
    /// The label in metrics and logs; one of a closed set.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::MissingCredential => "missing_credential",
            Self::InvalidCredential { .. } => "invalid_credential",
            Self::ExpiredCredential => "expired_credential",
            Self::RevokedCredential => "revoked_credential",
            Self::AmbiguousCredential => "ambiguous_credential",
            Self::PlainHttp => "plain_http",
            Self::MissingScope { .. } => "missing_scope",
            Self::ModelNotAllowed { .. } => "model_not_allowed",
            Self::AccountNotAllowed { .. } => "account_not_allowed",
            Self::UnknownModel { .. } => "unknown_model",
            Self::BadRequest { .. } => "bad_request",
            Self::MalformedRequest { .. } => "malformed_request",
            Self::ContextTooLong { .. } => "context_too_long",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::BodyTimeout => "body_timeout",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::MethodNotAllowed { .. } => "method_not_allowed",
            Self::NotFound { .. } => "not_found",
            Self::HeaderTooLarge => "header_too_large",
            Self::RateLimited { .. } => "rate_limited",
            Self::QuotaExceeded { .. } => "quota_exceeded",
            Self::NeverFits { .. } => "never_fits",
            Self::Guarded { .. } => "guarded",
            Self::TooManyOpen { .. } => "too_many_open",
            Self::QueueFull { .. } => "queue_full",
            Self::NoTierAvailable { .. } => "no_tier_available",
            Self::UpstreamError => "upstream_error",
            Self::UpstreamBroken => "upstream_broken",
            Self::Timeout => "timeout",
            Self::StoreAway => "store_away",
            Self::IssuerAway => "issuer_away",
            Self::Draining => "draining",
            Self::Internal => "internal",
        }
    }

    /// When the same request may succeed, if waiting helps. Never zero: SDKs read 0 as "no hint" or as "now".
    pub fn retry_after(&self) -> Option<Duration> {
        let wait = match self {
            Self::RateLimited { retry_after, .. }
            | Self::QuotaExceeded { retry_after, .. }
            | Self::Guarded { retry_after }
            | Self::QueueFull { retry_after }
            | Self::NoTierAvailable { retry_after, .. } => *retry_after,
            Self::TooManyOpen { .. } | Self::StoreAway | Self::Draining => Duration::from_secs(1),
            // A new fetch is due after a pause; sooner would only meet the same answer.
            Self::IssuerAway => Duration::from_secs(5),
            Self::MissingCredential
            | Self::InvalidCredential { .. }
            | Self::ExpiredCredential
            | Self::RevokedCredential
            | Self::AmbiguousCredential
            | Self::PlainHttp
            | Self::MissingScope { .. }
            | Self::ModelNotAllowed { .. }
            | Self::AccountNotAllowed { .. }
            | Self::UnknownModel { .. }
            | Self::BadRequest { .. }
            | Self::MalformedRequest { .. }
            | Self::ContextTooLong { .. }
            | Self::BodyTooLarge { .. }
            | Self::BodyTimeout
            | Self::UnsupportedMediaType
            | Self::MethodNotAllowed { .. }
            | Self::NotFound { .. }
            | Self::HeaderTooLarge
            | Self::NeverFits { .. }
            | Self::UpstreamError
            | Self::UpstreamBroken
            | Self::Timeout
            | Self::Internal => return None,
        };
        Some(Duration::from_secs(seconds_up(wait)))
    }

    /// Whether a client that repeats the request soon can hope; `false` becomes `x-should-retry: false`. SDKs sleep through
    /// any `Retry-After`, so a wait of more than a minute must stop them (measured: 242 s of silence for a daily quota).
    pub fn should_retry(&self) -> bool {
        if matches!(self, Self::NeverFits { .. }) {
            return false;
        }
        match self.blame() {
            Blame::Caller => false,
            Blame::Limit | Blame::Capacity => self
                .retry_after()
                .is_none_or(|wait| wait <= Duration::from_mins(1)),
            Blame::Backend | Blame::Ours => true,
        }
    }

    /// On whom it reflects.
    pub const fn blame(&self) -> Blame {
        match self {
            Self::MissingCredential
            | Self::InvalidCredential { .. }
            | Self::ExpiredCredential
            | Self::RevokedCredential
            | Self::AmbiguousCredential
            | Self::PlainHttp
            | Self::MissingScope { .. }
            | Self::ModelNotAllowed { .. }
            | Self::AccountNotAllowed { .. }
            | Self::UnknownModel { .. }
            | Self::BadRequest { .. }
            | Self::MalformedRequest { .. }
            | Self::ContextTooLong { .. }
            | Self::BodyTooLarge { .. }
            | Self::BodyTimeout
            | Self::UnsupportedMediaType
            | Self::MethodNotAllowed { .. }
            | Self::NotFound { .. }
            | Self::HeaderTooLarge => Blame::Caller,
            Self::RateLimited { .. }
            | Self::QuotaExceeded { .. }
            | Self::NeverFits { .. }
            | Self::Guarded { .. }
            | Self::TooManyOpen { .. } => Blame::Limit,
            Self::QueueFull { .. } | Self::NoTierAvailable { .. } | Self::Draining => {
                Blame::Capacity
            }
            Self::UpstreamError | Self::UpstreamBroken | Self::Timeout => Blame::Backend,
            Self::StoreAway | Self::IssuerAway | Self::Internal => Blame::Ours,
        }
    }

    /// The limit that refuses.
    pub const fn limit_name(&self) -> Option<Name> {
        if let Self::RateLimited { state, .. }
        | Self::QuotaExceeded { state, .. }
        | Self::NeverFits { state } = self
        {
            return Some(state.name);
        }
        if matches!(self, Self::TooManyOpen { .. }) {
            return Some(Name::user(Measure::Concurrent));
        }
        None
    }

    /// Whether what was charged for the request goes back: it was not the caller who wasted it.
    pub const fn gives_back(&self) -> bool {
        matches!(self.blame(), Blame::Capacity | Blame::Backend | Blame::Ours)
    }
}

impl From<Invalid> for Refusal {
    fn from(invalid: Invalid) -> Self {
        // Many programs show nothing but the message.
        let message = match &invalid.param {
            Some(param) => format!("`{param}`: {}", invalid.message),
            None => invalid.message,
        };
        Self::BadRequest {
            code: invalid.code.as_str().into(),
            param: invalid.param,
            message,
        }
    }
}

/// Whole seconds, rounded up, at least 1.
pub fn seconds_up(wait: Duration) -> u64 {
    let whole = wait.as_secs();
    let up = if wait.subsec_nanos() > 0 {
        whole + 1
    } else {
        whole
    };
    up.max(1)
}

/// A number of units as people read it: `100 requests`, `4.50 in money`.
fn amount(units: u64, unit: Unit) -> String {
    let name = match unit {
        Unit::Requests => "requests",
        Unit::Tokens => "tokens",
        Unit::Items => "pictures and sounds",
        Unit::Bytes => "bytes",
        Unit::Micros => {
            let (whole, cents) = (units / 1_000_000, units % 1_000_000 / 10_000);
            return format!("{whole}.{cents:02} in money");
        }
    };
    format!("{units} {name}")
}

const fn each(state: &CounterState) -> &'static str {
    match state.span {
        Some(Span::Day) => " a day",
        Some(Span::Month) => " a month",
        None if state.is_held() => " at once",
        None => " a minute",
    }
}

/// Whose, how much and of what: `your quota of 100 requests a day`.
fn budget(state: &CounterState, word: &str) -> String {
    let whose = state.name.level.whose();
    let tier = state
        .name
        .tier
        .map_or_else(String::new, |tier| format!(" in the {tier} tier"));
    let limit = amount(state.limit, state.unit);
    format!("{whose} {word} of {limit}{}{tier}", each(state))
}

/// Nothing left, or too little.
fn left(state: &CounterState) -> String {
    if state.remaining == 0 {
        return "is used up".to_owned();
    }
    let left = amount(state.remaining, state.unit);
    format!("has {left} left, and this request needs more")
}

fn rate_limited(state: &CounterState, retry_after: Duration) -> String {
    format!(
        "rate limit reached: {} {} ({}); try again in {} s",
        budget(state, "limit"),
        left(state),
        state.name,
        seconds_up(retry_after)
    )
}

fn quota_exceeded(state: &CounterState, retry_after: Duration) -> String {
    format!(
        "quota used up: {} {} ({}); it resets in {} s",
        budget(state, "quota"),
        left(state),
        state.name,
        seconds_up(retry_after)
    )
}

fn never_fits(state: &CounterState) -> String {
    let budget = budget(state, "limit");
    if state.name.measure == Measure::StoredBytes {
        return format!(
            "no room: {budget} has {} left ({}); delete something first",
            amount(state.remaining, state.unit),
            state.name
        );
    }
    format!(
        "this request alone needs more than {budget} ({}): it can never fit; send less or ask for fewer tokens",
        state.name
    )
}

fn unknown_model(model: &str, nearest: &[String]) -> String {
    if nearest.is_empty() {
        return format!("the model `{model}` does not exist, and no model is loaded now");
    }
    format!(
        "the model `{model}` does not exist; nearest: {}",
        nearest.join(", ")
    )
}

fn not_found(hint: Option<&str>) -> String {
    hint.map_or_else(
        || "no such path".to_owned(),
        |path| format!("no such path: use {path}"),
    )
}

fn no_tier(wanted: Option<Tier>, local_only: bool) -> String {
    let wanted = wanted.map_or_else(
        || "no model can answer now".to_owned(),
        |tier| format!("no tier can answer now (wanted: {tier})"),
    );
    if local_only {
        return format!(
            "{wanted}: this request may not leave the tiers at home (local_only), and none of those can answer it"
        );
    }
    wanted
}

#[cfg(test)]
mod tests;
