//! From settings to what a worker is told. Decides nothing: what fits was found out before.

use config::settings::node::{self, EngineSettings, KvType, Split, TierKind, TierSettings};
use engine::LoadSpec;

use super::footprint::Footprint;

/// Layers are put on the GPU as far as it has room; no model has more.
const ALL_LAYERS: u32 = 9_999;
/// One principal may fill half of a queue.
const PRINCIPAL_SHARE: usize = 2;

/// A tier's settings and what was found to fit, as its worker takes them.
pub(super) fn load_spec(settings: &TierSettings, footprint: &Footprint) -> LoadSpec {
    let mut spec = LoadSpec::new(&settings.model);
    spec.n_ctx = footprint.n_ctx;
    spec.slots = u16::try_from(settings.slots).unwrap_or(u16::MAX);
    spec.threads = settings
        .threads
        .map(|threads| u16::try_from(threads).unwrap_or(u16::MAX));
    spec.kv_type = match settings.kv_type {
        KvType::F16 => engine::KvType::F16,
        KvType::Q8 => engine::KvType::Q8_0,
        KvType::Q4 => engine::KvType::Q4_0,
    };
    spec.gpu_layers = settings.gpu_layers.unwrap_or(ALL_LAYERS);
    spec.mlock = settings.mlock;
    apply_engine(&mut spec, &settings.engine);
    apply_task(&mut spec, settings);
    spec.prompt_cache_bytes = footprint.prompts;
    spec.queue_max = usize::try_from(settings.queue_max).unwrap_or(usize::MAX);
    spec.queue_per_principal_max = spec.queue_max.div_ceil(PRINCIPAL_SHARE);
    spec
}

/// What the model makes, and what is put on top of it.
fn apply_task(spec: &mut LoadSpec, settings: &TierSettings) {
    let pooling = settings.pooling.map(|pooling| match pooling {
        node::Pooling::Mean => engine::Pooling::Mean,
        node::Pooling::Cls => engine::Pooling::Cls,
        node::Pooling::Last => engine::Pooling::Last,
    });
    spec.task = match settings.kind {
        TierKind::Chat => engine::Task::Generate,
        TierKind::Embedding => engine::Task::Embed(pooling),
        TierKind::Rerank => engine::Task::Rerank,
    };
    spec.lora = settings.lora.first().map(|lora| engine::Lora {
        path: lora.path.clone(),
        scale: lora.scale,
    });
}

/// What `[tiers.engine]` says.
fn apply_engine(spec: &mut LoadSpec, settings: &EngineSettings) {
    spec.flash_attention = match settings.flash_attention {
        None => engine::FlashAttention::Auto,
        Some(true) => engine::FlashAttention::On,
        Some(false) => engine::FlashAttention::Off,
    };
    spec.batch = settings.batch;
    spec.threads_batch = settings
        .threads_batch
        .and_then(|threads| u16::try_from(threads).ok());
    spec.kv_unified = settings.kv_unified;
    spec.kv_tokens = settings.kv_tokens;
    spec.swa_full = settings.swa_full;
    spec.mmap = settings.mmap;
    spec.main_gpu = settings.main_gpu;
    spec.state_dir.clone_from(&settings.prompt_dir);
    spec.draft_model.clone_from(&settings.draft_model);
    spec.projector.clone_from(&settings.projector);
    spec.draft_max = settings.draft_max;
    spec.ngram = settings.ngram;
    spec.ubatch = settings.ubatch;
    spec.split = settings.split.map(|split| match split {
        Split::None => engine::Split::None,
        Split::Layer => engine::Split::Layer,
        Split::Row => engine::Split::Row,
    });
    spec.sandbox = settings.sandbox;
}
