//! Makes a conversation that is too long fit by leaving the oldest turns out, if its sender allows it. Counts with the model's own
//! tokenizer; what still does not fit is refused by the engine, with the numbers.

use std::sync::Arc;

use config::wire::valid::ValidChat;

use super::asked::{in_a_thread, setting};
use super::call::Call;
use crate::chat;
use crate::context;
use crate::reply::Refused;
use crate::tiers::{Ready, TierRoom};

/// Rounds of leaving turns out; each but the last leaves out at least one.
const ROUNDS_MAX: usize = 16;
/// This part of the context is kept free for an answer whose length is not said.
const ANSWER_SHARE: usize = 8;

/// Where a conversation is to fit.
pub(super) struct Fitting<'a> {
    pub(super) ready: &'a Arc<Ready>,
    pub(super) room: &'a Arc<TierRoom>,
    pub(super) call: &'a Call,
}

impl Fitting<'_> {
    /// The chat without its oldest turns and how many messages that were; `None` if it fits as it is, or may not be shortened.
    pub(super) async fn shorter(
        &self,
        chat: &ValidChat,
    ) -> Result<Option<(ValidChat, usize)>, Refused> {
        if !chat.slides {
            return Ok(None);
        }
        let n_ctx = usize::try_from(self.ready.card.n_ctx).unwrap_or(usize::MAX);
        let answer = match chat.generation.max_tokens {
            Some(tokens) => usize::try_from(tokens).unwrap_or(usize::MAX).min(n_ctx / 2),
            None => n_ctx / ANSWER_SHARE,
        };
        let last = context::count(&chat.messages).saturating_sub(1);
        let mut turns = 0;
        for _round in 0..ROUNDS_MAX {
            let (kept, dropped) = context::without_oldest(&chat.messages, turns);
            let mut shorter = chat.clone();
            shorter.messages = kept;
            let tokens = self.tokens_of(&shorter).await?;
            let excess = (tokens + answer).saturating_sub(n_ctx);
            if excess == 0 || turns >= last {
                return Ok((dropped > 0).then_some((shorter, dropped)));
            }
            let more = context::turns_for(&shorter.messages, excess, tokens);
            turns = (turns + more).min(last);
        }
        Ok(None)
    }

    async fn tokens_of(&self, chat: &ValidChat) -> Result<usize, Refused> {
        let (ready, room, call) = (self.ready.clone(), self.room.clone(), self.call.clone());
        let chat = chat.clone();
        let text = in_a_thread(move || {
            let settings = room.settings();
            let setting = setting(&ready, &settings.sampling, &call)?;
            chat::prompt_text(&chat, &setting)
        });
        let counted = self.ready.worker.tokenize(text.await?, true, true);
        match tokio::time::timeout_at(self.call.ends_at, counted).await {
            Ok(tokens) => Ok(tokens.map_err(Refused::Engine)?.len()),
            Err(_elapsed) => Err(Refused::Deadline),
        }
    }
}
