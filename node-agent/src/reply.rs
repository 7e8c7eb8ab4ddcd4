//! Every way in which the node says no, as HTTP: one exhaustive match. The words are the contract with the proxy: 4xx is the caller's
//! fault, 503 sends the request to the next tier, 500 is a fault of this node. Never shows a path, a prompt or the engine's own words.

use bytes::Bytes;
use config::tier::Tier;
use config::wire::error::ErrorBody;
use config::wire::valid::Invalid;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};

use crate::template::TemplateError;
use crate::wake::NotSent;

const CALLER: &str = "invalid_request_error";
const SERVER: &str = "server_error";
/// A queue moves on within seconds.
const BUSY_SECS: u32 = 2;
/// A crashed worker is back within seconds, a loading one takes longer.
const UNAVAILABLE_SECS: u32 = 5;

/// Why a request gets no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    /// The bearer token is not the one of this registration.
    #[error("the agent token is missing or wrong")]
    Unauthorised,
    /// Not a program of this machine, and nobody else may ask the local API.
    #[error(
        "the local API answers programs of this machine only: use http://localhost, and no page of another site"
    )]
    Stranger,
    /// No such operation.
    #[error("there is no such operation here")]
    NotFound,
    /// The operation exists under another method.
    #[error("use {0}")]
    Method(&'static str),
    /// The body is larger than the bound.
    #[error("the body is larger than {max} bytes")]
    BodyTooLarge {
        /// The bound.
        max: usize,
    },
    /// The body did not come in time, or was cut.
    #[error("the body did not arrive")]
    BodyLost,
    /// Too many bytes of requests are held already.
    #[error("too many large requests at once")]
    Crowded,
    /// A header of the proxy is missing or wrong.
    #[error("the header {0} is missing or wrong")]
    Header(&'static str),
    /// A field of the body is wrong.
    #[error("{0}")]
    Body(Invalid),
    /// The model or its template cannot do this.
    #[error("{message}")]
    Unsupported {
        /// The field.
        param: String,
        /// What would be right.
        message: String,
    },
    /// The template does not take the messages.
    #[error("{0}")]
    Template(#[from] TemplateError),
    /// The form that was asked for cannot be used.
    #[error("the form of the answer cannot be used: {reason}")]
    Form {
        /// The field that asked for it.
        param: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A schema is none.
    #[error("{message}")]
    Malformed {
        /// Its place, down to the keyword.
        param: String,
        /// What would be right.
        message: String,
    },
    /// One of several texts is longer than the model takes.
    #[error(
        "{param} has {tokens} tokens, and this model takes at most {max}; shorten it or split it"
    )]
    TooLong {
        /// Its place.
        param: String,
        /// Its tokens.
        tokens: u32,
        /// The bound.
        max: u32,
    },
    /// The tier is not there, not ready, or died.
    #[error("the {tier} tier is not available: {reason}")]
    TierUnavailable {
        /// Which.
        tier: Tier,
        /// A short word.
        reason: &'static str,
    },
    /// The node is going down.
    #[error("the node is shutting down")]
    Draining,
    /// A neighbour was not woken.
    #[error("{0}")]
    NotWoken(NotSent),
    /// The engine said no.
    #[error("{0}")]
    Engine(engine::Refusal),
    /// The time of the request is over.
    #[error("the deadline passed before the answer was complete")]
    Deadline,
}

/// Status, body, seconds to wait.
struct Wire {
    status: StatusCode,
    body: ErrorBody,
    retry_after: Option<u32>,
}

impl Wire {
    fn new(status: StatusCode, kind: &str, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            body: ErrorBody::new(kind, code, message),
            retry_after: None,
        }
    }

    fn caller(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, CALLER, code, message)
    }

    fn param(mut self, param: impl Into<String>) -> Self {
        self.body = self.body.with_param(Some(param.into()));
        self
    }

    fn unavailable(code: &str, message: impl Into<String>, secs: u32) -> Self {
        let mut wire = Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, code, message);
        wire.retry_after = Some(secs);
        wire.body = wire.body.with("retry_after_s", secs);
        wire
    }
}

impl Refused {
    /// Names the field that asked for a grammar which the engine cannot use.
    #[must_use]
    pub fn about_form(self, param: &'static str) -> Self {
        if let Self::Engine(engine::Refusal::BadGrammar { reason }) = self {
            Self::Form { param, reason }
        } else {
            self
        }
    }

    /// Names the place in the request of a picture or sound that the engine cannot read.
    #[must_use]
    pub fn about_media(self, places: &[String]) -> Self {
        let Self::Engine(engine::Refusal::Invalid { param, reason }) = &self else {
            return self;
        };
        let index = param
            .strip_prefix("media[")
            .and_then(|rest| rest.strip_suffix(']'));
        let place = index
            .and_then(|index| index.parse::<usize>().ok())
            .and_then(|index| places.get(index));
        match place {
            Some(place) => Self::Malformed {
                param: place.clone(),
                message: reason.clone(),
            },
            None => self,
        }
    }

    /// The word for logs and metrics: the `code` of the body.
    pub fn label(&self) -> String {
        self.wire().body.error.code.unwrap_or_default()
    }

    /// The status of a whole answer.
    pub fn status(&self) -> StatusCode {
        self.wire().status
    }

    /// The body, also the data of an error event within a stream.
    pub fn body(&self) -> ErrorBody {
        self.wire().body
    }

