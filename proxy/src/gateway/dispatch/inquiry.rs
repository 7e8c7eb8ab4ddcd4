//! Short questions to a node beside the requests themselves: how many tokens a prompt has, and how far an answer came that was cut
//! off. A node that does not say within the time is believed nothing: the estimates stand.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use config::ids::NodeId;
use config::wire::node::REQUESTS_PATH;
use http::{HeaderName, Method, StatusCode, Uri};
use policy::route::Step;
use policy::usage::{Usage, reported};
use serde_json::Value;

use super::{Dispatcher, put, to};
use crate::nodes::members::Members;
use crate::nodes::upstream::{Upstream, Waits};

/// A prompt is rendered and counted within milliseconds; it waits for nobody.
const COUNT_MAX: Duration = Duration::from_secs(2);
/// A node learns within this that nobody waits for an answer any more, and stops.
const USED_MAX: Duration = Duration::from_secs(2);
/// A node that lives answers within the time of the way there and back, however busy its models are.
const ALIVE_MAX: Duration = Duration::from_millis(1_500);
/// Two or three numbers.
const ANSWER_BYTES_MAX: usize = 4_096;

/// Asks nodes what they know.
#[derive(Clone)]
pub struct Inquiry {
    members: Arc<Members>,
    upstream: Upstream,
}

impl Dispatcher {
    /// For questions that outlive their request.
    pub fn inquiry(&self) -> Inquiry {
        Inquiry {
            members: Arc::clone(&self.members),
            upstream: self.upstream.clone(),
        }
    }

    /// The tokens of a prompt as the model of this step counts them; pictures and sound are left out.
    pub async fn count(&self, step: &Step, path: &str, body: Vec<u8>) -> Option<u64> {
        let uri = Uri::try_from(format!("/count{path}")).ok()?;
        let asked = (Method::POST, uri, body.into());
        let tier = Some(step.backend.tier.as_str());
        let inquiry = self.inquiry();
        let answer = inquiry.ask(&step.backend.node, asked, (tier, COUNT_MAX));
        answer.await?.get("prompt_tokens")?.as_u64()
    }
}

impl Inquiry {
    /// What an answer used that has ended or is about to, because nobody waits for it any more.
    pub async fn used(&self, node: &NodeId, completion_id: &str) -> Option<Usage> {
        let uri = Uri::try_from(format!("{REQUESTS_PATH}{completion_id}")).ok()?;
        let asked = (Method::GET, uri, Bytes::new());
        reported(&self.ask(node, asked, (None, USED_MAX)).await?)
    }

    /// Whether a node still answers at all.
    pub async fn is_alive(&self, node: &NodeId) -> bool {
        let asked = (Method::GET, Uri::from_static("/health"), Bytes::new());
        self.ask(node, asked, (None, ALIVE_MAX)).await.is_some()
    }

    async fn ask(
        &self,
        node: &NodeId,
        (method, uri, body): (Method, Uri, Bytes),
        (tier, patience): (Option<&str>, Duration),
    ) -> Option<Value> {
        let member = self.members.member(node)?;
        let mut request = to(&member, method, body);
        *request.uri_mut() = uri;
        if let Some(tier) = tier {
            let name = HeaderName::from_static("x-hearth-tier");
            put(request.headers_mut(), name, tier);
        }
        let waits = Waits {
            connect: patience,
            head: patience,
        };
        let asked = async {
            let mut answer = self.upstream.send(member.address, request, waits).await;
            let answer = answer.as_mut().ok()?;
            if answer.status != StatusCode::OK {
                return None;
            }
            answer.body.collect(ANSWER_BYTES_MAX).await.ok()
        };
        let body = tokio::time::timeout(patience, asked).await.ok()??;
        serde_json::from_slice(&body).ok()
    }
}
