//! The one fact sheet of a request: what the log line and the metrics are made of. Holds no prompt, no answer, no credential
//! and no address.

use config::ids::{KeyId, NodeId, RequestId};
use config::tier::Tier;
use config::wire::routing::Attempt;
use serde::{Deserialize, Serialize};

use crate::identity::Subject;
use crate::usage::Usage;

/// How a request ended.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Answered whole.
    #[default]
    Ok,
    /// Refused; `refusal` says why.
    Refused,
    /// The client left (status 499, never on the wire).
    ClientGone,
    /// The answer broke off after its first byte.
    Broken,
}

impl Ending {
    /// The label in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::ClientGone => "client_gone",
            Self::Broken => "broken",
        }
    }
}

/// Everything worth knowing about one request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AccessRecord {
    /// As in `x-request-id`.
    pub request_id: RequestId,
    /// The W3C trace, if the client sent one.
    pub trace_id: Option<String>,
    /// The operation, one of a closed set: `chat_completions`, `models`, `not_found`, ...; never the raw path.
    pub route: &'static str,
    /// The verb.
    pub method: String,
    /// The status sent, or 499.
    pub status: u16,
    /// How it ended.
    pub outcome: Ending,
    /// The tier that answered.
    pub tier: Option<Tier>,
    /// The model that answered.
    pub model: Option<String>,
    /// The node that answered.
    pub node: Option<NodeId>,
    /// Milliseconds from head to end.
    pub ms: u64,
    /// Milliseconds from head to first token.
    pub ttft_ms: Option<u64>,
    /// Milliseconds that the request waited for a slot on its node.
    pub queue_ms: Option<u64>,
    /// Tokens, once counted.
    pub usage: Option<Usage>,
    /// The key's public part.
    pub key: Option<KeyId>,
    /// The user, hashed.
    pub user: Option<Subject>,
    /// Every try at a backend.
    pub attempts: Vec<Attempt>,
    /// The detour, as `heavy->primary`.
    pub fallback: Option<String>,
    /// Label of the refusal.
    pub refusal: Option<&'static str>,
    /// Bytes of the request's body.
    pub bytes_in: u64,
    /// Bytes of the answer's body.
    pub bytes_out: u64,
    /// Whether the answer was streamed.
    pub stream: bool,
    /// The SDK's `x-stainless-retry-count`.
    pub retry_count: u32,
}

impl AccessRecord {
    /// A record of a request of which only the head is known.
    pub fn new(request_id: RequestId, route: &'static str, method: impl Into<String>) -> Self {
        Self {
            request_id,
            trace_id: None,
            route,
            method: method.into(),
            status: 0,
            outcome: Ending::Ok,
            tier: None,
            model: None,
            node: None,
            ms: 0,
            ttft_ms: None,
            queue_ms: None,
            usage: None,
            key: None,
            user: None,
            attempts: Vec::new(),
            fallback: None,
            refusal: None,
            bytes_in: 0,
            bytes_out: 0,
            stream: false,
            retry_count: 0,
        }
    }

    /// The label for metrics: the refusal's, or how it ended.
    pub fn label(&self) -> &'static str {
        self.refusal.unwrap_or(self.outcome.as_str())
    }
}

#[cfg(test)]
mod tests {
    use config::ids::{KeyId, RequestId, UserId};
    use config::tier::Tier;

    use super::{AccessRecord, Ending};
    use crate::identity::Subject;
    use crate::usage::Usage;

    #[test]
    fn the_wide_event_has_exactly_these_fields() {
        let mut record = AccessRecord::new(RequestId::new("req_1"), "chat_completions", "POST");
        record.status = 200;
        record.tier = Some(Tier::Fast);
        record.key = Some(KeyId::new("abcdefghij"));
        record.user = Some(Subject::of_user(&UserId::new("ada@example.org")));
        record.usage = Some(Usage::default());
        let json = serde_json::to_value(&record).expect("a record is JSON");
        let names: Vec<&str> = json
            .as_object()
            .map(|fields| fields.keys().map(String::as_str).collect())
            .unwrap_or_default();
        insta::assert_snapshot!(names.join(" "));
        assert!(!json.to_string().contains("ada@"), "the user is hashed");
    }

    #[test]
    fn the_label_is_the_refusals_or_the_ending() {
        let mut record = AccessRecord::new(RequestId::new("req_1"), "models", "GET");
        assert_eq!(record.label(), "ok");
        record.outcome = Ending::ClientGone;
        assert_eq!(record.label(), "client_gone");
        record.refusal = Some("timeout");
        assert_eq!(record.label(), "timeout");
    }
}
