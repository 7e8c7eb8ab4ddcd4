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
const TIER: &str = "x-hearth-tier";
const PRINCIPAL: &str = "x-hearth-principal";
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

    /// A short answer of this step's model, whole; `wall` keeps its prefix to itself.
    pub async fn opinion(
        &self,
        step: &Step,
        (wall, body): (&str, Vec<u8>),
        patience: Duration,
    ) -> Option<Value> {
        let uri = Uri::from_static("/v1/chat/completions");
        let asked = (Method::POST, uri, body.into());
        let names = [(TIER, step.backend.tier.as_str()), (PRINCIPAL, wall)];
        let inquiry = self.inquiry();
        inquiry
            .ask(&step.backend.node, asked, (&names, patience))
            .await
    }

    /// The tokens of a prompt as the model of this step counts them; pictures and sound are left out.
    pub async fn count(&self, step: &Step, path: &str, body: Vec<u8>) -> Option<u64> {
        let uri = Uri::try_from(format!("/count{path}")).ok()?;
        let asked = (Method::POST, uri, body.into());
        let names = [(TIER, step.backend.tier.as_str())];
        let inquiry = self.inquiry();
        let answer = inquiry.ask(&step.backend.node, asked, (&names, COUNT_MAX));
        answer.await?.get("prompt_tokens")?.as_u64()
    }
}

impl Inquiry {
    /// What an answer used that has ended or is about to, because nobody waits for it any more.
    pub async fn used(&self, node: &NodeId, completion_id: &str) -> Option<Usage> {
        let uri = Uri::try_from(format!("{REQUESTS_PATH}{completion_id}")).ok()?;
        let asked = (Method::GET, uri, Bytes::new());
        reported(&self.ask(node, asked, (&[], USED_MAX)).await?)
    }

    /// Whether a node still answers at all. One that is heard in the tunnel is not asked: over a bad line HTTP would be late.
    pub async fn is_alive(&self, node: &NodeId) -> bool {
        let address = self.members.member(node).map(|member| member.address);
        if address.is_some_and(|address| self.upstream.hears(address)) {
            return true;
        }
        let asked = (Method::GET, Uri::from_static("/health"), Bytes::new());
        self.ask(node, asked, (&[], ALIVE_MAX)).await.is_some()
    }

    async fn ask(
        &self,
        node: &NodeId,
        (method, uri, body): (Method, Uri, Bytes),
        (names, patience): (&[(&'static str, &str)], Duration),
    ) -> Option<Value> {
        // A server of somebody else has none of these operations.
        let member = self.members.member(node);
        let member = member.filter(|member| member.remote().is_none())?;
        let mut request = to(&member, method, body);
        *request.uri_mut() = uri;
        for (name, value) in names {
            put(request.headers_mut(), HeaderName::from_static(name), value);
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
