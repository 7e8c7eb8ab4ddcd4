//! What a tier takes of the memory, and the longest context that its share allows: arithmetic over the model's header and the settings.
//! Loads nothing, measures nothing but what is free.

use config::settings::node::{KvType, TierSettings};

use super::shelf::Share;
use crate::models::advise::budget_of;
use crate::models::memory::{Load, Need, Shape};
use crate::models::progress::size;
use crate::models::{FileProblem, Gguf, is_script, machine};

/// Prompts that may come again are kept in at most this part of a tier's share.
const PROMPTS_SHARE: u64 = 8;

/// How a tier is loaded.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Footprint {
    /// Tokens of one request; 0 lets the model say.
    pub n_ctx: u32,
    /// What it takes, without prompts that are kept.
    pub need: Need,
    /// Memory for prompts that may come again, in bytes.
    pub prompts: u64,
}

impl Footprint {
    /// All of it, in bytes.
    pub const fn total(&self) -> u64 {
        self.need.total().saturating_add(self.prompts)
    }
}

/// Why a tier is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum FootprintError {
    /// No model.
    #[error(transparent)]
    File(#[from] FileProblem),
    /// No context fits.
    #[error(
        "the model needs {} with the shortest context, and {} are its share of the memory: take a smaller quantisation or model, free \
         memory, raise memory_max if it is set, or set context to load it all the same", size(*needed), size(*share)
    )]
    Share {
        /// With 256 tokens.
        needed: u64,
        /// What it may take.
        share: u64,
    },
    /// The configured context does not fit.
    #[error(
        "a context of {context} tokens for each of {slots} slots takes {} beside the weights, and {} are available: set context to {longest} or \
         less, fewer slots, or kv_type = \"q8_0\"", size(*needed), size(*available)
    )]
    Context {
        /// As configured.
        context: u64,
        /// As configured.
        slots: u64,
        /// Cache and buffers.
        needed: u64,
        /// Memory that programs may still take.
        available: u64,
        /// What would fit.
        longest: u64,
    },
}

/// Plans a tier with these settings within `share`.
pub(super) fn plan(settings: &TierSettings, share: &Share) -> Result<Footprint, FootprintError> {
    if is_script(&settings.model) {
        return Ok(Footprint::default());
    }
    let gguf = Gguf::open_whole(&settings.model)?;
    // Weights are mapped: what they take counts as available. What nobody has yet bounds the rest.
    let available = machine::ram_available();
    let free = available.map(|bytes| budget_of(bytes).saturating_add(gguf.tensor_bytes()));
    let bytes = share.bytes.min(free.unwrap_or(u64::MAX));
    let Ok(shape) = Shape::of(&gguf) else {
        // Not a language model as we know them; the worker says what is wrong with it, or loads it.
        return Ok(Footprint {
            n_ctx: settings.context.unwrap_or(0),
            need: Need {
                weights: gguf.tensor_bytes(),
                ..Need::default()
            },
            prompts: 0,
        });
    };
    let beside = companions(settings)?;
    let load = load_of(settings);
    let prompts = prompts_of(settings, share, bytes);
    let room = bytes.saturating_sub(prompts).saturating_sub(beside);
    let context = match settings.context {
        Some(context) => u64::from(context).min(shape.context_max),
        None => shape.longest(load, room).ok_or_else(|| {
            let least = shape.need(Load {
                context: 256,
                ..load
            });
            FootprintError::Share {
                needed: least.total().saturating_add(beside + prompts),
                share: bytes,
            }
        })?,
    };
    let mut need = shape.need(Load { context, ..load });
    if let Some(available) = available {
        let needed = need.kv_cache.saturating_add(need.compute);
        if load.gpu_layers == 0 && needed > available {
            return Err(FootprintError::Context {
                context,
                slots: load.slots,
                needed,
                available,
                longest: shape.longest(load, room).unwrap_or(256),
            });
        }
    }
    need.weights = need.weights.saturating_add(beside);
    Ok(Footprint {
        n_ctx: u32::try_from(context).unwrap_or(u32::MAX),
        need,
        prompts,
    })
}

/// A model that guesses ahead, and adapters, count with their files: what else they take is small beside those.
fn companions(settings: &TierSettings) -> Result<u64, FileProblem> {
    let draft = settings.engine.draft_model.as_ref();
    let adapters = settings.lora.iter().map(|lora| &lora.path);
    let mut bytes = 0_u64;
    for path in draft.into_iter().chain(adapters) {
        bytes = bytes.saturating_add(Gguf::open_whole(path)?.tensor_bytes());
    }
    Ok(bytes)
}

fn prompts_of(settings: &TierSettings, share: &Share, bytes: u64) -> u64 {
    let wanted = settings.engine.prompt_cache_bytes;
    if share.bounded || settings.context.is_none() {
        wanted.min(bytes / PROMPTS_SHARE)
    } else {
        wanted
    }
}

/// The settings in the terms of the arithmetic; its context is 0.
pub fn load_of(settings: &TierSettings) -> Load {
    let kv_32nds = match settings.kv_type {
        KvType::F16 => 64,
        KvType::Q8 => 34,
        KvType::Q4 => 18,
    };
    let slots = u64::from(settings.slots);
    // Without a figure the worker puts on a GPU what it finds room for; what is on none has to fit into memory.
    let gpu_layers = u64::from(settings.gpu_layers.unwrap_or(0));
    let engine = &settings.engine;
    let mut load = Load::plain(0, slots, kv_32nds, gpu_layers).with_program(machine::own_program());
    load.flash = engine.flash_attention;
    load.unified = engine
        .kv_unified
        .then(|| engine.kv_tokens.map_or(u64::MAX, u64::from));
    load.swa_full = engine.swa_full;
    load.batch = u64::from(engine.batch);
    load
}

#[cfg(test)]
mod tests;
