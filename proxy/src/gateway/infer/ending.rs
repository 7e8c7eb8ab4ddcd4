//! How a question ended, for its counters and the books: what was served is charged, what nobody served goes back. Of an answer that
//! was cut off, the node that wrote it is asked how far it came.

use std::sync::Arc;

use config::ids::NodeId;
use config::settings::plan::Price;
use policy::ledger::{self, LedgerEntry};
use policy::plan::{Outcome, Used};
use policy::record::Ending;
use policy::usage::Usage;

use super::Question;
use crate::gateway::Gateway;
use crate::gateway::admission::Admitted;
use crate::gateway::dispatch::Inquiry;
use crate::gateway::exchange::{Exchange, Stop};

impl Gateway {
    /// Says how it ended; the settlement follows by itself.
    pub(super) fn end(
        &self,
        question: &Question<'_>,
        mut admitted: Admitted,
        (answered, exchange): (&Result<(), Stop>, &Exchange<'_>),
    ) {
        let record = &exchange.record;
        let (ending, served) = match answered {
            Ok(()) => (Ending::Ok, true),
            Err(Stop::ClientGone) => (Ending::ClientGone, true),
            Err(Stop::Refused(refusal)) => {
                let began = record.ttft_ms.is_some();
                let ending = if exchange.is_streaming() {
                    Ending::Broken
                } else {
                    Ending::Refused
                };
                (ending, began || !refusal.gives_back())
            }
        };
        let mut bill = Bill {
            entry: entry(question, &admitted, exchange),
            served,
            price: Price::default(),
            cloud: Price::default(),
        };
        bill.entry.outcome = ending;
        if let (Some(model), Some(tier)) = (&record.model, record.tier) {
            bill.price = self.rooms.prices.of(model, tier);
            bill.cloud = self.rooms.prices.cloud_of(model, tier);
        }
        let usage = record.usage.unwrap_or_default();
        let node = record.node.clone();
        let unsure = served && usage.estimated && !matches!(answered, Ok(()));
        let (true, Some(node)) = (unsure, node) else {
            return bill.close(&mut admitted, &usage);
        };
        admitted.expect_usage();
        let inquiry = self.rooms.dispatcher.inquiry();
        tokio::spawn(told_later(
            (bill, admitted, usage),
            (inquiry, node, question.completion_id.clone()),
        ));
    }
}

/// The line for the books, as far as it is known now.
fn entry(question: &Question<'_>, admitted: &Admitted, exchange: &Exchange<'_>) -> LedgerEntry {
    let (record, principal) = (&exchange.record, question.principal);
    let spend = admitted.spend();
    let id = admitted.id().to_string();
    LedgerEntry {
        at_unix_ms: question.call.unix_ms,
        day: Arc::clone(admitted.day()),
        tenant: principal.tenant().clone(),
        acts_for: principal.acts_for.clone(),
        key: principal.key.clone(),
        groups: principal.groups.clone(),
        route: record.route.to_owned(),
        tier: record.tier,
        model: record.model.clone(),
        node: record.node.clone(),
        media_items: spend.items,
        media_bytes: spend.bytes,
        ms: exchange.elapsed_ms(),
        ..LedgerEntry::new(id, record.request_id.clone(), principal.user.clone())
    }
}

/// What is left to do at the end.
struct Bill {
    entry: LedgerEntry,
    /// Whether anybody served it, or might have.
    served: bool,
    price: Price,
    cloud: Price,
}

impl Bill {
    fn close(self, admitted: &mut Admitted, usage: &Usage) {
        let Self {
            mut entry,
            served,
            price,
            cloud,
        } = self;
        if !served {
            entry.media_items = 0;
            entry.media_bytes = 0;
            return admitted.ended(Outcome::GivenBack, entry);
        }
        let used = Used {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            answer_tokens: usage.completion_tokens,
            tier: entry.tier,
            price,
        };
        entry.tokens_in = usage.prompt_tokens;
        entry.tokens_out = usage.completion_tokens;
        entry.tokens_cached = usage.cached_tokens;
        entry.tokens_reasoning = usage.reasoning_tokens;
        entry.millijoules = usage.millijoules;
        entry.micros = used.micros();
        let (tokens_in, tokens_out) = (usage.prompt_tokens, usage.completion_tokens);
        entry.cloud_micros = ledger::cost(cloud, tokens_in, usage.cached_tokens, tokens_out);
        admitted.ended(Outcome::Served(used), entry);
    }
}

/// Asks the node that wrote an answer how far it came; without an answer the estimate stands.
async fn told_later(
    (bill, mut admitted, estimate): (Bill, Admitted, Usage),
    (inquiry, node, completion_id): (Inquiry, NodeId, String),
) {
    let usage = inquiry.used(&node, &completion_id).await;
    bill.close(&mut admitted, &usage.unwrap_or(estimate));
}
