//! What the cache holds of one sequence, taken out and put back, in memory and in files.
//!
//! A snapshot can only come from llama.cpp itself; a file can be anybody's, so whoever calls [`load`] has checked its hash.

use std::path::Path;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::session::LlamaStateSeqFlags;
use llama_cpp_2::context::session::SeqState;
use llama_cpp_2::token::LlamaToken;
use scheduler::KvState;
use scheduler::SlotId;
use scheduler::Token;

use crate::engine::Snapshot;

/// Copies the state of a sequence.
pub(super) fn take(context: &LlamaContext<'_>, slot: SlotId, kv: KvState) -> Option<Snapshot> {
    let taken = context.state_seq_get(i32::from(slot.0), LlamaStateSeqFlags::empty());
    match taken {
        Ok(state) => Some(Snapshot {
            bytes: state.byte_len(),
            kv: kv.copied(),
            state: Box::new(state),
        }),
        Err(error) => {
            tracing::warn!(%error, "the state of a sequence cannot be kept");
            None
        }
    }
}

/// Bytes of the state of a sequence.
pub(super) fn size(context: &LlamaContext<'_>, slot: SlotId) -> usize {
    context.state_seq_get_size_ext(i32::from(slot.0), LlamaStateSeqFlags::empty())
}

/// Puts a state into an empty sequence.
pub(super) fn put(context: &mut LlamaContext<'_>, slot: SlotId, snapshot: &Snapshot) -> bool {
    let Some(state) = snapshot.state.downcast_ref::<SeqState>() else {
        return false;
    };
    let put = context.state_seq_set(state, i32::from(slot.0));
    if let Err(error) = &put {
        tracing::warn!(%error, "the state of a sequence cannot be put back");
    }
    put.is_ok()
}

/// Writes the state of a sequence to a file.
pub(super) fn save(
    context: &LlamaContext<'_>,
    slot: SlotId,
    tokens: &[Token],
    path: &Path,
) -> Result<(), String> {
    let tokens: Vec<LlamaToken> = tokens.iter().map(|token| LlamaToken(token.0)).collect();
    let saved = context.state_seq_save_file(path, i32::from(slot.0), &tokens);
    saved.map(|_bytes| ()).map_err(|error| error.to_string())
}

/// Reads the state of an empty sequence from a file that is known to be whole.
pub(super) fn load(
    context: &mut LlamaContext<'_>,
    slot: SlotId,
    tokens: &[Token],
    path: &Path,
) -> Result<(), String> {
    let (found, _bytes) = context
        .state_seq_load_file(path, i32::from(slot.0), tokens.len())
        .map_err(|error| error.to_string())?;
    let same = found
        .iter()
        .map(|token| token.0)
        .eq(tokens.iter().map(|token| token.0));
    if same {
        Ok(())
    } else {
        Err("it holds other tokens than its index says".to_owned())
    }
}