    /// The whole answer.
    pub fn response(&self) -> Response<Bytes> {
        let wire = self.wire();
        let mut response = Response::new(Bytes::from(wire.body.to_bytes()));
        *response.status_mut() = wire.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(secs) = wire.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(secs));
        }
        match self {
            Self::Method(allowed) => {
                headers.insert(ALLOW, HeaderValue::from_static(allowed));
            }
            Self::Unauthorised => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::Stranger
            | Self::NotFound
            | Self::BodyTooLarge { .. }
            | Self::BodyLost
            | Self::Crowded
            | Self::Header(_)
            | Self::Body(_)
            | Self::Unsupported { .. }
            | Self::Template(_)
            | Self::Form { .. }
            | Self::Malformed { .. }
            | Self::TooLong { .. }
            | Self::TierUnavailable { .. }
            | Self::Draining
            | Self::NotWoken(_)
            | Self::Engine(_)
            | Self::Deadline => {}
        }
        response
    }

    fn wire(&self) -> Wire {
        let message = self.to_string();
        match self {
            Self::Unauthorised => Wire::new(
                StatusCode::UNAUTHORIZED,
                CALLER,
                "invalid_agent_token",
                message,
            ),
            Self::Stranger => Wire::new(StatusCode::FORBIDDEN, CALLER, "not_this_machine", message),
            Self::NotFound => Wire::new(StatusCode::NOT_FOUND, CALLER, "not_found", message),
            Self::Method(_) => Wire::new(
                StatusCode::METHOD_NOT_ALLOWED,
                CALLER,
                "method_not_allowed",
                message,
            ),
            Self::BodyTooLarge { .. } => Wire::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                CALLER,
                "request_too_large",
                message,
            ),
            // The caller's body is whole by now: what got lost, got lost between proxy and node.
            Self::BodyLost | Self::Crowded => Wire::unavailable("overloaded", message, BUSY_SECS),
            // The proxy writes these, not the caller.
            Self::Header(_) => Wire::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                SERVER,
                "invalid_hop_header",
                message,
            ),
            Self::Body(invalid) => {
                let mut wire = Wire::caller(invalid.code.as_str(), message);
                wire.body = wire.body.with_param(invalid.param.clone());
                wire
            }
            Self::Unsupported { param, .. } => {
                Wire::caller("unsupported_parameter", message).param(param)
            }
            Self::Template(error) => template(error, message),
            Self::Form { param, .. } => Wire::caller("invalid_value", message).param(*param),
            Self::Malformed { param, .. } => Wire::caller("invalid_value", message).param(param),
            Self::TooLong { param, tokens, max } => {
                let mut wire = Wire::caller("context_length_exceeded", message).param(param);
                wire.body = wire
                    .body
                    .with("n_ctx", *max)
                    .with("n_prompt_tokens", *tokens);
                wire
            }
            Self::TierUnavailable { .. } => {
                Wire::unavailable("tier_unavailable", message, UNAVAILABLE_SECS)
            }
            Self::Draining => Wire::unavailable("draining", message, UNAVAILABLE_SECS),
            // Another neighbour may.
            Self::NotWoken(_) => Wire::unavailable("not_woken", message, UNAVAILABLE_SECS),
            Self::Engine(refusal) => engine_refusal(refusal),
            Self::Deadline => timeout(message),
        }
    }
}

fn timeout(message: String) -> Wire {
    Wire::new(StatusCode::GATEWAY_TIMEOUT, SERVER, "timeout", message)
}

fn template(error: &TemplateError, message: String) -> Wire {
    match error {
        TemplateError::Broken(_) => Wire::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            SERVER,
            "template_broken",
            message,
        ),
        TemplateError::Refused(_) => Wire::caller("invalid_value", message).param("messages"),
        TemplateError::Reserved(_) => {
            Wire::caller("invalid_value", message).param("chat_template_kwargs")
        }
    }
}

fn engine_refusal(refusal: &engine::Refusal) -> Wire {
    let message = refusal.to_string();
    match refusal {
        engine::Refusal::ContextLengthExceeded {
            prompt_tokens,
            max_tokens,
            n_ctx,
        } => {
            let wanted = match max_tokens {
                Some(answer) => {
                    format!("{prompt_tokens} tokens in the messages, {answer} in the answer")
                }
                None => format!("{prompt_tokens} tokens in the messages"),
            };
            let message = format!(
                "this model's maximum context length is {n_ctx} tokens, but the request needs more: {wanted}; shorten one of them"
            );
            let mut wire = Wire::caller("context_length_exceeded", message).param("messages");
            wire.body = wire
                .body
                .with("n_ctx", *n_ctx)
                .with("n_prompt_tokens", *prompt_tokens);
            wire
        }
        engine::Refusal::QueueFull { .. } => Wire::unavailable("overloaded", message, BUSY_SECS),
        engine::Refusal::DeadlineExceeded => timeout(message),
        engine::Refusal::BadGrammar { .. } => {
            Wire::caller("invalid_value", message).param("response_format")
        }
        engine::Refusal::Invalid { param, .. } => {
            Wire::caller("invalid_value", message).param(param)
        }
        // The reasons of these two are the engine's own words: they go to the log.
        engine::Refusal::EngineFault { .. } => Wire::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            SERVER,
            "engine_fault",
            "the engine failed at this request",
        ),
        engine::Refusal::WorkerGone { .. } => Wire::unavailable(
            "tier_unavailable",
            "the model's process ended; it is being restarted",
            UNAVAILABLE_SECS,
        ),
    }
}

#[cfg(test)]
mod tests;
