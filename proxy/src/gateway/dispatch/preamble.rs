//! The beginning of what a node answers, up to its first content: before that another one may still be asked. And answers that come whole,
//! whose node is asked now and then whether it still lives.

use http::{HeaderMap, header};
use policy::route::Step;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

use super::failure::Failure;
use super::hope::Hope;
use super::{ANSWER_BYTES_MAX, Asking, PREAMBLE_MAX, Told};
use crate::gateway::events::{Chunk, NodeEvents, Piece};
use crate::nodes::upstream::{Answer, Fault};

impl Asking<'_> {
    /// A whole answer, and what its node says of its part. A node that cannot be reached any more is not waited for.
    pub(super) async fn whole(self, step: &Step, hope: Hope) -> Result<(Told, Value), Failure> {
        let answered = async {
            let mut answer = self.ask(step, hope.until()).await?;
            let told = Told::of(&answer.headers);
            let value = read_whole(&mut answer, self.job.answer_key, hope.until()).await?;
            Ok((told, value))
        };
        tokio::select! {
            answered = answered => answered,
            () = self.gone(step) => Err(Fault::Lost.into()),
        }
    }

    /// Returns when the node of a step does not answer at all any more; never for a server of somebody else.
    async fn gone(self, step: &Step) {
        let node = &step.backend.node;
        let after = self.dispatcher.rules.stall_after;
        let member = self.dispatcher.members.member(node);
        let is_ours = member.is_some_and(|member| member.remote().is_none());
        if !is_ours || after.is_zero() {
            return std::future::pending().await;
        }
        let inquiry = self.dispatcher.inquiry();
        loop {
            sleep(after).await;
            if !inquiry.is_alive(node).await {
                return;
            }
        }
    }
}

pub(super) async fn read_whole(
    answer: &mut Answer,
    key: &str,
    until: Instant,
) -> Result<Value, Failure> {
    let body = timeout_at(until, answer.body.collect(ANSWER_BYTES_MAX)).await;
    let body = body.map_err(|_| Fault::Timeout)??;
    let value: Value = serde_json::from_slice(&body).map_err(|_| Fault::Nonsense)?;
    if value
        .get(key)
        .is_some_and(|member| member.is_array() || member.is_string())
    {
        return Ok(value);
    }
    Err(Fault::Nonsense.into())
}

pub(super) fn is_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("text/event-stream"))
}

/// Reads until there is content: before that another tier may still answer.
pub(super) async fn preamble(
    events: &mut NodeEvents,
    headers: &HeaderMap,
    mut hope: Hope,
) -> Result<Vec<Piece>, Failure> {
    if !is_stream(headers) {
        return Err(Fault::Nonsense.into());
    }
    let mut pieces = Vec::new();
    loop {
        let chunks = timeout_at(hope.until(), events.next())
            .await
            .map_err(|_| Fault::Timeout)??;
        // An end without content is no answer.
        let chunks = chunks.ok_or(Fault::Nonsense)?;
        if chunks.is_empty() {
            hope.heard(Instant::now(), events.word());
        } else {
            hope.renew(Instant::now());
        }
        let mut chunks = chunks.into_iter();
        for chunk in &mut chunks {
            match chunk {
                Chunk::Piece(piece) => pieces.push(piece),
                Chunk::Error(detail) => return Err(Failure::of_error(detail)),
                Chunk::Usage(_) | Chunk::Done | Chunk::Nonsense => {
                    return Err(Fault::Nonsense.into());
                }
            }
            let last = pieces.last();
            if last.is_some_and(|piece| piece.has_content || piece.finishes)
                || pieces.len() >= PREAMBLE_MAX
            {
                events.put_back(chunks);
                return Ok(pieces);
            }
        }
    }
}
