//! From a load specification to llama.cpp's parameters, and the check that they fit into memory.

use std::num::NonZeroU32;

use llama_cpp_2::context::params::KvCacheType;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::model::params::LlamaSplitMode;

use super::card::number;
use crate::host;
use crate::spec::FlashAttention;
use crate::spec::KvType;
use crate::spec::LoadError;
use crate::spec::LoadSpec;
use crate::spec::ModelCard;
use crate::spec::Split;

/// One pass through the compute graph takes at most this many tokens; more only costs memory.
const UBATCH_MAX: u32 = 512;
/// The same without flash attention, whose scores take memory for every token of it.
const UBATCH_EXACT: u32 = 128;
/// Memory for attention scores that exact answers may cost.
const SCORES_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// What can be done of a specification: without a GPU no layer goes there, however many were asked for. Memory is then checked and
/// attention computed as on a CPU.
pub(super) fn feasible(spec: &LoadSpec, has_gpu: bool) -> LoadSpec {
    let mut spec = spec.clone();
    if !has_gpu {
        spec.gpu_layers = 0;
    }
    spec
}

/// How the model is loaded: where its layers are, and how its file is read.
pub(super) fn model_params(spec: &LoadSpec) -> LlamaModelParams {
    let params = LlamaModelParams::default()
        .with_n_gpu_layers(spec.gpu_layers)
        .with_use_mmap(spec.mmap)
        .with_use_mlock(spec.mlock);
    let params = match spec.split {
        Some(Split::None) => params.with_split_mode(LlamaSplitMode::None),
        Some(Split::Layer) => params.with_split_mode(LlamaSplitMode::Layer),
        Some(Split::Row) => params.with_split_mode(LlamaSplitMode::Row),
        None => params,
    };
    match spec.main_gpu.and_then(|gpu| i32::try_from(gpu).ok()) {
        Some(gpu) => params.with_main_gpu(gpu),
        None => params,
    }
}

/// Tokens that all sequences together can hold.
pub(super) fn cells(spec: &LoadSpec, n_ctx: u32) -> u32 {
    let all = n_ctx.saturating_mul(u32::from(spec.slots));
    match spec.kv_tokens {
        Some(tokens) if spec.kv_unified => tokens.max(n_ctx).min(all),
        Some(_) | None => all,
    }
}

pub(super) fn context_params(spec: &LoadSpec, card: &ModelCard, heads: u32) -> LlamaContextParams {
    let kv_type = match spec.kv_type {
        KvType::F32 => KvCacheType::F32,
        KvType::F16 => KvCacheType::F16,
        KvType::Q8_0 => KvCacheType::Q8_0,
        KvType::Q4_0 => KvCacheType::Q4_0,
    };
    let exact = is_exact(spec, card.n_ctx, heads);
    let flash_attention = match spec.flash_attention {
        FlashAttention::Auto if exact => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        FlashAttention::Auto => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_AUTO,
        FlashAttention::On => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        FlashAttention::Off => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED,
    };
    let ubatch_max = if exact { UBATCH_EXACT } else { UBATCH_MAX };
    let ubatch = spec.ubatch.unwrap_or(ubatch_max).min(spec.batch);
    let threads = i32::from(card.threads);
    let threads_batch = spec.threads_batch.map_or(threads, i32::from);
    LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(cells(spec, card.n_ctx)))
        .with_n_seq_max(u32::from(card.slots))
        .with_n_batch(spec.batch)
        .with_n_ubatch(ubatch)
        .with_n_threads(threads)
        .with_n_threads_batch(threads_batch)
        .with_type_k(kv_type)
        .with_type_v(kv_type)
        .with_flash_attention_policy(flash_attention)
        .with_offload_kqv(spec.gpu_layers > 0)
        .with_kv_unified(spec.kv_unified)
        .with_swa_full(spec.swa_full)
        .with_no_perf(true)
}

/// Whether attention is computed so that an answer does not depend on what else is in the batch.
///
/// Flash attention on a CPU rounds differently with every split into batches (measured: log-probabilities move by 0.03),
/// so the same seed would give another text when others are being served, and it is no faster there. The price of doing
/// without is memory for the attention scores, which is paid while it is small. A quantised cache needs flash attention.
pub(super) fn is_exact(spec: &LoadSpec, n_ctx: u32, heads: u32) -> bool {
    let ubatch = u64::from(spec.ubatch.unwrap_or(UBATCH_EXACT));
    let scores = u64::from(n_ctx) * u64::from(heads) * ubatch * 4;
    let plain_cache = match spec.kv_type {
        KvType::F32 | KvType::F16 => true,
        KvType::Q8_0 | KvType::Q4_0 => false,
    };
    let wanted = match spec.flash_attention {
        FlashAttention::Auto => spec.gpu_layers == 0 && scores <= SCORES_BYTES_MAX,
        FlashAttention::Off => true,
        FlashAttention::On => false,
    };
    wanted && plain_cache
}

/// Refuses a context that would not fit, since the system would end this process instead of refusing.
///
/// The estimate is a lower bound: a sliding window needs less than full attention, so such layers are left out.
pub(super) fn check_memory(
    spec: &LoadSpec,
    model: &LlamaModel,
    n_ctx: u32,
) -> Result<(), LoadError> {
    let all = u64::from(n_ctx) * u64::from(spec.slots);
    if all > u64::from(u32::MAX / 2) {
        return Err(LoadError::Invalid {
            field: "n_ctx".to_owned(),
            reason: format!("{n_ctx} for each of {} slots is too much", spec.slots),
        });
    }
    let cells = u64::from(cells(spec, n_ctx));
    let Some(available_bytes) = host::memory_available().filter(|_bytes| spec.gpu_layers == 0)
    else {
        return Ok(());
    };
    let architecture = model
        .meta_val_str("general.architecture")
        .unwrap_or_default();
    let heads = u64::from(model.n_head().max(1));
    let width = u64::try_from(model.n_embd()).unwrap_or(0);
    let head = number(model, &architecture, "attention.key_length").unwrap_or(width / heads);
    let window = number(model, &architecture, "attention.sliding_window").unwrap_or(0);
    let windowed = window > 0 && !spec.swa_full;
    let recurrent = model.is_recurrent() || model.is_hybrid();
    // Windowed and hybrid models have at least one full layer in six.
    let layers = u64::from(model.n_layer()) / if windowed || recurrent { 6 } else { 1 };
    // In 32nds of a byte, because a block of 32 numbers has a scale.
    let number_size = match spec.kv_type {
        KvType::F32 => 128,
        KvType::F16 => 64,
        KvType::Q8_0 => 34,
        KvType::Q4_0 => 18,
    };
    let per_cell = 2 * layers * head * u64::from(model.n_head_kv()) * number_size / 32;
    let needed_bytes = cells.saturating_mul(per_cell);
    if needed_bytes > available_bytes {
        return Err(LoadError::Memory {
            needed_bytes,
            available_bytes,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_for_a_gpu_that_is_not_there_stay_on_the_cpu_and_its_rules_hold() {
        let spec = LoadSpec {
            gpu_layers: 9_999,
            ..LoadSpec::new("model.gguf")
        };
        let without = feasible(&spec, false);
        assert_eq!(without.gpu_layers, 0);
        assert!(is_exact(&without, 2_048, 8));
        let with = feasible(&spec, true);
        assert_eq!(with, spec);
        assert!(!is_exact(&with, 2_048, 8));
    }
}
